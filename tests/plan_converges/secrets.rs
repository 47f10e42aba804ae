//! Secrets that go, come back, or are changed by people.

use super::*;

const CA: &str = "Secret/dialogs-ca";
const LEAVES: [&str; 3] = ["Secret/dialogs-server", "Secret/dialogs-node", "Secret/dialogs-superuser"];

fn stalled(world: &World) -> (String, String) {
    let status = world.cluster.status.as_ref().unwrap();
    let found = status.conditions.iter().find(|condition| condition.type_ == "Stalled").unwrap();
    (found.reason.clone(), found.message.clone())
}

fn steps(world: &mut World) -> Vec<&'static str> {
    world.reconcile(None).steps.iter().map(|planned| planned.step.name()).collect()
}

fn ask_for_new(world: &mut World, value: &str) {
    world.cluster.metadata.annotations = Some([(keys::NEW_AUTHORITY.to_owned(), value.to_owned())].into());
}

#[test]
fn secrets_that_the_authorities_sign_come_back() {
    let mut world = born(2);
    for name in LEAVES {
        world.objects.remove(name).unwrap();
    }
    let lives = world.restarts.clone();
    settle(&mut world);
    assert!(LEAVES.iter().all(|name| world.objects.contains_key(*name)));
    assert_serves(&world);
    assert_eq!(world.restarts, lives);
}

#[test]
fn authorities_that_nodes_trust_are_never_made_anew() {
    for others in [0, 1, 3] {
        let mut world = born(2);
        let copy = world.objects.remove(CA).unwrap();
        for name in LEAVES.iter().take(others) {
            world.objects.remove(*name).unwrap();
        }
        for _ in 0..30 {
            assert_eq!(steps(&mut world), Vec::<&str>::new());
            world.tick();
        }
        let (reason, message) = stalled(&world);
        assert_eq!(reason, "AuthorityMissing");
        for word in ["dialogs-ca", "dialogs-server", "serve on", "no pod can start", "runbook"] {
            assert!(message.contains(word), "{word}: {message}");
        }
        assert_eq!(condition(&world, "Ready"), "True");
        assert_eq!(condition(&world, "Reconciling"), "False");
        // The rest goes on.
        world.edit(|spec| drop(spec.postgres.parameters.insert("work_mem".to_owned(), "8MB".to_owned())));
        until(&mut world, "a parameter is taken", |world| condition(world, "ConfigurationApplied") == "True");

        world.objects.insert(CA.to_owned(), copy);
        settle(&mut world);
        assert!(LEAVES.iter().all(|name| world.objects.contains_key(*name)));
        assert_serves(&world);
    }
}

#[test]
fn authorities_that_come_back_bare_are_taken_in() {
    for owners in [json!([]), json!(null)] {
        let mut world = born(1);
        let mut copy = world.objects.remove(CA).unwrap();
        copy.ownership = snapshot::Ownership::Foreign;
        copy.json = json!({"metadata": {"name": "dialogs-ca", "ownerReferences": owners}});
        world.objects.insert(CA.to_owned(), copy);
        settle(&mut world);
        assert_eq!(world.objects[CA].ownership, snapshot::Ownership::Owned);
        assert_serves(&world);
    }
}

#[test]
fn authorities_of_somebody_else_are_left_alone() {
    let mut world = born(1);
    let stranger = world.objects.get_mut(CA).unwrap();
    stranger.ownership = snapshot::Ownership::Foreign;
    stranger.json = json!({"metadata": {"name": "dialogs-ca", "ownerReferences": [{"kind": "Certificate"}]}});
    assert_eq!(steps(&mut world), Vec::<&str>::new());
    assert_eq!(stalled(&world).0, "ObjectConflict");
}

#[test]
fn authorities_without_one_of_their_keys_are_told() {
    let mut world = born(1);
    world.objects.get_mut(CA).unwrap().json["data"] =
        json!({"server-ca.crt": null, "server-ca.key": null, "node-ca.crt": null});
    world.objects.remove(LEAVES[0]).unwrap();
    assert_eq!(steps(&mut world), Vec::<&str>::new());
    let (reason, message) = stalled(&world);
    assert_eq!(reason, "AuthorityMissing");
    assert!(message.contains("node-ca.key") && !message.contains("server-ca.key"), "{message}");
}

