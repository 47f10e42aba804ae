-- Sizes, views, and the plan of a rebalance.

-- sizes and views

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

CREATE FUNCTION citus_total_relation_size(logicalrelid regclass, fail_on_error bool DEFAULT true) RETURNS bigint
LANGUAGE sql STRICT AS
$$ SELECT sum(size)::bigint FROM citus_shard_sizes() JOIN pg_dist_shard s ON s.shardid = shard_id WHERE s.logicalrelid = $1 $$;
CREATE FUNCTION citus_table_size(logicalrelid regclass) RETURNS bigint LANGUAGE sql STRICT AS $$ SELECT citus_total_relation_size($1) $$;
CREATE FUNCTION citus_relation_size(logicalrelid regclass) RETURNS bigint LANGUAGE sql STRICT AS $$ SELECT citus_total_relation_size($1) $$;

CREATE VIEW citus.citus_shards AS
  SELECT s.logicalrelid AS table_name, s.shardid, shard_name(s.logicalrelid, s.shardid) AS shard_name,
         CASE t.partmethod WHEN 'h' THEN 'distributed' ELSE 'reference' END AS citus_table_type,
           t.colocationid AS colocation_id,
         n.nodename, n.nodeport, z.size AS shard_size
  FROM pg_dist_shard s JOIN pg_dist_placement p USING (shardid) JOIN pg_dist_node n USING (groupid)
    JOIN pg_dist_partition t USING (logicalrelid)
  LEFT JOIN (SELECT shard_id, max(size) AS size FROM citus_shard_sizes() GROUP BY 1) z ON z.shard_id = s.shardid
  ORDER BY s.logicalrelid::text, s.shardid;
ALTER VIEW citus.citus_shards SET SCHEMA pg_catalog;
CREATE VIEW public.citus_tables AS
  SELECT t.logicalrelid AS table_name, CASE t.partmethod WHEN 'h' THEN 'distributed' ELSE 'reference' END AS citus_table_type,
         coalesce(column_to_column_name(t.logicalrelid, t.partkey), '<none>') AS distribution_column,
           t.colocationid AS colocation_id,
         pg_size_pretty(citus_total_relation_size(t.logicalrelid)) AS table_size,
         (SELECT count(*) FROM pg_dist_shard s WHERE s.logicalrelid = t.logicalrelid) AS shard_count,
         pg_get_userbyid(c.relowner) AS table_owner, 'heap'::name AS access_method
  FROM pg_dist_partition t JOIN pg_class c ON c.oid = t.logicalrelid ORDER BY 1;
CREATE VIEW citus.citus_nodes AS
  SELECT nodename, nodeport, CASE WHEN groupid = 0 THEN 'coordinator' ELSE 'worker' END AS role, isactive AS active
    FROM pg_dist_node;
ALTER VIEW citus.citus_nodes SET SCHEMA pg_catalog;
GRANT SELECT ON pg_catalog.citus_shards, public.citus_tables, pg_catalog.citus_nodes TO PUBLIC;

-- planning

CREATE FUNCTION citus_shard_cost_1(bigint) RETURNS real LANGUAGE sql AS $$ SELECT 1.0::real $$;
CREATE FUNCTION citus_shard_cost_by_disk_size(bigint) RETURNS real LANGUAGE sql STRICT AS
$$ SELECT (sum(size) + 104857600)::real FROM citus_shard_sizes() WHERE shard_id = ANY (standin.colocated($1)) $$;
CREATE FUNCTION citus_node_capacity_1(int) RETURNS real LANGUAGE sql AS $$ SELECT 1.0::real $$;
CREATE FUNCTION citus_shard_allowed_on_node_true(bigint, int) RETURNS bool LANGUAGE sql AS $$ SELECT true $$;
INSERT INTO pg_dist_rebalance_strategy VALUES
  ('by_shard_count', false, 'citus_shard_cost_1', 'citus_node_capacity_1', 'citus_shard_allowed_on_node_true', 0, 0, 0),
  ('by_disk_size', true, 'citus_shard_cost_by_disk_size', 'citus_node_capacity_1', 'citus_shard_allowed_on_node_true', 0.1,
    0.01, 0.5);

-- A shard and those of colocated tables that go with it.
CREATE FUNCTION standin.colocated(shard bigint) RETURNS bigint[] LANGUAGE sql STABLE AS $$
  SELECT array_agg(o.shardid ORDER BY o.shardid) FROM pg_dist_shard s JOIN pg_dist_partition t USING (logicalrelid)
  JOIN pg_dist_partition u USING (colocationid)
    JOIN pg_dist_shard o ON o.logicalrelid = u.logicalrelid AND o.shardminvalue = s.shardminvalue
  WHERE s.shardid = shard AND t.partmethod = 'h'
