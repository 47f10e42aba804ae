# What the scripts of the demo share. Sourced, never run.
# shellcheck shell=bash disable=SC2034

ROOT=$(cd "$HERE/../.." && pwd)
LOCAL=$ROOT/infrastructure/local-kubernetes
NAMESPACE=shop
# The full name: the short one, dlc, may be another group's as well.
CLUSTER=dialogclusters.dialogcluster.dev/dialogs

step() { printf '\n== %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }
run() { printf '$ %s\n' "$*"; "$@"; }

# Deletes the cluster with its data. Scaling in is not there yet, and the demo begins with one worker.
forget_cluster() {
  # On a machine where the operator never was there is no such kind.
  kubectl delete --namespace "$NAMESPACE" --ignore-not-found "$CLUSTER" >&2 2>/dev/null || true
  # Kubernetes deletes what belonged to it; volumes are kept, unless somebody asks.
  local selector=dialogcluster.dev/cluster=${CLUSTER#*/}
  kubectl delete persistentvolumeclaims --namespace "$NAMESPACE" --selector "$selector" --timeout=2m >&2
  kubectl wait pods --namespace "$NAMESPACE" --selector "$selector" --for=delete --timeout=2m >&2
}
