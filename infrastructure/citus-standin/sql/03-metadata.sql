-- What the workers must know (roles, metadata), and who is one of them.

-- roles and metadata

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
                   ('application_name', 'citus_internal'), ('fetch_size', '10000'), ('batch_size', '500'),
                     ('async_capable', 'true')
            UNION ALL SELECT * FROM standin.node_conninfo()) o(k, v)) o
    LEFT JOIN pg_foreign_server s ON s.srvname = 'citus_' || nodeid
  LOOP
    IF n.present IS NULL THEN
      EXECUTE format('CREATE SERVER %I FOREIGN DATA WRAPPER citus', n.server);
    END IF;
    IF n.differs THEN
      EXECUTE (SELECT format('ALTER SERVER %I OPTIONS (%s)', n.server, string_agg(change, ', '))
        FROM (SELECT format('%s %I %L', CASE WHEN had THEN 'SET' ELSE 'ADD' END, split_part(w, '=', 1),
          substr(w, strpos(w, '=') + 1)) change
              FROM unnest(n.wanted) w, LATERAL (SELECT EXISTS (SELECT FROM unnest(n.old) x
                WHERE split_part(x, '=', 1) = split_part(w, '=', 1)) had) h
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
    EXECUTE format('CREATE USER MAPPING FOR %I SERVER %I OPTIONS (user %L, password_required ''false'')', r.rolname,
      r.srvname, r.rolname);
  END LOOP;
END $$;

-- SQL that makes the coordinator's roles, passwords and memberships on another node.
CREATE FUNCTION standin.roles_sql() RETURNS text LANGUAGE sql STABLE AS $$
  SELECT coalesce(string_agg(
    format('DO $role$ BEGIN IF to_regrole(%L) IS NULL THEN CREATE ROLE %I; END IF; END $role$; ALTER ROLE %2$I %s %s %s %s %s %s CONNECTION LIMIT %s PASSWORD %s;',
      quote_ident(rolname), rolname,
      CASE WHEN rolsuper THEN 'SUPERUSER' ELSE 'NOSUPERUSER' END, CASE WHEN rolinherit THEN 'INHERIT' ELSE 'NOINHERIT' END,
      CASE WHEN rolcreaterole THEN 'CREATEROLE' ELSE 'NOCREATEROLE' END,
        CASE WHEN rolcreatedb THEN 'CREATEDB' ELSE 'NOCREATEDB' END,
      CASE WHEN rolcanlogin THEN 'LOGIN' ELSE 'NOLOGIN' END, CASE WHEN rolreplication THEN 'REPLICATION'
        ELSE 'NOREPLICATION' END,
      rolconnlimit, coalesce(quote_literal(rolpassword), 'NULL')), ' ' ORDER BY oid), '')
    || coalesce((SELECT string_agg(format('GRANT %I TO %I%s;', pg_get_userbyid(roleid), pg_get_userbyid(member),
                                          CASE WHEN admin_option THEN ' WITH ADMIN OPTION' ELSE '' END), ' ')
                 FROM pg_auth_members WHERE member >= 16384), '')
  FROM pg_authid WHERE oid >= 16384 AND rolname !~ '^pg_'
$$;

-- Called by the extension's hook after each statement about roles.
CREATE FUNCTION standin.sync_roles() RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
  IF citus_is_coordinator() AND current_setting('citus.enable_create_role_propagation')::bool
    AND current_setting('citus.enable_ddl_propagation')::bool THEN
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
  FOR r IN SELECT DISTINCT c.oid::regclass AS behind FROM pg_class c, aclexplode(relacl)
    WHERE relnamespace = 'standin'::regnamespace AND grantee = to_regrole(quote_ident(rolename)) LOOP
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

-- membership

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
    RAISE EXCEPTION 'operation is not allowed on this node' USING ERRCODE = 'internal_error',
      HINT = 'Connect to the coordinator and run it again.';
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
  PERFORM standin.run(nodeid, 'SELECT 1') FROM pg_dist_node n
    WHERE n.groupid <> 0 AND isactive;    -- one silent node stops every membership call
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
  WHERE p.groupid = n.groupid AND NOT EXISTS (SELECT FROM pg_dist_placement o
    WHERE o.shardid = p.shardid AND o.groupid <> p.groupid)
  ORDER BY 1 LIMIT 1;
  IF FOUND THEN
    RAISE EXCEPTION 'cannot remove or disable the node %:% because because it contains the only shard placement for shard %',
      n.nodename, n.nodeport, r.shardid
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
    RAISE EXCEPTION 'cannot remove the coordinator while there are workers'
      USING ERRCODE = 'internal_error';    -- Citus lets this happen
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

-- Without a look at the node, as in Citus: it may be the one that is to be reached again.
CREATE FUNCTION citus_update_node(node_id int, new_node_name text, new_node_port int, force bool DEFAULT false,
                                  lock_cooldown int DEFAULT 10000)
RETURNS void LANGUAGE plpgsql STRICT AS $$
BEGIN
  PERFORM standin.ensure_coordinator();
  IF EXISTS (SELECT FROM pg_dist_node WHERE (nodename, nodeport) = ($2, $3) AND nodeid <> $1) THEN
    RAISE EXCEPTION 'there is already another node with the specified hostname and port' USING ERRCODE = 'internal_error';
  END IF;
  UPDATE pg_dist_node SET nodename = $2, nodeport = $3 WHERE nodeid = $1;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'node %s not found', $1 USING ERRCODE = 'internal_error';
  END IF;
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
  IF value AND n.groupid = 0 THEN
    -- Two sessions of one node would wait for each other, and no deadlock would be seen.
    RAISE EXCEPTION 'the stand-in keeps no shards on the coordinator' USING ERRCODE = 'feature_not_supported';
  END IF;
  UPDATE pg_dist_node SET shouldhaveshards = value WHERE nodeid = n.nodeid;
  PERFORM standin.sync_metadata();
END $$;
