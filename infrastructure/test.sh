#!/usr/bin/env bash
# test.sh [ARGUMENT OF cargo test...]: runs every test and ends with the sum of them, alone on the last line.
set -euo pipefail
cd "$(dirname "$0")/.."
infrastructure/prerequisites.sh
infrastructure/local-kubernetes/up.sh >/dev/null

# A hundred histories of the planner's model and the same ones each time, so that a change passes or fails by what it is;
# `make model` draws others, and thousands.
export MODEL_SEED="${MODEL_SEED:-1}"
# Tests with a server, and stories above all, wait for others most of the time: twice as many beside each other as
# there are processors.
tests=$((2 * $(nproc)))
export RUST_TEST_THREADS="${RUST_TEST_THREADS:-$tests}" STORIES_PARALLEL="${STORIES_PARALLEL:-$tests}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
ended=0
cargo test --locked --no-fail-fast "$@" </dev/null 2>&1 | tee "$log" || ended=$?

# test result: ok. 11 passed; 0 failed; 0 ignored; ...
read -r passed failed ignored < <(awk '
  /^test result: / { passed += $4; failed += $6; ignored += $8 }
  END { print passed + 0, failed + 0, ignored + 0 }' "$log")
if ((ended != 0)); then
  echo
  echo "FAILED:"
  grep -E '^test .*\.\.\. FAILED$|^error' "$log" | sort -u || true
  # A program that did not compile, or a test that took its process with it, has no line of its own.
  ((failed > 0)) || failed=1
fi
echo
if ((ignored > 0)); then
  echo "$passed passed, $failed failed, $ignored ignored"
else
  echo "$passed passed, $failed failed"
fi
exit "$ended"
