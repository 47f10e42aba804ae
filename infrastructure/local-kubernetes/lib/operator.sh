# localhost/dialog-operator:dev: one binary with the libraries it is linked to, and nothing else. Sourced, never run.
# shellcheck shell=bash

operator_image() {
  local binary=$1 root library layer=$LAYERS/operator.tar
  [[ -x $binary ]] || die "$binary is not an executable"
  root=$(mktemp -d)
  chmod 755 "$root"
  mkdir -p "$root/etc" "$root/tmp"
  chmod 1777 "$root/tmp"
  echo 'nonroot:x:65532:65532::/:/sbin/nologin' >"$root/etc/passwd"
  echo 'nonroot:x:65532:' >"$root/etc/group"
  echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
  install -m 755 "$binary" "$root/dialog-operator"
  # The loader and the name service modules are loaded by name, not all of them linked.
  for library in $(ldd "$binary" | grep -o '/[^ ]*'); do
    install -D -m 755 "$(realpath "$library")" "$root$library"
  done
  pack "$root" "$layer"
  rm -rf "$root"
  import_image '"User":"65532:65532","Entrypoint":["/dialog-operator"],"Env":["PATH=/"]' localhost/dialog-operator:dev "$layer"
}
