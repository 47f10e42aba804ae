//! What a writer remembers of its rows, what that says about a stretch of time, and whether the table says the same.
//! No row is written here.

use std::{collections::HashMap, fmt, pin::pin, time::Duration};

use anyhow::Context as _;
use futures::TryStreamExt as _;
use tokio::time::Instant;
use tokio_postgres::Client;

use super::rows;

/// The primary key of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Who reads the message: the column by which the table is distributed.
    pub to_user: i64,
    /// `message_id`.
    pub id: u128,
}

impl Key {
    /// `message_id` as PostgreSQL reads it.
    #[must_use]
    pub fn uuid(&self) -> String {
        format!("{:032x}", self.id)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.to_user, self.uuid())
    }
}

/// A row that was written: every try of it counts as one write.
#[derive(Clone, Debug)]
pub struct Write {
    /// Its key.
    pub key: Key,
    /// When it was tried first.
    pub began: Instant,
    /// From the first try to the acknowledgement, or until it was given up.
    pub took: Duration,
    /// Whether the database acknowledged it. If not, it failed for good, and may be in the table all the same.
    pub acknowledged: bool,
}

/// A try that ended in an error, whatever became of the row.
#[derive(Clone, Debug)]
pub struct FailedTry {
    /// When the try began.
    pub began: Instant,
    /// When it failed.
    pub at: Instant,
    /// In PostgreSQL's, Citus' or the connection's words.
    pub words: String,
}

/// All that a writer did, from its start to its end.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// Every row.
    pub writes: Vec<Write>,
    /// Every try that failed.
    pub failed_tries: Vec<FailedTry>,
    /// Where a phase begins, in order; it ends with the next one or with the ledger.
    pub phases: Vec<(Instant, String)>,
    /// The end.
    pub ended: Option<Instant>,
}

/// What a stretch of time was like for the writer: what *began* in it, whenever it ended. Whoever wants to be sure that
/// nothing of before ends in it waits for [`Writer::settled`](super::writer::Writer::settled) first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures {
    /// Rows.
    pub writes: usize,
    /// Rows that were given up.
    pub failed_for_good: usize,
    /// Tries that failed.
    pub failed_tries: usize,
    /// The longest time from a first try to its acknowledgement.
    pub longest: Duration,
    /// All but one in a thousand took no longer than this.
    pub p999: Duration,
    /// What the failed tries were told, each sentence once, at most five.
    pub words: Vec<String>,
}

/// Where the table and the memory of its writers disagree.
#[derive(Clone, Debug, Default)]
pub struct Differences {
    /// Rows in the table.
    pub rows: u64,
    /// Rows that should be there.
    pub expected: u64,
    /// Loaded or acknowledged, and not there.
    pub missing: Vec<Key>,
    /// There more than once.
    pub duplicated: Vec<Key>,
    /// There, and written by nobody known. (A row that failed for good may be there: its last answer was lost.)
    pub strange: Vec<Key>,
}

impl Differences {
    /// The table holds exactly what it should.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.missing.is_empty() && self.duplicated.is_empty() && self.strange.is_empty()
    }
}

impl Ledger {
    /// Rows that the database acknowledged.
    pub fn acknowledged(&self) -> impl Iterator<Item = Key> + '_ {
        self.writes.iter().filter(|write| write.acknowledged).map(|write| write.key)
    }

    /// Rows that were given up.
    #[must_use]
    pub fn failed_for_good(&self) -> Vec<Key> {
        self.writes.iter().filter(|write| !write.acknowledged).map(|write| write.key).collect()
    }

    /// What a phase was like; all zero if there was none of that name. A name used again means both stretches.
    #[must_use]
    pub fn phase(&self, name: &str) -> Figures {
        let ends = self.phases.iter().skip(1).map(|(at, _)| Some(*at)).chain([self.ended]);
        let stretches = self.phases.iter().zip(ends).filter(|((_, phase), _)| phase == name);
        self.figures(&stretches.map(|((from, _), to)| (*from, to)).collect::<Vec<_>>())
    }

    /// What a stretch of time was like.
    #[must_use]
    pub fn between(&self, from: Instant, to: Instant) -> Figures {
        self.figures(&[(from, Some(to))])
    }

    fn figures(&self, stretches: &[(Instant, Option<Instant>)]) -> Figures {
        let inside = |began: Instant| {
            stretches.iter().any(|(from, to)| began >= *from && to.is_none_or(|to| began < to))
        };
        let mut figures = Figures::default();
        let mut took = Vec::new();
        for write in self.writes.iter().filter(|write| inside(write.began)) {
            took.push(write.took);
            figures.failed_for_good += usize::from(!write.acknowledged);
        }
        took.sort_unstable();
        figures.writes = took.len();
        figures.longest = took.last().copied().unwrap_or_default();
        figures.p999 = took.iter().rev().nth(took.len() / 1_000).copied().unwrap_or_default();
        for failed in self.failed_tries.iter().filter(|failed| inside(failed.began)) {
            figures.failed_tries += 1;
            if figures.words.len() < 5 && !figures.words.contains(&failed.words) {
                figures.words.push(failed.words.clone());
            }
        }
        figures
    }

    /// Reads every key of the table and compares them one by one with the first `loaded` rows of
    /// [`rows::load`] and with what this ledger knows. Nobody may write meanwhile.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn compare(&self, client: &Client, loaded: u64) -> anyhow::Result<Differences> {
        let there = keys(client).await.context("cannot read the keys of public.dialogs")?;
        Ok(self.differences(there, loaded))
    }

    fn differences(&self, mut there: HashMap<Key, u64>, loaded: u64) -> Differences {
        let mut found = Differences { rows: there.values().sum(), ..Differences::default() };
        found.duplicated = there.iter().filter(|(_, times)| **times > 1).map(|(key, _)| *key).collect();
        for key in (0..loaded).map(rows::key).chain(self.acknowledged()) {
            found.expected += 1;
            if there.remove(&key).is_none() {
                found.missing.push(key);
            }
        }
        for key in self.failed_for_good() {
            there.remove(&key);
        }
        found.strange = there.into_keys().collect();
        found
    }
}

