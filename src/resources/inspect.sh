#!/bin/sh
# Says what is in an image: `postgres=<major> citus=<default version>` goes to the termination log. The server itself is
# asked, with the library loaded as a node loads it: what this finds is what a node would find.
#
# Needs sh, the coreutils and the server's own binaries; plain POSIX.
set -u
umask 077
unset PGDATA PGHOST PGPORT PGUSER PGDATABASE PGOPTIONS PGSSLMODE PGSERVICE PGPASSFILE
scratch=${DIALOG_SCRATCH:-/tmp}
termination_log=${DIALOG_TERMINATION_LOG:-/dev/termination-log}
pgdata=$scratch/inspection

fail() {
    printf '%s\n' "$*" >"$termination_log"
    printf '%s\n' "$*" >&2
    exit 1
}

if ! command -v postgres >/dev/null 2>&1; then
    for directory in /usr/lib/postgresql/*/bin; do
        if [ -x "$directory/postgres" ]; then PATH=$directory:$PATH; fi
    done
fi
command -v postgres >/dev/null 2>&1 ||
    fail "the image has no PostgreSQL server: no 'postgres' on PATH ($PATH) nor in /usr/lib/postgresql/*/bin"

# postgres (PostgreSQL) 15.18 (Debian 15.18-1) -> 15
# shellcheck disable=SC2046
set -- $(postgres --version)
major=${3%%[!0-9]*}

rm -rf "$pgdata"
answer=$(initdb --pgdata="$pgdata" --username=postgres --auth=trust --encoding=UTF8 --locale=C --no-sync 2>&1) ||
    fail "initdb of the image failed: $answer"
answer=$(
    printf '%s\n' "select default_version from pg_available_extensions where name = 'citus'" |
        postgres --single -D "$pgdata" -c shared_preload_libraries=citus -c fsync=off template1 2>&1
) || fail "the image's server does not load the citus library: $answer"
rm -rf "$pgdata"

# \t 1: default_version = "13.2-1"\t(typeid = 25, ...)
case $answer in
    *'default_version = "'*) citus=${answer##*default_version = \"} ;;
    *) fail "the image has no citus extension" ;;
esac
printf 'postgres=%s citus=%s\n' "$major" "${citus%%\"*}" >"$termination_log"
