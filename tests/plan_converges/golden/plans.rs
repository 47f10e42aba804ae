//! Snapshots as `/debug/snapshot/<namespace>/<name>` gives them, with what `dialog-operator plan` says of each: in
//! `docs/plans`, and the first of them in the README. Made of the model, so that they cannot go stale.

use std::{fs, path::Path, process::Command};

use dialog_operator::plan::PlanInput;

use super::{super::*, log::assert_kept, scale};

const README: &str = "README.md";

/// What the program says of a snapshot, which is kept beside it.
fn assert_planned(name: &str, world: &World, snapshot: Snapshot) -> String {
    let file = format!("docs/plans/{name}.json");
    let input = PlanInput { desired: world.desired(), snapshot };
    assert_kept(&file, &format!("{}\n", serde_json::to_string_pretty(&input).unwrap()));
    let output = Command::new(env!("CARGO_BIN_EXE_dialog-operator"))
        .args(["plan", &file])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_kept(&format!("docs/plans/{name}.txt"), &said);
    said
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
