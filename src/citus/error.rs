//! What can go wrong with a statement, by meaning. PostgreSQL's and Citus' own words are kept, each once; the name of
//! the node is in every message. Nothing is retried here.

use std::{error::Error, fmt};

use tokio_postgres::error::{DbError, ErrorPosition, Severity};

use super::messages::{one_line, tells_a_row, unquoted, without_values};

use crate::snapshot::Cause;

/// Why a statement, or the connection for it, failed.
#[derive(Debug, thiserror::Error, strum::IntoStaticStr)]
pub enum SqlError {
    /// There is no connection: refused, timed out, a certificate that is not the node's, a server that starts or stops.
    #[error("{node} cannot be reached: {why}")]
    Unreachable {
        /// The node.
        node: String,
        /// In the words of the operating system, TLS or PostgreSQL.
        why: String,
    },
    /// The server does not let the operator's role in: its certificate or pg_hba.conf is wrong, or a setting of the role or
    /// the database ends each session before it begins.
    #[error("{node} refuses the operator's login: {words}")]
    AuthenticationFailed {
        /// The node.
        node: String,
        /// PostgreSQL's words.
        words: Box<ServerMessage>,
    },
    /// The server does not let another role in than the operator's.
    #[error("{node} refuses the login of {role}: {words}")]
    RoleRefused {
        /// The node.
        node: String,
        /// The role.
        role: String,
        /// PostgreSQL's words.
        words: Box<ServerMessage>,
    },
    /// The database does not exist yet.
    #[error("{node}: {words}")]
    DatabaseMissing {
        /// The node.
        node: String,
        /// PostgreSQL's words.
        words: Box<ServerMessage>,
    },
    /// No answer within the deadline of the call. The connection is given up; what was asked may still have happened.
    #[error("{node} did not answer {operation} within {seconds} s")]
    DeadlineExceeded {
        /// The node.
        node: String,
        /// What was asked.
        operation: &'static str,
        /// The deadline in seconds.
        seconds: u64,
    },
    /// PostgreSQL or Citus refused a statement.
    #[error("{node} refused {operation}: {words}")]
    Refused {
        /// The node.
        node: String,
        /// What was asked.
        operation: &'static str,
        /// What kind of refusal it is.
        refusal: SqlErrorKind,
        /// The server's words.
        words: Box<ServerMessage>,
    },
    /// A statement of the schema's SQL failed. Nothing of it was applied.
    #[error("{node} refused the schema at line {line}, {statement}: {words}; nothing of it was applied")]
    Schema {
        /// The node.
        node: String,
        /// The line of the failure, from 1.
        line: usize,
        /// The first line of the statement, in backquotes, or that it is not shown.
        statement: String,
        /// What kind of refusal it is.
        refusal: SqlErrorKind,
        /// The server's words.
        words: Box<ServerMessage>,
    },
    /// The answer has another form than this program knows.
    #[error("{node} answered {operation} with something unexpected: {why}")]
    UnexpectedResponse {
        /// The node.
        node: String,
        /// What was asked.
        operation: &'static str,
        /// What does not fit.
        why: String,
    },
}

/// How Citus begins an error of its own about one of another node, which it passes on as a warning before.
const ESSENTIAL: &str = "failure on connection marked as essential:";

/// What a refusal means for the one who reads it, where it means something in particular.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, strum::Display, strum::IntoStaticStr, strum::EnumIter)]
pub enum SqlErrorKind {
    /// The server's own statement_timeout ended it, or somebody cancelled it.
    Cancelled,
    /// Somebody else's open transaction held the lock for too long.
    LockTimeout,
    /// A node could not reach another one.
    RemoteUnreachable,
    /// There is a rebalance already.
    RebalanceRunning,
    /// There is no rebalance.
    NoRebalance,
    /// A table has neither a primary key nor another replica identity.
    NoReplicaIdentity,
    /// A node holds the only placement of a shard.
    OnlyPlacement,
    /// pg_dist_cleanup has rows that must be gone first: a removal would make them eternal, or Citus would drop what is
    /// being made.
    CleanupPending,
    /// A worker that was to be given up answers.
    NodeAnswers,
    /// There is no worker that could take over the shards of one that is given up.
    NoSurvivor,
    /// A worker has rows under the name of a shard that is not its own.
    DataInTheWay,
    /// There is no such rebalance strategy.
    StrategyUnknown,
    /// A job would run with the rights of a superuser.
    SuperuserWouldMove,
    /// A node that joins would run code of the application as superuser.
    JoiningRunsCode,
    /// The script of an extension would meet functions of the application.
    ScriptMeetsCode,
    /// A catalog of Citus is not there: the database does not have the extension, or another version of it.
    NoExtension,
    /// The user's SQL would end the transaction it runs in, or is not SQL alone.
    UnusableSchema,
    /// Anything else.
    Other,
}