#[test]
fn new_authorities_when_asked_for_replace_all_of_the_old() {
    let mut world = born(2);
    world.objects.remove(CA).unwrap();
    ask_for_new(&mut world, "1");
    assert_eq!(steps(&mut world), Vec::<&str>::new());
    let message = stalled(&world).1;
    assert!(message.contains("delete dialogs-server, dialogs-node, dialogs-superuser first"), "{message}");
    for name in LEAVES {
        world.objects.remove(name).unwrap();
    }
    assert_eq!(steps(&mut world), ["CreateSecret"; 4]);
    settle(&mut world);
    assert_serves(&world);
    // Once.
    for name in LEAVES.iter().chain(&[CA]) {
        world.objects.remove(*name).unwrap();
    }
    assert_eq!(steps(&mut world), Vec::<&str>::new());
    assert_eq!(stalled(&world).0, "AuthorityMissing");
}

#[test]
fn a_request_for_new_authorities_does_not_lie_in_wait() {
    let mut world = born(1);
    ask_for_new(&mut world, "1");
    settle(&mut world);
    for name in LEAVES.iter().chain(&[CA]) {
        world.objects.remove(*name).unwrap();
    }
    assert_eq!(steps(&mut world), Vec::<&str>::new());
    assert_eq!(stalled(&world).0, "AuthorityMissing");
}

/// The volumes of before tell nothing about authorities: no server runs that trusts the old ones.
#[test]
fn a_cluster_that_is_made_again_gets_authorities_of_its_own() {
    let mut world = born(2);
    world.delete_and_make_again();
    settle(&mut world);
    assert!(world.objects.contains_key(CA));
    assert_serves(&world);
}

#[test]
fn a_changed_password_is_taken_once_and_every_key_follows() {
    let mut world = born(1);
    let before = world.owner.clone();
    for version in ["100", "200"] {
        world.objects.get_mut("Secret/dialogs-app").unwrap().json["metadata"]["resourceVersion"] =
            json!(version);
        world.application.version = version.to_owned();
        world.application.stale = vec!["uri".to_owned(), "jdbc-uri".to_owned()];
        assert_eq!(steps(&mut world), ["SetConnectionKeys"]);
        assert_eq!(steps(&mut world), ["CreateOwner"]);
        assert_eq!(steps(&mut world), Vec::<&str>::new());
        assert_ne!(world.owner, before);
    }
    assert_serves(&world);
}

#[test]
fn unusable_password_is_told_and_the_role_keeps_its_own() {
    let mut world = born(1);
    let before = world.owner.clone();
    world.objects.get_mut("Secret/dialogs-app").unwrap().json["metadata"]["resourceVersion"] = json!("100");
    world.application = snapshot::ApplicationSecret {
        version: "100".to_owned(),
        unusable: Some("key 'password' is empty".to_owned()),
        stale: Vec::new(),
    };
    assert_eq!(steps(&mut world), Vec::<&str>::new());
    let (reason, message) = stalled(&world);
    assert_eq!(reason, "PasswordNotUsable");
    assert!(message.contains("dialogs-app") && message.contains("'password'"), "{message}");
    assert_eq!(world.owner, before);
}

/// The keys are of one version of the Secret and the objects of another: the next look tells.
#[test]
fn nothing_is_written_from_two_looks_at_once() {
    let mut world = born(1);
    world.application.version = "old".to_owned();
    world.application.stale = vec!["uri".to_owned()];
    assert_eq!(steps(&mut world), Vec::<&str>::new());
}

fn told(world: &World, reach: snapshot::Reach) -> (String, String, String) {
    let mut world_seen = born(2);
    world_seen.cluster = world.cluster.clone();
    let mut seen = world_seen.observe();
    seen.reach = Some(reach);
    let status = report::status(&world.desired(), &seen, &Plan::default(), &Outcome::default());
    let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready").unwrap();
    (ready.status.clone(), ready.reason.clone(), ready.message.clone())
}

#[test]
fn ready_falls_after_two_looks_without_a_new_connection() {
    let world = born(2);
    let why = "coordinator to worker-1: certificate verify failed".to_owned();
    let reach = |failures, broken: &[&String], application| snapshot::Reach {
        failures,
        broken: broken.iter().map(ToString::to_string).collect(),
        application,
        busy: Vec::new(),
    };
    use snapshot::Login;
    assert_eq!(told(&world, reach(1, &[&why], Login::Well)).0, "True");
    let fallen = told(&world, reach(2, &[&why], Login::Well));
    assert_eq!((fallen.0.as_str(), fallen.1.as_str()), ("False", "NodesCannotConnect"));
    assert!(fallen.2.contains(&why), "{}", fallen.2);
    let refused = Login::Failed("role \"dialogs\" is not permitted to log in".to_owned());
    let fallen = told(&world, reach(2, &[], refused));
    assert_eq!((fallen.0.as_str(), fallen.1.as_str()), ("False", "OwnerCannotConnect"));
    assert!(fallen.2.contains("not permitted"), "{}", fallen.2);
    let differs = Login::PasswordDiffers("password authentication failed".to_owned());
    assert!(told(&world, reach(2, &[], differs)).2.contains("PasswordDiffers"));
}

