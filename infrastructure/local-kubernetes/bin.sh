#!/usr/bin/env bash
# bin.sh [TOOL...]: builds the tools (all by default) unless they are in the cache, and prints their directory.
set -euo pipefail
source "$(dirname "$0")/lib/settings.sh"

modules=$HERE/binaries
declare -A package=(
  [kube-apiserver]=k8s.io/kubernetes/cmd/kube-apiserver
  [kube-controller-manager]=k8s.io/kubernetes/cmd/kube-controller-manager
  [kube-scheduler]=k8s.io/kubernetes/cmd/kube-scheduler
  [kube-proxy]=k8s.io/kubernetes/cmd/kube-proxy
  [kubelet]=k8s.io/kubernetes/cmd/kubelet
  [kubectl]=k8s.io/kubernetes/cmd/kubectl
  [etcd]=go.etcd.io/etcd/server/v3
  [helm]=helm.sh/helm/v4/cmd/helm
  [coredns]=.
  [local-volumes]=.
)
(($#)) || set -- "${!package[@]}"

# The key: whatever decides what a binary is.
key=$(cd "$modules" && { go version; cat "$HERE/bin.sh" ./*/go.mod ./*/go.sum ./*/*.go; } | sha256sum | cut -c1-16)
bin=$CACHE/bin/$key
mkdir -p "$bin"
exec 8>"$bin/.lock"
flock 8 # two callers build once

version_of() { (cd "$modules/$1" && go list -m -f '{{.Version}}' "$2"); }

build() {
  local tool=$1 module flags='-s -w' version
  case ${package[$tool]} in
    k8s.io/*)
      module=kubernetes
      # Without these the API server calls itself v0.0.0-master, and charts and clients look at that.
      version=$(version_of kubernetes k8s.io/kubernetes)
      IFS=. read -r _ minor _ <<<"$version"
      base=k8s.io/component-base/version
      flags+=" -X $base.gitVersion=$version -X $base.gitMajor=1 -X $base.gitMinor=$minor -X $base.gitTreeState=clean"
      ;;
    helm.sh/*)
      module=helm
      flags+=" -X helm.sh/helm/v4/internal/version.version=$(version_of helm helm.sh/helm/v4)"
      ;;
    go.etcd.io/*) module=etcd ;;
    *) module=$tool ;;
  esac
  say "building $tool"
  (cd "$modules/$module" &&
    GOTOOLCHAIN=local CGO_ENABLED=0 nice go build -trimpath -buildvcs=false -ldflags "$flags" -o "$bin/$tool.new" "${package[$tool]}") >&2
  mv "$bin/$tool.new" "$bin/$tool" # never a half-written binary
}

for tool in "$@"; do
  [[ -v package[$tool] ]] || die "unknown tool $tool; known: ${!package[*]}"
  [[ -x $bin/$tool ]] || build "$tool"
done
printf '%s\n' "$bin"
