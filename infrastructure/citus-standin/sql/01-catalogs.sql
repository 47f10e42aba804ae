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
 * These files are one script, in the order of their numbers.
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
    EXECUTE format('ALTER %s citus.%I SET SCHEMA pg_catalog', CASE r.relkind WHEN 'r' THEN 'TABLE' ELSE 'SEQUENCE' END,
      r.relname);
    IF r.relname <> 'pg_dist_authinfo' THEN
      EXECUTE format('GRANT SELECT ON pg_catalog.%I TO PUBLIC', r.relname);
    END IF;
  END LOOP;
END $$;
GRANT USAGE ON SCHEMA citus TO PUBLIC;
