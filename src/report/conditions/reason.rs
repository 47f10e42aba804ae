//! Why a condition says what it says: the reasons of all conditions but `Reconciling`; a problem's own are
//! `Stalled`'s. Names only.

/// Reasons; docs/reference.md has them for people. One that several conditions use means the same in all of them.
#[derive(Clone, Copy, strum::IntoStaticStr)]
pub(super) enum ConditionReason {
    /// True: the coordinator and all registered workers answer, and the application can log in.
    Available,
    /// A node's pod is not ready, or its server does not answer; the message says which and why.
    NodeNotAnswering,
    /// Nodes cannot open new connections to each other.
    NodesCannotConnect,
    /// The application's role cannot log in, or cannot reach every worker.
    OwnerCannotConnect,
    /// No worker is registered yet.
    NoWorkers,
    /// A worker is inactive in `pg_dist_node`.
    WorkerInactive,
    /// A worker lacks tables that the catalog says it has.
    TablesMissing,
    /// The application's role or tables do not exist yet.
    SchemaNotApplied,
    /// The coordinator's catalog could not be read.
    CatalogUnknown,
    /// False: no manual action is required.
    NoProblem,
    /// True: every node runs the parameters of the spec, or `wal_level = logical`.
    Running,
    /// A node runs with another `wal_level`.
    WrongWalLevel,
    /// Changed parameters are checked on one server first.
    ValidatingParameters,
    /// A node does not run the new configuration yet.
    ConfigurationPending,
    /// A node has to be restarted for the new configuration.
    PendingRestart,
    /// PostgreSQL does not accept the configuration, see `Stalled`.
    ConfigurationRejected,
    /// True: every requested worker is registered and answers.
    AllRegistered,
    /// Workers are not registered yet.
    WorkersMissing,
    /// A worker did not join within `spec.workers.joinTimeout`; the rest goes on without it.
    JoinTimeout,
    /// A worker is inactive or lacks the metadata.
    NotSynced,
    /// True: the schema was applied.
    Applied,
    /// True: the ConfigMap of the schema has changed since, and is not run again.
    SchemaChangeIgnored,
    /// The schema is applied when the workers have joined.
    NotApplied,
    /// The SQL of the schema is wrong, see `Stalled`.
    SchemaFailed,
    /// The application's role is gone.
    OwnerMissing,
    /// True: all requested workers are registered, and Citus has nothing to move.
    Balanced,
    /// A job spreads shards evenly.
    Rebalancing,
    /// A job takes shards from workers that are to be removed.
    Draining,
    /// Workers that are to be removed stay for now, see `Stalled`.
    DrainRefused,
    /// Citus plans moves, and the job is about to start.
    MovesPlanned,
    /// Moves of the job fail; the message quotes Citus.
    MovesFailing,
    /// The next job waits for a restart, or for the pause after one that failed.
    RebalanceBackoff,
    /// Citus would move shards, and `spec.rebalance.mode` is `Off`.
    RebalanceOff,
    /// Citus could not be asked what it would move.
    PlanUnknown,
    /// A step failed and is tried again.
    Retrying,
}
