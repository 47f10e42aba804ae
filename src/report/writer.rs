//! When a status is written: what a person or a program waits for at once, mere numbers at most every two seconds,
//! and nothing in a steady state. What is in it is not decided here.

use std::time::Duration;

use crate::api::{
    DialogClusterStatus,
    status::{ByteCounts, MoveCounts, NodeStatus},
};

/// Numbers are written no more often.
const NUMBERS_EVERY: Duration = Duration::from_secs(2);

/// Whether a status is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusWrite {
    /// Nothing has changed.
    Skip,
    /// Only numbers have changed, and others were written a moment ago.
    Throttled,
    /// At once.
    Now,
}

/// The status as it comes back from the API server: times have whole seconds there, so that one with fractions would
/// differ from itself for ever.
#[must_use]
pub fn as_stored(status: &DialogClusterStatus) -> DialogClusterStatus {
    let stored = serde_json::to_value(status).and_then(serde_json::from_value);
    stored.unwrap_or_else(|_| status.clone())
}

/// Compares the status written last, and when that was, with the new one.
#[must_use]
pub fn write(
    before: &DialogClusterStatus,
    after: &DialogClusterStatus,
    since: Option<Duration>,
) -> StatusWrite {
    if without_bytes(before) == without_bytes(after) {
        return if bytes_known(before, after) { when_due(since) } else { StatusWrite::Skip };
    }
    if without_numbers(before) == without_numbers(after) { when_due(since) } else { StatusWrite::Now }
}

/// What was told before, as long as no number in it has moved by a tenth: bytes and rows come and go with every write of
/// a client, and are no news.
#[must_use]
pub fn keep_similar_message(before: Option<&str>, now: String) -> String {
    let near = |(before, now): (&str, &str)| match (before.parse::<f64>(), now.parse::<f64>()) {
        (Ok(before), Ok(now)) => (before - now).abs() <= before.abs() / 10.0,
        (Ok(_) | Err(_), Ok(_) | Err(_)) => before == now,
    };
    let Some(before) = before else { return now };
    let words = |text: &str| text.split([' ', '(', ')']).map(ToOwned::to_owned).collect::<Vec<_>>();
    let (told, new) = (words(before), words(&now));
    let same = told.len() == new.len() && told.iter().zip(&new).all(|(told, new)| near((told, new)));
    if same { before.to_owned() } else { now }
}

fn when_due(since: Option<Duration>) -> StatusWrite {
    if since.is_none_or(|since| since >= NUMBERS_EVERY) { StatusWrite::Now } else { StatusWrite::Throttled }
}

fn without_bytes(status: &DialogClusterStatus) -> DialogClusterStatus {
    let mut status = status.clone();
    status.nodes.iter_mut().for_each(|node| node.bytes = None);
    status
}

/// What nobody waits for: numbers, and sentences with numbers in them.
fn without_numbers(status: &DialogClusterStatus) -> DialogClusterStatus {
    let mut status = without_bytes(status);
    status.message = None;
    status.nodes.iter_mut().for_each(|node| node.shards = None);
    status.conditions.iter_mut().for_each(|condition| condition.message = String::new());
    if let Some(job) = &mut status.rebalance {
        job.progress = String::new();
        job.moves = MoveCounts::default();
        job.bytes = ByteCounts::default();
        job.estimated_finish = None;
        job.last_error = None;
    }
    status
}

/// Bytes alone are written only when they were not known: under a load they always move, and that would be writes in a
/// steady state. They are told with whatever else is written, and are exact in the metrics.
fn bytes_known(before: &DialogClusterStatus, after: &DialogClusterStatus) -> bool {
    let known = |(old, new): (&NodeStatus, &NodeStatus)| old.bytes.is_none() && new.bytes.is_some();
    before.nodes.iter().zip(&after.nodes).any(known)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::status::{Phase, RebalanceStatus};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    #[test]
    fn a_number_is_told_again_when_it_has_moved_by_a_tenth() {
        let told = |free: &str, table: &str| format!("3 shards, {free} MiB free (about 100 rows) in {table}");
        let before = told("20.0", "t");
        for (free, table, same) in
            [("20.0", "t", true), ("21.9", "t", true), ("22.1", "t", false), ("20.0", "u", false)]
        {
            let now = told(free, table);
            let expected = if same { before.clone() } else { now.clone() };
            assert_eq!(keep_similar_message(Some(&before), now), expected, "{free} {table}");
        }
        assert_eq!(keep_similar_message(None, before.clone()), before);
    }

    const JUST_NOW: Option<Duration> = Some(Duration::from_millis(300));

    fn status(done: i64, bytes: i64) -> DialogClusterStatus {
        DialogClusterStatus {
            phase: Some(Phase::Rebalancing),
            message: Some(format!("{done} of 16 moves done")),
            nodes: vec![NodeStatus { bytes: Some(bytes), ..Default::default() }],
            rebalance: Some(RebalanceStatus {
                progress: format!("{done}/16"),
                moves: MoveCounts { total: 16, done, ..Default::default() },
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn an_equal_status_is_not_written() {
        assert_eq!(write(&status(1, 100), &status(1, 100), None), StatusWrite::Skip);
    }

    #[test]
    fn a_status_equals_itself_after_it_was_stored() {
        let mut status = status(1, 100);
        let time = "2026-01-01T00:00:00.123456Z".parse().unwrap();
        status.rebalance.as_mut().unwrap().started_at = Some(Time(time));
        let stored = as_stored(&status);
        assert_eq!(write(&as_stored(&stored), &as_stored(&status), None), StatusWrite::Skip);
        assert_ne!(stored, status, "else this test proves nothing");
    }

    #[test]
    fn numbers_wait_for_their_turn() {
        assert_eq!(write(&status(1, 100), &status(2, 100), JUST_NOW), StatusWrite::Throttled);
        assert_eq!(write(&status(1, 100), &status(2, 100), Some(NUMBERS_EVERY)), StatusWrite::Now);
        assert_eq!(write(&status(1, 100), &status(2, 100), None), StatusWrite::Now);
    }

    #[test]
    fn a_phase_waits_for_nothing() {
        let after = DialogClusterStatus { phase: Some(Phase::Ready), ..status(2, 100) };
        assert_eq!(write(&status(1, 100), &after, JUST_NOW), StatusWrite::Now);
    }

    #[test]
    fn bytes_alone_are_written_once() {
        let mut unknown = status(1, 100);
        unknown.nodes[0].bytes = None;
        assert_eq!(write(&unknown, &status(1, 100), None), StatusWrite::Now);
        assert_eq!(write(&status(1, 100), &status(1, 100_000), None), StatusWrite::Skip);
    }
}
