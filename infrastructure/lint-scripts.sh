#!/usr/bin/env bash
# lint-scripts.sh: runs shellcheck over every shell script of this repository, and installs it first where it is missing.
set -euo pipefail
cd "$(dirname "$0")"
source local-kubernetes/lib/settings.sh
source local-kubernetes/lib/packages.sh

command -v shellcheck >/dev/null || need_packages shellcheck
cd ..
scripts=(.ci/run)
while IFS= read -r -d '' script; do scripts+=("$script"); done < <(
  find . \( -name target -o -name '.?*' \) -prune -o -name '*.sh' -print0 | sort --zero-terminated
)
shellcheck "${scripts[@]}"
