//! Reads only: everything that is, gathered into one plain value, the [`Snapshot`]. Nothing is written here and
//! nothing is decided; what could not be seen is `Unknown` with its reason.

pub mod application;
mod blocking;
pub mod cache;
mod draining;
pub mod kubernetes;
pub mod postgres;
pub mod reach;
pub mod schema;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    time::Instant,
};

use jiff::Timestamp;

use self::{cache::CacheHandle, postgres::PostgresObserver};
use crate::{
    api::{
        Desired, DialogClusterStatus, Node,
        names::{SecretKind, keys},
    },
    citus::NodeConnector,
    context::Context,
    kubernetes::ObjectKey,
    snapshot::{ImageFacts, LiveObject, Observed, Ownership, Snapshot, live},
};

/// Looks at everything there is of one cluster. The caches answer for Kubernetes; every server is asked at once.
///
/// `status` is the last one written. `asks` says of which workers it has to be known what is on them beside the cluster's
/// own, from what was seen so far.
pub async fn observe(
    context: &Context,
    desired: &Desired,
    status: DialogClusterStatus,
    cache: &CacheHandle,
    asks: impl Fn(&Desired, &Snapshot) -> BTreeSet<Node>,
) -> Snapshot {
    let cluster = &desired.cluster;
    let Some(scope) = context.caches.of(&cluster.namespace) else {
        // Only clusters of watched namespaces are ever looked at.
        return Snapshot::empty(&context.operator, Timestamp::now());
    };
    let (mut objects, pods, images) = cache.with(|cache| {
        let objects = kubernetes::objects(scope, cache, cluster);
        let pods = kubernetes::pods(scope, cache, cluster, &objects);
        let images = images(&kubernetes::inspections(scope, cluster), &mut cache.images);
        (objects, pods, images)
    });
    let warnings = kubernetes::warnings(scope, cluster, &objects, &pods);
    restored_authority(context, desired, cache, &mut objects).await;
    let domain = &context.operator.cluster_domain;
    let application =
        application::look(scope, &application::Names { cluster, domain, database: &desired.database });
    let alive: HashSet<&str> = pods.values().map(|pod| pod.uid.as_str()).collect();
    context.connections.keep_pods(cluster, &alive);
    let names = (context.operator.cluster_domain.as_str(), desired.database.name.as_str());
    let secret = scope.secret(&cluster.namespace, &cluster.secret(SecretKind::Superuser));
    let access = cache.with(|cache| {
        let certificates = (secret.as_deref(), &mut cache.tls);
        NodeConnector::new(&context.connections, certificates, cluster, names)
    });
    let look =
        PostgresObserver { access, desired, pods: &pods, cache: cache.clone(), metrics: &context.metrics };
    let (sql, schema_sql) = tokio::join!(look.look(), schema::look(context, desired, &status, cache));
    let seen = reach::Servers { pods: &pods, postgres: &sql.postgres, citus: &sql.citus };
    let reach = reach::look(&look.access, desired, seen, application::credentials(scope, cluster), cache);
    let parameter_checks = cache.with(|cache| cache.parameter_checks());
    let (refusals, rewritten) = cache.with(|cache| (cache.refusals.clone(), cache.rewritten.clone()));
    let mut seen = Snapshot {
        now: Timestamp::now(),
        operator: context.operator.clone(),
        objects,
        pods: pods.clone(),
        warnings,
        rewritten,
        postgres: sql.postgres,
        citus: sql.citus,
        connections: sql.connections,
        blocking_sessions: sql.blocking_sessions,
        blocking_moves: sql.blocking_moves,
        slow_nodes: sql.late,
        contents: BTreeMap::new(),
        parameter_checks,
        images,
        schema_sql,
        refusals,
        application,
        reach,
        status,
    };
    let leaving = asks(desired, &seen);
    seen.contents = look.leaving(&seen, leaving).await;
    seen
}

/// The Secret with the authorities, when it is missing and running nodes need it: who restores it from a copy may leave
/// our label out, and then no watch shows it. Never asked for in a cluster that has it, nor in one that is being born.
async fn restored_authority(
    context: &Context,
    desired: &Desired,
    cache: &CacheHandle,
    objects: &mut BTreeMap<String, LiveObject>,
) {
    let name = desired.cluster.secret(SecretKind::Ca);
    let key = format!("Secret/{name}");
    let born = |(key, object): (&String, &LiveObject)| {
        key.starts_with("StatefulSet/")
            && object.ownership == Ownership::Owned
            && object.annotation(keys::SYSTEM_IDENTIFIER).is_some()
    };
    if objects.contains_key(&key) || !objects.iter().any(born) {
        return;
    }
    let known = cache.with(|cache| cache.unlabelled.clone());
    let found = if let Some((found, _)) = known {
        found
    } else {
        let namespace = &desired.cluster.namespace;
        let address = ObjectKey { api_version: "v1", kind: "Secret", namespace, name: &name };
        // What cannot be read now is looked for again.
        let Ok(answer) = context.client.get(address).await else { return };
        let found = answer.and_then(|json| live(json, &desired.cluster));
        cache.with(|cache| cache.unlabelled = Some((found.clone(), Instant::now())));
        found
    };
    objects.extend(found.map(|object| (key, object)));
}

/// What images said, now or before: an answer does not change, a failure to pull may.
fn images(
    inspections: &[(String, Option<Observed<ImageFacts>>)],
    remembered: &mut BTreeMap<String, ImageFacts>,
) -> BTreeMap<String, Observed<ImageFacts>> {
    let mut images = BTreeMap::new();
    for (image, said) in inspections {
        match said {
            Some(Observed::Known(facts)) => drop(remembered.insert(image.clone(), facts.clone())),
            Some(Observed::Unknown(why)) => {
                drop(images.insert(image.clone(), Observed::Unknown(why.clone())));
            }
            None => {}
        }
    }
    images.extend(remembered.iter().map(|(image, facts)| (image.clone(), Observed::Known(facts.clone()))));
    images
}
