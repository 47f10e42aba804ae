-- Distributed and reference tables: how they are made, what DDL does to them.

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
                                        WHERE t.relnamespace = c.relnamespace AND c.relname = standin.shard_object(t.relname,
                                          shardid))
  FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE c.oid = relid
$$;

-- A column as CREATE TABLE has it. Sequences are the coordinator's business.
CREATE FUNCTION standin.column_sql(rel oid, number smallint, with_sequences bool) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
  SELECT format('%I %s%s%s%s', attname, format_type(atttypid, atttypmod),
    CASE WHEN attcollation <> typcollation THEN ' COLLATE ' || attcollation::regcollation END,
    CASE WHEN attgenerated = 's' THEN format(' GENERATED ALWAYS AS (%s) STORED', pg_get_expr(adbin, adrelid))
         -- a sequence named by text is not depended on, and can go with its table
         WHEN with_sequences AND attidentity <> '' THEN format(' DEFAULT nextval(%L::text::regclass)',
           pg_get_serial_sequence(standin.qualified(rel), attname))
         WHEN with_sequences OR pg_get_expr(adbin, adrelid) NOT LIKE '%nextval(%' THEN ' DEFAULT '
           || replace(pg_get_expr(adbin, adrelid), '''::regclass', '''::text::regclass') END,
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
    || format('CREATE TABLE %s %s (%s); ALTER TABLE %s OWNER TO %I;', CASE WHEN shardid IS NULL THEN 'IF NOT EXISTS'
      ELSE '' END, target, parts, target, pg_get_userbyid(c.relowner));
  IF shardid IS NOT NULL THEN
    SELECT result || coalesce(string_agg(standin.index_sql(indexrelid, shardid), '' ORDER BY indexrelid), '') INTO result
    FROM pg_index i WHERE indrelid = rel AND NOT EXISTS (SELECT FROM pg_constraint k
      WHERE conindid = indexrelid AND contype IN ('p', 'u'));
    result := result || CASE c.relreplident WHEN 'f' THEN format('ALTER TABLE %s REPLICA IDENTITY FULL;', target) ELSE '' END;
  END IF;
  RETURN result || standin.grants_sql(rel, target) || CASE WHEN shardid IS NULL THEN standin.schema_grants_sql(rel) ELSE '' END;
END $$;

-- The commands that make a shard, for whoever makes one by hand. Citus' name the table, and the worker puts the shard's
-- number to each name; here they have a number that no shard has, and the worker puts the shard's in its place.
CREATE FUNCTION master_get_table_ddl_events(table_name text) RETURNS SETOF text LANGUAGE sql STABLE STRICT AS
$$ SELECT standin.table_sql(table_name::regclass, -99999) $$;
CREATE FUNCTION worker_apply_shard_ddl_command(shard_id bigint, schema_name text, ddl_command text) RETURNS void
LANGUAGE plpgsql STRICT AS $$ BEGIN EXECUTE replace(ddl_command, '_-99999', '_' || shard_id); END $$;

-- Whoever changes where a shard is, by hand or by a move, changes where its queries go.
CREATE FUNCTION standin.follow_placements() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  UPDATE pg_foreign_table f SET ftserver = s.oid FROM changed JOIN pg_dist_node n USING (groupid)
    JOIN pg_foreign_server s ON srvname = 'citus_' || nodeid
  WHERE ftrelid = to_regclass('standin.shard_' || shardid) AND noderole = 'primary';
  UPDATE pg_depend d SET refobjid = ftserver FROM changed JOIN pg_foreign_table
    ON ftrelid = to_regclass('standin.shard_' || shardid)
  WHERE d.classid = 'pg_class'::regclass AND d.objid = ftrelid AND d.refclassid = 'pg_foreign_server'::regclass;
  RETURN NULL;
END $$;
CREATE TRIGGER follow_placements AFTER UPDATE ON pg_dist_placement REFERENCING NEW TABLE AS changed
  FOR EACH STATEMENT EXECUTE FUNCTION standin.follow_placements();

CREATE FUNCTION standin.index_sql(idx regclass, shardid bigint) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
  SELECT format('CREATE %sINDEX IF NOT EXISTS %I ON %s%s;', CASE WHEN indisunique THEN 'UNIQUE ' ELSE '' END,
    standin.shard_object(relname, shardid),
                shard_name(indrelid, shardid, false), substring(pg_get_indexdef(indexrelid) FROM ' USING .*'))
  FROM pg_index JOIN pg_class ON oid = indexrelid WHERE indexrelid = idx
$$;

-- Roles log in to the workers as themselves. What a role may do is checked on the coordinator, so nothing is ever revoked.
CREATE FUNCTION standin.grants_sql(rel regclass, target text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
  SELECT coalesce(string_agg(format('GRANT %s ON %s TO %s;', privilege_type, target,
                                    CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END), ''), '')
  FROM pg_class, aclexplode(relacl) WHERE oid = rel AND grantee <> relowner
$$;

-- The owner of a table needs its schema even when the schema is someone else's. Moves leave schemas alone: two at once
-- would get in each other's way.
CREATE FUNCTION standin.schema_grants_sql(rel regclass) RETURNS text LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
  SELECT string_agg(format('GRANT USAGE ON SCHEMA %I TO %s;', nspname, who), '')
  FROM (SELECT nspname, quote_ident(pg_get_userbyid(relowner)) AS who FROM pg_class c
    JOIN pg_namespace n ON n.oid = relnamespace WHERE c.oid = rel
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
  WHERE opcdefault AND (opcintype = type OR EXISTS (SELECT FROM pg_cast
    WHERE castsource = type AND casttarget = opcintype AND castmethod = 'b'))
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
    RAISE EXCEPTION 'the stand-in distributes no tables with foreign keys, exclusion constraints or triggers'
      USING ERRCODE = 'internal_error';
  END IF;
END $$;

-- Notes things on nodes that have to go if this operation fails. The rows stay when the transaction does not;
-- as long as it runs they are safe behind its lock.
CREATE FUNCTION standin.note(op int, things text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_advisory_xact_lock(1667855220, op);
  PERFORM standin.run_apart(format('INSERT INTO pg_dist_cleanup (operation_id, policy_type, object_type, object_name, node_group_id) SELECT %s, * FROM (VALUES %s) v', op, things));
END $$;

CREATE FUNCTION create_distributed_table(table_name regclass, distribution_column text,
  distribution_type citus.distribution_type DEFAULT 'hash',
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
  SELECT * INTO col FROM pg_attribute WHERE attrelid = table_name AND attname = distribution_column AND attnum > 0
    AND NOT attisdropped;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'column "%" of relation "%" does not exist', distribution_column,
      old.relname USING ERRCODE = 'undefined_column';
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
    SELECT array_agg(groupid ORDER BY nodename, nodeport) INTO groups FROM pg_dist_node
      WHERE isactive AND shouldhaveshards AND noderole = 'primary';
    IF groups IS NULL THEN
      RAISE EXCEPTION 'no worker nodes are available for placing shards' USING ERRCODE = 'internal_error',
        HINT = 'Add more worker nodes.';
    END IF;
    SELECT array_agg(groups[i % cardinality(groups) + 1] ORDER BY i) INTO groups FROM generate_series(0, shards - 1) i;
    IF colocation IS NULL THEN
      colocation := nextval('pg_dist_colocationid_seq');
      INSERT INTO pg_dist_colocation VALUES (colocation, shards, 1, col.atttypid, col.attcollation);
    END IF;
  ELSE
    IF NOT pg_try_advisory_xact_lock(1667855221, colocation) THEN    -- a sibling's shard is on its way
      RAISE EXCEPTION 'could not acquire the lock required to colocate distributed table %', name
        USING ERRCODE = 'internal_error',
          DETAIL = 'It means that either a concurrent shard move or colocated distributed table creation is happening.',
              HINT = 'Make sure that the concurrent operation has finished and re-run the command';
    END IF;
    SELECT array_agg(groupid ORDER BY shardminvalue::bigint) INTO groups FROM pg_dist_shard
      JOIN pg_dist_placement USING (shardid) WHERE logicalrelid = model;
    shards := cardinality(groups);
  END IF;
  SELECT array_agg(CASE first WHEN 0 THEN nextval('pg_dist_shardid_seq') ELSE first + i END) INTO ids
  FROM generate_series(0, shards - 1) i, CAST(current_setting('citus.next_shard_id') AS bigint) first;

  -- the shards
  op := nextval('pg_dist_operationid_seq');
  PERFORM standin.note(op, (SELECT string_agg(format('(1, 1, %L, %s)', shard_name(table_name, id, false), g), ', ')
    FROM unnest(ids, groups) u(id, g)));
  FOR r IN SELECT nodeid, n.groupid FROM pg_dist_node n WHERE n.groupid = ANY (groups) AND noderole = 'primary' LOOP
    PERFORM standin.run(r.nodeid, standin.roles_sql() || (SELECT string_agg(standin.table_sql(table_name, id), '')
      FROM unnest(ids, groups) u(id, g) WHERE g = r.groupid));
  END LOOP;
  DELETE FROM pg_dist_cleanup WHERE operation_id = op;

  -- the table behind it; as long as it has another name the table itself is what its name says
  PERFORM standin.sync_servers();
  behind := format('standin.new_%s', table_name::oid);
  EXECUTE (SELECT format('CREATE TABLE %s (%s) PARTITION BY HASH (%I %s);', behind,
      -- columns keep their numbers, so what was dropped is made and dropped again
      string_agg(CASE WHEN attisdropped THEN format('dropped_%s int', attnum) ELSE standin.column_sql(attrelid, attnum,
        true) END, ', ' ORDER BY attnum),
      distribution_column, standin.operator_class(col.atttypid, shards))
      || coalesce(string_agg(format('ALTER TABLE %s DROP COLUMN dropped_%s;', behind, attnum),
        '') FILTER (WHERE attisdropped), '')
      || format('ALTER TABLE %s OWNER TO %I;', behind, pg_get_userbyid(old.relowner)) || standin.grants_sql(table_name, behind)
    FROM pg_attribute WHERE attrelid = table_name AND attnum > 0);
  FOR i IN 1 .. shards LOOP
    EXECUTE format('CREATE FOREIGN TABLE standin.shard_%s PARTITION OF %s FOR VALUES WITH (MODULUS %s, REMAINDER %s) SERVER citus_%s OPTIONS (schema_name %L, table_name %L); ALTER FOREIGN TABLE standin.shard_%1$s OWNER TO %8$I',
      ids[i], behind, shards, i - 1, (SELECT nodeid FROM pg_dist_node WHERE groupid = groups[i] AND noderole = 'primary'),
      (SELECT nspname FROM pg_namespace WHERE oid = old.relnamespace), standin.shard_object(old.relname, ids[i]),
        pg_get_userbyid(old.relowner));
  END LOOP;
  EXECUTE format('SELECT EXISTS (SELECT FROM %s)', name) INTO filled;
  IF filled THEN
    RAISE NOTICE 'Copying data from local table...';
    EXECUTE (SELECT format('INSERT INTO %s (%s) SELECT %2$s FROM %s; TRUNCATE %3$s', behind,
      string_agg(quote_ident(attname), ', ' ORDER BY attnum), name)
             FROM pg_attribute WHERE attrelid = table_name AND attnum > 0 AND NOT attisdropped AND attgenerated = '');
  END IF;
  EXECUTE format('ALTER TABLE %s RENAME TO table_%s', behind, table_name::oid);

  INSERT INTO pg_dist_partition VALUES (table_name, 'h',
    format('{VAR :varno 1 :varattno %s :vartype %s :vartypmod %s :varcollid %s :varlevelsup 0 :varnosyn 1 :varattnosyn %1$s :location -1}',
    col.attnum, col.atttypid, col.atttypmod, col.attcollation), colocation, 's', false);
  INSERT INTO pg_dist_shard SELECT table_name, ids[i], 't', (-2147483648 + (i - 1) * (4294967296 / shards))::text,
    CASE WHEN i = shards THEN 2147483647 ELSE -2147483648 + i * (4294967296 / shards) - 1 END::text
      FROM generate_series(1::bigint, shards) i;
  INSERT INTO pg_dist_placement (shardid, shardstate, shardlength, groupid) SELECT id, 1, 0, g
    FROM unnest(ids, groups) u(id, g);
  PERFORM standin.sync_metadata();
END $$;

CREATE FUNCTION get_shard_id_for_distribution_column(table_name regclass, distribution_value anyelement) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
  token int;
  id bigint;
BEGIN
  EXECUTE (SELECT format('SELECT worker_hash(%L::%s)', distribution_value, format_type(atttypid, atttypmod))
    FROM pg_dist_partition JOIN pg_attribute ON attrelid = logicalrelid
           WHERE logicalrelid = table_name AND attname = column_to_column_name(table_name, partkey)) INTO token;
  SELECT shardid INTO id FROM pg_dist_shard
    WHERE logicalrelid = table_name AND token BETWEEN shardminvalue::int AND shardmaxvalue::int;
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
  EXECUTE (SELECT format('INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE SELECT %2$s FROM pg_temp.standin_copy', rel,
    string_agg(quote_ident(attname), ', ' ORDER BY attnum))
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
  INSERT INTO pg_dist_placement (shardid, shardstate, shardlength, groupid) SELECT id, 1, 0, groupid FROM pg_dist_node
    WHERE groupid = 0;
  PERFORM replicate_reference_tables();
END $$;

CREATE FUNCTION replicate_reference_tables(shard_transfer_mode citus.shard_transfer_mode DEFAULT 'auto') RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
DECLARE
  r record;
  content jsonb;
BEGIN
  PERFORM standin.one_at_a_time();
  FOR r IN SELECT shardid, logicalrelid, nodeid, groupid FROM pg_dist_partition JOIN pg_dist_shard USING (logicalrelid),
    pg_dist_node n
           WHERE partmethod = 'n' AND isactive AND groupid <> 0 AND NOT EXISTS (SELECT FROM pg_dist_placement p
             WHERE p.shardid = pg_dist_shard.shardid AND p.groupid = n.groupid) LOOP
    EXECUTE format('SELECT coalesce(jsonb_agg(t), ''[]'') FROM %s t', standin.qualified(r.logicalrelid)) INTO content;
    PERFORM standin.run(r.nodeid, format('DROP TABLE IF EXISTS %s; %s INSERT INTO %1$s SELECT * FROM jsonb_populate_recordset(NULL::%1$s, %3$L)',
      shard_name(r.logicalrelid, r.shardid, false), standin.table_sql(r.logicalrelid, r.shardid), content));
    INSERT INTO pg_dist_placement (shardid, shardstate, shardlength, groupid) VALUES (r.shardid, 1, 0, r.groupid);
  END LOOP;
  PERFORM standin.sync_metadata();
END $$;

CREATE FUNCTION column_to_column_name(table_name regclass, column_var_text text) RETURNS text LANGUAGE sql STRICT AS
$$ SELECT attname FROM pg_attribute WHERE attrelid = table_name AND attnum = substring(column_var_text
  FROM ':varattno (\d+)')::int $$;

-- After DDL on a distributed table: new indexes, columns, owner and grants for its shards.
CREATE FUNCTION standin.after_ddl() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
DECLARE
  c record;
  p record;
  columns jsonb;
BEGIN
  IF current_setting('standin.quiet', true) = 'on' OR NOT current_setting('citus.enable_ddl_propagation')::bool
    OR NOT EXISTS (SELECT FROM pg_dist_partition) OR NOT citus_is_coordinator() THEN
    RETURN;
  END IF;
  PERFORM set_config('standin.quiet', 'on', true);    -- what follows here is DDL, too
  FOR c IN SELECT command_tag, objid, CASE object_type WHEN 'index' THEN (SELECT indrelid FROM pg_index
    WHERE indexrelid = objid) ELSE objid END AS rel
           FROM pg_event_trigger_ddl_commands() WHERE lower(object_type) IN ('table', 'index', 'schema') LOOP
    FOR p IN SELECT s.logicalrelid AS rel, s.shardid, nodeid, shard_name(s.logicalrelid, s.shardid, false) AS shard
             FROM pg_dist_partition t JOIN pg_dist_shard s USING (logicalrelid) JOIN pg_dist_placement USING (shardid)
               JOIN pg_dist_node USING (groupid)
             WHERE partmethod = 'h' AND (logicalrelid = c.rel OR c.command_tag = 'GRANT')
               ORDER BY nodeid LOOP    -- GRANT names no object
      IF c.command_tag = 'CREATE INDEX' THEN
        PERFORM standin.run(p.nodeid, standin.index_sql(c.objid, p.shardid));
      ELSIF c.command_tag = 'GRANT' THEN
        PERFORM standin.run(p.nodeid, standin.grants_sql(p.rel, p.shard));
      ELSE
        PERFORM standin.run(p.nodeid, standin.change_sql(p.rel, p.shard,
          standin.query(p.nodeid, standin.columns_query(p.shard))));
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
$$ SELECT format('SELECT attname FROM pg_attribute WHERE attrelid = %L::regclass AND attnum > 0 AND NOT attisdropped',
  target) $$;

-- SQL that gives a shard, or the table behind, the columns, the owner and the replica identity of its table. Nothing
-- else that ALTER TABLE changes gets there.
CREATE FUNCTION standin.change_sql(rel regclass, target text, columns jsonb) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
  SELECT coalesce(string_agg(change, '' ORDER BY number), '') || (
    SELECT format('ALTER TABLE %s OWNER TO %I; ALTER TABLE %1$s REPLICA IDENTITY %3$s;', target, pg_get_userbyid(relowner),
      CASE relreplident WHEN 'f' THEN 'FULL' ELSE 'DEFAULT' END)
    FROM pg_class WHERE oid = rel)
  FROM (
    SELECT attnum AS number, format('ALTER TABLE %s ADD COLUMN %s;', target,
      standin.column_sql(rel, attnum, target LIKE 'standin.%')) AS change FROM pg_attribute
    WHERE attrelid = rel AND attnum > 0 AND NOT attisdropped
      AND NOT columns @> jsonb_build_array(jsonb_build_object('attname', attname))
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
  FOR d IN SELECT objid, object_type, schema_name, object_name FROM pg_event_trigger_dropped_objects()
    WHERE object_type IN ('table', 'index') LOOP
    IF d.object_type = 'table' AND EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = d.objid) THEN
      PERFORM standin.run(nodeid, format('DROP TABLE IF EXISTS %I.%I', d.schema_name, d.object_name)) FROM pg_dist_node
        WHERE groupid <> 0 AND isactive;
      INSERT INTO pg_dist_cleanup (operation_id, object_type, object_name, node_group_id, policy_type)
      SELECT nextval('pg_dist_operationid_seq'), 1,
        format('%I.%I', d.schema_name, standin.shard_object(d.object_name, shardid)), groupid, 2
      FROM pg_dist_shard JOIN pg_dist_placement USING (shardid) WHERE logicalrelid = d.objid AND groupid <> 0;
      EXECUTE format('DROP TABLE IF EXISTS standin.table_%s', d.objid);
      DELETE FROM pg_dist_placement WHERE shardid IN (SELECT shardid FROM pg_dist_shard WHERE logicalrelid = d.objid);
      DELETE FROM pg_dist_shard WHERE logicalrelid = d.objid;
      DELETE FROM pg_dist_partition WHERE logicalrelid = d.objid;
      DELETE FROM pg_dist_colocation WHERE colocationid NOT IN (SELECT colocationid FROM pg_dist_partition);
      PERFORM standin.sync_metadata();
    ELSIF d.object_type = 'index' THEN
      -- the name tells the shard's index: it is unique in the schema
      PERFORM standin.run(nodeid, format('DROP INDEX IF EXISTS %I.%I', d.schema_name,
        standin.shard_object(d.object_name, shardid)))
      FROM pg_dist_shard s JOIN pg_dist_placement USING (shardid) JOIN pg_dist_node USING (groupid)
        JOIN pg_class c ON c.oid = logicalrelid
      WHERE c.relnamespace = to_regnamespace(quote_ident(d.schema_name)) AND groupid <> 0;
    END IF;
  END LOOP;
END $$;

CREATE EVENT TRIGGER citus_standin_ddl ON ddl_command_end WHEN TAG IN ('CREATE INDEX', 'ALTER TABLE',
  'GRANT') EXECUTE FUNCTION standin.after_ddl();
CREATE EVENT TRIGGER citus_standin_drop ON sql_drop WHEN TAG IN ('DROP TABLE', 'DROP INDEX', 'DROP SCHEMA',
  'DROP OWNED') EXECUTE FUNCTION standin.after_drop();
