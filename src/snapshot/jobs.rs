//! What the snapshot holds of moves: jobs and their tasks, what Citus would move, and why that is not known. Plain data.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The strategy of the operator's own, which keeps groups where they are.
pub const PINNING: &str = "dialog_operator";

/// `state` of a row of pg_dist_background_job, in Citus' own words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, strum::Display, strum::EnumString)]
#[serde(from = "String", into = "String")]
#[strum(serialize_all = "lowercase")]
#[allow(missing_docs)] // Citus' own words
pub enum JobState {
    Scheduled,
    Running,
    Finished,
    Cancelling,
    Cancelled,
    Failing,
    Failed,
    /// One that this operator does not know: it has not ended.
    #[strum(default)]
    Other(String),
}

impl JobState {
    /// Nothing of the job is still to be done, as it says.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        match self {
            Self::Finished | Self::Cancelled | Self::Failed => true,
            Self::Scheduled | Self::Running | Self::Cancelling | Self::Failing | Self::Other(_) => false,
        }
    }
}

/// `status` of a row of pg_dist_background_task, in Citus' own words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, strum::Display, strum::EnumString)]
#[serde(from = "String", into = "String")]
#[strum(serialize_all = "lowercase")]
#[allow(missing_docs)] // Citus' own words
pub enum TaskState {
    Blocked,
    Runnable,
    Running,
    Done,
    Cancelling,
    Error,
    Unscheduled,
    Cancelled,
    /// One that this operator does not know: it is still to be made.
    #[strum(default)]
    Other(String),
}

impl TaskState {
    /// What it is to do is done, or never will be.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        match self {
            Self::Done | Self::Cancelled => true,
            Self::Blocked
            | Self::Runnable
            | Self::Running
            | Self::Cancelling
            | Self::Error
            | Self::Unscheduled
            | Self::Other(_) => false,
        }
    }
}

impl From<String> for JobState {
    fn from(word: String) -> Self {
        Self::from(word.as_str())
    }
}

impl From<JobState> for String {
    fn from(state: JobState) -> Self {
        state.to_string()
    }
}

impl Default for JobState {
    fn default() -> Self {
        Self::Other(String::new())
    }
}

impl From<String> for TaskState {
    fn from(word: String) -> Self {
        Self::from(word.as_str())
    }
}

impl From<TaskState> for String {
    fn from(state: TaskState) -> Self {
        state.to_string()
    }
}

impl Default for TaskState {
    fn default() -> Self {
        Self::Other(String::new())
    }
}

/// A row of pg_dist_background_job with its tasks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Job {
    /// `job_id`.
    pub id: i64,
    /// `state`.
    pub state: JobState,
    /// `description`.
    pub description: String,
    /// `started_at`.
    pub started_at: Option<Timestamp>,
    /// `finished_at`.
    pub finished_at: Option<Timestamp>,
    /// A task of it is being cancelled, its process is gone, and Citus' monitor does not run: the server ended in between,
    /// and the task stays as it is until somebody cancels it again.
    pub abandoned: bool,
    /// Its tasks.
    pub tasks: Vec<Task>,
}

impl Job {
    /// The job has not ended, or a task of it runs all the same. Citus marks a task `running` in one transaction and
    /// writes its pid in the next one: a stop in between signals nobody, the job is `cancelled`, and the move goes on.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.has_ended() || self.runs()
    }
    /// Its state says that it has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.state.has_ended()
    }
    /// A task of it runs: a move is made now.
    #[must_use]
    pub fn runs(&self) -> bool {
        self.tasks.iter().any(Task::runs)
    }
    /// A stop would do something. Of one that is being cancelled already only a task that nobody has signalled is left
    /// to be stopped.
    #[must_use]
    pub fn can_be_stopped(&self) -> bool {
        match self.state {
            JobState::Cancelling => self.abandoned,
            JobState::Finished | JobState::Cancelled | JobState::Failed => {
                self.tasks.iter().any(|task| task.state == TaskState::Running)
            }
            JobState::Scheduled | JobState::Running | JobState::Failing | JobState::Other(_) => true,
        }
    }
    /// A move of it that is still to be made of a shard that no longer exists: its table was dropped, or distributed
    /// anew. Citus tries such a move for ever.
    #[must_use]
    pub fn lost_shard(&self) -> Option<i64> {
        let open = self.tasks.iter().filter(|task| !task.state.has_ended());
        open.filter_map(|task| task.transfer.as_ref())
            .find(|transfer| transfer.table.is_empty())
            .map(|transfer| transfer.shard)
    }
}

/// A row of pg_dist_background_task.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Task {
    /// `task_id`.
    pub id: i64,
    /// `status`.
    pub state: TaskState,
    /// The move it makes, when its command is one.
    pub transfer: Option<Move>,
    /// `retry_count`.
    pub retried: i64,
    /// `message`: Citus' own words.
    pub message: Option<String>,
    /// `pid` of the server process that runs it, on the coordinator.
    pub pid: Option<i32>,
}

