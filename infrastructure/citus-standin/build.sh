#!/bin/bash
# Builds the stand-in and lays it out under DEST as files to put over a PostgreSQL 15 installation:
# DEST/usr/lib/postgresql/15/lib and DEST/usr/share/postgresql/15/extension. The machine's own PostgreSQL is not touched.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dest=${1:?usage: build.sh DEST}
pg_config=/usr/lib/postgresql/15/bin/pg_config

missing=()
[ -x $pg_config ] && [ -e "$($pg_config --pgxs)" ] || missing+=(postgresql-server-dev-15)
command -v gcc >/dev/null || missing+=(gcc libc6-dev)
command -v make >/dev/null || missing+=(make)
if [ ${#missing[@]} -gt 0 ]; then
  { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends "${missing[@]}"; } >&2
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r "$here"/{Makefile,sql} "$here"/*.c "$here"/*.h "$here"/*.control "$work"
make -s -C "$work" PG_CONFIG=$pg_config with_llvm=no >&2
lib=$dest/usr/lib/postgresql/15/lib
extension=$dest/usr/share/postgresql/15/extension
install -D -m 755 "$work/citus.so" "$lib/citus.so"
install -D -m 644 -t "$extension" "$work/citus.control" "$work"/citus--*.sql
