# What the scripts of the demo share. Sourced, never run.
# shellcheck shell=bash disable=SC2034

ROOT=$(cd "$HERE/../.." && pwd)
LOCAL=$ROOT/infrastructure/local-kubernetes
# The demo's own: what is in it is deleted without a question.
NAMESPACE=dialog-demo
MARK=dialogcluster.dev/demo
# The full name: the short one, dlc, may be another group's as well.
CLUSTER=dialogclusters.dialogcluster.dev/dialogs

step() { printf '\n== %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }
run() { printf '$ %s\n' "$*"; "$@"; }

# A namespace of this name that the demo has not made is somebody else's, and nothing in it is touched.
must_be_the_demos() {
  [[ $(kubectl get namespace "$NAMESPACE" --ignore-not-found --output="jsonpath={.metadata.labels.${MARK//./\\.}}") == true ]] ||
    die "namespace $NAMESPACE was not made by the demo (it has no label $MARK=true): it is left alone. Remove or rename it"
}

# Deletes the cluster with its data: the demo begins with one worker and no messages.
forget_cluster() {
  # On a machine where the operator never was there is no such kind.
  kubectl delete --namespace "$NAMESPACE" --ignore-not-found "$CLUSTER" >&2 2>/dev/null || true
  # Kubernetes deletes what belonged to it; volumes are kept, unless somebody asks.
  local selector=dialogcluster.dev/cluster=${CLUSTER#*/}
  kubectl delete persistentvolumeclaims --namespace "$NAMESPACE" --selector "$selector" --timeout=2m >&2
  kubectl wait pods --namespace "$NAMESPACE" --selector "$selector" --for=delete --timeout=2m >&2
}