#[test]
fn no_free_connection_is_told_and_no_failure() {
    let world = born(2);
    let busy = "FATAL: sorry, too many clients already".to_owned();
    let reach = snapshot::Reach { busy: vec![busy.clone()], ..snapshot::Reach::default() };
    let ready = told(&world, reach);
    assert_eq!(ready.0, "True");
    assert!(ready.2.contains(&busy), "{}", ready.2);
    let untried = snapshot::Login::Untried("there is no distributed table".to_owned());
    let ready = told(&world, snapshot::Reach { application: untried, ..snapshot::Reach::default() });
    assert!(ready.0 == "True" && ready.2.contains("no distributed table"), "{ready:?}");
}

/// By SQL, and not in the Secret.
#[test]
fn a_role_with_another_password_gets_that_of_its_secret_back() {
    let mut world = born(1);
    let application = snapshot::Login::PasswordDiffers("password authentication failed".to_owned());
    world.reach = Some(snapshot::Reach { failures: 1, application, ..snapshot::Reach::default() });
    assert_eq!(steps(&mut world), ["CreateOwner"]);
    assert_eq!(steps(&mut world), Vec::<&str>::new());
}

/// Much work makes a look take long, and is no outage.
#[test]
fn ready_falls_when_two_looks_in_a_row_take_too_long() {
    let mut world = born(2);
    let late = |world: &mut World, node: Option<Node>, late: &[Node]| {
        let mut seen = world.observe();
        if let Some(node) = node {
            seen.postgres.insert(node, snapshot::Observed::Unknown("no answer within 5 s".to_owned()));
        }
        if node == Some(Node::Coordinator) || node.is_none() {
            seen.citus = snapshot::Observed::Unknown("no answer within 12 s".to_owned());
        }
        seen.slow_nodes = late.iter().copied().collect();
        let status = report::status(&world.desired(), &seen, &Plan::default(), &Outcome::default());
        let ready = status.conditions.into_iter().find(|condition| condition.type_ == "Ready").unwrap();
        (ready.status, ready.message)
    };
    for node in [Node::Coordinator, Node::Worker(1)] {
        let (status, message) = late(&mut world, Some(node), &[node]);
        assert_eq!(status, "True", "{message}");
        assert!(message.contains("no answer within 5 s"), "{message}");
        assert_eq!(late(&mut world, Some(node), &[]).0, "False", "the second one");
        assert_eq!(late(&mut world, Some(node), &[Node::Worker(0)]).0, "False", "another one is late");
    }
    let (status, message) = late(&mut world, None, &[Node::Coordinator]);
    assert!(status == "True" && message.contains("no answer within 12 s"), "{message}");
    let mut unborn = world;
    unborn.cluster.status = None;
    assert_eq!(
        late(&mut unborn, Some(Node::Worker(1)), &[Node::Worker(1)]).0,
        "False",
        "it was not ready before"
    );
}

/// A cluster that is made again on its volumes: its servers trust nobody yet.
#[test]
fn authorities_that_failed_are_made_before_any_server() {
    let mut world = born(1);
    world.refuses.insert("CreateSecret".to_owned(), 20);
    world.delete_and_make_again();
    for _ in 0..15 {
        world.reconcile(None);
        world.tick();
        assert!(!world.objects.contains_key("StatefulSet/dialogs-coordinator"), "not before");
    }
    settle(&mut world);
    assert_serves(&world);
}

/// The Secret of a cluster that was deleted is still there, and goes a moment later.
#[test]
fn no_node_is_made_beside_authorities_of_a_deleted_cluster() {
    let mut world = born(1);
    world.delete_and_make_again();
    // The first Secret and no more; then a cache that does not show that it went with its cluster.
    drop(world.reconcile(Some(1)));
    let before = world.objects.clone();
    world.reconcile(None);
    world.stale = Some(before);
    world.delete_and_make_again();
    settle(&mut world);
    assert_serves(&world);
}
