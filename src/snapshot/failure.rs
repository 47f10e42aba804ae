//! Why something failed, as data: in one word, for which cause, in whose words. Nothing is tried or told here.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why something was not done. Two refusals with the same cause are the same refusal, whatever their words.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Cause {
    /// Nobody refused: an answer, a lock, a connection, a server or a session of somebody is waited for.
    Wait,
    /// PostgreSQL or Citus refused, with this SQLSTATE.
    Sqlstate(String),
    /// A server did not let the operator in, with this SQLSTATE.
    Login(String),
    /// The API server refused, with this reason.
    Api(String),
    /// Nobody was asked: what the operator needs for it is missing, cannot be used, or says something unexpected.
    Unusable,
}

impl Cause {
    /// What a SQLSTATE means. Waits are lost connections and servers that start or stop (classes 08 and 57P), locks
    /// (55P03, 40), connections that others hold (53300), objects that somebody uses (55006), and what somebody
    /// cancelled; a timeout of a role or of the database is none.
    #[must_use]
    pub fn of_sqlstate(state: &str, message: &str) -> Self {
        let cancelled = state == "57014" && !message.contains("timeout");
        let passing = ["08", "57P", "40"].iter().any(|class| state.starts_with(class));
        if cancelled || passing || matches!(state, "55P03" | "53300" | "55006") {
            Self::Wait
        } else if state.is_empty() {
            Self::Unusable
        } else {
            Self::Sqlstate(state.to_owned())
        }
    }
    /// What a reason of the API server means. It asks itself to be asked again for these; `etcd` answers late for a
    /// while when it elects.
    #[must_use]
    pub fn of_api(reason: &str, message: &str) -> Self {
        let passing = ["TooManyRequests", "ServerTimeout", "Timeout", "ServiceUnavailable"].contains(&reason);
        let changed = ["Conflict", "Gone", "Expired", "NotFound"].contains(&reason);
        if passing || changed || message.starts_with("etcdserver:") {
            Self::Wait
        } else {
            Self::Api(reason.to_owned())
        }
    }
    /// Somebody refused.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        *self != Self::Wait
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wait => f.write_str("a wait"),
            Self::Sqlstate(state) | Self::Login(state) => write!(f, "SQLSTATE {state}"),
            Self::Api(reason) => write!(f, "reason {reason}"),
            Self::Unusable => f.write_str("unusable"),
        }
    }
}

/// Why a step failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// In one word, for metrics and events.
    pub reason: FailureReason,
    /// Whether somebody refused, and with which word.
    pub cause: Cause,
    /// What was wrong, where, and in whose words. Never a secret.
    pub message: String,
}

/// Why a step failed, in one word.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Deserialize,
    strum::Display,
    strum::IntoStaticStr,
    strum::EnumIter,
)]
pub enum FailureReason {
    /// The API server refused a request.
    Kubernetes,
    /// An object changed meanwhile: its uid is no longer the one that the plan knew.
    Conflict,
    /// A stranger's object has one of our names.
    ObjectConflict,
    /// PostgreSQL or Citus refused a statement, or could not be reached.
    Postgres,
    /// Somebody holds a lock that the statement needs.
    LockTimeout,
    /// There was no answer within the step's deadline.
    DeadlineExceeded,
    /// This operator no longer holds its Lease.
    NotLeader,
    /// The operator is being shut down.
    ShuttingDown,
    /// A Secret that this step needs is missing or cannot be read.
    Secret,
    /// PostgreSQL or Citus took the schema's SQL for wrong: trying again does not help.
    Schema,
    /// An extension of the spec cannot be made: the image does not have it, say.
    Extension,
}

impl Failure {
    /// Whether it says that nothing else can be done now either: this operator may not, or the API server is silent.
    #[must_use]
    pub fn stops_everything(&self) -> bool {
        match self.reason {
            FailureReason::NotLeader | FailureReason::ShuttingDown => true,
            FailureReason::Kubernetes => !self.cause.is_refusal(),
            FailureReason::Conflict
            | FailureReason::ObjectConflict
            | FailureReason::Postgres
            | FailureReason::LockTimeout
            | FailureReason::DeadlineExceeded
            | FailureReason::Secret
            | FailureReason::Schema
            | FailureReason::Extension => false,
        }
    }
    /// Only a person can mend it, and that is told at once.
    #[must_use]
    pub fn is_reported_at_once(&self) -> bool {
        matches!(
            self.reason,
            FailureReason::Schema | FailureReason::Extension | FailureReason::ObjectConflict
        )
    }
    /// A failure of the operator's own, and its reason.
    #[must_use]
    pub fn new(reason: FailureReason, message: impl Into<String>) -> Self {
        let cause = match reason {
            FailureReason::Conflict
            | FailureReason::LockTimeout
            | FailureReason::DeadlineExceeded
            | FailureReason::NotLeader
            | FailureReason::ShuttingDown => Cause::Wait,
            FailureReason::Kubernetes
            | FailureReason::ObjectConflict
            | FailureReason::Postgres
            | FailureReason::Secret
            | FailureReason::Schema
            | FailureReason::Extension => Cause::Unusable,
        };
        Self { reason, cause, message: message.into() }
    }
    /// The same failure for another cause.
    #[must_use]
    pub fn for_cause(self, cause: Cause) -> Self {
        Self { cause, ..self }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("55P03", "canceling statement due to lock timeout")]
    #[case("40P01", "deadlock detected")]
    #[case("57014", "canceling statement due to user request")]
    #[case("57P03", "the database system is starting up")]
    #[case("08006", "connection to the remote node failed")]
    #[case("53300", "sorry, too many clients already")]
    #[case("55006", "replication slot is active for PID 7")]
    fn what_passes_by_itself_is_a_wait(#[case] state: &str, #[case] words: &str) {
        assert_eq!(Cause::of_sqlstate(state, words), Cause::Wait);
    }

    #[rstest]
    #[case("42501", "permission denied for table pg_dist_node")]
    #[case("57014", "canceling statement due to statement timeout")]
    #[case("25006", "cannot execute ALTER ROLE in a read-only transaction")]
    #[case("53100", "No space left on device")]
    #[case("XX000", "role \"r1\" cannot be granted")]
    fn what_somebody_has_to_mend_is_a_refusal(#[case] state: &str, #[case] words: &str) {
        assert_eq!(Cause::of_sqlstate(state, words), Cause::Sqlstate(state.to_owned()));
    }

    #[rstest]
    #[case("Forbidden", "exceeded quota", true)]
    #[case("Invalid", "spec: Forbidden: is immutable", true)]
    #[case("InternalError", "failed calling webhook", true)]
    #[case("InternalError", "etcdserver: request timed out", false)]
    #[case("", "etcdserver: leader changed", false)]
    #[case("TooManyRequests", "try again later", false)]
    #[case("Conflict", "the object has been modified", false)]
    fn the_api_server_says_itself_what_to_ask_again(
        #[case] reason: &str,
        #[case] words: &str,
        #[case] refused: bool,
    ) {
        assert_eq!(Cause::of_api(reason, words).is_refusal(), refused);
    }
}
