//! Why something was not done, as data: whether somebody refused it, and with which word, or whether it only has to wait.
//! Nothing is tried or told here.

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