async fn keys(client: &Client) -> Result<HashMap<Key, u64>, tokio_postgres::Error> {
    let statement = "SELECT to_user, uuid_send(message_id) FROM public.dialogs";
    let rows = client.query_raw(statement, std::iter::empty::<i64>()).await?;
    let mut rows = pin!(rows);
    let mut there = HashMap::new();
    while let Some(row) = rows.try_next().await? {
        let id: &[u8] = row.try_get(1)?;
        let id = id.iter().fold(0, |id, byte| id << 8 | u128::from(*byte));
        *there.entry(Key { to_user: row.try_get(0)?, id }).or_default() += 1;
    }
    Ok(there)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(start: Instant, id: u128, began: u64, took: u64, acknowledged: bool) -> Write {
        Write {
            key: Key { to_user: 7, id },
            began: start + Duration::from_millis(began),
            took: Duration::from_millis(took),
            acknowledged,
        }
    }

    #[test]
    fn a_row_counts_where_it_began() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let ledger = Ledger {
            writes: vec![
                write(start, 1, 0, 10, true),
                write(start, 2, 110, 560, true),
                write(start, 3, 700, 5, false),
            ],
            failed_tries: vec![FailedTry { began: at(110), at: at(650), words: "gone".to_owned() }],
            phases: vec![
                (at(0), "quiet".to_owned()),
                (at(100), "restart".to_owned()),
                (at(600), "quiet".to_owned()),
            ],
            ended: Some(at(1000)),
        };
        let quiet = ledger.phase("quiet");
        assert_eq!((quiet.writes, quiet.failed_for_good, quiet.failed_tries), (2, 1, 0));
        let restart = ledger.phase("restart");
        assert_eq!((restart.writes, restart.failed_for_good, restart.failed_tries), (1, 0, 1));
        assert_eq!((restart.longest, restart.words), (Duration::from_millis(560), vec!["gone".to_owned()]));
        assert_eq!(ledger.phase("none"), Figures::default());
    }

    #[test]
    fn one_in_a_thousand_may_be_slower() {
        let start = Instant::now();
        let p999 = |rows: u32| {
            let writes = (1..=rows).map(|row| write(start, row.into(), 0, row.into(), true)).collect();
            let ledger = Ledger { writes, phases: vec![(start, "all".to_owned())], ..Ledger::default() };
            ledger.phase("all").p999
        };
        assert_eq!(p999(999), Duration::from_millis(999));
        assert_eq!(p999(1_000), Duration::from_millis(999));
        assert_eq!(p999(2_000), Duration::from_millis(1_998));
    }

    #[test]
    fn each_difference_is_named() {
        let start = Instant::now();
        let ledger = Ledger {
            writes: vec![
                write(start, 11, 0, 1, true),
                write(start, 12, 0, 1, true),
                write(start, 13, 0, 1, false),
            ],
            ..Ledger::default()
        };
        let mut there: HashMap<Key, u64> = (0..4).map(|sequence| (rows::key(sequence), 1)).collect();
        let exact = |there: &HashMap<Key, u64>| ledger.differences(there.clone(), 4);
        there.extend([(Key { to_user: 7, id: 11 }, 1), (Key { to_user: 7, id: 12 }, 1)]);
        assert!(exact(&there).is_none());
        assert_eq!((exact(&there).rows, exact(&there).expected), (6, 6));
        // A row whose acknowledgement was lost is neither missing nor strange.
        there.insert(Key { to_user: 7, id: 13 }, 1);
        assert!(exact(&there).is_none());

        there.remove(&Key { to_user: 7, id: 12 });
        there.insert(rows::key(0), 2);
        there.insert(Key { to_user: 8, id: 11 }, 1);
        let found = exact(&there);
        assert_eq!(found.missing, [Key { to_user: 7, id: 12 }]);
        assert_eq!(found.duplicated, [rows::key(0)]);
        assert_eq!(found.strange, [Key { to_user: 8, id: 11 }]);
        assert!(!found.is_none());
    }
}
