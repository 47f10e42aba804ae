#!/bin/sh
# Starts the PostgreSQL server of one Citus node and stays its parent, as the first process of the container.
#
# Needs sh, the coreutils and the server's own binaries; plain POSIX, so that dash and busybox run it. The variables
# DIALOG_* exist for tests. What it decides:
#   - initdb runs only with permission, into a directory beside, which is renamed when it is whole and on the disk;
#   - data of another major version is left alone;
#   - a configuration with which the server does not start is left for the last one with which it did;
#   - SIGTERM is a fast shutdown: a smart one never ends, because the other nodes hold their connections open.
set -u
umask 077
# An image may set these for its own entrypoint, or for its own server.
unset PGDATA PGHOST PGPORT PGUSER PGDATABASE PGOPTIONS PGSSLMODE PGSERVICE PGPASSFILE

volume=${DIALOG_VOLUME:-/var/lib/dialog}
config=${DIALOG_CONFIG:-/etc/dialog/config}
server_tls=${DIALOG_SERVER_TLS:-/etc/dialog/server}
run=${DIALOG_RUN:-/run/dialog}
scratch=${DIALOG_SCRATCH:-/tmp}
termination_log=${DIALOG_TERMINATION_LOG:-/dev/termination-log}
port=${DIALOG_PORT:-5432}
addresses=${DIALOG_ADDRESSES:-*}
libraries=${DIALOG_LIBRARIES-citus}

pgdata=$volume/pgdata
new=$volume/pgdata.new
last_good=$volume/last-good
ready_mark=$run/ready
entry=$run/postgresql.conf
words=$scratch/dialog-words
pipe=$scratch/dialog-log

say() { printf 'start.sh: %s\n' "$*" >&2; }
tell() { printf '%s\n' "$*" >"$termination_log" 2>/dev/null || say "cannot write $termination_log"; }
# With an exit code of its own for what the operator has to know: StartFailure in config_map.rs has them all.
die_with() {
    code=$1
    shift
    say "$*"
    tell "$*"
    exit "$code"
}
die() { die_with 1 "$@"; }
pause() { sleep 0.1 2>/dev/null || sleep 1; }

# ---- signals ------------------------------------------------------------------------------------------------------

server=
stopping=
pass_stop_on() {
    if [ -n "$stopping" ] && [ -n "$server" ]; then kill -INT "$server" 2>/dev/null; fi
}
# shellcheck disable=SC2317 # called by the trap
stop() {
    stopping=yes
    pass_stop_on
}
trap stop TERM INT

# ---- the server's binaries ----------------------------------------------------------------------------------------

# On PATH, or where Debian keeps them: of the major version that made the data, else of the last one there.
find_binaries() {
    if command -v postgres >/dev/null 2>&1; then return; fi
    binaries=
    for directory in /usr/lib/postgresql/*/bin; do
        if [ -x "$directory/postgres" ]; then binaries=$directory; fi
    done
    if [ -r "$pgdata/PG_VERSION" ]; then
        directory=/usr/lib/postgresql/$(cat "$pgdata/PG_VERSION")/bin
        if [ -x "$directory/postgres" ]; then binaries=$directory; fi
    fi
    if [ -z "$binaries" ]; then
        die "the image has no PostgreSQL server: no 'postgres' on PATH ($PATH) nor in /usr/lib/postgresql/*/bin"
    fi
    PATH=$binaries:$PATH
}

# postgres (PostgreSQL) 15.18 (Debian 15.18-1) -> 15
binary_major() {
    # shellcheck disable=SC2046
    set -- $(postgres --version)
    printf '%s' "${3%%[!0-9]*}"
}

# ---- the volume ---------------------------------------------------------------------------------------------------

is_empty() { [ ! -e "$1" ] || { [ -d "$1" ] && found=$(ls -A "$1") && [ -z "$found" ]; }; }
is_whole() { [ -s "$pgdata/PG_VERSION" ] && [ -s "$pgdata/global/pg_control" ]; }

# allowed, or allowed <provider> <locale>: as every node of the cluster is made. The first ones come to it by themselves.
may_initialise() {
    allowed=
    { read -r allowed provider locale <"$config/initialise"; } 2>/dev/null
    [ "$allowed" = allowed ]
}