impl Task {
    /// It runs, or is being cancelled and has not ended yet.
    #[must_use]
    pub fn runs(&self) -> bool {
        match self.state {
            TaskState::Running | TaskState::Cancelling => true,
            TaskState::Blocked
            | TaskState::Runnable
            | TaskState::Done
            | TaskState::Error
            | TaskState::Unscheduled
            | TaskState::Cancelled
            | TaskState::Other(_) => false,
        }
    }
    /// It failed and waits for its next try.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        match self.state {
            TaskState::Error => true,
            TaskState::Runnable | TaskState::Running => self.retried > 0,
            TaskState::Blocked
            | TaskState::Done
            | TaskState::Cancelling
            | TaskState::Unscheduled
            | TaskState::Cancelled
            | TaskState::Other(_) => false,
        }
    }
}

/// A shard that goes from one node to another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Move {
    /// `shardid`.
    pub shard: i64,
    /// Table it belongs to; empty when the shard no longer exists.
    pub table: String,
    /// Its size.
    pub bytes: i64,
    /// nodeid of the source in pg_dist_node.
    pub from: i32,
    /// nodeid of the target in pg_dist_node.
    pub to: i32,
    /// `colocationid` of the table, of a move that Citus plans.
    pub colocation_id: i32,
}

/// Why it is not known what Citus would move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PlanUnknown {
    /// There is no such rebalance strategy. In Citus' words.
    StrategyUnknown(String),
    /// Citus, or a function of the strategy, refuses to make one.
    Refused {
        /// SQLSTATE.
        sqlstate: String,
        /// Its words.
        words: String,
    },
    /// There was no answer, or none that fits: the next look asks again.
    NotAnswered(String),
}

impl fmt::Display for PlanUnknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StrategyUnknown(words) | Self::Refused { words, .. } | Self::NotAnswered(words) => {
                f.write_str(words)
            }
        }
    }
}

/// Something that would keep Citus from moving a table, known before a job starts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Obstacle {
    /// What it is.
    pub kind: ObstacleKind,
    /// Qualified name of the table.
    pub table: String,
    /// `colocationid`: what moves with it.
    pub colocation_id: i32,
    /// A reference table that a node lacks: it is copied there before anything moves.
    pub reference: bool,
    /// Its owner.
    pub owner: String,
    /// Name of the setting, the schema, the parent, or of what runs code.
    pub what: Option<String>,
    /// Value of the setting, or owner of the parent.
    pub value: Option<String>,
    /// `groupid`s of the nodes that shards of it are on.
    pub groups: Vec<i32>,
    /// Tables of the same group that meet the same and are not listed.
    pub more: i64,
}

/// What can be in the way of a move. Each was seen to break one on Citus.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, strum::EnumIter,
)]
#[serde(rename_all = "camelCase")]
pub enum ObstacleKind {
    /// No primary key and no other replica identity.
    #[default]
    NoReplicaIdentity,
    /// UNLOGGED: no publication may have it.
    Unlogged,
    /// Citus checks before it plans that whoever starts a job owns all distributed tables.
    OwnedBySuperuser,
    /// The owner may not log in.
    OwnerCannotLogIn,
    /// The owner may have no connection.
    OwnerHasNoConnections,
    /// The owner may not make tables in the table's schema.
    OwnerCannotCreate,
    /// A partition whose parent is another role's, which cannot attach it.
    PartitionOfAnother,
    /// `ALTER ROLE ... SET`.
    SettingOfRole,
    /// `ALTER ROLE ... IN DATABASE ... SET`.
    SettingOfRoleInDatabase,
    /// `ALTER DATABASE ... SET`.
    SettingOfDatabase,
    /// `ALTER ROLE ALL SET`.
    SettingOfAll,
    /// A reference table of a role that is no superuser calls functions, and a superuser copies it.
    ReferenceTableRunsCode,
}

/// What is in the way of moves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Obstacles {
    /// How many there are.
    pub total: i64,
    /// The first of each kind, and of these one of each group before a second one.
    pub listed: Vec<Obstacle>,
    /// How many are in groups of which none is listed.
    pub unlisted: i64,
}

/// Groups that a strategy of the operator's own keeps where they are, so that all others can move.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pins {
    /// The strategy whose functions it uses.
    pub base: String,
    /// `colocationid`s, in order.
    pub groups: Vec<i32>,
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("running", JobState::Running)]
    #[case("cancelled", JobState::Cancelled)]
    #[case("suspended", JobState::Other("suspended".into()))]
    fn a_state_is_written_in_the_words_of_citus(#[case] word: &str, #[case] state: JobState) {
        assert_eq!(serde_json::to_value(&state).unwrap(), word);
        assert_eq!(serde_json::from_value::<JobState>(word.into()).unwrap(), state);
    }
}
