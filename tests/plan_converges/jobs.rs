//! Jobs: when one is open, which are stopped, what is a failure, and what Citus could not plan.

use super::*;
use snapshot::{Job, JobState, Observed, PlanUnknown, Task, TaskState};

/// All shards of two workers are to be evened out, and the job that does it has begun.
fn moving() -> World {
    let mut world = uneven(&[]);
    until(&mut world, "moves run", |world| moves_done(world) >= 2);
    world
}

fn citus(seen: &mut Snapshot) -> &mut snapshot::Citus {
    let Observed::Known(citus) = &mut seen.citus else { panic!("a catalog") };
    citus
}

#[test]
fn a_job_that_was_cancelled_is_no_failure() {
    let mut world = uneven(&[]);
    let mut seen = until_planned(&mut world, "StartRebalance");
    let now = seen.now;
    for (state, failed, starts) in
        [(JobState::Cancelled, 0, true), (JobState::Cancelled, 3, true), (JobState::Failed, 1, false)]
    {
        citus(&mut seen).failed_jobs = failed;
        citus(&mut seen).job =
            Some(Job { id: 9, state: state.clone(), finished_at: Some(now), ..Job::default() });
        assert_eq!(does(&world, &seen, "StartRebalance"), starts, "{state} after {failed} that failed");
    }
}

#[test]
fn a_move_that_nobody_told_to_stop_is_a_move() {
    let mut world = moving();
    world.unheard_stop = true;
    world.edit(|spec| spec.workers.replicas = 1);
    loop {
        world.reconcile(None);
        if !world.unheard_stop {
            break;
        }
        world.tick();
    }
    let job = &world.job.as_ref().unwrap().job;
    assert!(job.has_ended() && job.is_open(), "{job:?}");
    // Everything that hangs on it: no `shouldhaveshards`, no restart, no other job, and it is stopped once more.
    let seen = world.observe();
    for step in ["SetShouldHaveShards", "RestartNode", "StartRebalance", "RemoveNode"] {
        assert!(!does(&world, &seen, step), "{step}");
    }
    assert!(does(&world, &seen, "StopRebalance"));
    settle(&mut world);
    assert_serves(&world);
    assert_eq!(world.nodes.len(), 2);
}

#[test]
fn a_task_that_is_being_cancelled_is_not_cancelled_again() {
    let mut world = moving();
    let mut seen = world.observe();
    for (job, task, stops) in [
        (JobState::Cancelling, TaskState::Running, false),
        (JobState::Cancelled, TaskState::Cancelling, false),
        (JobState::Cancelled, TaskState::Running, true),
        (JobState::Finished, TaskState::Running, true),
    ] {
        let running = Task { state: task.clone(), ..Task::default() };
        citus(&mut seen).job =
            Some(Job { id: 7, state: job.clone(), tasks: vec![running], ..Job::default() });
        citus(&mut seen).planned_moves = None;
        assert_eq!(does(&world, &seen, "StopRebalance"), stops, "job {job}, task {task}");
        assert!(!does(&world, &seen, "StartRebalance"), "job {job}, task {task}");
    }
    // Its monitor and its process are gone: nobody else would ever end it.
    let task = Task { state: TaskState::Cancelling, ..Task::default() };
    let abandoned =
        Job { id: 7, state: JobState::Cancelling, tasks: vec![task], abandoned: true, ..Job::default() };
    citus(&mut seen).job = Some(abandoned);
    assert!(does(&world, &seen, "StopRebalance"));
    settle(&mut world);
}

#[test]
fn moves_of_a_table_that_was_dropped_are_not_waited_for() {
    for scale_in in [false, true] {
        let mut world = if scale_in { born(3) } else { uneven(&[]) };
        if scale_in {
            world.edit(|spec| spec.workers.replicas = 2);
        }
        until(&mut world, "moves run", |world| moves_done(world) >= 1);
        let tasks = &world.job.as_ref().unwrap().job.tasks;
        let waiting = tasks.iter().filter(|task| task.state == TaskState::Runnable);
        let shards: Vec<i64> =
            waiting.filter_map(|task| Some(task.transfer.as_ref()?.shard)).take(2).collect();
        world.drop_shards(&shards);
        let first = world.jobs_started;
        for _ in 0..30 {
            world.reconcile(None);
            world.tick();
        }
        assert_eq!(world.jobs_started, first + 1, "one job, within 30 s of the drop: {:?}", world.job);
        settle(&mut world);
        assert_serves(&world);
    }
}

#[test]
fn a_cluster_with_strategy_in_its_name_has_a_strategy() {
    let world = uneven(&[]);
    let mut world = world;
    let mut seen = world.observe();
    let words = "my-strategy-coordinator did not answer the look at the Citus catalog within 10 s".to_owned();
    let refused = PlanUnknown::Refused { sqlstate: "XX000".to_owned(), words: words.clone() };
    for (why, problem) in [
        (PlanUnknown::NotAnswered(words.clone()), None),
        (refused, None),
        (PlanUnknown::StrategyUnknown(words), Some("StrategyUnknown")),
    ] {
        citus(&mut seen).planned_moves = Some(Observed::Unknown(why));
        let plan = plan(&world.desired(), &seen);
        let told = plan.problems.first().map(|problem| problem.reason().into());
        assert_eq!(told, problem, "{:?}", plan.problems);
        assert!(!plan.steps.iter().any(|planned| planned.step.name() == "StartRebalance"));
    }
}
