# Certificates and kubeconfigs of the components, made once per state directory. Sourced, never run.
# shellcheck shell=bash

# All hold from yesterday on: a component whose clock is behind is a fault of its own, not a refused certificate.
# (OpenSSL 3.0 takes another first day only from `openssl ca`, with files of its own; kubeadm backdates by five minutes.)
openssl_of_yesterday() { faketime -f -1d openssl "$@"; }

key() { openssl ecparam -name prime256v1 -genkey -noout -out "$PKI/$1.key"; }

# certificate NAME SUBJECT [SUBJECT-ALTERNATIVE-NAMES]
certificate() {
  [[ -s $PKI/$1.crt ]] && return
  key "$1"
  openssl req -new -key "$PKI/$1.key" -subj "$2" |
    openssl_of_yesterday x509 -req -days 3650 -CA "$PKI/ca.crt" -CAkey "$PKI/ca.key" -CAcreateserial -out "$PKI/$1.crt" \
      -extfile <(printf 'basicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth,clientAuth\n%s' "${3:+subjectAltName=$3}") 2>/dev/null
}

# kubeconfig_for NAME FILE: self-contained, so that it can be copied anywhere.
kubeconfig_for() {
  [[ -s $2 ]] && return
  cat >"$2.new" <<EOF
apiVersion: v1
kind: Config
current-context: local
contexts: [{ name: local, context: { cluster: local, user: $1 } }]
clusters:
  - name: local
    cluster: { server: "https://$NODE_IP:6443", certificate-authority-data: $(base64 -w0 "$PKI/ca.crt") }
users:
  - name: $1
    user: { client-certificate-data: $(base64 -w0 "$PKI/$1.crt"), client-key-data: $(base64 -w0 "$PKI/$1.key") }
EOF
  mv "$2.new" "$2"
}

make_pki() {
  local component
  (umask 077 && mkdir -p "$PKI")
  umask 077
  if [[ ! -s $PKI/ca.crt ]]; then
    say "making certificates in $PKI"
    key ca
    openssl_of_yesterday req -x509 -new -key "$PKI/ca.key" -days 3650 -subj /CN=local-kubernetes -out "$PKI/ca.crt"
    key service-account
    openssl ec -in "$PKI/service-account.key" -pubout -out "$PKI/service-account.pub" 2>/dev/null
  fi
  certificate apiserver /CN=kube-apiserver "IP:$NODE_IP,IP:$API_IP,IP:127.0.0.1,DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.$DOMAIN"
  certificate kubelet-server "/O=system:nodes/CN=system:node:$NODE" "IP:$NODE_IP,DNS:$NODE"
  certificate apiserver-to-kubelet /O=system:masters/CN=kube-apiserver-kubelet-client
  certificate admin /O=system:masters/CN=admin
  certificate kubelet "/O=system:nodes/CN=system:node:$NODE"
  for component in kube-controller-manager kube-scheduler kube-proxy coredns local-volumes; do
    certificate "$component" "/CN=system:$component"
  done
  for component in kubelet kube-controller-manager kube-scheduler kube-proxy coredns local-volumes; do
    kubeconfig_for "$component" "$PKI/$component.kubeconfig"
  done
  kubeconfig_for admin "$STATE/kubeconfig"
  umask 022
}
