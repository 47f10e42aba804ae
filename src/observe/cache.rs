//! What the observer remembers of a cluster between two looks, all of it only to ask less often or to see one's own writes
//! before the watch shows them: forgotten at any time, it is found out again. No decision hangs on it.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    api::{Node, spec::ConfigMapKey},
    citus::TlsCache,
    context::ClusterCache,
    kubernetes::caches::CACHE_LAG,
    resources::{self, Manifest},
    snapshot::{
        AdmissionChanges, Attempt, Contents, ImageFacts, LiveObject, Observed, ParameterCheck, Placement,
        Reach, Refusals, SchemaSql,
    },
};

/// A name that a stranger took is looked at again after so long.
const FOREIGN_FOR: Duration = Duration::from_secs(30);
/// After this time a value that was refused is tried again.
const REFUSED_FOR: Duration = Duration::from_mins(1);
/// How often it is looked whether a Secret that must be restored is there without our label, which no watch shows.
const UNLABELLED_EVERY: Duration = Duration::from_secs(3);

/// Behind a lock.
pub type CacheHandle = ClusterCache<ObservationCache>;

/// What is remembered of one cluster.
#[derive(Default)]
pub struct ObservationCache {
    /// Names taken by strangers, by `Kind/name`.
    pub foreign_objects: HashMap<String, (LiveObject, Instant)>,
    /// What our own writes answered, by `Kind/name`, until the watch shows it.
    pub writes: HashMap<String, (Value, Instant)>,
    /// Pods deleted by us, by uid, until the watch shows it.
    pub deleted_pods: HashMap<String, Instant>,
    /// Answers of servers to values, by `name=value`, and when: `None` when they took them.
    pub parameter_checks: BTreeMap<String, (Option<String>, Instant)>,
    /// What failed lately.
    pub refusals: Refusals,
    /// Looks that were not answered in time, and how often in a row.
    pub slow_nodes: BTreeMap<Attempt, u32>,
    /// What images said.
    pub images: BTreeMap<String, ImageFacts>,
    /// What admission made of our writes, where it changed them: by `Kind/name`.
    pub rewritten: BTreeMap<String, AdmissionChanges>,
    /// When it was looked for the authorities' Secret without our label, and what was found.
    pub unlabelled: Option<(Option<LiveObject>, Instant)>,
    /// The last look at new connections.
    pub reach: RecentWrite,
    /// Sizes of shards.
    pub sizes: Option<CachedSizes>,
    /// What keeps workers from going, and when it was seen.
    pub contents: BTreeMap<Node, (Observed<Contents>, Instant)>,
    /// The operator's certificates.
    pub tls: TlsCache,
    /// SQL of the user's ConfigMap.
    pub schema: Option<CachedSchema>,
}

/// What is remembered of the looks at new connections.
#[derive(Default)]
pub struct RecentWrite {
    pub(super) reach: Option<Reach>,
    /// When to look again, for what the last look was made of.
    pub(super) next: Option<(Instant, Made)>,
    pub(super) running: bool,
    pub(super) password_set: Option<Instant>,
}

/// What a look is made of: another version of a Secret, or another server, and it is due.
pub(super) type Made = (Vec<String>, BTreeMap<Node, (String, Timestamp)>);

/// The SQL of a ConfigMap as it was read last.
#[derive(Clone)]
pub struct CachedSchema {
    /// Where it was read.
    pub source: ConfigMapKey,
    /// For which generation of the DialogCluster.
    pub generation: i64,
    /// What was read.
    pub sql: Observed<SchemaSql>,
    /// When.
    pub at: Instant,
}

/// Sizes of shards, as they were looked at last.
pub struct CachedSizes {
    /// Bytes by `groupid`.
    pub groups: BTreeMap<i32, i64>,
    /// Bytes by `shardid`, of shards that move or are to move.
    pub shards: BTreeMap<i64, i64>,
    /// Where shards were, and how many by `groupid`, unless some have moved since.
    pub placements: Option<(BTreeMap<i32, i64>, Vec<Placement>)>,
    /// When they were looked at.
    pub at: Instant,
    /// The newest job then, and whether it was open.
    pub job: Option<(i64, bool)>,
    /// Whether there were tables then.
    pub tables: bool,
    /// A job has begun or ended since.
    pub stale: bool,
}

