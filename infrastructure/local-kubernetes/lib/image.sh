# Images without a builder: layers are tar files, the rest is some JSON in OCI layout. Sourced, never run.
# shellcheck shell=bash

LAYERS=$CACHE/layers
digest() { sha256sum "$1" | cut -d' ' -f1; }
quoted() { printf '"%s"\n' "$@" | paste -sd,; }

# pack DIRECTORY TAR: byte for byte the same for the same content.
pack() { tar --create --file "$2" --directory "$1" --sort=name --mtime=@0 --numeric-owner --owner=0 --group=0 .; }

# import_image 'CONFIG' 'REFERENCE...' LAYER...: CONFIG is the inside of the image's "config" object.
# Layers that containerd has already are not sent again; an image that is there already is left alone.
import_image() {
  local config=$1 references=$2 work blobs layer sum reference manifest sums=() layers=() diffs=() have
  shift 2
  have=$(ctr images ls -q)
  for layer in "$@"; do
    sum=$(layer_digest "$layer")
    sums+=("$sum")
    diffs+=("sha256:$sum")
    layers+=("{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar\",\"digest\":\"sha256:$sum\",\"size\":$(stat -c %s "$layer")}")
  done
  work=$(mktemp -d)
  blobs=$work/blobs/sha256
  mkdir -p "$blobs"
  printf '{"architecture":"%s","os":"linux","config":{%s},"rootfs":{"type":"layers","diff_ids":[%s]}}' \
    "$(dpkg --print-architecture)" "$config" "$(quoted "${diffs[@]}")" >"$work/config"
  printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:%s","size":%s},"layers":[%s]}' \
    "$(digest "$work/config")" "$(stat -c %s "$work/config")" "$(IFS=,; printf '%s' "${layers[*]}")" >"$work/manifest"
  manifest=$(digest "$work/manifest")

  local entries=()
  for reference in $references; do
    if grep -qxF "$reference" <<<"$have" && [[ $(ctr images ls "name==$reference" | awk 'NR == 2 {print $3}') == "sha256:$manifest" ]]; then
      say "$reference is there already"
    else
      entries+=("{\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"digest\":\"sha256:$manifest\",\"size\":$(stat -c %s "$work/manifest"),\"annotations\":{\"io.containerd.image.name\":\"$reference\"}}")
      say "importing $reference"
    fi
  done
  if ((${#entries[@]})); then
    mv "$work/config" "$blobs/$(digest "$work/config")"
    mv "$work/manifest" "$blobs/$manifest"
    have=$(ctr content ls -q)
    for ((i = 0; i < $#; i++)); do
      grep -qx "sha256:${sums[i]}" <<<"$have" || ln -sf "$(realpath "${@:i+1:1}")" "$blobs/${sums[i]}"
    done
    printf '{"imageLayoutVersion":"1.0.0"}' >"$work/oci-layout"
    printf '{"schemaVersion":2,"manifests":[%s]}' "$(IFS=,; printf '%s' "${entries[*]}")" >"$work/index.json"
    tar --create --dereference --directory "$work" oci-layout index.json blobs | ctr images import - >/dev/null
  fi
  rm -rf "$work"
}

# The digest of a cached layer is kept beside it: hashing the big one takes a second.
layer_digest() {
  [[ $1.sha256 -nt $1 ]] || digest "$1" >"$1.sha256"
  cat "$1.sha256"
}

import_pause() {
  ctr images ls -q | grep -qxF localhost/pause:dev && return
  local root layer=$LAYERS/pause.tar
  mkdir -p "$LAYERS"
  if [[ ! -s $layer ]]; then
    root=$(mktemp -d)
    gcc -static -Os -s -o "$root/pause" "$HERE/config/pause.c"
    pack "$root" "$layer.new"
    mv "$layer.new" "$layer"
    rm -rf "$root"
  fi
  import_image '"Entrypoint":["/pause"],"User":"65535:65535"' localhost/pause:dev "$layer"
}
