# Daemons without an init system: a pid file holds pid and start time, so that a reused pid is never taken for ours.
# shellcheck shell=bash

# A zombie has no start time: nothing tells how soon the machine's init buries it.
started_at() { awk '{sub(/.*\) /, "")} $1 != "Z" {print $20}' "/proc/$1/stat" 2>/dev/null; }

is_running() { # NAME
  local pid start
  read -r pid start 2>/dev/null <"$RUN/$1.pid" && [[ -n $start && $(started_at "$pid") == "$start" ]]
}

# start NAME COMMAND...: starts a daemon unless it runs already with this very command and configuration.
start() {
  local name=$1 command argument
  shift
  command=$(
    printf '%q ' "$@"
    for argument in "$@"; do [[ ${argument#--*=} != "$STATE"/config/* ]] || cksum <"${argument#--*=}"; done
  )
  if is_running "$name"; then
    [[ $(<"$RUN/$name.command") == "$command" ]] && return
    stop "$name"
  fi
  say "starting $name"
  # The locks of this script must not live on in the daemon.
  # shellcheck disable=SC2016
  setsid --fork bash -c 'echo "$$ $(awk "{sub(/.*\\) /, \"\"); print \$20}" /proc/$$/stat)" >"$0"; exec "$@"' \
    "$RUN/$name.pid" "$@" >>"$LOGS/$name.log" 2>&1 </dev/null 8>&- 9>&-
  printf '%s' "$command" >"$RUN/$name.command"
}

stop() { # NAME
  local pid deadline
  if is_running "$1"; then
    say "stopping $1"
    read -r pid _ <"$RUN/$1.pid"
    kill "$pid" 2>/dev/null || true
    deadline=$((SECONDS + 10))
    while is_running "$1"; do
      ((SECONDS < deadline)) || kill -KILL "$pid" 2>/dev/null || true
      ((SECONDS < deadline + 10)) || die "$1 (pid $pid) does not end"
      sleep 0.1
    done
  fi
  rm -f "$RUN/$1.pid" "$RUN/$1.command"
}
