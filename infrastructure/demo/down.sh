#!/usr/bin/env bash
# down.sh: removes all that up.sh made; `make demo-down` runs this.
# With DIALOG_USE_KUBECONFIG=1 only the demo's namespace goes: the operator there is not the demo's.
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=settings.sh
source "$HERE/settings.sh"

if [[ ${DIALOG_USE_KUBECONFIG:-} == 1 ]]; then
  PATH=$("$LOCAL/bin.sh" kubectl):$PATH
  kubectl delete namespace "$NAMESPACE" --ignore-not-found --timeout=5m
else
  "$LOCAL/down.sh"
fi
