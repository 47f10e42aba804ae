//! Parts of statements that several of them share. No statement of its own lives here.

/// The tables whose shards move: not reference tables (a placement on every node) and not local ones.
macro_rules! moving {
    () => {
        "(t.partmethod <> 'n' OR (t.repmodel = 's' AND t.colocationid <> 0))"
    };
}
/// Citus' monitor runs, which ends tasks that are being cancelled (`TaskConcurrentCancelCheck`).
macro_rules! monitored {
    () => {
        "EXISTS (SELECT FROM pg_catalog.pg_stat_activity WHERE datname = current_database()
          AND backend_type LIKE 'Citus Background Task Queue Monitor%')"
    };
}
/// The qualified name of a shard's table, of `logicalrelid` and `shardid`: shard_name() leaves out the schema `public`.
/// Not from a joined pg_namespace: the planner may try that with schemas of other tables, and such names are errors.
macro_rules! shard_table {
    () => {
        "CASE (SELECT nspname FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace WHERE pg_class.oid = logicalrelid)
          WHEN 'public' THEN 'public.' ELSE '' END || shard_name(logicalrelid, shardid)"
    };
}
pub(super) use {monitored, moving, shard_table};