$$;

-- The moves: first everything off nodes that should have no shards, then from the fullest node to the emptiest
-- while that is worth it. Groups with fewer shards than nodes are taken together.
CREATE FUNCTION standin.plan(strategy name, threshold real, drain_only bool) RETURNS TABLE (shard bigint, source int,
  target int)
LANGUAGE plpgsql AS $$
DECLARE
  st pg_dist_rebalance_strategy;
  limit_ float8;
  colocations int[];
  nodes int[]; load float8[];
  ids bigint[]; costs float8[]; places int[]; starts int[]; turn int[]; moved int := 0;
  hi int; lo int; best int; average float8;
BEGIN
  SELECT * INTO st FROM pg_dist_rebalance_strategy s
    WHERE CASE WHEN strategy IS NULL THEN default_strategy ELSE s.name = strategy END;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'could not find rebalance strategy with name %', strategy USING ERRCODE = 'internal_error';
  END IF;
  limit_ := greatest(coalesce(threshold, st.default_threshold), st.minimum_threshold);
  SELECT array_agg(nodeid ORDER BY nodeid) INTO nodes FROM pg_dist_node
    WHERE shouldhaveshards AND isactive AND noderole = 'primary';
  FOR colocations IN
    SELECT array_agg(colocationid) FROM pg_dist_colocation c
      WHERE EXISTS (SELECT FROM pg_dist_partition t WHERE t.colocationid = c.colocationid AND partmethod = 'h')
    GROUP BY CASE WHEN shardcount < cardinality(nodes) THEN 0 ELSE colocationid END ORDER BY min(colocationid)
  LOOP
    WITH sizes AS MATERIALIZED (SELECT shard_id, max(size) AS size FROM citus_shard_sizes()
      WHERE st.shard_cost_function::text = 'citus_shard_cost_by_disk_size' GROUP BY 1),
    units AS (
      SELECT min(s.shardid) AS id, n.nodeid AS place,
             CASE st.shard_cost_function::text WHEN 'citus_shard_cost_by_disk_size' THEN 104857600 + coalesce(sum(z.size), 0)
               ELSE 1 END::float8 AS cost
      FROM pg_dist_partition t JOIN pg_dist_shard s USING (logicalrelid) JOIN pg_dist_placement p USING (shardid)
        JOIN pg_dist_node n USING (groupid)
      LEFT JOIN sizes z ON z.shard_id = s.shardid
      WHERE t.partmethod = 'h' AND t.colocationid = ANY (colocations) GROUP BY t.colocationid, s.shardminvalue, n.nodeid)
    SELECT array_agg(id ORDER BY id), array_agg(cost ORDER BY id), array_agg(place ORDER BY id),
      array_agg(0 ORDER BY id) INTO ids, costs, places, turn FROM units;
    CONTINUE WHEN ids IS NULL OR nodes IS NULL;
    starts := places;
    SELECT array_agg(coalesce((SELECT sum(c) FROM unnest(costs, places) u(c, p) WHERE p = n), 0) ORDER BY n) INTO load
      FROM unnest(nodes) n;
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

CREATE FUNCTION get_rebalance_table_shards_plan(relation regclass DEFAULT NULL, threshold real DEFAULT NULL,
  max_shard_moves int DEFAULT 1000000,
    excluded_shard_list bigint[] DEFAULT '{}', drain_only bool DEFAULT false, rebalance_strategy name DEFAULT NULL,
      improvement_threshold real DEFAULT NULL)
RETURNS TABLE (table_name regclass, shardid bigint, shard_size bigint, sourcename text, sourceport int, targetname text,
  targetport int) LANGUAGE sql AS $$
  SELECT s.logicalrelid, s.shardid, 0::bigint, f.nodename, f.nodeport, t.nodename, t.nodeport
  FROM standin.plan(rebalance_strategy, threshold, drain_only) WITH ORDINALITY p(shard, source, target, o)
  JOIN pg_dist_node f ON f.nodeid = source JOIN pg_dist_node t ON t.nodeid = target
  JOIN pg_dist_shard s ON s.shardid = ANY (standin.colocated(shard))
  WHERE (relation IS NULL OR s.logicalrelid = relation) AND o <= max_shard_moves AND s.shardid <> ALL (excluded_shard_list)
    ORDER BY o, s.shardid
$$;
