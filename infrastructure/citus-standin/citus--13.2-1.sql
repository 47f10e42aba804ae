/*
 * The stand-in for Citus: for tests and the demo on machines without Citus. README.md says what it answers.
 *
 * How it works. On the coordinator a distributed table stays as it is, and empty: a hook of the planner sends its
 * queries to a partitioned table behind it, standin.table_<oid>, with one partition a shard, standin.shard_<shardid>,
 * each a postgres_fdw foreign table whose server is the node that holds the shard. The operator class of the
 * partition key hashes as Citus does, so that a value is in the shard in which Citus would have it. A shard is an
 * ordinary table of a worker, <table>_<shardid>. A move copies it by PostgreSQL's own publication and subscription,
 * holds writers back while the rest arrives, and then points the foreign table at the other server.
 *
 * In this order: catalogs, talking to nodes, roles and metadata, membership, tables, sizes and views, planning,
 * moving, cleanup, jobs.
 */
\echo Use "CREATE EXTENSION citus" to load this file. \quit

CREATE SCHEMA citus;      -- types, as in Citus
CREATE SCHEMA standin;    -- everything that Citus does not have

CREATE TYPE citus.distribution_type AS ENUM ('hash', 'range', 'append');
CREATE TYPE citus.shard_transfer_mode AS ENUM ('auto', 'force_logical', 'block_writes');
CREATE TYPE noderole AS ENUM ('primary', 'secondary', 'unavailable');
CREATE TYPE citus_job_status AS ENUM
  ('scheduled', 'running', 'finished', 'cancelling', 'cancelled', 'failing', 'failed');
CREATE TYPE citus_task_status AS ENUM
  ('blocked', 'runnable', 'running', 'done', 'cancelling', 'error', 'unscheduled', 'cancelled');

-- ---------------------------------------------------------------------------------------------------- catalogs

CREATE SEQUENCE citus.pg_dist_groupid_seq MINVALUE 1;
CREATE SEQUENCE citus.pg_dist_node_nodeid_seq MINVALUE 1;
CREATE SEQUENCE citus.pg_dist_shardid_seq MINVALUE 102008;
CREATE SEQUENCE citus.pg_dist_colocationid_seq MINVALUE 1;
CREATE SEQUENCE citus.pg_dist_placement_placementid_seq;
CREATE SEQUENCE citus.pg_dist_operationid_seq;
CREATE SEQUENCE citus.pg_dist_cleanup_recordid_seq;
CREATE SEQUENCE citus.pg_dist_background_job_job_id_seq;
CREATE SEQUENCE citus.pg_dist_background_task_task_id_seq;

CREATE TABLE citus.pg_dist_node (
  nodeid int NOT NULL DEFAULT nextval('citus.pg_dist_node_nodeid_seq') PRIMARY KEY,
  groupid int NOT NULL DEFAULT nextval('citus.pg_dist_groupid_seq'),
  nodename text NOT NULL,
  nodeport int NOT NULL DEFAULT 5432,
  noderack text NOT NULL DEFAULT 'default',
  hasmetadata bool NOT NULL DEFAULT false,
  isactive bool NOT NULL DEFAULT true,
  noderole noderole NOT NULL DEFAULT 'primary',
  nodecluster name NOT NULL DEFAULT 'default',
  metadatasynced bool DEFAULT false,
  shouldhaveshards bool NOT NULL DEFAULT true,
  nodeisclone bool NOT NULL DEFAULT false,
  nodeprimarynodeid int NOT NULL DEFAULT 0,
  UNIQUE (nodename, nodeport));
CREATE TABLE citus.pg_dist_local_group (groupid int PRIMARY KEY);
INSERT INTO citus.pg_dist_local_group VALUES (0);
CREATE TABLE citus.pg_dist_node_metadata (metadata jsonb NOT NULL);
INSERT INTO citus.pg_dist_node_metadata VALUES (jsonb_build_object('server_id', gen_random_uuid()));
CREATE TABLE citus.pg_dist_partition (
  logicalrelid regclass PRIMARY KEY,
  partmethod "char" NOT NULL,
  partkey text,
  colocationid int NOT NULL DEFAULT 0,
  repmodel "char" NOT NULL DEFAULT 'c',
  autoconverted bool DEFAULT false);
CREATE TABLE citus.pg_dist_shard (
  logicalrelid regclass NOT NULL,
  shardid bigint NOT NULL PRIMARY KEY,
  shardstorage "char" NOT NULL,
  shardminvalue text,
  shardmaxvalue text);
CREATE TABLE citus.pg_dist_placement (
  placementid bigint NOT NULL DEFAULT nextval('citus.pg_dist_placement_placementid_seq') PRIMARY KEY,
  shardid bigint NOT NULL,
  shardstate int NOT NULL,
  shardlength bigint NOT NULL,
  groupid int NOT NULL,
  UNIQUE (shardid, groupid));
CREATE TABLE citus.pg_dist_colocation (
  colocationid int PRIMARY KEY,
  shardcount int NOT NULL,
  replicationfactor int NOT NULL,
  distributioncolumntype oid NOT NULL,
  distributioncolumncollation oid NOT NULL);
CREATE TABLE citus.pg_dist_cleanup (
  record_id bigint NOT NULL DEFAULT nextval('citus.pg_dist_cleanup_recordid_seq') PRIMARY KEY,
  operation_id bigint NOT NULL,
  object_type int NOT NULL,    -- 1 shard, 2 subscription, 3 replication slot, 4 publication
  object_name text NOT NULL,
  node_group_id int NOT NULL,
  policy_type int NOT NULL);   -- 0 always, 1 when the operation failed, 2 deferred
CREATE TABLE citus.pg_dist_background_job (
  job_id bigint NOT NULL DEFAULT nextval('citus.pg_dist_background_job_job_id_seq') PRIMARY KEY,
  state citus_job_status NOT NULL DEFAULT 'scheduled',
  job_type name NOT NULL,
  description text NOT NULL,
  started_at timestamptz,
  finished_at timestamptz);
CREATE TABLE citus.pg_dist_background_task (
  job_id bigint NOT NULL REFERENCES citus.pg_dist_background_job,
  task_id bigint NOT NULL DEFAULT nextval('citus.pg_dist_background_task_task_id_seq') PRIMARY KEY,
  owner regrole NOT NULL DEFAULT current_user::regrole,
  pid int,
  status citus_task_status NOT NULL DEFAULT 'runnable',
  command text NOT NULL,
  retry_count int,
  not_before timestamptz,
  message text NOT NULL DEFAULT '',
  nodes_involved int[],
  UNIQUE (job_id, task_id));
CREATE TABLE citus.pg_dist_background_task_depend (
  job_id bigint NOT NULL,
  task_id bigint NOT NULL,
  depends_on bigint NOT NULL,
  PRIMARY KEY (job_id, task_id, depends_on));
CREATE TABLE citus.pg_dist_rebalance_strategy (
  name name NOT NULL UNIQUE,
  default_strategy bool NOT NULL DEFAULT false,
  shard_cost_function regproc NOT NULL,
  node_capacity_function regproc NOT NULL,
  shard_allowed_on_node_function regproc NOT NULL,
  default_threshold real NOT NULL,
  minimum_threshold real NOT NULL DEFAULT 0,
  improvement_threshold real NOT NULL DEFAULT 0);
CREATE TABLE citus.pg_dist_transaction (groupid int NOT NULL, gid text NOT NULL, outer_xid xid8, UNIQUE (groupid, gid));
CREATE TABLE citus.pg_dist_authinfo (nodeid int NOT NULL, rolename name NOT NULL, authinfo text NOT NULL);

-- CREATE TABLE refuses pg_catalog; moving there is allowed.
DO $$
DECLARE r record;
BEGIN
  FOR r IN SELECT relname, relkind FROM pg_class
           WHERE relnamespace = 'citus'::regnamespace AND relkind IN ('r', 'S') LOOP
    EXECUTE format('ALTER %s citus.%I SET SCHEMA pg_catalog', CASE r.relkind WHEN 'r' THEN 'TABLE' ELSE 'SEQUENCE' END, r.relname);
    IF r.relname <> 'pg_dist_authinfo' THEN
      EXECUTE format('GRANT SELECT ON pg_catalog.%I TO PUBLIC', r.relname);
    END IF;
  END LOOP;
END $$;
GRANT USAGE ON SCHEMA citus TO PUBLIC;

-- ---------------------------------------------------------------------------------------------------- C functions

CREATE FUNCTION standin.spawn(name text, sql text) RETURNS bool AS 'MODULE_PATHNAME', 'standin_spawn' LANGUAGE c STRICT;
CREATE FUNCTION standin.hold_writes(rel oid) RETURNS void AS 'MODULE_PATHNAME', 'standin_hold_writes' LANGUAGE c STRICT;
CREATE FUNCTION standin.disk(free bool) RETURNS bigint AS 'MODULE_PATHNAME', 'standin_disk' LANGUAGE c STRICT;
CREATE FUNCTION worker_hash(value "any") RETURNS int AS 'MODULE_PATHNAME', 'standin_worker_hash' LANGUAGE c STRICT IMMUTABLE;

-- postgres_fdw and dblink without their extensions, which CREATE EXTENSION citus could not bring along by itself.
CREATE FUNCTION standin.fdw_handler() RETURNS fdw_handler AS '$libdir/postgres_fdw', 'postgres_fdw_handler' LANGUAGE c STRICT;
CREATE FUNCTION standin.fdw_validator(text[], oid) RETURNS void AS '$libdir/postgres_fdw', 'postgres_fdw_validator' LANGUAGE c STRICT;
CREATE FOREIGN DATA WRAPPER citus HANDLER standin.fdw_handler VALIDATOR standin.fdw_validator;
CREATE FUNCTION standin.dblink_connect(text, text) RETURNS text AS '$libdir/dblink', 'dblink_connect' LANGUAGE c STRICT;
CREATE FUNCTION standin.dblink_disconnect(text) RETURNS text AS '$libdir/dblink', 'dblink_disconnect' LANGUAGE c STRICT;
CREATE FUNCTION standin.dblink_get_connections() RETURNS text[] AS '$libdir/dblink', 'dblink_get_connections' LANGUAGE c;
CREATE FUNCTION standin.dblink_send_query(text, text) RETURNS int AS '$libdir/dblink', 'dblink_send_query' LANGUAGE c STRICT;
CREATE FUNCTION standin.dblink_is_busy(text) RETURNS int AS '$libdir/dblink', 'dblink_is_busy' LANGUAGE c STRICT;
CREATE FUNCTION standin.dblink_get_result(text) RETURNS SETOF record AS '$libdir/dblink', 'dblink_get_result' LANGUAGE c STRICT;

-- ---------------------------------------------------------------------------------------------------- settings as values

-- A time setting in milliseconds.
CREATE FUNCTION standin.ms(setting text) RETURNS int LANGUAGE sql STABLE AS
$$ SELECT CASE WHEN v LIKE '-%' THEN -1 ELSE extract(epoch FROM v::interval) * 1000 END::int FROM current_setting(setting) v $$;

CREATE FUNCTION citus_version() RETURNS text LANGUAGE sql STABLE STRICT AS
$$ SELECT format('Citus %s (stand-in) on %s', current_setting('citus.version'), substring(version() FROM ' on (.*)')) $$;

CREATE FUNCTION citus_is_coordinator() RETURNS bool LANGUAGE sql STABLE STRICT AS
$$ SELECT EXISTS (SELECT FROM pg_dist_local_group WHERE groupid = 0) AND EXISTS (SELECT FROM pg_dist_node) $$;

