//! The user's own schema, a name that is taken, and a table that cannot be moved: each says what is wrong, and heals.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Service};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;

use crate::harness::{
    cluster::{Cluster, condition, is, is_settled, is_stalled, spec, with},
    sql, story,
};

const BROKEN: &str = "CREATE TABLE whole (id bigint PRIMARY KEY);
SELECT create_distributed_table('whole', 'id');

CREATE TABLE broken (id bigint PRIMARY KEY, other nonsense);
";
const GOOD: &str = "CREATE TABLE whole (id bigint PRIMARY KEY);
SELECT create_distributed_table('whole', 'id');
CREATE TABLE bare (id bigint, words text);
SELECT create_distributed_table('bare', 'id', colocate_with => 'whole');
";

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_schema_a_taken_name_and_a_table_without_a_key() {
    story("schema", async |story| {
        let _operator = story.operator();
        write_schema(story, BROKEN).await;
        let own =
            json!({"schema": {"configMapRef": {"name": "own-schema", "key": "schema.sql"}, "shardCount": 8}});
        let cluster = story.cluster("talk", with(spec(1), &own)).await;
        let error = "type \"nonsense\" does not exist";
        let (_, seen) = cluster
            .until("the broken schema is told", 60, |cluster| {
                is_stalled(cluster, "SchemaFailed")
                    && condition(cluster, "SchemaApplied")
                        .is_some_and(|one| one.status == "False" && one.message.contains(error))
            })
            .await;
        let message = &condition(&seen, "SchemaApplied").unwrap().message;
        story.figure("what is said of a broken schema", message);
        assert!(message.contains("CREATE TABLE broken"), "names the statement: {message}");
        assert!(!is(&seen, "Ready", "True"));
        let admin = cluster.coordinator().await;
        let half: bool = sql::value(&admin, "SELECT to_regclass('public.whole') IS NOT NULL").await;
        assert!(!half, "nothing is half applied");

        write_schema(story, GOOD).await;
        cluster.until_settled(60).await;
        assert_eq!(sql::value::<i64>(&admin, "SELECT count(*) FROM pg_dist_shard").await, 16);
        let owner: String =
            sql::value(&admin, "SELECT tableowner::text FROM pg_tables WHERE tablename = 'whole'").await;
        assert_eq!(owner, "dialogs", "the application owns its tables");

        write_schema(story, "CREATE TABLE later (id bigint PRIMARY KEY);").await;
        cluster
            .until("a changed schema is told", 60, |cluster| {
                is_settled(cluster)
                    && condition(cluster, "SchemaApplied")
                        .is_some_and(|one| one.reason == "SchemaChangeIgnored")
            })
            .await;
        assert!(!sql::value::<bool>(&admin, "SELECT to_regclass('public.later') IS NOT NULL").await);

        let taken = take_a_name(&cluster).await;
        cluster.edit(json!({"workers": {"replicas": 2}})).await;
        let (_, seen) = cluster
            .until("the taken name is told", 30, |cluster| is_stalled(cluster, "ObjectConflict"))
            .await;
        let message = &condition(&seen, "Stalled").unwrap().message;
        assert!(message.contains("Service talk-worker-1"), "{message}");
        assert!(is(&seen, "Ready", "True"), "the cluster serves");
        let services = cluster.api::<Service>();
        let now = services.get("talk-worker-1").await.unwrap();
        assert_eq!(
            (&now.metadata.uid, &now.metadata.resource_version),
            (&taken.metadata.uid, &taken.metadata.resource_version),
            "left alone"
        );
        services.delete("talk-worker-1", &DeleteParams::default()).await.unwrap();

        let (_, seen) = cluster
            .until("the table without a key is told", 90, |cluster| is_stalled(cluster, "NoReplicaIdentity"))
            .await;
        let message = &condition(&seen, "Stalled").unwrap().message;
        assert!(message.contains("bare") && message.contains("PRIMARY KEY"), "{message}");
        assert!(
            is(&seen, "WorkersRegistered", "True") && is(&seen, "Ready", "True"),
            "the worker has joined"
        );
        assert_eq!(cluster.shards().await["talk-worker-1"], 0, "nothing is moved");
        sql::run(&admin, "ALTER TABLE bare ADD PRIMARY KEY (id)").await;
        cluster.until_settled(90).await;
        assert_eq!(
            cluster.shards().await,
            BTreeMap::from([("talk-worker-0".into(), 8), ("talk-worker-1".into(), 8)])
        );
    })
    .await;
}

async fn write_schema(story: &crate::harness::Story, sql: &str) {
    let map: ConfigMap = serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "own-schema"}, "data": {"schema.sql": sql}
    }))
    .unwrap();
    let api = kube::Api::<ConfigMap>::namespaced(story.client.clone(), &story.namespace);
    api.patch("own-schema", &PatchParams::apply("story").force(), &Patch::Apply(map)).await.unwrap();
}

async fn take_a_name(cluster: &Cluster) -> Service {
    let service = json!({"metadata": {"name": "talk-worker-1"}, "spec": {"selector": {"app": "other"}, "ports": [{"port": 80}]}});
    cluster
        .api::<Service>()
        .create(&PostParams::default(), &serde_json::from_value(service).unwrap())
        .await
        .unwrap()
}
