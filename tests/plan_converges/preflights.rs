//! What is in the way of moves is told before a job starts, with the statement that ends it; the rest moves.

use super::*;
use dialog_operator::api::spec::TransferMode;
use snapshot::{Obstacle, ObstacleKind};
use strum::IntoEnumIterator;

/// The first shards are those of another table, which meets this.
fn meet(world: &mut World, shards: usize, obstacle: Obstacle) {
    world.led = world.placements.keys().copied().take(shards).collect();
    world.obstacles = vec![Obstacle { table: "public.led".to_owned(), colocation_id: 2, ..obstacle }];
}

fn nologin() -> Obstacle {
    Obstacle { kind: ObstacleKind::OwnerCannotLogIn, owner: "app_owner".to_owned(), ..Obstacle::default() }
}

fn stalled(world: &World) -> (String, String) {
    let status = world.cluster.status.as_ref().unwrap();
    let found = status.conditions.iter().find(|condition| condition.type_ == "Stalled").unwrap();
    (found.reason.clone(), found.message.clone())
}

fn budget(world: &World) -> u64 {
    world.objects["PodDisruptionBudget/dialogs"].json["spec"]["maxUnavailable"].as_u64().unwrap()
}

#[test]
fn each_obstacle_has_a_reason_and_a_statement() {
    let mut world = uneven(&[]);
    let mut seen = until_planned(&mut world, "StartRebalance");
    for kind in ObstacleKind::iter() {
        use ObstacleKind as Kind;
        let (what, value, reason, words) = match kind {
            Kind::NoReplicaIdentity => (None, None, "NoReplicaIdentity", "ADD PRIMARY KEY"),
            Kind::Unlogged => (None, None, "UnloggedTable", "SET LOGGED"),
            Kind::OwnedBySuperuser => {
                (None, None, "TableOwnedBySuperuser", "ALTER TABLE shop.t OWNER TO dialogs")
            }
            Kind::OwnerCannotLogIn => (None, None, "OwnerCannotLogIn", "ALTER ROLE shop LOGIN"),
            Kind::OwnerHasNoConnections => {
                (None, None, "OwnerCannotLogIn", "ALTER ROLE shop CONNECTION LIMIT -1")
            }
            Kind::OwnerCannotCreate => {
                (Some("app"), None, "OwnerCannotCreate", "GRANT CREATE ON SCHEMA app TO shop")
            }
            Kind::PartitionOfAnother => (
                Some("shop.p"),
                Some("Boss"),
                "PartitionOwnerDiffers",
                "ALTER TABLE shop.t OWNER TO \"Boss\"",
            ),
            Kind::SettingOfRole => (
                Some("statement_timeout"),
                Some("100ms"),
                "OwnerSettings",
                "ALTER ROLE shop RESET statement_timeout",
            ),
            Kind::SettingOfRoleInDatabase => (
                Some("role"),
                Some("other"),
                "OwnerSettings",
                "ALTER ROLE shop IN DATABASE dialogs RESET role",
            ),
            Kind::SettingOfDatabase => (
                Some("default_transaction_read_only"),
                Some("on"),
                "OwnerSettings",
                "ALTER DATABASE dialogs RESET default_transaction_read_only",
            ),
            Kind::SettingOfAll => (
                Some("statement_timeout"),
                Some("1s"),
                "OwnerSettings",
                "ALTER ROLE ALL RESET statement_timeout",
            ),
            Kind::ReferenceTableRunsCode => (
                Some("CHECK c calls app.f(text)"),
                None,
                "ReferenceTableRunsCode",
                "ALTER TABLE shop.t OWNER TO postgres",
            ),
        };
        let snapshot::Observed::Known(citus) = &mut seen.citus else { panic!("a catalog") };
        citus.obstacles.listed = vec![Obstacle {
            kind,
            table: "shop.t".to_owned(),
            colocation_id: 1,
            reference: kind == Kind::ReferenceTableRunsCode,
            owner: "shop".to_owned(),
            what: what.map(ToOwned::to_owned),
            value: value.map(ToOwned::to_owned),
            groups: vec![2],
            more: 0,
        }];
        let plan = plan(&world.desired(), &seen);
        let problem = plan.problems.first().unwrap_or_else(|| panic!("{kind:?} is told"));
        assert_eq!(problem.reason().to_string(), reason);
        let message = problem.to_string();
        assert!(message.contains(words) && message.contains("shop.t"), "{message}");
        let starts = plan.steps.iter().any(|planned| planned.step.name() == "StartRebalance");
        assert!(!starts, "{kind:?}: {:?}", plan.steps);
    }
}

