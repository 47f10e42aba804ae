//! What the status says of what failed and of what is waited for.

use dialog_operator::{
    act::StepOutcome,
    api::{DialogClusterStatus, names::SecretKind},
    plan::{Problem, RestartCause},
    snapshot::{Failure, FailureReason},
};

use std::collections::BTreeSet;

use strum::VariantNames;

use super::*;

fn status(world: &World, seen: &Snapshot, failed: Option<(Step, FailureReason)>) -> DialogClusterStatus {
    let steps = failed.into_iter().map(|(step, reason)| StepOutcome {
        step,
        result: Err(Failure::new(reason, "no answer within 10 s")),
        detail: None,
    });
    report::status(&world.desired(), seen, &plan(&world.desired(), seen), &Outcome { steps: steps.collect() })
}

fn said<'a>(status: &'a DialogClusterStatus, kind: &str) -> (&'a str, &'a str, &'a str) {
    let condition = status.conditions.iter().find(|condition| condition.type_ == kind).unwrap();
    (&condition.status, &condition.reason, &condition.message)
}

#[test]
fn failure_of_moves_is_told_by_balanced_alone() {
    let mut world = born(2);
    let seen = world.observe();
    let status = status(
        &world,
        &seen,
        Some((Step::Sql(SqlStep::RecoverTransactions), FailureReason::DeadlineExceeded)),
    );
    assert_eq!(said(&status, "Reconciling").0, "False");
    let balanced = said(&status, "Balanced");
    assert_eq!((balanced.0, balanced.1), ("False", "Retrying"));
    assert!(balanced.2.contains("no answer within 10 s"), "{balanced:?}");
}

#[test]
fn only_sql_that_is_wrong_is_a_schema_that_failed() {
    let mut world = born(2);
    let seen = world.observe();
    let owner =
        || Step::Sql(SqlStep::CreateOwner { owner: "dialogs".to_owned(), secret_uid: "s".to_owned() });
    for passing in [FailureReason::ShuttingDown, FailureReason::DeadlineExceeded, FailureReason::Postgres] {
        let status = status(&world, &seen, Some((owner(), passing)));
        assert_eq!(said(&status, "SchemaApplied").0, "True", "{passing}");
        assert_eq!(said(&status, "Stalled").0, "False", "{passing}");
    }
    let wrong = Step::Sql(SqlStep::ApplySchema { hash: "h".to_owned() });
    let status = status(&world, &seen, Some((wrong, FailureReason::Schema)));
    assert_eq!(said(&status, "SchemaApplied").1, "SchemaFailed");
    assert_eq!((said(&status, "Stalled").1, said(&status, "Reconciling").0), ("SchemaFailed", "False"));
}

/// What needs a superuser is made before the schema, and what the image does not have is told at once.
#[test]
fn an_extension_of_the_spec_is_made_before_the_schema() {
    let mut world = World::new(json!({"database": {"extensions": ["hstore"]}}));
    settle(&mut world);
    assert_eq!(world.extensions, BTreeSet::from(["hstore".to_owned()]));
    world.edit(|spec| spec.database.extensions.push("no_such".to_owned()));
    let seen = world.observe();
    let step = Step::from(SqlStep::CreateExtension { name: "no_such".to_owned() });
    assert!(plan(&world.desired(), &seen).steps.iter().any(|planned| planned.step == step));
    let status = status(&world, &seen, Some((step, FailureReason::Extension)));
    assert_eq!((said(&status, "Stalled").1, said(&status, "Reconciling").0), ("ExtensionFailed", "False"));
    assert_eq!(said(&status, "SchemaApplied").0, "True");
}

