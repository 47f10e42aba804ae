-- Jobs and their tasks, and what runs in the background. Permissions of everything at the end.

CREATE FUNCTION standin.open_job() RETURNS bigint LANGUAGE sql STABLE AS
$$ SELECT max(job_id) FROM pg_dist_background_job WHERE state IN ('scheduled', 'running', 'cancelling', 'failing') $$;

-- Who asks: this function's body runs as its owner.
CREATE FUNCTION standin.asker() RETURNS regrole LANGUAGE sql STABLE AS
$$ SELECT quote_ident(coalesce(nullif(current_setting('role'), 'none'), session_user))::regrole $$;

CREATE FUNCTION citus_rebalance_start(rebalance_strategy name DEFAULT NULL, drain_only bool DEFAULT false,
  shard_transfer_mode citus.shard_transfer_mode DEFAULT 'auto',
    parallel_transfer_reference_tables bool DEFAULT false, parallel_transfer_colocated_shards bool DEFAULT false) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
DECLARE
  job bigint := standin.open_job();
  m record;
  first bigint;
  previous jsonb := '{}';    -- the last task of each colocation group
  colocation text;
  task bigint;
  before bigint;
  n int := 0;
  asker regrole := standin.asker();
  foreign_table name;
BEGIN
  SELECT relname INTO foreign_table FROM pg_dist_partition JOIN pg_class c ON c.oid = logicalrelid
    WHERE NOT pg_has_role(asker, relowner, 'USAGE') ORDER BY 1 LIMIT 1;
  IF FOUND THEN
    RAISE EXCEPTION 'must be owner of table %', foreign_table USING ERRCODE = 'insufficient_privilege';
  END IF;
  PERFORM pg_advisory_xact_lock(1667855223, 0);
  job := standin.open_job();
  IF NOT EXISTS (SELECT FROM pg_dist_partition WHERE partmethod = 'h') THEN
    RAISE NOTICE 'No tables to rebalance';
    RETURN NULL;
  ELSIF job IS NOT NULL THEN
    RAISE EXCEPTION 'A rebalance is already running as job %', job
      USING ERRCODE = 'internal_error', DETAIL = 'A rebalance was already scheduled as background job',
        HINT = 'To monitor progress, run: SELECT * FROM citus_rebalance_status();';
  END IF;
  FOR m IN SELECT * FROM standin.plan(rebalance_strategy, NULL, drain_only) LOOP
    IF n = 0 THEN
      PERFORM standin.run_apart('CALL citus_cleanup_orphaned_resources()');
      INSERT INTO pg_dist_background_job (job_type, description)
        VALUES ('rebalance', 'Rebalance all colocation groups') RETURNING job_id INTO job;
      IF EXISTS (SELECT FROM pg_dist_partition t JOIN pg_dist_shard USING (logicalrelid), pg_dist_node d
        WHERE partmethod = 'n' AND isactive AND groupid <> 0
                 AND NOT EXISTS (SELECT FROM pg_dist_placement p
                   WHERE p.shardid = pg_dist_shard.shardid AND p.groupid = d.groupid)) THEN
        INSERT INTO pg_dist_background_task (job_id, owner, pid, command, retry_count, not_before)
        VALUES (job, asker, 0,
          format('SELECT pg_catalog.replicate_reference_tables(%L)', shard_transfer_mode), 0,
          '2000-01-01') RETURNING task_id INTO first;
      END IF;
    END IF;
    n := n + 1;
    IF shard_transfer_mode = 'auto' THEN
      PERFORM standin.check_replica_identity(standin.colocated(m.shard));
    END IF;
    SELECT colocationid INTO colocation FROM pg_dist_shard JOIN pg_dist_partition USING (logicalrelid) WHERE shardid = m.shard;
    before := coalesce(CASE WHEN parallel_transfer_colocated_shards THEN NULL ELSE previous->>colocation END::bigint, first);
    INSERT INTO pg_dist_background_task (job_id, owner, pid, status, command, retry_count, not_before, nodes_involved)
    VALUES (job, asker, 0, CASE WHEN before IS NULL THEN 'runnable' ELSE 'blocked' END::citus_task_status,
            format('SELECT pg_catalog.citus_move_shard_placement(%s,%s,%s,%L)', m.shard, m.source, m.target,
              shard_transfer_mode), 0, '2000-01-01', ARRAY[m.source, m.target])
    RETURNING task_id INTO task;
    INSERT INTO pg_dist_background_task_depend SELECT job, task, before WHERE before IS NOT NULL;
    previous := previous || jsonb_build_object(colocation, task);
  END LOOP;
  IF n = 0 THEN
    RAISE NOTICE 'No moves available for rebalancing';
    RETURN NULL;
  END IF;
  RAISE NOTICE 'Scheduled % moves as job %', n, job
    USING DETAIL = 'Rebalance scheduled as background job',
      HINT = 'To monitor progress, run: SELECT * FROM citus_rebalance_status();';
  RETURN job;
