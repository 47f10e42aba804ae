#!/bin/bash
# Prints the bin directory of a PostgreSQL that has citus, and on stderr which one it is: the machine's own when it has
# the extension, else a copy of it with the stand-in laid over, made once and kept.
# DIALOG_CITUS=citus insists on the real one, DIALOG_CITUS=standin on the stand-in. DIALOG_CACHE: where copies are kept.
# DIALOG_POSTGRES_BIN is the bin directory of another PostgreSQL of this machine that has the extension, and then the answer.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
lib=/usr/lib/postgresql/15
share=/usr/share/postgresql/15

case ${DIALOG_CITUS:-} in
  '' | citus | standin) ;;
  *) echo "DIALOG_CITUS must be citus or standin, not $DIALOG_CITUS" >&2; exit 1 ;;
esac

if [ -n "${DIALOG_POSTGRES_BIN:-}" ]; then
  server=$("$DIALOG_POSTGRES_BIN/postgres" --version) || { echo "DIALOG_POSTGRES_BIN=$DIALOG_POSTGRES_BIN has no postgres that runs here" >&2; exit 1; }
  control=$("$DIALOG_POSTGRES_BIN/pg_config" --sharedir)/extension/citus.control
  [ -e "$control" ] || { echo "DIALOG_POSTGRES_BIN=$DIALOG_POSTGRES_BIN: there is no $control" >&2; exit 1; }
  echo "Citus $(sed -n "s/^default_version *= *'\(.*\)'.*/\1/p" "$control") of $server in $DIALOG_POSTGRES_BIN" >&2
  echo "$DIALOG_POSTGRES_BIN"
  exit
fi

if [ ! -x $lib/bin/postgres ]; then
  {
    apt-get update -q
    # PostgreSQL's package would start a cluster of its own
    mkdir -p /etc/postgresql-common
    [ -e /etc/postgresql-common/createcluster.conf ] || echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf
    DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends postgresql-15
  } >&2
fi

control=$share/extension/citus.control
if [ "${DIALOG_CITUS:-}" != standin ] && [ -e $control ]; then
  version=$(sed -n "s/^default_version *= *'\(.*\)'.*/\1/p" $control)
  echo "Citus $version of this machine's $($lib/bin/postgres --version)" >&2
  echo $lib/bin
  exit
elif [ "${DIALOG_CITUS:-}" = citus ]; then
  echo "this machine's PostgreSQL has no citus extension" >&2
  exit 1
fi

# The cache is keyed by what goes into it: these sources and the server they are built for.
hash=$( (cd "$here" && cat Makefile ./*.c ./*.h sql/*.sql ./*.control build.sh pg.sh && $lib/bin/postgres --version) | sha256sum | cut -c1-16)
if [ "$(id -u)" = 0 ]; then
  cache=/var/cache/dialog-operator    # a server does not run as root, and others cannot get into root's home
else
  cache=${XDG_CACHE_HOME:-$HOME/.cache}/dialog-operator
fi
tree=${DIALOG_CACHE:-$cache}/pg-standin-$hash
if [ ! -e "$tree/complete" ]; then
  mkdir -p "$(dirname "$tree")"
  exec 9>"$tree.lock"
  flock 9
fi
if [ ! -e "$tree/complete" ]; then
  rm -rf "$tree"
  mkdir -p "$tree$lib" "$tree$share"
  # PostgreSQL finds its files by their place relative to bin
  cp -rL $lib/bin $lib/lib "$tree$lib"
  cp -rL $share/. "$tree$share"
  rm -rf "$tree$lib"/lib/{bitcode,pgxs} "$tree$lib"/lib/citus* "$tree$share"/extension/citus*
  "$here/build.sh" "$tree"
  touch "$tree/complete"
fi
echo "the stand-in for Citus in $($lib/bin/postgres --version)" >&2
echo "$tree$lib/bin"