/// Who has the name is found out by a create, and looked at again now and then.
#[test]
fn taken_name_has_the_same_message_from_create_and_plan() {
    let mut world = born(1);
    let mut seen = world.observe();
    let key = "Secret/dialogs-app";
    seen.objects.get_mut(key).unwrap().ownership = snapshot::Ownership::Foreign;
    let planned = status(&world, &seen, None);
    seen.objects.remove(key).unwrap();
    let created = Step::Kubernetes(KubernetesStep::CreateSecret(SecretKind::App));
    let failed = status(&world, &seen, Some((created, FailureReason::ObjectConflict)));
    assert_eq!(said(&planned, "Stalled").1, "ObjectConflict");
    assert_eq!(said(&planned, "Stalled"), said(&failed, "Stalled"));
    assert_eq!(said(&planned, "Reconciling"), said(&failed, "Reconciling"));
}

/// The tablespace that a value names may be made by now.
#[test]
fn a_refused_value_is_tried_again_and_stays_told_meanwhile() {
    let mut world = born(1);
    world.edit(|spec| {
        drop(spec.postgres.parameters.insert("default_tablespace".to_owned(), "fast".to_owned()));
    });
    let tried = "default_tablespace=fast".to_owned();
    let rejected = |retry_due| snapshot::ParameterCheck::Rejected {
        message: "tablespace \"fast\" does not exist".to_owned(),
        retry_due,
    };
    world.parameter_checks.insert(tried.clone(), rejected(false));
    let mut seen = world.observe();
    let tries = |seen: &Snapshot| {
        plan(&world.desired(), seen)
            .steps
            .iter()
            .any(|planned| matches!(planned.step, Step::Sql(SqlStep::CheckParameter { .. })))
    };
    assert!(!tries(&seen), "it was refused a moment ago");
    seen.parameter_checks.insert(tried, rejected(true));
    assert!(tries(&seen));
    assert_eq!(said(&status(&world, &seen, None), "Stalled").1, "ConfigurationRejected");
}

/// One of each kind; a new kind has to be put here.
fn holds(now: jiff::Timestamp) -> Vec<WaitingOn> {
    let (node, why) = (Node::Worker(7), "in somebody's words".to_owned());
    let why = || why.clone();
    vec![
        WaitingOn::Paused { steps: 3 },
        WaitingOn::FormerObjects { object: "Service/dialogs".to_owned() },
        WaitingOn::VolumesGrow { volumes: why(), moves: false },
        WaitingOn::PodNotReady { node, why: why() },
        WaitingOn::NotAnswering { node, why: why() },
        WaitingOn::CatalogUnknown { why: why() },
        WaitingOn::NodeNotPrepared { node },
        WaitingOn::ConfigurationPending { node },
        WaitingOn::Rolling { node, cause: RestartCause::Parameters, remaining: 2 },
        WaitingOn::RestartWaitsForMoves { node, cause: RestartCause::Parameters },
        WaitingOn::MemberInactive { node },
        WaitingOn::RegisteredNodeSilent { node, why: why() },
        WaitingOn::NotConnected { from: Node::Coordinator, to: node, why: why() },
        WaitingOn::WorkerMissing { node, why: why(), timed_out: false },
        WaitingOn::Draining { node, shards: 4 },
        WaitingOn::SpaceUnknown { why: why() },
        WaitingOn::ContentsUnknown { node, why: why() },
        WaitingOn::CleanupBlocked { node, objects: 2, sessions: vec!["session 9 of somebody".to_owned()] },
        WaitingOn::HeldUp { node, moves: true, sessions: vec!["pid 9 of somebody".to_owned()] },
        WaitingOn::HeldUp { node, moves: false, sessions: vec!["pid 8 of somebody".to_owned()] },
        WaitingOn::JobRunning { job: 4 },
        WaitingOn::RebalancePause { state: snapshot::JobState::Failed, until: now },
        WaitingOn::InspectingImage { image: "postgres:next".to_owned() },
        WaitingOn::VolumesGrow { volumes: "data-7 (2Gi)".to_owned(), moves: true },
        WaitingOn::VolumesGrow { volumes: "data-8 (2Gi)".to_owned(), moves: false },
        WaitingOn::SchemaSource { why: why() },
    ]
}

