# The daemons, in the order they start. Sourced, never run.
# shellcheck shell=bash

write_configuration() {
  mkdir -p "$STATE/config" "$LOGS"
  write "$STATE/config/audit-policy.yaml" <"$HERE/config/audit-policy.yaml"
  write "$STATE/config/containerd.toml" <<EOF
version = 2
root = "$STATE/containerd"
state = "$RUN/containerd"
[grpc]
  address = "$CONTAINERD"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:dev"
  # Without CAP_SYS_RESOURCE runc cannot lower oom_score_adj and dies.
  restrict_oom_score_adj = true
  # So that only namespaces of this cluster are removed at the end.
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$STATE/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
EOF
  printf 'nameserver %s\n' "$NODE_IP" | write "$STATE/config/resolv.conf"
  # As kubeadm's, but for the cache, which many clusters have for the cluster's own names too:
  # a name looked up before it exists stays unknown for up to 30 s.
  write "$STATE/config/Corefile" <<EOF
$DOMAIN in-addr.arpa ip6.arpa {
  bind $NODE_IP
  errors
  ready 127.0.0.1:8181
  kubernetes $DOMAIN in-addr.arpa ip6.arpa {
    kubeconfig $PKI/coredns.kubeconfig
    pods insecure
    ttl 30
  }
  cache 30
}
# Nothing outside the cluster exists.
. {
  bind $NODE_IP
  template ANY ANY {
    rcode NXDOMAIN
  }
}
EOF
  write "$STATE/config/kubelet.yaml" <<EOF
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $NODE_IP
authentication: { anonymous: { enabled: false }, webhook: { enabled: true }, x509: { clientCAFile: $PKI/ca.crt } }
authorization: { mode: Webhook }
tlsCertFile: $PKI/kubelet-server.crt
tlsPrivateKeyFile: $PKI/kubelet-server.key
containerRuntimeEndpoint: unix://$CONTAINERD
clusterDNS: [$DNS_IP]
clusterDomain: $DOMAIN
resolvConf: $STATE/config/resolv.conf
cgroupDriver: cgroupfs
podLogsDir: $LOGS/pods
volumePluginDir: $STATE/kubelet/volume-plugins
failCgroupV1: false
failSwapOn: false
enforceNodeAllocatable: []
oomScoreAdj: 0
maxPods: 250
# A busy disk must evict nobody and delete no image.
imageGCHighThresholdPercent: 100
evictionHard: { memory.available: 50Mi, nodefs.available: 1%, nodefs.inodesFree: 1%, imagefs.available: 1%, imagefs.inodesFree: 1% }
EOF
  write "$STATE/config/kube-proxy.yaml" <<EOF
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
clusterCIDR: $POD_CIDR
clientConnection: { kubeconfig: $PKI/kube-proxy.kubeconfig }
healthzBindAddress: 127.0.0.1:10256
oomScoreAdj: 0
# The machine's own conntrack limits stay as they are.
conntrack: { maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s }
EOF
}

start_containerd() {
  start containerd containerd --config "$STATE/config/containerd.toml"
  wait_for 20 containerd ctr version
}

start_etcd() {
  start etcd "$BIN/etcd" --data-dir "$STATE/etcd" --unsafe-no-fsync --log-level warn \
    --listen-client-urls "$ETCD" --advertise-client-urls "$ETCD" --listen-peer-urls http://127.0.0.1:23800
}

start_apiserver() {
  start kube-apiserver "$BIN/kube-apiserver" \
    --etcd-servers="$ETCD" --bind-address="$NODE_IP" --advertise-address="$NODE_IP" --secure-port=6443 \
    --service-cluster-ip-range="$SERVICE_CIDR" --allow-privileged \
    --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction \
    --client-ca-file="$PKI/ca.crt" --tls-cert-file="$PKI/apiserver.crt" --tls-private-key-file="$PKI/apiserver.key" \
    --service-account-issuer="https://kubernetes.default.svc.$DOMAIN" \
    --service-account-key-file="$PKI/service-account.pub" --service-account-signing-key-file="$PKI/service-account.key" \
    --kubelet-certificate-authority="$PKI/ca.crt" --kubelet-preferred-address-types=InternalIP \
    --kubelet-client-certificate="$PKI/apiserver-to-kubelet.crt" --kubelet-client-key="$PKI/apiserver-to-kubelet.key" \
    --audit-policy-file="$STATE/config/audit-policy.yaml" --audit-log-path="$LOGS/audit.log" \
    --audit-log-maxsize=500 --audit-log-maxbackup=2
  wait_for 60 "the API server" kubectl get --raw /readyz
}

start_controllers() {
  start kube-controller-manager "$BIN/kube-controller-manager" \
    --kubeconfig="$PKI/kube-controller-manager.kubeconfig" --leader-elect=false --bind-address=127.0.0.1 \
    --use-service-account-credentials --service-account-private-key-file="$PKI/service-account.key" \
    --flex-volume-plugin-dir="$STATE/kubelet/volume-plugins" --root-ca-file="$PKI/ca.crt" --concurrent-statefulset-syncs=10 --kube-api-qps=50 --kube-api-burst=100
  start kube-scheduler "$BIN/kube-scheduler" \
    --kubeconfig="$PKI/kube-scheduler.kubeconfig" --leader-elect=false --bind-address=127.0.0.1
  start local-volumes "$BIN/local-volumes" --kubeconfig="$PKI/local-volumes.kubeconfig" --root="$STATE/volumes"
}

start_node() {
  start coredns "$BIN/coredns" -conf "$STATE/config/Corefile"
  start kube-proxy "$BIN/kube-proxy" --config="$STATE/config/kube-proxy.yaml" --hostname-override="$NODE"
  start kubelet "$BIN/kubelet" --config="$STATE/config/kubelet.yaml" --kubeconfig="$PKI/kubelet.kubeconfig" \
    --root-dir="$STATE/kubelet" --hostname-override="$NODE" --node-ip="$NODE_IP"
}

COMPONENTS=(kubelet kube-proxy coredns local-volumes kube-scheduler kube-controller-manager kube-apiserver etcd containerd)
