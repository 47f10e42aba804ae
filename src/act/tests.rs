//! Steps against an API server that answers what a test tells it to.

use std::{collections::VecDeque, sync::Arc};

use axum::http::{Request, Response};
use kube::{
    Client,
    client::Body,
    runtime::events::{Recorder, Reporter},
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    api::{DialogCluster, DialogClusterStatus, Node},
    citus::ConnectionPool,
    context::{ClusterCache, Context},
    kubernetes::{
        ApiClient, ObjectKey,
        caches::Caches,
        leader::{self, LeaseIdentity},
    },
    metrics::Metrics,
    observe::cache::CacheHandle,
    plan::{KubernetesStep, SqlStep},
    report::{cache::ReportCache, publish},
    resources::Manifest,
    snapshot::{OperatorConfig, Ownership},
};

/// A request as a test compares it: method, path, body.
type Asked = (String, String, Value);

/// A client whose requests are answered one by one; what was asked comes back at the end.
fn answering(answers: Vec<(u16, Value)>) -> (Client, tokio::task::JoinHandle<Vec<Asked>>) {
    let (service, mut handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
    let mut answers = VecDeque::from(answers);
    let server = tokio::spawn(async move {
        let mut asked = Vec::new();
        while let Some((request, send)) = handle.next_request().await {
            let (parts, body) = request.into_parts();
            let body = body.collect_bytes().await.unwrap();
            asked.push((
                parts.method.to_string(),
                parts.uri.path().to_owned(),
                serde_json::from_slice(&body).unwrap_or(Value::Null),
            ));
            let (code, body) =
                answers.pop_front().unwrap_or_else(|| panic!("one request too many: {asked:?}"));
            let body = Body::from(serde_json::to_vec(&body).unwrap());
            send.send_response(Response::builder().status(code).body(body).unwrap());
        }
        asked
    });
    (Client::new(service, "default"), server)
}

fn refusal(code: u16, reason: &str) -> (u16, Value) {
    let message = format!("{reason} in the API server's words");
    (code, json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message}))
}

fn context(client: &Client) -> Context {
    let metrics = Arc::<Metrics>::default();
    let api = ApiClient::new(client.clone(), Arc::clone(&metrics));
    let candidate =
        LeaseIdentity { namespace: "system".into(), name: "dialog-operator".into(), identity: "me".into() };
    let (leader, _election) = leader::elect(api.clone(), candidate, CancellationToken::new());
    Context {
        client: api,
        caches: Caches { scopes: vec![] },
        connections: ConnectionPool::new(1),
        leader,
        metrics,
        recorder: Recorder::new(client.clone(), Reporter { controller: "test".into(), instance: None }),
        operator: OperatorConfig { default_image: "image".into(), cluster_domain: "cluster.local".into() },
        stop: CancellationToken::new(),
    }
}

fn desired() -> Desired {
    let mut cluster = DialogCluster::new("shop", serde_json::from_value(json!({})).unwrap());
    cluster.metadata.namespace = Some("market".into());
    cluster.metadata.uid = Some("u-2".into());
    Desired::try_from(&cluster).unwrap()
}

/// Does one step against these answers; also gives back what was asked and the objects that are known afterwards.
async fn done(step: Step, answers: Vec<(u16, Value)>) -> (Outcome, Vec<Asked>, CacheHandle) {
    all_done(vec![step], answers).await
}

async fn all_done(steps: Vec<Step>, answers: Vec<(u16, Value)>) -> (Outcome, Vec<Asked>, CacheHandle) {
    let (client, server) = answering(answers);
    let (context, desired) = (context(&client), desired());
    let memory = CacheHandle::default();
    let snapshot = Snapshot::empty(&context.operator, jiff::Timestamp::now());
    let mut plan = Plan::default();
    for step in steps {
        plan.step(step, "a test wants it");
    }
    let done = act(
        &Executor { context: &context, desired: &desired, snapshot: &snapshot, observed: memory.clone() },
        &plan,
    )
    .await;
    drop((context, client));
    (done, server.await.unwrap(), memory)
}