impl SqlErrorKind {
    /// It passes by itself, when a connection, a lock, a job or a session of somebody does; or what is in its way is said
    /// by those who wait for it.
    fn passes(self) -> bool {
        match self {
            Self::LockTimeout | Self::RemoteUnreachable | Self::RebalanceRunning | Self::CleanupPending => {
                true
            }
            Self::Cancelled
            | Self::NoRebalance
            | Self::NoReplicaIdentity
            | Self::OnlyPlacement
            | Self::NodeAnswers
            | Self::NoSurvivor
            | Self::DataInTheWay
            | Self::StrategyUnknown
            | Self::SuperuserWouldMove
            | Self::JoiningRunsCode
            | Self::ScriptMeetsCode
            | Self::NoExtension
            | Self::UnusableSchema
            | Self::Other => false,
        }
    }
    /// By SQLSTATE where that says it, else by words that Citus gives only then (`lc_messages` of a session is `C`).
    #[must_use]
    pub fn of(sqlstate: &str, message: &str) -> Self {
        let says = |words: &str| message.contains(words);
        match sqlstate {
            "57014" => Self::Cancelled,
            "55P03" => Self::LockTimeout,
            _ if says("is already running as job") => Self::RebalanceRunning,
            _ if says("no ongoing rebalance") => Self::NoRebalance,
            _ if says("REPLICA IDENTITY or PRIMARY KEY") => Self::NoReplicaIdentity,
            _ if says("contains the only shard placement") => Self::OnlyPlacement,
            _ if says("could not find rebalance strategy") => Self::StrategyUnknown,
            // 08: connections; 57P: the other node is being shut down.
            _ if sqlstate.starts_with("08") || sqlstate.starts_with("57P") => Self::RemoteUnreachable,
            // The last by run_command_on_all_nodes.
            _ if says("connection to the remote node")
                || says("connection marked as essential")
                || says("failed to connect to") =>
            {
                Self::RemoteUnreachable
            }
            "42P01" | "42883" | "42703" if says("citus") || says("pg_dist_") => Self::NoExtension,
            _ => Self::Other,
        }
    }
}

/// What a server said, whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerMessage {
    /// SQLSTATE, five characters.
    pub sqlstate: String,
    /// The message.
    pub message: String,
    /// DETAIL.
    pub detail: Option<String>,
    /// HINT.
    pub hint: Option<String>,
    /// Offset in characters of the statement, from 0, if the server named one.
    pub position: Option<usize>,
}

impl ServerMessage {
    /// Everything that was said, values too: for what the user wrote in the spec and nowhere else.
    pub(super) fn in_full(&self) -> String {
        let hint = self.hint.as_ref().map(|hint| format!(". {}", one_line(hint).trim_end_matches('.')));
        let detail =
            self.detail.as_ref().map(|detail| format!(" ({})", one_line(detail).trim_end_matches('.')));
        one_line(&self.message) + &detail.unwrap_or_default() + &hint.unwrap_or_default()
    }
    /// Without what is in quotes: the statement that the server quotes from held a secret.
    pub(super) fn forget_quoted(&mut self) {
        self.message = unquoted(&self.message);
        (self.detail, self.hint) = (None, None);
    }
    /// A constraint, or the form of a value: the words may be those of a row.
    fn are_about_values(&self) -> bool {
        self.sqlstate.starts_with("22") || self.sqlstate.starts_with("23")
    }
}

/// Values of rows are the application's, and go into no status, event or log: of an error about the form of values
/// (class 22) nothing that is quoted, of any error nothing behind a colon that quotes, and no DETAIL that tells a row.
impl fmt::Display for ServerMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let message = one_line(&self.message);
        if self.sqlstate.starts_with("22") {
            f.write_str(&unquoted(&without_values(&message)))?;
        } else {
            f.write_str(without_values(&message).trim_end())?;
        }
        let detail = self.detail.as_ref().filter(|detail| !self.are_about_values() && !tells_a_row(detail));
        if let Some(detail) = detail {
            write!(f, " ({})", without_values(&one_line(detail)).trim_end_matches('.'))?;
        }
        if let Some(hint) = &self.hint {
            write!(f, ". {}", one_line(hint).trim_end_matches('.'))?;
        }
        Ok(())
    }
}

