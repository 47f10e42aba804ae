//! Writes about what moves leave behind. Whether it may go was decided by the planner.

use super::{
    commands::alone,
    error::SqlError,
    session::{CLUSTER_WRITE, Session},
};

/// `CALL citus_cleanup_orphaned_resources()`: drops what finished moves left behind. It succeeds also when an open
/// transaction keeps it from dropping: look at pg_dist_cleanup afterwards. Answers with Citus' warnings.
///
/// # Errors
/// Any [`SqlError`].
pub async fn cleanup_orphans(session: &Session) -> Result<Vec<String>, SqlError> {
    let (client, call) = session.call("citus_cleanup_orphaned_resources", CLUSTER_WRITE).await?;
    alone(&client, &call, "CALL citus_cleanup_orphaned_resources()").await?;
    Ok(session.take_notices())
}