/// Whatever else goes on: nothing is waited for in silence.
#[test]
fn each_wait_is_named_by_reconciling_or_balanced() {
    let mut world = born(2);
    let mut seen = world.observe();
    let holds = holds(seen.now);
    let names: BTreeSet<&str> = holds.iter().map(|wait| wait.into()).collect();
    assert_eq!(names, WaitingOn::VARIANTS.iter().copied().collect(), "a kind of wait is not in this table");
    let job = snapshot::Job { id: 4, state: snapshot::JobState::Running, ..snapshot::Job::default() };
    let idle = seen.clone();
    let snapshot::Observed::Known(citus) = &mut seen.citus else { panic!("known") };
    citus.job = Some(job);
    let failed = Step::Sql(SqlStep::AddNode { node: Node::Worker(9), address: "elsewhere".to_owned() });
    let failed = Outcome {
        steps: vec![StepOutcome {
            step: failed,
            result: Err(Failure::new(FailureReason::Postgres, "no")),
            detail: None,
        }],
    };
    let problem = Problem::ObjectConflict { kind: "Service".to_owned(), name: "dialogs".to_owned() };
    let other = WaitingOn::CatalogUnknown { why: "something else".to_owned() };
    for wait in &holds {
        let (text, what) = (wait.to_string(), <&str>::from(wait));
        let alone = Plan { waits: vec![wait.clone()], ..Plan::default() };
        let first = if matches!(wait, WaitingOn::Paused { .. }) { vec![] } else { vec![other.clone()] };
        let second = Plan { waits: [first, vec![wait.clone()]].concat(), ..Plan::default() };
        let stalled = Plan { problems: vec![problem.clone()], ..alone.clone() };
        for (plan, done) in [
            (&alone, &Outcome::default()),
            (&second, &Outcome::default()),
            (&alone, &failed),
            (&stalled, &failed),
        ] {
            let seen = if matches!(wait, WaitingOn::JobRunning { .. }) { &seen } else { &idle };
            let status = report::status(&world.desired(), seen, plan, done);
            let (reconciling, balanced) = (said(&status, "Reconciling"), said(&status, "Balanced"));
            let named = reconciling.2.contains(&text) || balanced.2.contains(&text);
            let told = match wait {
                WaitingOn::Paused { .. } => !plan.problems.is_empty() || reconciling.1 == "Paused",
                WaitingOn::JobRunning { .. } => balanced.1 == "Rebalancing" || balanced.1 == "Retrying",
                _ => named,
            };
            assert!(told, "{what}: {reconciling:?} {balanced:?}");
            if !plan.problems.is_empty() {
                assert_eq!((reconciling.0, said(&status, "Stalled").0), ("False", "True"), "{what}");
            }
        }
    }
}

/// A session that somebody keeps open is waited for, and told by whoever waits: a move, or a step.
#[test]
fn who_holds_up_what_goes_on_is_told() {
    let mut world = uneven(&[]);
    until(&mut world, "a job runs", |world| world.job.is_some());
    let mut seen = world.observe();
    let who = "pid 4711 on dialogs-worker-0, user shop, database postgres, in a transaction since 2026-01-01T00:00:00Z";
    seen.blocking_moves = [(Node::Worker(0), vec![who.to_owned()])].into();
    let moving = status(&world, &seen, None);
    let (state, reason, words) = said(&moving, "Balanced");
    assert!(words.ends_with(&format!("moves done; blocked by {who}")), "{words}");
    assert_eq!((state, reason, said(&moving, "Stalled").0), ("False", "Rebalancing", "False"));
    assert_eq!(said(&moving, "Reconciling").0, "False");

    let mut world = born(1);
    let mut seen = world.observe();
    seen.blocking_moves = [(Node::Coordinator, vec![who.to_owned()])].into();
    let failed = Step::Sql(SqlStep::AddNode { node: Node::Worker(1), address: "elsewhere".to_owned() });
    let joining = status(&world, &seen, Some((failed, FailureReason::LockTimeout)));
    assert!(said(&joining, "Reconciling").2.ends_with(&format!("; blocked by {who}")), "{joining:?}");
    assert_eq!(said(&joining, "Stalled").0, "False");
}
