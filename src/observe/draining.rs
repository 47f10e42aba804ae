//! The look at what workers that are to go hold beside what is the cluster's own. Made only when a step is to take
//! something from such a worker next; that nothing was found is never remembered.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use futures::future::join_all;

use super::postgres::PostgresObserver;
use crate::{
    api::Node,
    citus::{self, ContentsQuestion},
    snapshot::{Contents, DistNode, Failure, Observed, Snapshot},
};

/// The whole look at one worker. Its parts have shorter deadlines.
const DEADLINE: Duration = Duration::from_secs(15);
/// Each look connects to all databases of a server: while something keeps a worker from going, it is made no more
/// often. Nothing is done on the strength of an old one, which only says no.
const AGAIN: Duration = Duration::from_secs(8);

impl PostgresObserver<'_> {
    /// What is on each of these workers.
    pub(super) async fn leaving(
        &self,
        seen: &Snapshot,
        nodes: BTreeSet<Node>,
    ) -> BTreeMap<Node, Observed<Contents>> {
        let told = self.cache.with(|cache| {
            cache.contents.retain(|node, (_, at)| nodes.contains(node) && at.elapsed() < AGAIN);
            cache.contents.clone()
        });
        let looks = nodes.into_iter().map(|node| {
            let told = told.get(&node);
            async move {
                if let Some((found, _)) = told {
                    return (node, found.clone());
                }
                let found = self.contents(seen, node).await;
                if !found.known().is_some_and(Contents::is_empty) {
                    let now = (found.clone(), Instant::now());
                    self.cache.with(|cache| cache.contents.insert(node, now));
                }
                (node, found)
            }
        });
        join_all(looks).await.into_iter().collect()
    }

    async fn contents(&self, seen: &Snapshot, node: Node) -> Observed<Contents> {
        match self.observe_contents_of(seen, node).await {
            Ok(found) => Observed::Known(found),
            Err(failure) => Observed::Unknown(failure.message),
        }
    }

    async fn observe_contents_of(&self, seen: &Snapshot, node: Node) -> Result<Contents, Failure> {
        let connection = self.connection(node).await?;
        let way = self.access.route(node, self.pods.get(&node))?;
        let citus = seen.citus.known();
        let address = self.access.address(node);
        let is_its = |row: &&DistNode| row.name == address && row.port == i32::from(citus::PORT);
        let row = citus.and_then(|citus| citus.nodes.iter().find(is_its));
        let left = match (citus, row) {
            (Some(citus), Some(row)) if citus.cleanup_in_all > citus.cleanup.len() => {
                let coordinator = self.connection(Node::Coordinator).await?;
                let look = citus::commands::cleanup_of(&coordinator, row.group_id);
                self.timed(&coordinator, ("cleanup_of", DEADLINE), look).await?
            }
            (Some(citus), Some(row)) => {
                let left = citus.cleanup.iter().filter(|left| left.group_id == row.group_id);
                left.map(|left| left.object_name.clone()).collect()
            }
            _ => Vec::new(),
        };
        let cleanup: Vec<&str> = left.iter().map(String::as_str).collect();
        let ask = ContentsQuestion { cleanup: &cleanup };
        let look = citus::observe_contents(&connection, (&way.0, way.1), &ask);
        let mut found = self.timed(&connection, ("observe_contents", DEADLINE), look).await?;
        if let Some(row) = row {
            let coordinator = self.connection(Node::Coordinator).await?;
            let look = citus::observe_copies(&coordinator, row.group_id);
            found.copies = self.timed(&coordinator, ("observe_copies", DEADLINE), look).await?;
        }
        Ok(found)
    }
}