# What cannot be read is not empty: people would give up data that is whole. (The dot: to be listed is not enough.)
must_be_readable() {
    if ! ls -A "$1/." >"$words" 2>&1; then
        die_with 13 "uid $(id -u) cannot read $1: $(last_words). The data may be whole: nothing is initialised in its place." \
            "Let that uid own what is there, or mend the volume"
    fi
}

prepare_volume() {
    if is_whole; then return; fi
    must_be_readable "$volume"
    if [ -e "$pgdata" ]; then must_be_readable "$pgdata"; fi
    if ! is_empty "$pgdata"; then
        die_with 12 "$pgdata is not whole: it has files in it, but not PG_VERSION and global/pg_control both. It is left as" \
            "it is. Restore the volume, or remove that directory if nothing in it is of worth"
    fi
    if ! may_initialise; then
        left=
        if [ -e "$new" ]; then left=" (but for $new, which an initialisation that was killed left there)"; fi
        die_with 10 "the volume is empty$left, although this node was initialised before: nothing is initialised in its" \
            "place. Bring the volume back that this node had, or restore it from a backup"
    fi
    initialise
}

initialise() {
    # What a killed initdb left may look like a whole server and is none.
    rm -rf "$new" || die "cannot remove $new, which an initialisation that was killed left there"
    major=$(binary_major)
    if [ -z "$provider" ]; then
        if [ "$major" -ge 17 ]; then provider=builtin locale=C.UTF-8; else provider=libc locale=C; fi
    fi
    set -- --pgdata="$new" --username=postgres --auth=trust --data-checksums --encoding=UTF8
    case $provider in
        libc) set -- "$@" --locale-provider=libc --locale="$locale" ;;
        builtin)
            if [ "$major" -lt 17 ]; then
                die "this cluster was born with locales of PostgreSQL's own (provider builtin), which PostgreSQL" \
                    "$major does not have: nothing is initialised. Use an image with PostgreSQL 17 or later"
            fi
            set -- "$@" --locale=C --locale-provider=builtin --builtin-locale="$locale"
            ;;
        icu) set -- "$@" --locale=C --locale-provider=icu --icu-locale="$locale" ;;
        *) die "nothing is initialised: there is no locale provider '$provider'" ;;
    esac
    say "initialising an empty volume"
    if ! initdb "$@" >"$words" 2>&1; then
        cat "$words" >&2
        if [ -n "$stopping" ]; then exit 143; fi
        die "initdb failed: $(last_words)"
    fi
    cat "$words" >&2
    if [ -e "$pgdata" ]; then rmdir "$pgdata" || die "cannot remove the empty directory $pgdata"; fi
    # On the disk before it has the name that says so, and the name as well before the server writes.
    sync
    mv "$new" "$pgdata" || die "cannot rename $new to $pgdata"
    sync
}

refuse_other_major() {
    data_major=$(cat "$pgdata/PG_VERSION")
    image_major=$(binary_major)
    if [ "$data_major" != "$image_major" ]; then
        die_with 11 "the data on this volume is of PostgreSQL $data_major and the image has PostgreSQL $image_major: it is" \
            "left as it is. Use an image with PostgreSQL $data_major"
    fi
}

# ---- the last configuration with which the server became ready ----------------------------------------------------
#
# Two directories, a and b, and the file 'current' that names the good one: renaming a file is the one step that is
# whole or not done. The copy is made before the start, of the very files that the server is about to read.

files='postgresql.conf output_plugin_libraries.conf pg_hba.conf pg_ident.conf'
good=
trial=

same_files() {
    for file in $files; do
        [ "$(cat "$1/$file" 2>/dev/null)" = "$(cat "$2/$file" 2>/dev/null)" ] || return 1
    done
}

# Sets 'good' (empty: there is none) and 'trial' (empty: what is mounted is what is good, or cannot be copied).
copy_for_trial() {
    good=
    trial=
    current=$(cat "$last_good/current" 2>/dev/null)
    case $current in
        a) other=b ;;
        *) other=a ;;
    esac
    case $current in
        a | b) good=$last_good/$current ;;
    esac
    if [ -n "$good" ] && same_files "$config" "$good"; then return; fi
    if rm -rf "${last_good:?}/$other" && mkdir -p "$last_good/$other" && copy_files "$last_good/$other"; then
        trial=$other
    else
        say "cannot copy the configuration to $last_good: it is used, and there will be no way back to it"
    fi
}

