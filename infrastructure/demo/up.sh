#!/usr/bin/env bash
# up.sh: brings up everything the demo needs, and plays it; `make demo` runs this. A second run begins anew, quickly.
# DIALOG_USE_KUBECONFIG=1: on the cluster of KUBECONFIG instead. The operator is installed there already (README.md) and
# looks after namespace dialog-demo, and the addresses of Services can be reached from here.
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=settings.sh
source "$HERE/settings.sh"
cd "$ROOT"

step "What building needs"
infrastructure/prerequisites.sh

step "Kubernetes"
if [[ ${DIALOG_USE_KUBECONFIG:-} == 1 ]]; then
  "$LOCAL/up.sh" >&2
  PATH=$("$LOCAL/bin.sh" kubectl):$PATH
else
  shell=$("$LOCAL/up.sh")
  eval "$shell" # KUBECONFIG and PATH
fi

step "The operator and the demo, built from here"
# One call: the two share all they are built from.
cargo build --locked --release --bin dialog-operator --bin demo

step "A namespace, with nothing of an earlier demo in it"
if ! kubectl get namespace "$NAMESPACE" --output=name 2>/dev/null; then
  kubectl create namespace "$NAMESPACE"
  kubectl label namespace "$NAMESPACE" "$MARK=true" >/dev/null
fi
must_be_the_demos
forget_cluster

if [[ ${DIALOG_USE_KUBECONFIG:-} != 1 ]]; then
  step "Images, and the chart with the operator"
  # It looks after the demo's namespace and no other.
  infrastructure/install.sh target/release/dialog-operator --set "watchNamespaces={$NAMESPACE}" --take-ownership >/dev/null
fi

step "A cluster of one worker"
run kubectl apply --namespace "$NAMESPACE" --filename infrastructure/samples/one-worker.yaml
run kubectl wait --namespace "$NAMESPACE" --for=condition=Ready "$CLUSTER" --timeout=5m

step "The demo"
played=0
target/release/demo --namespace "$NAMESPACE" --name "${CLUSTER#*/}" || played=$?
cat <<END

The cluster is up, and stays up. What to type next:

  export KUBECONFIG=${KUBECONFIG:-} PATH=$(dirname "$(command -v kubectl)"):\$PATH
  kubectl config set-context --current --namespace=$NAMESPACE
  kubectl get dlc --watch                      # workers, phase, moves as they happen
  kubectl scale dlc/dialogs --replicas=4       # grow again
  kubectl describe dlc/dialogs                 # conditions and events
  kubectl exec -it dialogs-coordinator-0 -- psql -h /run/dialog -U postgres dialogs
  make demo-down                               # remove everything
END
((played == 0)) || die "a promise was broken, or the demo did not come to its end: see above"
