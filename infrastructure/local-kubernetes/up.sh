#!/usr/bin/env bash
# up.sh: a Kubernetes on this machine, or nothing to do when it is there. See README.md.
set -euo pipefail
source "$(dirname "$0")/lib/settings.sh"

if [[ ${DIALOG_USE_KUBECONFIG:-} == 1 ]]; then
  bin=$("$HERE/bin.sh" kubectl)
  "$bin/kubectl" get --raw /readyz --request-timeout=10s >/dev/null || die "the cluster of KUBECONFIG=${KUBECONFIG:-} does not answer"
  say "using the cluster of KUBECONFIG=${KUBECONFIG:-}; nothing was started"
  exit
fi

for part in packages process pki network image components; do source "$HERE/lib/$part.sh"; done
need_root
lock
need_packages containerd runc containernetworking-plugins iptables iproute2 procps openssl faketime conntrack socat gcc libc6-dev
BIN=$("$HERE/bin.sh")
PATH=$BIN:$PATH

mkdir -p "$STATE/volumes" "$LOGS"
ln -sfn "$BIN" "$STATE/bin"
make_pki
make_network
write_configuration
start_etcd
start_containerd
import_pause
start_apiserver
start_controllers
start_node

# Written once per state and version of the manifests: the second run has nothing to ask.
manifests=$(cat "$HERE"/manifests/*.yaml | sha256sum)
if [[ $(cat "$STATE/manifests" 2>/dev/null) != "$manifests" ]]; then
  kubectl apply --server-side --filename "$HERE/manifests" >&2
  printf '%s\n' "$manifests" >"$STATE/manifests"
fi
wait_for 60 "the node to be ready" kubectl wait --for=condition=Ready "node/$NODE" --timeout=0
wait_for 30 "DNS" bash -c 'exec 3<>/dev/tcp/127.0.0.1/8181; printf "GET /ready HTTP/1.0\r\n\r\n" >&3; grep -m1 " 200 " <&3'
wait_for 30 "the host to reach Services" bash -c "exec 3<>/dev/tcp/$API_IP/443"
for component in "${COMPONENTS[@]}"; do
  is_running "$component" || die "$component has ended; its last words: $(tail -n 3 "$LOGS/$component.log")"
done

say "Kubernetes is up; a shell to work in:"
# shellcheck disable=SC2016
printf 'export KUBECONFIG=%s PATH=%s:"$PATH"\n' "$STATE/kubeconfig" "$STATE/bin"
