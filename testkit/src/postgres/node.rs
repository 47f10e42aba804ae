//! A node without Kubernetes, for tests: the directories that its pod would have, filled with what the operator really
//! renders, and the real start script over this machine's PostgreSQL. No assertion lives here.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    net::{IpAddr, Ipv4Addr, UdpSocket},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus},
    time::{Duration, Instant},
};

use dialog_operator::{
    act::pki,
    api::{ClusterId, Desired, DialogCluster, DialogClusterSpec, Node, names::SecretKind},
    resources::{self, BuildContext, InitdbPermission, Manifest},
    snapshot::OperatorConfig,
};
use tempfile::TempDir;

use super::installation::{INSTALLATION, as_server_user, free_port, give_to_server_user, is_root};
use crate::{kill, said};

pub type Parameters = BTreeMap<String, String>;

pub fn parameters<const N: usize>(pairs: [(&str, &str); N]) -> Parameters {
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

pub fn desired() -> Desired {
    let mut cluster = DialogCluster::new("talk", DialogClusterSpec::default());
    cluster.metadata.namespace = Some("shop".to_owned());
    cluster.metadata.uid = Some("8f6d2c1e".to_owned());
    Desired::try_from(&cluster).unwrap()
}

pub fn operator() -> OperatorConfig {
    OperatorConfig { default_image: "postgres".to_owned(), cluster_domain: "cluster.local".to_owned() }
}

/// The Secrets of a cluster, as the operator makes them.
pub struct Secrets {
    pub cluster: ClusterId,
    authorities: pki::Authorities,
}

impl Secrets {
    pub fn generate() -> Self {
        let desired = desired();
        let data = pki::new_authorities(&Self::request(&desired)).unwrap().into_data();
        Self {
            authorities: pki::Authorities::read(&desired.cluster, &data).unwrap(),
            cluster: desired.cluster,
        }
    }
    fn request(desired: &Desired) -> pki::Request<'_> {
        pki::Request {
            cluster: &desired.cluster,
            cluster_domain: "cluster.local",
            database: &desired.database,
            now: jiff::Timestamp::now(),
        }
    }
    pub fn contents(&self, kind: SecretKind) -> pki::Contents {
        pki::contents(kind, &Self::request(&desired()), &self.authorities).unwrap().unwrap()
    }
    /// Writes a Secret as the kubelet would mount it.
    pub fn write(&self, kind: SecretKind, directory: &Path) {
        fs::create_dir_all(directory).unwrap();
        for (key, value) in self.contents(kind).into_data() {
            let file = directory.join(key);
            fs::write(&file, value.0).unwrap();
            set_mode(&file, 0o600);
        }
    }
}

fn set_mode(file: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(file, fs::Permissions::from_mode(mode)).unwrap();
}

/// Under which name the coordinator connects to itself.
pub fn coordinator_pod() -> String {
    desired().cluster.pod_address(Node::Coordinator, &operator().cluster_domain)
}

/// An address of this machine that is not the loopback.
pub fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    // Nothing is sent: the kernel only chooses an address.
    socket.connect("192.0.2.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback()).then_some(address)
}

/// A node: what its pod would have mounted, and its start script when it runs.
pub struct TestNode {
    pub node: Node,
    pub port: u16,
    pub directory: TempDir,
    /// The shell that runs the script.
    pub shell: Vec<&'static str>,
    /// shared_preload_libraries.
    pub libraries: &'static str,
    /// A directory of programs that are found before all others.
    pub programs: Option<PathBuf>,
    running: Option<Child>,
}

