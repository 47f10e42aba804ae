//! What a story does to this machine to disturb a cluster: processes ended and stopped, a network cut, a disk filled.
//! A fault with an end is undone when its guard is dropped, and also when this process ends, however it ends.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use dialog_operator::api::Node;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::Api;
use serde_json::Value;

use super::{cluster::Cluster, wait};

/// Something that is wrong with this machine until this is dropped.
///
/// A shell of its own process group does it, waits for the end of its input, and undoes it: its input ends with us.
pub struct Fault {
    what: String,
    shell: Child,
}

impl Fault {
    /// Runs `begin` now, and `undo` at the end or when `begin` fails.
    pub fn begin(what: &str, begin: &str, undo: &str) -> Self {
        let script = format!("{begin} || {{ {undo}; exit 1; }}\necho begun\ncat >/dev/null\n{undo}");
        let mut shell = Command::new("sh")
            .args(["-c", &script])
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(shell.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let fault = Self { what: what.to_owned(), shell };
        assert_eq!(line, "begun\n", "cannot begin: {what}: {begin}");
        fault
    }

    /// SIGSTOP, and SIGCONT at the end.
    pub fn stop_process(what: &str, process: u32) -> Self {
        Self::begin(what, &format!("kill -STOP {process}"), &format!("kill -CONT {process}"))
    }
}

impl Drop for Fault {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        match self.shell.wait() {
            Ok(status) if status.success() => {}
            ended => eprintln!("not undone: {}: {ended:?}", self.what),
        }
    }
}

/// Process id of the API server, from the pid file of the local Kubernetes.
pub fn api_server() -> u32 {
    let file = "/run/dialog-local-kubernetes/kube-apiserver.pid";
    let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{file}: {error}"));
    let (process, started) = text.trim().split_once(' ').expect("a process id, and when it started");
    let process = process.parse().unwrap();
    let now = stat(process).and_then(|fields| fields.get(19).cloned());
    assert_eq!(now.as_deref(), Some(started), "{file}: this process has ended");
    process
}

/// SIGKILL.
pub fn kill(process: u32) {
    testkit::kill("-KILL", &process.to_string());
}

/// The fields of /proc/<process>/stat from the state on; nothing when it has ended.
fn stat(process: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let (_, fields) = text.rsplit_once(") ")?;
    Some(fields.split(' ').map(str::to_owned).collect())
}

fn parent(process: u32) -> Option<u32> {
    stat(process)?.get(1)?.parse().ok()
}

fn name(process: u32) -> String {
    fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default().trim().to_owned()
}

/// Processes of a pod, by its uid.
fn processes(uid: &str) -> Vec<u32> {
    let all =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    all.filter(|process: &u32| {
        fs::read_to_string(format!("/proc/{process}/cgroup")).is_ok_and(|groups| groups.contains(uid))
    })
    .collect()
}

impl Cluster {
    async fn processes(&self, node: Node) -> Vec<u32> {
        let uid = self.pods().await.remove(&node.pod_name(&self.name)).and_then(|pod| pod.metadata.uid);
        uid.map(|uid| processes(&uid)).unwrap_or_default()
    }

    /// The process of a node's postmaster, when it runs.
    pub async fn postmaster(&self, node: Node) -> Option<u32> {
        let servers = self.processes(node).await.into_iter().filter(|process| name(*process) == "postgres");
        servers.into_iter().find(|process| {
            parent(*process).is_some_and(|parent| !["", "postgres"].contains(&&*name(parent)))
        })
    }

    /// SIGKILL of a node's postmaster, and waits until it has ended. Nothing when it does not run.
    pub async fn kill_postmaster(&self, node: Node) -> Option<u32> {
        let postmaster = self.postmaster(node).await?;
        kill(postmaster);
        wait::eventually("the killed postmaster ends", Duration::from_secs(20), async || {
            if stat(postmaster).is_some_and(|fields| fields[0] != "Z") { Err(postmaster) } else { Ok(()) }
        })
        .await;
        Some(postmaster)
    }

    /// Takes the network of a node's pod away. Nothing when it has no pod.
    pub async fn cut(&self, node: Node) -> Option<Fault> {
        let inside = *self.processes(node).await.first()?;
        let link = links(&["nsenter", "--target", &inside.to_string(), "--net"], &["dev", "eth0"])?;
        let ours = links(&[], &[])?;
        let ours = ours.as_array()?.iter().find(|ours| ours["ifindex"] == link[0]["link_index"])?;
        let device = ours["ifname"].as_str()?;
        let up =
            format!("ip link set dev {device} up 2>/dev/null || ! ip link show dev {device} >/dev/null 2>&1");
        Some(Fault::begin(
            &format!("the network of {node} is cut"),
            &format!("ip link set dev {device} down"),
            &up,
        ))
    }

    /// Fills the volume of a node's pod, which must be a file system of its own. Nothing when it has no pod.
    pub async fn fill(&self, node: Node) -> Option<Fault> {
        let volume = self.mounted(node).await?;
        let room = volume.parent().unwrap();
        let device = |path: &Path| fs::metadata(path).map(|found| found.dev()).ok();
        assert_ne!(
            device(&volume),
            device(room),
            "{}: the machine's own disk is not to be filled",
            volume.display()
        );
        let file = volume.join("filler");
        Some(Fault::begin(
            &format!("the disk of {node} is full"),
            &format!("{{ cat /dev/zero >{0} 2>/dev/null || test -e {0}; }}", file.display()),
            &format!("rm -f {}", file.display()),
        ))
    }

    /// Where the volume of a node's pod is on this machine.
    async fn mounted(&self, node: Node) -> Option<PathBuf> {
        let pod = self.pods().await.remove(&node.pod_name(&self.name))?;
        let claim =
            pod.spec?.volumes?.into_iter().find_map(|volume| volume.persistent_volume_claim)?.claim_name;
        let claims = self.api::<PersistentVolumeClaim>();
        let volume = claims.get_opt(&claim).await.unwrap()?.spec?.volume_name?;
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        Some(volumes.get_opt(&volume).await.unwrap()?.spec?.local?.path.into())
    }
}

/// `ip link show`, run by another command.
fn links(through: &[&str], which: &[&str]) -> Option<Value> {
    let mut words = through.iter().chain(&["ip", "-json", "link", "show"]).chain(which);
    let output = Command::new(words.next()?).args(words).output().unwrap();
    serde_json::from_slice(&output.stdout).ok()
}