impl ObservationCache {
    /// What servers said to values, and to which of those that they did not take they may say something else by now: the
    /// tablespace that a value names is made, say.
    #[must_use]
    pub fn parameter_checks(&self) -> BTreeMap<String, ParameterCheck> {
        let check = |said: &Option<String>, at: &Instant| match said {
            None => ParameterCheck::Accepted,
            Some(message) => {
                ParameterCheck::Rejected { message: message.clone(), retry_due: at.elapsed() >= REFUSED_FOR }
            }
        };
        self.parameter_checks.iter().map(|(value, (said, at))| (value.clone(), check(said, at))).collect()
    }
    /// A stranger has this name.
    pub fn mark_foreign(&mut self, key: String, object: LiveObject) {
        self.foreign_objects.insert(key, (object, Instant::now()));
    }
    /// We wrote this object; the watch may not have shown it yet.
    pub fn wrote(&mut self, key: String, answer: Value) {
        self.writes.insert(key, (answer, Instant::now()));
    }
    /// What admission made of what we wrote, when it is not what we wrote.
    pub fn admitted(&mut self, written: &Manifest, answer: &Value) {
        let differences = resources::differences(written, answer);
        if differences.is_empty() {
            self.rewritten.remove(&written.key());
        } else {
            self.rewritten.insert(written.key(), AdmissionChanges { differences });
        }
    }
    /// Drops what is too old to be believed.
    pub fn expire(&mut self) {
        self.unlabelled = self.unlabelled.take().filter(|(_, at)| at.elapsed() < UNLABELLED_EVERY);
        self.foreign_objects.retain(|_, (_, since)| since.elapsed() < FOREIGN_FOR);
        self.writes.retain(|_, (_, since)| since.elapsed() < CACHE_LAG);
        self.deleted_pods.retain(|_, since| since.elapsed() < CACHE_LAG);
    }
    /// The newer of what the watch shows and what we wrote; `None` when neither is there.
    pub fn newer(&mut self, key: &str, cached: Option<Value>) -> Option<Value> {
        let Some((written, _)) = self.writes.get(key) else { return cached };
        // Nothing in the cache: our create is newer, or somebody deleted it since; five seconds tell.
        if cached.as_ref().is_none_or(|cached| version(written) > version(cached)) {
            return Some(written.clone());
        }
        self.writes.remove(key);
        cached
    }
}

/// `metadata.resourceVersion` as the number that it is.
fn version(object: &Value) -> u64 {
    let version = object.pointer("/metadata/resourceVersion").and_then(Value::as_str);
    version.and_then(|version| version.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(version: &str) -> Value {
        json!({"metadata": {"resourceVersion": version}})
    }

    #[test]
    fn refused_value_gets_old_and_accepted_one_does_not() {
        let mut cache = ObservationCache::default();
        let Some(before) = Instant::now().checked_sub(REFUSED_FOR) else { return };
        let refused = || Some("no such tablespace".to_owned());
        for (value, said, at) in
            [("a=1", refused(), before), ("b=1", refused(), Instant::now()), ("c=1", None, before)]
        {
            cache.parameter_checks.insert(value.to_owned(), (said, at));
        }
        let refused =
            |retry_due| ParameterCheck::Rejected { message: "no such tablespace".to_owned(), retry_due };
        let expected = [("a=1", refused(true)), ("b=1", refused(false)), ("c=1", ParameterCheck::Accepted)];
        let expected = expected.map(|(value, check)| (value.to_owned(), check));
        assert_eq!(cache.parameter_checks(), expected.into());
    }

    #[test]
    fn our_own_write_is_seen_until_the_watch_shows_it() {
        let mut cache = ObservationCache::default();
        cache.wrote("Service/shop".into(), object("10"));
        assert_eq!(cache.newer("Service/shop", None), Some(object("10")));
        assert_eq!(cache.newer("Service/shop", Some(object("9"))), Some(object("10")));
        assert_eq!(cache.newer("Service/shop", Some(object("11"))), Some(object("11")));
        assert_eq!(cache.newer("Service/shop", None), None, "what the watch showed and lost is gone");
    }
}
