//! What controllers and kubelets say in events about objects of ours that get no further: words that stand nowhere else.
//! Of each object only the newest, in bounded memory, and only as long as it may be so. Nothing is decided here.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use kube::ResourceExt;

use crate::snapshot::Warning;

/// Events that are looked at: the kind that they are about, and their reason.
pub const WATCHED_REASONS: [(&str, &str); 5] = [
    // A quota, a LimitRange, Pod Security or a webhook refuses the pod.
    ("StatefulSet", "FailedCreate"),
    ("PersistentVolumeClaim", "ProvisioningFailed"),
    ("PersistentVolumeClaim", "VolumeResizeFailed"),
    ("Pod", "FailedMount"),
    ("Pod", "FailedAttachVolume"),
];
/// Objects that something is remembered of. Who may make events may make any number of them.
const MOST: usize = 4096;
/// Characters of an event's words.
const LONGEST: usize = 1024;

/// The newest words about each object, by namespace and `Kind/name`.
#[derive(Default)]
pub struct Warnings(Mutex<HashMap<(String, String), KeptWarning>>);

struct KeptWarning {
    /// Of the object.
    uid: String,
    /// Name of the event.
    event: String,
    warning: Warning,
}

impl Warnings {
    fn kept(&self) -> MutexGuard<'_, HashMap<(String, String), KeptWarning>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// Keeps an event's words when they are the newest about an object that has one of our names, and answers the name
    /// of its cluster.
    pub fn record(&self, event: &Event) -> Option<String> {
        let about = &event.involved_object;
        let (kind, name) = (about.kind.as_deref()?, about.name.as_deref()?);
        let cluster = cluster_of(kind, name)?;
        let key = (event.namespace()?, format!("{kind}/{name}"));
        let last = last_seen(event);
        let mut kept = self.kept();
        if kept.get(&key).is_some_and(|before| before.warning.last > last) {
            return None;
        }
        if kept.len() >= MOST && !kept.contains_key(&key) {
            let oldest = kept.iter().min_by_key(|(_, kept)| kept.warning.last).map(|(key, _)| key.clone());
            oldest.and_then(|oldest| kept.remove(&oldest));
        }
        let series = event.series.as_ref().and_then(|series| series.count);
        let warning = Warning {
            reason: event.reason.clone().unwrap_or_default(),
            message: event.message.iter().flat_map(|words| words.trim().chars()).take(LONGEST).collect(),
            times: event.count.or(series).unwrap_or(1),
            first: event.first_timestamp.as_ref().map_or(last, |at| at.0),
            last,
        };
        let uid = about.uid.clone().unwrap_or_default();
        kept.insert(key, KeptWarning { uid, event: event.name_any(), warning });
        Some(cluster)
    }
    /// The API server has forgotten an event.
    pub fn remove_stale(&self, event: &Event) {
        let name = event.name_any();
        self.kept().retain(|(namespace, _), kept| {
            kept.event != name || Some(namespace.as_str()) != event.metadata.namespace.as_deref()
        });
    }
    /// It is no longer so: the pod is there, the volume is bound.
    pub fn forget(&self, namespace: &str, key: &str) {
        self.kept().remove(&(namespace.to_owned(), key.to_owned()));
    }
    /// The newest words about the object with this uid.
    #[must_use]
    pub fn about(&self, namespace: &str, key: &str, uid: &str) -> Option<Warning> {
        let kept = self.kept();
        let about = kept.get(&(namespace.to_owned(), key.to_owned()))?;
        (about.uid == uid).then(|| about.warning.clone())
    }
}

/// The cluster whose object may have this name.
fn cluster_of(kind: &str, name: &str) -> Option<String> {
    let object = match kind {
        "Pod" => name.strip_suffix("-0")?,
        "PersistentVolumeClaim" => name.rsplit_once('-')?.0,
        _ => name,
    };
    let cluster = object.strip_suffix("-coordinator").or_else(|| {
        let (cluster, ordinal) = object.rsplit_once('-')?;
        ordinal.parse::<u16>().ok()?;
        cluster.strip_suffix("-worker")
    });
    cluster.filter(|cluster| !cluster.is_empty()).map(ToOwned::to_owned)
}

fn last_seen(event: &Event) -> Timestamp {
    let series = event.series.as_ref().and_then(|series| series.last_observed_time.as_ref());
    let micro = series.or(event.event_time.as_ref()).map(|at| at.0);
    let last = event.last_timestamp.as_ref().map(|at| at.0);
    last.max(micro).or_else(|| event.creation_timestamp().map(|at| at.0)).unwrap_or(Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn event(name: &str, set: &str, words: &str, last: &str) -> Event {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "market"},
            "involvedObject": {"kind": "StatefulSet", "name": set, "uid": "s-1"},
            "reason": "FailedCreate", "message": words, "count": 3,
            "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": last,
        }))
        .unwrap()
    }

    #[test]
    fn the_newest_words_are_kept_until_it_is_no_longer_so() {
        let warnings = Warnings::default();
        let set = "shop-worker-0";
        let heard = |name, words: &str, last| warnings.record(&event(name, set, words, last));
        assert_eq!(heard("a", "exceeded quota", "2026-01-01T00:01:00Z").as_deref(), Some("shop"));
        assert_eq!(heard("b", "older", "2026-01-01T00:00:30Z"), None);
        let about = |uid| warnings.about("market", "StatefulSet/shop-worker-0", uid);
        let said = about("s-1").unwrap();
        assert_eq!((said.message.as_str(), said.times), ("exceeded quota", 3));
        assert_eq!(said.last.duration_since(said.first).as_secs(), 60);
        assert_eq!(about("s-2"), None, "one of an earlier StatefulSet");
        // The API server forgets another event.
        warnings.remove_stale(&event("b", set, "", "2026-01-01T00:00:00Z"));
        assert!(about("s-1").is_some());
        warnings.remove_stale(&event("a", set, "", "2026-01-01T00:00:00Z"));
        assert!(about("s-1").is_none());
        heard("c", "again", "2026-01-01T00:02:00Z");
        warnings.forget("market", "StatefulSet/shop-worker-0");
        assert!(about("s-1").is_none());
    }

    #[test]
    fn any_number_of_events_is_no_more_than_so_much_memory() {
        let warnings = Warnings::default();
        for number in 0..2 * MOST {
            let set = format!("c{number}-coordinator");
            warnings.record(&event("e", &set, &"ы".repeat(100_000), "2026-01-01T00:00:00Z"));
        }
        let kept = warnings.kept();
        assert_eq!(kept.len(), MOST);
        assert!(kept.values().all(|kept| kept.warning.message.chars().count() == LONGEST));
    }

    #[rstest]
    #[case("StatefulSet", "shop-coordinator", Some("shop"))]
    #[case("StatefulSet", "a-worker-1-worker-12", Some("a-worker-1"))]
    #[case("StatefulSet", "shop-worker", None)]
    #[case("StatefulSet", "redis", None)]
    #[case("Pod", "shop-worker-0-0", Some("shop"))]
    #[case("Pod", "web-7f9c-x2", None)]
    #[case("PersistentVolumeClaim", "shop-coordinator-x7k2q", Some("shop"))]
    #[case("PersistentVolumeClaim", "data", None)]
    fn only_what_may_be_ours_is_kept(#[case] kind: &str, #[case] name: &str, #[case] cluster: Option<&str>) {
        assert_eq!(cluster_of(kind, name).as_deref(), cluster);
    }
}
