//! What is kept of the reports about a cluster until the next one: to compare with, and no decision hangs on it.

use std::{collections::BTreeMap, time::Instant};

use crate::{
    api::{DialogClusterStatus, Node},
    kubernetes::caches::CACHE_LAG,
    plan::RestartCause,
};

/// What was reported of one cluster.
#[derive(Default)]
pub struct ReportCache {
    /// Nodes that were restarted since the last rolling restart was finished, and why.
    pub rolling: BTreeMap<Node, RestartCause>,
    /// The status written last, and when.
    pub status: Option<(DialogClusterStatus, Instant)>,
}

impl ReportCache {
    /// The status that the last write left, as long as the cache may not show it.
    #[must_use]
    pub fn status(&self, cached: Option<&DialogClusterStatus>) -> DialogClusterStatus {
        let recent = self.status.as_ref().filter(|(_, since)| since.elapsed() < CACHE_LAG);
        recent.map(|(status, _)| status).or(cached).cloned().unwrap_or_default()
    }
}
