//! The look at who holds up what goes on: made only while a job is open, or something waits for a lock again and again.
//! Nobody is disturbed by it.

use std::{collections::BTreeMap, time::Duration};

use futures::future::join_all;
use tokio::time::timeout;

use super::postgres::PostgresObserver;
use crate::{
    api::Node,
    citus::{self, BlockersQuestion},
    snapshot::{Citus, Observed, PlanUnknown, Postgres},
};

/// The look at one node.
const DEADLINE: Duration = Duration::from_secs(5);
/// The same where the node's server could not be looked at: its session is there, or it takes too long.
const DEADLINE_UNSEEN: Duration = Duration::from_millis(1500);

impl PostgresObserver<'_> {
    /// Who holds up a move, or a step that waits for a lock, by node.
    pub(super) async fn blocking_moves(
        &self,
        postgres: &BTreeMap<Node, Observed<Postgres>>,
        citus: &Observed<Citus>,
    ) -> BTreeMap<Node, Vec<String>> {
        let job = citus.known().and_then(|citus| citus.job.as_ref()).filter(|job| job.is_open());
        let any = self.cache.with(|cache| cache.refusals.waits_for_locks())
            || citus.known().is_some_and(|citus| job.is_none() && self.is_unanswered(citus));
        if job.is_none() && !any {
            return BTreeMap::new();
        }
        let rows = citus.known().map(|citus| citus.nodes.as_slice()).unwrap_or_default();
        let nodes: Vec<(i32, String)> =
            rows.iter().map(|row| (row.node_id, format!("{}:{}", row.name, row.port))).collect();
        let coordinator = rows.iter().find(|row| row.group_id == 0).map_or(0, |row| row.node_id);
        let tasks = job.into_iter().flat_map(|job| &job.tasks).filter(|task| task.runs());
        let pids: Vec<i32> = tasks.filter_map(|task| task.pid).collect();
        let gpids: Vec<i64> =
            pids.iter().map(|pid| i64::from(coordinator) * 10_000_000_000 + i64::from(*pid)).collect();
        let looks = postgres.iter().map(|(node, seen)| {
            let pids = if *node == Node::Coordinator { pids.as_slice() } else { &[] };
            let ask = BlockersQuestion { gpids: &gpids, pids, any, nodes: &nodes };
            async move {
                let within = if seen.known().is_some() { DEADLINE } else { DEADLINE_UNSEEN };
                let connection = timeout(within, self.connection(*node)).await.ok()?.ok()?;
                let look = citus::blockers(&connection, &ask);
                let found = self.timed(&connection, ("blockers", DEADLINE), look).await.ok()?;
                (!found.is_empty()).then_some((*node, found))
            }
        });
        join_all(looks).await.into_iter().flatten().collect()
    }

    /// Something of the catalog was asked for and not answered: a plan, or sizes of shards that a drain needs.
    fn is_unanswered(&self, citus: &Citus) -> bool {
        let sized =
            |citus: &Citus| citus.groups.values().all(|group| group.shards == 0 || group.bytes.is_some());
        matches!(citus.planned_moves, Some(Observed::Unknown(PlanUnknown::NotAnswered(_))))
            || self.a_drain_may_begin(citus) && !sized(citus)
    }
}
