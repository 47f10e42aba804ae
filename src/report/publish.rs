//! Tells people what was found and done: writes the status when it is due, sends events, shows metrics. What is told
//! is computed elsewhere.

use std::time::{Duration, Instant};

use kube::Resource;
use serde_json::json;

use super::{
    cache::ReportCache,
    events::{self, Transition},
    gauges::gauges,
    writer::{self, StatusWrite},
};
use crate::{
    act::Outcome,
    api::{ClusterId, Desired, DialogCluster, DialogClusterStatus, Invalid},
    context::{ClusterCache, Context},
    kubernetes::{ApiError, ObjectKey},
    plan::Plan,
    snapshot::Snapshot,
};

/// An event that cannot be sent in this time is lost: it is for people, and nothing waits for it.
const EVENT_DEADLINE: Duration = Duration::from_secs(5);

/// Tells what was seen, planned and done.
///
/// # Errors
/// When the status could not be written: then only what was done is told, and the next look tells the rest.
pub async fn publish(
    context: &Context,
    reported: &ClusterCache<ReportCache>,
    desired: &Desired,
    snapshot: &Snapshot,
    (plan, outcome): (&Plan, &Outcome),
) -> Result<(), ApiError> {
    let (cluster, before) = (&desired.cluster, &snapshot.status);
    let after = writer::as_stored(&super::status(desired, snapshot, plan, outcome));
    context.metrics.set(&cluster.namespace, &cluster.name, gauges(&after, snapshot));
    let rolling = reported.with(|reported| reported.rolling.clone());
    let transition = Transition { before, after: &after, plan, outcome, rolling: &rolling, cluster };
    let (mut news, found) = events::events(&transition);
    let since = reported.with(|reported| reported.status.as_ref().map(|(_, at)| at.elapsed()));
    let written = match writer::write(before, &after, since) {
        StatusWrite::Now => write(context, reported, cluster, &after).await,
        // An event is found by comparing with what is written: what is told has to be written with it.
        StatusWrite::Throttled if !news.is_empty() || !found.is_empty() => {
            write(context, reported, cluster, &after).await
        }
        StatusWrite::Throttled | StatusWrite::Skip => Ok(()),
    };
    reported.with(|reported| reported.rolling = events::rolling(&transition, written.is_ok()));
    if written.is_ok() {
        news.extend(found);
    }
    for event in news {
        tracing::info!(reason = %event.reason, note = event.note, "an event");
        context.metrics.kubernetes_request("create", "Event");
        let (message, about) = (event.event(cluster), reference(cluster));
        match tokio::time::timeout(EVENT_DEADLINE, context.recorder.publish(&message, &about)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, reason = %event.reason, "an event could not be sent"),
            Err(_) => tracing::warn!(reason = %event.reason, "an event could not be sent in time"),
        }
    }
    written
}

/// Tells that a spec cannot be followed.
///
/// # Errors
/// When the status could not be written.
pub async fn refuse(
    context: &Context,
    reported: &ClusterCache<ReportCache>,
    cluster: &ClusterId,
    (generation, cached): (i64, Option<&DialogClusterStatus>),
    invalid: &Invalid,
) -> Result<(), ApiError> {
    let before = reported.with(|reported| reported.status(cached));
    let after = writer::as_stored(&super::invalid(&before, generation, invalid, jiff::Timestamp::now()));
    let unseen = Snapshot::empty(&context.operator, jiff::Timestamp::now());
    context.metrics.set(&cluster.namespace, &cluster.name, gauges(&after, &unseen));
    if writer::write(&before, &after, None) == StatusWrite::Skip {
        return Ok(());
    }
    tracing::warn!(error = %invalid, "the spec cannot be followed");
    write(context, reported, cluster, &after).await
}

async fn write(
    context: &Context,
    reported: &ClusterCache<ReportCache>,
    cluster: &ClusterId,
    status: &DialogClusterStatus,
) -> Result<(), ApiError> {
    let (api_version, kind) = (DialogCluster::api_version(&()), DialogCluster::kind(&()));
    let address = ObjectKey {
        api_version: &api_version,
        kind: &kind,
        namespace: &cluster.namespace,
        name: &cluster.name,
    };
    let object = json!({
        "apiVersion": api_version, "kind": kind,
        "metadata": { "name": cluster.name, "namespace": cluster.namespace },
        "status": status,
    });
    context.client.apply_status(address, &cluster.uid, &object).await?;
    reported.with(|reported| reported.status = Some((status.clone(), Instant::now())));
    Ok(())
}

fn reference(cluster: &ClusterId) -> k8s_openapi::api::core::v1::ObjectReference {
    k8s_openapi::api::core::v1::ObjectReference {
        api_version: Some(DialogCluster::api_version(&()).into_owned()),
        kind: Some(DialogCluster::kind(&()).into_owned()),
        namespace: Some(cluster.namespace.clone()),
        name: Some(cluster.name.clone()),
        uid: Some(cluster.uid.clone()),
        ..Default::default()
    }
}