fn service() -> Manifest {
    let json = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "shop", "namespace": "market"}, "spec": {"ports": [{"port": 5432}]}
    });
    Manifest { api_version: "v1".into(), kind: "Service".into(), name: "shop".into(), json }
}

fn stored(owner_uid: Option<&str>) -> Value {
    let owners: Vec<Value> = owner_uid
        .map(|uid| {
            json!({"apiVersion": "dialogcluster.dev/v1alpha1", "kind": "DialogCluster", "name": "shop", "uid": uid})
        })
        .into_iter()
        .collect();
    let mut json = service().json;
    json["metadata"]["uid"] = "s-1".into();
    json["metadata"]["resourceVersion"] = "5".into();
    json["metadata"]["ownerReferences"] = owners.into();
    json
}

fn methods(asked: &[Asked]) -> Vec<&str> {
    asked.iter().map(|(method, ..)| method.as_str()).collect()
}

#[tokio::test]
async fn a_name_taken_by_a_stranger_is_told_and_remembered() {
    let step = Step::from(KubernetesStep::Create(Box::new(service())));
    let (done, asked, memory) = done(step, vec![refusal(409, "AlreadyExists"), (200, stored(None))]).await;
    let (_, failure) = done.failure().unwrap();
    assert_eq!(failure.reason, FailureReason::ObjectConflict);
    assert!(failure.message.contains("Service market/shop"), "{failure}");
    assert_eq!(methods(&asked), ["POST", "GET"], "nothing of the stranger's is written");
    let strangers = memory.with(|observed| observed.foreign_objects.clone());
    assert_eq!(strangers["Service/shop"].0.ownership, Ownership::Foreign);
}

#[tokio::test]
async fn a_name_taken_by_our_own_object_is_no_failure() {
    let step = Step::from(KubernetesStep::Create(Box::new(service())));
    let (done, ..) = done(step, vec![refusal(409, "AlreadyExists"), (200, stored(Some("u-2")))]).await;
    assert_eq!(done.failure(), None);
}

fn service_of(node: &str) -> Step {
    let mut service = service();
    service.name = format!("shop-{node}");
    service.json["metadata"]["labels"] = json!({"dialogcluster.dev/node": node});
    Step::Kubernetes(KubernetesStep::Create(Box::new(service)))
}

#[tokio::test]
async fn a_refusal_for_one_node_stops_that_node_alone() {
    let steps = vec![
        service_of("worker-3"),
        service_of("worker-3"),
        Step::Kubernetes(KubernetesStep::Create(Box::new(service()))),
    ];
    let (done, asked, _) = all_done(steps, vec![refusal(403, "Forbidden"), (200, stored(Some("u-2")))]).await;
    assert_eq!(done.failure().unwrap().1.reason, FailureReason::Kubernetes);
    assert_eq!((methods(&asked).len(), done.succeeded().count()), (2, 1), "{asked:?}");
}

#[tokio::test]
async fn refusal_for_the_cluster_stops_only_what_needs_it() {
    let steps = vec![Step::Kubernetes(KubernetesStep::Create(Box::new(service()))), service_of("worker-3")];
    let (done, asked, memory) =
        all_done(steps, vec![refusal(403, "Forbidden"), (201, stored(Some("u-2")))]).await;
    assert_eq!((methods(&asked).len(), done.succeeded().count()), (2, 1), "{asked:?}");
    let act = refusals::attempt_of(&Step::Kubernetes(KubernetesStep::Create(Box::new(service()))));
    let cause = memory.with(|observed| observed.refusals.of(&act).map(|one| one.failure.cause.clone()));
    assert_eq!(cause, Some(Cause::Api("Forbidden".to_owned())), "it is remembered with its reason");
}

