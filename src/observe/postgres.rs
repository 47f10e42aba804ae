//! The SQL part of a snapshot: every server in parallel, then what hangs on what they said. Nothing is written, and
//! a server that does not answer in time is `Unknown` in its words and holds up nobody.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{TryFutureExt, future::join_all};
use jiff::Timestamp;
use rand::prelude::IndexedRandom;
use tokio::time::timeout;

use super::{
    cache::{CacheHandle, CachedSizes},
    reach::hinted,
};
use crate::{
    api::{Desired, Node},
    citus::{self, CatalogQuestion, Connection, NodeConnector, NodeQuestion, PORT},
    metrics::Metrics,
    resources,
    snapshot::{
        Attempt, Cause, Citus, ConnectionCheck, Failure, FailureReason, Observed, PlanUnknown, Pod, Postgres,
    },
};

/// No look at a server takes longer, its connection included.
const DEADLINE: Duration = Duration::from_secs(5);
/// The same for a pod that is not ready: a host that is not there yet answers nothing at all, and what comes next
/// would wait for it.
const DEADLINE_NOT_READY: Duration = Duration::from_millis(1500);
/// The catalog's own deadlines are shorter: this one is the last resort. Sizes and plans ask every worker.
const DEADLINE_CATALOG: Duration = Duration::from_secs(12);
/// A node gives up on another one after five seconds (`connect_timeout`), and says so.
const DEADLINE_CHECK: Duration = Duration::from_secs(8);
/// All checks together: those that are not made count as not connected, and are made the next time.
const DEADLINE_CHECKS: Duration = Duration::from_secs(15);
/// Sizes ask every worker: they are looked at no more often, but for a job that has just begun or ended.
const SIZES_EVERY: Duration = Duration::from_mins(5);

/// What is looked at, and with what.
pub struct PostgresObserver<'a> {
    /// The way in.
    pub access: NodeConnector<'a>,
    /// What is wanted.
    pub desired: &'a Desired,
    /// The pods.
    pub pods: &'a BTreeMap<Node, Pod>,
    /// What is remembered.
    pub cache: CacheHandle,
    /// For the time that statements took.
    pub metrics: &'a Metrics,
}

/// What was seen.
pub struct PostgresObservation {
    /// By node.
    pub postgres: BTreeMap<Node, Observed<Postgres>>,
    /// The coordinator's catalog.
    pub citus: Observed<Citus>,
    /// Connections tried.
    pub connections: Vec<ConnectionCheck>,
    /// Sessions that keep what moves left behind, by worker.
    pub blocking_sessions: BTreeMap<Node, Vec<String>>,
    /// Sessions that hold up a move or a step, by node.
    pub blocking_moves: BTreeMap<Node, Vec<String>>,
    /// Servers of ready pods that took too long to answer, and did not the time before.
    pub late: BTreeSet<Node>,
}

