//! Secrets: which are made, and when. What is in them is not known here, only how they are. One that running servers
//! trust is never made anew.

use strum::IntoEnumIterator;

use super::{Gate, KubernetesStep, Plan, PlannedStep, Problem, ResolvedSpec, View, live_objects::is_free};
use crate::{
    api::names::{SecretKind, keys},
    resources,
    snapshot::{LiveObject, Ownership},
};

/// Keys of the Secret with the authorities.
const AUTHORITY_KEYS: [&str; 4] = ["server-ca.crt", "server-ca.key", "node-ca.crt", "node-ca.key"];

/// Makes what is missing, and keeps the application's Secret in line with its password.
pub fn plan(view: View, wanted: &ResolvedSpec, plan: &mut Plan) {
    let create =
        |kind| PlannedStep::new(KubernetesStep::CreateSecret(kind), "the cluster has no such Secret yet");
    let signs = match plan.pass(authority(view, wanted)) {
        Some(Some(secret)) => {
            note_request(view, plan);
            plan.pass(can_sign(view, secret)).is_some()
        }
        Some(None) => {
            plan.add(create(SecretKind::Ca));
            true
        }
        None => false,
    };
    for kind in SecretKind::iter().filter(|kind| *kind != SecretKind::Ca) {
        let name = view.desired.cluster.secret(kind);
        let free = plan.pass(is_free(view, "Secret", &name)).is_some();
        // The others are signed by the authorities.
        if free && signs && view.object("Secret", &name).is_none() {
            plan.add(create(kind));
        }
    }
    application(view, plan);
}

/// The Secret with the authorities; nothing when it is to be made now.
///
/// Their keys are nowhere but in their Secret: made anew, they would sign certificates that no running server trusts,
/// and every new connection between nodes would fail.
fn authority<'a>(view: View<'a>, wanted: &ResolvedSpec) -> Gate<Option<&'a LiveObject>> {
    let name = view.desired.cluster.secret(SecretKind::Ca);
    if let Some(restored) = view.object("Secret", &name).filter(|secret| is_restored_copy(secret))
        && !trusting(view).is_empty()
    {
        let object = Box::new(resources::owned_secret(&wanted.inputs(view), SecretKind::Ca));
        let why = "somebody has restored it without its labels and its owner";
        let step = KubernetesStep::Apply { object, uid: restored.uid.clone() };
        return Err(PlannedStep::new(step, why).into());
    }
    is_free(view, "Secret", &name)?;
    if let Some(secret) = view.object("Secret", &name) {
        return Ok(Some(secret));
    }
    let trusting = trusting(view);
    if trusting.is_empty() || is_new_authority_requested(view) && signed(view).is_empty() {
        return Ok(None);
    }
    let delete_first = if is_new_authority_requested(view) { signed(view) } else { Vec::new() };
    let signed = leaves(view);
    Err(Problem::AuthorityMissing { secret: name, trusting, signed, delete_first }.into())
}

/// Whether the authorities can sign: all of their keys are there.
fn can_sign(view: View, secret: &LiveObject) -> Gate {
    let held = secret.json.get("data").and_then(|data| data.as_object());
    let lacks = |key: &&str| held.is_some_and(|held| !held.contains_key(*key));
    let keys: Vec<String> = AUTHORITY_KEYS.into_iter().filter(lacks).map(ToOwned::to_owned).collect();
    if keys.is_empty() {
        return Ok(());
    }
    Err(Problem::AuthorityIncomplete { secret: view.desired.cluster.secret(SecretKind::Ca), keys }.into())
}

/// A copy that was brought back without our label or without an owner; not what is another cluster's.
fn is_restored_copy(secret: &LiveObject) -> bool {
    let owners = secret.json.pointer("/metadata/ownerReferences").and_then(|owners| owners.as_array());
    match secret.ownership {
        Ownership::Owned => secret.label(keys::CLUSTER).is_none(),
        Ownership::Foreign | Ownership::Left => owners.is_none_or(Vec::is_empty),
        Ownership::OwnedByDeleted => false,
    }
}

/// What of this cluster was made with the authorities: Secrets that they signed, and nodes that mount these.
fn trusting(view: View) -> Vec<String> {
    let nodes = view.nodes().into_iter().filter(|node| view.stateful_set(*node).is_some());
    let nodes: Vec<String> =
        nodes.filter(|node| view.identity(*node).is_some()).map(|node| view.name(node)).collect();
    if nodes.is_empty() { signed(view) } else { nodes }
}

/// Secrets that the authorities have signed and that are there. Not the application's, which follows them.
fn signed(view: View) -> Vec<String> {
    leaves(view).into_iter().filter(|name| view.owned("Secret", name).is_some()).collect()
}

fn leaves(view: View) -> Vec<String> {
    let leaves = [SecretKind::Server, SecretKind::Node, SecretKind::Superuser];
    leaves.into_iter().map(|kind| view.desired.cluster.secret(kind)).collect()
}

/// A person asks for authorities in place of lost ones, and this was not acted on yet.
fn is_new_authority_requested(view: View) -> bool {
    let asked = view.desired.new_authority.as_ref();
    asked.is_some_and(|asked| view.snapshot.status.handled.get(keys::NEW_AUTHORITY) != Some(asked))
}

/// A request is for now: it must not lie in wait for the next time that the Secret is gone.
fn note_request(view: View, plan: &mut Plan) {
    if let Some(asked) = &view.desired.new_authority {
        plan.handled.insert(keys::NEW_AUTHORITY.to_owned(), asked.clone());
    }
}

fn application(view: View, plan: &mut Plan) {
    let name = view.desired.cluster.secret(SecretKind::App);
    let (Some(secret), Some(seen)) = (view.owned("Secret", &name), &view.snapshot.application) else {
        return;
    };
    if let Some(why) = &seen.unusable {
        let owner = view.desired.database.owner.clone();
        plan.problem(Problem::PasswordNotUsable { secret: name, why: why.clone(), owner });
    } else if !seen.stale.is_empty() && seen.version == version(secret) {
        let step =
            KubernetesStep::SetConnectionKeys { uid: secret.uid.clone(), version: seen.version.clone() };
        plan.step(step, format!("{} of Secret {name} follow its password", seen.stale.join(", ")));
    }
}

fn version(secret: &LiveObject) -> &str {
    secret.json.pointer("/metadata/resourceVersion").and_then(|version| version.as_str()).unwrap_or_default()
}

/// What is written down beside the application's role: whose password it has, by uid and version and not by a hash, for
/// everybody may read it. `None` as long as the Secret is not there, or not what it is to be.
#[must_use]
pub fn password_marker(view: View) -> Option<String> {
    let secret = view.owned("Secret", &view.desired.cluster.secret(SecretKind::App))?;
    let seen = view.snapshot.application.as_ref()?;
    let ready = seen.unusable.is_none() && seen.stale.is_empty() && seen.version == version(secret);
    ready.then(|| format!("{}/{}", secret.uid, seen.version))
}
