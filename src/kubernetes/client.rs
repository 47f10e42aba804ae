//! The one client of the Kubernetes API, watches aside: every request is counted and has a deadline, and an error keeps
//! the API server's words. What is written, and whether, is decided elsewhere.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api, Client, ResourceExt,
    api::{
        ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams,
        Preconditions,
    },
    core::gvk::ParseGroupVersionError,
};
use serde_json::Value;

use super::field_ownership;
use crate::{
    api::FIELD_MANAGER,
    metrics::Metrics,
    snapshot::{Cause, Failure, FailureReason},
};

/// How often the owners of an object's fields are tried to be written while others write its status.
const MIGRATE_TRIES: usize = 5;
/// No request takes longer: the API server itself gives up after a minute, and other clusters wait for nothing here.
const DEADLINE: Duration = Duration::from_secs(10);

/// Field manager of single annotations.
const METADATA_MANAGER: &str = "dialog-operator-metadata";

/// Requests to the API server: counted, and each with a deadline.
#[derive(Clone)]
pub struct ApiClient {
    client: Client,
    metrics: Arc<Metrics>,
}

/// Which object a request is about.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct ObjectKey<'a> {
    pub api_version: &'a str,
    pub kind: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
}

impl std::fmt::Display for ObjectKey<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// Something with this name exists.
    #[error("{0}")]
    AlreadyExists(String),
    /// A precondition (uid, resourceVersion) did not hold.
    #[error("{0}")]
    Conflict(String),
    /// There is no such object.
    #[error("{0}")]
    NotFound(String),
    /// Any other answer of the API server.
    #[error("{words}")]
    Refused {
        /// `reason` of its status, or the code when it gives none.
        reason: String,
        /// Its words.
        words: String,
    },
    /// The API server did not answer, in the connection's words.
    #[error("{0}")]
    Other(String),
    /// No answer in time.
    #[error("no answer from the Kubernetes API within {} s", DEADLINE.as_secs())]
    Deadline,
}

/// Words of the API server without the rest of its answer.
#[must_use]
pub fn message(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        kube::Error::Service(error) => {
            format!("the Kubernetes API cannot be reached: {}", chain(error.as_ref()))
        }
        other => chain(other),
    }
}

/// An error with its causes, each once.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let words = inner.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = inner.source();
    }
    text
}

impl From<kube::Error> for ApiError {
    fn from(error: kube::Error) -> Self {
        let message = message(&error);
        match error {
            kube::Error::Api(status) if status.is_already_exists() => Self::AlreadyExists(message),
            kube::Error::Api(status) if status.is_conflict() => Self::Conflict(message),
            // A patch with another uid than the object's is answered with 422 where an update gets 409.
            kube::Error::Api(status) if status.is_invalid() && message.contains("metadata.uid") => {
                Self::Conflict(message)
            }
            kube::Error::Api(status) if status.is_not_found() => Self::NotFound(message),
            kube::Error::Api(status) => {
                let reason =
                    if status.reason.is_empty() { status.code.to_string() } else { status.reason.clone() };
                Self::Refused { reason, words: message }
            }
            _ => Self::Other(message),
        }
    }
}

impl ApiError {
    /// Whether the API server refused, and with which word.
    #[must_use]
    pub fn cause(&self) -> Cause {
        match self {
            Self::AlreadyExists(_) => Cause::Api("AlreadyExists".to_owned()),
            Self::Refused { reason, words } => Cause::of_api(reason, words),
            Self::Conflict(_) | Self::NotFound(_) | Self::Other(_) | Self::Deadline => Cause::Wait,
        }
    }
    /// Nobody answered: nothing else will be answered now.
    #[must_use]
    pub fn is_silence(&self) -> bool {
        matches!(self, Self::Other(_) | Self::Deadline)
    }
}

impl Failure {
    /// A refused request about an object.
    #[must_use]
    pub fn refused(what: &ObjectKey<'_>, refusal: &ApiError) -> Self {
        let reason = match refusal {
            ApiError::Conflict(_) => FailureReason::Conflict,
            ApiError::Deadline => FailureReason::DeadlineExceeded,
            _ => FailureReason::Kubernetes,
        };
        Self::new(reason, format!("{what}: {refusal}")).for_cause(refusal.cause())
    }
}