END $$;

CREATE FUNCTION citus_job_cancel(jobid bigint) RETURNS void LANGUAGE plpgsql STRICT SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
  UPDATE pg_dist_background_job SET state = 'cancelling' WHERE job_id = jobid AND state IN ('scheduled', 'running', 'failing');
  UPDATE pg_dist_background_task SET status = CASE status WHEN 'running' THEN 'cancelling'
    ELSE 'cancelled' END::citus_task_status
  WHERE job_id = jobid AND status IN ('blocked', 'runnable', 'running');
  PERFORM pg_cancel_backend(pid) FROM pg_dist_background_task WHERE job_id = jobid AND status = 'cancelling' AND pid > 0;
END $$;

CREATE FUNCTION citus_rebalance_stop() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF standin.open_job() IS NULL THEN
    RAISE EXCEPTION 'no ongoing rebalance that can be stopped' USING ERRCODE = 'internal_error';
  END IF;
  PERFORM citus_job_cancel(standin.open_job());
END $$;

CREATE FUNCTION citus_rebalance_wait() RETURNS void LANGUAGE plpgsql AS $$
DECLARE job bigint := standin.open_job();
BEGIN
  IF job IS NULL THEN
    RAISE WARNING 'no ongoing rebalance that can be waited on';
  END IF;
  WHILE job = standin.open_job() LOOP
    PERFORM pg_sleep(0.1);
  END LOOP;
END $$;

-- How far a running move is: asked from its nodes, so nothing is written down for it. NULL: one of them is silent.
CREATE FUNCTION standin.progress(command text, raw bool) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
  m text[] := regexp_match(command, 'citus_move_shard_placement\((\d+),(\d+),(\d+)');
  s pg_dist_node; t pg_dist_node;
  size text; there jsonb; here jsonb;
BEGIN
  SELECT * INTO s FROM pg_dist_node WHERE nodeid = m[2]::int;
  SELECT * INTO t FROM pg_dist_node WHERE nodeid = m[3]::int;
  IF s.nodeid IS NULL OR t.nodeid IS NULL THEN
    RETURN '{}';
  END IF;
  SELECT string_agg(format('coalesce(pg_total_relation_size(to_regclass(%L)), 0)', shard_name(logicalrelid, shardid, false)),
    ' + ') INTO size
  FROM pg_dist_shard WHERE shardid = ANY (standin.colocated(m[1]::bigint));
  BEGIN
    here := standin.query(s.nodeid, format('SELECT %s AS size, pg_current_wal_lsn() AS lsn', size))->0;
    there := standin.query(t.nodeid, format('SELECT %s AS size, bool_and(srsubstate IN (''s'', ''r'')) AS copied, max(latest_end_lsn) AS lsn FROM pg_subscription_rel LEFT JOIN pg_stat_subscription ON subid = srsubid AND pg_stat_subscription.relid IS NULL WHERE srrelid = to_regclass(%L)',
      size, (SELECT shard_name(logicalrelid, shardid, false) FROM pg_dist_shard WHERE shardid = m[1]::bigint)))->0;
  EXCEPTION WHEN OTHERS THEN
    NULL;
  END;
  RETURN jsonb_build_object('hosts', jsonb_build_object('source', s.nodename || ':' || s.nodeport, 'target',
    t.nodename || ':' || t.nodeport),
    'phase', CASE WHEN there->>'copied' IS NULL THEN 'Setting Up' WHEN (there->>'copied')::bool THEN 'Catching Up'
      ELSE 'Copying Data' END,
    'size', CASE WHEN raw THEN jsonb_build_object('source', here->'size', 'target', there->'size')
            ELSE jsonb_build_object('source', pg_size_pretty((here->>'size')::bigint), 'target',
              pg_size_pretty((there->>'size')::bigint)) END)
    || CASE WHEN there->>'lsn' IS NULL THEN '{}' ELSE jsonb_build_object('LSN',
      jsonb_build_object('source', here->'lsn', 'target', there->'lsn', 'lag',
         CASE WHEN raw THEN to_jsonb(greatest(0, (here->>'lsn')::pg_lsn - (there->>'lsn')::pg_lsn))
           ELSE to_jsonb(pg_size_pretty(greatest(0, (here->>'lsn')::pg_lsn - (there->>'lsn')::pg_lsn))) END)) END;
END $$;