impl From<&DbError> for ServerMessage {
    fn from(error: &DbError) -> Self {
        Self {
            sqlstate: error.code().code().to_owned(),
            message: cut(error.message()),
            detail: error.detail().map(cut),
            hint: error.hint().map(cut),
            position: match error.position() {
                Some(ErrorPosition::Original(position)) => {
                    usize::try_from(*position).unwrap_or(1).checked_sub(1)
                }
                _ => None,
            },
        }
    }
}

impl SqlError {
    /// The node it is about.
    #[must_use]
    pub fn node(&self) -> &str {
        match self {
            Self::Unreachable { node, .. }
            | Self::AuthenticationFailed { node, .. }
            | Self::RoleRefused { node, .. }
            | Self::DatabaseMissing { node, .. }
            | Self::DeadlineExceeded { node, .. }
            | Self::Refused { node, .. }
            | Self::Schema { node, .. }
            | Self::UnexpectedResponse { node, .. } => node,
        }
    }
    /// The server's words, if a server spoke.
    #[must_use]
    pub fn words(&self) -> Option<&ServerMessage> {
        match self {
            Self::AuthenticationFailed { words, .. }
            | Self::RoleRefused { words, .. }
            | Self::DatabaseMissing { words, .. }
            | Self::Refused { words, .. }
            | Self::Schema { words, .. } => Some(words),
            Self::Unreachable { .. } | Self::DeadlineExceeded { .. } | Self::UnexpectedResponse { .. } => {
                None
            }
        }
    }
    /// SQLSTATE, if a server spoke.
    #[must_use]
    pub fn sqlstate(&self) -> Option<&str> {
        self.words().map(|words| words.sqlstate.as_str())
    }
    /// What kind of refusal it is, if it is one.
    #[must_use]
    pub fn refusal(&self) -> Option<SqlErrorKind> {
        match self {
            Self::Refused { refusal, .. } => Some(*refusal),
            _ => None,
        }
    }
    /// The schema's SQL itself is wrong, not the moment at which it was run: whatever is not a lost connection (class 08),
    /// a conflict with somebody else (40, a lock), resources or disks that run out (53, 58), a server that starts or stops
    /// or a person who cancels (57), or a bug of the server's (XX001, XX002). A parameter (08P01), a file that is missing
    /// (58P01), a timeout (57014) and an object that the SQL itself still uses (55006) are the SQL's.
    #[must_use]
    pub fn is_wrong_schema(&self) -> bool {
        match self {
            Self::Refused { refusal: SqlErrorKind::UnusableSchema, .. } => true,
            Self::Schema { words, refusal, .. } => {
                let passes = ["08", "40", "53", "57P", "58", "55P03", "XX001", "XX002"];
                let own = ["08P01", "58P01"].contains(&words.sqlstate.as_str());
                let cancelled = *refusal == SqlErrorKind::Cancelled && words.message.contains("user request");
                let elsewhere = *refusal == SqlErrorKind::RemoteUnreachable && !own;
                own || !elsewhere
                    && !cancelled
                    && !passes.iter().any(|state| words.sqlstate.starts_with(state))
            }
            _ => false,
        }
    }
    /// Citus says that another node refused, and neither what nor in which words.
    pub(super) fn is_of_another_node(&self) -> bool {
        matches!(self, Self::Refused { words, .. } if words.message.starts_with(ESSENTIAL))
    }
    /// The same in the words of that node.
    pub(super) fn in_words_of(mut self, sqlstate: &str, message: &str) -> Self {
        if let Self::Refused { refusal, words, .. } = &mut self {
            let place = words.message.strip_prefix(ESSENTIAL).unwrap_or_default().to_owned();
            *refusal = SqlErrorKind::of(sqlstate, message);
            sqlstate.clone_into(&mut words.sqlstate);
            words.message = format!("{} (said by{place})", message.trim_end_matches('.'));
        }
        self
    }
    /// Somebody holds a lock that was not given up in time.
    #[must_use]
    pub fn is_lock_timeout(&self) -> bool {
        match self {
            Self::Refused { words, .. } | Self::Schema { words, .. } => words.sqlstate == "55P03",
            _ => false,
        }
    }
    /// Whether somebody refused, and with which word, or whether it only has to wait.
    #[must_use]
    pub fn cause(&self) -> Cause {
        match self {
            Self::UnexpectedResponse { .. } => Cause::Unusable,
            Self::AuthenticationFailed { words, .. } | Self::RoleRefused { words, .. } => {
                Cause::Login(words.sqlstate.clone())
            }
            Self::Refused { refusal, words, .. } if !refusal.passes() => {
                Cause::of_sqlstate(&words.sqlstate, &words.message)
            }
            Self::Unreachable { .. } | Self::DeadlineExceeded { .. } | Self::Refused { .. } => Cause::Wait,
            Self::DatabaseMissing { words, .. } | Self::Schema { words, .. } => {
                Cause::of_sqlstate(&words.sqlstate, &words.message)
            }
        }
    }
    /// The kind of error in one word, for metrics: a bounded set.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Refused { refusal, .. } => refusal.into(),
            other => other.into(),
        }
    }

    /// The error of a connection that could not be made.
    pub(super) fn connecting(node: &str, error: &tokio_postgres::Error) -> Self {
        let node = node.to_owned();
        let Some(server) = error.as_db_error() else {
            return Self::Unreachable { node, why: chain(error) };
        };
        let words = Box::new(ServerMessage::from(server));
        match words.sqlstate.as_str() {
            "3D000" => Self::DatabaseMissing { node, words },
            // A role, a certificate, pg_hba.conf; or a setting of the role or the database with which no session begins.
            state if Cause::of_sqlstate(state, &words.message).is_refusal() => {
                Self::AuthenticationFailed { node, words }
            }
            _ => Self::Unreachable { node, why: words.to_string() },
        }
    }

    /// The error of a statement.
    pub(super) fn operation(node: &str, operation: &'static str, error: &tokio_postgres::Error) -> Self {
        let node = node.to_owned();
        match error.as_db_error() {
            // The server ends the connection: it is being shut down, has crashed, or an administrator wants it so.
            Some(server) if matches!(server.parsed_severity(), Some(Severity::Fatal | Severity::Panic)) => {
                Self::Unreachable { node, why: ServerMessage::from(server).to_string() }
            }
            Some(server) => {
                let words = Box::new(ServerMessage::from(server));
                let refusal = SqlErrorKind::of(&words.sqlstate, &words.message);
                Self::Refused { node, operation, refusal, words }
            }
            None if error.is_closed() || is_io(error) => Self::Unreachable { node, why: chain(error) },
            None => Self::UnexpectedResponse { node, operation, why: chain(error) },
        }
    }
}

