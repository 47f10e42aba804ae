//! Golden files of every object, and what must hold for all of them.

use rstest::rstest;
use serde_json::json;
use strum::IntoEnumIterator;

use std::collections::BTreeMap;

use super::*;
use crate::api::{ClusterId, DialogCluster, DialogClusterSpec, Node, names::keys};

/// Its name is no name of a product, so that a name written by hand somewhere would show.
fn desired(spec: Value) -> Desired {
    let mut cluster = DialogCluster::new("talk", serde_json::from_value::<DialogClusterSpec>(spec).unwrap());
    cluster.metadata.namespace = Some("shop".to_owned());
    cluster.metadata.uid = Some("8f6d2c1e-0000-4000-8000-000000000001".to_owned());
    Desired::try_from(&cluster).unwrap()
}

fn with<T>(spec: Value, look: impl FnOnce(&BuildContext) -> T) -> T {
    let desired = desired(spec);
    let operator = OperatorConfig {
        default_image: "registry.example/citus:1".to_owned(),
        cluster_domain: "cluster.local".to_owned(),
    };
    look(&BuildContext { desired: &desired, operator: &operator, image: "registry.example/citus:14.1" })
}

fn worker(inputs: &BuildContext) -> Manifest {
    stateful_set(inputs, Node::Worker(2), "talk-worker-2-x7k2q", Some("7436"))
}

fn all(inputs: &BuildContext) -> Vec<Manifest> {
    vec![
        service_account(inputs),
        node_service(inputs, Node::Worker(2)),
        nodes_service(inputs),
        application_service(inputs),
        pod_disruption_budget(inputs, Evictions::AllowOne),
        config_map(inputs, Node::Coordinator, &inputs.desired.parameters, InitdbPermission::Forbidden),
        config_map(inputs, Node::Worker(2), &inputs.desired.parameters, InitdbPermission::Allowed(None)),
        stateful_set(inputs, Node::Coordinator, "talk-coordinator-b4c5d", None),
        worker(inputs),
        volume_claim(
            inputs,
            Node::Worker(2),
            "talk-worker-2-x7k2q",
            ClaimRecord { identity: Some("7436"), ..ClaimRecord::default() },
        ),
        inspection_pod(inputs, "registry.example/citus:15"),
    ]
}