CREATE FUNCTION citus_job_status(job_id bigint, raw bool DEFAULT false)
RETURNS TABLE (job_id bigint, state citus_job_status, job_type name, description text, started_at timestamptz,
  finished_at timestamptz, details jsonb)
LANGUAGE sql STRICT SECURITY DEFINER SET search_path = pg_catalog AS $$
  SELECT j.*, jsonb_build_object(
    'tasks', (SELECT coalesce(jsonb_agg(jsonb_build_object('state', status, 'command', command, 'message', message, 'retried',
      retry_count, 'task_id', task_id)
                      || CASE WHEN status = 'running' THEN standin.progress(command, raw) ELSE '{}' END ORDER BY task_id), '[]')
              FROM pg_dist_background_task t WHERE t.job_id = j.job_id
                AND (status IN ('running', 'error') AND nodes_involved IS NOT NULL OR status = 'runnable' AND retry_count > 0)),
    'task_state_counts', (SELECT coalesce(jsonb_object_agg(status, n), '{}')
      FROM (SELECT status, count(*) AS n FROM pg_dist_background_task t WHERE t.job_id = j.job_id GROUP BY 1) c))
  FROM pg_dist_background_job j WHERE j.job_id = $1
$$;
CREATE FUNCTION citus_job_list() RETURNS TABLE (job_id bigint, state citus_job_status, job_type name, description text,
  started_at timestamptz, finished_at timestamptz)
LANGUAGE sql AS $$ SELECT * FROM pg_dist_background_job ORDER BY 1 $$;
CREATE FUNCTION citus_rebalance_status(raw bool DEFAULT false)
RETURNS TABLE (job_id bigint, state citus_job_status, job_type name, description text, started_at timestamptz,
  finished_at timestamptz, details jsonb)
LANGUAGE sql STRICT AS $$ SELECT s.* FROM (SELECT max(job_id) AS id FROM pg_dist_background_job WHERE job_type = 'rebalance') j, citus_job_status(j.id, raw) s $$;

-- The queue's background process: starts tasks, brings back those whose process is gone, ends jobs.
-- Returns in how many milliseconds to look again; -1: the launcher starts it anew after citus.background_task_queue_interval.
CREATE FUNCTION standin.work_queue() RETURNS int LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
  job bigint := standin.open_job();
  t record;
BEGIN
  IF job IS NULL OR NOT citus_is_coordinator() OR NOT pg_try_advisory_lock(1667855224, 0) THEN
    RETURN -1;
  END IF;
  UPDATE pg_dist_background_task b SET status = CASE status WHEN 'running' THEN 'runnable'
    ELSE 'cancelled' END::citus_task_status, pid = NULL, message = ''
  WHERE job_id = job AND status IN ('running', 'cancelling') AND not_before < now()
    AND NOT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'citus task ' || b.task_id);
  UPDATE pg_dist_background_task b SET status = 'runnable' WHERE job_id = job AND status = 'blocked' AND NOT EXISTS (
    SELECT FROM pg_dist_background_task_depend d JOIN pg_dist_background_task o ON o.task_id = d.depends_on
      WHERE d.task_id = b.task_id AND o.status <> 'done');
  FOR t IN SELECT * FROM pg_dist_background_task WHERE job_id = job AND status = 'runnable' AND not_before <= now()
    ORDER BY task_id LOOP
    EXIT WHEN (SELECT count(*) FROM pg_dist_background_task
      WHERE status IN ('running', 'cancelling')) >= current_setting('citus.max_background_task_executors')::int;
    CONTINUE WHEN EXISTS (SELECT FROM unnest(t.nodes_involved) n
      WHERE current_setting('citus.max_background_task_executors_per_node')::int
      <= (SELECT count(*) FROM pg_dist_background_task o
        WHERE o.status IN ('running', 'cancelling') AND n = ANY (o.nodes_involved)));
    -- not_before: until then the process may still be on its way into pg_stat_activity
    UPDATE pg_dist_background_task SET status = 'running', pid = NULL, not_before = now() + interval '3s'
      WHERE task_id = t.task_id;
    IF NOT standin.spawn('citus task ' || t.task_id, format('SELECT standin.run_task(%s)', t.task_id)) THEN
      UPDATE pg_dist_background_task SET status = 'runnable', not_before = now() + interval '1s'
        WHERE task_id = t.task_id;    -- no process is free
      EXIT;
    END IF;
    UPDATE pg_dist_background_job SET state = 'running', started_at = now() WHERE job_id = job AND state = 'scheduled';
  END LOOP;
  UPDATE pg_dist_background_job j SET finished_at = now(), state = CASE
      WHEN state = 'cancelling' THEN 'cancelled' WHEN EXISTS (SELECT FROM pg_dist_background_task b
        WHERE b.job_id = job AND status = 'error') THEN 'failed' ELSE 'finished' END::citus_job_status
  WHERE job_id = job AND NOT EXISTS (SELECT FROM pg_dist_background_task b
    WHERE b.job_id = job AND status IN ('blocked', 'runnable', 'running', 'cancelling'));
  RETURN 100;
