# Debian packages. Sourced, never run.
# shellcheck shell=bash

# need_packages NAME...: installs those that are missing.
need_packages() {
  local missing=() name
  for name in "$@"; do
    [[ $(dpkg-query --show --showformat='${db:Status-Status}' "$name" 2>/dev/null) == installed ]] || missing+=("$name")
  done
  ((${#missing[@]})) || return 0
  say "installing Debian packages: ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update --quiet --quiet >&2
  apt-get install --yes --quiet --quiet --no-install-recommends "${missing[@]}" >&2 </dev/null
}
