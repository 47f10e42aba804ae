# Where everything lives, and the few helpers every script needs. Sourced, never run.
# shellcheck shell=bash disable=SC2034

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CACHE=${DIALOG_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/dialog-operator}
STATE=${DIALOG_LOCAL_STATE:-/var/lib/dialog-local-kubernetes}
RUN=/run/dialog-local-kubernetes
LOGS=$STATE/logs
PKI=$STATE/pki
CONTAINERD=$RUN/containerd.sock

BRIDGE=cni0
NODE=local
NODE_IP=10.244.0.1
POD_CIDR=10.244.0.0/22
SERVICE_CIDR=10.96.0.0/16
API_IP=10.96.0.1
DNS_IP=10.96.0.10
DOMAIN=cluster.local
ETCD=http://127.0.0.1:23790

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

# wait_for SECONDS WHAT COMMAND...: polls the command; past the deadline shows what it last printed.
wait_for() {
  local deadline=$((SECONDS + $1)) what=$2 seen
  shift 2
  until seen=$("$@" 2>&1); do
    ((SECONDS < deadline)) || die "gave up waiting for $what; last seen: $seen"
    sleep 0.2
  done
}

# write FILE: from standard input, only when it changes: kube-proxy ends when its file is touched,
# and containerd reads a network half written.
write() {
  cat >"$1.new"
  if cmp --quiet "$1.new" "$1"; then rm "$1.new"; else mv "$1.new" "$1"; fi
}

need_root() { [[ $EUID == 0 ]] || die "must run as root: it makes bridges, namespaces and mounts"; }

# One script at a time: two callers of up.sh must not race for the same ports.
lock() {
  mkdir -p "$RUN"
  exec 9>"$RUN/lock"
  flock --wait 900 9 || die "another run holds $RUN/lock"
}

ctr() { command ctr --address "$CONTAINERD" --namespace k8s.io "$@"; }
kubectl() { command kubectl --kubeconfig "$STATE/kubeconfig" "$@"; }
