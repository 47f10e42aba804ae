//! Whether new connections can be made, looked at about once a minute in a cluster at rest: sessions that are open say
//! nothing about certificates, passwords and networks of now. Reads only, over connections of its own that are closed
//! at once, beside the reconcile and never in its way.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
    time::{Duration, Instant},
};

use futures::{StreamExt, stream};
use jiff::Timestamp;
use secrecy::SecretString;
use tokio::time::timeout;

use super::cache::{CacheHandle, Made, RecentWrite};
use crate::{
    api::{Desired, Node},
    citus::{self, NodeConnector, PORT, SqlError, Target, Tls},
    snapshot::{Citus, Login, Observed, Pod, Postgres, Reach},
};

/// Between two looks while all is well.
const EVERY: Duration = Duration::from_mins(1);
/// After a look that found something.
const AGAIN: Duration = Duration::from_secs(10);
/// No look takes longer; what was not tried by then is tried the next time.
const DEADLINE: Duration = Duration::from_secs(30);
/// No connection between two nodes takes longer: they give up after five seconds themselves.
const DEADLINE_CHECK: Duration = Duration::from_secs(8);
/// Nodes that are looked at beside each other.
const MAX_CONCURRENT_NODES: usize = 8;
/// So many that do not connect are enough to know.
const ENOUGH: usize = 3;
/// A password that was set again and is refused still is not set again before this: it is something else.
const PASSWORD_AGAIN: Duration = Duration::from_mins(10);

impl RecentWrite {
    /// The role has just got the Secret's password: a new one, or once more the one that it had. Then it is noted, so that
    /// whoever sets it by other means does not make a loop.
    pub fn password_was_set(&mut self, again: bool) {
        if again {
            self.password_set = Some(Instant::now());
        }
        (self.reach, self.next) = (None, None);
    }
}

/// What was seen in this look.
#[derive(Clone, Copy)]
#[allow(missing_docs)]
pub struct Servers<'a> {
    pub pods: &'a BTreeMap<Node, Pod>,
    pub postgres: &'a BTreeMap<Node, Observed<Postgres>>,
    pub citus: &'a Observed<Citus>,
}

/// The way to a member, and the name by which the others know it.
struct Route {
    target: Target,
    tls: Tls,
    address: String,
}

/// The members, when all of them answer: else there are better words for what is wrong.
fn members(access: &NodeConnector<'_>, servers: Servers<'_>) -> Option<BTreeSet<Node>> {
    let Servers { pods, postgres, citus } = servers;
    let rows: BTreeSet<&str> = citus.known()?.nodes.iter().map(|row| row.name.as_str()).collect();
    let member = |node: &Node| rows.contains(access.address(*node).as_str());
    let found: BTreeSet<Node> = pods.keys().copied().filter(member).collect();
    let answers = |node: &Node| postgres.get(node).and_then(Observed::known).is_some() && pods[node].ready;
    (found.len() == rows.len() && found.len() > 1 && found.iter().all(answers)).then_some(found)
}

/// What is known, and begins another look when one is due.
#[must_use]
pub fn look(
    access: &NodeConnector<'_>,
    desired: &Desired,
    servers: Servers<'_>,
    (versions, password): (Vec<String>, Option<SecretString>),
    cache: &CacheHandle,
) -> Option<Reach> {
    let Some(members) = members(access, servers) else {
        cache.with(|cache| (cache.reach.reach, cache.reach.next) = (None, None));
        return None;
    };
    let server = |node: &Node| {
        let started = servers.postgres.get(node).and_then(Observed::known).map(|server| server.started_at);
        (*node, (servers.pods[node].uid.clone(), started.unwrap_or_default()))
    };
    let made: Made = (versions, members.iter().map(server).collect());
    let due = cache.with(|cache| {
        let kept = &mut cache.reach;
        let due = kept.next.as_ref().is_none_or(|(at, of)| Instant::now() >= *at || *of != made);
        let begins = due && !kept.running;
        kept.running |= begins;
        begins
    });
    if due {
        let way = |node: &Node| {
            let way = access.route(*node, servers.pods.get(node)).map_err(|why| why.to_string());
            way.map(|(target, tls)| {
                (*node, Route { target, tls: tls.clone(), address: access.address(*node) })
            })
        };
        let born =
            servers.citus.known().is_some_and(|citus| citus.owner_exists && citus.schema_hash.is_some());
        let look = ReachCheck {
            ways: members.iter().map(way).collect(),
            owner: desired.database.owner.clone(),
            password: password.filter(|_| born),
        };
        let (cache, uid) = (cache.clone(), desired.cluster.uid.clone());
        tokio::spawn(async move {
            let found = timeout(DEADLINE, look.look()).await;
            cache.with(|cache| cache.reach.keep(found.ok(), made, &uid));
        });
    }
    cache.with(|cache| cache.reach.reach.clone())
}

