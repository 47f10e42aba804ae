//! The strategy of the operator's own: groups that cannot be moved stay where they are, everything else moves as by the
//! strategy that it is made of. What is pinned was decided by the planner.

use std::time::Duration;

use tokio_postgres::types::Type;

use super::{
    connection::{CLUSTER_WRITE, Connection, WRITE},
    error::SqlError,
    obstacles::PINNING,
    quote,
    transaction::begin,
};
use crate::snapshot::Pins;

/// The functions of a strategy, and its three thresholds.
const BASE: &str = "SELECT json_build_object('allowed', shard_allowed_on_node_function::oid::regproc::text,
    'cost', shard_cost_function::oid::regproc::text, 'capacity', node_capacity_function::oid::regproc::text,
    'thresholds', default_threshold || ', ' || minimum_threshold || ', ' || improvement_threshold)
  FROM pg_catalog.pg_dist_rebalance_strategy WHERE name = $1::text::name";

#[derive(serde::Deserialize)]
struct Base {
    allowed: String,
    cost: String,
    capacity: String,
    thresholds: String,
}

/// Makes the strategy anew for these groups, or removes it when there are none. On the coordinator alone: nothing of it
/// is for workers.
///
/// A schema of that name that is somebody else's is left alone: its owner could put functions there, and Citus calls
/// those of a strategy.
///
/// # Errors
/// Any [`SqlError`].
pub async fn pin_groups(connection: &Connection, pins: &Pins) -> Result<(), SqlError> {
    let (mut client, call) =
        connection.call("the strategy that keeps groups where they are", CLUSTER_WRITE).await?;
    let transaction = begin(&mut client, &call, Duration::from_secs(5), WRITE).await?;
    let groups: Vec<String> = pins.groups.iter().map(ToString::to_string).collect();
    let statements = if groups.is_empty() {
        format!(
            "{REMOVE} DROP FUNCTION IF EXISTS {PINNING}.allowed(bigint, int); DROP SCHEMA IF EXISTS {PINNING}"
        )
    } else {
        let row = call.wait(transaction.query_typed_one(BASE, &[(&pins.base, Type::TEXT)])).await?;
        let base: Base = call.json(&row)?;
        let comment = serde_json::to_string(pins).map_err(|error| call.misunderstood(&error))?;
        format!(
            "{REMOVE}
            CREATE SCHEMA IF NOT EXISTS {PINNING};
            DO $check$ BEGIN
              IF NOT (SELECT rolsuper FROM pg_catalog.pg_roles JOIN pg_catalog.pg_namespace n ON n.nspowner = pg_roles.oid
                WHERE nspname = '{PINNING}') THEN
                RAISE EXCEPTION 'the schema {PINNING} is not the operator''s, so that groups that cannot be moved keep all others from moving'
                  USING HINT = 'Drop or rename it';
              END IF;
            END $check$;
            DROP FUNCTION IF EXISTS {PINNING}.allowed(bigint, int);
            CREATE FUNCTION {PINNING}.allowed(shard bigint, node int) RETURNS boolean LANGUAGE sql STABLE
              SET search_path = pg_catalog, pg_temp AS $allowed$
                SELECT CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_dist_shard s
                    JOIN pg_catalog.pg_dist_partition t USING (logicalrelid)
                    WHERE s.shardid = $1 AND t.colocationid IN ({list}))
                  THEN EXISTS (SELECT FROM pg_catalog.pg_dist_placement p JOIN pg_catalog.pg_dist_node n USING (groupid)
                    WHERE p.shardid = $1 AND n.nodeid = $2)
                  ELSE {allowed}($1, $2) END $allowed$;
            COMMENT ON FUNCTION {PINNING}.allowed(bigint, int) IS {comment};
            GRANT USAGE ON SCHEMA {PINNING} TO PUBLIC;
            SELECT pg_catalog.citus_add_rebalance_strategy('{PINNING}', '{cost}', '{capacity}',
              '{PINNING}.allowed', {thresholds})",
            list = groups.join(", "),
            allowed = base.allowed,
            cost = base.cost.replace('\'', "''"),
            capacity = base.capacity.replace('\'', "''"),
            thresholds = base.thresholds,
            comment = quote::literal(&comment),
        )
    };
    call.wait(transaction.batch_execute(&statements)).await?;
    call.wait(transaction.commit()).await
}

const REMOVE: &str = "SET LOCAL citus.enable_ddl_propagation = off;
    DELETE FROM pg_catalog.pg_dist_rebalance_strategy WHERE name = 'dialog_operator';";