#[test]
fn what_cannot_move_stays_and_all_others_move() {
    for scale_in in [false, true] {
        let mut world = if scale_in { born(3) } else { uneven(&[]) };
        if scale_in {
            world.edit(|spec| spec.workers.replicas = 2);
            until(&mut world, "the drain is begun", |world| !world.nodes[3].should_have_shards);
            assert!(world.job.is_none());
        }
        meet(&mut world, 6, nologin());
        let before = world.placements.clone();
        settle(&mut world);
        assert_eq!(world.jobs_started, 1, "{}", world.log.join("\n"));
        let moved: Vec<i64> = before
            .iter()
            .filter(|(shard, at)| world.placements[shard] != **at)
            .map(|(shard, _)| *shard)
            .collect();
        assert!(!moved.is_empty() && moved.iter().all(|shard| !world.led.contains(shard)), "{moved:?}");
        let kept = world.pins.clone();
        // Whether something of it would have to move decides whether it is told.
        let (reason, message) = stalled(&world);
        if kept.is_some() {
            assert_eq!(reason, "OwnerCannotLogIn", "{message}");
            assert!(message.contains("public.led") && message.contains("all others move"), "{message}");
        }
        assert_eq!((condition(&world, "Ready").as_str(), budget(&world)), ("True", 1));
        // It heals by itself.
        world.obstacles.clear();
        settle(&mut world);
        assert_serves(&world);
        assert!(world.pins.is_none(), "nothing is left of it");
    }
}

#[test]
fn what_stops_everything_starts_nothing() {
    let reference =
        Obstacle { kind: ObstacleKind::NoReplicaIdentity, reference: true, ..Obstacle::default() };
    let superusers = Obstacle { kind: ObstacleKind::OwnedBySuperuser, ..Obstacle::default() };
    for (obstacle, told) in [(reference, "NoReplicaIdentity"), (superusers, "TableOwnedBySuperuser")] {
        let mut world = uneven(&[]);
        meet(&mut world, 1, obstacle);
        settle(&mut world);
        let (reason, message) = stalled(&world);
        assert_eq!((reason.as_str(), world.jobs_started, budget(&world)), (told, 0, 1), "{message}");
        assert!(message.contains("No shard is moved before that"), "{message}");
        world.obstacles.clear();
        settle(&mut world);
        assert_serves(&world);
    }
}

/// The reason is that of what everything waits for, whatever else is told; a group that is not listed cannot be pinned.
#[test]
fn what_everything_waits_for_is_told_first() {
    let mut world = uneven(&[]);
    let mut seen = until_planned(&mut world, "StartRebalance");
    let snapshot::Observed::Known(citus) = &mut seen.citus else { panic!("a catalog") };
    let unlogged = Obstacle {
        kind: ObstacleKind::Unlogged,
        table: "shop.cache".to_owned(),
        colocation_id: 1,
        more: 600,
        ..Obstacle::default()
    };
    let superusers = Obstacle {
        kind: ObstacleKind::OwnedBySuperuser,
        table: "shop.x".to_owned(),
        colocation_id: 2,
        ..Obstacle::default()
    };
    citus.obstacles.listed = vec![unlogged.clone(), superusers];
    let plan = dialog_operator::plan::plan(&world.desired(), &seen);
    let told: Vec<(String, String)> =
        plan.problems.iter().map(|problem| (problem.reason().to_string(), problem.to_string())).collect();
    let [(first, words), (second, others)] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!((first.as_str(), second.as_str()), ("TableOwnedBySuperuser", "UnloggedTable"));
    assert!(words.contains("OWNER TO dialogs; No shard is moved before that."), "{words}");
    assert!(others.starts_with("shop.cache and 600 more:") && !others.contains("No shard"), "{others}");

    let snapshot::Observed::Known(citus) = &mut seen.citus else { panic!("a catalog") };
    citus.obstacles.listed = vec![Obstacle { colocation_id: 7, ..unlogged }];
    assert!(does(&world, &seen, "StartRebalance"), "it is about what does not move");
    let snapshot::Observed::Known(citus) = &mut seen.citus else { panic!("a catalog") };
    citus.obstacles.listed[0].colocation_id = 1;
    citus.obstacles.unlisted = 1;
    let plan = dialog_operator::plan::plan(&world.desired(), &seen);
    let Problem::Obstacle(first) = &plan.problems[0] else { panic!("{:?}", plan.problems) };
    assert_eq!(first.stays, problem::Unmoved::Everything);
    assert!(!plan.steps.iter().any(|planned| planned.step.name() == "PinGroups"), "{:?}", plan.steps);
}

