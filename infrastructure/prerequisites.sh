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

# Volumes of the local Kubernetes are on this machine's disk, and Citus moves no shard to a disk of which less than 10 %
# would stay free: moves and scale-ins would be refused.
disk=$STATE
while [[ ! -e $disk ]]; do disk=$(dirname "$disk"); done
read -r size free < <(df --block-size=1M --output=size,avail "$disk" | tail -n 1)
((free * 10 > size + 5000)) ||
  die "the disk of $STATE has $free MB free of $size MB. Citus keeps 10 % of a disk free: make room, or set DIALOG_LOCAL_STATE"
