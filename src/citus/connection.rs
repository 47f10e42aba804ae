//! A [`Connection`]: one connection, one call at a time, each with a deadline. No statement is written here.

use std::{
    collections::VecDeque,
    fmt,
    future::Future,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde::de::DeserializeOwned;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    runtime::Handle,
    sync::MutexGuard,
    task::JoinHandle,
    time::Instant,
};
use tokio_postgres::{
    AsyncMessage, CancelToken, Client, Row,
    types::{FromSql, ToSql, Type},
};

use super::{
    error::{ServerMessage, SqlError, SqlErrorKind, chain, cut},
    meter::{Meter, Plain},
    target::{Target, Tls},
};

/// Deadline of a read.
pub(super) const READ: Duration = Duration::from_secs(10);
/// Deadline of a write that touches one node.
pub(super) const WRITE: Duration = Duration::from_secs(30);
/// Deadline of a write that touches every node.
pub(super) const CLUSTER_WRITE: Duration = Duration::from_secs(90);
/// Deadline of a write whose work grows with the data or with the user's SQL.
pub(super) const LONG_WRITE: Duration = Duration::from_mins(5);
/// Notices kept of one call.
const NOTICES: usize = 20;

/// What a server says beside its answers.
#[derive(Clone)]
struct Notice {
    sqlstate: String,
    message: String,
}

/// One connection to a database of one node. When it is dropped, the connection is closed.
pub struct Connection {
    node: String,
    database: String,
    client: tokio::sync::Mutex<Client>,
    cancel: CancelToken,
    tls: Tls,
    driver: JoinHandle<()>,
    notices: Arc<Mutex<VecDeque<Notice>>>,
    meter: Arc<Meter>,
    /// A call was given up: what the server does with it is unknown, so nothing else is asked over this connection.
    given_up: AtomicBool,
    /// The extension was there at the last look.
    extension: AtomicBool,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("node", &self.node)
            .field("database", &self.database)
            .finish_non_exhaustive()
    }
}

/// A parameter of a statement and its type: given, so that a statement takes one round trip and not two.
pub(super) type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

/// A call under way: the name of what is asked, and until when an answer is waited for.
pub(super) struct Call<'a> {
    connection: &'a Connection,
    operation: &'static str,
    until: Instant,
    seconds: u64,
}

impl Connection {
    pub(super) fn start<S, T>(
        target: &Target,
        tls: &Tls,
        meter: Arc<Meter>,
        client: Client,
        driver: tokio_postgres::Connection<S, T>,
    ) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let notices = Arc::new(Mutex::new(VecDeque::new()));
        Self {
            node: target.node.clone(),
            database: target.database.clone(),
            cancel: client.cancel_token(),
            client: tokio::sync::Mutex::new(client),
            tls: tls.clone(),
            driver: tokio::spawn(drive(target.node.clone(), driver, Arc::clone(&notices))),
            notices,
            meter,
            given_up: AtomicBool::new(false),
            extension: AtomicBool::new(false),
        }
    }

    /// Name of the node.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.node
    }
    /// The database it is connected to.
    #[must_use]
    pub fn database(&self) -> &str {
        &self.database
    }
    /// Nothing can be asked any more: connect again.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.given_up.load(Ordering::Relaxed) || self.driver.is_finished()
    }

    /// Ends the connection after an answer was not waited for: the next one who asks must not queue behind it.
    pub fn poison(&self) {
        self.given_up.store(true, Ordering::Relaxed);
        self.cancel();
    }

    pub(super) fn saw_extension(&self) -> bool {
        self.extension.load(Ordering::Relaxed)
    }
    pub(super) fn note_extension(&self, there: bool) {
        self.extension.store(there, Ordering::Relaxed);
    }

    /// Begins a call: waits until the connection is free. `operation` names it in errors and metrics.
    pub(super) async fn call(
        &self,
        operation: &'static str,
        deadline: Duration,
    ) -> Result<(MutexGuard<'_, Client>, Call<'_>), SqlError> {
        let call = Call {
            connection: self,
            operation,
            until: Instant::now() + deadline,
            seconds: deadline.as_secs(),
        };
        let Ok(client) = tokio::time::timeout_at(call.until, self.client.lock()).await else {
            return Err(call.deadline_exceeded());
        };
        if self.is_broken() {
            return Err(SqlError::Unreachable {
                node: self.node.clone(),
                why: "the connection was lost".to_owned(),
            });
        }
        self.meter.begin();
        self.take_notices();
        Ok((client, call))
    }

    /// What the server said beside its answers since the call began, the oldest first.
    pub(super) fn take_notices(&self) -> Vec<String> {
        let mut notices = self.notices.lock().unwrap_or_else(PoisonError::into_inner);
        notices.drain(..).map(|notice| notice.message).collect()
    }

    /// The last thing that another node refused, as Citus passes it on beside its own error: with its SQLSTATE, and as a
    /// warning.
    fn passed_on(&self) -> Option<Notice> {
        let notices = self.notices.lock().unwrap_or_else(PoisonError::into_inner);
        let refused = |notice: &&Notice| !["00", "01"].iter().any(|class| notice.sqlstate.starts_with(class));
        notices.iter().rev().find(refused).cloned()
    }

    /// Asks the server to stop what it does for this connection, without waiting for that.
    fn cancel(&self) {
        // A call may also be dropped while the program ends.
        let Ok(runtime) = Handle::try_current() else { return };
        let (token, tls) = (self.cancel.clone(), self.tls.clone());
        runtime.spawn(tokio::time::timeout(super::target::CONNECT_DEADLINE, async move {
            // There is no one left to tell: the session is given up already.
            let _ = match tls {
                Tls::Off => token.cancel_query(Plain).await,
                Tls::Mutual(tls) => token.cancel_query(tls.connector()).await,
            };
        }));
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Otherwise the driver says goodbye by itself when the client goes.
        if self.given_up.load(Ordering::Relaxed) {
            self.driver.abort();
        }
    }
}