/// A strategy that is left of another cause, or made of another one, is made anew before a job.
#[test]
fn groups_are_pinned_as_of_now() {
    let mut world = uneven(&[]);
    let mut seen = until_planned(&mut world, "StartRebalance");
    let base = world.desired().rebalance.strategy.clone();
    let snapshot::Observed::Known(citus) = &mut seen.citus else { panic!("a catalog") };
    citus.obstacles.listed = vec![Obstacle { colocation_id: 1, ..nologin() }];
    citus.planned_moves_when_pinned = citus.planned_moves.clone();
    for (base, groups, pins) in
        [(base.as_str(), vec![7], true), ("by_luck", vec![1], true), (base.as_str(), vec![1], false)]
    {
        let snapshot::Observed::Known(citus) = &mut seen.citus else { panic!("a catalog") };
        citus.pins = Some(snapshot::Pins { base: base.to_owned(), groups });
        assert_eq!((does(&world, &seen, "PinGroups"), does(&world, &seen, "StartRebalance")), (pins, !pins));
    }
}

#[test]
fn a_drain_is_about_what_is_on_the_workers_that_go() {
    let mut world = born(3);
    // A table of a single shard on another worker.
    let first = world.nodes[1].group_id;
    let alone = *world.placements.iter().find(|(_, group)| **group == first).unwrap().0;
    world.led = [alone].into();
    world.obstacles = vec![Obstacle {
        kind: ObstacleKind::NoReplicaIdentity,
        table: "tenant_a.log".to_owned(),
        colocation_id: 2,
        ..Obstacle::default()
    }];
    world.edit(|spec| spec.workers.replicas = 2);
    settle(&mut world);
    assert_eq!((world.nodes.len(), world.placements[&alone]), (3, first), "drained, and it stayed");
    assert_eq!(condition(&world, "Stalled"), "False");
    // On the worker that goes it keeps the drain from being begun.
    let mut world = born(3);
    meet(&mut world, 20, nologin());
    world.edit(|spec| spec.workers.replicas = 2);
    settle(&mut world);
    assert_eq!((stalled(&world).0.as_str(), world.nodes.len()), ("OwnerCannotLogIn", 4));
    assert!(world.nodes.iter().skip(1).all(|row| row.should_have_shards), "nothing is begun");
}

#[test]
fn a_way_of_moving_that_does_without_is_taken() {
    for (kind, mode, moves) in [
        (ObstacleKind::NoReplicaIdentity, TransferMode::Auto, false),
        (ObstacleKind::NoReplicaIdentity, TransferMode::ForceLogical, true),
        (ObstacleKind::NoReplicaIdentity, TransferMode::BlockWrites, true),
        (ObstacleKind::Unlogged, TransferMode::Auto, false),
        (ObstacleKind::Unlogged, TransferMode::ForceLogical, false),
        (ObstacleKind::Unlogged, TransferMode::BlockWrites, true),
    ] {
        let mut world = uneven(&[]);
        world.edit(|spec| spec.rebalance.transfer_mode = mode);
        let mut seen = until_planned(&mut world, "StartRebalance");
        let snapshot::Observed::Known(citus) = &mut seen.citus else { panic!("a catalog") };
        citus.obstacles.listed = vec![Obstacle { kind, colocation_id: 1, ..Obstacle::default() }];
        assert_eq!(does(&world, &seen, "StartRebalance"), moves, "{kind:?} with {mode}");
    }
}

#[test]
fn a_long_limit_on_statements_is_no_obstacle() {
    let mut world = uneven(&[]);
    let mut seen = until_planned(&mut world, "StartRebalance");
    for (value, bytes, starts) in [
        ("100ms", 0, false),
        ("30s", 1_000_000, true),
        ("30s", 1_000_000_000, false),
        ("1h", 1_000_000_000, true),
        ("1.5h", 0, false),
    ] {
        let snapshot::Observed::Known(citus) = &mut seen.citus else { panic!("a catalog") };
        let Some(snapshot::Observed::Known(moves)) = &mut citus.planned_moves else { panic!("a plan") };
        moves.iter_mut().for_each(|planned| planned.bytes = bytes);
        citus.obstacles.listed = vec![Obstacle {
            kind: ObstacleKind::SettingOfRole,
            colocation_id: 1,
            what: Some("statement_timeout".to_owned()),
            value: Some(value.to_owned()),
            ..Obstacle::default()
        }];
        assert_eq!(does(&world, &seen, "StartRebalance"), starts, "{value} for {bytes} bytes");
    }
}
