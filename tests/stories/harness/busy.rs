//! A cluster with a writer at work, to which something happens.

use std::{ops::Deref, time::Instant};

use serde_json::Value;

use super::{Story, cluster::Cluster, seconds, setting};
use testkit::load::writer::Writer;

/// A cluster that holds rows, and gets more.
pub struct Busy<'a> {
    story: &'a Story,
    cluster: Cluster,
    rows: u64,
    pub writer: Writer,
}

impl Story {
    /// A settled cluster with rows in it and a writer that gives no row up.
    pub async fn busy_cluster(&self, spec: Value) -> Busy<'_> {
        let rows = setting("STORY_ROWS", 50_000);
        let cluster = self.settled_cluster("talk", spec).await;
        cluster.load(rows).await;
        let writer = cluster.patient_writer().await;
        Busy { story: self, cluster, rows, writer }
    }
}

impl Deref for Busy<'_> {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

impl Busy<'_> {
    /// Waits until everything is as asked for, evenly spread, with nothing left behind.
    pub async fn settles(&self, what: &str, since: Instant, workers: u16) {
        let (settled, _) = self.until_settled_with(workers, 300).await;
        let what = format!("{what}, until settled with {workers} workers");
        self.story.figure(&what, seconds(settled - since));
        self.assert_even(workers.into()).await;
        self.assert_nothing_is_left_behind(workers).await;
    }

    /// Fails unless each row that was acknowledged is there, once. Returns what failed tries were told.
    pub async fn end(self) -> Vec<String> {
        let ledger = self.writer.stop().await;
        let figures = ledger.phase("all");
        self.story.figure("rows written meanwhile", figures.writes);
        self.story.figure("tries that failed", figures.failed_tries);
        self.story.figure("longest write", seconds(figures.longest));
        self.cluster.assert_kept(&ledger, self.rows).await;
        figures.words
    }
}
