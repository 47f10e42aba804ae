//! Snapshots as `/debug/snapshot/<namespace>/<name>` gives them, with what `dialog-operator plan` says of each: in
//! `docs/plans`, and the first of them in the README. Made of the model, so that they cannot go stale.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use dialog_operator::plan::{PlanInput, View, foretold};

use super::{super::*, log::assert_kept, scale};

const README: &str = "README.md";

/// What the program says of a snapshot, which is kept beside it.
fn assert_planned(name: &str, world: &World, snapshot: Snapshot) -> String {
    let input = PlanInput { desired: world.desired(), snapshot };
    let json = serde_json::to_string_pretty(&input).unwrap();
    assert_kept(&format!("docs/plans/{name}.json"), &format!("{json}\n"));
    let said = program(name, &[]);
    assert_kept(&format!("docs/plans/{name}.txt"), &said);
    said
}

fn program(name: &str, arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_dialog-operator"))
        .args(["plan", &format!("docs/plans/{name}.json")])
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Two workers are ready, and about to be registered.
#[test]
fn plan_of_a_scale_out_is_in_the_readme() {
    let mut world = born(1);
    scale(&mut world, 3);
    let seen = until_planned(&mut world, "AddNode");
    let said = assert_planned("scale-out", &world, seen);
    let command = "$ dialog-operator plan docs/plans/scale-out.json\n";
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(README)).unwrap();
    let (before, rest) = readme.split_once(command).expect("the README shows the command");
    let (_, after) = rest.split_once("```").expect("the end of the block");
    assert_kept(README, &format!("{before}{command}{said}```{after}"));
}

#[test]
fn as_many_moves_are_foretold_as_follow() {
    let mut world = born(1);
    let seen = world.observe();
    scale(&mut world, 3);
    let foretold = foretold::moves(View { desired: &world.desired(), snapshot: &seen }).unwrap().to_string();
    until(&mut world, "a job", |world| world.job.is_some());
    let tasks = world.job.as_ref().unwrap().job.tasks.clone();
    let moved: BTreeSet<i64> = tasks.iter().filter_map(|task| Some(task.transfer.as_ref()?.shard)).collect();
    assert_eq!(moved.len(), 21, "{tasks:?}");
    assert!(foretold.starts_with("with 3 workers, Citus makes 21 moves (20.0 MiB):\n"), "{foretold}");
    assert_eq!(foretold.lines().count(), 22, "{foretold}");
}

#[test]
fn moves_are_foretold_from_a_snapshot() {
    let mut world = born(3);
    scale(&mut world, 2);
    world.free = 104_000_000;
    settle(&mut world);
    let seen = world.observe();
    assert_planned("scale-in-without-room", &world, seen);
    let said = program("scale-in-without-room", &["--workers", "2"]);
    assert_kept("docs/plans/scale-in-without-room-2.txt", &said);
    assert_eq!(
        program("scale-in-without-room", &["--workers", "3"]),
        "with 3 workers, Citus moves no shard\n"
    );
}

#[test]
fn plan_of_a_scale_in_with_foreign_data() {
    let mut world = born(3);
    world.put(Node::Worker(2), Some(world::Theirs::Table(1000)));
    scale(&mut world, 2);
    settle(&mut world);
    let seen = world.observe();
    assert_planned("scale-in-refused", &world, seen);
}

#[test]
fn plan_of_a_lost_volume() {
    let mut world = born(3);
    lose(&mut world, Node::Worker(1));
    settle(&mut world);
    let seen = world.observe();
    assert_planned("volume-lost", &world, seen);
}