#[tokio::test]
async fn an_api_server_that_is_overloaded_is_asked_nothing_else() {
    let steps = vec![Step::Kubernetes(KubernetesStep::Create(Box::new(service()))), service_of("worker-3")];
    let (done, asked, _) = all_done(steps, vec![refusal(503, "ServiceUnavailable")]).await;
    assert_eq!((done.steps.len(), methods(&asked).len()), (1, 1));
}

#[tokio::test]
async fn what_failed_a_moment_ago_is_told_and_tried_last_and_later() {
    let (client, server) = answering(vec![refusal(403, "Forbidden"), (201, stored(Some("u-2")))]);
    let (context, desired) = (context(&client), desired());
    let memory = CacheHandle::default();
    let snapshot = Snapshot::empty(&context.operator, jiff::Timestamp::now());
    let mut plan = Plan::default();
    plan.step(KubernetesStep::Create(Box::new(service())), "a test wants it");
    let mut both = plan.clone();
    both.step(service_of("worker-3"), "a test wants it");
    let executor =
        |snapshot| Executor { context: &context, desired: &desired, snapshot, observed: memory.clone() };
    let first = act(&executor(&snapshot), &plan).await;
    let refusals = memory.with(|observed| observed.refusals.clone());
    let later = Snapshot { now: Timestamp::now(), refusals, ..snapshot.clone() };
    let second = act(&executor(&later), &both).await;
    let names: Vec<bool> = second.steps.iter().map(|done| done.result.is_ok()).collect();
    assert_eq!(names, [true, false], "the refused one has its turn last");
    assert_eq!(first.failure().unwrap().1, second.failure().unwrap().1, "and is told in the same words");
    drop((context, client));
    assert_eq!(methods(&server.await.unwrap()).len(), 2, "it was not tried again");
}

#[tokio::test]
async fn a_question_that_cannot_be_asked_stops_nothing() {
    let steps = vec![
        Step::Kubernetes(KubernetesStep::InspectImage { image: "wanted".into() }),
        service_of("worker-3"),
    ];
    let (done, asked, _) = all_done(steps, vec![refusal(403, "Forbidden"), (201, stored(Some("u-2")))]).await;
    assert_eq!(done.failure().unwrap().0.name(), "InspectImage", "and it is told");
    assert_eq!((methods(&asked).len(), done.succeeded().count()), (2, 1), "{asked:?}");
}

#[test]
fn a_schema_that_fails_stops_the_schema_and_nothing_else() {
    let owner = Step::Sql(SqlStep::CreateOwner { owner: "dialogs".into(), secret_uid: "s".into() });
    let schema = Step::Sql(SqlStep::ApplySchema { hash: "h".into() });
    let failure = Failure::new(FailureReason::Postgres, "no");
    let mut stopped = concurrency::FailureScope::default();
    stopped.after(&owner, &failure);
    assert!(stopped.includes(&schema) && !stopped.includes(&Step::Sql(SqlStep::RecoverTransactions)));
    stopped.after(&Step::Sql(SqlStep::DropLeftovers { node: Node::Worker(1), leftovers: vec![] }), &failure);
    assert!(!stopped.includes(&service_of("worker-1")));
}

