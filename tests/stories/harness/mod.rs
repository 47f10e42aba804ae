//! What every story needs: a namespace, an operator, a cluster to look at, and an account of it all when a story fails.
//! No assertion about the operator lives here.

pub mod audit;
pub mod busy;
pub mod cluster;
pub mod held;
pub mod machine;
pub mod mirror;
pub mod operator;
pub mod sql;
pub mod volume;
pub mod wait;
pub mod writer;

use std::{
    fmt::Write as _,
    fs::File,
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    process::Command,
    sync::{LazyLock, Mutex, OnceLock},
    time::Duration,
};

use futures::FutureExt as _;
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, PostParams},
};
use serde_json::json;
use tempfile::TempDir;
use testkit::{kubernetes, tell};
use tokio::sync::{Semaphore, SemaphorePermit};

use operator::Operator;

/// Label of a story's namespace: the process that tells it.
const TOLD_BY: &str = "dialogcluster.dev/story";
/// Lines of each log that are shown when a story fails.
const LINES: usize = 120;

/// The image that clusters run: PostgreSQL with Citus, made by images.sh, or `DIALOG_IMAGE` that is there already (as
/// it must be on a Kubernetes that is not the local one).
pub fn image() -> String {
    static IMAGE: LazyLock<String> = LazyLock::new(|| {
        let (image, citus) = if std::env::var("DIALOG_USE_KUBECONFIG").is_ok() {
            let image = std::env::var("DIALOG_IMAGE").expect("DIALOG_USE_KUBECONFIG=1 needs DIALOG_IMAGE");
            (image, "whichever Citus it has".to_owned())
        } else {
            kubernetes::kubeconfig();
            let images = testkit::repository("infrastructure/local-kubernetes/images.sh");
            let output = Command::new(images).arg("postgres").output().unwrap();
            assert!(output.status.success(), "{}", testkit::said(&output));
            let said = String::from_utf8_lossy(&output.stderr);
            let citus = said.lines().find_map(|line| line.strip_prefix("Citus: ")).expect("which Citus");
            (String::from_utf8_lossy(&output.stdout).trim().to_owned(), citus.to_owned())
        };
        tell(&format!("stories: {image} with {citus}"));
        image
    });
    IMAGE.clone()
}

/// Whether this story cannot be told because the images have the stand-in for Citus, which lacks `what`. Says so.
pub fn only_citus(what: &str) -> bool {
    let stand_in = image().ends_with(":standin");
    if stand_in {
        tell(&format!("stories: skipped, the stand-in for Citus has none of it: {what}"));
    }
    stand_in
}

/// An image made from that one, which a cluster of it must refuse: `other-major` or `other-citus`.
pub fn refused_image(what: &str) -> String {
    std::env::var("DIALOG_IMAGE")
        .map_or_else(|_| format!("localhost/dialog-postgres:{what}"), |image| format!("{image}-{what}"))
}

