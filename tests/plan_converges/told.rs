//! What the status says of what failed and of what is waited for.

use dialog_operator::{
    act::{DoneStep, Failure, FailureReason},
    api::{DialogClusterStatus, names::SecretKind},
};

use super::*;

fn status(world: &World, seen: &Snapshot, failed: Option<(Step, FailureReason)>) -> DialogClusterStatus {
    let steps = failed.into_iter().map(|(step, reason)| DoneStep {
        step,
        result: Err(Failure::new(reason, "no answer within 10 s")),
        said: None,
    });
    report::status(&world.desired(), seen, &plan(&world.desired(), seen), &Done { steps: steps.collect() })
}

fn said<'a>(status: &'a DialogClusterStatus, kind: &str) -> (&'a str, &'a str, &'a str) {
    let condition = status.conditions.iter().find(|condition| condition.type_ == kind).unwrap();
    (&condition.status, &condition.reason, &condition.message)
}

#[test]
fn a_failure_about_moves_is_told_by_balanced_and_by_nothing_else() {
    let mut world = born(2);
    let seen = world.observe();
    let status = status(&world, &seen, Some((Step::RecoverTransactions, FailureReason::DeadlineExceeded)));
    assert_eq!(said(&status, "Reconciling").0, "False");
    let balanced = said(&status, "Balanced");
    assert_eq!((balanced.0, balanced.1), ("False", "Retrying"));
    assert!(balanced.2.contains("no answer within 10 s"), "{balanced:?}");
}

#[test]
fn only_sql_that_is_wrong_is_a_schema_that_failed() {
    let mut world = born(2);
    let seen = world.observe();
    let owner = || Step::CreateOwner { owner: "dialogs".to_owned(), secret_uid: "s".to_owned() };
    for passing in [FailureReason::ShuttingDown, FailureReason::DeadlineExceeded, FailureReason::Postgres] {
        let status = status(&world, &seen, Some((owner(), passing)));
        assert_eq!(said(&status, "SchemaApplied").0, "True", "{passing}");
        assert_eq!(said(&status, "Stalled").0, "False", "{passing}");
    }
    let wrong = Step::ApplySchema { hash: "h".to_owned() };
    let status = status(&world, &seen, Some((wrong, FailureReason::Schema)));
    assert_eq!(said(&status, "SchemaApplied").1, "SchemaFailed");
    assert_eq!((said(&status, "Stalled").1, said(&status, "Reconciling").0), ("SchemaFailed", "False"));
}

/// Who has the name is found out by a create, and looked at again now and then.
#[test]
fn a_taken_name_is_told_in_the_same_words_by_the_create_and_by_the_plan() {
    let mut world = born(1);
    let mut seen = world.observe();
    let key = "Secret/dialogs-app";
    seen.objects.get_mut(key).unwrap().ownership = snapshot::Ownership::Stranger;
    let planned = status(&world, &seen, None);
    seen.objects.remove(key).unwrap();
    let created = Step::CreateSecret(SecretKind::App);
    let failed = status(&world, &seen, Some((created, FailureReason::NameTaken)));
    assert_eq!(said(&planned, "Stalled").1, "NameTaken");
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
    world.trials.insert(tried.clone(), Some("tablespace \"fast\" does not exist".to_owned()));
    let mut seen = world.observe();
    let tries = |seen: &Snapshot| {
        plan(&world.desired(), seen)
            .steps
            .iter()
            .any(|planned| matches!(planned.step, Step::TryParameter { .. }))
    };
    assert!(!tries(&seen), "it was refused a moment ago");
    seen.old_trials.insert(tried);
    assert!(tries(&seen));
    assert_eq!(said(&status(&world, &seen, None), "Stalled").1, "ConfigurationRejected");
}
