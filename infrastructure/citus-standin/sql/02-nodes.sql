-- C functions, settings as values, and talking to nodes.

-- C functions

CREATE FUNCTION standin.spawn(name text, sql text) RETURNS bool AS 'MODULE_PATHNAME', 'standin_spawn' LANGUAGE c STRICT;
CREATE FUNCTION standin.hold_writes(rel oid) RETURNS void AS 'MODULE_PATHNAME', 'standin_hold_writes' LANGUAGE c STRICT;
CREATE FUNCTION standin.disk(free bool) RETURNS bigint AS 'MODULE_PATHNAME', 'standin_disk' LANGUAGE c STRICT;
CREATE FUNCTION worker_hash(value "any") RETURNS int AS 'MODULE_PATHNAME', 'standin_worker_hash' LANGUAGE c STRICT IMMUTABLE;

-- postgres_fdw and dblink without their extensions, which CREATE EXTENSION citus could not bring along by itself.
CREATE FUNCTION standin.fdw_handler() RETURNS fdw_handler AS '$libdir/postgres_fdw', 'postgres_fdw_handler' LANGUAGE c STRICT;
CREATE FUNCTION standin.fdw_validator(text[], oid) RETURNS void AS '$libdir/postgres_fdw',
  'postgres_fdw_validator' LANGUAGE c STRICT;
CREATE FOREIGN DATA WRAPPER citus HANDLER standin.fdw_handler VALIDATOR standin.fdw_validator;
CREATE FUNCTION standin.dblink_connect(text, text) RETURNS text AS '$libdir/dblink', 'dblink_connect' LANGUAGE c STRICT;
CREATE FUNCTION standin.dblink_disconnect(text) RETURNS text AS '$libdir/dblink', 'dblink_disconnect' LANGUAGE c STRICT;
CREATE FUNCTION standin.dblink_get_connections() RETURNS text[] AS '$libdir/dblink', 'dblink_get_connections' LANGUAGE c;
CREATE FUNCTION standin.dblink_send_query(text, text) RETURNS int AS '$libdir/dblink', 'dblink_send_query' LANGUAGE c STRICT;
CREATE FUNCTION standin.dblink_is_busy(text) RETURNS int AS '$libdir/dblink', 'dblink_is_busy' LANGUAGE c STRICT;
CREATE FUNCTION standin.dblink_get_result(text) RETURNS SETOF record AS '$libdir/dblink', 'dblink_get_result' LANGUAGE c STRICT;

-- settings as values

-- A time setting in milliseconds.
CREATE FUNCTION standin.ms(setting text) RETURNS int LANGUAGE sql STABLE AS
$$ SELECT CASE WHEN v LIKE '-%' THEN -1 ELSE extract(epoch FROM v::interval) * 1000 END::int FROM current_setting(setting) v $$;

CREATE FUNCTION citus_version() RETURNS text LANGUAGE sql STABLE STRICT AS
$$ SELECT format('Citus %s (stand-in) on %s', current_setting('citus.version'), substring(version() FROM ' on (.*)')) $$;

CREATE FUNCTION citus_is_coordinator() RETURNS bool LANGUAGE sql STABLE STRICT AS
$$ SELECT EXISTS (SELECT FROM pg_dist_local_group WHERE groupid = 0) AND EXISTS (SELECT FROM pg_dist_node) $$;

CREATE FUNCTION citus_local_disk_space_stats(OUT available_disk_size bigint, OUT total_disk_size bigint)
LANGUAGE sql STRICT SECURITY DEFINER AS $$ SELECT standin.disk(true), standin.disk(false) $$;

-- talking to nodes

-- Keywords and values of citus.node_conninfo.
CREATE FUNCTION standin.node_conninfo() RETURNS TABLE (keyword text, value text) LANGUAGE sql STABLE AS $$
  SELECT m[1], CASE WHEN m[2] LIKE '''%' THEN regexp_replace(substr(m[2], 2, length(m[2]) - 2), '\\(.)', '\1', 'g')
    ELSE m[2] END
  FROM regexp_matches(current_setting('citus.node_conninfo'), $re$(\w+)\s*=\s*('(?:[^'\\]|\\.)*'|\S+)$re$, 'g') m
$$;

CREATE FUNCTION standin.conninfo(host text, port int) RETURNS text LANGUAGE sql STABLE AS $$
  SELECT string_agg(format('%s=''%s''', k, regexp_replace(v, '([\\''])', '\\\1', 'g')), ' ')
  FROM (VALUES ('connect_timeout', greatest(2, standin.ms('citus.node_connection_timeout') / 1000)::text),
               ('options', '-c log_statement=none -c log_min_error_statement=panic')    -- passwords of roles go this way
        UNION ALL SELECT * FROM standin.node_conninfo()    -- of two the last one counts
        UNION ALL VALUES ('host', host), ('port', port::text), ('dbname', current_database()::text),
                         ('user', current_user::text), ('application_name', 'citus_internal')) o(k, v)