impl ApiClient {
    /// A client that counts its requests.
    #[must_use]
    pub fn new(client: Client, metrics: Arc<Metrics>) -> Self {
        Self { client, metrics }
    }
    /// The client, for watches and events.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    async fn counted<T>(
        &self,
        verb: &'static str,
        kind: &str,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, ApiError> {
        self.metrics.kubernetes_request(verb, kind);
        tokio::time::timeout(DEADLINE, request).await.map_err(|_| ApiError::Deadline)?.map_err(ApiError::from)
    }

    fn api(&self, address: ObjectKey<'_>) -> Result<Api<DynamicObject>, ApiError> {
        let resource = resource(address.api_version, address.kind)
            .map_err(|error| ApiError::Other(format!("{}: {error}", address.api_version)))?;
        Ok(Api::namespaced_with(self.client.clone(), address.namespace, &resource))
    }

    /// Reads an object; `None` when there is none.
    ///
    /// # Errors
    /// As the API server says.
    pub async fn get(&self, address: ObjectKey<'_>) -> Result<Option<Value>, ApiError> {
        let api = self.api(address)?;
        let object = self.counted("get", address.kind, api.get_opt(address.name)).await?;
        Ok(object.map(json))
    }

    /// Creates an object.
    ///
    /// # Errors
    /// [`ApiError::AlreadyExists`] when the name is taken, else as the API server says.
    pub async fn create(&self, address: ObjectKey<'_>, object: &Value) -> Result<Value, ApiError> {
        let api = self.api(address)?;
        let object: DynamicObject = serde_json::from_value(object.clone())
            .map_err(|error| ApiError::Other(format!("{address} is no object: {error}")))?;
        let parameters =
            PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        self.counted("create", address.kind, api.create(&parameters, &object)).await.map(json)
    }

    /// Server-side apply under our field manager. `uid` is a precondition: with another one, or when the object is
    /// gone, the API server refuses instead of making it anew.
    ///
    /// What we created belongs to us by a create, which an apply does not take away again: before the first apply it is
    /// made ours by apply (see `field_ownership::as_applied`). Before, and not after: an operator that is killed in
    /// between has then changed nothing that is seen, and the next one does both. The other way round the object would
    /// say that it is what was applied last, and keep for ever what is no longer wanted.
    ///
    /// # Errors
    /// [`ApiError::Conflict`] when the uid is another one, [`ApiError::NotFound`] when the object is gone.
    pub async fn apply(&self, address: ObjectKey<'_>, uid: &str, object: &Value) -> Result<Value, ApiError> {
        let api = self.api(address)?;
        self.migrate_field_ownership(address, &api, uid).await?;
        let patch = Patch::Apply(with_uid(object, uid));
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        self.counted("apply", address.kind, api.patch(address.name, &parameters, &patch)).await.map(json)
    }

    /// Once after a create: what was created is owned as applied from now on.
    async fn migrate_field_ownership(
        &self,
        address: ObjectKey<'_>,
        api: &Api<DynamicObject>,
        uid: &str,
    ) -> Result<(), ApiError> {
        let parameters =
            PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        for _ in 0..MIGRATE_TRIES {
            let latest = self.counted("get", address.kind, api.get_metadata(address.name)).await?;
            // Of another one nothing is written: the apply says so.
            let ours = latest.uid().as_deref() == Some(uid);
            let Some(owners) = field_ownership::as_applied(latest.managed_fields()).filter(|_| ours) else {
                return Ok(());
            };
            let version = latest.resource_version();
            let patch: Patch<Value> = Patch::Merge(
                serde_json::json!({ "metadata": { "resourceVersion": version, "managedFields": owners } }),
            );
            let request = api.patch_metadata(address.name, &parameters, &patch);
            match self.counted("patch", address.kind, request).await {
                Ok(_) => return Ok(()),
                // A controller has written its status meanwhile.
                Err(ApiError::Conflict(_)) => {}
                Err(other) => return Err(other),
            }
        }
        Err(ApiError::Conflict(format!("{address}: it is written by others all the time")))
    }

    /// Server-side apply of a status.
    ///
    /// # Errors
    /// [`ApiError::Conflict`] when the uid is another one, [`ApiError::NotFound`] when the object is gone.
    pub async fn apply_status(
        &self,
        address: ObjectKey<'_>,
        uid: &str,
        object: &Value,
    ) -> Result<(), ApiError> {
        let api = self.api(address)?;
        let patch = Patch::Apply(with_uid(object, uid));
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        let request = api.patch_status(address.name, &parameters, &patch);
        self.counted("apply_status", address.kind, request).await.map(drop)
    }

