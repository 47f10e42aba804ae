//! A writer that keeps going: single rows at a steady pace over a few connections. A row whose try fails is tried again
//! under the same key until it is acknowledged, so that it is stored once, however often it is sent.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior},
};
use tokio_postgres::{Client, Statement};
use tokio_util::sync::CancellationToken;

use super::{
    access::Access,
    ledger::{FailedTry, Key, Ledger, Write},
    rows::{PEOPLE, USERS},
};

/// How long a single try may take. Longer than anything a healthy cluster does to a row.
const TRY: Duration = Duration::from_secs(30);
/// Between two tries of a row: soon enough that the longest write is the database's doing and not this pause's.
const PAUSE: Duration = Duration::from_millis(20);
/// One row. Which key it conflicts with need not be said: the table has only the primary one.
const INSERT: &str = "INSERT INTO public.dialogs (from_user, to_user, message, created_at, message_id)
     VALUES ($1, $2, $3, $4, $5::text::uuid) ON CONFLICT DO NOTHING";

/// How a writer writes.
#[derive(Clone)]
pub struct Pace {
    /// Connections, each with one row under way at most.
    pub connections: u32,
    /// Rows a second of all connections together.
    pub rows_per_second: u32,
    /// How long a row is tried before it has failed for good.
    pub patience: Duration,
}

impl Default for Pace {
    /// 200 rows a second over four connections, each row tried for two minutes.
    fn default() -> Self {
        Self { connections: 4, rows_per_second: 200, patience: Duration::from_mins(2) }
    }
}

/// A writer at work. When it is dropped, it ends at once and what it remembers is lost.
pub struct Writer {
    ledger: Arc<Mutex<Ledger>>,
    acknowledged: Arc<AtomicU64>,
    /// When the row under way on each connection began.
    under_way: UnderWay,
    stop: CancellationToken,
    connections: JoinSet<()>,
}

type UnderWay = Arc<Mutex<BTreeMap<u32, Instant>>>;

impl Writer {
    /// Starts writing, in the phase of the given name. A database that cannot be reached is waited for like one that
    /// went away later: each row that waits is a failed try.
    #[must_use]
    pub fn start(access: &Access, pace: &Pace, phase: &str) -> Self {
        let ledger = Ledger { phases: vec![(Instant::now(), phase.to_owned())], ..Ledger::default() };
        let mut writer = Self {
            ledger: Arc::new(Mutex::new(ledger)),
            acknowledged: Arc::default(),
            under_way: Arc::default(),
            stop: CancellationToken::new(),
            connections: JoinSet::new(),
        };
        let run: u64 = rand::random_range(1..=u64::MAX);
        for number in 0..pace.connections {
            let hand = Hand {
                number,
                access: access.clone(),
                pace: pace.clone(),
                ledger: Arc::clone(&writer.ledger),
                acknowledged: Arc::clone(&writer.acknowledged),
                under_way: Arc::clone(&writer.under_way),
                stop: writer.stop.clone(),
                next_id: u128::from(run) << 64 | u128::from(number) << 48,
                session: None,
            };
            writer.connections.spawn(hand.write());
        }
        writer
    }

    /// Begins a phase: what happens from now on counts for it.
    pub fn mark(&self, phase: &str) {
        lock(&self.ledger).phases.push((Instant::now(), phase.to_owned()));
    }

    /// Rows acknowledged so far.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Whether every row that was under way at that time has come to its end.
    #[must_use]
    pub fn settled(&self, since: Instant) -> bool {
        lock(&self.under_way).values().all(|began| *began > since)
    }

    /// What is remembered so far.
    #[must_use]
    pub fn so_far(&self) -> Ledger {
        lock(&self.ledger).clone()
    }

    /// Ends writing: no new row is begun, those under way are brought to their end first.
    pub async fn stop(mut self) -> Ledger {
        self.stop.cancel();
        while self.connections.join_next().await.is_some() {}
        let mut ledger = std::mem::take(&mut *lock(&self.ledger));
        ledger.ended = Some(Instant::now());
        ledger
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One connection of a writer.
struct Hand {
    number: u32,
    access: Access,
    pace: Pace,
    ledger: Arc<Mutex<Ledger>>,
    acknowledged: Arc<AtomicU64>,
    under_way: UnderWay,
    stop: CancellationToken,
    next_id: u128,
    session: Option<(Client, Statement)>,
}

/// A message that is to be stored once.
struct Message {
    key: Key,
    from_user: i64,
    text: String,
    at: Timestamp,
}

impl Hand {
    async fn write(mut self) {
        let period = Duration::from_secs(1) * self.pace.connections / self.pace.rows_per_second.max(1);
        let mut clock = tokio::time::interval(period);
        // A stall is not made up for by a burst, which would be a load of another kind.
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                _ = clock.tick() => {}
            }
            let message = self.next_message();
            let began = Instant::now();
            lock(&self.under_way).insert(self.number, began);
            let acknowledged = self.store(&message).await;
            let write = Write { key: message.key, began, took: began.elapsed(), acknowledged };
            lock(&self.ledger).writes.push(write);
            lock(&self.under_way).remove(&self.number);
            if acknowledged {
                self.acknowledged.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn next_message(&mut self) -> Message {
        let id = self.next_id;
        self.next_id += 1;
        // The dialog of the two stays as it was loaded.
        let to_user = loop {
            let user = rand::random_range(1..=USERS);
            if !PEOPLE.contains(&user) {
                break user;
            }
        };
        let from_user = rand::random_range(1..=USERS);
        Message {
            key: Key { to_user, id },
            from_user,
            text: format!("hello {to_user}"),
            at: Timestamp::now(),
        }
    }

    /// Tries until the row is acknowledged; `false` when patience has ended.
    async fn store(&mut self, message: &Message) -> bool {
        let deadline = Instant::now() + self.pace.patience;
        loop {
            let began = Instant::now();
            let Err(words) = self.one_try(message).await else { return true };
            let at = Instant::now();
            lock(&self.ledger).failed_tries.push(FailedTry { began, at, words });
            if at >= deadline {
                return false;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// One try; the error in the words of whoever refused it.
    async fn one_try(&mut self, message: &Message) -> Result<(), String> {
        let tried = tokio::time::timeout(TRY, self.send(message)).await;
        let Ok(answer) = tried else {
            self.session = None;
            return Err(format!("no answer within {} s", TRY.as_secs()));
        };
        answer.map_err(|error| {
            if self.session.as_ref().is_some_and(|(client, _)| client.is_closed()) {
                self.session = None;
            }
            words(&error)
        })
    }

    async fn send(&mut self, message: &Message) -> anyhow::Result<()> {
        let (client, insert) = match &mut self.session {
            Some(session) => session,
            none => {
                let client = self.access.connect().await?;
                let insert = client.prepare(INSERT).await?;
                none.insert((client, insert))
            }
        };
        let Message { key, from_user, text, at } = message;
        client.execute(insert, &[from_user, &key.to_user, text, at, &key.uuid()]).await?;
        Ok(())
    }
}

/// An error and its causes in one line.
fn words(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        // DETAIL comes on a line of its own.
        let words = cause.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        if words != "db error" && !text.contains(&words) {
            text = if text.is_empty() { words } else { format!("{text}: {words}") };
        }
    }
    text
}
