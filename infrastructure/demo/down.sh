#!/usr/bin/env bash
# down.sh: removes all that up.sh made; `make demo-down` runs this.
# With DIALOG_USE_KUBECONFIG=1 only the demo's namespace goes: the operator there is not the demo's.
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=settings.sh
source "$HERE/settings.sh"

if [[ ${DIALOG_USE_KUBECONFIG:-} == 1 ]]; then
  PATH=$("$LOCAL/bin.sh" kubectl):$PATH
  if kubectl get namespace "$NAMESPACE" --output=name >/dev/null 2>&1; then
    must_be_the_demos
    kubectl delete namespace "$NAMESPACE" --timeout=5m
  fi
else
  "$LOCAL/down.sh"
fi
