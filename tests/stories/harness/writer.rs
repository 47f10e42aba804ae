//! The load: rows that are loaded at once, a writer that never gives a key up, and the comparison of both with the table.

use std::time::Duration;

use super::cluster::Cluster;
use testkit::load::{
    access::Access,
    ledger::Ledger,
    rows,
    writer::{Pace, Writer},
};

impl Cluster {
    /// How the application gets in: by its own Secret, through its own Service.
    pub async fn access(&self) -> Access {
        Access::of_cluster(&self.client, &self.namespace, &self.name).await.unwrap()
    }

    /// A writer as the application: a hundred rows a second over two connections.
    pub async fn writer(&self) -> Writer {
        let pace = Pace { connections: 2, rows_per_second: 100, ..Pace::default() };
        Writer::start(&self.access().await, &pace, "all")
    }

    /// The same where a node may be away for minutes: each row is tried for half an hour.
    pub async fn patient_writer(&self) -> Writer {
        let patience = Duration::from_mins(30);
        let pace = Pace { connections: 2, rows_per_second: 100, patience };
        Writer::start(&self.access().await, &pace, "all")
    }

    /// Loads the first rows of the synthetic dialog.
    pub async fn load(&self, rows: u64) {
        rows::load(&self.access().await, rows).await.unwrap();
    }

    /// Fails unless the table holds what was loaded and what the writer's ledger says, each row once, and nothing else.
    pub async fn assert_kept(&self, ledger: &Ledger, loaded: u64) {
        assert_eq!(ledger.failed_for_good(), [], "rows that failed for good: {:?}", ledger.phase("all"));
        let differences = ledger.compare(&self.coordinator().await, loaded).await.unwrap();
        assert!(differences.is_none(), "{differences:?}");
        assert!(!ledger.writes.is_empty(), "the writer wrote");
    }
}
