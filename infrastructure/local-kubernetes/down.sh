#!/usr/bin/env bash
# down.sh [--purge]: stops all that up.sh started and deletes its state; --purge deletes the build cache as well.
set -euo pipefail
source "$(dirname "$0")/lib/settings.sh"
for part in process network components; do source "$HERE/lib/$part.sh"; done

need_root
lock

# The processes of pods outlive the daemons that started them: a shim is ours if it serves our containerd.
our_shims() {
  local pid
  for pid in $(pgrep -f '^/usr/bin/containerd-shim' || true); do
    # shellcheck disable=SC2094
    ! tr '\0' '\n' <"/proc/$pid/cmdline" 2>/dev/null | grep -qxF "$CONTAINERD" || echo "$pid"
  done
}
end_containers() {
  local pid child
  for pid in $(our_shims); do
    for child in $(pgrep -P "$pid" || true); do kill -KILL "$child" 2>/dev/null || true; done
    kill -KILL "$pid" 2>/dev/null || true
  done
  [[ -z $(our_shims) ]]
}
mounts_of() { awk '{print $5}' /proc/self/mountinfo | grep -E "^($STATE|$RUN)/" | sort -r; }
unmount_all() {
  local mount
  for mount in $(mounts_of); do umount "$mount" 2>/dev/null || true; done
  [[ -z $(mounts_of) ]] || { mounts_of | head -3; false; }
}
remove_cgroups() {
  find /sys/fs/cgroup -maxdepth 2 -name kubepods -type d | while read -r group; do
    find "$group" -depth -type d -exec rmdir {} \; 2>/dev/null || true
    [[ ! -d $group ]] || { echo "$group"; false; }
  done
}

# The kubelet first, so that nobody starts again what is being ended; the rest need not wait for each other.
stop kubelet
for component in "${COMPONENTS[@]}"; do (stop "$component") & done
wait
wait_for 20 "the containers to end" end_containers
wait_for 20 "the mounts to go" unmount_all
wait_for 20 "the control groups to go" remove_cgroups
remove_network
say "deleting $STATE"
# By name: DIALOG_LOCAL_STATE may be a directory with other things in it.
for name in bin cni cni-addresses config containerd etcd kubeconfig kubelet logs manifests pki volumes; do
  rm -rf --one-file-system "${STATE:?}/${name:?}"
done
rmdir "$STATE" 2>/dev/null || true
rm -rf "$RUN/containerd" "$CONTAINERD" "$CONTAINERD.ttrpc"
find /var/log/containers -lname "$LOGS/*" -delete 2>/dev/null || true
if [[ ${1:-} == --purge ]]; then
  say "deleting $CACHE/bin and $CACHE/layers"
  rm -rf "${CACHE:?}/bin" "${CACHE:?}/layers"
fi
say "Kubernetes is down"