fn is_io(error: &tokio_postgres::Error) -> bool {
    error.source().is_some_and(<dyn Error>::is::<std::io::Error>)
}

/// The longest text of a server that is kept, in bytes.
const TEXT: usize = 4096;

/// The beginning of a text that a server sent: it goes into conditions and events, and may be of any length.
pub(super) fn cut(text: &str) -> String {
    if text.len() <= TEXT {
        return text.to_owned();
    }
    format!("{}...", &text[..text.floor_char_boundary(TEXT)])
}

/// An error and its causes in one line, none of them twice.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("XX000", "A rebalance is already running as job 4", SqlErrorKind::RebalanceRunning)]
    #[case(
        "0A000",
        "cannot use logical replication to transfer shards of the relation nopk since it doesn't have a REPLICA IDENTITY or PRIMARY KEY",
        SqlErrorKind::NoReplicaIdentity
    )]
    #[case(
        "08006",
        "connection to the remote node postgres@127.0.0.1:7999 failed with the following error: Connection refused",
        SqlErrorKind::RemoteUnreachable
    )]
    #[case("XX000", "failure on connection marked as essential: a:5432", SqlErrorKind::RemoteUnreachable)]
    #[case("", "failed to connect to a:5432", SqlErrorKind::RemoteUnreachable)]
    #[case("57P01", "terminating connection due to administrator command", SqlErrorKind::RemoteUnreachable)]
    #[case(
        "55000",
        "cannot remove or disable the node a:5432 because because it contains the only shard placement for shard 102009",
        SqlErrorKind::OnlyPlacement
    )]
    #[case("42704", "could not find rebalance strategy with name x", SqlErrorKind::StrategyUnknown)]
    #[case("57014", "canceling statement due to statement timeout", SqlErrorKind::Cancelled)]
    #[case("55P03", "canceling statement due to lock timeout", SqlErrorKind::LockTimeout)]
    #[case("42P01", "relation \"pg_catalog.pg_dist_node\" does not exist", SqlErrorKind::NoExtension)]
    #[case("42P01", "relation \"public.dialogs\" does not exist", SqlErrorKind::Other)]
    fn a_refusal_is_known_by_its_state_or_its_words(
        #[case] sqlstate: &str,
        #[case] message: &str,
        #[case] meaning: SqlErrorKind,
    ) {
        assert_eq!(SqlErrorKind::of(sqlstate, message), meaning);
    }

    #[test]
    fn words_are_said_whole_and_once() {
        let words = ServerMessage {
            sqlstate: "0A000".to_owned(),
            message: "cannot\n\tmove\n".to_owned(),
            detail: Some("There is no key.".to_owned()),
            hint: Some("Add one.".to_owned()),
            position: None,
        };
        let error = SqlError::Refused {
            node: "shop-coordinator".to_owned(),
            operation: "citus_rebalance_start",
            refusal: SqlErrorKind::Other,
            words: Box::new(words),
        };
        assert_eq!(
            error.to_string(),
            "shop-coordinator refused citus_rebalance_start: cannot move (There is no key). Add one"
        );
        assert_eq!(
            (error.node(), error.sqlstate(), error.reason()),
            ("shop-coordinator", Some("0A000"), "Other")
        );
        assert!(error.source().is_none(), "the words would be said twice by whoever prints the chain");
    }

    #[rstest]
    #[case(
        "23514",
        "new row for relation \"t_1\" violates check constraint \"c\"",
        "Failing row contains (1, my PIN).",
        "new row for relation \"t_1\" violates check constraint \"c\""
    )]
    #[case(
        "23505",
        "duplicate key value violates unique constraint \"k\"",
        "Key (a)=(my PIN) already exists.",
        "duplicate key value violates unique constraint \"k\""
    )]
    #[case(
        "22P02",
        "invalid input syntax for type bigint: \"my PIN\"",
        "x",
        "invalid input syntax for type bigint"
    )]
    #[case(
        "22003",
        "value \"my PIN\" is out of range for type integer",
        "x",
        "value \"...\" is out of range for type integer"
    )]
    #[case(
        "22P02",
        "invalid input value for enum mood: \"my \"PIN\"\"",
        "x",
        "invalid input value for enum mood"
    )]
    #[case("XX000", "failed to send 42 bytes my PIN", "x", "failed to send 42 bytes (x)")]
    #[case("XX000", "it failed", "COPY t_1, line 7: \"my PIN\"", "it failed (COPY t_1)")]
    #[case("42P01", "relation \"t\" does not exist", "Because.", "relation \"t\" does not exist (Because)")]
    fn values_of_rows_are_not_told(
        #[case] sqlstate: &str,
        #[case] message: &str,
        #[case] detail: &str,
        #[case] told: &str,
    ) {
        let words = ServerMessage {
            sqlstate: sqlstate.to_owned(),
            message: message.to_owned(),
            detail: Some(detail.to_owned()),
            ..ServerMessage::default()
        };
        assert_eq!(words.to_string(), told);
    }

    #[rstest]
    #[case("3F000", SqlErrorKind::Other, true)]
    #[case("25001", SqlErrorKind::Other, true)]
    #[case("42501", SqlErrorKind::Other, true)]
    #[case("XX000", SqlErrorKind::Other, true)]
    #[case("XX000", SqlErrorKind::RemoteUnreachable, false)]
    #[case("40P01", SqlErrorKind::Other, false)]
    #[case("55P03", SqlErrorKind::LockTimeout, false)]
    #[case("57014", SqlErrorKind::Cancelled, true)]
    #[case("57P01", SqlErrorKind::RemoteUnreachable, false)]
    #[case("53100", SqlErrorKind::Other, false)]
    #[case("58030", SqlErrorKind::Other, false)]
    #[case("58P01", SqlErrorKind::Other, true)]
    #[case("55006", SqlErrorKind::Other, true)]
    #[case("08P01", SqlErrorKind::RemoteUnreachable, true)]
    #[case("08006", SqlErrorKind::RemoteUnreachable, false)]
    fn a_schema_is_wrong_unless_the_moment_was(
        #[case] state: &str,
        #[case] refusal: SqlErrorKind,
        #[case] wrong: bool,
    ) {
        let words = Box::new(ServerMessage { sqlstate: state.to_owned(), ..ServerMessage::default() });
        let error =
            SqlError::Schema { node: "n".to_owned(), line: 1, statement: "`S`".to_owned(), refusal, words };
        assert_eq!(error.is_wrong_schema(), wrong);
    }

    #[test]
    fn a_chain_of_causes_is_one_line() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer: inner")]
        struct Outer(#[source] Inner);
        #[derive(Debug, thiserror::Error)]
        #[error("inner")]
        struct Inner(#[source] std::io::Error);
        let error = Outer(Inner(std::io::Error::other("refused")));
        assert_eq!(chain(&error), "outer: inner: refused");
    }
}
