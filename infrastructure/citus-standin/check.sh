#!/bin/bash
# Goes through the life of a small cluster: 1, 2 and 3 workers, a drain, and what must fail with Citus' own words.
# DIALOG_CITUS=citus asks the same of this machine's real Citus.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
schema=$here/../citus/schema.sql
bin=$(DIALOG_CITUS=${DIALOG_CITUS:-standin} "$here/pg.sh")

dir=$(mktemp -d /tmp/citus-check-XXXXXX)
port=$((20000 + RANDOM % 10000))
as=()
if [ "$(id -u)" = 0 ]; then
  as=(runuser -u postgres --)    # a server does not run as root
  chown postgres "$dir"
fi

finish() {
  local code=$? n
  for n in 0 1 2 3; do stop "$n" immediate; done
  if [ $code = 0 ]; then
    rm -rf "$dir"
  else
    echo "FAILED; what the servers said is in $dir" >&2
  fi
}
trap finish EXIT

# pg_ctl ends a server by the pid in its own directory.
start() { "${as[@]}" "$bin/pg_ctl" -D "$dir/$1" -l "$dir/$1.log" -w start >/dev/null; }
stop() { if [ -e "$dir/$1/postmaster.pid" ]; then "${as[@]}" "$bin/pg_ctl" -D "$dir/$1" -m "$2" -w stop >/dev/null; fi; }

make_node() {
  "${as[@]}" "$bin/initdb" -D "$dir/$1" -U postgres -A trust -E UTF8 --locale=C --no-sync >/dev/null
  "${as[@]}" tee -a "$dir/$1/postgresql.conf" >/dev/null <<C
port = $((port + $1))
listen_addresses = '127.0.0.1'
unix_socket_directories = '$dir'
shared_preload_libraries = 'citus'
fsync = off
wal_level = logical
wal_retrieve_retry_interval = 100ms
max_worker_processes = 32
max_logical_replication_workers = 16
max_replication_slots = 32
max_wal_senders = 32
citus.local_hostname = '127.0.0.1'
citus.node_conninfo = 'sslmode=prefer'
citus.background_task_queue_interval = 1s
citus.defer_shard_delete_interval = 1h
citus.max_background_task_executors = 4
citus.max_background_task_executors_per_node = 4
C
  # people log in to the coordinator only, with a password
  [ "$1" != 0 ] || "${as[@]}" tee "$dir/0/pg_hba.conf" >/dev/null <<C
local all postgres trust
host all postgres 127.0.0.1/32 trust
host all all 127.0.0.1/32 scram-sha-256
C
  start "$1"
  on "$1" 'CREATE EXTENSION citus' >/dev/null
}

on() { "$bin/psql" -XqAt -h "$dir" -p $((port + $1)) -U postgres -v ON_ERROR_STOP=1 -c "$2" 2>&1; }
sql() { on 0 "$1"; }
app() { PGPASSWORD=secret "$bin/psql" -XqAt -h 127.0.0.1 -p "$port" -U "${2:-shop}" -d postgres -v ON_ERROR_STOP=1 -c "$1" 2>&1; }

fail() { echo "not ok - $1" >&2; echo "  expected: $2" >&2; echo "  got:      $3" >&2; exit 1; }
is() { local got; got=$($4 "$2") || true; [ "$got" = "$3" ] || fail "$1" "$3" "$got"; echo "ok - $1"; }    # WHAT SQL RESULT HOW
says() { local got; got=$(sql "$2") || true; [[ $got == *"$3"* ]] || fail "$1" "$3" "$got"; echo "ok - $1"; }
eventually() {
  local got='' i
  for i in $(seq 300); do
    got=$(sql "$2") || true
    # shellcheck disable=SC2053 # a pattern
    if [[ $got == $3 ]]; then echo "ok - $1"; return; fi
    sleep 0.2
  done
  fail "$1" "$3" "$got"
}
worker() { echo "'127.0.0.1', $((port + $1))"; }
placements="SELECT string_agg(n::text, ' ' ORDER BY nodeid) FROM (SELECT nodeid, count(p.shardid) AS n FROM pg_dist_node
  LEFT JOIN pg_dist_placement p USING (groupid) WHERE groupid <> 0 GROUP BY 1) c"