CREATE FUNCTION citus_local_disk_space_stats(OUT available_disk_size bigint, OUT total_disk_size bigint)
LANGUAGE sql STRICT SECURITY DEFINER AS $$ SELECT standin.disk(true), standin.disk(false) $$;

-- ---------------------------------------------------------------------------------------------------- talking to nodes

-- Keywords and values of citus.node_conninfo.
CREATE FUNCTION standin.node_conninfo() RETURNS TABLE (keyword text, value text) LANGUAGE sql STABLE AS $$
  SELECT m[1], CASE WHEN m[2] LIKE '''%' THEN regexp_replace(substr(m[2], 2, length(m[2]) - 2), '\\(.)', '\1', 'g') ELSE m[2] END
  FROM regexp_matches(current_setting('citus.node_conninfo'), $re$(\w+)\s*=\s*('(?:[^'\\]|\\.)*'|\S+)$re$, 'g') m
$$;

CREATE FUNCTION standin.conninfo(host text, port int) RETURNS text LANGUAGE sql STABLE AS $$
  SELECT string_agg(format('%s=''%s''', k, regexp_replace(v, '([\\''])', '\\\1', 'g')), ' ')
  FROM (VALUES ('connect_timeout', greatest(2, standin.ms('citus.node_connection_timeout') / 1000)::text)
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
        SELECT format('failed to connect to %s:%s', n.nodename, n.nodeport) INTO result FROM pg_dist_node n WHERE n.nodeid = run_on.nodeid;
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
  FROM standin.run_on(ARRAY(SELECT nodeid FROM pg_dist_node WHERE isactive AND groupid <> 0 ORDER BY nodename, nodeport), command) r
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
      FOR x IN SELECT jsonb_array_elements(standin.query(n.nodeid, 'SELECT gid FROM pg_prepared_xacts WHERE gid LIKE ''citus\_0\_%'' AND database = current_database()')) LOOP
        PERFORM standin.run(n.nodeid, format('%s PREPARED %L', CASE WHEN EXISTS (SELECT FROM pg_dist_transaction t WHERE t.groupid = n.groupid AND gid = x->>'gid')
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

-- ---------------------------------------------------------------------------------------------------- roles and metadata

-- Membership calls and roles one after another.
CREATE FUNCTION standin.one_at_a_time() RETURNS void LANGUAGE sql AS $$ SELECT pg_advisory_xact_lock(1667855219, 0) $$;

-- Foreign servers for the nodes, with citus.node_conninfo, and user mappings for all roles. Writes only what differs.
CREATE FUNCTION standin.sync_servers() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog SET client_min_messages = warning AS $$
DECLARE
  n record;
  r record;
BEGIN
  FOR n IN
    SELECT 'citus_' || nodeid AS server, o.wanted, s.oid AS present,
           s.oid IS NULL OR NOT (s.srvoptions @> o.wanted AND s.srvoptions <@ o.wanted) AS differs, s.srvoptions AS old
    FROM pg_dist_node
    CROSS JOIN LATERAL (
      SELECT array_agg(k || '=' || v) AS wanted
      FROM (VALUES ('host', nodename), ('port', nodeport::text), ('dbname', current_database()::text),
                   ('application_name', 'citus_internal'), ('fetch_size', '10000'), ('batch_size', '500'), ('async_capable', 'true')
            UNION ALL SELECT * FROM standin.node_conninfo()) o(k, v)) o
    LEFT JOIN pg_foreign_server s ON s.srvname = 'citus_' || nodeid
  LOOP
    IF n.present IS NULL THEN
      EXECUTE format('CREATE SERVER %I FOREIGN DATA WRAPPER citus', n.server);
    END IF;
    IF n.differs THEN
      EXECUTE (SELECT format('ALTER SERVER %I OPTIONS (%s)', n.server, string_agg(change, ', '))
        FROM (SELECT format('%s %I %L', CASE WHEN had THEN 'SET' ELSE 'ADD' END, split_part(w, '=', 1), substr(w, strpos(w, '=') + 1)) change
              FROM unnest(n.wanted) w, LATERAL (SELECT EXISTS (SELECT FROM unnest(n.old) x WHERE split_part(x, '=', 1) = split_part(w, '=', 1)) had) h
              UNION ALL
              SELECT format('DROP %I', split_part(x, '=', 1)) FROM unnest(n.old) x
              WHERE split_part(x, '=', 1) NOT IN (SELECT split_part(w, '=', 1) FROM unnest(n.wanted) w)) c);
    END IF;
  END LOOP;
  FOR n IN SELECT srvname FROM pg_foreign_server s JOIN pg_foreign_data_wrapper w ON w.oid = s.srvfdw AND w.fdwname = 'citus'
           WHERE srvname NOT IN (SELECT 'citus_' || nodeid FROM pg_dist_node) LOOP
    EXECUTE format('DROP SERVER %I CASCADE', n.srvname);
  END LOOP;
  FOR r IN SELECT rolname, srvname FROM pg_roles, pg_foreign_server s
           WHERE rolname !~ '^pg_' AND s.srvfdw = (SELECT oid FROM pg_foreign_data_wrapper WHERE fdwname = 'citus')
             AND NOT EXISTS (SELECT FROM pg_user_mapping m WHERE m.umserver = s.oid AND m.umuser = pg_roles.oid) LOOP
    EXECUTE format('CREATE USER MAPPING FOR %I SERVER %I OPTIONS (user %L, password_required ''false'')', r.rolname, r.srvname, r.rolname);
  END LOOP;
END $$;

-- SQL that makes the coordinator's roles, passwords and memberships on another node.
CREATE FUNCTION standin.roles_sql() RETURNS text LANGUAGE sql STABLE AS $$
  SELECT coalesce(string_agg(
    format('DO $role$ BEGIN IF to_regrole(%L) IS NULL THEN CREATE ROLE %I; END IF; END $role$; ALTER ROLE %2$I %s %s %s %s %s %s CONNECTION LIMIT %s PASSWORD %s;',
      quote_ident(rolname), rolname,
      CASE WHEN rolsuper THEN 'SUPERUSER' ELSE 'NOSUPERUSER' END, CASE WHEN rolinherit THEN 'INHERIT' ELSE 'NOINHERIT' END,
      CASE WHEN rolcreaterole THEN 'CREATEROLE' ELSE 'NOCREATEROLE' END, CASE WHEN rolcreatedb THEN 'CREATEDB' ELSE 'NOCREATEDB' END,
      CASE WHEN rolcanlogin THEN 'LOGIN' ELSE 'NOLOGIN' END, CASE WHEN rolreplication THEN 'REPLICATION' ELSE 'NOREPLICATION' END,
      rolconnlimit, coalesce(quote_literal(rolpassword), 'NULL')), ' ' ORDER BY oid), '')
    || coalesce((SELECT string_agg(format('GRANT %I TO %I%s;', pg_get_userbyid(roleid), pg_get_userbyid(member),
                                          CASE WHEN admin_option THEN ' WITH ADMIN OPTION' ELSE '' END), ' ')
                 FROM pg_auth_members WHERE member >= 16384), '')
  FROM pg_authid WHERE oid >= 16384 AND rolname !~ '^pg_'
$$;

-- Called by the extension's hook after each statement about roles.
CREATE FUNCTION standin.sync_roles() RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
  IF citus_is_coordinator() AND current_setting('citus.enable_create_role_propagation')::bool AND current_setting('citus.enable_ddl_propagation')::bool THEN
    PERFORM standin.one_at_a_time();
    PERFORM standin.run(nodeid, standin.roles_sql()) FROM pg_dist_node WHERE groupid <> 0 AND isactive ORDER BY nodeid;
    PERFORM standin.sync_servers();
  END IF;
END $$;

-- Called by the hook before a role is dropped: its user mappings, and what it may do with the tables behind, would keep it.
CREATE FUNCTION standin.before_drop_role(rolename text) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
DECLARE r record;
BEGIN
  FOR r IN SELECT srvname FROM pg_user_mappings WHERE usename = rolename LOOP
    EXECUTE format('DROP USER MAPPING FOR %I SERVER %I', rolename, r.srvname);
  END LOOP;
  FOR r IN SELECT DISTINCT c.oid::regclass AS behind FROM pg_class c, aclexplode(relacl) WHERE relnamespace = 'standin'::regnamespace AND grantee = to_regrole(quote_ident(rolename)) LOOP
    EXECUTE format('REVOKE ALL ON %s FROM %I', r.behind, rolename);
  END LOOP;
END $$;

-- And after it: here it owned nothing, so what it owns on the workers are remains.
CREATE FUNCTION standin.after_drop_role(rolename text) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
  IF citus_is_coordinator() AND current_setting('citus.enable_ddl_propagation')::bool THEN
    PERFORM standin.run(nodeid, format('DO $role$ BEGIN IF to_regrole(%L) IS NOT NULL THEN REASSIGN OWNED BY %I TO %I; DROP OWNED BY %2$I; DROP ROLE %2$I; END IF; END $role$',
                                       quote_ident(rolename), rolename, current_user))
    FROM pg_dist_node WHERE groupid <> 0 AND isactive;
  END IF;
END $$;

-- All rows of a catalog as SQL that writes them elsewhere.
CREATE FUNCTION standin.copy_sql(catalog regclass) RETURNS text LANGUAGE plpgsql STABLE SET search_path = pg_catalog AS $$
DECLARE content jsonb;
BEGIN
  EXECUTE format('SELECT coalesce(jsonb_agg(c), ''[]'') FROM %s c', catalog) INTO content;
  RETURN format('DELETE FROM %s; INSERT INTO %1$s SELECT * FROM jsonb_populate_recordset(NULL::%1$s, %L);', catalog, content);
END $$;

-- SQL that makes a worker's copy of the metadata what the coordinator's is.
CREATE FUNCTION standin.metadata_sql(own_group int) RETURNS text LANGUAGE sql STABLE AS $$
  SELECT standin.roles_sql()
    || coalesce((SELECT string_agg(standin.table_sql(logicalrelid, NULL), '' ORDER BY logicalrelid) FROM pg_dist_partition), '')
    || string_agg(standin.copy_sql(c), '')
    || format('DELETE FROM pg_dist_local_group; INSERT INTO pg_dist_local_group VALUES (%s);', own_group)
  FROM unnest('{pg_dist_node,pg_dist_colocation,pg_dist_partition,pg_dist_shard,pg_dist_placement}'::regclass[]) c
$$;

CREATE FUNCTION standin.sync_metadata() RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE n pg_dist_node;
BEGIN
  PERFORM standin.sync_servers();
  FOR n IN SELECT * FROM pg_dist_node WHERE groupid <> 0 AND isactive ORDER BY nodeid LOOP
    PERFORM standin.run(n.nodeid, standin.metadata_sql(n.groupid));
  END LOOP;
END $$;

-- ---------------------------------------------------------------------------------------------------- membership

CREATE FUNCTION standin.node(name text, port int) RETURNS pg_dist_node LANGUAGE plpgsql STABLE AS $$
DECLARE n pg_dist_node;
BEGIN
  SELECT * INTO n FROM pg_dist_node WHERE nodename = name AND nodeport = port;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'node at "%:%" does not exist', name, port USING ERRCODE = 'internal_error';
  END IF;
  RETURN n;
END $$;

CREATE FUNCTION standin.ensure_coordinator() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM standin.one_at_a_time();
  IF EXISTS (SELECT FROM pg_dist_local_group WHERE groupid <> 0) THEN
    RAISE EXCEPTION 'operation is not allowed on this node' USING ERRCODE = 'internal_error', HINT = 'Connect to the coordinator and run it again.';
  END IF;
END $$;

CREATE FUNCTION citus_set_coordinator_host(host text, port int DEFAULT current_setting('port')::int,
                                           node_role noderole DEFAULT 'primary', node_cluster name DEFAULT 'default')
RETURNS void LANGUAGE plpgsql STRICT AS $$
BEGIN
  PERFORM standin.ensure_coordinator();
  UPDATE pg_dist_node SET nodename = host, nodeport = port WHERE groupid = 0;
  IF NOT FOUND THEN
    INSERT INTO pg_dist_node (groupid, nodename, nodeport, hasmetadata, metadatasynced, shouldhaveshards)
    VALUES (0, host, port, true, true, false);
  END IF;
  PERFORM standin.sync_metadata();
END $$;

CREATE FUNCTION citus_add_node(nodename text, nodeport int, groupid int DEFAULT -1,
                               noderole noderole DEFAULT 'primary', nodecluster name DEFAULT 'default')
RETURNS int LANGUAGE plpgsql STRICT AS $$
#variable_conflict use_column
DECLARE
  conn text;
  version text;
  id int;
BEGIN
  PERFORM standin.ensure_coordinator();
  SELECT nodeid INTO id FROM pg_dist_node n WHERE (n.nodename, n.nodeport) = ($1, $2);
  IF FOUND THEN
    RETURN id;
  END IF;
  IF $3 = 0 THEN
    PERFORM citus_set_coordinator_host($1, $2);
    RETURN (SELECT nodeid FROM pg_dist_node WHERE groupid = 0);
  END IF;
  PERFORM standin.run(nodeid, 'SELECT 1') FROM pg_dist_node n WHERE n.groupid <> 0 AND isactive;    -- one silent node stops every membership call
  conn := standin.open($1, $2);
  version := standin.run(conn, 'SELECT max(extversion) FROM pg_extension WHERE extname = ''citus''');
  PERFORM standin.close(conn);
  IF version IS NULL THEN
    RAISE EXCEPTION 'relation "pg_catalog.pg_dist_local_group" does not exist on %:%', $1, $2
      USING ERRCODE = 'internal_error', HINT = 'Run CREATE EXTENSION citus on the node.';
  END IF;
  INSERT INTO pg_dist_node (groupid, nodename, nodeport, hasmetadata, metadatasynced)
  VALUES (CASE WHEN $3 > 0 THEN $3 ELSE nextval('pg_dist_groupid_seq') END, $1, $2, true, true) RETURNING nodeid INTO id;
  PERFORM standin.sync_metadata();
  RETURN id;
END $$;

CREATE FUNCTION citus_activate_node(nodename text, nodeport int) RETURNS int LANGUAGE plpgsql STRICT AS $$
DECLARE n pg_dist_node;
BEGIN
  PERFORM standin.ensure_coordinator();
  n := standin.node($1, $2);
  UPDATE pg_dist_node SET isactive = true, hasmetadata = true, metadatasynced = true WHERE nodeid = n.nodeid;
  PERFORM standin.sync_metadata();
  RETURN n.nodeid;
END $$;

-- Refuses when the node holds what no other node has.
CREATE FUNCTION standin.check_expendable(n pg_dist_node) RETURNS void LANGUAGE plpgsql AS $$
DECLARE r record;
BEGIN
  SELECT s.shardid, s.logicalrelid INTO r FROM pg_dist_placement p JOIN pg_dist_shard s USING (shardid)
  WHERE p.groupid = n.groupid AND NOT EXISTS (SELECT FROM pg_dist_placement o WHERE o.shardid = p.shardid AND o.groupid <> p.groupid)
  ORDER BY 1 LIMIT 1;
  IF FOUND THEN
    RAISE EXCEPTION 'cannot remove or disable the node %:% because because it contains the only shard placement for shard %', n.nodename, n.nodeport, r.shardid
      USING ERRCODE = 'internal_error', DETAIL = format('One of the table(s) that prevents the operation complete successfully is %s', standin.qualified(r.logicalrelid)),
            HINT = 'To proceed, either drop the tables or use undistribute_table() function to convert them to local tables';
  END IF;
END $$;

CREATE FUNCTION citus_remove_node(nodename text, nodeport int) RETURNS void LANGUAGE plpgsql STRICT AS $$
DECLARE n pg_dist_node;
BEGIN
  PERFORM standin.ensure_coordinator();
  n := standin.node($1, $2);
  IF n.groupid = 0 AND EXISTS (SELECT FROM pg_dist_node WHERE groupid <> 0) THEN
    RAISE EXCEPTION 'cannot remove the coordinator while there are workers' USING ERRCODE = 'internal_error';    -- Citus lets this happen
  END IF;
  PERFORM standin.check_expendable(n);
  DELETE FROM pg_dist_placement WHERE groupid = n.groupid;    -- of reference tables
  DELETE FROM pg_dist_node WHERE nodeid = n.nodeid;
  PERFORM standin.sync_metadata();
  -- The node itself is not told, in Citus neither: it keeps its tables and its copy of the metadata.
END $$;

CREATE FUNCTION citus_disable_node(nodename text, nodeport int, synchronous bool DEFAULT false)
RETURNS void LANGUAGE plpgsql STRICT AS $$
DECLARE n pg_dist_node;
BEGIN
  PERFORM standin.ensure_coordinator();
  n := standin.node($1, $2);
  PERFORM standin.check_expendable(n);
  UPDATE pg_dist_node SET isactive = false, metadatasynced = false WHERE nodeid = n.nodeid;
  PERFORM standin.sync_metadata();
END $$;

CREATE FUNCTION citus_set_node_property(nodename text, nodeport int, property text, value bool)
RETURNS void LANGUAGE plpgsql STRICT AS $$
DECLARE n pg_dist_node;
BEGIN
  PERFORM standin.ensure_coordinator();
  n := standin.node($1, $2);
  IF property <> 'shouldhaveshards' THEN
    RAISE EXCEPTION 'only the ''shouldhaveshards'' property can be set using this function' USING ERRCODE = 'internal_error';
  END IF;
  UPDATE pg_dist_node SET shouldhaveshards = value WHERE nodeid = n.nodeid;
  PERFORM standin.sync_metadata();
END $$;

-- ---------------------------------------------------------------------------------------------------- tables

CREATE FUNCTION standin.qualified(rel regclass) RETURNS text LANGUAGE sql STABLE AS
$$ SELECT format('%I.%I', nspname, relname) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE c.oid = rel $$;

-- A name with the number of a shard, cut to what PostgreSQL takes; without a shard the name itself.
CREATE FUNCTION standin.shard_object(name text, shardid bigint) RETURNS text LANGUAGE sql IMMUTABLE AS
$$ SELECT CASE WHEN shardid IS NULL THEN name ELSE left(name, 62 - length(shardid::text)) || '_' || shardid END $$;

CREATE FUNCTION shard_name(object_name regclass, shard_id bigint, skip_qualify_public bool DEFAULT true) RETURNS text
LANGUAGE sql STABLE STRICT AS $$
  SELECT CASE WHEN nspname = 'public' AND skip_qualify_public THEN '' ELSE quote_ident(nspname) || '.' END
         || quote_ident(standin.shard_object(relname, shard_id))
  FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE c.oid = object_name
$$;

-- Also what stands behind a table on the coordinator, where Citus has nothing: not for users to see or own.
CREATE FUNCTION relation_is_a_known_shard(relid regclass) RETURNS bool LANGUAGE sql STABLE STRICT AS $$
  SELECT nspname = 'standin' OR EXISTS (SELECT FROM pg_dist_shard s JOIN pg_class t ON t.oid = logicalrelid
                                        WHERE t.relnamespace = c.relnamespace AND c.relname = standin.shard_object(t.relname, shardid))
  FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE c.oid = relid
$$;

-- A column as CREATE TABLE has it. Sequences are the coordinator's business.
CREATE FUNCTION standin.column_sql(rel oid, number smallint, with_sequences bool) RETURNS text LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
  SELECT format('%I %s%s%s%s', attname, format_type(atttypid, atttypmod),
    CASE WHEN attcollation <> typcollation THEN ' COLLATE ' || attcollation::regcollation END,
    CASE WHEN attgenerated = 's' THEN format(' GENERATED ALWAYS AS (%s) STORED', pg_get_expr(adbin, adrelid))
         -- a sequence named by text is not depended on, and can go with its table
         WHEN with_sequences AND attidentity <> '' THEN format(' DEFAULT nextval(%L::text::regclass)', pg_get_serial_sequence(standin.qualified(rel), attname))
         WHEN with_sequences OR pg_get_expr(adbin, adrelid) NOT LIKE '%nextval(%' THEN ' DEFAULT ' || replace(pg_get_expr(adbin, adrelid), '''::regclass', '''::text::regclass') END,
    CASE WHEN attnotnull THEN ' NOT NULL' END)
  FROM pg_attribute JOIN pg_type t ON t.oid = atttypid LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
  WHERE attrelid = rel AND attnum = number
$$;

-- SQL that makes a shard of a table on a node, with constraints, indexes, owner and grants. Without a shard it makes
-- the table itself, as workers know it: empty (README.md).
CREATE FUNCTION standin.table_sql(rel regclass, shardid bigint) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog AS $$
DECLARE
  c pg_class;
  schema text;
  target text;
  parts text;
  result text;
BEGIN
  SELECT * INTO c FROM pg_class WHERE oid = rel;
  SELECT quote_ident(nspname) INTO schema FROM pg_namespace WHERE oid = c.relnamespace;
  target := schema || '.' || quote_ident(standin.shard_object(c.relname, shardid));
  SELECT string_agg(part, ', ' ORDER BY kind, number) INTO parts FROM (
    SELECT 1 AS kind, attnum::bigint AS number, standin.column_sql(rel, attnum, false) AS part
    FROM pg_attribute WHERE attrelid = rel AND attnum > 0 AND NOT attisdropped
    UNION ALL
    SELECT 2, oid::bigint, format('CONSTRAINT %I %s', standin.shard_object(conname, shardid), pg_get_constraintdef(oid))
    FROM pg_constraint WHERE conrelid = rel AND contype IN ('p', 'u', 'c')) p;
  result := CASE WHEN schema <> 'public' THEN format('CREATE SCHEMA IF NOT EXISTS %s;', schema) ELSE '' END
    || format('CREATE TABLE %s %s (%s); ALTER TABLE %s OWNER TO %I;', CASE WHEN shardid IS NULL THEN 'IF NOT EXISTS' ELSE '' END, target, parts, target, pg_get_userbyid(c.relowner));
  IF shardid IS NOT NULL THEN
    SELECT result || coalesce(string_agg(standin.index_sql(indexrelid, shardid), '' ORDER BY indexrelid), '') INTO result
    FROM pg_index i WHERE indrelid = rel AND NOT EXISTS (SELECT FROM pg_constraint k WHERE conindid = indexrelid AND contype IN ('p', 'u'));
    result := result || CASE c.relreplident WHEN 'f' THEN format('ALTER TABLE %s REPLICA IDENTITY FULL;', target) ELSE '' END;
  END IF;
  RETURN result || standin.grants_sql(rel, target) || CASE WHEN shardid IS NULL THEN standin.schema_grants_sql(rel) ELSE '' END;
END $$;

CREATE FUNCTION standin.index_sql(idx regclass, shardid bigint) RETURNS text LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
  SELECT format('CREATE %sINDEX IF NOT EXISTS %I ON %s%s;', CASE WHEN indisunique THEN 'UNIQUE ' ELSE '' END, standin.shard_object(relname, shardid),
                shard_name(indrelid, shardid, false), substring(pg_get_indexdef(indexrelid) FROM ' USING .*'))
  FROM pg_index JOIN pg_class ON oid = indexrelid WHERE indexrelid = idx
$$;

-- Roles log in to the workers as themselves. What a role may do is checked on the coordinator, so nothing is ever revoked.
CREATE FUNCTION standin.grants_sql(rel regclass, target text) RETURNS text LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
  SELECT coalesce(string_agg(format('GRANT %s ON %s TO %s;', privilege_type, target,
                                    CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END), ''), '')
  FROM pg_class, aclexplode(relacl) WHERE oid = rel AND grantee <> relowner
$$;

-- The owner of a table needs its schema even when the schema is someone else's. Moves leave schemas alone: two at once
-- would get in each other's way.
CREATE FUNCTION standin.schema_grants_sql(rel regclass) RETURNS text LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
  SELECT string_agg(format('GRANT USAGE ON SCHEMA %I TO %s;', nspname, who), '')
  FROM (SELECT nspname, quote_ident(pg_get_userbyid(relowner)) AS who FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE c.oid = rel
        UNION
        SELECT nspname, CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END
        FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace, aclexplode(nspacl)
        WHERE c.oid = rel AND privilege_type = 'USAGE') g
$$;

-- The operator class that spreads a type over so many shards, made when it is needed first.
CREATE FUNCTION standin.operator_class(type oid, shards int) RETURNS text LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
  input oid;
  name text;
BEGIN
  SELECT opcintype INTO input FROM pg_opclass o JOIN pg_am a ON a.oid = opcmethod AND amname = 'hash'
  WHERE opcdefault AND (opcintype = type OR EXISTS (SELECT FROM pg_cast WHERE castsource = type AND casttarget = opcintype AND castmethod = 'b'))
  ORDER BY opcintype = type DESC LIMIT 1;
  IF input IS NULL THEN
    RAISE EXCEPTION 'could not identify a hash function for type %', format_type(type, NULL) USING ERRCODE = 'internal_error';
  END IF;
  name := format('standin.%I', replace(input::regtype::text, ' ', '_') || '_' || shards);
  IF NOT EXISTS (SELECT FROM pg_opclass WHERE opcnamespace = 'standin'::regnamespace AND format('standin.%I', opcname) = name) THEN
    EXECUTE format('CREATE FUNCTION standin.shard_of_%s(%s, bigint) RETURNS bigint AS ''$libdir/citus'', ''standin_shard_of'' LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE', shards, input::regtype);
    EXECUTE format('CREATE OPERATOR CLASS %s FOR TYPE %s USING hash AS OPERATOR 1 =, FUNCTION 2 standin.shard_of_%s(%2$s, bigint)', name, input::regtype, shards);
    EXECUTE format('ALTER EXTENSION citus ADD FUNCTION standin.shard_of_%s(%s, bigint); ALTER EXTENSION citus ADD OPERATOR FAMILY %s USING hash; ALTER EXTENSION citus ADD OPERATOR CLASS %3$s USING hash', shards, input::regtype, name);
  END IF;
  RETURN name;
END $$;

-- Who called a SECURITY DEFINER function must own the table.
CREATE FUNCTION standin.check_owner(rel regclass) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF NOT pg_has_role(CASE current_setting('role') WHEN 'none' THEN session_user ELSE current_setting('role')::name END,
                     (SELECT relowner FROM pg_class WHERE oid = rel), 'USAGE') THEN
    RAISE EXCEPTION 'must be owner of table %', rel USING ERRCODE = 'insufficient_privilege';
  END IF;
END $$;

CREATE FUNCTION standin.check_distributable(rel regclass) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM standin.ensure_coordinator();
  PERFORM standin.check_owner(rel);
  IF EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = rel) THEN
    RAISE EXCEPTION 'table "%" is already distributed', rel USING ERRCODE = 'invalid_table_definition';
  ELSIF EXISTS (SELECT FROM pg_class WHERE oid = rel AND (relkind <> 'r' OR relispartition OR relhassubclass)) THEN
    RAISE EXCEPTION 'the stand-in distributes ordinary tables only' USING ERRCODE = 'internal_error';
  ELSIF EXISTS (SELECT FROM pg_constraint WHERE contype IN ('f', 'x') AND rel IN (conrelid, confrelid))
     OR EXISTS (SELECT FROM pg_trigger WHERE tgrelid = rel AND NOT tgisinternal) THEN
    RAISE EXCEPTION 'the stand-in distributes no tables with foreign keys, exclusion constraints or triggers' USING ERRCODE = 'internal_error';
  END IF;
END $$;

-- Notes things on nodes that have to go if this operation fails. The rows stay when the transaction does not;
-- as long as it runs they are safe behind its lock.
CREATE FUNCTION standin.note(op int, things text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_advisory_xact_lock(1667855220, op);
  PERFORM standin.run_apart(format('INSERT INTO pg_dist_cleanup (operation_id, policy_type, object_type, object_name, node_group_id) SELECT %s, * FROM (VALUES %s) v', op, things));
END $$;

CREATE FUNCTION create_distributed_table(table_name regclass, distribution_column text, distribution_type citus.distribution_type DEFAULT 'hash',
                                         colocate_with text DEFAULT 'default', shard_count int DEFAULT NULL)
RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
#variable_conflict use_column
DECLARE
  old pg_class;
  col pg_attribute;
  name text := standin.qualified(table_name);
  behind text;
  shards int;
  colocation int;
  model regclass;   -- a table to be colocated with
  groups int[];     -- of the placements, by shard
  ids bigint[];
  op int;
  r record;
  filled bool;
BEGIN
  SELECT * INTO old FROM pg_class WHERE oid = table_name;
  PERFORM standin.check_distributable(table_name);
  SELECT * INTO col FROM pg_attribute WHERE attrelid = table_name AND attname = distribution_column AND attnum > 0 AND NOT attisdropped;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'column "%" of relation "%" does not exist', distribution_column, old.relname USING ERRCODE = 'undefined_column';
  ELSIF distribution_type <> 'hash' THEN
    RAISE EXCEPTION 'the stand-in distributes by hash only' USING ERRCODE = 'internal_error';
  ELSIF EXISTS (SELECT FROM pg_index WHERE indrelid = table_name AND indisunique AND NOT col.attnum = ANY (indkey)) THEN
    RAISE EXCEPTION 'cannot create constraint on "%"', old.relname USING ERRCODE = 'feature_not_supported',
      DETAIL = 'Distributed relations cannot have UNIQUE, EXCLUDE, or PRIMARY KEY constraints that do not include the partition column (with an equality operator if EXCLUDE).';
  END IF;

  -- which shards, and where
  shards := coalesce(shard_count, current_setting('citus.shard_count')::int);
  IF lower(colocate_with) NOT IN ('default', 'none') THEN
    SELECT colocationid INTO STRICT colocation FROM pg_dist_partition WHERE logicalrelid =
      coalesce(to_regclass(colocate_with), to_regclass('public.' || colocate_with));
  ELSIF lower(colocate_with) = 'default' THEN
    SELECT colocationid INTO colocation FROM pg_dist_colocation
    WHERE (shardcount, replicationfactor, distributioncolumntype) = (shards, 1, col.atttypid) ORDER BY 1 LIMIT 1;
  END IF;
  SELECT logicalrelid INTO model FROM pg_dist_partition WHERE colocationid = colocation AND partmethod = 'h' LIMIT 1;
  IF model IS NULL THEN
    SELECT array_agg(groupid ORDER BY nodename, nodeport) INTO groups FROM pg_dist_node WHERE isactive AND shouldhaveshards AND noderole = 'primary';
    IF groups IS NULL THEN
      RAISE EXCEPTION 'no worker nodes are available for placing shards' USING ERRCODE = 'internal_error', HINT = 'Add more worker nodes.';
    END IF;
    SELECT array_agg(groups[i % cardinality(groups) + 1] ORDER BY i) INTO groups FROM generate_series(0, shards - 1) i;
    IF colocation IS NULL THEN
      colocation := nextval('pg_dist_colocationid_seq');
      INSERT INTO pg_dist_colocation VALUES (colocation, shards, 1, col.atttypid, col.attcollation);
    END IF;
  ELSE
    IF NOT pg_try_advisory_xact_lock(1667855221, colocation) THEN    -- a sibling's shard is on its way
      RAISE EXCEPTION 'could not acquire the lock required to colocate distributed table %', name
        USING ERRCODE = 'internal_error', DETAIL = 'It means that either a concurrent shard move or colocated distributed table creation is happening.',
              HINT = 'Make sure that the concurrent operation has finished and re-run the command';
    END IF;
    SELECT array_agg(groupid ORDER BY shardminvalue::bigint) INTO groups FROM pg_dist_shard JOIN pg_dist_placement USING (shardid) WHERE logicalrelid = model;
    shards := cardinality(groups);
  END IF;
  SELECT array_agg(CASE first WHEN 0 THEN nextval('pg_dist_shardid_seq') ELSE first + i END) INTO ids
  FROM generate_series(0, shards - 1) i, CAST(current_setting('citus.next_shard_id') AS bigint) first;

  -- the shards
  op := nextval('pg_dist_operationid_seq');
  PERFORM standin.note(op, (SELECT string_agg(format('(1, 1, %L, %s)', shard_name(table_name, id, false), g), ', ') FROM unnest(ids, groups) u(id, g)));
  FOR r IN SELECT nodeid, n.groupid FROM pg_dist_node n WHERE n.groupid = ANY (groups) AND noderole = 'primary' LOOP
    PERFORM standin.run(r.nodeid, standin.roles_sql() || (SELECT string_agg(standin.table_sql(table_name, id), '') FROM unnest(ids, groups) u(id, g) WHERE g = r.groupid));
  END LOOP;
  DELETE FROM pg_dist_cleanup WHERE operation_id = op;

  -- the table behind it; as long as it has another name the table itself is what its name says
  PERFORM standin.sync_servers();
  behind := format('standin.new_%s', table_name::oid);
  EXECUTE (SELECT format('CREATE TABLE %s (%s) PARTITION BY HASH (%I %s);', behind,
      -- columns keep their numbers, so what was dropped is made and dropped again
      string_agg(CASE WHEN attisdropped THEN format('dropped_%s int', attnum) ELSE standin.column_sql(attrelid, attnum, true) END, ', ' ORDER BY attnum),
      distribution_column, standin.operator_class(col.atttypid, shards))
      || coalesce(string_agg(format('ALTER TABLE %s DROP COLUMN dropped_%s;', behind, attnum), '') FILTER (WHERE attisdropped), '')
      || format('ALTER TABLE %s OWNER TO %I;', behind, pg_get_userbyid(old.relowner)) || standin.grants_sql(table_name, behind)
    FROM pg_attribute WHERE attrelid = table_name AND attnum > 0);
  FOR i IN 1 .. shards LOOP
    EXECUTE format('CREATE FOREIGN TABLE standin.shard_%s PARTITION OF %s FOR VALUES WITH (MODULUS %s, REMAINDER %s) SERVER citus_%s OPTIONS (schema_name %L, table_name %L); ALTER FOREIGN TABLE standin.shard_%1$s OWNER TO %8$I',
      ids[i], behind, shards, i - 1, (SELECT nodeid FROM pg_dist_node WHERE groupid = groups[i] AND noderole = 'primary'),
      (SELECT nspname FROM pg_namespace WHERE oid = old.relnamespace), standin.shard_object(old.relname, ids[i]), pg_get_userbyid(old.relowner));
  END LOOP;
  EXECUTE format('SELECT EXISTS (SELECT FROM %s)', name) INTO filled;
  IF filled THEN
    RAISE NOTICE 'Copying data from local table...';
    EXECUTE (SELECT format('INSERT INTO %s (%s) SELECT %2$s FROM %s; TRUNCATE %3$s', behind, string_agg(quote_ident(attname), ', ' ORDER BY attnum), name)
             FROM pg_attribute WHERE attrelid = table_name AND attnum > 0 AND NOT attisdropped AND attgenerated = '');
  END IF;
  EXECUTE format('ALTER TABLE %s RENAME TO table_%s', behind, table_name::oid);

  INSERT INTO pg_dist_partition VALUES (table_name, 'h', format('{VAR :varno 1 :varattno %s :vartype %s :vartypmod %s :varcollid %s :varlevelsup 0 :varnosyn 1 :varattnosyn %1$s :location -1}',
    col.attnum, col.atttypid, col.atttypmod, col.attcollation), colocation, 's', false);
  INSERT INTO pg_dist_shard SELECT table_name, ids[i], 't', (-2147483648 + (i - 1) * (4294967296 / shards))::text,
    CASE WHEN i = shards THEN 2147483647 ELSE -2147483648 + i * (4294967296 / shards) - 1 END::text FROM generate_series(1::bigint, shards) i;
  INSERT INTO pg_dist_placement (shardid, shardstate, shardlength, groupid) SELECT id, 1, 0, g FROM unnest(ids, groups) u(id, g);
  PERFORM standin.sync_metadata();
END $$;

CREATE FUNCTION get_shard_id_for_distribution_column(table_name regclass, distribution_value anyelement) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  token int;
  id bigint;
BEGIN
  EXECUTE (SELECT format('SELECT worker_hash(%L::%s)', distribution_value, format_type(atttypid, atttypmod)) FROM pg_dist_partition JOIN pg_attribute ON attrelid = logicalrelid
           WHERE logicalrelid = table_name AND attname = column_to_column_name(table_name, partkey)) INTO token;
  SELECT shardid INTO id FROM pg_dist_shard WHERE logicalrelid = table_name AND token BETWEEN shardminvalue::int AND shardmaxvalue::int;
  RETURN id;
END $$;

-- COPY into a distributed table, called by the hook: as the user, who has to be allowed the INSERT.
CREATE FUNCTION standin.before_copy(rel regclass) RETURNS void LANGUAGE plpgsql SET client_min_messages = warning AS $$
BEGIN
  DROP TABLE IF EXISTS pg_temp.standin_copy;
  EXECUTE format('CREATE TEMP TABLE standin_copy (LIKE standin.table_%s INCLUDING DEFAULTS INCLUDING GENERATED)', rel::oid);
END $$;
CREATE FUNCTION standin.after_copy(rel regclass) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE (SELECT format('INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE SELECT %2$s FROM pg_temp.standin_copy', rel, string_agg(quote_ident(attname), ', ' ORDER BY attnum))
           FROM pg_attribute WHERE attrelid = rel AND attnum > 0 AND NOT attisdropped AND attgenerated = '');
  DROP TABLE pg_temp.standin_copy;
END $$;

-- A reference table stays where it is; the nodes get a copy each, as it is at that moment (README.md).
CREATE FUNCTION create_reference_table(table_name regclass) RETURNS void LANGUAGE plpgsql STRICT SECURITY DEFINER SET search_path = pg_catalog AS $$
DECLARE
  colocation int;
  id bigint := nextval('pg_dist_shardid_seq');
BEGIN
  PERFORM standin.check_distributable(table_name);
  SELECT colocationid INTO colocation FROM pg_dist_colocation WHERE replicationfactor = -1;
  IF colocation IS NULL THEN
    colocation := nextval('pg_dist_colocationid_seq');
    INSERT INTO pg_dist_colocation VALUES (colocation, 1, -1, 0, 0);
  END IF;
  INSERT INTO pg_dist_partition VALUES (table_name, 'n', NULL, colocation, 't', false);
  INSERT INTO pg_dist_shard VALUES (table_name, id, 't', NULL, NULL);
  INSERT INTO pg_dist_placement (shardid, shardstate, shardlength, groupid) SELECT id, 1, 0, groupid FROM pg_dist_node WHERE groupid = 0;
  PERFORM replicate_reference_tables();
END $$;

CREATE FUNCTION replicate_reference_tables(shard_transfer_mode citus.shard_transfer_mode DEFAULT 'auto') RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
DECLARE
  r record;
  content jsonb;
BEGIN
  PERFORM standin.one_at_a_time();
  FOR r IN SELECT shardid, logicalrelid, nodeid, groupid FROM pg_dist_partition JOIN pg_dist_shard USING (logicalrelid), pg_dist_node n
           WHERE partmethod = 'n' AND isactive AND groupid <> 0 AND NOT EXISTS (SELECT FROM pg_dist_placement p WHERE p.shardid = pg_dist_shard.shardid AND p.groupid = n.groupid) LOOP
    EXECUTE format('SELECT coalesce(jsonb_agg(t), ''[]'') FROM %s t', standin.qualified(r.logicalrelid)) INTO content;
    PERFORM standin.run(r.nodeid, format('DROP TABLE IF EXISTS %s; %s INSERT INTO %1$s SELECT * FROM jsonb_populate_recordset(NULL::%1$s, %3$L)',
      shard_name(r.logicalrelid, r.shardid, false), standin.table_sql(r.logicalrelid, r.shardid), content));
    INSERT INTO pg_dist_placement (shardid, shardstate, shardlength, groupid) VALUES (r.shardid, 1, 0, r.groupid);
  END LOOP;
  PERFORM standin.sync_metadata();
END $$;

CREATE FUNCTION column_to_column_name(table_name regclass, column_var_text text) RETURNS text LANGUAGE sql STRICT AS
$$ SELECT attname FROM pg_attribute WHERE attrelid = table_name AND attnum = substring(column_var_text FROM ':varattno (\d+)')::int $$;

-- After DDL on a distributed table: new indexes, columns, owner and grants for its shards.
CREATE FUNCTION standin.after_ddl() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
DECLARE
  c record;
  p record;
  columns jsonb;
BEGIN
  IF current_setting('standin.quiet', true) = 'on' OR NOT current_setting('citus.enable_ddl_propagation')::bool OR NOT EXISTS (SELECT FROM pg_dist_partition) OR NOT citus_is_coordinator() THEN
    RETURN;
  END IF;
  PERFORM set_config('standin.quiet', 'on', true);    -- what follows here is DDL, too
  FOR c IN SELECT command_tag, objid, CASE object_type WHEN 'index' THEN (SELECT indrelid FROM pg_index WHERE indexrelid = objid) ELSE objid END AS rel
           FROM pg_event_trigger_ddl_commands() WHERE lower(object_type) IN ('table', 'index', 'schema') LOOP
    FOR p IN SELECT s.logicalrelid AS rel, s.shardid, nodeid, shard_name(s.logicalrelid, s.shardid, false) AS shard
             FROM pg_dist_partition t JOIN pg_dist_shard s USING (logicalrelid) JOIN pg_dist_placement USING (shardid) JOIN pg_dist_node USING (groupid)
             WHERE partmethod = 'h' AND (logicalrelid = c.rel OR c.command_tag = 'GRANT') ORDER BY nodeid LOOP    -- GRANT names no object
      IF c.command_tag = 'CREATE INDEX' THEN
        PERFORM standin.run(p.nodeid, standin.index_sql(c.objid, p.shardid));
      ELSIF c.command_tag = 'GRANT' THEN
        PERFORM standin.run(p.nodeid, standin.grants_sql(p.rel, p.shard));
      ELSE
        PERFORM standin.run(p.nodeid, standin.change_sql(p.rel, p.shard, standin.query(p.nodeid, standin.columns_query(p.shard))));
      END IF;
    END LOOP;
    IF FOUND THEN
      FOR p IN SELECT logicalrelid AS rel, 'standin.table_' || logicalrelid::oid AS behind FROM pg_dist_partition
               WHERE partmethod = 'h' AND (logicalrelid = c.rel OR c.command_tag = 'GRANT') LOOP
        EXECUTE 'SELECT jsonb_agg(q) FROM (' || standin.columns_query(p.behind) || ') q' INTO columns;
        EXECUTE standin.change_sql(p.rel, p.behind, columns) || standin.grants_sql(p.rel, p.behind);
      END LOOP;
      PERFORM standin.one_at_a_time();
      PERFORM standin.sync_metadata();
    END IF;
  END LOOP;
  PERFORM set_config('standin.quiet', '', true);
END $$;

CREATE FUNCTION standin.columns_query(target text) RETURNS text LANGUAGE sql AS
$$ SELECT format('SELECT attname FROM pg_attribute WHERE attrelid = %L::regclass AND attnum > 0 AND NOT attisdropped', target) $$;

-- SQL that gives a shard, or the table behind, the columns, the owner and the replica identity of its table. Nothing
-- else that ALTER TABLE changes gets there.
CREATE FUNCTION standin.change_sql(rel regclass, target text, columns jsonb) RETURNS text LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
  SELECT coalesce(string_agg(change, '' ORDER BY number), '') || (
    SELECT format('ALTER TABLE %s OWNER TO %I; ALTER TABLE %1$s REPLICA IDENTITY %3$s;', target, pg_get_userbyid(relowner), CASE relreplident WHEN 'f' THEN 'FULL' ELSE 'DEFAULT' END)
    FROM pg_class WHERE oid = rel)
  FROM (
    SELECT attnum AS number, format('ALTER TABLE %s ADD COLUMN %s;', target, standin.column_sql(rel, attnum, target LIKE 'standin.%')) AS change FROM pg_attribute
    WHERE attrelid = rel AND attnum > 0 AND NOT attisdropped AND NOT columns @> jsonb_build_array(jsonb_build_object('attname', attname))
    UNION ALL
    SELECT 0, format('ALTER TABLE %s DROP COLUMN %I;', target, t->>'attname') FROM jsonb_array_elements(columns) t
    WHERE NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = rel AND attname = t->>'attname' AND NOT attisdropped)) c
$$;

-- After DROP TABLE the shards are left to the cleanup; after DROP INDEX the shards' indexes go.
CREATE FUNCTION standin.after_drop() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
DECLARE d record;
BEGIN
  IF NOT EXISTS (SELECT FROM pg_dist_partition) OR NOT citus_is_coordinator() THEN
    RETURN;
  END IF;
  FOR d IN SELECT objid, object_type, schema_name, object_name FROM pg_event_trigger_dropped_objects() WHERE object_type IN ('table', 'index') LOOP
    IF d.object_type = 'table' AND EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = d.objid) THEN
      PERFORM standin.run(nodeid, format('DROP TABLE IF EXISTS %I.%I', d.schema_name, d.object_name)) FROM pg_dist_node WHERE groupid <> 0 AND isactive;
      INSERT INTO pg_dist_cleanup (operation_id, object_type, object_name, node_group_id, policy_type)
      SELECT nextval('pg_dist_operationid_seq'), 1, format('%I.%I', d.schema_name, standin.shard_object(d.object_name, shardid)), groupid, 2
      FROM pg_dist_shard JOIN pg_dist_placement USING (shardid) WHERE logicalrelid = d.objid AND groupid <> 0;
      EXECUTE format('DROP TABLE IF EXISTS standin.table_%s', d.objid);
      DELETE FROM pg_dist_placement WHERE shardid IN (SELECT shardid FROM pg_dist_shard WHERE logicalrelid = d.objid);
      DELETE FROM pg_dist_shard WHERE logicalrelid = d.objid;
      DELETE FROM pg_dist_partition WHERE logicalrelid = d.objid;
      DELETE FROM pg_dist_colocation WHERE colocationid NOT IN (SELECT colocationid FROM pg_dist_partition);
      PERFORM standin.sync_metadata();
    ELSIF d.object_type = 'index' THEN
      -- the name tells the shard's index: it is unique in the schema
      PERFORM standin.run(nodeid, format('DROP INDEX IF EXISTS %I.%I', d.schema_name, standin.shard_object(d.object_name, shardid)))
      FROM pg_dist_shard s JOIN pg_dist_placement USING (shardid) JOIN pg_dist_node USING (groupid) JOIN pg_class c ON c.oid = logicalrelid
      WHERE c.relnamespace = to_regnamespace(quote_ident(d.schema_name)) AND groupid <> 0;
    END IF;
  END LOOP;
END $$;

CREATE EVENT TRIGGER citus_standin_ddl ON ddl_command_end WHEN TAG IN ('CREATE INDEX', 'ALTER TABLE', 'GRANT') EXECUTE FUNCTION standin.after_ddl();
CREATE EVENT TRIGGER citus_standin_drop ON sql_drop WHEN TAG IN ('DROP TABLE', 'DROP INDEX', 'DROP SCHEMA', 'DROP OWNED') EXECUTE FUNCTION standin.after_drop();

-- ---------------------------------------------------------------------------------------------------- sizes and views

CREATE FUNCTION citus_shard_sizes(OUT shard_id int, OUT size bigint) RETURNS SETOF record
LANGUAGE plpgsql STRICT SECURITY DEFINER SET search_path = pg_catalog AS $$
DECLARE
  n record;
  names jsonb;
BEGIN
  FOR n IN SELECT nodeid, groupid FROM pg_dist_node WHERE isactive ORDER BY nodeid LOOP
    SELECT jsonb_agg(jsonb_build_object('id', shardid, 'name', shard_name(logicalrelid, shardid, false))) INTO names
    FROM pg_dist_placement p JOIN pg_dist_shard USING (shardid) WHERE p.groupid = n.groupid;
    CONTINUE WHEN names IS NULL;
    BEGIN
      RETURN QUERY SELECT (x->>'id')::int, (x->>'size')::bigint FROM jsonb_array_elements(standin.query(n.nodeid,
        format('SELECT id, pg_total_relation_size(to_regclass(name)) AS size FROM jsonb_to_recordset(%L) AS t(id bigint, name text)', names))) x
        WHERE x->>'size' IS NOT NULL;
    EXCEPTION WHEN connection_failure THEN
      RAISE WARNING '%', SQLERRM USING ERRCODE = SQLSTATE;
    END;
  END LOOP;
END $$;

CREATE FUNCTION citus_total_relation_size(logicalrelid regclass, fail_on_error bool DEFAULT true) RETURNS bigint LANGUAGE sql STRICT AS
$$ SELECT sum(size)::bigint FROM citus_shard_sizes() JOIN pg_dist_shard s ON s.shardid = shard_id WHERE s.logicalrelid = $1 $$;
CREATE FUNCTION citus_table_size(logicalrelid regclass) RETURNS bigint LANGUAGE sql STRICT AS $$ SELECT citus_total_relation_size($1) $$;
CREATE FUNCTION citus_relation_size(logicalrelid regclass) RETURNS bigint LANGUAGE sql STRICT AS $$ SELECT citus_total_relation_size($1) $$;

CREATE VIEW citus.citus_shards AS
  SELECT s.logicalrelid AS table_name, s.shardid, shard_name(s.logicalrelid, s.shardid) AS shard_name,
         CASE t.partmethod WHEN 'h' THEN 'distributed' ELSE 'reference' END AS citus_table_type, t.colocationid AS colocation_id,
         n.nodename, n.nodeport, z.size AS shard_size
  FROM pg_dist_shard s JOIN pg_dist_placement p USING (shardid) JOIN pg_dist_node n USING (groupid) JOIN pg_dist_partition t USING (logicalrelid)
  LEFT JOIN (SELECT shard_id, max(size) AS size FROM citus_shard_sizes() GROUP BY 1) z ON z.shard_id = s.shardid
  ORDER BY s.logicalrelid::text, s.shardid;
ALTER VIEW citus.citus_shards SET SCHEMA pg_catalog;
CREATE VIEW public.citus_tables AS
  SELECT t.logicalrelid AS table_name, CASE t.partmethod WHEN 'h' THEN 'distributed' ELSE 'reference' END AS citus_table_type,
         coalesce(column_to_column_name(t.logicalrelid, t.partkey), '<none>') AS distribution_column, t.colocationid AS colocation_id,
         pg_size_pretty(citus_total_relation_size(t.logicalrelid)) AS table_size,
         (SELECT count(*) FROM pg_dist_shard s WHERE s.logicalrelid = t.logicalrelid) AS shard_count,
         pg_get_userbyid(c.relowner) AS table_owner, 'heap'::name AS access_method
  FROM pg_dist_partition t JOIN pg_class c ON c.oid = t.logicalrelid ORDER BY 1;
CREATE VIEW citus.citus_nodes AS
  SELECT nodename, nodeport, CASE WHEN groupid = 0 THEN 'coordinator' ELSE 'worker' END AS role, isactive AS active FROM pg_dist_node;
ALTER VIEW citus.citus_nodes SET SCHEMA pg_catalog;
GRANT SELECT ON pg_catalog.citus_shards, public.citus_tables, pg_catalog.citus_nodes TO PUBLIC;

-- ---------------------------------------------------------------------------------------------------- planning

CREATE FUNCTION citus_shard_cost_1(bigint) RETURNS real LANGUAGE sql AS $$ SELECT 1.0::real $$;
CREATE FUNCTION citus_shard_cost_by_disk_size(bigint) RETURNS real LANGUAGE sql STRICT AS
$$ SELECT (sum(size) + 104857600)::real FROM citus_shard_sizes() WHERE shard_id = ANY (standin.colocated($1)) $$;
CREATE FUNCTION citus_node_capacity_1(int) RETURNS real LANGUAGE sql AS $$ SELECT 1.0::real $$;
CREATE FUNCTION citus_shard_allowed_on_node_true(bigint, int) RETURNS bool LANGUAGE sql AS $$ SELECT true $$;
INSERT INTO pg_dist_rebalance_strategy VALUES
  ('by_shard_count', false, 'citus_shard_cost_1', 'citus_node_capacity_1', 'citus_shard_allowed_on_node_true', 0, 0, 0),
  ('by_disk_size', true, 'citus_shard_cost_by_disk_size', 'citus_node_capacity_1', 'citus_shard_allowed_on_node_true', 0.1, 0.01, 0.5);

-- A shard and those of colocated tables that go with it.
CREATE FUNCTION standin.colocated(shard bigint) RETURNS bigint[] LANGUAGE sql STABLE AS $$
  SELECT array_agg(o.shardid ORDER BY o.shardid) FROM pg_dist_shard s JOIN pg_dist_partition t USING (logicalrelid)
  JOIN pg_dist_partition u USING (colocationid) JOIN pg_dist_shard o ON o.logicalrelid = u.logicalrelid AND o.shardminvalue = s.shardminvalue
  WHERE s.shardid = shard AND t.partmethod = 'h'
$$;

-- The moves: first everything off nodes that should have no shards, then from the fullest node to the emptiest
-- while that is worth it. Groups with fewer shards than nodes are taken together.
CREATE FUNCTION standin.plan(strategy name, threshold real, drain_only bool) RETURNS TABLE (shard bigint, source int, target int)
LANGUAGE plpgsql AS $$
DECLARE
  st pg_dist_rebalance_strategy;
  limit_ float8;
  colocations int[];
  nodes int[]; load float8[];
  ids bigint[]; costs float8[]; places int[]; starts int[]; turn int[]; moved int := 0;
  hi int; lo int; best int; average float8;
BEGIN
  SELECT * INTO st FROM pg_dist_rebalance_strategy s WHERE CASE WHEN strategy IS NULL THEN default_strategy ELSE s.name = strategy END;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'could not find rebalance strategy with name %', strategy USING ERRCODE = 'internal_error';
  END IF;
  limit_ := greatest(coalesce(threshold, st.default_threshold), st.minimum_threshold);
  SELECT array_agg(nodeid ORDER BY nodeid) INTO nodes FROM pg_dist_node WHERE shouldhaveshards AND isactive AND noderole = 'primary';
  FOR colocations IN
    SELECT array_agg(colocationid) FROM pg_dist_colocation c WHERE EXISTS (SELECT FROM pg_dist_partition t WHERE t.colocationid = c.colocationid AND partmethod = 'h')
    GROUP BY CASE WHEN shardcount < cardinality(nodes) THEN 0 ELSE colocationid END ORDER BY min(colocationid)
  LOOP
    WITH sizes AS MATERIALIZED (SELECT shard_id, max(size) AS size FROM citus_shard_sizes() WHERE st.shard_cost_function::text = 'citus_shard_cost_by_disk_size' GROUP BY 1),
    units AS (
      SELECT min(s.shardid) AS id, n.nodeid AS place,
             CASE st.shard_cost_function::text WHEN 'citus_shard_cost_by_disk_size' THEN 104857600 + coalesce(sum(z.size), 0) ELSE 1 END::float8 AS cost
      FROM pg_dist_partition t JOIN pg_dist_shard s USING (logicalrelid) JOIN pg_dist_placement p USING (shardid) JOIN pg_dist_node n USING (groupid)
      LEFT JOIN sizes z ON z.shard_id = s.shardid
      WHERE t.partmethod = 'h' AND t.colocationid = ANY (colocations) GROUP BY t.colocationid, s.shardminvalue, n.nodeid)
    SELECT array_agg(id ORDER BY id), array_agg(cost ORDER BY id), array_agg(place ORDER BY id), array_agg(0 ORDER BY id) INTO ids, costs, places, turn FROM units;
    CONTINUE WHEN ids IS NULL OR nodes IS NULL;
    starts := places;
    SELECT array_agg(coalesce((SELECT sum(c) FROM unnest(costs, places) u(c, p) WHERE p = n), 0) ORDER BY n) INTO load FROM unnest(nodes) n;
    FOR i IN 1 .. cardinality(ids) LOOP
      CONTINUE WHEN places[i] = ANY (nodes);
      SELECT o INTO lo FROM unnest(load) WITH ORDINALITY l(v, o) ORDER BY v, o LIMIT 1;
      places[i] := nodes[lo]; load[lo] := load[lo] + costs[i]; moved := moved + 1; turn[i] := moved;
    END LOOP;
    WHILE NOT drain_only AND cardinality(nodes) > 1 LOOP
      SELECT o INTO hi FROM unnest(load) WITH ORDINALITY l(v, o) ORDER BY v DESC, o LIMIT 1;
      SELECT o INTO lo FROM unnest(load) WITH ORDINALITY l(v, o) ORDER BY v, o LIMIT 1;
      SELECT avg(v) INTO average FROM unnest(load) v;
      EXIT WHEN load[hi] <= average * (1 + limit_) AND load[lo] >= average * (1 - limit_);
      -- the largest that does not turn the two round, else the smallest that still makes the fuller one less full
      SELECT o INTO best FROM unnest(costs, places) WITH ORDINALITY u(c, p, o) WHERE p = nodes[hi] AND load[lo] + c < load[hi]
      ORDER BY c <= (load[hi] - load[lo]) / 2 DESC, CASE WHEN c <= (load[hi] - load[lo]) / 2 THEN -c ELSE c END, o LIMIT 1;
      EXIT WHEN NOT FOUND;
      load[hi] := load[hi] - costs[best]; load[lo] := load[lo] + costs[best];
      places[best] := nodes[lo]; moved := moved + 1; turn[best] := moved;
    END LOOP;
    RETURN QUERY SELECT u.id, u.f, u.t FROM unnest(ids, starts, places, turn) u(id, f, t, o) WHERE f <> t ORDER BY o;
  END LOOP;
END $$;

CREATE FUNCTION get_rebalance_table_shards_plan(relation regclass DEFAULT NULL, threshold real DEFAULT NULL, max_shard_moves int DEFAULT 1000000,
    excluded_shard_list bigint[] DEFAULT '{}', drain_only bool DEFAULT false, rebalance_strategy name DEFAULT NULL, improvement_threshold real DEFAULT NULL)
RETURNS TABLE (table_name regclass, shardid bigint, shard_size bigint, sourcename text, sourceport int, targetname text, targetport int) LANGUAGE sql AS $$
  SELECT s.logicalrelid, s.shardid, 0::bigint, f.nodename, f.nodeport, t.nodename, t.nodeport
  FROM standin.plan(rebalance_strategy, threshold, drain_only) WITH ORDINALITY p(shard, source, target, o)
  JOIN pg_dist_node f ON f.nodeid = source JOIN pg_dist_node t ON t.nodeid = target
  JOIN pg_dist_shard s ON s.shardid = ANY (standin.colocated(shard))
  WHERE (relation IS NULL OR s.logicalrelid = relation) AND o <= max_shard_moves AND s.shardid <> ALL (excluded_shard_list) ORDER BY o, s.shardid
$$;

-- ---------------------------------------------------------------------------------------------------- moving

CREATE FUNCTION standin.check_replica_identity(shards bigint[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE rel regclass;
BEGIN
  FOR rel IN SELECT DISTINCT logicalrelid FROM pg_dist_shard JOIN pg_class c ON c.oid = logicalrelid WHERE shardid = ANY (shards)
             AND relreplident <> 'f' AND NOT EXISTS (SELECT FROM pg_index WHERE indrelid = logicalrelid AND (indisprimary OR indisreplident)) LOOP
    RAISE EXCEPTION 'cannot use logical replication to transfer shards of the relation % since it doesn''t have a REPLICA IDENTITY or PRIMARY KEY', (SELECT relname FROM pg_class WHERE oid = rel)
      USING ERRCODE = 'feature_not_supported',
            DETAIL = 'UPDATE and DELETE commands on the shard will error out during logical replication unless there is a REPLICA IDENTITY or PRIMARY KEY.',
            HINT = 'If you wish to continue without a replica identity set the shard_transfer_mode to ''force_logical'' or ''block_writes''.';
  END LOOP;
END $$;

-- Copies shards to a node and keeps the copies up with the originals, until little is missing; returns the connections.
CREATE FUNCTION standin.replicate(op int, names text[], source pg_dist_node, target pg_dist_node, src text, dst text) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
  publication text := format('citus_shard_move_publication_%s_%s', target.nodeid, op);
  slot text := format('citus_shard_move_slot_%s_%s', target.nodeid, op);
  subscription text := format('citus_shard_move_subscription_%s', op);
  state jsonb;
  lsn pg_lsn;
BEGIN
  PERFORM standin.note(op, format('(0, 4, %1$L, %2$s), (0, 3, %3$L, %2$s), (0, 2, %4$L, %5$s)', publication, source.groupid, slot, subscription, target.groupid));
  PERFORM standin.run(src, format('CREATE PUBLICATION %I FOR TABLE %s', publication, array_to_string(names, ', ')));
  BEGIN
    PERFORM standin.run(src, format('SELECT pg_create_logical_replication_slot(%L, ''pgoutput'')::text', slot));
  EXCEPTION WHEN object_not_in_prerequisite_state OR configuration_limit_exceeded THEN
    RAISE EXCEPTION USING ERRCODE = SQLSTATE, MESSAGE = 'ERROR:  ' || SQLERRM, DETAIL = format('while executing command on %s:%s', source.nodename, source.nodeport);
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

CREATE FUNCTION citus_move_shard_placement(shard_id bigint, source_node_id int, target_node_id int, transfer_mode citus.shard_transfer_mode DEFAULT 'auto')
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
    RAISE EXCEPTION 'could not acquire the lock required to move %', standin.qualified((SELECT logicalrelid FROM pg_dist_shard WHERE shardid = shard_id))
      USING ERRCODE = 'internal_error', DETAIL = 'It means that either a concurrent shard move or colocated distributed table creation is happening.';
  END IF;
  PERFORM pg_advisory_xact_lock_shared(1667855221, (SELECT colocationid FROM pg_dist_shard JOIN pg_dist_partition USING (logicalrelid) WHERE shardid = shard_id));
  shards := standin.colocated(shard_id);
  IF EXISTS (SELECT FROM pg_dist_placement WHERE shardid = shard_id AND groupid = t.groupid) THEN
    RAISE WARNING 'shard is already present on node %:%', t.nodename, t.nodeport USING DETAIL = 'Move may have already completed.';
    RETURN;
  ELSIF NOT EXISTS (SELECT FROM pg_dist_placement WHERE shardid = shard_id AND groupid = s.groupid) THEN
    RAISE EXCEPTION 'could not find placement matching "%:%"', s.nodename, s.nodeport USING ERRCODE = 'internal_error', HINT = 'Confirm the placement still exists and try again.';
  END IF;
  IF transfer_mode = 'auto' THEN
    PERFORM standin.check_replica_identity(shards);
  END IF;
  SELECT array_agg(shard_name(logicalrelid, shardid, false) ORDER BY shardid) INTO names FROM pg_dist_shard WHERE shardid = ANY (shards);

  -- what earlier moves left, of this shard and of others
  IF EXISTS (SELECT FROM pg_dist_cleanup) THEN
    PERFORM standin.run_apart('CALL citus_cleanup_orphaned_resources()');
  END IF;
  SELECT object_name INTO left_over FROM pg_dist_cleanup WHERE object_type = 1 AND object_name = ANY (names) LIMIT 1;
  IF FOUND THEN
    RAISE EXCEPTION 'shard move failed as the orphaned shard % leftover from the previous move could not be cleaned up', left_over USING ERRCODE = 'internal_error';
  END IF;

  op := nextval('pg_dist_operationid_seq');
  src := standin.open(s.nodename, s.nodeport);
  dst := standin.open(t.nodename, t.nodeport);
  PERFORM standin.note(op, (SELECT string_agg(format('(1, 1, %L, %s)', n, t.groupid), ', ') FROM unnest(names) n));
  -- a node that was removed and came back may still have what no row in pg_dist_cleanup tells of
  PERFORM standin.run(dst, (SELECT string_agg(format('DROP TABLE IF EXISTS %s CASCADE;', shard_name(logicalrelid, shardid, false)) || standin.table_sql(logicalrelid, shardid), '' ORDER BY shardid)
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
               (SELECT string_agg(format('%I %s', attname, format_type(atttypid, atttypmod)), ', ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped AND attgenerated = '') AS definitions,
               (SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped AND attgenerated = '') AS columns
             FROM pg_dist_shard JOIN pg_class c ON c.oid = logicalrelid JOIN pg_namespace n ON n.oid = relnamespace WHERE shardid = ANY (shards) LOOP
      EXECUTE format('CREATE FOREIGN TABLE standin.copy_%s (%s) SERVER %I OPTIONS (schema_name %L, table_name %L)', r.shardid, r.definitions, 'citus_' || t.nodeid, r.nspname, r.shard);
      EXECUTE format('INSERT INTO standin.copy_%s (%s) SELECT %2$s FROM standin.shard_%1$s', r.shardid, r.columns);
      EXECUTE format('DROP FOREIGN TABLE standin.copy_%s', r.shardid);
    END LOOP;
  END IF;
  UPDATE pg_foreign_table f SET ftserver = fs.oid FROM pg_foreign_server fs
  WHERE fs.srvname = 'citus_' || t.nodeid AND ftrelid IN (SELECT to_regclass('standin.shard_' || id) FROM unnest(shards) id);
  UPDATE pg_depend d SET refobjid = fs.oid FROM pg_foreign_server fs
  WHERE fs.srvname = 'citus_' || t.nodeid AND d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_foreign_server'::regclass
    AND d.objid IN (SELECT to_regclass('standin.shard_' || id) FROM unnest(shards) id);
  UPDATE pg_dist_placement SET groupid = t.groupid, placementid = nextval('pg_dist_placement_placementid_seq') WHERE shardid = ANY (shards) AND groupid = s.groupid;
  PERFORM standin.run(c, format('UPDATE pg_dist_placement p SET groupid = %s, placementid = n.id FROM (VALUES %s) n(shard, id) WHERE p.shardid = n.shard', t.groupid,
    (SELECT string_agg(format('(%s, %s)', shardid, placementid), ', ') FROM pg_dist_placement WHERE shardid = ANY (shards)))) FROM unnest(others) c;
  -- The copies are wanted now; the originals go later, when no query reads them any more.
  UPDATE pg_dist_cleanup SET policy_type = 2, node_group_id = s.groupid WHERE operation_id = op AND object_type = 1;
  PERFORM standin.close(c) FROM unnest(others) c;
END $$;

CREATE FUNCTION citus_move_shard_placement(shard_id bigint, source_node_name text, source_node_port int, target_node_name text, target_node_port int,
                                           shard_transfer_mode citus.shard_transfer_mode DEFAULT 'auto') RETURNS void LANGUAGE sql STRICT AS
$$ SELECT citus_move_shard_placement($1, (standin.node($2, $3)).nodeid, (standin.node($4, $5)).nodeid, $6) $$;

-- ---------------------------------------------------------------------------------------------------- cleanup

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
    SELECT c.*, nodeid INTO r FROM pg_dist_cleanup c LEFT JOIN pg_dist_node n ON n.groupid = c.node_group_id WHERE record_id = id;
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

-- ---------------------------------------------------------------------------------------------------- jobs

CREATE FUNCTION standin.open_job() RETURNS bigint LANGUAGE sql STABLE AS
$$ SELECT max(job_id) FROM pg_dist_background_job WHERE state IN ('scheduled', 'running', 'cancelling', 'failing') $$;

CREATE FUNCTION citus_rebalance_start(rebalance_strategy name DEFAULT NULL, drain_only bool DEFAULT false, shard_transfer_mode citus.shard_transfer_mode DEFAULT 'auto',
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
BEGIN
  PERFORM pg_advisory_xact_lock(1667855223, 0);
  job := standin.open_job();
  IF NOT EXISTS (SELECT FROM pg_dist_partition WHERE partmethod = 'h') THEN
    RAISE NOTICE 'No tables to rebalance';
    RETURN NULL;
  ELSIF job IS NOT NULL THEN
    RAISE EXCEPTION 'A rebalance is already running as job %', job
      USING ERRCODE = 'internal_error', DETAIL = 'A rebalance was already scheduled as background job', HINT = 'To monitor progress, run: SELECT * FROM citus_rebalance_status();';
  END IF;
  FOR m IN SELECT * FROM standin.plan(rebalance_strategy, NULL, drain_only) LOOP
    IF n = 0 THEN
      PERFORM standin.run_apart('CALL citus_cleanup_orphaned_resources()');
      INSERT INTO pg_dist_background_job (job_type, description) VALUES ('rebalance', 'Rebalance all colocation groups') RETURNING job_id INTO job;
      IF EXISTS (SELECT FROM pg_dist_partition t JOIN pg_dist_shard USING (logicalrelid), pg_dist_node d WHERE partmethod = 'n' AND isactive AND groupid <> 0
                 AND NOT EXISTS (SELECT FROM pg_dist_placement p WHERE p.shardid = pg_dist_shard.shardid AND p.groupid = d.groupid)) THEN
        INSERT INTO pg_dist_background_task (job_id, owner, pid, command, retry_count, not_before)
        VALUES (job, current_user::regrole, 0, format('SELECT pg_catalog.replicate_reference_tables(%L)', shard_transfer_mode), 0, '2000-01-01') RETURNING task_id INTO first;
      END IF;
    END IF;
    n := n + 1;
    IF shard_transfer_mode = 'auto' THEN
      PERFORM standin.check_replica_identity(standin.colocated(m.shard));
    END IF;
    SELECT colocationid INTO colocation FROM pg_dist_shard JOIN pg_dist_partition USING (logicalrelid) WHERE shardid = m.shard;
    before := coalesce(CASE WHEN parallel_transfer_colocated_shards THEN NULL ELSE previous->>colocation END::bigint, first);
    INSERT INTO pg_dist_background_task (job_id, owner, pid, status, command, retry_count, not_before, nodes_involved)
    VALUES (job, current_user::regrole, 0, CASE WHEN before IS NULL THEN 'runnable' ELSE 'blocked' END::citus_task_status,
            format('SELECT pg_catalog.citus_move_shard_placement(%s,%s,%s,%L)', m.shard, m.source, m.target, shard_transfer_mode), 0, '2000-01-01', ARRAY[m.source, m.target])
    RETURNING task_id INTO task;
    INSERT INTO pg_dist_background_task_depend SELECT job, task, before WHERE before IS NOT NULL;
    previous := previous || jsonb_build_object(colocation, task);
  END LOOP;
  IF n = 0 THEN
    RAISE NOTICE 'No moves available for rebalancing';
    RETURN NULL;
  END IF;
  RAISE NOTICE 'Scheduled % moves as job %', n, job
    USING DETAIL = 'Rebalance scheduled as background job', HINT = 'To monitor progress, run: SELECT * FROM citus_rebalance_status();';
  RETURN job;
END $$;

CREATE FUNCTION citus_job_cancel(jobid bigint) RETURNS void LANGUAGE plpgsql STRICT SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
  UPDATE pg_dist_background_job SET state = 'cancelling' WHERE job_id = jobid AND state IN ('scheduled', 'running', 'failing');
  UPDATE pg_dist_background_task SET status = CASE status WHEN 'running' THEN 'cancelling' ELSE 'cancelled' END::citus_task_status
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
  SELECT string_agg(format('coalesce(pg_total_relation_size(to_regclass(%L)), 0)', shard_name(logicalrelid, shardid, false)), ' + ') INTO size
  FROM pg_dist_shard WHERE shardid = ANY (standin.colocated(m[1]::bigint));
  BEGIN
    here := standin.query(s.nodeid, format('SELECT %s AS size, pg_current_wal_lsn() AS lsn', size))->0;
    there := standin.query(t.nodeid, format('SELECT %s AS size, bool_and(srsubstate IN (''s'', ''r'')) AS copied, max(latest_end_lsn) AS lsn FROM pg_subscription_rel LEFT JOIN pg_stat_subscription ON subid = srsubid AND pg_stat_subscription.relid IS NULL WHERE srrelid = to_regclass(%L)',
      size, (SELECT shard_name(logicalrelid, shardid, false) FROM pg_dist_shard WHERE shardid = m[1]::bigint)))->0;
  EXCEPTION WHEN OTHERS THEN
    NULL;
  END;
  RETURN jsonb_build_object('hosts', jsonb_build_object('source', s.nodename || ':' || s.nodeport, 'target', t.nodename || ':' || t.nodeport),
    'phase', CASE WHEN there->>'copied' IS NULL THEN 'Setting Up' WHEN (there->>'copied')::bool THEN 'Catching Up' ELSE 'Copying Data' END,
    'size', CASE WHEN raw THEN jsonb_build_object('source', here->'size', 'target', there->'size')
            ELSE jsonb_build_object('source', pg_size_pretty((here->>'size')::bigint), 'target', pg_size_pretty((there->>'size')::bigint)) END)
    || CASE WHEN there->>'lsn' IS NULL THEN '{}' ELSE jsonb_build_object('LSN', jsonb_build_object('source', here->'lsn', 'target', there->'lsn', 'lag',
         CASE WHEN raw THEN to_jsonb(greatest(0, (here->>'lsn')::pg_lsn - (there->>'lsn')::pg_lsn)) ELSE to_jsonb(pg_size_pretty(greatest(0, (here->>'lsn')::pg_lsn - (there->>'lsn')::pg_lsn))) END)) END;
END $$;

CREATE FUNCTION citus_job_status(job_id bigint, raw bool DEFAULT false)
RETURNS TABLE (job_id bigint, state citus_job_status, job_type name, description text, started_at timestamptz, finished_at timestamptz, details jsonb)
LANGUAGE sql STRICT SECURITY DEFINER SET search_path = pg_catalog AS $$
  SELECT j.*, jsonb_build_object(
    'tasks', (SELECT coalesce(jsonb_agg(jsonb_build_object('state', status, 'command', command, 'message', message, 'retried', retry_count, 'task_id', task_id)
                      || CASE WHEN status = 'running' THEN standin.progress(command, raw) ELSE '{}' END ORDER BY task_id), '[]')
              FROM pg_dist_background_task t WHERE t.job_id = j.job_id AND (status IN ('running', 'error') AND nodes_involved IS NOT NULL OR status = 'runnable' AND retry_count > 0)),
    'task_state_counts', (SELECT coalesce(jsonb_object_agg(status, n), '{}') FROM (SELECT status, count(*) AS n FROM pg_dist_background_task t WHERE t.job_id = j.job_id GROUP BY 1) c))
  FROM pg_dist_background_job j WHERE j.job_id = $1
$$;
CREATE FUNCTION citus_job_list() RETURNS TABLE (job_id bigint, state citus_job_status, job_type name, description text, started_at timestamptz, finished_at timestamptz)
LANGUAGE sql AS $$ SELECT * FROM pg_dist_background_job ORDER BY 1 $$;
CREATE FUNCTION citus_rebalance_status(raw bool DEFAULT false)
RETURNS TABLE (job_id bigint, state citus_job_status, job_type name, description text, started_at timestamptz, finished_at timestamptz, details jsonb)
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
  UPDATE pg_dist_background_task b SET status = CASE status WHEN 'running' THEN 'runnable' ELSE 'cancelled' END::citus_task_status, pid = NULL, message = ''
  WHERE job_id = job AND status IN ('running', 'cancelling') AND not_before < now()
    AND NOT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'citus task ' || b.task_id);
  UPDATE pg_dist_background_task b SET status = 'runnable' WHERE job_id = job AND status = 'blocked' AND NOT EXISTS (
    SELECT FROM pg_dist_background_task_depend d JOIN pg_dist_background_task o ON o.task_id = d.depends_on WHERE d.task_id = b.task_id AND o.status <> 'done');
  FOR t IN SELECT * FROM pg_dist_background_task WHERE job_id = job AND status = 'runnable' AND not_before <= now() ORDER BY task_id LOOP
    EXIT WHEN (SELECT count(*) FROM pg_dist_background_task WHERE status IN ('running', 'cancelling')) >= current_setting('citus.max_background_task_executors')::int;
    CONTINUE WHEN EXISTS (SELECT FROM unnest(t.nodes_involved) n WHERE current_setting('citus.max_background_task_executors_per_node')::int
      <= (SELECT count(*) FROM pg_dist_background_task o WHERE o.status IN ('running', 'cancelling') AND n = ANY (o.nodes_involved)));
    -- not_before: until then the process may still be on its way into pg_stat_activity
    UPDATE pg_dist_background_task SET status = 'running', pid = NULL, not_before = now() + interval '3s' WHERE task_id = t.task_id;
    IF NOT standin.spawn('citus task ' || t.task_id, format('SELECT standin.run_task(%s)', t.task_id)) THEN
      UPDATE pg_dist_background_task SET status = 'runnable', not_before = now() + interval '1s' WHERE task_id = t.task_id;    -- no process is free
      EXIT;
    END IF;
    UPDATE pg_dist_background_job SET state = 'running', started_at = now() WHERE job_id = job AND state = 'scheduled';
  END LOOP;
  UPDATE pg_dist_background_job j SET finished_at = now(), state = CASE
      WHEN state = 'cancelling' THEN 'cancelled' WHEN EXISTS (SELECT FROM pg_dist_background_task b WHERE b.job_id = job AND status = 'error') THEN 'failed' ELSE 'finished' END::citus_job_status
  WHERE job_id = job AND NOT EXISTS (SELECT FROM pg_dist_background_task b WHERE b.job_id = job AND status IN ('blocked', 'runnable', 'running', 'cancelling'));
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
    status = CASE WHEN status = 'cancelling' THEN 'cancelled' WHEN retry >= 32 THEN 'error' ELSE 'runnable' END::citus_task_status,
    not_before = now() + CASE retry WHEN 1 THEN 5 ELSE 60 END * interval '1 s',
    message = format(E'ERROR: %s\nCONTEXT: %sCitus Background Task Queue Executor: %s/%s for (%s/%s)\n', why,
                     CASE WHEN detail LIKE 'while executing%' THEN detail || E'\n' ELSE '' END, current_database(), current_user, t.job_id, task)
  WHERE task_id = task;
  UPDATE pg_dist_background_task SET status = 'unscheduled' WHERE retry >= 32 AND job_id = t.job_id AND status IN ('blocked', 'runnable');
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

REVOKE EXECUTE ON FUNCTION citus_set_coordinator_host, citus_add_node, citus_activate_node, citus_remove_node, citus_disable_node,
  citus_set_node_property, recover_prepared_transactions, replicate_reference_tables, citus_rebalance_start, citus_rebalance_stop,
  citus_job_cancel, citus_move_shard_placement(bigint, int, int, citus.shard_transfer_mode),
  citus_move_shard_placement(bigint, text, int, text, int, citus.shard_transfer_mode), run_command_on_workers, run_command_on_all_nodes,
  run_command_on_coordinator, citus_check_connection_to_node, citus_check_cluster_node_health FROM PUBLIC;

GRANT USAGE ON SCHEMA standin TO PUBLIC;
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA standin FROM PUBLIC;
GRANT EXECUTE ON FUNCTION standin.shard_object, standin.before_copy, standin.after_copy TO PUBLIC;