/// An answer that is waited for. Dropped before it came, it gives the session up.
struct Unfinished<'a>(Option<&'a Connection>);

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if let Some(connection) = self.0 {
            connection.poison();
        }
    }
}

impl Call<'_> {
    /// Waits for an answer of the server.
    pub(super) async fn wait<T>(
        &self,
        answer: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, SqlError> {
        // Also when nobody waits for this call any longer: the next one must not queue behind it, or read its answer.
        let mut unfinished = Unfinished(Some(self.connection));
        let answer = tokio::time::timeout_at(self.until, answer).await;
        unfinished.0 = None;
        match answer {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => {
                // Whatever is not an answer of the server leaves the two sides at odds.
                if error.as_db_error().is_none() {
                    self.connection.given_up.store(true, Ordering::Relaxed);
                }
                match self.connection.meter.refusal() {
                    Some(why) if error.as_db_error().is_none() => Err(SqlError::UnexpectedResponse {
                        node: self.connection.node.clone(),
                        operation: self.operation,
                        why: format!("it {why}, and the connection was given up"),
                    }),
                    _ => {
                        let error = SqlError::operation(&self.connection.node, self.operation, &error);
                        let passed_on =
                            error.is_of_another_node().then(|| self.connection.passed_on()).flatten();
                        Err(match passed_on {
                            Some(notice) => error.in_words_of(&notice.sqlstate, &notice.message),
                            None => error,
                        })
                    }
                }
            }
            Err(_) => {
                self.connection.poison();
                Err(self.deadline_exceeded())
            }
        }
    }

    /// The only column of a row, a JSON value. What is no UTF-8 in it is replaced: Citus may store such a message of a
    /// task, and one message must not hide everything else.
    pub(super) fn json<T: DeserializeOwned>(&self, row: &Row) -> Result<T, SqlError> {
        let Json(value) = row.try_get(0).map_err(|error| self.misunderstood(&error))?;
        serde_json::from_str(&String::from_utf8_lossy(value)).map_err(|error| self.misunderstood(&error))
    }

    /// The deadline of the call, in seconds from its beginning.
    pub(super) fn seconds(&self) -> u64 {
        self.seconds
    }

    pub(super) fn misunderstood(&self, error: &dyn std::error::Error) -> SqlError {
        SqlError::UnexpectedResponse {
            node: self.connection.node.clone(),
            operation: self.operation,
            why: cut(&chain(error)),
        }
    }

    /// A refusal of this program's own, in the words of the server's.
    pub(super) fn refused(&self, refusal: SqlErrorKind, message: String) -> SqlError {
        SqlError::Refused {
            node: self.connection.node.clone(),
            operation: self.operation,
            refusal,
            words: Box::new(ServerMessage { message, ..ServerMessage::default() }),
        }
    }

    fn deadline_exceeded(&self) -> SqlError {
        SqlError::DeadlineExceeded {
            node: self.connection.node.clone(),
            operation: self.operation,
            seconds: self.seconds,
        }
    }
}

/// The text of a `json` value as it came, of whatever bytes.
struct Json<'a>(&'a [u8]);

impl<'a> FromSql<'a> for Json<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(raw))
    }

    fn accepts(asked: &Type) -> bool {
        *asked == Type::JSON
    }
}

/// Moves bytes until the connection ends. Keeps what the server says beside its answers; logs none of it.
async fn drive<S, T>(
    node: String,
    mut driver: tokio_postgres::Connection<S, T>,
    notices: Arc<Mutex<VecDeque<Notice>>>,
) where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(message) = std::future::poll_fn(|context| driver.poll_message(context)).await {
        match message {
            Ok(AsyncMessage::Notice(notice)) => {
                let mut notices = notices.lock().unwrap_or_else(PoisonError::into_inner);
                if notices.len() == NOTICES {
                    notices.pop_front();
                }
                let sqlstate = notice.code().code().to_owned();
                notices.push_back(Notice { sqlstate, message: cut(notice.message()) });
            }
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(node, error = chain(&error), "connection lost");
                return;
            }
        }
    }
}