even="rebalance_strategy => 'by_shard_count', parallel_transfer_colocated_shards => true"
newest='SELECT state FROM pg_dist_background_job ORDER BY job_id DESC LIMIT 1'

for n in 0 1 2 3; do make_node $n; done

# birth
sql "SELECT citus_set_coordinator_host($(worker 0))" >/dev/null
sql "CREATE ROLE shop LOGIN PASSWORD 'secret'; GRANT CREATE ON SCHEMA public TO shop" >/dev/null
says 'a worker is added' "SELECT 'node ' || citus_add_node($(worker 1))" 'node '
is 'adding it again changes nothing' "SELECT citus_add_node($(worker 1)) = nodeid FROM pg_dist_node WHERE groupid <> 0" t sql
says 'a node that does not answer is refused' "SELECT citus_add_node('127.0.0.1', 1)" \
  'connection to the remote node postgres@127.0.0.1:1 failed with the following error: Connection refused'
app "$(grep -v '^--' "$schema")" >/dev/null
is 'there are 32 shards' 'SELECT count(*) FROM citus_shards' 32 sql
app "INSERT INTO dialogs (from_user, to_user, message) SELECT n % 97, n % 101, 'hello ' || n FROM generate_series(1, 10000) n" >/dev/null
is '10,000 rows came in as the application' 'SELECT count(*) FROM dialogs' 10000 app
# Citus hides shards from pg_class unless it is told not to
is 'the worker has them' "SET citus.override_table_visibility = off; SELECT sum((xpath('//n/text()', query_to_xml(format('SELECT count(*) AS n FROM %s', oid::regclass), true, true, '')))[1]::text::int)
  FROM pg_class WHERE relname ~ '^dialogs_[0-9]+\$' AND relkind = 'r'" 10000 'on 1'
once="INSERT INTO dialogs (from_user, to_user, message, message_id) VALUES (1, 2, 'x', '00000000-0000-0000-0000-000000000001')"
app "$once" >/dev/null
is 'what is said twice is kept once' "$once ON CONFLICT (to_user, message_id) DO NOTHING RETURNING 1" '' app
says 'a duplicate is refused' "$once" 'duplicate key value violates unique constraint "dialogs_pkey_'
app "DELETE FROM dialogs WHERE to_user = 2 AND message_id = '00000000-0000-0000-0000-000000000001'" >/dev/null
sql "CREATE ROLE later LOGIN PASSWORD 'secret'; GRANT SELECT ON dialogs TO later" >/dev/null
later() { app "$1" later; }
is 'a role made later reads' 'SELECT count(*) FROM dialogs WHERE to_user = 5' 99 later
is 'nobody gets more than was granted' 'DELETE FROM dialogs' 'ERROR:  permission denied for table dialogs' later

# a table without a key
sql "CREATE TABLE keyless (a int); SELECT create_distributed_table('keyless', 'a', colocate_with => 'none')" >/dev/null
sql "SELECT citus_add_node($(worker 2))" >/dev/null
says 'a table without a key does not move' "SELECT citus_rebalance_start($even)" \
  "cannot use logical replication to transfer shards of the relation keyless since it doesn't have a REPLICA IDENTITY or PRIMARY KEY"
sql 'DROP TABLE keyless' >/dev/null