impl RecentWrite {
    fn keep(&mut self, found: Option<Reach>, made: Made, uid: &str) {
        self.running = false;
        let mut found = found.unwrap_or_else(|| Reach {
            broken: vec![format!("not every connection could be tried within {} s", DEADLINE.as_secs())],
            ..Reach::default()
        });
        if let Login::PasswordDiffers(why) = &found.application
            && self.password_set.is_some_and(|at| at.elapsed() < PASSWORD_AGAIN)
        {
            found.application = Login::Failed(format!("{why}, although it was set again"));
        }
        let failed = !found.broken.is_empty()
            || matches!(found.application, Login::PasswordDiffers(_) | Login::Failed(_));
        let before = self.reach.as_ref().map_or(0, |before| before.failures);
        found.failures = if failed { before.saturating_add(1) } else { 0 };
        let pause = if failed { AGAIN } else { until_turn(Timestamp::now(), uid) };
        self.next = Some((Instant::now() + pause, made));
        self.reach = Some(found);
    }
}

/// Each cluster has its own moment of the minute; the first one that is at least half a minute away.
fn until_turn(now: Timestamp, uid: &str) -> Duration {
    let mut hasher = DefaultHasher::new();
    uid.hash(&mut hasher);
    let minute = EVERY.as_millis();
    let turn = u128::from(hasher.finish()) % minute;
    let now = u128::from(now.as_millisecond().unsigned_abs()) % minute;
    let wait = (turn + minute - now) % minute;
    let wait = if wait < minute / 2 { wait + minute } else { wait };
    Duration::from_millis(u64::try_from(wait).unwrap_or_default())
}

/// A look, on its way.
struct ReachCheck {
    ways: Result<BTreeMap<Node, Route>, String>,
    owner: String,
    password: Option<SecretString>,
}

/// One thing that was tried.
enum Tried {
    Well,
    Busy(String),
    Broken(String),
}

impl Tried {
    fn of(why: String) -> Self {
        if citus::has_no_connection_left(&why) { Self::Busy(why) } else { Self::Broken(hinted(why)) }
    }
}

impl ReachCheck {
    async fn look(self) -> Reach {
        let ways = match &self.ways {
            Ok(ways) => ways,
            Err(why) => return Reach { broken: vec![why.clone()], ..Reach::default() },
        };
        let nodes: Vec<Node> = ways.keys().copied().collect();
        // The coordinator to every worker; each worker to the coordinator, and to the next one.
        let targets = |at: usize| -> Vec<Node> {
            match nodes[at] {
                Node::Coordinator => nodes.iter().copied().filter(|node| node.is_worker()).collect(),
                this @ Node::Worker(_) => {
                    let next = nodes.get(at + 1).or_else(|| nodes.get(1)).copied();
                    let next = next.filter(|next| *next != this);
                    [Some(Node::Coordinator), next].into_iter().flatten().collect()
                }
            }
        };
        let looks: Vec<_> = (0..nodes.len()).map(|at| from(nodes[at], targets(at), ways)).collect();
        let tried = stream::iter(looks).buffered(MAX_CONCURRENT_NODES).collect::<Vec<_>>();
        let (tried, application) = tokio::join!(tried, self.application(ways));
        let mut reach = Reach::default();
        for tried in tried.into_iter().flatten() {
            match tried {
                Tried::Well => {}
                Tried::Busy(why) => reach.busy.push(why),
                Tried::Broken(why) => reach.broken.push(why),
            }
        }
        match application {
            Ok(login) => reach.application = login,
            Err(busy) => {
                reach.application = Login::Untried("the coordinator has no free connection".to_owned());
                reach.busy.push(busy);
            }
        }
        reach
    }

    /// `Err`: there was no free connection for it.
    async fn application(&self, ways: &BTreeMap<Node, Route>) -> Result<Login, String> {
        let untried = |why: &str| Ok(Login::Untried(why.to_owned()));
        let Some(password) = &self.password else {
            return untried(
                "the application's role, its tables or a usable password in its Secret do not exist",
            );
        };
        let Some(Route { target, tls, .. }) = ways.get(&Node::Coordinator) else {
            return untried("no coordinator");
        };
        let table = async {
            let connection = target.connect(tls).await?;
            citus::witness(&connection, &self.owner).await
        };
        // That the operator gets in is looked at elsewhere.
        let Ok(table) = table.await else { return untried("the coordinator could not be asked for a table") };
        let ask = async {
            let connection = target.connect_as(tls, &self.owner, password).await?;
            match &table {
                Some(table) => citus::ask_each_worker(&connection, table).await.map(|()| true),
                None => Ok(false),
            }
        };
        let differs = |error: &SqlError| error.sqlstate() == Some("28P01");
        match ask.await {
            Ok(true) => Ok(Login::Well),
            Ok(false) => untried("there is no distributed table that the application's role may read"),
            Err(error) if differs(&error) => {
                let words = error.words().map(ToString::to_string);
                Ok(Login::PasswordDiffers(words.unwrap_or_default()))
            }
            // Somebody changes the table at this moment; or the table went.
            Err(SqlError::Refused { words, .. }) if ["55P03", "42P01"].contains(&words.sqlstate.as_str()) => {
                untried("its table is being changed")
            }
            Err(error) => {
                let why = match error.words() {
                    Some(words) => words.to_string(),
                    None => error.to_string(),
                };
                if citus::has_no_connection_left(&why) { Err(why) } else { Ok(Login::Failed(hinted(why))) }
            }
        }
    }
}

