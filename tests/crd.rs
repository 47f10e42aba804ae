//! The contract of the CustomResourceDefinition on a real kube-apiserver: what it takes, what it makes of it, what it
//! refuses and in which words. Each test has a copy of it under a group of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use dialog_operator::api;
use kube::{
    Api, Client, Error,
    api::{
        ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams, ValidationDirective,
    },
    core::Status,
};
use serde_json::{Value, json};
use testkit::{
    kubernetes::{InstalledCrd, client, crd_in_group, tool, unique},
    repository, run,
};

/// The API server with our CustomResourceDefinition, for one test.
struct Contract {
    client: Client,
    crd: InstalledCrd,
    group: String,
    clusters: Api<DynamicObject>,
}

impl Contract {
    async fn of(test: &str) -> Self {
        let client = client().await;
        let group = format!("{}.{}", unique(test), api::GROUP);
        let crd = InstalledCrd::create(&client, &crd_in_group(&group)).await;
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(&group, "v1alpha1", "DialogCluster"));
        let clusters = Api::namespaced_with(client.clone(), "default", &resource);
        Self { client, crd, group, clusters }
    }

    /// `kubectl apply --server-side` of a whole object; what an apply leaves out has its default again.
    async fn apply(&self, name: &str, spec: Value) -> Result<Value, Box<Status>> {
        let object = json!({
            "apiVersion": format!("{}/v1alpha1", self.group),
            "kind": "DialogCluster",
            "metadata": { "name": name },
            "spec": spec,
        });
        let mut how = PatchParams::apply("test").force();
        how.field_validation = Some(ValidationDirective::Strict);
        match self.clusters.patch(name, &how, &Patch::Apply(object)).await {
            Ok(object) => Ok(serde_json::to_value(object).unwrap()),
            Err(Error::Api(status)) => Err(status),
            Err(other) => panic!("{other}"),
        }
    }

    /// Like `kubectl patch --type merge`.
    async fn merge(&self, name: &str, patch: Value) -> Value {
        let patched = self.clusters.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await;
        serde_json::to_value(patched.unwrap()).unwrap()
    }
}

/// Whether an answer is a refusal whose message has all of `words`; else what it was.
fn refused_with(answer: Result<Value, Box<Status>>, words: &[&str]) -> Result<(), String> {
    match answer {
        Ok(_) => Err("was accepted".to_owned()),
        Err(status) => match words.iter().find(|word| !status.message.contains(**word)) {
            Some(word) => Err(format!("the refusal does not say '{word}': {}", status.message)),
            None => Ok(()),
        },
    }
}

fn no_failures(failures: &[String]) {
    assert!(failures.is_empty(), "{} rows:\n{}", failures.len(), failures.join("\n"));
}

/// kubectl and the API server's YAML read these words, without quotes, as booleans: `spec.rebalance.mode: Off` was one.
#[test]
fn words_that_kubernetes_reads_as_booleans_are_quoted() {
    let printed = serde_saphyr::to_string(&api::crd()).unwrap();
    let is_bare = |line: &&str| {
        let value = line.trim_start().trim_start_matches("- ").rsplit(": ").next().unwrap();
        ["y", "n", "yes", "no", "on", "off"].contains(&value.to_lowercase().as_str())
    };
    assert_eq!(printed.lines().filter(is_bare).collect::<Vec<_>>(), Vec::<&str>::new());
    assert!(printed.contains("\"Off\"") || printed.contains("'Off'"), "the mode Off is in it");
}

#[test]
fn the_file_is_what_the_program_prints() {
    let printed = serde_saphyr::to_string(&api::crd()).unwrap();
    for file in ["crds/dialogclusters.yaml", "charts/dialog-operator/files/dialogclusters.yaml"] {
        let kept = std::fs::read_to_string(repository(file)).unwrap();
        let line = kept.lines().zip(printed.lines()).position(|(kept, printed)| kept != printed);
        assert!(
            kept.trim_end() == printed.trim_end(),
            "{file} is stale (first at line {}): run `make crds` and commit what it writes",
            line.map_or(kept.lines().count().min(printed.lines().count()), |at| at) + 1
        );
    }
}