# 1 -> 2 -> 3, with somebody writing
(
  trap - EXIT
  i=0
  while [ ! -e "$dir/enough" ]; do
    app "INSERT INTO dialogs (from_user, to_user, message) VALUES ($i, $((i % 50)), 'meanwhile')" >>"$dir/writer.log" || true
    i=$((i + 1))
    echo "$i" >"$dir/written"
  done
) &
writer=$!
is 'the plan evens out' "SELECT count(*) FROM get_rebalance_table_shards_plan(rebalance_strategy => 'by_shard_count')" 16 sql
says 'a rebalance starts' "SELECT citus_rebalance_start($even)" 'Scheduled 16 moves as job'
says 'a second one does not' "SELECT citus_rebalance_start($even)" 'A rebalance is already running as job'
eventually 'the status tells of running moves' 'SELECT details FROM citus_rebalance_status(true)' '*"state": "running"*"task_state_counts"*'
eventually 'it finishes' "$newest" finished
is '2 workers are even' "$placements" '16 16' sql
sql "SELECT citus_add_node($(worker 3))" >/dev/null
sql "SELECT citus_rebalance_start($even)" >/dev/null
eventually 'a third worker joins' "$newest" finished
is '3 workers are even' "$placements" '11 11 10' sql
says 'there is nothing left to move' "SELECT citus_rebalance_start($even)" 'No moves available for rebalancing'
touch "$dir/enough"
wait $writer
[ ! -s "$dir/writer.log" ] || fail 'no write failed' 'nothing' "$(head -3 "$dir/writer.log")"
rows=$((10000 + $(cat "$dir/written")))
is 'no row is lost, none is there twice' 'SELECT count(*), count(DISTINCT message_id) FROM dialogs' "$rows|$rows" app

# 3 -> 2
sql 'CALL citus_cleanup_orphaned_resources()' >/dev/null
says 'a node with the only placement stays' "SELECT citus_remove_node($(worker 3))" \
  "cannot remove or disable the node 127.0.0.1:$((port + 3)) because because it contains the only shard placement for shard"
sql "SELECT citus_set_node_property($(worker 3), 'shouldhaveshards', false)" >/dev/null
sql "SELECT citus_rebalance_start($even, drain_only => true)" >/dev/null
eventually 'a drain finishes' "$newest" finished
is 'nothing is on the drained node' "$placements" '16 16 0' sql
is 'the originals wait for the cleanup' 'SELECT count(*) > 0 FROM pg_dist_cleanup WHERE object_type = 1' t sql
sql 'CALL citus_cleanup_orphaned_resources()' >/dev/null
is 'the cleanup takes them away' 'SELECT count(*) FROM pg_dist_cleanup' 0 sql
sql "SELECT citus_remove_node($(worker 3))" >/dev/null
is 'the node is gone' 'SELECT count(*) FROM pg_dist_node' 3 sql
is 'it is not told so' 'SELECT groupid > 0, (SELECT count(*) FROM pg_dist_node) FROM pg_dist_local_group' 't|4' 'on 3'
is 'the rows are all there' 'SELECT count(*) FROM dialogs' "$rows" app

# a source without logical decoding, then with it
on 1 'ALTER SYSTEM SET wal_level = replica' >/dev/null
stop 1 fast; start 1
sql "SELECT citus_add_node($(worker 3))" >/dev/null
sql "SELECT citus_rebalance_start(rebalance_strategy => 'by_shard_count')" >/dev/null
eventually 'a move without logical decoding is retried' 'SELECT message FROM pg_dist_background_task ORDER BY retry_count DESC LIMIT 1' \
  '*logical decoding requires wal_level >= logical*'
is 'its job runs on' "$newest" running sql
sql 'SELECT citus_rebalance_stop()' >/dev/null
eventually 'until it is stopped' "$newest" cancelled
on 1 'ALTER SYSTEM RESET wal_level' >/dev/null
stop 1 fast; start 1

# a node that ends in the middle
sql "SELECT citus_rebalance_start($even)" >/dev/null
eventually 'moves run' "SELECT count(*) > 0 FROM pg_dist_background_task WHERE status = 'running'" t
stop 1 immediate
says 'a silent worker holds up membership' "SELECT citus_set_node_property($(worker 2), 'shouldhaveshards', true)" \
  "connection to the remote node postgres@127.0.0.1:$((port + 1)) failed with the following error"
start 1
stop 0 immediate; start 0
sql 'SELECT citus_rebalance_wait()' >/dev/null
eventually 'the job ends by itself' "$newest" finished
is '3 workers are even again' "$placements" '11 11 10' sql
is 'the rows are still all there' 'SELECT count(*), count(DISTINCT message_id) FROM dialogs' "$rows|$rows" app
for n in 1 2 3; do
  is "nothing is left over on worker $n" 'SELECT (SELECT count(*) FROM pg_replication_slots), (SELECT count(*) FROM pg_publication), (SELECT count(*) FROM pg_subscription)' '0|0|0' "on $n"
done
echo 'all is well'
