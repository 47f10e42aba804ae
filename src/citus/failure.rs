//! How what a server refused becomes a failure of a step or of a look. Nothing else.

use super::{ConnectError, SqlError};
use crate::snapshot::{Cause, Failure, FailureReason};

impl From<ConnectError> for Failure {
    fn from(why: ConnectError) -> Self {
        match why {
            ConnectError::Certificates(why) => Self::new(FailureReason::Secret, why),
            ConnectError::NoAddress(_) => {
                Self::new(FailureReason::Postgres, why.to_string()).for_cause(Cause::Wait)
            }
            ConnectError::Refused(error) => error.into(),
        }
    }
}

impl From<SqlError> for Failure {
    fn from(error: SqlError) -> Self {
        let reason = match error {
            SqlError::DeadlineExceeded { .. } => FailureReason::DeadlineExceeded,
            _ if error.is_wrong_schema() => FailureReason::Schema,
            _ if error.is_lock_timeout() => FailureReason::LockTimeout,
            _ => FailureReason::Postgres,
        };
        Self::new(reason, error.to_string()).for_cause(error.cause())
    }
}
