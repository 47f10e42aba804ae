-- A move, and taking away what it leaves.

-- moving

CREATE FUNCTION standin.check_replica_identity(shards bigint[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE rel regclass;
BEGIN
  FOR rel IN SELECT DISTINCT logicalrelid FROM pg_dist_shard JOIN pg_class c ON c.oid = logicalrelid
    WHERE shardid = ANY (shards)
             AND relreplident <> 'f' AND NOT EXISTS (SELECT FROM pg_index
               WHERE indrelid = logicalrelid AND (indisprimary OR indisreplident)) LOOP
    RAISE EXCEPTION 'cannot use logical replication to transfer shards of the relation % since it doesn''t have a REPLICA IDENTITY or PRIMARY KEY', (SELECT relname FROM pg_class WHERE oid = rel)
      USING ERRCODE = 'feature_not_supported',
            DETAIL = 'UPDATE and DELETE commands on the shard will error out during logical replication unless there is a REPLICA IDENTITY or PRIMARY KEY.',
            HINT = 'If you wish to continue without a replica identity set the shard_transfer_mode to ''force_logical'' or ''block_writes''.';
  END LOOP;
END $$;

-- Copies shards to a node and keeps the copies up with the originals, until little is missing; returns the connections.
CREATE FUNCTION standin.replicate(op int, names text[], source pg_dist_node, target pg_dist_node, src text,
  dst text) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
  publication text := format('citus_shard_move_publication_%s_%s', target.nodeid, op);
  slot text := format('citus_shard_move_slot_%s_%s', target.nodeid, op);
  subscription text := format('citus_shard_move_subscription_%s', op);
  state jsonb;
  lsn pg_lsn;
BEGIN
  PERFORM standin.note(op, format('(0, 4, %1$L, %2$s), (0, 3, %3$L, %2$s), (0, 2, %4$L, %5$s)', publication, source.groupid,
    slot, subscription, target.groupid));
  PERFORM standin.run(src, format('CREATE PUBLICATION %I FOR TABLE %s', publication, array_to_string(names, ', ')));
  BEGIN
    PERFORM standin.run(src, format('SELECT pg_create_logical_replication_slot(%L, ''pgoutput'')::text', slot));
  EXCEPTION WHEN object_not_in_prerequisite_state OR configuration_limit_exceeded THEN
    RAISE EXCEPTION USING ERRCODE = SQLSTATE, MESSAGE = 'ERROR:  ' || SQLERRM,
      DETAIL = format('while executing command on %s:%s', source.nodename, source.nodeport);
  END;
  PERFORM standin.run(dst, format('CREATE SUBSCRIPTION %I CONNECTION %L PUBLICATION %I WITH (create_slot = false, slot_name = %L)',
                                  subscription, standin.conninfo(source.nodename, source.nodeport), publication, slot));
  lsn := 'FFFFFFFF/FFFFFFFF';
  LOOP    -- asks both nodes, so that the end of either is noticed
    state := standin.query(dst, format('SELECT coalesce(bool_and(srsubstate = ''r''), false) AS ready, max(latest_end_lsn) AS lsn FROM pg_subscription_rel r JOIN pg_stat_subscription s ON s.subid = srsubid AND s.relid IS NULL WHERE subname = %L', subscription))->0;
    EXIT WHEN (state->>'ready')::bool AND (state->>'lsn')::pg_lsn >= lsn;
    -- once the copy is there: what is written up to now has to arrive before anyone is made to wait for the rest
    IF NOT (state->>'ready')::bool OR lsn = 'FFFFFFFF/FFFFFFFF' THEN
      lsn := standin.run(src, 'SELECT pg_current_wal_insert_lsn()')::pg_lsn;
    ELSE
      PERFORM standin.run(src, 'SELECT 1');
    END IF;
    PERFORM pg_sleep(0.05);
  END LOOP;
END $$;

CREATE FUNCTION standin.wait_for_rest(op int, src text, dst text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE lsn pg_lsn := standin.run(src, 'SELECT pg_current_wal_insert_lsn()');
BEGIN
  WHILE standin.run(dst, format('SELECT coalesce(max(latest_end_lsn) < %L, true) FROM pg_stat_subscription WHERE subname = ''citus_shard_move_subscription_%s''', lsn, op))::bool LOOP
    PERFORM pg_sleep(0.003);
  END LOOP;
  -- The apply worker commits asynchronously: this commit takes to disk all that came before it.
  PERFORM standin.run(dst, 'SELECT pg_logical_emit_message(true, ''citus'', '''')::text');
END $$;

CREATE FUNCTION citus_move_shard_placement(shard_id bigint, source_node_id int, target_node_id int,
  transfer_mode citus.shard_transfer_mode DEFAULT 'auto')
RETURNS void LANGUAGE plpgsql STRICT SECURITY DEFINER SET search_path = pg_catalog AS $$
DECLARE
  s pg_dist_node; t pg_dist_node;
  shards bigint[] := standin.colocated(shard_id);
  names text[];
  op int;
  r record;
  left_over text;
  src text; dst text;
  others text[];
BEGIN
  SELECT * INTO s FROM pg_dist_node WHERE nodeid = source_node_id;
  SELECT * INTO t FROM pg_dist_node WHERE nodeid = target_node_id;
  IF t.nodeid IS NULL OR s.nodeid IS NULL THEN
    RAISE EXCEPTION 'Moving shards to a non-existing node is not supported' USING ERRCODE = 'internal_error';
  ELSIF shards IS NULL THEN
    RAISE EXCEPTION 'could not find valid entry for shard %', shard_id USING ERRCODE = 'internal_error';
  ELSIF NOT t.isactive THEN
    RAISE EXCEPTION 'Moving shards to a non-active node is not supported' USING ERRCODE = 'internal_error';
  ELSIF NOT t.shouldhaveshards THEN
    RAISE EXCEPTION 'Moving shards to a node that shouldn''t have a shard is not supported' USING ERRCODE = 'internal_error';
  ELSIF s.nodeid = t.nodeid THEN
    RAISE EXCEPTION 'cannot move shard to the same node' USING ERRCODE = 'internal_error';
  END IF;
  IF NOT pg_try_advisory_xact_lock(1667855222, shards[1]::int) THEN
    RAISE EXCEPTION 'could not acquire the lock required to move %',
      standin.qualified((SELECT logicalrelid FROM pg_dist_shard WHERE shardid = shard_id))
      USING ERRCODE = 'internal_error', DETAIL = 'It means that either a concurrent shard move or colocated distributed table creation is happening.';
  END IF;
  PERFORM pg_advisory_xact_lock_shared(1667855221, (SELECT colocationid FROM pg_dist_shard
    JOIN pg_dist_partition USING (logicalrelid) WHERE shardid = shard_id));
  shards := standin.colocated(shard_id);
  IF EXISTS (SELECT FROM pg_dist_placement WHERE shardid = shard_id AND groupid = t.groupid) THEN
    RAISE WARNING 'shard is already present on node %:%', t.nodename,
      t.nodeport USING DETAIL = 'Move may have already completed.';
    RETURN;
  ELSIF NOT EXISTS (SELECT FROM pg_dist_placement WHERE shardid = shard_id AND groupid = s.groupid) THEN
    RAISE EXCEPTION 'could not find placement matching "%:%"', s.nodename, s.nodeport USING ERRCODE = 'internal_error',
      HINT = 'Confirm the placement still exists and try again.';
  END IF;
  IF transfer_mode = 'auto' THEN
    PERFORM standin.check_replica_identity(shards);
  END IF;
  SELECT array_agg(shard_name(logicalrelid, shardid, false) ORDER BY shardid) INTO names FROM pg_dist_shard
    WHERE shardid = ANY (shards);

  -- what earlier moves left, of this shard and of others
  IF EXISTS (SELECT FROM pg_dist_cleanup) THEN
    PERFORM standin.run_apart('CALL citus_cleanup_orphaned_resources()');
  END IF;
  SELECT object_name INTO left_over FROM pg_dist_cleanup WHERE object_type = 1 AND object_name = ANY (names) LIMIT 1;
  IF FOUND THEN
    RAISE EXCEPTION 'shard move failed as the orphaned shard % leftover from the previous move could not be cleaned up',
      left_over USING ERRCODE = 'internal_error';
  END IF;

  op := nextval('pg_dist_operationid_seq');
  src := standin.open(s.nodename, s.nodeport);
  dst := standin.open(t.nodename, t.nodeport);
  PERFORM standin.note(op, (SELECT string_agg(format('(1, 1, %L, %s)', n, t.groupid), ', ') FROM unnest(names) n));
  -- a node that was removed and came back may still have what no row in pg_dist_cleanup tells of
  PERFORM standin.run(dst, (SELECT string_agg(format('DROP TABLE IF EXISTS %s CASCADE;',
    shard_name(logicalrelid, shardid, false)) || standin.table_sql(logicalrelid, shardid), '' ORDER BY shardid)
                            FROM pg_dist_shard WHERE shardid = ANY (shards)));
  IF transfer_mode <> 'block_writes' THEN
    PERFORM standin.replicate(op, names, s, t, src, dst);
  END IF;
  -- Connections for the metadata are made before writers have to wait.
  SELECT array_agg(CASE nodeid WHEN s.nodeid THEN src WHEN t.nodeid THEN dst ELSE standin.open(nodeid) END) INTO others
  FROM pg_dist_node WHERE groupid <> 0 AND isactive;

  -- From here membership calls, and writers of these shards, wait until the end of the transaction.
  PERFORM standin.one_at_a_time();
  PERFORM standin.hold_writes(to_regclass('standin.shard_' || id)) FROM unnest(shards) id ORDER BY id;
  IF transfer_mode <> 'block_writes' THEN
    PERFORM standin.wait_for_rest(op, src, dst);
  ELSE
    FOR r IN SELECT shardid, nspname, standin.shard_object(relname, shardid) AS shard,
               (SELECT string_agg(format('%I %s', attname, format_type(atttypid, atttypmod)), ', ' ORDER BY attnum)
                 FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped
                 AND attgenerated = '') AS definitions,
               (SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute
                 WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped AND attgenerated = '') AS columns
             FROM pg_dist_shard JOIN pg_class c ON c.oid = logicalrelid JOIN pg_namespace n ON n.oid = relnamespace
               WHERE shardid = ANY (shards) LOOP
      EXECUTE format('CREATE FOREIGN TABLE standin.copy_%s (%s) SERVER %I OPTIONS (schema_name %L, table_name %L)', r.shardid,
        r.definitions, 'citus_' || t.nodeid, r.nspname, r.shard);
      EXECUTE format('INSERT INTO standin.copy_%s (%s) SELECT %2$s FROM standin.shard_%1$s', r.shardid, r.columns);
      EXECUTE format('DROP FOREIGN TABLE standin.copy_%s', r.shardid);
    END LOOP;
  END IF;
  UPDATE pg_dist_placement SET groupid = t.groupid, placementid = nextval('pg_dist_placement_placementid_seq')
    WHERE shardid = ANY (shards) AND groupid = s.groupid;
  PERFORM standin.run(c, format('UPDATE pg_dist_placement p SET groupid = %s, placementid = n.id FROM (VALUES %s) n(shard, id) WHERE p.shardid = n.shard', t.groupid,
    (SELECT string_agg(format('(%s, %s)', shardid, placementid), ', ') FROM pg_dist_placement WHERE shardid = ANY (shards))))
      FROM unnest(others) c;
  -- The copies are wanted now; the originals go later, when no query reads them any more.
  UPDATE pg_dist_cleanup SET policy_type = 2, node_group_id = s.groupid WHERE operation_id = op AND object_type = 1;
  PERFORM standin.close(c) FROM unnest(others) c;
END $$;

CREATE FUNCTION citus_move_shard_placement(shard_id bigint, source_node_name text, source_node_port int,
  target_node_name text, target_node_port int,
                                           shard_transfer_mode citus.shard_transfer_mode DEFAULT 'auto') RETURNS void LANGUAGE sql STRICT AS
$$ SELECT citus_move_shard_placement($1, (standin.node($2, $3)).nodeid, (standin.node($4, $5)).nodeid, $6) $$;

-- cleanup

-- Takes away what is noted in pg_dist_cleanup. What belongs to an operation that still runs stays: it holds its lock.
-- A row whose node is gone stays for ever.
CREATE FUNCTION standin.cleanup(types int[] DEFAULT '{1,2,3,4}', OUT cleaned int, OUT failed int)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
DECLARE
  id bigint;
  op int;
  r record;
BEGIN
  cleaned := 0; failed := 0;
  PERFORM pg_advisory_xact_lock(1667855225, 0);    -- what belongs together goes in order, so one after another
  FOR id, op IN SELECT record_id, operation_id FROM pg_dist_cleanup
                WHERE object_type = ANY (types) ORDER BY operation_id, array_position('{2,3,4,1}', object_type), record_id LOOP
    CONTINUE WHEN NOT pg_try_advisory_xact_lock(1667855220, op);
    -- Looked at again behind the lock: a move that has just ended makes the row mean the other copy.
    SELECT c.*, nodeid INTO r FROM pg_dist_cleanup c LEFT JOIN pg_dist_node n ON n.groupid = c.node_group_id
      WHERE record_id = id;
    CONTINUE WHEN NOT FOUND;
    BEGIN
      IF r.nodeid IS NULL THEN
        RAISE EXCEPTION 'the node of % is gone', r.object_name USING ERRCODE = 'internal_error';
      ELSIF r.object_type = 1 THEN
        PERFORM standin.run(r.nodeid, 'SET LOCAL lock_timeout = ''1s''; DROP TABLE IF EXISTS ' || r.object_name || ' CASCADE');
      ELSIF r.object_type = 2 THEN
        PERFORM standin.drop_subscription(r.nodeid, r.object_name);
      ELSIF r.object_type = 3 THEN
        PERFORM standin.query(r.nodeid, format('SELECT pg_terminate_backend(active_pid, 1000) FROM pg_replication_slots WHERE slot_name = %L AND active', r.object_name));
        PERFORM standin.query(r.nodeid, format('SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %L', r.object_name));
      ELSE
        PERFORM standin.run(r.nodeid, format('DROP PUBLICATION IF EXISTS %I', r.object_name));
      END IF;
      DELETE FROM pg_dist_cleanup WHERE record_id = r.record_id;
      cleaned := cleaned + 1;
    EXCEPTION WHEN OTHERS THEN
      RAISE LOG 'cleanup of %: %', r.object_name, SQLERRM;
      failed := failed + 1;
    END;
  END LOOP;
  IF failed > 0 THEN
    RAISE WARNING 'failed to clean up % orphaned resources out of %', failed, cleaned + failed;
  END IF;
END $$;

-- Together with its slots on the source, of which the table copies have some of their own; without them only when the
-- source has lost them.
CREATE FUNCTION standin.drop_subscription(node int, name text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF standin.query(node, format('SELECT FROM pg_subscription WHERE subname = %L', name)) = '[]' THEN
    RETURN;
  END IF;
  PERFORM standin.run(node, format('ALTER SUBSCRIPTION %I DISABLE', name));
  PERFORM standin.run(node, format('DROP SUBSCRIPTION %I', name));
EXCEPTION WHEN OTHERS THEN
  IF SQLERRM !~ 'replication slot .* does not exist' THEN
    RAISE;
  END IF;
  PERFORM standin.run(node, format('ALTER SUBSCRIPTION %I SET (slot_name = NONE)', name));
  PERFORM standin.run(node, format('DROP SUBSCRIPTION %I', name));
END $$;

CREATE PROCEDURE citus_cleanup_orphaned_resources() LANGUAGE plpgsql AS $$
DECLARE n int := (SELECT cleaned FROM standin.cleanup());
BEGIN
  IF n > 0 THEN
    RAISE NOTICE 'cleaned up % orphaned resources', n;
  END IF;
END $$;