#[tokio::test]
async fn an_empty_spec_has_every_default() {
    let contract = Contract::of("defaults").await;
    let defaults = serde_json::to_value(api::DialogClusterSpec::default()).unwrap();
    assert_eq!(defaults["workers"]["replicas"], 2, "kubectl scale needs the path to exist");
    let rows = [
        json!({}),
        json!({"workers": {}}),
        json!({"workers": {"storage": {}}, "coordinator": {"storage": {}}, "postgres": {}}),
        json!({"database": {}, "schema": {}, "rebalance": {}}),
    ];
    for (row, spec) in rows.into_iter().enumerate() {
        let made = contract.apply(&format!("row{row}"), spec.clone()).await.unwrap();
        assert_eq!(without_nulls(made["spec"].clone()), without_nulls(defaults.clone()), "{spec}");
    }
}

/// A field that is absent and one that is null are the same to whoever reads the spec.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key, without_nulls(value)))
            .collect(),
        other => other,
    }
}

#[tokio::test]
async fn null_is_accepted_where_a_field_may_be_absent() {
    let contract = Contract::of("nulls").await;
    let storage = json!({"size": "10Gi", "storageClassName": null});
    let node = json!({"storage": storage, "affinity": null, "priorityClassName": null});
    let spec = json!({"image": null, "coordinator": node, "workers": node, "schema": {"configMapRef": null}});
    contract.apply("nulls", spec).await.unwrap();
    // The API server's default of a whole node template has a null that a template of one's own does not have.
    contract.apply("nulls", json!({})).await.unwrap();
    contract.apply("nulls", json!({"workers": {"storage": {"size": "11Gi"}}})).await.unwrap();
    contract
        .apply("nulls", json!({"workers": {"storage": {"size": "11Gi", "storageClassName": null}}}))
        .await
        .unwrap();
}