/// One new session to a node, and over it new connections of that node to others, one after another.
async fn from(node: Node, targets: Vec<Node>, ways: &BTreeMap<Node, Route>) -> Vec<Tried> {
    let Some(Route { target, tls, .. }) = ways.get(&node) else { return Vec::new() };
    let connection = match target.connect(tls).await {
        Ok(connection) => connection,
        Err(why) => return vec![Tried::of(format!("the operator to {node}: {why}"))],
    };
    let mut tried = vec![Tried::Well];
    for to in targets {
        let Some(Route { address, .. }) = ways.get(&to) else { continue };
        let check = timeout(DEADLINE_CHECK, citus::check_connection(&connection, address, PORT)).await;
        let late = || Err(format!("no answer within {} s", DEADLINE_CHECK.as_secs()));
        let Err(why) = check.unwrap_or_else(|_| late()) else { continue };
        tried.push(Tried::of(format!("{node} to {to}: {why}")));
        if tried.len() > ENOUGH || connection.is_broken() {
            break;
        }
    }
    tried
}

/// Words that end in silence, and who may cause it. A pod that is ready listens.
#[must_use]
pub fn hinted(why: String) -> String {
    let silent =
        ["timed out", "timeout expired", "no connection within", "no login at", "Connection refused"];
    if silent.iter().any(|said| why.contains(said)) {
        format!("{why} (the pod is ready: a NetworkPolicy may be the cause, see docs/networking.md)")
    } else {
        why
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(broken: &[&str], application: Login) -> Reach {
        let broken = broken.iter().map(|why| (*why).to_owned()).collect();
        Reach { broken, application, ..Reach::default() }
    }

    #[test]
    fn looks_that_find_something_are_counted_and_soon_made_again() {
        let mut kept = RecentWrite::default();
        let pause =
            |kept: &RecentWrite| kept.next.as_ref().unwrap().0.saturating_duration_since(Instant::now());
        for times in 1..4 {
            kept.keep(Some(found(&["a to b"], Login::Well)), Made::default(), "1");
            assert_eq!(kept.reach.as_ref().unwrap().failures, times);
            assert!(pause(&kept) <= AGAIN);
        }
        kept.keep(Some(found(&[], Login::Untried("no table".into()))), Made::default(), "1");
        assert_eq!(kept.reach.as_ref().unwrap().failures, 0);
        assert!(pause(&kept) > AGAIN);
        kept.keep(None, Made::default(), "1");
        assert_eq!(kept.reach.as_ref().unwrap().failures, 1, "one that did not end");
    }

    #[test]
    fn a_password_is_not_set_again_and_again() {
        let mut kept = RecentWrite::default();
        // A new one in the Secret, a moment before somebody changes the role's.
        kept.password_was_set(false);
        let differs = || found(&[], Login::PasswordDiffers("no".into()));
        kept.keep(Some(differs()), Made::default(), "1");
        assert!(matches!(kept.reach.as_ref().unwrap().application, Login::PasswordDiffers(_)));
        kept.password_was_set(true);
        assert_eq!(kept.reach, None);
        kept.keep(Some(differs()), Made::default(), "1");
        assert!(matches!(kept.reach.as_ref().unwrap().application, Login::Failed(_)));
    }

    #[test]
    fn the_looks_of_many_clusters_are_spread_over_the_minute() {
        let now: Timestamp = "2026-11-25T10:00:00Z".parse().unwrap();
        let waits: Vec<Duration> = (0..600).map(|uid| until_turn(now, &uid.to_string())).collect();
        assert!(waits.iter().all(|wait| (EVERY / 2..EVERY * 3 / 2).contains(wait)));
        for tenth in 0..6 {
            let part = (30 + tenth * 10)..(40 + tenth * 10);
            let there = waits.iter().filter(|wait| part.contains(&wait.as_secs())).count();
            assert!((60..140).contains(&there), "{part:?}: {there}");
        }
        let turn = until_turn(now, "7");
        let again = now + jiff::SignedDuration::try_from(turn).unwrap();
        assert!(until_turn(again, "7").abs_diff(EVERY) < Duration::from_millis(2), "its moment is the same");
    }

    #[test]
    fn silence_may_be_a_policys() {
        assert!(hinted("no login at 10.0.0.1:5432 within 5 s".into()).contains("NetworkPolicy"));
        assert!(hinted("connection failed: timeout expired".into()).contains("NetworkPolicy"));
        assert!(!hinted("certificate verify failed".into()).contains("NetworkPolicy"));
    }
}