/// What must not happen when something before it was refused.
#[test]
fn nothing_is_done_that_stands_on_what_was_refused() {
    let address = String::new;
    let (one, two) = (Node::Worker(1), Node::Worker(2));
    let start = Step::Sql(SqlStep::StartRebalance {
        drain: false,
        strategy: String::new(),
        transfer_mode: crate::api::spec::TransferMode::Auto,
        parallel_colocated: false,
        moves: 1,
    });
    let retire = |node| {
        Step::Kubernetes(KubernetesStep::Decommission {
            node,
            claim: None,
            mark: String::new(),
            reclaim: crate::api::spec::VolumePolicy::Retain,
        })
    };
    let remove = |node| Step::Sql(SqlStep::RemoveNode { node, address: address(), kept: None });
    let add = |node| Step::Sql(SqlStep::AddNode { node, address: address() });
    let activate = |node| Step::Sql(SqlStep::ActivateNode { node, address: address() });
    let record = |node| {
        Step::Kubernetes(KubernetesStep::RecordIdentity {
            node,
            system_identifier: "7".into(),
            claim: "c".into(),
        })
    };
    for (step, failed) in [
        (&start, Step::Sql(SqlStep::RecoverTransactions)),
        (&remove(one), Step::Sql(SqlStep::RecoverTransactions)),
        (&retire(one), Step::Sql(SqlStep::RecoverTransactions)),
        (&remove(one), retire(one)),
        (&add(one), record(one)),
        (&add(one), service_of("worker-1")),
        (&add(one), Step::Sql(SqlStep::SetCoordinatorHost { address: address() })),
        (&add(two), activate(one)),
        (&activate(two), activate(one)),
        (&retire(one), Step::Sql(SqlStep::ForceRemove { workers: vec![(one, address())] })),
    ] {
        assert!(concurrency::depends_on(step, &failed), "{} after {}", step.name(), failed.name());
    }
    for (step, failed) in [
        (&add(two), add(one)),
        (&remove(two), remove(one)),
        (&start, add(one)),
        (&add(one), Step::Kubernetes(KubernetesStep::Create(Box::new(service())))),
        (&retire(two), Step::Sql(SqlStep::ForceRemove { workers: vec![(one, address())] })),
    ] {
        assert!(!concurrency::depends_on(step, &failed), "{} after {}", step.name(), failed.name());
    }
}

#[test]
fn nothing_is_prepared_for_what_is_put_off() {
    let remove = Step::Sql(SqlStep::RemoveNode { node: Node::Worker(1), address: String::new(), kept: None });
    let steps = [Step::Sql(SqlStep::RecoverTransactions), remove]
        .map(|step| PlannedStep { step, why: String::new() });
    let is_remove = |step: &Step| matches!(step, Step::Sql(SqlStep::RemoveNode { .. }));
    assert!(concurrency::prepares_only_postponed(&steps[0].step, &steps, is_remove));
    assert!(!concurrency::prepares_only_postponed(&steps[0].step, &steps, |_| false));
    assert!(
        !concurrency::prepares_only_postponed(&steps[0].step, &steps[..1], is_remove),
        "in the middle of a job"
    );
}

#[tokio::test]
async fn a_name_of_an_earlier_cluster_is_waited_for() {
    let step = Step::from(KubernetesStep::Create(Box::new(service())));
    let (done, ..) = done(step, vec![refusal(409, "AlreadyExists"), (200, stored(Some("u-1")))]).await;
    assert_eq!(done.failure().unwrap().1.reason, FailureReason::Conflict);
}

#[tokio::test]
async fn an_apply_knows_the_uid_and_forces() {
    let step = || Step::from(KubernetesStep::Apply { object: Box::new(service()), uid: "s-1".into() });
    let mut created = stored(Some("u-2"));
    created["metadata"]["uid"] = "s-1".into();
    created["metadata"]["managedFields"] =
        json!([{"manager": "dialog-operator", "operation": "Update", "fieldsV1": {"f:spec": {}}}]);
    let after = || (200, stored(Some("u-2")));
    let (done, asked, memory) = done(step(), vec![(200, created.clone()), after(), after()]).await;
    assert_eq!(done.failure(), None);
    // Killed before the last one it has changed nothing that a difference is seen by: the next look does it again.
    assert_eq!(methods(&asked), ["GET", "PATCH", "PATCH"], "owned by apply, and only then applied");
    assert_eq!(asked[1].2["metadata"]["managedFields"][0]["operation"], "Apply");
    assert_eq!(asked[2].2["metadata"]["uid"], "s-1");
    assert!(
        memory.with(|observed| observed.writes.contains_key("Service/shop")),
        "our own write is seen at once"
    );

    let (_, asked, _) = super::tests::done(step(), vec![after(), after()]).await;
    assert_eq!(methods(&asked), ["GET", "PATCH"], "owned by apply already");
    created["metadata"]["uid"] = "s-2".into();
    let (_, asked, _) = super::tests::done(step(), vec![(200, created), refusal(409, "Conflict")]).await;
    assert_eq!(methods(&asked), ["GET", "PATCH"], "an object of another uid is not written");
    assert_eq!(asked[1].2["metadata"]["uid"], "s-1");
}