#[allow(clippy::too_many_lines)] // a table
#[tokio::test]
async fn a_bad_spec_is_refused_by_the_name_of_its_field() {
    let contract = Contract::of("refused").await;
    let parameter = |name: &str, value: &str| json!({"postgres": {"parameters": {name: value}}});
    let long = "x".repeat(1001);
    let many: Value =
        (0..201).map(|n| (format!("my.p{n}"), json!("1"))).collect::<serde_json::Map<_, _>>().into();
    let rows: Vec<(Value, &[&str])> = vec![
        (parameter("wal_level", "replica"), &["spec.postgres.parameters", "the operator owns wal_level"]),
        (parameter("allow_alter_system", "off"), &["the operator owns allow_alter_system"]),
        (parameter("WAL_LEVEL", "replica"), &["spec.postgres.parameters", "WAL_LEVEL", "lower case"]),
        (parameter("Wal_Level", "replica"), &["Wal_Level"]),
        (parameter("work mem", "4MB"), &["work mem"]),
        (parameter("work_mem\nfsync", "off"), &["spec.postgres.parameters"]),
        (parameter("", "x"), &["spec.postgres.parameters", "lower case"]),
        (parameter(&"x".repeat(128), "1"), &["spec.postgres.parameters"]),
        (parameter("work_mem", "4MB\nfsync = off"), &["spec.postgres.parameters.work_mem"]),
        (parameter("work_mem", &long), &["spec.postgres.parameters.work_mem"]),
        (json!({"postgres": {"parameters": many}}), &["spec.postgres.parameters", "200"]),
        (json!({"postgres": {"parameters": {"work_mem": 4}}}), &["spec.postgres.parameters.work_mem"]),
        (
            // Of a family or of bad names up to three are named, each once, in any order.
            json!({"postgres": {"parameters": {"port": "1", "include": "x", "include_dir": "y", "ssl": "off"}}}),
            &["owns port:", "include_dir", "owns ssl:"],
        ),
        (json!({"database": {"extensions": ["hstore", "citus"]}}), &["spec.database.extensions", "citus"]),
        (json!({"database": {"extensions": ["a b"]}}), &["spec.database.extensions"]),
        (json!({"database": {"extensions": ["hstore", "hstore"]}}), &["spec.database.extensions"]),
        (json!({"postgres": {"uid": 0}}), &["spec.postgres.uid"]),
        (json!({"postgres": {"gid": -1}}), &["spec.postgres.gid"]),
        (json!({"workers": {"replicas": 0}}), &["spec.workers.replicas"]),
        (json!({"workers": {"replicas": 257}}), &["spec.workers.replicas"]),
        (json!({"workers": {"replicas": "2"}}), &["spec.workers.replicas"]),
        (json!({"workers": {"joinTimeout": "10 minutes"}}), &["spec.workers.joinTimeout"]),
        (json!({"workers": {"joinTimeout": ""}}), &["spec.workers.joinTimeout"]),
        (json!({"workers": {"joinTimeout": "5"}}), &["spec.workers.joinTimeout"]),
        (json!({"workers": {"joinTimeout": "10s10m"}}), &["spec.workers.joinTimeout"]),
        (json!({"workers": {"joinTimeout": "1m1m"}}), &["spec.workers.joinTimeout"]),
        (json!({"workers": {"joinTimeout": "99999999999999999h"}}), &["spec.workers.joinTimeout"]),
        (json!({"workers": {"storage": {"size": "much"}}}), &["spec.workers.storage.size", "quantity"]),
        (json!({"workers": {"storage": {"size": "0"}}}), &["spec.workers.storage.size", "above zero"]),
        (json!({"coordinator": {"storage": {"size": "-1Gi"}}}), &["spec.coordinator.storage.size"]),
        (json!({"image": ""}), &["spec.image", "must not be empty"]),
        (json!({"imagePullPolicy": "Sometimes"}), &["spec.imagePullPolicy"]),
        (json!({"database": {"name": "postgres"}}), &["spec.database.name"]),
        (json!({"database": {"name": "no-dashes"}}), &["spec.database.name"]),
        (json!({"database": {"owner": "pg_monitor"}}), &["spec.database.owner"]),
        (json!({"database": {"owner": "postgres"}}), &["spec.database.owner"]),
        (json!({"schema": {"shardCount": 0}}), &["spec.schema.shardCount"]),
        (json!({"schema": {"configMapRef": {"name": "sql"}}}), &["spec.schema.configMapRef.key"]),
        (json!({"rebalance": {"mode": "Sometimes"}}), &["spec.rebalance.mode"]),
        (json!({"rebalance": {"transferMode": "magic"}}), &["spec.rebalance.transferMode"]),
        (json!({"rebalance": {"maxMovesPerNode": 0}}), &["spec.rebalance.maxMovesPerNode"]),
        (json!({"worker": {"replicas": 2}}), &[".spec.worker:"]),
        (json!({"workers": {"replica": 2}}), &[".spec.workers.replica:"]),
    ];
    let mut failures = vec![];
    for (row, (spec, words)) in rows.into_iter().enumerate() {
        let answer = contract.apply(&format!("row{row}"), spec.clone()).await;
        failures.extend(refused_with(answer, words).err().map(|why| format!("{spec}: {why}")));
    }
    no_failures(&failures);
}

#[tokio::test]
async fn every_parameter_that_the_operator_owns_is_refused() {
    let contract = Contract::of("owned").await;
    let families = api::validation::OWNED_PREFIXES.iter().map(|prefix| format!("{prefix}x"));
    let owned = api::validation::OWNED.iter().map(|name| (*name).to_owned()).chain(families);
    let mut failures = vec![];
    for name in owned {
        let answer = contract.apply("owned", json!({"postgres": {"parameters": {name.as_str(): "x"}}})).await;
        let words = format!("postgres.parameters: the operator owns {name}: remove it");
        failures.extend(refused_with(answer, &[&words]).err());
    }
    no_failures(&failures);
    // What a user may set, and the most that the rules ever have to look at.
    let mut allowed: serde_json::Map<_, _> =
        (0..195).map(|n| (format!("my.{}{n:03}", "p".repeat(121)), json!("x".repeat(1000)))).collect();
    for name in ["work_mem", "max_wal_senders", "_x", "citus.background_task_queue_interval", "portable"] {
        allowed.insert(name.to_owned(), json!("1"));
    }
    contract.apply("owned", json!({"postgres": {"parameters": allowed}})).await.unwrap();
}

