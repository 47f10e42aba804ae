//! What the snapshot holds of the coordinator's Citus catalog, jobs aside. Plain data.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{Job, Move, Observed, Obstacles, Pins, PlanUnknown};

/// The coordinator's Citus catalog.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Citus {
    /// pg_dist_node.
    pub nodes: Vec<DistNode>,
    /// Placements and sizes by `groupid`.
    pub groups: BTreeMap<i32, Group>,
    /// Of each colocation group the placements of one table, in the order in which Citus goes through them; `None` when
    /// not looked at since the last job. With sizes.
    pub placements: Option<Vec<Placement>>,
    /// pg_dist_partition: the first thousand.
    pub tables: Vec<DistTable>,
    /// The newest job of type `rebalance` in pg_dist_background_job.
    pub job: Option<Job>,
    /// Rebalance jobs that ended `failed` since the last that ended `finished`: what was cancelled is no failure.
    pub failed_jobs: u32,
    /// pg_dist_cleanup: the first thousand rows of each member, and of all groups that are no member's.
    pub cleanup: Vec<CleanupRow>,
    /// How many rows it has.
    pub cleanup_in_all: usize,
    /// What Citus would move now (`get_rebalance_table_shards_plan`); empty when nothing. Not asked for while a job is open.
    pub planned_moves: Option<Observed<Vec<Move>, PlanUnknown>>,
    /// The same with the groups that are pinned staying where they are; only while there are such.
    pub planned_moves_when_pinned: Option<Observed<Vec<Move>, PlanUnknown>>,
    /// Groups that the strategy of the operator's own keeps where they are.
    pub pins: Option<Pins>,
    /// What would keep Citus from moving tables.
    pub obstacles: Obstacles,
    /// `citus_rebalance_start` has the argument `parallel_transfer_colocated_shards`.
    pub parallel_colocated: bool,
    /// The application's role exists.
    pub owner_exists: bool,
    /// Extensions in the application's database.
    pub extensions: BTreeSet<String>,
    /// uid of the Secret whose password the role has (`dialog.owner_secret` of the database).
    pub owner_secret: Option<String>,
    /// Hash of the schema SQL that was applied (`dialog.schema_hash` of the database).
    pub schema_hash: Option<String>,
}

/// A row of pg_dist_node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs)] // columns of pg_dist_node
pub struct DistNode {
    pub node_id: i32,
    pub group_id: i32,
    pub name: String,
    pub port: i32,
    pub active: bool,
    pub has_metadata: bool,
    pub metadata_synced: bool,
    pub should_have_shards: bool,
}

/// What a group holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Group {
    /// Placements of distributed tables (reference tables do not count).
    pub shards: i64,
    /// Bytes of them; `None` when not looked at lately.
    pub bytes: Option<i64>,
}

/// A shard on a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(i64, i64, i32, Option<i64>)", into = "(i64, i64, i32, Option<i64>)")]
pub struct Placement {
    /// `shardid`.
    pub shard: i64,
    /// Which shards are evened out together: `colocationid`, or what is unique for a table without one.
    pub colocation: i64,
    /// `groupid`.
    pub group_id: i32,
    /// Bytes of the shard and of all that are colocated with it; `None` when a node did not tell.
    pub bytes: Option<i64>,
}

// There may be tens of thousands: as a JSON array each is a quarter as long.
impl From<(i64, i64, i32, Option<i64>)> for Placement {
    fn from((shard, colocation, group_id, bytes): (i64, i64, i32, Option<i64>)) -> Self {
        Self { shard, colocation, group_id, bytes }
    }
}
impl From<Placement> for (i64, i64, i32, Option<i64>) {
    fn from(placement: Placement) -> Self {
        (placement.shard, placement.colocation, placement.group_id, placement.bytes)
    }
}

/// A distributed or reference table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DistTable {
    /// Qualified name.
    pub name: String,
    /// Hash-distributed (moves), not a reference or local table.
    pub distributed: bool,
    /// It has a primary key or another replica identity.
    pub replica_identity: bool,
    /// `colocationid`.
    pub colocation_id: i32,
}

/// A row of pg_dist_cleanup.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs)] // columns of pg_dist_cleanup
pub struct CleanupRow {
    pub record_id: i64,
    pub group_id: i32,
    pub object_type: i32,
    pub object_name: String,
}
