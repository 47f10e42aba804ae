//! A moment that is over in a blink, held open by a transaction: what waits for it is in the middle until it ends.

use std::time::Duration;

use dialog_operator::api::Node;
use tokio_postgres::Client;

use super::{cluster::Cluster, sql, wait};

/// A transaction that somebody will wait for. It ends when this is dropped.
pub struct Held {
    client: Client,
}

impl Cluster {
    /// No move from this worker gets beyond making its replication slot, for which each open transaction has to end.
    /// Writers are not in the way of it, nor it in theirs.
    pub async fn hold_moves_from(&self, source: Node) -> Held {
        let client = self.admin(source).await;
        sql::run(&client, "BEGIN; SELECT pg_current_xact_id()").await;
        Held { client }
    }

    /// No `citus_add_node` gets beyond its first lock. Readers of the catalog are not in the way.
    pub async fn hold_registrations(&self) -> Held {
        let client = self.coordinator().await;
        sql::run(&client, "BEGIN; LOCK TABLE pg_dist_node IN EXCLUSIVE MODE").await;
        Held { client }
    }
}

impl Held {
    /// Waits until somebody waits for it.
    pub async fn until_waited_for(&self) {
        let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY (pg_blocking_pids(pid))";
        wait::eventually("somebody is held up", Duration::from_mins(3), async || {
            if sql::value::<i64>(&self.client, waiting).await > 0 { Ok(()) } else { Err("nobody waits") }
        })
        .await;
    }
}