#[tokio::test]
async fn a_name_must_leave_room_for_those_made_from_it() {
    let contract = Contract::of("names").await;
    let mut failures = vec![];
    for name in [
        &"d".repeat(60),
        &"d".repeat(41),
        "9dialogs",
        "my.dialogs",
        "dialogs-nodes",
        "dialogs-coordinator",
        "dialogs-worker-3",
        "dialogs-worker-30",
    ] {
        let answer = contract.apply(name, json!({})).await;
        failures.extend(refused_with(answer, &["metadata.name"]).err().map(|why| format!("{name}: {why}")));
    }
    no_failures(&failures);
    for name in
        [&"d".repeat(40), "nodes", "coordinator", "worker-3", "dialogs-workers", "dialogs-worker-a", "d"]
    {
        contract.apply(name, json!({})).await.unwrap_or_else(|status| panic!("{name}: {}", status.message));
    }
}

#[allow(clippy::too_many_lines)] // a table
#[tokio::test]
async fn what_is_decided_at_birth_cannot_be_changed() {
    let contract = Contract::of("fixed").await;
    let of_class = |size: &str| json!({"size": size, "storageClassName": "fast"});
    let rows: Vec<(Value, Value, &[&str])> = vec![
        (json!({}), json!({"schema": {"shardCount": 64}}), &["spec.schema.shardCount", "cannot be changed"]),
        (json!({"schema": {"shardCount": 64}}), json!({}), &["spec.schema.shardCount", "cannot be changed"]),
        (json!({}), json!({"database": {"name": "other"}}), &["spec.database.name", "cannot be changed"]),
        (json!({}), json!({"database": {"owner": "other"}}), &["spec.database.owner", "cannot be changed"]),
        (json!({}), json!({"postgres": {"uid": 26}}), &["spec.postgres.uid", "cannot be changed"]),
        (json!({}), json!({"postgres": {"gid": 26}}), &["spec.postgres.gid", "cannot be changed"]),
        (
            json!({}),
            json!({"workers": {"storage": of_class("10Gi")}}),
            &["spec.workers.storage", "storage.storageClassName: cannot be changed"],
        ),
        (
            json!({"coordinator": {"storage": of_class("10Gi")}}),
            json!({}),
            &["spec.coordinator.storage", "storage.storageClassName: cannot be changed"],
        ),
        (
            json!({"workers": {"storage": of_class("10Gi")}}),
            json!({"workers": {"storage": {"size": "10Gi", "storageClassName": "slow"}}}),
            &["spec.workers.storage", "storage.storageClassName: cannot be changed"],
        ),
    ];
    let mut failures = vec![];
    for (row, (born, changed, words)) in rows.into_iter().enumerate() {
        let name = format!("row{row}");
        contract.apply(&name, born.clone()).await.unwrap();
        let answer = contract.apply(&name, changed.clone()).await;
        failures.extend(refused_with(answer, words).err().map(|why| format!("{born} -> {changed}: {why}")));
    }
    no_failures(&failures);
}