copy_files() {
    for file in $files; do
        cp "$config/$file" "$1/$file" && sync "$1/$file" || return 1
    done
}

keep_as_good() {
    if [ -z "$trial" ]; then return; fi
    if printf '%s\n' "$trial" >"$last_good/current.new" && mv "$last_good/current.new" "$last_good/current"; then
        good=$last_good/$trial
    else
        say "cannot write $last_good/current"
    fi
}

# dialog.config_hash = '0123' -> 0123, from the end of a postgresql.conf
hash_in() {
    line=$(tail -n 1 "$1/postgresql.conf" 2>/dev/null)
    case $line in
        "dialog.config_hash = '"*"'") line=${line#*\'} && printf '%s' "${line%\'}" ;;
        *) printf unknown ;;
    esac
}

# ---- the server ---------------------------------------------------------------------------------------------------

# Passes the server's log on. Until it is ready, keeps it as well: the words of a server that does not start.
pass_log_on() {
    trap '' TERM INT
    while IFS= read -r line; do
        printf '%s\n' "$line" >&2
        if [ -e "$ready_mark" ]; then exec cat >&2; fi
        printf '%s\n' "$line" >>"$words"
    done
}

# The last four lines that say something, as one line of at most 500 printable characters.
last_words() {
    one=
    two=
    three=
    four=
    while IFS= read -r line; do
        for severity in PANIC FATAL ERROR WARNING LOG DETAIL HINT CONTEXT; do
            case $line in
                *"$severity:  "*) line="$severity: ${line#*"$severity:  "}" ;;
            esac
        done
        case $line in
            '' | 'LOG: starting PostgreSQL'* | 'LOG: listening on'* | 'LOG: database system '*) ;;
            'FATAL: the database system is '*) ;;
            *) one=$two two=$three three=$four four=$line ;;
        esac
    done <"$words"
    said=
    for line in "$one" "$two" "$three" "$four"; do
        if [ -n "$line" ]; then said="$said${said:+; }$line"; fi
    done
    if [ -z "$said" ]; then said="it said nothing"; fi
    # Not a byte that is no character: the server shows this to clients.
    printf '%.500s' "$(printf '%s' "$said" | LC_ALL=C tr -c '\040-\176' '?')"
}

# Line 1 of postmaster.pid is the server's process, line 3 when it started, line 8 its state. A file that an earlier
# server left may have the same process number in a container, hence the difference to 'stale'.
read_pid_file() {
    pid_file=
    if [ ! -r "$pgdata/postmaster.pid" ]; then return 1; fi
    {
        read -r pid; read -r _; read -r started; read -r _; read -r _; read -r _; read -r _; read -r state _
    } <"$pgdata/postmaster.pid" 2>/dev/null || return 1
    pid_file="$pid $started $state"
}
is_ready() {
    read_pid_file && [ "$pid" = "$server" ] && [ "$state" = ready ] && [ "$pid_file" != "$stale" ]
}

# The lock files of a server that was killed, of its data and of its socket, name its process in the container's last
# life. That number may be another process's now, such as the reader's of the log, and the server would refuse to start.
# The number of its parent it does not mind, and it still looks whether the old one's shared memory is in use.
disown_locks() {
    for lock in "$pgdata/postmaster.pid" "$run/.s.PGSQL.$port.lock"; do
        pid=
        process=
        { read -r pid <"$lock"; } 2>/dev/null
        if [ -z "$pid" ] || [ "$pid" = "$$" ]; then continue; fi
        { read -r process <"/proc/$pid/comm"; } 2>/dev/null
        if [ "$process" = postgres ]; then continue; fi
        if ! { printf '%s\n' "$$" && sed 1d "$lock"; } >"$lock.new" || ! mv "$lock.new" "$lock"; then
            rm -f "$lock.new"
            say "cannot write $lock"
        fi
    done
}

