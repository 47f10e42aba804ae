//! What came of it: tables for people, and the promises that were kept or broken. Pure text.

use std::time::Duration;

use jiff::Timestamp;
use testkit::load::ledger::{Differences, Figures, Ledger};

use crate::acts::{Act, Shards, Time, Times};

/// Something that the demo promises to show.
pub struct Promise {
    /// Whether it was kept.
    pub kept: bool,
    /// In words, with the figures.
    pub text: String,
}

impl Promise {
    fn new(kept: bool, text: String) -> Self {
        Self { kept, text }
    }
}

/// Everything that is reported.
pub struct Story {
    /// Shards before the first act.
    pub start: Shards,
    /// The two acts.
    pub acts: [Act; 2],
    /// What the writer remembers.
    pub ledger: Ledger,
    /// What the table says to that.
    pub differences: Differences,
    /// Rows that were loaded.
    pub loaded: u64,
}

impl Story {
    fn figures(&self, time: Time) -> Figures {
        self.ledger.phase(&time.to_string())
    }

    /// Shards on each worker, before and after each act.
    #[must_use]
    pub fn shards_table(&self) -> Vec<String> {
        let [first, second] = &self.acts;
        let columns: Vec<&str> = second.shards.iter().map(|(name, _)| name.as_str()).collect();
        let row = |title: &str, shards: &Shards| {
            let cell = |column: &&str| {
                let count =
                    shards.iter().find(|(name, _)| name == column).map(|(_, count)| count.to_string());
                format!("{:>1$}", count.unwrap_or_default(), column.len() + 2)
            };
            format!("  {title:<16}{}", columns.iter().map(cell).collect::<String>())
        };
        vec![
            format!("  {:<16}  {}", "shards", columns.join("  ")),
            row("at the start", &self.start),
            row("after act one", &first.shards),
            row("after act two", &second.shards),
        ]
    }

    /// How the writer fared.
    #[must_use]
    pub fn writer_table(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "  {:<42}{:>8}{:>14}{:>17}{:>15}",
            "writer", "writes", "failed tries", "failed for good", "longest write"
        )];
        for (title, time) in [
            ("at rest", Time::Quiet),
            ("worker 0 put back by hand", Time::PutBack),
            ("act one: restart by the operator, join", Time::Restart),
            ("act one: moves", Time::FirstMoves),
            ("act two: join", Time::Join),
            ("act two: moves", Time::SecondMoves),
        ] {
            let figures = self.figures(time);
            lines.push(format!(
                "  {title:<42}{:>8}{:>14}{:>17}{:>12} ms",
                figures.writes,
                figures.failed_tries,
                figures.failed_for_good,
                figures.longest.as_millis()
            ));
            lines.extend(
                figures.words.iter().take(2).map(|words| format!("      a try was told: {words:.150}")),
            );
        }
        lines
    }

    /// What the demo promises.
    #[must_use]
    pub fn promises(&self) -> Vec<Promise> {
        let [first, second] = &self.acts;
        let found = &self.differences;
        let failed = self.ledger.failed_for_good().len();
        let moves = self.figures(Time::FirstMoves).failed_tries;
        let second_act = self.figures(Time::Join).failed_tries + self.figures(Time::SecondMoves).failed_tries;
        let acknowledged = self.ledger.acknowledged().count();
        vec![
            even(first),
            even(second),
            Promise::new(
                first.restarted.len() == 1,
                format!("act one restarted one pod, once: {}", names(&first.restarted)),
            ),
            Promise::new(
                second.restarted.is_empty(),
                format!("act two restarted none: {}", names(&second.restarted)),
            ),
            Promise::new(failed == 0, format!("writes that failed for good: {failed}")),
            Promise::new(moves == 0, format!("tries that failed while act one moved shards: {moves}")),
            Promise::new(second_act == 0, format!("tries that failed in act two: {second_act}")),
            Promise::new(
                found.is_none(),
                format!(
                    "rows in the table: {} = {} loaded + {acknowledged} acknowledged, key by key; missing {}, twice {}, strange {}",
                    found.rows,
                    self.loaded,
                    found.missing.len(),
                    found.duplicated.len(),
                    found.strange.len()
                ),
            ),
        ]
    }
}

fn names(pods: &[String]) -> String {
    if pods.is_empty() { "none".to_owned() } else { pods.join(", ") }
}

fn even(act: &Act) -> Promise {
    let counts = || act.shards.iter().map(|(_, count)| *count);
    let apart = counts().max().unwrap_or_default() - counts().min().unwrap_or_default();
    let list: Vec<String> = counts().map(|count| count.to_string()).collect();
    Promise::new(
        act.shards.len() == act.workers && apart <= 1,
        format!("{} workers end at most one shard apart: {}", act.workers, list.join(" / ")),
    )
}