#[tokio::test]
async fn everything_else_can_be_changed() {
    let contract = Contract::of("changes").await;
    contract.apply("dialogs", json!({})).await.unwrap();
    for spec in [
        json!({"workers": {"storage": {"size": "100Gi"}}}), // as a text this is less than 20Gi
        json!({"workers": {"storage": {"size": "102400Mi"}}}), // the same size in other words
        json!({"workers": {"storage": {"size": "20Gi"}}}), // the way back from a size that no volume could have
        json!({"workers": {"replicas": 256, "storage": {"size": "1Ti"}}}),
        json!({"workers": {"replicas": 1, "joinTimeout": "1h30m", "storage": {"size": "1Ti"}}}),
        json!({
            "image": "registry.example/citus:14",
            "imagePullPolicy": "Always",
            "imagePullSecrets": [{"name": "registry"}],
            "coordinator": {
                "storage": {"size": "20Gi"},
                "resources": {"limits": {"memory": "4Gi", "cpu": 2}},
                "nodeSelector": {"disk": "ssd"},
                "tolerations": [{"key": "database", "operator": "Exists"}],
                "affinity": {"nodeAffinity": {}},
                "topologySpreadConstraints":
                    [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}],
                "priorityClassName": "high",
                "podAnnotations": {"a": "b"},
                "podLabels": {"c": "d"},
            },
            "workers": {"replicas": 3, "storage": {"size": "1Ti"}},
            "database": {"extensions": ["pg_trgm", "uuid-ossp"]},
            "postgres": {"parameters": {"work_mem": "64MB", "citus.max_adaptive_executor_pool_size": "8"}},
            "schema": {"configMapRef": {"name": "sql", "key": "schema.sql"}},
            "rebalance":
                {"mode": "Off", "strategy": "by_disk_size", "transferMode": "block_writes", "maxMovesPerNode": 1},
            "paused": true,
        }),
    ] {
        let made = contract.apply("dialogs", spec.clone()).await;
        made.unwrap_or_else(|status| panic!("{spec}: {}", status.message));
    }
}

#[tokio::test]
async fn the_samples_are_accepted() {
    let contract = Contract::of("samples").await;
    let mut samples = 0;
    for entry in std::fs::read_dir(repository("infrastructure/samples")).unwrap() {
        let path = entry.unwrap().path();
        let objects: Vec<Value> =
            serde_saphyr::from_multiple(&std::fs::read_to_string(&path).unwrap()).unwrap();
        for object in objects.iter().filter(|object| object["kind"] == "DialogCluster") {
            assert_eq!(object["apiVersion"], format!("{}/v1alpha1", api::GROUP));
            let made = contract.apply(&format!("sample{samples}"), object["spec"].clone()).await;
            made.unwrap_or_else(|status| panic!("{}: {}", path.display(), status.message));
            samples += 1;
        }
    }
    assert!(samples >= 2, "where are the samples?");
}

#[tokio::test]
async fn scale_and_status_are_subresources() {
    let contract = Contract::of("scale").await;
    contract.apply("dialogs", json!({})).await.unwrap();

    let replicas = json!({"spec": {"replicas": 5}});
    let scaled = contract
        .clusters
        .patch_scale("dialogs", &PatchParams::default(), &Patch::Merge(replicas))
        .await
        .unwrap();
    assert_eq!(scaled.spec.unwrap().replicas, Some(5));
    let cluster = contract.merge("dialogs", json!({"status": {"phase": "Ready"}})).await;
    assert_eq!(cluster["spec"]["workers"]["replicas"], 5);
    assert_eq!(cluster["status"]["phase"], Value::Null, "only the status subresource writes the status");
    assert_eq!(cluster["metadata"]["generation"], 2);

    let status = json!({
        "spec": {"workers": {"replicas": 9}},
        "status": {
            "phase": "Ready",
            "replicas": 5,
            "readyReplicas": 4,
            "selector": "dialogcluster.dev/cluster=dialogs,dialogcluster.dev/role=worker",
            "conditions": [{
                "type": "Balanced", "status": "True", "reason": "Even", "message": "",
                "observedGeneration": 2, "lastTransitionTime": "2026-01-01T00:00:00Z",
            }],
            "rebalance": {"progress": "9/16"},
            "message": "all is well",
        },
    });
    let cluster = contract
        .clusters
        .patch_status("dialogs", &PatchParams::default(), &Patch::Merge(status))
        .await
        .unwrap();
    let cluster = serde_json::to_value(cluster).unwrap();
    assert_eq!(cluster["spec"]["workers"]["replicas"], 5, "the status subresource writes only the status");
    assert_eq!(cluster["metadata"]["generation"], 2, "a status is no new generation");
    let scale = contract.clusters.get_scale("dialogs").await.unwrap();
    let status = scale.status.unwrap();
    assert_eq!(status.replicas, 5);
    assert_eq!(status.selector.unwrap(), "dialogcluster.dev/cluster=dialogs,dialogcluster.dev/role=worker");
}