# The file that a server reads first. What only some minor versions know stands in a file of its own: a server that does
# not know a setting would not start with it. A reload reads what is in the directory by then.
write_entry() {
    printf "include '%s/postgresql.conf'\n" "$directory" >"$entry" || die "cannot write $entry"
    case $(postgres --describe-config) in
        *output_plugin_libraries*)
            printf "include '%s/output_plugin_libraries.conf'\n" "$directory" >>"$entry" ||
                die "cannot write $entry"
            ;;
    esac
}

# Runs the server with the configuration in a directory (and more arguments) until it ends. Sets 'status', and
# 'became_ready' when it did.
run_server() {
    directory=$1
    shift
    became_ready=
    rm -f "$ready_mark" "$words" "$pipe"
    true >"$words" || die "cannot write $words"
    mkfifo "$pipe" || die "cannot make $pipe"
    write_entry
    disown_locks
    read_pid_file
    stale=$pid_file
    pass_log_on <"$pipe" &
    reader=$!
    # What never changes is here, where neither a file nor ALTER SYSTEM can override it.
    postgres -D "$pgdata" \
        -c config_file="$entry" \
        -c hba_file="$directory/pg_hba.conf" \
        -c ident_file="$directory/pg_ident.conf" \
        -c listen_addresses="$addresses" -c port="$port" \
        -c unix_socket_directories="$run" -c unix_socket_permissions=0700 \
        -c ssl=on -c ssl_cert_file="$server_tls/tls.crt" -c ssl_key_file="$server_tls/tls.key" \
        -c ssl_ca_file="$server_tls/client-ca.crt" \
        -c shared_preload_libraries="$libraries" \
        -c wal_level=logical -c archive_mode=on -c archive_library= \
        -c archive_command="sh '$config/archive.sh' '%p' '%f'" \
        -c fsync=on -c full_page_writes=on -c restart_after_crash=on -c default_transaction_read_only=off \
        -c logging_collector=off -c log_destination=stderr \
        -c dialog.startup_hash="$(cat "$config/boot-hash" 2>/dev/null)" \
        "$@" >"$pipe" 2>&1 &
    server=$!
    while kill -0 "$server" 2>/dev/null; do
        # Again and again: until the server has its own handlers, a signal is lost.
        pass_stop_on
        if is_ready; then
            became_ready=yes
            on_ready
            break
        fi
        pause
    done
    wait_for_server
}

on_ready() {
    if [ "$directory" = "$config" ]; then keep_as_good; fi
    true >"$ready_mark"
}

# A trapped signal ends 'wait' early, hence the loop.
wait_for_server() {
    while :; do
        pass_stop_on
        wait "$server"
        status=$?
        if ! kill -0 "$server" 2>/dev/null; then break; fi
    done
    server=
    rm -f "$ready_mark"
    # The rest of the log; not for ever, because a program that the server started may still hold the pipe.
    patience=20
    while [ "$patience" -gt 0 ] && kill -0 "$reader" 2>/dev/null; do
        patience=$((patience - 1))
        pause
    done
}

finish() {
    # An old reason must not be taken for that of this end; the kubelet then shows the end of the log.
    if [ -n "$became_ready" ] && [ "$status" -ne 0 ]; then true >"$termination_log" 2>/dev/null; fi
    say "the server ended with status $status"
    exit "$status"
}

# ---- the story ----------------------------------------------------------------------------------------------------

rm -f "$ready_mark"
find_binaries
prepare_volume
refuse_other_major
if [ -n "$stopping" ]; then exit 143; fi
# The kubelet gives files of a restored volume to the pod's group, and then the server refuses its own directory.
chmod 0700 "$pgdata" 2>/dev/null

copy_for_trial
run_server "$config"
if [ -n "$became_ready" ] || [ -n "$stopping" ]; then finish; fi

said=$(last_words)
if [ -z "$good" ] || same_files "$config" "$good"; then
    tell "the server ended before it was ready (status $status): $said"
    finish
fi

rejected=$(hash_in "$config")
message="the server did not start with configuration $rejected: $said"
say "$message; starting with the last one that worked"
tell "$message; it runs with the last one that worked"
run_server "$good" -c dialog.rejected_hash="$rejected" -c dialog.rejected_message="$said"
if [ -z "$became_ready" ] && [ -z "$stopping" ]; then
    tell "the server ended before it was ready (status $status), with its configuration and with the last one that" \
        "worked: $(last_words)"
fi
finish