/// A number from the environment.
pub fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .map_or(default, |text| text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

/// A story that is being told.
pub struct Story {
    pub name: String,
    pub namespace: String,
    pub client: Client,
    kubeconfig: PathBuf,
    directory: TempDir,
    logs: Mutex<Vec<PathBuf>>,
}

/// Tells a story in a namespace of its own, and shows everything that is known when it fails.
pub async fn story(name: &str, tell: impl AsyncFnOnce(&Story)) {
    tell_at(take_slot(false).await, name, tell).await;
}

/// The same for a story that disturbs the whole machine: no other one is told meanwhile, by this process or another.
pub async fn story_alone(name: &str, tell: impl AsyncFnOnce(&Story)) {
    tell_at(take_slot(true).await, name, tell).await;
}

/// The right to tell a story, until this is dropped.
struct Slot {
    _slots: SemaphorePermit<'static>,
    _machine: File,
}

async fn take_slot(alone: bool) -> Slot {
    static SLOTS: OnceLock<Semaphore> = OnceLock::new();
    let all = u32::try_from(setting("STORIES_PARALLEL", 2)).unwrap();
    let slots = SLOTS.get_or_init(|| Semaphore::new(usize::try_from(all).unwrap()));
    let slots = slots.acquire_many(if alone { all } else { 1 }).await.unwrap();
    Slot { _slots: slots, _machine: tokio::task::spawn_blocking(move || machine(alone)).await.unwrap() }
}

/// A lock that is shared by all that tell stories on this machine, or held by one. Each waits for its turn, so that who
/// wants to be alone is not passed by for ever.
fn machine(alone: bool) -> File {
    let open = |name: &str| File::create(std::env::temp_dir().join(name)).unwrap();
    let turn = open("dialog-stories.turn");
    turn.lock().unwrap();
    let stories = open("dialog-stories.lock");
    if alone { stories.lock() } else { stories.lock_shared() }.unwrap();
    stories
}

async fn tell_at(slot: Slot, name: &str, tell: impl AsyncFnOnce(&Story)) {
    let story = Story::begin(name).await;
    let told = AssertUnwindSafe(tell(&story)).catch_unwind().await;
    if told.is_err() || setting("STORY_ACCOUNT", 0) == 1 {
        eprintln!("{}", story.diagnostics());
    }
    story.end().await;
    drop(slot);
    if let Err(panic) = told {
        std::panic::resume_unwind(panic);
    }
}

/// What a server is asked when a story has failed: who waits for what, and what Citus is at.
const QUESTIONS: [&str; 4] = [
    "SELECT pid, backend_type, application_name, state, wait_event_type, wait_event, pg_blocking_pids(pid), \
     date_trunc('second', now() - query_start), left(query, 160) FROM pg_stat_activity WHERE state <> 'idle'",
    "SELECT task_id, status, retry_count, command, message FROM pg_dist_background_task WHERE status <> 'done'",
    "SELECT * FROM pg_dist_cleanup",
    "SELECT groupid, count(*), min(shardid) FROM pg_dist_placement GROUP BY groupid",
];

impl Story {
    async fn begin(name: &str) -> Self {
        tokio::task::spawn_blocking(environment).await.unwrap();
        let client = kubernetes::client().await;
        let namespace = format!("story-{}-{}", name.replace('_', "-"), std::process::id());
        let api: Api<Namespace> = Api::all(client.clone());
        let body = json!({"metadata": {"name": namespace, "labels": {
            TOLD_BY: std::process::id().to_string(),
            "pod-security.kubernetes.io/enforce": "restricted",
        }}});
        api.create(&PostParams::default(), &serde_json::from_value(body).unwrap()).await.unwrap();
        let directory = TempDir::with_prefix(format!("{namespace}-")).unwrap();
        let kubeconfig = operator::kubeconfig(directory.path(), &namespace);
        Self { name: name.to_owned(), namespace, client, kubeconfig, directory, logs: Mutex::default() }
    }

    async fn end(&self) {
        let api: Api<Namespace> = Api::all(self.client.clone());
        if let Err(error) = api.delete(&self.namespace, &DeleteParams::default()).await {
            eprintln!("namespace {} is still there: {error}", self.namespace);
        }
    }

    /// An operator for this story's namespace alone, with the rights that the chart gives it.
    pub fn operator(&self) -> Operator {
        self.operator_with(&[])
    }

    /// The same under another clock, such as `+1h`: libfaketime, for this process alone.
    pub fn operator_at(&self, shift: &str) -> Operator {
        let log = self.next_log();
        Operator::start(&self.kubeconfig, &self.namespace, log, &[], Some(shift))
    }

    /// The same with more arguments, which win.
    pub fn operator_with(&self, arguments: &[&str]) -> Operator {
        Operator::start(&self.kubeconfig, &self.namespace, self.next_log(), arguments, None)
    }

    fn next_log(&self) -> PathBuf {
        let mut logs = self.logs.lock().unwrap();
        let log = self.directory.path().join(format!("operator-{}.log", logs.len()));
        logs.push(log.clone());
        log
    }

    /// Shows a figure that the story measured.
    pub fn figure(&self, what: &str, value: impl std::fmt::Display) {
        println!("figure: {}: {what}: {value}", self.name);
    }

    /// The same for a duration with a target in seconds on an idle machine. It is shown and not asserted: how fast a
    /// busy machine is says nothing about the operator, and the waits of a story have deadlines of their own.
    pub fn figure_below(&self, what: &str, took: Duration, target: f64) {
        let over = if took.as_secs_f64() < target { "" } else { ", OVER" };
        self.figure(what, format!("{} (target {target} s{over})", seconds(took)));
    }

    pub fn kubectl(&self, arguments: &[&str]) -> String {
        let output =
            kubernetes::tool("kubectl").args(["-n", &self.namespace]).args(arguments).output().unwrap();
        testkit::said(&output)
    }

    /// Everything that tells why a story failed.
    fn diagnostics(&self) -> String {
        let mut text = format!("==== story {}, namespace {}\n", self.name, self.namespace);
        for arguments in [
            &["get", "dialogclusters", "-o", "yaml"][..],
            &["get", "statefulsets,pods,pvc,services", "-o", "wide"],
            &["get", "events", "--sort-by=.lastTimestamp"],
        ] {
            let _ = writeln!(text, "---- kubectl {}\n{}", arguments.join(" "), self.kubectl(arguments));
        }
        for pod in self.kubectl(&["get", "pods", "-o", "name"]).split_whitespace() {
            let log = self.kubectl(&["logs", "--tail=15", pod]);
            let _ = writeln!(text, "---- log of {pod}\n{log}");
            let psql = ["psql", "-XAtq", "-h", "/run/dialog", "-U", "postgres", "dialogs"];
            for question in QUESTIONS {
                let asked = [&["exec", pod, "--"][..], &psql, &["-c", question]].concat();
                let _ = writeln!(text, "---- {question}\n{}", self.kubectl(&asked));
            }
        }
        for log in self.logs.lock().unwrap().iter() {
            let _ = write!(text, "---- the end of {}\n{}", log.display(), end_of(log));
        }
        text
    }
}

fn end_of(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<String> = text.lines().map(without_span).collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n") + "\n"
}

/// Which cluster a line is about is known here.
fn without_span(line: &str) -> String {
    match (line.find(" reconciling object{"), line.find("}: dialog_operator")) {
        (Some(from), Some(to)) if from < to => format!("{} {}", &line[..from], &line[to + 3..]),
        _ => line.to_owned(),
    }
}

/// Kubernetes, images and the CRD: once for all stories.
fn environment() {
    static DONE: OnceLock<()> = OnceLock::new();
    DONE.get_or_init(|| {
        image();
        let crd = testkit::repository("crds/dialogclusters.yaml");
        testkit::run(
            kubernetes::tool("kubectl").args(["apply", "--server-side", "--force-conflicts", "-f"]).arg(crd),
        );
        kubernetes::at_the_end(remove_leftovers());
    });
}

/// Namespaces of stories whose process was killed.
async fn remove_leftovers() {
    let api: Api<Namespace> = Api::all(kubernetes::client().await);
    let told = api.list(&ListParams::default().labels(TOLD_BY)).await.unwrap();
    for namespace in told {
        let teller = namespace.metadata.labels.as_ref().and_then(|labels| labels.get(TOLD_BY)).cloned();
        let alive = teller.is_some_and(|teller| Path::new("/proc").join(teller).exists());
        if !alive && namespace.metadata.deletion_timestamp.is_none() {
            let _ = api.delete(&namespace.metadata.name.unwrap(), &DeleteParams::default()).await;
        }
    }
}

/// Seconds with two digits, for figures.
pub fn seconds(duration: Duration) -> String {
    format!("{:.2} s", duration.as_secs_f64())
}