impl PostgresObserver<'_> {
    /// Looks at every server.
    pub async fn look(&self) -> PostgresObservation {
        // A worker's are those of the coordinator and more.
        let settings: Vec<String> = resources::settings(self.desired, Node::Worker(0)).into_keys().collect();
        let names: Vec<&str> = settings.iter().map(String::as_str).collect();
        let question = NodeQuestion {
            database: &self.desired.database.name,
            owner: &self.desired.database.owner,
            settings: &names,
        };
        let nodes: Vec<Node> =
            self.pods.iter().filter(|(_, pod)| pod.address.is_some()).map(|(node, _)| *node).collect();
        // The catalog is looked at after the coordinator's server, over the same connection, while the workers answer.
        let looks = nodes.into_iter().map(|node| async move {
            let seen = self.node(node, &question).await;
            let citus = if node == Node::Coordinator { Some(self.catalog(&seen).await) } else { None };
            (node, seen, citus)
        });
        let mut postgres = BTreeMap::new();
        let mut citus = Observed::Unknown("the coordinator has no pod with an address yet".to_owned());
        for (node, seen, catalog) in join_all(looks).await {
            citus = catalog.unwrap_or(citus);
            postgres.insert(node, seen);
        }
        let (connections, blocking_sessions) =
            tokio::join!(self.connections(&postgres, &citus), self.blocking_sessions(&postgres, &citus));
        let blocking_moves = self.blocking_moves(&postgres, &citus).await;
        let late = self.cache.with(|cache| {
            let first = cache.slow_nodes.iter().filter(|(_, times)| **times == 1);
            first.filter_map(|(act, _)| server(act)).collect()
        });
        PostgresObservation { postgres, citus, connections, blocking_sessions, blocking_moves, late }
    }

    /// Who keeps what moves left on a worker that was drained from being dropped. Asked only while there is such a one.
    async fn blocking_sessions(
        &self,
        postgres: &BTreeMap<Node, Observed<Postgres>>,
        citus: &Observed<Citus>,
    ) -> BTreeMap<Node, Vec<String>> {
        let mut blocking_sessions = BTreeMap::new();
        let Some(citus) = citus.known() else { return blocking_sessions };
        for node in postgres.keys().filter(|node| node.is_worker()) {
            let address = self.access.address(*node);
            let left: Vec<&str> = citus
                .nodes
                .iter()
                .filter(|row| row.name == address && !row.should_have_shards)
                .flat_map(|row| citus.cleanup.iter().filter(|left| left.group_id == row.group_id))
                .map(|left| left.object_name.as_str())
                .collect();
            if left.is_empty() {
                continue;
            }
            let Ok(connection) = self.connection(*node).await else { continue };
            let look = citus::lock_holders(&connection, &left);
            if let Ok(found) = self.timed(&connection, ("lock_holders", DEADLINE), look).await {
                blocking_sessions.insert(*node, found);
            }
        }
        blocking_sessions
    }

    /// A session, in the time that a look may take.
    pub(super) async fn connection(&self, node: Node) -> Result<Arc<Connection>, Failure> {
        let pod = self.pods.get(&node);
        let deadline = if pod.is_some_and(|pod| pod.ready) { DEADLINE } else { DEADLINE_NOT_READY };
        match timeout(deadline, self.access.connection(node, pod)).await {
            Ok(connection) => connection.map_err(Failure::from),
            Err(_) => Err(deadline_exceeded(format!("no connection within {} s", deadline.as_secs_f32()))),
        }
        .map_err(|failure| {
            if pod.is_some_and(|pod| pod.ready) {
                Failure { message: hinted(failure.message), ..failure }
            } else {
                failure
            }
        })
    }

    pub(super) async fn timed<T, E: Into<Failure>>(
        &self,
        connection: &Connection,
        (statement, deadline): (&'static str, Duration),
        look: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Failure> {
        let started = Instant::now();
        let answer = timeout(deadline, look).await;
        self.metrics.sql(statement, started.elapsed());
        if let Ok(answer) = answer {
            return answer.map_err(Into::into);
        }
        connection.poison();
        Err(deadline_exceeded(format!("no answer within {} s", deadline.as_secs())))
    }

    /// What was seen. Who refuses it again and again is remembered.
    fn record_failure<T>(&self, act: &Attempt, looked: Result<T, Failure>) -> Observed<T> {
        let node = if let Attempt::Observation(node) = act { Some(*node) } else { None };
        let is_late = looked.as_ref().is_err_and(|failure| failure.reason == FailureReason::DeadlineExceeded);
        let is_ready = |node: &Node| self.pods.get(node).is_some_and(|pod| pod.ready);
        self.cache.with(|cache| {
            if is_late && server(act).as_ref().is_some_and(is_ready) {
                *cache.slow_nodes.entry(act.clone()).or_default() += 1;
            } else {
                cache.slow_nodes.remove(act);
            }
        });
        self.cache.with(|cache| match &looked {
            Ok(_) => cache.refusals.succeeded(act),
            Err(failure) => {
                let generation = self.desired.generation;
                cache.refusals.failed((act, node), failure, generation, Timestamp::now());
            }
        });
        looked.map_or_else(|failure| Observed::Unknown(failure.message), Observed::Known)
    }

    async fn node(&self, node: Node, question: &NodeQuestion<'_>) -> Observed<Postgres> {
        let looked = match self.connection(node).await {
            Ok(connection) => {
                let look = citus::observe_node(&connection, question);
                self.timed(&connection, ("observe_node", DEADLINE), look).await
            }
            Err(failure) => Err(failure),
        };
        self.record_failure(&Attempt::Observation(node), looked)
    }

    async fn catalog(&self, coordinator: &Observed<Postgres>) -> Observed<Citus> {
        let server = match coordinator {
            Observed::Known(server) => server,
            Observed::Unknown(why) => return Observed::Unknown(why.clone()),
        };
        if server.extension.is_none() {
            return Observed::Unknown("the coordinator does not have the citus extension yet".to_owned());
        }
        let with_sizes = self.cache.with(|cache| cache.sizes.as_ref().is_none_or(CachedSizes::are_due));
        let question = CatalogQuestion {
            strategy: &self.desired.rebalance.strategy,
            owner: &self.desired.database.owner,
            with_plan: true,
            drain_only: false,
            with_sizes,
        };
        let connection = match self.connection(Node::Coordinator).await {
            Ok(connection) => connection,
            Err(failure) => return self.record_failure(&Attempt::Catalog, Err(failure)),
        };
        let look = citus::observe_citus(&connection, &question);
        let mut seen = self.timed(&connection, ("observe_citus", DEADLINE_CATALOG), look).await;
        let mut with_sizes = with_sizes;
        if !with_sizes && seen.as_ref().is_ok_and(|citus| self.a_drain_may_begin(citus)) {
            with_sizes = true;
            let look = CatalogQuestion { with_sizes, ..question };
            let look = citus::observe_citus(&connection, &look);
            seen = self.timed(&connection, ("observe_citus", DEADLINE_CATALOG), look).await;
        }
        if let Ok(citus) = &mut seen {
            self.record_plan_failure(citus);
            self.cache.with(|cache| cache.sizes = Some(sized(cache.sizes.take(), citus, with_sizes)));
        }
        self.record_failure(&Attempt::Catalog, seen)
    }

    /// Citus' plan is a question of its own: what refuses it leaves the rest of the catalog readable.
    fn record_plan_failure(&self, citus: &Citus) {
        match &citus.planned_moves {
            Some(Observed::Known(_)) => drop(self.record_failure(&Attempt::Plan, Ok(()))),
            Some(Observed::Unknown(PlanUnknown::Refused { sqlstate, words })) => {
                let cause = Cause::of_sqlstate(sqlstate, words);
                let failure = Failure::new(FailureReason::Postgres, words).for_cause(cause);
                drop(self.record_failure::<()>(&Attempt::Plan, Err(failure)));
            }
            // A wrong strategy has a reason of its own, and no plan is asked for while a job is open.
            Some(Observed::Unknown(PlanUnknown::StrategyUnknown(_) | PlanUnknown::NotAnswered(_))) | None => {
            }
        }
    }

    /// A worker that is no longer asked for may still get shards: whether there is room for those it has is decided on
    /// sizes of now, not of minutes ago.
    pub(super) fn a_drain_may_begin(&self, citus: &Citus) -> bool {
        let surplus = self.pods.keys().filter(|node| self.desired.nodes().all(|asked| asked != **node));
        let mut addresses = surplus.map(|node| self.access.address(*node));
        addresses.any(|address| citus.nodes.iter().any(|row| row.name == address && row.should_have_shards))
    }

    /// Both ways between every worker that is about to be registered and every other node.
    async fn connections(
        &self,
        postgres: &BTreeMap<Node, Observed<Postgres>>,
        citus: &Observed<Citus>,
    ) -> Vec<ConnectionCheck> {
        let Some(citus) = citus.known() else { return Vec::new() };
        let registered = |node: Node| citus.nodes.iter().any(|row| row.name == self.access.address(node));
        let prepared = |node: &Node| {
            postgres.get(node).and_then(Observed::known).is_some_and(|server| server.extension.is_some())
        };
        if !registered(Node::Coordinator) {
            return Vec::new();
        }
        let all: Vec<Node> = postgres.keys().copied().filter(prepared).collect();
        let candidate = |node: &Node| {
            node.is_worker() && self.desired.nodes().any(|wanted| wanted == *node) && !registered(*node)
        };
        let candidates: Vec<Node> = all.iter().copied().filter(candidate).collect();
        let until = Instant::now() + DEADLINE_CHECKS;
        // Another one is first each time: those that hang must not keep all others from ever being tried.
        let first = candidates.choose(&mut rand::rng()).copied();
        let looks = all.iter().map(|from| {
            let mut to: Vec<Node> = all
                .iter()
                .copied()
                .filter(|to| to != from && (candidates.contains(from) || candidates.contains(to)))
                .filter(|to| candidates.contains(to) || registered(*to))
                .collect();
            to.sort_by_key(|to| (Some(*to) != first, candidates.contains(to)));
            self.checks(*from, to, until)
        });
        join_all(looks).await.into_iter().flatten().collect()
    }

    /// One after another from each node: they share its connection.
    async fn checks(&self, from: Node, to: Vec<Node>, until: Instant) -> Vec<ConnectionCheck> {
        let mut checks = Vec::new();
        for to in to {
            if Instant::now() > until {
                break;
            }
            // One that was not answered in time took its session with it.
            let connection = match self.connection(from).await {
                Ok(connection) => connection,
                Err(failure) => {
                    checks.push(ConnectionCheck { from, to, error: Some(failure.message) });
                    continue;
                }
            };
            let address = self.access.address(to);
            let look = citus::check_connection(&connection, &address, PORT).map_err(deadline_exceeded);
            let checked = self.timed(&connection, ("check_connection", DEADLINE_CHECK), look).await;
            checks.push(ConnectionCheck { from, to, error: checked.err().map(|failure| failure.message) });
        }
        checks
    }
}

/// The server that a look is at.
fn server(act: &Attempt) -> Option<Node> {
    match act {
        Attempt::Observation(node) => Some(*node),
        Attempt::Catalog => Some(Node::Coordinator),
        Attempt::Step(_) | Attempt::Plan | Attempt::Schema => None,
    }
}

/// Nobody has answered: that is waited for.
fn deadline_exceeded(words: String) -> Failure {
    Failure::new(FailureReason::DeadlineExceeded, words)
}

impl CachedSizes {
    /// Every few minutes, and after a job. As long as there are no tables each look asks, which costs nothing: the first
    /// one that sees tables tells their sizes with the rest, and not later in a write of its own.
    fn are_due(&self) -> bool {
        self.at.elapsed() >= SIZES_EVERY || self.stale || !self.tables
    }
}

/// Remembers sizes that were asked for, and fills them in where they were not.
fn sized(before: Option<CachedSizes>, citus: &mut Citus, asked: bool) -> CachedSizes {
    let job = citus.job.as_ref().map(|job| (job.id, job.is_open()));
    let tables = citus.schema_hash.is_some();
    let mut sizes = before.unwrap_or_else(|| CachedSizes {
        groups: BTreeMap::new(),
        shards: BTreeMap::new(),
        placements: None,
        at: Instant::now(),
        job,
        tables,
        stale: false,
    });
    let shards: BTreeMap<i32, i64> = citus.groups.iter().map(|(id, group)| (*id, group.shards)).collect();
    if asked {
        sizes.groups = citus.groups.iter().filter_map(|(id, group)| Some((*id, group.bytes?))).collect();
        sizes.placements = citus.placements.take().map(|placements| (shards.clone(), placements));
        sizes.at = Instant::now();
    }
    sizes.stale = !asked && sizes.job != job;
    // A job moves them, and so may people.
    let moving = sizes.stale || job.is_some_and(|(_, open)| open);
    sizes.placements.take_if(|(before, _)| moving || *before != shards);
    citus.placements = sizes.placements.as_ref().map(|(_, placements)| placements.clone());
    (sizes.job, sizes.tables) = (job, tables);
    for (id, group) in &mut citus.groups {
        group.bytes = group.bytes.or_else(|| sizes.groups.get(id).copied());
    }
    let of_tasks =
        citus.job.iter_mut().flat_map(|job| &mut job.tasks).filter_map(|task| task.transfer.as_mut());
    let planned = citus.planned_moves.iter_mut().flat_map(|plan| match plan {
        Observed::Known(moves) => moves.as_mut_slice(),
        Observed::Unknown(_) => &mut [],
    });
    for moved in of_tasks.chain(planned) {
        if moved.bytes > 0 {
            sizes.shards.insert(moved.shard, moved.bytes);
        } else {
            moved.bytes = sizes.shards.get(&moved.shard).copied().unwrap_or_default();
        }
    }
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{Group, Job, JobState, Move, Placement, Task};

    fn catalog(bytes: i64, state: JobState) -> Citus {
        let task =
            Task { transfer: Some(Move { shard: 102_008, bytes, ..Move::default() }), ..Task::default() };
        Citus {
            groups: [(1, Group { shards: 1, bytes: (bytes > 0).then_some(bytes) })].into(),
            job: Some(Job { id: 4, state, tasks: vec![task], ..Job::default() }),
            ..Citus::default()
        }
    }

    #[test]
    fn sizes_are_filled_in_from_the_last_time_they_were_asked_for() {
        let sizes = sized(None, &mut catalog(700, JobState::Running), true);
        let mut later = catalog(0, JobState::Running);
        let sizes = sized(Some(sizes), &mut later, false);
        assert_eq!(later.groups[&1].bytes, Some(700));
        assert_eq!(later.job.unwrap().tasks[0].transfer.as_ref().unwrap().bytes, 700);
        assert!(!sizes.stale);
    }

    #[test]
    fn placements_are_known_until_shards_move() {
        let seen = |shards, state| Citus {
            groups: [(1, Group { shards, bytes: Some(700) })].into(),
            placements: Some(vec![Placement { shard: 102_008, group_id: 1, ..Placement::default() }]),
            ..catalog(700, state)
        };
        let again = |sizes, shards, state| {
            let mut later = Citus { placements: None, ..seen(shards, state) };
            (sized(Some(sizes), &mut later, false), later.placements.is_some())
        };
        let (sizes, known) =
            again(sized(None, &mut seen(1, JobState::Finished), true), 1, JobState::Finished);
        assert!(known);
        let (sizes, known) = again(sizes, 1, JobState::Running);
        assert!(!known, "a job moves them");
        assert!(!again(sizes, 1, JobState::Finished).1, "it has moved them");
        let sizes = sized(None, &mut seen(1, JobState::Finished), true);
        assert!(!again(sizes, 2, JobState::Finished).1, "somebody has added one");
    }

    #[test]
    fn sizes_are_asked_for_until_there_are_tables() {
        let sizes = sized(None, &mut catalog(0, JobState::Finished), true);
        assert!(sizes.are_due());
        let mut born = Citus { schema_hash: Some("h".into()), ..catalog(700, JobState::Finished) };
        assert!(!sized(Some(sizes), &mut born, true).are_due());
    }

    #[test]
    fn a_job_that_ends_makes_sizes_stale_once() {
        let sizes = sized(None, &mut catalog(700, JobState::Running), true);
        let sizes = sized(Some(sizes), &mut catalog(0, JobState::Finished), false);
        assert!(sizes.stale);
        let sizes = sized(Some(sizes), &mut catalog(0, JobState::Finished), true);
        assert!(!sizes.stale);
    }
}
