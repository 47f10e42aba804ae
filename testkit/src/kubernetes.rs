//! The real Kubernetes that tests run on, and the tools for it. No test is skipped when there is none: it fails and says
//! what to do.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::Duration,
};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, Client, Config,
    api::{DeleteParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    runtime::{conditions::is_crd_established, wait::await_condition},
};

use crate::{repository, run, said};

/// The kubeconfig of a Kubernetes that runs. With `DIALOG_USE_KUBECONFIG=1` the one of `KUBECONFIG`, else the local one,
/// which is started when it is not there.
pub fn kubeconfig() -> &'static Path {
    static KUBECONFIG: OnceLock<PathBuf> = OnceLock::new();
    KUBECONFIG.get_or_init(|| {
        let up = repository("infrastructure/local-kubernetes/up.sh");
        let output = Command::new(&up).output().unwrap_or_else(|error| panic!("{}: {error}", up.display()));
        assert!(
            output.status.success(),
            "no Kubernetes: {} ended with {}.\nIt needs root on Linux; to use another cluster set KUBECONFIG and DIALOG_USE_KUBECONFIG=1.\n{}",
            up.display(),
            output.status,
            said(&output)
        );
        if std::env::var("DIALOG_USE_KUBECONFIG").is_ok_and(|yes| yes == "1") {
            return std::env::var("KUBECONFIG").expect("DIALOG_USE_KUBECONFIG=1 needs KUBECONFIG").into();
        }
        let state = std::env::var("DIALOG_LOCAL_STATE").unwrap_or("/var/lib/dialog-local-kubernetes".to_owned());
        Path::new(&state).join("kubeconfig")
    })
}

/// A client of it.
pub async fn client() -> Client {
    let kubeconfig = Kubeconfig::read_from(kubeconfig()).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

/// A tool such as `kubectl` or `helm`, built when it is not in the cache, told which Kubernetes to use.
pub fn tool(name: &str) -> Command {
    let mut command = Command::new(tool_path(name));
    command.env("KUBECONFIG", kubeconfig());
    command
}

/// A tool that needs no Kubernetes. `HELM` names another helm than our own, such as a Helm 3.
pub fn tool_path(name: &str) -> PathBuf {
    if let Some(other) = std::env::var_os("HELM").filter(|_| name == "helm") {
        return other.into();
    }
    let directory = run(Command::new(repository("infrastructure/local-kubernetes/bin.sh")).arg(name));
    Path::new(directory.trim()).join(name)
}

/// A name of the test's own, so that two checkouts can test at the same time.
pub fn unique(what: &str) -> String {
    format!("{what}-{}", std::process::id())
}

/// Our CustomResourceDefinition under a group of the test's own: no operator acts on its objects, and the DialogClusters
/// that live on the same Kubernetes are left alone.
pub fn crd_in_group(group: &str) -> CustomResourceDefinition {
    let mut crd = dialog_operator::api::crd();
    group.clone_into(&mut crd.spec.group);
    crd.metadata.name = Some(format!("{}.{group}", crd.spec.names.plural));
    crd
}

/// A CustomResourceDefinition that is there until this is dropped.
pub struct InstalledCrd {
    /// Its name.
    pub name: String,
}

impl InstalledCrd {
    /// Creates it, and waits until the API server serves it.
    pub async fn create(client: &Client, crd: &CustomResourceDefinition) -> Self {
        let api: Api<CustomResourceDefinition> = Api::all(client.clone());
        let installed = Self { name: crd.metadata.name.clone().unwrap() };
        api.create(&PostParams::default(), crd).await.unwrap();
        let established = await_condition(api.clone(), &installed.name, is_crd_established());
        let waited = tokio::time::timeout(Duration::from_secs(30), established).await;
        assert!(waited.is_ok(), "not established: {:#?}", api.get(&installed.name).await.unwrap().status);
        installed
    }
}

impl Drop for InstalledCrd {
    fn drop(&mut self) {
        let name = self.name.clone();
        at_the_end(async move {
            let client = client().await;
            let api: Api<CustomResourceDefinition> = Api::all(client.clone());
            match api.delete(&name, &DeleteParams::default()).await {
                Ok(_) => until_unlisted(&client, &name).await,
                // A test that ended before it was created.
                Err(kube::Error::Api(status)) if status.is_not_found() => {}
                Err(error) => eprintln!("CustomResourceDefinition {name} is still there: {error}"),
            }
        });
    }
}

/// Waits until the API server's discovery has forgotten the group of a CustomResourceDefinition that was deleted. While
/// it lists a group that it no longer serves, the garbage collector waits for what it cannot watch, and objects that
/// other tests delete with `--cascade=orphan` do not go.
async fn until_unlisted(client: &Client, crd: &str) {
    let (_, group) = crd.split_once('.').unwrap();
    let unlisted = async {
        let lists =
            async || client.list_api_groups().await.map(|all| all.groups.iter().any(|one| one.name == group));
        // Whoever does not answer may still list it.
        while lists().await.unwrap_or(true) {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    if tokio::time::timeout(Duration::from_mins(1), unlisted).await.is_err() {
        eprintln!("the API server still lists the group {group}, whose CustomResourceDefinition is deleted");
    }
}

/// Runs something asynchronous to its end from a `drop`, also while a failed test unwinds.
pub fn at_the_end(work: impl Future<Output = ()> + Send + 'static) {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _ = std::thread::spawn(move || runtime().block_on(work)).join();
}