/// kstatus takes an object without conditions for ready as soon as `observedGeneration` is absent or the generation.
#[tokio::test]
async fn an_object_that_nobody_has_looked_at_says_so() {
    let contract = Contract::of("unseen").await;
    let made = contract.apply("applied", json!({})).await.unwrap();
    assert_eq!(
        (&made["status"]["observedGeneration"], &made["metadata"]["generation"]),
        (&json!(-1), &json!(1))
    );
    // What a client sends as a status is dropped, and the default is there all the same.
    let object = json!({
        "apiVersion": format!("{}/v1alpha1", contract.group), "kind": "DialogCluster",
        "metadata": {"name": "created"}, "spec": {}, "status": {"observedGeneration": 1, "phase": "Ready"},
    });
    let object = serde_json::from_value(object).unwrap();
    let created = contract.clusters.create(&PostParams::default(), &object).await.unwrap();
    let read = contract.clusters.get("created").await.unwrap();
    for made in [created, read] {
        assert_eq!(made.data["status"]["observedGeneration"], -1);
        assert_eq!(made.data["status"]["phase"], Value::Null);
    }
}

#[tokio::test]
async fn kubectl_get_shows_the_columns_of_the_contract() {
    let contract = Contract::of("columns").await;
    contract.apply("dialogs", json!({})).await.unwrap();
    let status = json!({"status": {
        "phase": "Rebalancing", "readyReplicas": 2, "rebalance": {"progress": "9/16"}, "message": "9 of 16 moves done",
        "conditions": [{
            "type": "Balanced", "status": "False", "reason": "Rebalancing", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }],
    }});
    contract.clusters.patch_status("dialogs", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    let get = |more: &[&str]| {
        let mut kubectl = tool("kubectl");
        kubectl.args(["--namespace", "default", "get", &contract.crd.name, "dialogs"]).args(more);
        let table = run(&mut kubectl);
        table
            .lines()
            .map(|line| {
                line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_owned).collect()
            })
            .collect::<Vec<Vec<_>>>()
    };
    let narrow = get(&[]);
    assert_eq!(narrow[0], ["NAME", "WORKERS", "READY", "PHASE", "BALANCED", "MOVES", "AGE"]);
    assert_eq!(narrow[1][..6], ["dialogs", "2", "2", "Rebalancing", "False", "9/16"]);
    let wide = get(&["--output=wide"]);
    assert_eq!(wide[0].last().unwrap(), "MESSAGE");
    assert_eq!(wide[1].last().unwrap(), "9 of 16 moves done");
}

#[tokio::test]
async fn kubectl_knows_the_short_name_and_the_category() {
    let contract = Contract::of("discovery").await;
    // The API server serves a new group a moment before it lists what is in it.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    let resources = loop {
        let listed = contract.client.list_api_group_resources(&format!("{}/v1alpha1", contract.group)).await;
        match listed {
            Ok(listed) if listed.resources.len() == 3 => break listed.resources,
            other => assert!(tokio::time::Instant::now() < deadline, "{}: {other:?}", contract.crd.name),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let mut names: Vec<_> = resources.iter().map(|resource| resource.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["dialogclusters", "dialogclusters/scale", "dialogclusters/status"]);
    let ours = resources.iter().find(|resource| resource.name == "dialogclusters").unwrap();
    assert_eq!(ours.kind, "DialogCluster");
    assert_eq!(ours.singular_name, "dialogcluster");
    assert_eq!(ours.short_names, Some(vec!["dlc".to_owned()]));
    assert_eq!(ours.categories, Some(vec!["all".to_owned()]));
    assert!(ours.namespaced);
}
