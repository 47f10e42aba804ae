# The bridge the pods hang on; it reaches nothing outside this machine. Sourced, never run.
# shellcheck shell=bash

make_network() {
  if ! ip link show "$BRIDGE" >/dev/null 2>&1; then
    say "making bridge $BRIDGE with $NODE_IP, pods $POD_CIDR, services $SERVICE_CIDR"
    ip link add "$BRIDGE" type bridge
  fi
  # A bridge takes the lowest address of its ports, and changes it with them, unless it is given one.
  ip link set "$BRIDGE" address 02:42:0a:f4:00:01 up
  ip address replace "$NODE_IP/${POD_CIDR#*/}" dev "$BRIDGE"
  # Programs on this machine reach Services with an address that the pods can answer to.
  ip route replace "$SERVICE_CIDR" dev "$BRIDGE" src "$NODE_IP"
  # Pods talk to Services, and the answers of pods on the same bridge come back through the same rules.
  modprobe --quiet br_netfilter 2>/dev/null || true # built in on some kernels
  sysctl -q -w net.ipv4.ip_forward=1
  sysctl -q -w net.bridge.bridge-nf-call-iptables=1 2>/dev/null || true

  mkdir -p "$STATE/cni"
  write "$STATE/cni/10-bridge.conflist" <<EOF
{ "cniVersion": "0.4.0", "name": "dialog-local-kubernetes", "plugins": [
  { "type": "bridge", "bridge": "$BRIDGE", "isGateway": true, "hairpinMode": true,
    "ipam": { "type": "host-local", "dataDir": "$STATE/cni-addresses", "ranges": [[{ "subnet": "$POD_CIDR", "gateway": "$NODE_IP" }]], "routes": [{ "dst": "0.0.0.0/0" }] } },
  { "type": "portmap", "capabilities": { "portMappings": true } } ] }
EOF
}

# Chains of kube-proxy, the kubelet and portmap, and nothing else.
remove_network() {
  local tool
  for tool in iptables ip6tables; do
    command -v $tool >/dev/null || continue
    $tool-save 2>/dev/null | grep -qE '^:(KUBE|CNI)-' || continue
    say "removing the $tool chains KUBE-* and CNI-*"
    $tool-save | grep -vE '(KUBE|CNI)-' | $tool-restore
  done
  ip link delete "$BRIDGE" 2>/dev/null || true
  rm -f /var/lib/cni/results/dialog-local-kubernetes-*
}
