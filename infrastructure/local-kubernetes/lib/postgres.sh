# localhost/dialog-postgres:*: Debian's PostgreSQL 15 with Citus, as layers on one base; or an image that containerd has
# already, and what is made from it. Sourced, never run.
# shellcheck shell=bash

PG_BIN=/usr/lib/postgresql/15/bin
PG_LIB=usr/lib/postgresql/15/lib
PG_SHARE=usr/share/postgresql/15

postgres_config() { # DIRECTORY-TO-LOOK-FIRST
  printf '"User":"postgres","Env":["PATH=%s%s:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin","LANG=C.UTF-8","PGDATA=/var/lib/postgresql/data"],"Cmd":["postgres"],"StopSignal":"SIGINT"' \
    "${1:+$1:}" "$PG_BIN"
}

# The base takes 40 s once; its key is all that decides what is in it.
base_layer() {
  local suite sources options hook key layer
  suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
  # From where this machine gets its packages.
  for sources in /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list; do
    [[ ! -s $sources ]] || break
  done
  # uid and gid as in the images people use, and no cluster made by the package; $1 is the new root.
  # shellcheck disable=SC2016
  hook='echo postgres:x:999:999::/var/lib/postgresql:/bin/sh >>"$1/etc/passwd"; echo postgres:x:999: >>"$1/etc/group";
    mkdir -p "$1/etc/postgresql-common"; echo create_main_cluster = false >"$1/etc/postgresql-common/createcluster.conf"'
  options=(
    --variant=minbase
    # Beside PostgreSQL what Citus is linked to.
    --include='postgresql-15,libcurl4,liblz4-1,libzstd1'
    --essential-hook="$hook"
    --dpkgopt=force-confold
    # Half of the size is LLVM for the JIT, which no story needs; PostgreSQL runs without it.
    --dpkgopt='path-exclude=/usr/lib/*/libLLVM*'
    --dpkgopt='path-exclude=/usr/lib/postgresql/15/lib/llvmjit*'
    --dpkgopt='path-exclude=/usr/lib/postgresql/15/lib/bitcode/*'
    --dpkgopt='path-exclude=/usr/share/doc/*'
    --dpkgopt='path-exclude=/usr/share/man/*'
    --dpkgopt='path-exclude=/usr/share/locale/*'
  )
  key=$(printf '%s\n' "$suite" "${options[@]}" | sha256sum | cut -c1-16)
  layer=$LAYERS/postgres-$key.tar
  if [[ ! -s $layer ]]; then
    need_packages mmdebstrap
    say "making the root file system of PostgreSQL 15 (Debian $suite); this takes a minute"
    mmdebstrap --quiet "${options[@]}" "$suite" "$layer.new.tar" "$sources" >&2
    mv "$layer.new.tar" "$layer"
  fi
  BASE=$layer
}

# copy_files ROOT FILE...: files of this machine, at the same place.
copy_files() {
  local root=$1 file
  shift
  for file in "$@"; do
    [[ -e $file ]] && mkdir -p "$root$(dirname "$file")" && cp -a "$file" "$root$file"
  done
}

# citus_layer KIND: leaves the layer in CITUS_LAYER, and its files in CITUS_ROOT.
citus_layer() {
  CITUS_ROOT=$(mktemp -d)
  chmod 755 "$CITUS_ROOT"
  if [[ $1 == citus ]]; then
    copy_files "$CITUS_ROOT" /$PG_LIB/citus* /$PG_SHARE/extension/citus*
  else
    "$HERE/../citus-standin/build.sh" "$CITUS_ROOT" >&2
  fi
  CITUS_LAYER=$LAYERS/citus-$1.tar
  pack "$CITUS_ROOT" "$CITUS_LAYER"
}