#[tokio::test]
async fn nothing_is_deleted_without_the_lease() {
    let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "dialog-operator"}, "spec": {"holderIdentity": "another"}});
    let step = KubernetesStep::Delete {
        kind: "StatefulSet".into(),
        name: "shop-worker-2".into(),
        uid: "s-9".into(),
    };
    let (done, asked, _) = done(step.into(), vec![(200, lease)]).await;
    let (_, failure) = done.failure().unwrap();
    assert_eq!(failure.reason, FailureReason::NotLeader);
    assert!(failure.message.contains("held by another"), "{failure}");
    assert_eq!(methods(&asked), ["GET"]);
}

#[tokio::test]
async fn a_delete_names_the_uid_and_what_is_gone_is_fine() {
    let (client, server) = answering(vec![refusal(404, "NotFound")]);
    let context = context(&client);
    let address =
        ObjectKey { api_version: "apps/v1", kind: "StatefulSet", namespace: "market", name: "shop-worker-2" };
    context.client.delete(address, "s-9").await.unwrap();
    drop((context, client));
    let asked = server.await.unwrap();
    assert_eq!(asked[0].0, "DELETE");
    assert_eq!(asked[0].1, "/apis/apps/v1/namespaces/market/statefulsets/shop-worker-2");
    assert_eq!(asked[0].2["preconditions"]["uid"], "s-9");
}

#[tokio::test]
async fn what_was_done_is_told_also_when_the_status_cannot_be_written() {
    let answers = vec![refusal(500, "InternalError"), (201, json!({"metadata": {"name": "e"}}))];
    let (client, server) = answering(answers);
    let (context, desired) = (context(&client), desired());
    let (memory, snapshot) =
        (ClusterCache::<ReportCache>::default(), Snapshot::empty(&context.operator, jiff::Timestamp::now()));
    let step = Step::from(SqlStep::ForceRemove { workers: vec![] });
    let said = Some("about 7 rows in 1 shard".to_owned());
    let done = Outcome { steps: vec![StepOutcome { step, result: Ok(()), detail: said }] };
    publish::publish(&context, &memory, &desired, &snapshot, (&Plan::default(), &done)).await.unwrap_err();
    drop((context, client));
    let asked = server.await.unwrap();
    assert_eq!(methods(&asked), ["PATCH", "POST"]);
    assert!(asked[1].2.to_string().contains("about 7 rows"), "{asked:?}");
}

#[tokio::test]
async fn a_status_is_written_once() {
    let written = json!({"apiVersion": "dialogcluster.dev/v1alpha1", "kind": "DialogCluster", "metadata": {"name": "shop", "uid": "u-2"}});
    // The second time there is no answer left: a request would be one too many.
    let (client, server) = answering(vec![(200, written)]);
    let (context, desired) = (context(&client), desired());
    let memory = ClusterCache::<ReportCache>::default();
    let mut snapshot = Snapshot::empty(&context.operator, jiff::Timestamp::now());
    for _ in 0..2 {
        snapshot.status = memory.with(|observed| observed.status(None));
        let told = (&Plan::default(), &Outcome::default());
        publish::publish(&context, &memory, &desired, &snapshot, told).await.unwrap();
    }
    drop((context, client));
    let asked = server.await.unwrap();
    assert_eq!(methods(&asked), ["PATCH"]);
    assert!(asked[0].1.ends_with("/dialogclusters/shop/status"), "{asked:?}");
    assert_eq!(asked[0].2["metadata"]["uid"], "u-2", "a cluster made anew under this name is not told");
    let status: DialogClusterStatus = serde_json::from_value(asked[0].2["status"].clone()).unwrap();
    assert_eq!(status.observed_generation, Some(0));
}