/// All a user can write about a pod.
fn full() -> Value {
    json!({
        "imagePullPolicy": "Always",
        "imagePullSecrets": [{"name": "pull"}],
        "workers": {
            "storage": {"size": "20Gi", "storageClassName": "fast"},
            "resources": {"requests": {"cpu": "1500m", "memory": "4Gi"}, "limits": {"memory": "4Gi"}},
            "nodeSelector": {"disk": "nvme"},
            "tolerations": [{"key": "database", "operator": "Exists"}],
            "affinity": {"nodeAffinity": {}},
            "topologySpreadConstraints": [
                {"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "ScheduleAnyway"}
            ],
            "priorityClassName": "high",
            "podAnnotations": {"example.org/a": "1"},
            "podLabels": {"team": "messages", "dialogcluster.dev/node": "not-yours"}
        },
        "postgres": {"uid": 26, "gid": 27, "parameters": {"work_mem": "64MB", "max_wal_senders": "80"}}
    })
}

#[test]
fn objects() {
    let mut settings = insta::Settings::clone_current();
    settings.set_sort_maps(true);
    settings.set_prepend_module_to_snapshot(false);
    settings.bind(|| {
        for (spec, what) in [(json!({}), "default"), (full(), "full")] {
            for mut object in with(spec, all) {
                object.json["metadata"]["annotations"][keys::APPLIED_HASH] = json!("(hash)");
                if let Some(data) = object.json.get_mut("data") {
                    data["start.sh"] = json!("(start.sh)");
                    data["boot-hash"] = json!("(hash)");
                }
                if object.kind == "Pod" {
                    object.json["spec"]["containers"][0]["command"][2] = json!("(inspect.sh)");
                }
                // What is the same whatever the spec says is enough once.
                if what == "default"
                    || matches!(object.kind.as_str(), "StatefulSet" | "PersistentVolumeClaim")
                {
                    insta::assert_yaml_snapshot!(
                        format!("{what}-{}-{}", object.kind, object.name),
                        object.json
                    );
                }
            }
        }
    });
}

#[test]
fn everything_is_labelled_and_owned_but_volumes() {
    with(full(), |inputs| {
        for object in all(inputs) {
            let metadata = &object.json["metadata"];
            assert_eq!(metadata["namespace"], "shop", "{}", object.key());
            assert_eq!(metadata["labels"][keys::CLUSTER], "talk", "{}", object.key());
            assert_eq!(
                metadata["labels"]["app.kubernetes.io/managed-by"],
                "dialog-operator",
                "{}",
                object.key()
            );
            let owner = &metadata["ownerReferences"][0];
            if object.kind == "PersistentVolumeClaim" {
                assert!(owner.is_null(), "{}", object.key());
            } else {
                assert_eq!(owner["uid"], "8f6d2c1e-0000-4000-8000-000000000001", "{}", object.key());
                assert_eq!(owner["kind"], "DialogCluster");
                assert_eq!(owner["apiVersion"], "dialogcluster.dev/v1alpha1");
                assert_eq!(
                    (&owner["controller"], &owner["blockOwnerDeletion"]),
                    (&json!(true), &json!(true))
                );
            }
        }
    });
}

/// Argo CD, in its default, takes what carries an application's name in this label for the application's, and a pruning
/// one deletes what is not in its source.
#[test]
fn no_tool_that_tracks_by_a_label_takes_a_volume_for_its_own() {
    for policy in ["Retain", "Delete"] {
        with(json!({"volumes": {"whenDeleted": policy}}), |inputs| {
            let claim = volume_claim(inputs, Node::Coordinator, "c", ClaimRecord::default());
            let labels = claim.json["metadata"]["labels"].as_object().unwrap();
            assert!(!labels.contains_key("app.kubernetes.io/instance"), "{policy}: {labels:?}");
            let names = labels.iter().filter(|(_, value)| **value == "talk");
            assert_eq!(names.map(|(key, _)| key.as_str()).collect::<Vec<_>>(), [keys::CLUSTER], "{policy}");
        });
    }
}

/// <https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted>, and a read-only root besides.
#[test]
fn pods_pass_the_restricted_standard() {
    with(full(), |inputs| {
        let pods = [
            worker(inputs).json["spec"]["template"]["spec"].clone(),
            inspection_pod(inputs, "i").json["spec"].clone(),
        ];
        for pod in pods {
            let security = &pod["securityContext"];
            assert_eq!(security["runAsNonRoot"], true);
            assert_eq!(security["seccompProfile"]["type"], "RuntimeDefault");
            assert_eq!((&security["runAsUser"], &security["fsGroup"]), (&json!(26), &json!(27)));
            assert_eq!(pod["automountServiceAccountToken"], false);
            for field in ["hostNetwork", "hostPID", "hostIPC"] {
                assert!(pod[field].is_null());
            }
            let allowed = ["configMap", "emptyDir", "secret", "persistentVolumeClaim"];
            for volume in pod["volumes"].as_array().unwrap() {
                assert!(allowed.iter().any(|kind| volume.get(kind).is_some()), "{volume}");
            }
            for container in pod["containers"].as_array().unwrap() {
                let security = &container["securityContext"];
                assert_eq!(security["allowPrivilegeEscalation"], false);
                assert_eq!(security["capabilities"], json!({"drop": ["ALL"]}));
                assert_eq!(security["readOnlyRootFilesystem"], true);
            }
        }
    });
}

#[test]
fn users_cannot_take_a_label_of_a_selector() {
    let set = with(full(), worker);
    assert_eq!(set.json["spec"]["template"]["metadata"]["labels"][keys::NODE], "worker-2");
    assert_eq!(set.json["spec"]["template"]["metadata"]["labels"]["team"], "messages");
}

/// An inspection pod has no node: the budget would otherwise count a pod that no StatefulSet stands for.
#[test]
fn the_budget_counts_nodes_only() {
    with(json!({}), |inputs| {
        let selector = pod_disruption_budget(inputs, Evictions::AllowOne).json["spec"]["selector"].clone();
        assert_eq!(selector["matchExpressions"][0]["key"], keys::NODE);
        assert!(inspection_pod(inputs, "i").json["metadata"]["labels"].get(keys::NODE).is_none());
        let unavailable =
            |moving| pod_disruption_budget(inputs, moving).json["spec"]["maxUnavailable"].clone();
        assert_eq!((unavailable(Evictions::Block), unavailable(Evictions::AllowOne)), (json!(0), json!(1)));
    });
}

#[test]
fn the_user_overrides_defaults_and_nothing_of_the_operator() {
    let mut desired = desired(full());
    assert_eq!(settings(&desired, Node::Coordinator)["max_wal_senders"], "80");
    assert_eq!(settings(&desired, Node::Coordinator)["max_replication_slots"], "64");
    assert_eq!(settings(&desired, Node::Coordinator)["citus.max_background_task_executors_per_node"], "4");
    // The API server and `Desired` refuse this; the last line of defence is here.
    desired.parameters.insert("citus.local_hostname".to_owned(), "elsewhere".to_owned());
    assert_eq!(settings(&desired, Node::Coordinator)["citus.local_hostname"], "localhost");
    for owned in
        settings(&desired, Node::Coordinator).keys().filter(|name| crate::api::validation::is_owned(name))
    {
        assert!(!desired.parameters.contains_key(owned) || owned == "citus.local_hostname");
    }
}

/// On a worker they would end what Citus does there on the account of a table's owner.
#[test]
fn timeouts_of_the_spec_are_for_clients() {
    let timeouts =
        json!({"statement_timeout": "100ms", "transaction_timeout": "1s", "idle_session_timeout": "5min"});
    let desired = desired(json!({"postgres": {"parameters": timeouts}}));
    let of = |node| settings(&desired, node);
    assert_eq!(of(Node::Coordinator)["statement_timeout"], "100ms");
    assert!(!of(Node::Coordinator).contains_key("lock_timeout"));
    for name in ["statement_timeout", "lock_timeout", "transaction_timeout", "idle_session_timeout"] {
        assert_eq!(of(Node::Worker(1))[name], "0", "{name}");
    }
    // Servers before PostgreSQL 17 would not start with it.
    let plain = settings(&self::desired(json!({})), Node::Worker(1));
    assert!(plain.contains_key("statement_timeout") && !plain.contains_key("transaction_timeout"));
}

#[test]
fn coordinator_connects_to_itself_by_its_hosts_file_name() {
    with(json!({}), |inputs| {
        let conf = |node| {
            let map = config_map(inputs, node, &inputs.desired.parameters, InitdbPermission::Allowed(None));
            map.json["data"]["postgresql.conf"].as_str().unwrap().to_owned()
        };
        let itself = "citus.local_hostname = 'talk-coordinator-0.talk-nodes.shop.svc.cluster.local'\n";
        assert!(conf(Node::Coordinator).contains(itself), "{}", conf(Node::Coordinator));
        assert!(conf(Node::Worker(0)).contains("citus.local_hostname = 'localhost'\n"));
    });
}

#[test]
fn hashes_change_with_what_they_are_of_and_with_nothing_else() {
    let hashes = |spec: Value, node| {
        with(spec, |inputs| {
            let parameters = &inputs.desired.parameters;
            (config_hash(inputs, node, parameters), startup_hash(inputs, node, parameters))
        })
    };
    let plain = hashes(json!({}), Node::Worker(0));
    assert_eq!(plain, hashes(json!({}), Node::Worker(1)), "workers are made alike");
    assert_ne!(plain.0, hashes(json!({}), Node::Coordinator).0, "another pg_hba.conf");
    let other = hashes(json!({"postgres": {"parameters": {"work_mem": "1MB"}}}), Node::Worker(0));
    assert!(plain.0 != other.0 && plain.1 != other.1);
    assert_ne!(plain.0, hashes(json!({"rebalance": {"maxMovesPerNode": 2}}), Node::Worker(0)).0);
    assert_eq!(plain, hashes(json!({"workers": {"replicas": 9, "podLabels": {"a": "b"}}}), Node::Worker(0)));
    with(json!({}), |inputs| {
        let map =
            config_map(inputs, Node::Worker(0), &inputs.desired.parameters, InitdbPermission::Allowed(None));
        let file = map.json["data"]["postgresql.conf"].as_str().unwrap();
        assert_eq!(file.lines().last().unwrap(), format!("dialog.config_hash = '{}'", plain.0));
        assert_eq!(map.json["data"]["boot-hash"], plain.1);
    });
}

#[test]
fn a_config_map_can_be_read_back() {
    with(full(), |inputs| {
        let old = BTreeMap::from([("work_mem".to_owned(), "it's \"1\" \\ ы".to_owned())]);
        for initialise in [InitdbPermission::Allowed(None), InitdbPermission::Forbidden] {
            let map = config_map(inputs, Node::Worker(0), &old, initialise);
            assert_eq!(parameters_of(&map.json), Some(old.clone()));
            assert_eq!(may_initialise(&map.json), initialise == InitdbPermission::Allowed(None));
        }
        assert_eq!(parameters_of(&json!({"metadata": {}})), None);
        assert!(!may_initialise(&json!({"data": {"initialise": "please"}})));
    });
    for failure in StartFailure::iter() {
        let end = format!("die_with {} ", failure as i32);
        assert_eq!(configuration::START_SCRIPT.matches(&end).count(), 1, "{failure:?}");
    }
}

/// Written down: an operator that computes another value restarts every node of every cluster.
#[test]
fn an_operator_upgrade_does_not_change_what_the_user_wrote() {
    assert_eq!(with(full(), |inputs| user_template_hash(inputs, Node::Worker(0))), "21b4b7a6c9e39651");
    assert_eq!(with(json!({}), |inputs| user_template_hash(inputs, Node::Worker(0))), "e33a0c8788a8c9fb");
}

#[rstest]
#[case::amounts_in_other_words(json!({"resources": {"requests": {"cpu": "1.5", "memory": "4096Mi"}, "limits": {"memory": "4Gi"}}}), false)]
#[case::storage(json!({"storage": {"size": "90Gi"}}), false)]
#[case::more_workers(json!({"replicas": 7}), false)]
#[case::an_empty_list(json!({"tolerations": []}), true)]
#[case::resources(json!({"resources": {"requests": {"cpu": "2", "memory": "4Gi"}, "limits": {"memory": "4Gi"}}}), true)]
#[case::node_selector(json!({"nodeSelector": {"disk": "ssd"}}), true)]
#[case::affinity(json!({"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "zone"}]}}}), true)]
#[case::priority(json!({"priorityClassName": "low"}), true)]
#[case::annotations(json!({"podAnnotations": {}}), false)]
#[case::labels(json!({"podLabels": {"team": "other"}}), false)]
fn what_the_user_wrote_about_a_pod_is_a_reason_to_restart_it(#[case] change: Value, #[case] restarts: bool) {
    let mut spec = full();
    for (key, value) in change.as_object().unwrap() {
        spec["workers"][key] = value.clone();
    }
    let hash = |spec| with(spec, |inputs| user_template_hash(inputs, Node::Worker(0)));
    assert_eq!(hash(spec) != hash(full()), restarts);
}

/// On a running pod they are changed as they are, and nobody restarts for them.
#[test]
fn metadata_of_running_pods_is_added_and_removed() {
    let patch = |workers: Value, before: Option<&str>| {
        with(json!({"workers": workers}), |inputs| pod_metadata_patch(inputs, Node::Worker(0), before))
    };
    let noted = |patch: &Value| patch["annotations"][keys::POD_METADATA].as_str().unwrap().to_owned();
    let evict = "cluster-autoscaler.kubernetes.io/safe-to-evict";
    let asked = || json!({"podAnnotations": {evict: "true", "a": "1", keys::CONFIG_REFRESH: "x"}, "podLabels": {"team": "m", keys::NODE: "worker-9", "controller-revision-hash": "x"}});
    let first = patch(asked(), None).unwrap();
    assert_eq!(first["labels"], json!({"team": "m"}), "what a selector may need is left alone");
    let annotations = first["annotations"].as_object().unwrap();
    assert_eq!(annotations.keys().collect::<Vec<_>>(), ["a", evict, keys::POD_METADATA]);
    // A pod that was made of it, and one that got it, say the same.
    let made = with(json!({"workers": asked()}), |inputs| {
        worker(inputs).json["spec"]["template"]["metadata"].clone()
    });
    assert_eq!(made["annotations"][keys::POD_METADATA], first["annotations"][keys::POD_METADATA]);
    assert_eq!(patch(asked(), Some(&noted(&first))), None);

    let fewer = patch(json!({"podAnnotations": {"a": "2"}}), Some(&noted(&first))).unwrap();
    assert_eq!(fewer["labels"], json!({"team": null}));
    assert_eq!((&fewer["annotations"]["a"], &fewer["annotations"][evict]), (&json!("2"), &Value::Null));
    let none = patch(json!({}), Some(&noted(&fewer))).unwrap();
    assert_eq!(none["annotations"]["a"], Value::Null);
    // One of ours that the spec had overridden is as it was.
    let name = "cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes";
    let mine = patch(json!({"podAnnotations": {name: "none"}}), Some(&noted(&none))).unwrap();
    assert_eq!(patch(json!({}), Some(&noted(&mine))).unwrap()["annotations"][name], "run,tmp,shared-memory");
}

#[test]
fn no_volume_of_a_pod_keeps_it_from_being_evicted() {
    with(full(), |inputs| {
        let template = worker(inputs).json["spec"]["template"].clone();
        let volumes = template["spec"]["volumes"].as_array().unwrap().iter();
        let local: Vec<&str> = volumes
            .filter(|volume| !volume["emptyDir"].is_null() || !volume["hostPath"].is_null())
            .map(|volume| volume["name"].as_str().unwrap())
            .collect();
        let named = &template["metadata"]["annotations"]["cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes"];
        assert_eq!(named, &json!(local.join(",")));
    });
}

/// The pod of today and the pod of tomorrow are the same when only what is put on running pods differs.
#[test]
fn only_what_a_running_pod_cannot_get_is_an_update() {
    let template = |spec| {
        with(spec, |inputs| {
            worker(inputs).json["spec"]["template"]["metadata"]["annotations"][keys::POD_TEMPLATE_HASH]
                .clone()
        })
    };
    let mut spec = full();
    spec["workers"]["podLabels"] = json!({});
    assert_eq!(template(full()), template(spec.clone()));
    spec["imagePullPolicy"] = json!("Never");
    assert_ne!(template(full()), template(spec));
}

#[test]
fn how_an_image_is_pulled_is_no_reason_and_which_is() {
    let mut spec = full();
    spec["imagePullPolicy"] = json!("Never");
    spec["imagePullSecrets"] = json!([]);
    let hash = |spec| with(spec, |inputs| user_template_hash(inputs, Node::Worker(0)));
    assert_eq!(hash(spec), hash(full()));
    let other = with(full(), |inputs| {
        user_template_hash(&BuildContext { image: "other", ..*inputs }, Node::Worker(0))
    });
    assert_ne!(other, hash(full()));
}

#[test]
fn a_claim_gets_the_same_name_until_it_is_there() {
    let cluster = ClusterId { namespace: "shop".to_owned(), name: "talk".to_owned(), uid: "1".to_owned() };
    let name = |existing: &[&str]| claim_name(&cluster, Node::Worker(1), existing);
    let first = name(&[]);
    assert!(first.starts_with("talk-worker-1-") && first.len() == "talk-worker-1-".len() + 5, "{first}");
    assert_eq!(first, name(&["talk-worker-11-abcde", "talk-worker-2-abcde"]), "claims of other nodes");
    let second = name(&[&first]);
    assert_ne!(first, second);
    assert_eq!(name(&[&first, &second]), name(&[&second, &first]));
    let reborn = ClusterId { uid: "2".to_owned(), ..cluster.clone() };
    assert_ne!(first, claim_name(&reborn, Node::Worker(1), &[]));
    assert_ne!(first[14..], claim_name(&cluster, Node::Worker(2), &[])[14..]);
}

#[test]
fn identity_that_is_written_already_causes_no_apply() {
    with(json!({}), |inputs| {
        let hash = |identity| {
            let set = stateful_set(inputs, Node::Worker(0), "c", identity);
            set.json["metadata"]["annotations"][keys::APPLIED_HASH].clone()
        };
        assert_eq!(hash(None), hash(Some("7436")));
    });
}