# given_image NAME: an image that containerd has, as one layer in BASE; its files are in CITUS_ROOT, its programs' places in PG_*.
given_image() {
  local manifest servers major
  manifest=$(ctr images ls "name==$1" | awk 'NR == 2 {print $3}')
  [[ $manifest ]] || die "DIALOG_IMAGE=$1: containerd has no such image: ctr --address $CONTAINERD --namespace k8s.io images import FILE"
  CITUS_ROOT=$(mktemp -d)
  ctr images mount "$1" "$CITUS_ROOT" >/dev/null
  trap 'ctr images unmount --rm "$CITUS_ROOT" >/dev/null; rmdir "$CITUS_ROOT"' EXIT
  servers=("$CITUS_ROOT"/usr/lib/postgresql/*/bin/postgres)
  PG_BIN=$(dirname "${servers[-1]#"$CITUS_ROOT"}")
  major=$(basename "$(dirname "$PG_BIN")")
  PG_SHARE=usr/share/postgresql/$major
  [[ -e $CITUS_ROOT/$PG_SHARE/extension/citus.control ]] || die "DIALOG_IMAGE=$1: no PostgreSQL with Citus where Debian keeps it"
  BASE=$LAYERS/given-${manifest#sha256:}.tar
  [[ -s $BASE ]] || tar --create --file "$BASE.new" --directory "$CITUS_ROOT" --sort=name --numeric-owner .
  [[ -s $BASE ]] || mv "$BASE.new" "$BASE"
  say "Citus: $(citus_version) on PostgreSQL $major, as it is in that image"
}

citus_version() { sed -n "s/^default_version *= *'\(.*\)'.*/\1/p" "$CITUS_ROOT/$PG_SHARE/extension/citus.control"; }

# refused_images PREFIX LAYER...: what must be refused by a cluster of these layers.
refused_images() {
  local prefix=$1
  shift
  other_citus_layer
  import_image "$(postgres_config '')" "${prefix}other-citus" "$@" "$LAYERS/other-citus.tar"
  other_major_layer
  import_image "$(postgres_config /opt/other-major)" "${prefix}other-major" "$@" "$LAYERS/other-major.tar"
}

# A Citus of another minor version: an image that must be refused.
other_citus_layer() {
  local root version
  root=$(mktemp -d)
  chmod 755 "$root"
  version=$(citus_version)
  version=${version%%.*}
  mkdir -p "$root/$PG_SHARE/extension"
  sed "s/^default_version = .*/default_version = '$version.9-1'/" "$CITUS_ROOT/$PG_SHARE/extension/citus.control" \
    >"$root/$PG_SHARE/extension/citus.control"
  pack "$root" "$LAYERS/other-citus.tar"
  rm -rf "$root"
}

# A PostgreSQL of another major version, as far as anyone can tell who asks for its version.
other_major_layer() {
  local root program
  root=$(mktemp -d)
  chmod 755 "$root"
  mkdir -p "$root/opt/other-major"
  for program in postgres initdb pg_ctl psql pg_controldata pg_config; do
    cat >"$root/opt/other-major/$program" <<EOF
#!/bin/sh
case "\$*" in
  --version | -V) echo "$program (PostgreSQL) 99.0" ;;
  *) exec $PG_BIN/$program "\$@" ;;
esac
EOF
    chmod 755 "$root/opt/other-major/$program"
  done
  sed -i 's/^echo.*/echo "PostgreSQL 99.0"/' "$root/opt/other-major/pg_config"
  pack "$root" "$LAYERS/other-major.tar"
  rm -rf "$root"
}

postgres_images() {
  local kind=${DIALOG_CITUS:-} name=localhost/dialog-postgres which
  if [[ ${DIALOG_IMAGE:-} ]]; then
    given_image "$DIALOG_IMAGE"
    refused_images "$DIALOG_IMAGE-" "$BASE"
    printf '%s\n' "$DIALOG_IMAGE"
    return
  fi
  if [[ -z $kind ]]; then
    [[ -e /$PG_LIB/citus.so && -e /$PG_SHARE/extension/citus.control ]] && kind=citus || kind=standin
  fi
  case $kind in
    citus) [[ -e /$PG_LIB/citus.so ]] || die "DIALOG_CITUS=citus, but this machine has no /$PG_LIB/citus.so" ;;
    standin) ;;
    *) die "DIALOG_CITUS must be citus or standin, not $kind" ;;
  esac
  base_layer
  citus_layer "$kind"
  # The tests show this line.
  [[ $kind == citus ]] && which="this machine's Citus" || which="the stand-in for Citus"
  say "Citus: $which $(citus_version)"
  import_image "$(postgres_config '')" "$name:$kind" "$BASE" "$CITUS_LAYER"
  refused_images "$name:" "$BASE" "$CITUS_LAYER"
  rm -rf "$CITUS_ROOT"
  printf '%s\n' "$name:$kind"
}