END $$;

-- A task's background process: first says who it is, then runs the task, then takes away what a move leaves behind.
CREATE FUNCTION standin.run_task(task bigint) RETURNS int LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
  t pg_dist_background_task;
  why text; detail text;
  retry int;
BEGIN
  SELECT * INTO t FROM pg_dist_background_task WHERE task_id = task;
  IF t.pid IS DISTINCT FROM pg_backend_pid() THEN
    PERFORM FROM pg_dist_background_task WHERE task_id = task FOR UPDATE;    -- waits for the queue's transaction
    UPDATE pg_dist_background_task SET pid = pg_backend_pid() WHERE task_id = task AND status = 'running' AND pid IS NULL;
    RETURN CASE WHEN FOUND THEN 0 ELSE -1 END;
  END IF;
  IF t.status = 'running' AND t.message = E'SELECT 1\n' THEN
    PERFORM standin.cleanup('{2,3,4}');
    UPDATE pg_dist_background_task SET status = 'done', pid = NULL WHERE task_id = task;
    RETURN -1;
  END IF;
  BEGIN
    IF t.status = 'cancelling' THEN
      RAISE query_canceled USING MESSAGE = 'canceling statement due to user request';
    END IF;
    EXECUTE t.command;
    UPDATE pg_dist_background_task SET message = E'SELECT 1\n' WHERE task_id = task;
    RETURN 0;
  EXCEPTION WHEN query_canceled OR OTHERS THEN
    GET STACKED DIAGNOSTICS why = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL;
  END;
  retry := coalesce(t.retry_count, 0) + 1;
  UPDATE pg_dist_background_task SET pid = NULL, retry_count = retry,
    status = CASE WHEN status = 'cancelling' THEN 'cancelled' WHEN retry >= 32 THEN 'error'
      ELSE 'runnable' END::citus_task_status,
    not_before = now() + CASE retry WHEN 1 THEN 5 ELSE 60 END * interval '1 s',
    message = format(E'ERROR: %s\nCONTEXT: %sCitus Background Task Queue Executor: %s/%s for (%s/%s)\n', why,
                     CASE WHEN detail LIKE 'while executing%' THEN detail || E'\n' ELSE '' END, current_database(),
                       current_user, t.job_id, task)
  WHERE task_id = task;
  UPDATE pg_dist_background_task SET status = 'unscheduled'
    WHERE retry >= 32 AND job_id = t.job_id AND status IN ('blocked', 'runnable');
  UPDATE pg_dist_background_job SET state = 'failing' WHERE retry >= 32 AND job_id = t.job_id AND state = 'running';
  RETURN -1;
END $$;

-- The other background process, every citus.defer_shard_delete_interval.
CREATE FUNCTION standin.look_after() RETURNS int LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
  IF citus_is_coordinator() THEN
    PERFORM standin.sync_servers();    -- citus.node_conninfo may be another one now
    IF EXISTS (SELECT FROM pg_dist_cleanup) THEN
      PERFORM standin.cleanup();
    END IF;
  END IF;
  RETURN -1;
END $$;

-- And every citus.recover_2pc_interval.
CREATE FUNCTION standin.recover() RETURNS int LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
  IF citus_is_coordinator() THEN
    PERFORM recover_prepared_transactions();
  END IF;
  RETURN -1;
END $$;

REVOKE EXECUTE ON FUNCTION citus_set_coordinator_host, citus_add_node, citus_activate_node, citus_remove_node,
  citus_disable_node,
  citus_set_node_property, recover_prepared_transactions, replicate_reference_tables,
    citus_rebalance_stop,
  citus_job_cancel, citus_move_shard_placement(bigint, int, int, citus.shard_transfer_mode),
  citus_move_shard_placement(bigint, text, int, text, int, citus.shard_transfer_mode), run_command_on_workers,
    run_command_on_all_nodes,
  run_command_on_coordinator, citus_check_connection_to_node, citus_check_cluster_node_health FROM PUBLIC;

GRANT USAGE ON SCHEMA standin TO PUBLIC;
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA standin FROM PUBLIC;
GRANT EXECUTE ON FUNCTION standin.shard_object, standin.before_copy, standin.after_copy TO PUBLIC;
