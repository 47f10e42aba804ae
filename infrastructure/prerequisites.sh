#!/usr/bin/env bash
# prerequisites.sh: what building and testing need beside Rust and Go; nothing to do when it is there. The local
# Kubernetes and the images install what they need themselves.
set -euo pipefail
cd "$(dirname "$0")"
source local-kubernetes/lib/settings.sh
source local-kubernetes/lib/packages.sh

for tool in cargo go; do
  command -v "$tool" >/dev/null || die "$tool is missing: this project needs the toolchains of Rust (see rust-version in Cargo.toml) and Go (see infrastructure/local-kubernetes/binaries)"
done
command -v dpkg-query >/dev/null || die "this is no Debian: install gcc, make, openssl, faketime, PostgreSQL 15 and its server headers by hand"
# PostgreSQL's package would make and start a server of its own.
if [[ ! -e /etc/postgresql-common/createcluster.conf && $EUID == 0 ]]; then
  mkdir -p /etc/postgresql-common
  echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf
fi
need_packages gcc libc6-dev make openssl faketime postgresql-15 postgresql-server-dev-15 ||
  die "see above. Made for Debian 12, whose PostgreSQL is 15; this is $(. /etc/os-release && echo "$PRETTY_NAME")"