    /// Sets what is in `metadata` (labels, annotations) and nothing else, by a merge patch with the uid as
    /// precondition. They belong to a manager of their own, so that an apply of the object does not take them away.
    ///
    /// # Errors
    /// [`ApiError::Conflict`] when the uid is another one, [`ApiError::NotFound`] when the object is gone.
    pub async fn patch_metadata(
        &self,
        address: ObjectKey<'_>,
        uid: &str,
        metadata: &Value,
    ) -> Result<Value, ApiError> {
        let api = self.api(address)?;
        let mut metadata = metadata.clone();
        metadata["uid"] = uid.into();
        let patch = Patch::Merge(serde_json::json!({ "metadata": metadata }));
        let parameters =
            PatchParams { field_manager: Some(METADATA_MANAGER.to_owned()), ..PatchParams::default() };
        self.counted("patch", address.kind, api.patch(address.name, &parameters, &patch)).await.map(json)
    }

    /// Sets keys of an object's `data` and leaves the others, by a merge patch: of this uid in this version only.
    ///
    /// # Errors
    /// [`ApiError::Conflict`] when it is another one, or has changed; [`ApiError::NotFound`] when the object is gone.
    pub async fn set_data(
        &self,
        address: ObjectKey<'_>,
        (uid, version): (&str, &str),
        data: &Value,
    ) -> Result<Value, ApiError> {
        let api = self.api(address)?;
        let metadata = serde_json::json!({ "uid": uid, "resourceVersion": version });
        let patch = Patch::Merge(serde_json::json!({ "metadata": metadata, "data": data }));
        let parameters =
            PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        self.counted("patch", address.kind, api.patch(address.name, &parameters, &patch)).await.map(json)
    }

    /// Deletes an object if it still has this uid. An object that is gone is a success.
    ///
    /// # Errors
    /// [`ApiError::Conflict`] when the uid is another one.
    pub async fn delete(&self, address: ObjectKey<'_>, uid: &str) -> Result<(), ApiError> {
        let api = self.api(address)?;
        let preconditions = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
        let parameters = DeleteParams::background().preconditions(preconditions);
        match self.counted("delete", address.kind, api.delete(address.name, &parameters)).await {
            Ok(_) | Err(ApiError::NotFound(_)) => Ok(()),
            Err(other) => Err(other),
        }
    }

    /// Reads a Lease; `None` when there is none.
    ///
    /// # Errors
    /// As the API server says.
    pub async fn lease(&self, namespace: &str, name: &str) -> Result<Option<Lease>, ApiError> {
        let api = Api::<Lease>::namespaced(self.client.clone(), namespace);
        self.counted("get", "Lease", api.get_opt(name)).await
    }

    /// Writes a Lease: a create when it has no resourceVersion, else a replace of exactly that version.
    ///
    /// # Errors
    /// [`ApiError::Conflict`] or [`ApiError::AlreadyExists`] when somebody else was faster.
    pub async fn write_lease(&self, namespace: &str, name: &str, lease: &Lease) -> Result<Lease, ApiError> {
        let api = Api::<Lease>::namespaced(self.client.clone(), namespace);
        let parameters =
            PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        if lease.metadata.resource_version.is_some() {
            self.counted("update", "Lease", api.replace(name, &parameters, lease)).await
        } else {
            self.counted("create", "Lease", api.create(&parameters, lease)).await
        }
    }
}

fn json(object: DynamicObject) -> Value {
    let mut json = serde_json::to_value(object).unwrap_or_default();
    if let Some(metadata) = json.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    json
}

fn with_uid(object: &Value, uid: &str) -> Value {
    let mut object = object.clone();
    if object.get("metadata").is_some_and(Value::is_object) {
        object["metadata"]["uid"] = uid.into();
    }
    object
}

fn resource(api_version: &str, kind: &str) -> Result<ApiResource, ParseGroupVersionError> {
    let version: kube::core::gvk::GroupVersion = api_version.parse()?;
    Ok(ApiResource::from_gvk(&GroupVersionKind::gvk(&version.group, &version.version, kind)))
}
