//! Golden plans: what the operator does in a dozen situations, from the first look to rest, as logs to read
//! (`golden/*.txt`), and three snapshots with what `dialog-operator plan` says of them (`docs/plans`). A change of what it
//! does changes them, and is seen in review. `make golden` writes them again. Rules are tested elsewhere.

mod log;
mod plans;

use super::*;
use log::Log;

fn parameter(world: &mut World, name: &str, value: &str) {
    world.edit(|spec| drop(spec.postgres.parameters.insert(name.to_owned(), value.to_owned())));
}

fn scale(world: &mut World, workers: i32) {
    world.edit(|spec| spec.workers.replicas = workers);
}

#[test]
fn birth() {
    let mut log =
        Log::new("A coordinator and two workers are born.", World::new(json!({"workers": {"replicas": 2}})));
    log.happens("somebody creates a DialogCluster with two workers", |_| ());
    log.rests();
    log.ends("birth");
}

#[test]
fn scale_out() {
    let mut log = Log::new("One worker becomes three, by one rebalance.", born(1));
    log.happens("kubectl scale dlc/dialogs --replicas=3", |world| scale(world, 3));
    log.rests();
    log.ends("scale-out");
}

#[test]
fn scale_in_with_delete() {
    let mut log = Log::new("Three workers become one; the volumes of those that go are deleted.", born(3));
    log.happens("spec.workers.replicas: 1, spec.volumes.whenScaled: Delete", |world| {
        world.edit(|spec| spec.volumes.when_scaled = VolumePolicy::Delete);
        scale(world, 1);
    });
    log.rests();
    log.ends("scale-in-delete");
}

#[test]
fn scale_in_with_retain() {
    let mut log =
        Log::new("Three workers become one and three again; kept volumes are not used again.", born(3));
    log.happens("kubectl scale dlc/dialogs --replicas=1", |world| scale(world, 1));
    log.rests();
    log.happens("kubectl scale dlc/dialogs --replicas=3", |world| scale(world, 3));
    log.rests();
    log.ends("scale-in-retain");
}

#[test]
fn wrong_wal_level() {
    let mut log =
        Log::new("A worker was put back to wal_level = replica, and another one is asked for.", born(2));
    log.happens(
        "worker-0 starts with wal_level = replica; kubectl scale dlc/dialogs --replicas=3",
        |world| {
            world.tampered.insert(Node::Worker(0));
            world.pods.remove(&Node::Worker(0));
            scale(world, 3);
        },
    );
    log.rests();
    log.ends("wal-level");
}

#[test]
fn parameter_that_needs_a_restart() {
    let mut log =
        Log::new("A parameter that needs a restart: workers one by one, the coordinator last.", born(2));
    log.happens("spec.postgres.parameters.max_connections: 300", |world| {
        parameter(world, "max_connections", "300");
    });
    log.rests();
    log.ends("parameter-restart");
}

#[test]
fn parameter_that_is_refused() {
    let mut log = Log::new(
        "Values that PostgreSQL refuses: one that it can be asked, one that only a start shows.",
        born(2),
    );
    log.happens("spec.postgres.parameters.work_mem: garbage", |world| {
        parameter(world, "work_mem", "garbage")
    });
    log.rests();
    log.happens("spec.postgres.parameters.work_mem is removed, max_connections: 1000000", |world| {
        world.edit(|spec| spec.postgres.parameters.clear());
        parameter(world, "max_connections", "1000000");
    });
    log.rests();
    log.happens("spec.postgres.parameters.max_connections: 300", |world| {
        parameter(world, "max_connections", "300");
    });
    log.rests();
    log.ends("parameter-refused");
}

#[test]
fn another_image() {
    let mut log = Log::new("Another image of the same versions.", born(2));
    log.happens("spec.image: postgres:patched", |world| {
        world.edit(|spec| spec.image = Some("postgres:patched".to_owned()));
    });
    log.rests();
    log.ends("image");
}

#[test]
fn lost_worker() {
    let mut log = Log::new("The volume of a worker is lost, and a person gives its data up.", born(3));
    let lost = identity(&log.world, Node::Worker(1));
    log.happens("the machine of worker-1 burns, and its volume with it", |world| {
        lose(world, Node::Worker(1))
    });
    log.rests();
    log.happens(
        "kubectl annotate dlc/dialogs dialogcluster.dev/force-remove=worker-1/<system identifier>",
        |world| {
            annotate(world, format!("worker-1/{lost}"));
        },
    );
    log.rests();
    log.ends("lost-worker");
}

#[test]
fn scale_in_with_foreign_data() {
    let mut log =
        Log::new("A worker that is to go has a table that no catalog of the cluster knows.", born(3));
    log.happens("somebody keeps a table on worker-2; kubectl scale dlc/dialogs --replicas=2", |world| {
        world.put(Node::Worker(2), Some(world::Theirs::Table(1000)));
        scale(world, 2);
    });
    log.rests();
    log.happens("the table is dropped", |world| world.put(Node::Worker(2), None));
    log.rests();
    log.ends("scale-in-foreign-data");
}

#[test]
fn lost_secrets() {
    let mut log =
        Log::new("Secrets are deleted: those that can be made again, and the authorities.", born(1));
    log.happens("kubectl delete secret dialogs-server dialogs-node", |world| {
        world.objects.remove("Secret/dialogs-server").unwrap();
        world.objects.remove("Secret/dialogs-node").unwrap();
    });
    log.rests();
    let mut copy = None;
    log.happens("kubectl delete secret dialogs-ca", |world| copy = world.objects.remove("Secret/dialogs-ca"));
    log.rests();
    log.happens("kubectl create --filename backup-of-dialogs-ca.yaml", |world| {
        world.objects.insert("Secret/dialogs-ca".to_owned(), copy.unwrap());
    });
    log.rests();
    log.ends("secrets");
}

#[test]
fn pause() {
    let mut log = Log::new("Nothing is done while spec.paused is true.", born(1));
    log.happens("spec.paused: true, spec.workers.replicas: 2", |world| {
        world.edit(|spec| spec.paused = true);
        scale(world, 2);
    });
    log.passes(60);
    log.happens("spec.paused: false", |world| world.edit(|spec| spec.paused = false));
    log.rests();
    log.ends("pause");
}

#[test]
fn quota() {
    let mut log = Log::new("A quota has room for one volume, and two workers are asked for.", born(1));
    log.happens("kubectl scale dlc/dialogs --replicas=3", |world| {
        world.quota = Some(3);
        world.edit(|spec| spec.workers.join_timeout = "1m".to_owned());
        scale(world, 3);
    });
    log.passes(150);
    log.happens("the quota is raised", |world| world.quota = None);
    log.rests();
    log.ends("quota");
}

#[test]
fn moves_that_fail() {
    let mut log = Log::new("Moves fail for a while.", born(1));
    log.happens("no move succeeds from now on; kubectl scale dlc/dialogs --replicas=2", |world| {
        world.moves_fail = true;
        scale(world, 2);
    });
    log.passes(60);
    log.happens("moves succeed again", |world| world.moves_fail = false);
    log.rests();
    log.ends("moves-fail");
}

/// A log of which no scenario is left.
#[test]
fn each_log_has_its_scenario() {
    let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/plan_converges/golden");
    let files = std::fs::read_dir(here).unwrap().map(|entry| entry.unwrap().path());
    let names = files.filter(|path| path.extension().is_some_and(|txt| txt == "txt"));
    let names = names.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned());
    for name in names {
        assert!(include_str!("mod.rs").contains(&format!(".ends(\"{name}\")")), "{name}.txt is nobody's");
    }
}
