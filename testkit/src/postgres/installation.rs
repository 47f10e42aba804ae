//! The PostgreSQL with Citus, real or stand-in, that tests run against, who may run it, and where it can listen. Nothing
//! is started here.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs,
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        LazyLock, Mutex,
        atomic::{AtomicU16, Ordering},
    },
};

use crate::{repository, run, said, tell};

/// A PostgreSQL of this machine that has Citus.
pub struct Installation {
    /// Directory of its programs.
    pub bin: PathBuf,
    /// Whether that is the stand-in for Citus.
    pub stand_in: bool,
    /// The control file of its extension `citus`.
    pub control: String,
}

/// The one that `DIALOG_CITUS` and `DIALOG_POSTGRES_BIN` want. The first use says on the terminal which one that is.
pub static INSTALLATION: LazyLock<Installation> = LazyLock::new(|| {
    let script = repository("infrastructure/citus-standin/pg.sh");
    let output = Command::new(&script).output().unwrap();
    assert!(output.status.success(), "{}: {}", script.display(), said(&output));
    let bin = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
    let share = run(Command::new(bin.join("pg_config")).arg("--sharedir"));
    let control = fs::read_to_string(Path::new(share.trim()).join("extension/citus.control")).unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    tell(&format!("{}: {}", test_binary(), words.lines().last().unwrap_or_default()));
    Installation { bin, stand_in: control.contains("stand-in"), control }
});

impl Installation {
    /// `PATH` for scripts that look for a server: they find the machine's own where Debian keeps it, another only on
    /// this.
    pub fn path(&self) -> String {
        let path = std::env::var("PATH").unwrap();
        let own = self.bin.starts_with("/usr/lib") && std::env::var_os("DIALOG_POSTGRES_BIN").is_none();
        if own { path } else { format!("{}:{path}", self.bin.display()) }
    }

    /// One of its programs, as the user that runs servers, with nothing of the environment of the test.
    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = as_server_user(self.bin.join(program));
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").current_dir("/");
        command
    }
}

/// What the stand-in cannot show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, strum::Display)]
pub enum OnlyCitus {
    #[strum(to_string = "transactions prepared on workers, and a move over one")]
    PreparedTransactions,
    #[strum(to_string = "a statement_timeout that breaks moves and nothing else")]
    StatementTimeout,
    #[strum(to_string = "rights on a schema that reach a later worker")]
    LaterGrants,
    #[strum(to_string = "the session on the coordinator for which a worker works")]
    GlobalPids,
    #[strum(to_string = "foreign keys, partitions and single shards of workers that are given up")]
    OtherTables,
    #[strum(to_string = "new connections of the role that asks")]
    NewConnections,
    #[strum(to_string = "copies of the metadata without what is inactive")]
    PartialCopies,
    #[strum(to_string = "tables that cannot be moved, and others that move meanwhile")]
    Obstacles,
    #[strum(to_string = "code of the application that Citus' own sessions and moves run")]
    OwnSessions,
    #[strum(to_string = "shards on the coordinator, and how it connects to itself")]
    ShardsOnTheCoordinator,
    #[strum(to_string = "which of several moves that even out alike is planned, and in what order")]
    PlansOfManyNodes,
    #[strum(to_string = "the monitor of background tasks, and what it does not end")]
    TaskMonitor,
}

/// Whether this is to be skipped, because it is the stand-in that the tests run against. Says so, once.
pub fn skipped(what: OnlyCitus) -> bool {
    static TOLD: Mutex<BTreeSet<OnlyCitus>> = Mutex::new(BTreeSet::new());
    if INSTALLATION.stand_in && TOLD.lock().unwrap().insert(what) {
        tell(&format!("{}: skipped on the stand-in for Citus: {what}", test_binary()));
    }
    INSTALLATION.stand_in
}

/// Name of the test binary that runs, without cargo's hash.
fn test_binary() -> String {
    let path = std::env::current_exe().unwrap_or_default();
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    name.rsplit_once('-').map_or(&*name, |(name, _)| name).to_owned()
}

pub(super) fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

/// A command as the user that runs servers: PostgreSQL refuses root.
pub fn as_server_user(program: impl AsRef<OsStr>) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]).arg(program.as_ref());
    command
}

/// Gives a file, or a directory with all that is in it, to the user that runs servers.
pub(super) fn give_to_server_user(path: &Path) {
    if is_root() {
        run(Command::new("chown").args(["-R", "postgres:"]).arg(path));
    }
}

/// A port that nobody listens at. Ports are not handed out twice in a run, even before a server listens. They are below
/// those that the kernel gives to outgoing connections (from 32768) and Kubernetes to Services (from 30000), which could
/// take one meanwhile.
pub(super) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 10_000 + u16::try_from(std::process::id() % 390).unwrap() * 50;
    loop {
        let port = first + NEXT.fetch_add(1, Ordering::Relaxed);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}
