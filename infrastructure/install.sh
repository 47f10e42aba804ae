#!/usr/bin/env bash
# install.sh BINARY [HELM-ARGUMENT...]: makes the images of this checkout and installs its chart on the local Kubernetes,
# so that the operator runs there as it would anywhere: in a pod, confined, with the rights of the chart alone.
set -euo pipefail
binary=$(realpath "${1:?usage: install.sh BINARY [HELM-ARGUMENT...]}")
shift
cd "$(dirname "$0")/.."
eval "$(infrastructure/local-kubernetes/up.sh)"
PATH=$(infrastructure/local-kubernetes/bin.sh helm kubectl):$PATH
postgres=$(infrastructure/local-kubernetes/images.sh all "$binary")
# The tag stays the same when the program changes: the annotation is what makes the pods new.
helm upgrade dialog-operator charts/dialog-operator --install --namespace dialog-operator --create-namespace \
  --set image.repository=localhost/dialog-operator,image.tag=dev \
  --set defaultPostgresImage="$postgres" \
  --set-string "podAnnotations.dialogcluster\.dev/program=$(sha256sum "$binary" | cut -c1-16)" \
  --wait --timeout 3m "$@"
