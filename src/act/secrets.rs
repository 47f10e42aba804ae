//! Secrets: each is made once and never overwritten, but for the keys that follow the application's password. What is
//! in one goes from `pki` to the API server and into no log, no plan, no snapshot.

use std::collections::BTreeMap;

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{ResourceExt, runtime::reflector::ObjectRef};

use super::{
    Executor, kubernetes,
    pki::{self, Authorities},
};
use crate::{
    api::names::SecretKind,
    kubernetes::ApiError,
    observe::application::{self, Names},
    resources::{self, BuildContext},
    snapshot::{Failure, FailureReason, live},
};

type Data = BTreeMap<String, ByteString>;

pub(super) async fn create(executor: &Executor<'_>, kind: SecretKind) -> Result<(), Failure> {
    let request = pki::Request {
        cluster: &executor.desired.cluster,
        cluster_domain: &executor.snapshot.operator.cluster_domain,
        database: &executor.desired.database,
        now: executor.snapshot.now,
    };
    let failed = |error: pki::PkiError| Failure::new(FailureReason::Secret, error.to_string());
    let contents = if kind == SecretKind::Ca {
        pki::new_authorities(&request).map_err(failed)?
    } else {
        let authorities = executor.secret_data(SecretKind::Ca).await?;
        let authorities = Authorities::read(&executor.desired.cluster, &authorities).map_err(failed)?;
        let contents = pki::contents(kind, &request, &authorities).map_err(failed)?;
        contents.ok_or_else(|| {
            Failure::new(FailureReason::Secret, format!("nothing is known to put into {kind}"))
        })?
    };
    let name = executor.desired.cluster.secret(kind);
    let inputs = BuildContext { desired: executor.desired, operator: &executor.snapshot.operator, image: "" };
    let secret = Secret { data: Some(contents.into_data()), ..resources::secret(&inputs, kind) };
    let json = serde_json::to_value(secret).map_err(|_| {
        // The error could quote what is in it.
        Failure::new(FailureReason::Secret, format!("Secret {name} cannot be written as JSON"))
    })?;
    let address = executor.address("v1", "Secret", &name);
    match executor.context.client.create(address, &json).await {
        Ok(answer) => {
            if let Some(object) = live(answer, &executor.desired.cluster) {
                executor.observed.with(|observed| observed.wrote(format!("Secret/{name}"), object.json));
            }
            Ok(())
        }
        Err(ApiError::AlreadyExists(words)) => kubernetes::check_owner(executor, address, &words).await,
        Err(refusal) => Err(Failure::refused(&address, &refusal)),
    }
}

/// The keys that follow the password, and the root. Nothing is written when the Secret has changed meanwhile.
pub(super) async fn set_connection_keys(
    executor: &Executor<'_>,
    uid: &str,
    version: &str,
) -> Result<(), Failure> {
    let name = executor.desired.cluster.secret(SecretKind::App);
    let unusable = |why: String| Failure::new(FailureReason::Secret, format!("Secret {name}: {why}"));
    let data = executor.secret_data(SecretKind::App).await?;
    let password = application::password(&data).map_err(unusable)?;
    // Without the authorities its root stays what it is.
    let authorities = executor.secret_data(SecretKind::Ca).await.unwrap_or_default();
    let names = Names {
        cluster: &executor.desired.cluster,
        domain: &executor.snapshot.operator.cluster_domain,
        database: &executor.desired.database,
    };
    let keys: BTreeMap<_, _> = application::expected_keys(password, authorities.get("server-ca.crt"), &names)
        .into_iter()
        .map(|(key, value)| (key, ByteString(value)))
        .collect();
    let keys = serde_json::to_value(keys).map_err(|_| {
        Failure::new(FailureReason::Secret, format!("Secret {name} cannot be written as JSON"))
    })?;
    let address = executor.address("v1", "Secret", &name);
    let answer = executor.context.client.set_data(address, (uid, version), &keys).await;
    let answer = answer.map_err(|refusal| Failure::refused(&address, &refusal))?;
    if let Some(object) = live(answer, &executor.desired.cluster) {
        executor.observed.with(|observed| observed.wrote(format!("Secret/{name}"), object.json));
    }
    Ok(())
}

impl Executor<'_> {
    /// What is in a Secret: from the cache, or asked for when it was made a moment ago.
    pub(super) async fn secret_data(&self, kind: SecretKind) -> Result<Data, Failure> {
        let cluster = &self.desired.cluster;
        let name = cluster.secret(kind);
        let missing = || Failure::new(FailureReason::Secret, format!("Secret {name} is not there"));
        let scope = self.context.caches.of(&cluster.namespace).ok_or_else(missing)?;
        if let Some(secret) = scope.secrets.get(&ObjectRef::new(&name).within(&cluster.namespace)) {
            let foreign = !secret.owner_references().iter().any(|owner| owner.uid == cluster.uid);
            if !foreign {
                return Ok(secret.data.clone().unwrap_or_default());
            }
        }
        let address = self.address("v1", "Secret", &name);
        let answer =
            self.context.client.get(address).await.map_err(|refusal| Failure::refused(&address, &refusal))?;
        let secret: Secret = serde_json::from_value(answer.ok_or_else(missing)?)
            .map_err(|_| Failure::new(FailureReason::Secret, format!("Secret {name} cannot be read")))?;
        if !secret.owner_references().iter().any(|owner| owner.uid == cluster.uid) {
            return Err(Failure::new(
                FailureReason::ObjectConflict,
                format!("Secret {name} belongs to somebody else"),
            ));
        }
        Ok(secret.data.unwrap_or_default())
    }
}