$$;

-- Connects and returns the name of the connection: one a node, and for other purposes others.
CREATE FUNCTION standin.open(host text, port int, purpose text DEFAULT '') RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  conn text := md5(host || ':' || port || purpose);
  why text;
BEGIN
  IF conn = ANY (standin.dblink_get_connections()) THEN
    PERFORM standin.dblink_disconnect(conn);
  END IF;
  PERFORM standin.dblink_connect(conn, standin.conninfo(host, port));
  RETURN conn;
EXCEPTION WHEN sqlclient_unable_to_establish_sqlconnection THEN
  GET STACKED DIAGNOSTICS why = PG_EXCEPTION_DETAIL;
  RAISE EXCEPTION USING ERRCODE = 'connection_failure', MESSAGE = format(
    'connection to the remote node %s@%s:%s failed with the following error: %s', current_user, host, port,
    rtrim(regexp_replace(why, '^connection to server at .*? failed: ', ''), E'\n'));
END $$;

-- Runs commands over a connection and returns the last one's tag, or the one column of its last row.
-- It asks again and again instead of waiting in libpq, where no cancel and no shutdown would be noticed.
CREATE FUNCTION standin.run(conn text, sql text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  pause float8 := 0.0005;
  answer text;
  last text;
BEGIN
  IF sql = '' THEN    -- dblink takes no answer for an error
    RETURN NULL;
  END IF;
  PERFORM standin.dblink_send_query(conn, sql);
  LOOP
    WHILE standin.dblink_is_busy(conn) = 1 LOOP
      PERFORM pg_sleep(pause);
      pause := least(pause * 1.3, 0.02);
    END LOOP;
    BEGIN
      SELECT r.x INTO answer FROM standin.dblink_get_result(conn) AS r(x text);
      EXIT WHEN NOT FOUND;
      last := answer;
    EXCEPTION WHEN query_canceled THEN    -- there, not here: an error as any other
      RAISE EXCEPTION '%', SQLERRM USING ERRCODE = 'internal_error';
    END;
  END LOOP;
  RETURN last;
END $$;

-- Runs a query over a connection and returns its rows; one row of JSON always comes, so the end of them is certain.
CREATE FUNCTION standin.query(conn text, sql text) RETURNS jsonb LANGUAGE sql AS
$$ SELECT standin.run(conn, format('SELECT coalesce(jsonb_agg(q), ''[]'') FROM (%s) q', sql))::jsonb $$;

CREATE FUNCTION standin.open(node int) RETURNS text LANGUAGE sql AS
$$ SELECT standin.open(nodename, nodeport) FROM pg_dist_node WHERE nodeid = node $$;

CREATE FUNCTION standin.close(conn text) RETURNS void LANGUAGE sql AS $$ SELECT standin.dblink_disconnect(conn) $$;

CREATE FUNCTION standin.run(node int, sql text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  conn text := standin.open(node);
  answer text := standin.run(conn, sql);
BEGIN
  PERFORM standin.close(conn);
  RETURN answer;
END $$;

CREATE FUNCTION standin.query(node int, sql text) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
  conn text := standin.open(node);
  answer jsonb := standin.query(conn, sql);
BEGIN
  PERFORM standin.close(conn);
  RETURN answer;
END $$;

-- Writes that must stay when the transaction around them fails: over a connection of the node to itself.
CREATE FUNCTION standin.run_apart(sql text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  conn text := standin.open(current_setting('citus.local_hostname'), current_setting('port')::int, 'apart');
  answer text := standin.run(conn, sql);
BEGIN
  PERFORM standin.close(conn);
  RETURN answer;
END $$;

CREATE FUNCTION citus_check_connection_to_node(nodename text, nodeport int DEFAULT 5432) RETURNS bool
LANGUAGE plpgsql STRICT SECURITY DEFINER SET search_path = pg_catalog AS $$
DECLARE conn text;
BEGIN
  conn := standin.open(nodename, nodeport);
  PERFORM standin.run(conn, 'SELECT 1');
  PERFORM standin.close(conn);
  RETURN true;
EXCEPTION WHEN OTHERS THEN
  RAISE WARNING '%', SQLERRM USING ERRCODE = SQLSTATE;
  RETURN false;
END $$;

CREATE FUNCTION citus_check_cluster_node_health(OUT from_nodename text, OUT from_nodeport int,
                                                OUT to_nodename text, OUT to_nodeport int, OUT result bool)
RETURNS SETOF record LANGUAGE plpgsql STRICT SECURITY DEFINER SET search_path = pg_catalog AS $$
DECLARE
  conn text;
  f pg_dist_node;
  t pg_dist_node;
BEGIN
  FOR f IN SELECT * FROM pg_dist_node WHERE isactive ORDER BY nodename, nodeport LOOP
    BEGIN
      conn := standin.open(f.nodename, f.nodeport);
    EXCEPTION WHEN connection_failure THEN
      RAISE WARNING '%', SQLERRM USING ERRCODE = SQLSTATE;
      conn := NULL;
    END;
    FOR t IN SELECT * FROM pg_dist_node WHERE isactive ORDER BY nodename, nodeport LOOP
      from_nodename := f.nodename; from_nodeport := f.nodeport;
      to_nodename := t.nodename; to_nodeport := t.nodeport;
      result := standin.run(conn, format('SELECT citus_check_connection_to_node(%L, %s)', t.nodename, t.nodeport));
      RETURN NEXT;
    END LOOP;
    IF conn IS NOT NULL THEN PERFORM standin.close(conn); END IF;
  END LOOP;
END $$;

CREATE FUNCTION master_get_active_worker_nodes(OUT node_name text, OUT node_port bigint) RETURNS SETOF record
LANGUAGE sql STRICT AS $$ SELECT nodename, nodeport FROM pg_dist_node WHERE isactive AND shouldhaveshards ORDER BY 1, 2 $$;
CREATE FUNCTION citus_get_active_worker_nodes(OUT node_name text, OUT node_port bigint) RETURNS SETOF record
LANGUAGE sql STRICT AS $$ SELECT * FROM master_get_active_worker_nodes() $$;

-- One command on each of some nodes, one after another whatever `parallel` says.
CREATE FUNCTION standin.run_on(nodes int[], command text,
                               OUT nodeid int, OUT success bool, OUT result text) RETURNS SETOF record
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
  FOREACH nodeid IN ARRAY nodes LOOP
    BEGIN
      result := standin.run(nodeid, command);
      success := true;
    EXCEPTION
      WHEN connection_failure THEN
        success := false;
        SELECT format('failed to connect to %s:%s', n.nodename, n.nodeport) INTO result FROM pg_dist_node n
          WHERE n.nodeid = run_on.nodeid;
      WHEN OTHERS THEN
        success := false;
        result := 'ERROR:  ' || SQLERRM;
    END;
    RETURN NEXT;
  END LOOP;
END $$;

CREATE FUNCTION run_command_on_workers(command text, parallel bool DEFAULT true,
                                       OUT nodename text, OUT nodeport int, OUT success bool, OUT result text)
RETURNS SETOF record LANGUAGE sql AS $$
  SELECT n.nodename, n.nodeport, r.success, r.result
  FROM standin.run_on(ARRAY(SELECT nodeid FROM pg_dist_node WHERE isactive AND groupid <> 0 ORDER BY nodename, nodeport),
    command) r
  JOIN pg_dist_node n USING (nodeid)
$$;
CREATE FUNCTION run_command_on_all_nodes(command text, parallel bool DEFAULT true,
                                         give_warning_for_connection_errors bool DEFAULT false,
                                         OUT nodeid int, OUT success bool, OUT result text)
RETURNS SETOF record LANGUAGE sql AS
$$ SELECT * FROM standin.run_on(ARRAY(SELECT nodeid FROM pg_dist_node WHERE isactive ORDER BY 1), command) $$;
CREATE FUNCTION run_command_on_coordinator(command text, give_warning_for_connection_errors bool DEFAULT false,
                                           OUT nodeid int, OUT success bool, OUT result text)
RETURNS SETOF record LANGUAGE sql AS
$$ SELECT * FROM standin.run_on(ARRAY(SELECT nodeid FROM pg_dist_node WHERE groupid = 0), command) $$;

-- The stand-in never prepares a transaction by itself (README.md); those that a test prepares end as in Citus:
-- with a row in pg_dist_transaction they are committed, without one they are undone.
CREATE FUNCTION recover_prepared_transactions() RETURNS int LANGUAGE plpgsql STRICT AS $$
DECLARE
  n pg_dist_node;
  x jsonb;
  ended int := 0;
BEGIN
  FOR n IN SELECT * FROM pg_dist_node WHERE groupid <> 0 AND isactive LOOP
    BEGIN
      FOR x IN SELECT jsonb_array_elements(standin.query(n.nodeid,
        'SELECT gid FROM pg_prepared_xacts WHERE gid LIKE ''citus\_0\_%'' AND database = current_database()')) LOOP
        PERFORM standin.run(n.nodeid, format('%s PREPARED %L', CASE WHEN EXISTS (SELECT FROM pg_dist_transaction t
          WHERE t.groupid = n.groupid AND gid = x->>'gid')
                                                                THEN 'COMMIT' ELSE 'ROLLBACK' END, x->>'gid'));
        DELETE FROM pg_dist_transaction t WHERE t.groupid = n.groupid AND gid = x->>'gid';
        ended := ended + 1;
      END LOOP;
    EXCEPTION WHEN connection_failure THEN
      RAISE WARNING 'transaction recovery cannot connect to %:%', n.nodename, n.nodeport;
    END;
  END LOOP;
  RETURN ended;
END $$;
