#!/usr/bin/env bash
# images.sh postgres | operator BINARY | all BINARY: makes the images the tests use and hands them to containerd.
# DIALOG_CITUS=citus|standin chooses the Citus of the PostgreSQL; by default the machine's own if it has one. Prints the
# name of that image. DIALOG_IMAGE: none is made, this one is there.
set -euo pipefail
source "$(dirname "$0")/lib/settings.sh"
for part in packages image postgres operator; do source "$HERE/lib/$part.sh"; done

need_root
lock
[[ -S $CONTAINERD ]] || die "containerd is not running: up.sh starts it"
mkdir -p "$LAYERS"
case ${1:-} in
  postgres) postgres_images ;;
  operator) operator_image "${2:?usage: images.sh operator BINARY}" ;;
  all)
    operator_image "${2:?usage: images.sh all BINARY}"
    postgres_images
    ;;
  *) die "usage: images.sh postgres | operator BINARY | all BINARY" ;;
esac