/// How long each part of an act took, in the order in which it happened.
#[must_use]
pub fn times_table(times: &Times) -> Vec<String> {
    let since = |from: Timestamp, to: Timestamp| to.duration_since(from).as_secs_f64();
    let all_ready = times.repaired.map_or(times.pods_ready, |repaired| repaired.max(times.pods_ready));
    let reaction = target("after the last pod was ready", since(all_ready, times.job));
    let report = target("after the job's end", since(times.ended, times.balanced));
    let mut lines = vec![
        (times.applied, "applied".to_owned()),
        (times.pods_ready, "new pod ready".to_owned()),
        (times.joined, "joined: Citus knows the new worker".to_owned()),
        (times.job, format!("rebalance job started: {reaction}")),
        (times.started, "first move began".to_owned()),
        (times.ended, format!("job ended: {:.1} s of moves", since(times.started, times.ended))),
        (times.balanced, format!("Balanced=True: {report}")),
    ];
    let repaired = |at| (at, "worker 0 restarted with wal_level = logical, and ready".to_owned());
    lines.extend(times.repaired.map(repaired));
    lines.sort_by_key(|(at, _)| *at);
    lines.into_iter().map(|(at, what)| format!("  {:>7.1} s  {what}", since(times.applied, at))).collect()
}

/// A reaction time of the operator beside its target, two seconds. Said and not judged: it is the machine's as well.
fn target(what: &str, seconds: f64) -> String {
    let missed = if seconds > 2.0 { ", over the target of 2 s on an idle machine" } else { "" };
    format!("{seconds:.1} s {what}{missed}")
}

/// Seconds for people.
#[must_use]
pub fn seconds(took: Duration) -> String {
    format!("{:.1} s", took.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use testkit::load::ledger::{FailedTry, Key, Write};

    fn act(workers: usize, shards: &[i64], restarted: &[&str]) -> Act {
        let start = Timestamp::UNIX_EPOCH;
        let at = |millis| start + Duration::from_millis(millis);
        Act {
            workers,
            shards: shards
                .iter()
                .enumerate()
                .map(|(number, count)| (format!("w-{number}"), *count))
                .collect(),
            restarted: restarted.iter().map(ToString::to_string).collect(),
            times: Times {
                applied: start,
                repaired: None,
                pods_ready: at(3_000),
                joined: at(3_500),
                job: at(4_000),
                started: at(4_900),
                ended: at(12_900),
                balanced: at(15_900),
            },
        }
    }
    fn story(second: &[i64]) -> Story {
        Story {
            start: vec![("w-0".to_owned(), 32)],
            acts: [act(2, &[16, 16], &["w-0"]), act(3, second, &[])],
            ledger: Ledger::default(),
            differences: Differences::default(),
            loaded: 0,
        }
    }
    fn broken(story: &Story) -> Vec<String> {
        story.promises().into_iter().filter(|promise| !promise.kept).map(|promise| promise.text).collect()
    }

    #[test]
    fn each_promise_can_be_broken() {
        assert_eq!(broken(&story(&[11, 11, 10])), Vec::<String>::new());
        assert_eq!(broken(&story(&[12, 10, 10])), ["3 workers end at most one shard apart: 12 / 10 / 10"]);
        assert_eq!(broken(&story(&[16, 16])).len(), 1);

        let mut bad = story(&[11, 11, 10]);
        bad.acts[0].restarted.clear();
        bad.acts[1].restarted.push("w-1".to_owned());
        let key = Key { to_user: 7, id: 1 };
        bad.differences.missing.push(key);
        let mut at = Instant::now();
        for time in [Time::FirstMoves, Time::Join] {
            bad.ledger.phases.push((at, time.to_string()));
            bad.ledger.failed_tries.push(FailedTry { began: at, at, words: "no".to_owned() });
            at += Duration::from_secs(1);
        }
        bad.ledger.writes.push(Write { key, began: at, took: Duration::ZERO, acknowledged: false });
        assert_eq!(broken(&bad).len(), 6);
    }

    #[test]
    fn tables_line_up() {
        assert_eq!(
            story(&[11, 11, 10]).shards_table(),
            [
                "  shards            w-0  w-1  w-2",
                "  at the start       32          ",
                "  after act one      16   16     ",
                "  after act two      11   11   10",
            ]
        );
    }

    #[test]
    fn times_are_in_order_and_a_slow_reaction_is_said() {
        let mut times = act(2, &[], &[]).times;
        times.repaired = Some(times.applied + Duration::from_millis(3_400));
        assert_eq!(
            times_table(&times),
            [
                "      0.0 s  applied",
                "      3.0 s  new pod ready",
                "      3.4 s  worker 0 restarted with wal_level = logical, and ready",
                "      3.5 s  joined: Citus knows the new worker",
                "      4.0 s  rebalance job started: 0.6 s after the last pod was ready",
                "      4.9 s  first move began",
                "     12.9 s  job ended: 8.0 s of moves",
                "     15.9 s  Balanced=True: 3.0 s after the job's end, over the target of 2 s on an idle machine",
            ]
        );
    }
}