impl TestNode {
    pub fn new(node: Node, secrets: &Secrets) -> Self {
        let directory = TempDir::new().unwrap();
        for name in ["volume", "config", "run", "scratch"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        secrets.write(SecretKind::Server, &directory.path().join("server"));
        secrets.write(SecretKind::Node, &directory.path().join("node"));
        let port = free_port();
        let node = Self {
            node,
            port,
            directory,
            shell: vec!["sh"],
            libraries: "citus",
            programs: None,
            running: None,
        };
        node.give_to_server_user();
        node
    }

    /// Puts a script in the place of a program of the server. `"$program"` in it is the program itself.
    pub fn replace_program(&mut self, name: &str, script: &str) {
        let programs = self.path("programs");
        fs::create_dir_all(&programs).unwrap();
        let file = programs.join(name);
        let program = INSTALLATION.bin.join(name);
        fs::write(&file, format!("#!/bin/sh\nprogram={}\n{script}\n", program.display())).unwrap();
        set_mode(&file, 0o755);
        self.programs = Some(programs);
        self.give_to_server_user();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn give_to_server_user(&self) {
        give_to_server_user(self.directory.path());
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// What the operator renders for this node, put where the kubelet would put it. Returns `dialog.config_hash`.
    pub fn configure(&self, parameters: &Parameters, initialise: InitdbPermission<'_>) -> String {
        let (desired, operator) = (desired(), operator());
        let inputs = BuildContext { desired: &desired, operator: &operator, image: "postgres" };
        let map: Manifest = resources::config_map(&inputs, self.node, parameters, initialise);
        let config = self.path("config");
        fs::remove_dir_all(&config).unwrap();
        fs::create_dir(&config).unwrap();
        for (key, value) in map.json["data"].as_object().unwrap() {
            let value = value.as_str().unwrap();
            let mut here = value.replace("/etc/dialog/node", self.path("node").to_str().unwrap());
            if !is_root() {
                // Nobody writes /etc/hosts for it.
                here = here.replace(&coordinator_pod(), "localhost");
            }
            fs::write(config.join(key), here).unwrap();
        }
        self.give_to_server_user();
        resources::config_hash(&inputs, self.node, parameters)
    }

    pub fn start(&mut self) {
        let mut command = self.with_hosts(self.shell[0]);
        command
            .args(&self.shell[1..])
            .arg(self.path("config/start.sh"))
            .env("DIALOG_VOLUME", self.path("volume"))
            .env("DIALOG_CONFIG", self.path("config"))
            .env("DIALOG_SERVER_TLS", self.path("server"))
            .env("DIALOG_RUN", self.path("run"))
            .env("DIALOG_SCRATCH", self.path("scratch"))
            .env("DIALOG_TERMINATION_LOG", self.path("termination-log"))
            .env("DIALOG_PORT", self.port.to_string())
            .env("DIALOG_ADDRESSES", "*")
            .env("DIALOG_LIBRARIES", self.libraries)
            .env(
                "PATH",
                self.programs
                    .iter()
                    .fold(INSTALLATION.path(), |path, first| format!("{}:{path}", first.display())),
            )
            .env("PGDATA", "/nonexistent")
            .current_dir("/")
            .process_group(0)
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(fs::File::create(self.path("log")).unwrap());
        self.running = Some(command.spawn().unwrap());
    }

    /// A command as the user that runs servers, with the line in /etc/hosts that the kubelet writes: the coordinator's
    /// pod under its name, at an address that is not the loopback.
    fn with_hosts(&self, program: &str) -> Command {
        if !is_root() {
            return as_server_user(program);
        }
        let hosts = self.path("hosts");
        let address = own_address().unwrap_or(Ipv4Addr::LOCALHOST.into());
        let all = fs::read_to_string("/etc/hosts").unwrap_or_default();
        fs::write(&hosts, format!("{all}\n{address} {}\n", coordinator_pod())).unwrap();
        set_mode(&hosts, 0o644);
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", r#"mount --bind "$0" /etc/hosts && exec "$@""#]).arg(hosts);
        let rest = as_server_user(program);
        command.arg(rest.get_program()).args(rest.get_args());
        command
    }

    pub fn pid(&self) -> u32 {
        self.running.as_ref().expect("the start script does not run").id()
    }

    /// Sends a signal to the start script alone, as the kubelet does.
    pub fn signal(&self, signal: &str) {
        kill(signal, &self.pid().to_string());
    }

    /// Kills the script and all it started at once, as a power cut does.
    pub fn power_cut(&mut self) {
        kill("-KILL", &format!("-{}", self.pid()));
        self.wait_for_end();
        // Orphans of a killed server see its end by themselves.
        self.until("all processes of the server are gone", |node| node.processes().is_empty());
    }

    /// The processes of the server: they, and nobody else, work in its data directory.
    fn processes(&self) -> Vec<String> {
        let data = self.path("volume/pgdata");
        let all = fs::read_dir("/proc").into_iter().flatten().flatten();
        let ours = all.filter(|entry| fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == data));
        ours.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    pub fn postmaster(&self) -> String {
        self.read("volume/pgdata/postmaster.pid").lines().next().unwrap_or_default().to_owned()
    }

    /// Waits for a condition, with a deadline; prints what was seen when it does not come.
    pub fn until(&mut self, what: &str, condition: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_mins(1);
        while !condition(self) {
            let ended = self.running.as_mut().and_then(|child| child.try_wait().unwrap());
            assert!(
                Instant::now() < deadline,
                "waited 60 s until {what}; script: {ended:?}; termination log: {}; log:\n{}",
                self.read("termination-log"),
                self.read("log"),
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn until_ready(&mut self) {
        self.until("the server is ready", |node| node.path("run/ready").exists());
    }

    pub fn wait_for_end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + Duration::from_mins(1);
        loop {
            let child = self.running.as_mut().expect("the start script does not run");
            if let Some(status) = child.try_wait().unwrap() {
                self.running = None;
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "the start script still runs after 60 s; log:\n{}",
                self.read("log")
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn stop(&mut self) -> ExitStatus {
        self.signal("-TERM");
        self.wait_for_end()
    }

    /// The answer to a query over the socket, as the superuser.
    pub fn ask(&self, sql: &str) -> String {
        self.ask_in("postgres", sql)
    }

    pub fn ask_in(&self, database: &str, sql: &str) -> String {
        let output = as_server_user(INSTALLATION.bin.join("psql"))
            .args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", database, "-c", sql])
            .arg("-h")
            .arg(self.path("run"))
            .args(["-p", &self.port.to_string()])
            .current_dir("/")
            .output()
            .unwrap();
        said(&output)
    }

    /// The answer to a query over TCP with a connection string, or what refused it.
    pub fn log_in(&self, conninfo: &str, password: &str) -> String {
        self.ask_over_tcp(conninfo, password, "select current_user")
    }

    pub fn ask_over_tcp(&self, conninfo: &str, password: &str, sql: &str) -> String {
        self.psql_over_tcp(&[], (conninfo, password), sql)
    }

    /// The same by a command before it, such as one that enters another network.
    pub fn log_in_from(&self, before: &[&str], conninfo: &str, password: &str) -> String {
        self.psql_over_tcp(before, (conninfo, password), "select current_user")
    }

    fn psql_over_tcp(&self, before: &[&str], (conninfo, password): (&str, &str), sql: &str) -> String {
        let psql = as_server_user(INSTALLATION.bin.join("psql"));
        let mut words = before.iter().map(OsStr::new).chain([psql.get_program()]).chain(psql.get_args());
        let output = Command::new(words.next().unwrap())
            .args(words)
            .args(["-XAtqw", "-v", "ON_ERROR_STOP=1", "-c", sql])
            .arg(format!("port={} {conninfo}", self.port))
            .env("PGPASSWORD", password)
            // No certificate of the one who runs the tests.
            .env("HOME", "/nonexistent")
            .current_dir("/")
            .output()
            .unwrap();
        said(&output)
    }
}

/// What a shell would say: the exit status, or 128 and the signal.
pub fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

impl Drop for TestNode {
    fn drop(&mut self) {
        let (postmaster, processes) = (self.postmaster(), self.processes());
        let Some(child) = &mut self.running else { return };
        // The server first, which then takes its processes and its shared memory with it.
        if processes.contains(&postmaster) {
            let _ = Command::new("kill").args(["-QUIT", "--", &postmaster]).status();
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while child.try_wait().is_ok_and(|ended| ended.is_none()) {
            if Instant::now() > deadline || !processes.contains(&postmaster) {
                let group = format!("-{}", child.id());
                let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
                let _ = child.wait();
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        // Whoever still writes there would keep the directory from being removed.
        while !self.processes().is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
