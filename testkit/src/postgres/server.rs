//! Temporary PostgreSQL servers with Citus, real or stand-in, for the contract tests: started and stopped as
//! processes by their own ids, on loopback, in a directory that goes with them. No expectation lives here.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use dialog_operator::citus::{Connection, Schema, SqlError, Target, Tls, apply_schema, commands};
use secrecy::SecretString;
use tempfile::TempDir;
use tokio_postgres::{NoTls, SimpleQueryMessage};

use super::installation::{INSTALLATION, free_port, give_to_server_user};
use crate::{eventually, kill, run};

/// The application's database and role.
pub const DATABASE: &str = "dialogs";
pub const OWNER: &str = "shop";
pub const PASSWORD: &str = "secret-of-the-shop";

/// Without this a server cannot be reached, or has no Citus.
const REACHED: &str = "
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
shared_preload_libraries = 'citus'
";

/// What every server of a test has; a test adds its own.
const CONFIGURATION: &str = "
fsync = off
shared_buffers = 16MB
max_connections = 60
wal_level = logical
wal_retrieve_retry_interval = 100ms
max_worker_processes = 32
max_logical_replication_workers = 16
max_replication_slots = 32
max_prepared_transactions = 20
max_wal_senders = 32
citus.background_task_queue_interval = 1s
citus.max_background_task_executors_per_node = 4
citus.local_hostname = '127.0.0.1'
citus.node_conninfo = 'sslmode=prefer'
log_statement = all
log_line_prefix = '%m %a '
";

/// A directory that the server's user may use.
fn directory() -> TempDir {
    let directory = tempfile::Builder::new().prefix("citus-contract-").tempdir().unwrap();
    give_to_server_user(directory.path());
    directory
}

/// An initialised data directory to copy, shared by the servers of a run and gone with the last of them.
fn template() -> Arc<TempDir> {
    static TEMPLATE: Mutex<Weak<TempDir>> = Mutex::new(Weak::new());
    let mut kept = TEMPLATE.lock().unwrap();
    kept.upgrade().unwrap_or_else(|| {
        let made = Arc::new(directory());
        let data = made.path().join("data");
        let options = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-k", "--no-sync"];
        run(INSTALLATION.command("initdb").arg("-D").arg(data).args(options));
        *kept = Arc::downgrade(&made);
        made
    })
}

/// How a server is told to end.
#[derive(Clone, Copy, Debug)]
pub enum Signal {
    /// SIGTERM: smart.
    Term,
    /// SIGINT: fast.
    Int,
    /// SIGQUIT: as in a crash.
    Quit,
    /// SIGSTOP: still there, and silent.
    Stop,
    /// SIGCONT.
    Continue,
}

/// A server of its own. It ends with the value.
pub struct Server {
    pub name: String,
    pub port: u16,
    directory: TempDir,
    template: Arc<TempDir>,
    process: Mutex<Option<Child>>,
}

impl Server {
    /// An initialised server for a test, with these lines in its configuration, running.
    pub async fn start(name: &str, configuration: &str) -> Self {
        Self::with_defaults(name, &format!("{CONFIGURATION}{configuration}")).await
    }

    /// A server with the defaults of PostgreSQL and Citus, but for these lines, running.
    pub async fn with_defaults(name: &str, configuration: &str) -> Self {
        let server = Self {
            name: name.to_owned(),
            port: free_port(),
            directory: directory(),
            template: template(),
            process: Mutex::default(),
        };
        server.copy_template();
        server.configure(&format!("{REACHED}port = {}\n{configuration}\n", server.port));
        server.launch().await;
        server
    }

    fn copy_template(&self) {
        run(Command::new("cp").arg("-a").arg(self.template.path().join("data")).arg(self.data()));
    }

    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Adds lines to postgresql.conf.
    pub fn configure(&self, lines: &str) {
        let mut file = OpenOptions::new().append(true).open(self.data().join("postgresql.conf")).unwrap();
        writeln!(file, "{lines}").unwrap();
    }

    /// Writes a file into the data directory, readable by the server alone.
    pub fn write(&self, name: &str, content: &str) {
        let path = self.data().join(name);
        fs::write(&path, content).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs::set_permissions(&path, mode).unwrap();
        give_to_server_user(&path);
    }

    /// What is in its log so far is not looked at again.
    pub fn forget_log(&self) {
        OpenOptions::new().write(true).truncate(true).open(self.directory.path().join("log")).unwrap();
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap()
    }

    /// Starts the process and waits until it answers.
    pub async fn launch(&self) {
        let log =
            OpenOptions::new().create(true).append(true).open(self.directory.path().join("log")).unwrap();
        let process = INSTALLATION
            .command("postgres")
            .arg("-D")
            .arg(self.data())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        *self.process.lock().unwrap() = Some(process);
        eventually(&format!("{} answers", self.name), Duration::from_secs(30), async || {
            if self.has_ended() {
                return Err(format!("it ended: {}", self.log()));
            }
            self.target("postgres").connect(&Tls::Off).await.map(drop).map_err(|error| error.to_string())
        })
        .await;
    }

    pub fn signal(&self, signal: Signal) {
        let process = self.process.lock().unwrap();
        let Some(process) = process.as_ref() else { return };
        let name = match signal {
            Signal::Term => "-TERM",
            Signal::Int => "-INT",
            Signal::Quit => "-QUIT",
            Signal::Stop => "-STOP",
            Signal::Continue => "-CONT",
        };
        kill(name, &process.id().to_string());
    }

    /// The process is gone.
    pub fn has_ended(&self) -> bool {
        let mut process = self.process.lock().unwrap();
        process.as_mut().is_none_or(|process| process.try_wait().unwrap().is_some())
    }

    pub async fn stop(&self, signal: Signal) {
        self.signal(signal);
        eventually(&format!("{} ends", self.name), Duration::from_secs(30), async || {
            if self.has_ended() { Ok(()) } else { Err("it runs".to_owned()) }
        })
        .await;
    }

    pub async fn restart(&self) {
        self.stop(Signal::Int).await;
        self.launch().await;
    }

    /// Empties it as a lost volume does: the same name and port, nothing in it.
    pub async fn wipe(&self) {
        self.stop(Signal::Int).await;
        let configuration = self.lose();
        self.renew(&configuration).await;
    }

    /// Its process has ended and its data is gone. Answers with its configuration.
    pub fn lose(&self) -> String {
        assert!(self.has_ended(), "{} runs", self.name);
        let configuration = fs::read_to_string(self.data().join("postgresql.conf")).unwrap();
        fs::remove_dir_all(self.data()).unwrap();
        configuration
    }

    /// A new server under the name and port of one that was lost.
    pub async fn renew(&self, configuration: &str) {
        self.copy_template();
        self.write("postgresql.conf", configuration);
        self.launch().await;
    }

    pub fn target(&self, database: &str) -> Target {
        Target {
            node: self.name.clone(),
            hostaddr: IpAddr::V4(Ipv4Addr::LOCALHOST),
            host: "127.0.0.1".to_owned(),
            port: self.port,
            database: database.to_owned(),
        }
    }

    /// A session of the operator.
    pub async fn session(&self, database: &str) -> Connection {
        self.target(database).connect(&Tls::Off).await.unwrap()
    }

    /// What the operator does to a node before it can be a member.
    pub async fn prepare(&self) {
        commands::bootstrap_server(&self.session("postgres").await, DATABASE).await.unwrap();
        commands::create_extension(&self.session(DATABASE).await, None).await.unwrap();
    }

    /// Runs a schema's SQL as the operator does.
    pub async fn apply(&self, sql: &str, hash: &str) -> Result<(), SqlError> {
        let password = SecretString::from(PASSWORD);
        let owner = self.target(DATABASE).connect_as(&Tls::Off, OWNER, &password).await?;
        let schema = Schema { sql, hash, shard_count: 32, database: DATABASE };
        apply_schema(&self.session("postgres").await, owner, &schema).await
    }

    /// What pg_dump writes of a database's schema, as a person would put it into a ConfigMap.
    pub fn dump(&self, database: &str, options: &[&str]) -> String {
        let mut command = INSTALLATION.command("pg_dump");
        let port = self.port.to_string();
        run(command
            .args(["-h", "127.0.0.1", "-U", "postgres", "-p", &port, "-s"])
            .args(options)
            .arg(database))
    }

    /// A connection of the test's own, over which a person's or the application's statements go.
    pub async fn client(&self, user: &str) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        self.client_over(DATABASE, user).await
    }

    pub async fn client_over(
        &self,
        database: &str,
        user: &str,
    ) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        // The path of role `postgres` leads to pg_catalog alone: a person who wants another one says so.
        let path = if user == "postgres" { "options='-c search_path=public'" } else { "" };
        let text = format!(
            "host=127.0.0.1 port={} user={user} dbname={database} password=secret-of-the-shop connect_timeout=5 {path}",
            self.port
        );
        let (client, driver) = tokio_postgres::connect(&text, NoTls).await?;
        tokio::spawn(driver);
        Ok(client)
    }

    /// Runs statements one by one, each in a transaction of its own, as a person would in psql: the rows of the last
    /// one, columns separated by `|`.
    pub async fn sql(&self, statements: &[&str]) -> Result<Vec<String>, String> {
        let client = self.client("postgres").await.map_err(|error| error.to_string())?;
        run_statements(&client, statements).await
    }

    /// The same as the application's role.
    pub async fn sql_as_owner(&self, statements: &[&str]) -> Result<Vec<String>, String> {
        let client = self.client(OWNER).await.map_err(|error| error.to_string())?;
        run_statements(&client, statements).await
    }

    /// The same over the database `postgres`, where there is no Citus that would take it to other nodes.
    pub async fn sql_alone(&self, statements: &[&str]) -> Result<Vec<String>, String> {
        let client = self.client_over("postgres", "postgres").await.map_err(|error| error.to_string())?;
        run_statements(&client, statements).await
    }

    /// The only value of a statement.
    pub async fn value(&self, statement: &str) -> String {
        let rows = self.sql(&[statement]).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
        assert_eq!(rows.len(), 1, "{statement}: {rows:?}");
        rows.into_iter().next().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(process) = self.process.get_mut().unwrap().as_mut() {
            let pid = process.id().to_string();
            // A stopped process does not hear SIGQUIT until it goes on; one that has ended does not mind.
            for signal in ["-CONT", "-QUIT"] {
                let _ = Command::new("kill").args([signal, &pid]).stderr(Stdio::null()).status();
            }
            let _ = process.wait();
        }
    }
}

/// Runs statements over one connection: the rows of the last one, columns separated by `|`.
pub async fn run_statements(
    client: &tokio_postgres::Client,
    statements: &[&str],
) -> Result<Vec<String>, String> {
    let mut rows = Vec::new();
    for statement in statements {
        let messages = client.simple_query(statement).await.map_err(|error| {
            error.as_db_error().map_or_else(|| error.to_string(), |error| error.message().to_owned())
        })?;
        rows = messages
            .iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => {
                    let columns: Vec<&str> =
                        (0..row.len()).map(|column| row.get(column).unwrap_or("")).collect();
                    Some(columns.join("|"))
                }
                _ => None,
            })
            .collect();
    }
    Ok(rows)
}

/// A coordinator and its workers.
pub struct Cluster {
    pub coordinator: Server,
    pub workers: Vec<Server>,
}

impl Cluster {
    /// All started at once and prepared; the first `registered` workers are members.
    pub async fn start(workers: usize, registered: usize, configuration: &str) -> Self {
        let coordinator = Server::start("shop-coordinator", configuration);
        let names: Vec<String> = (0..workers).map(|ordinal| format!("shop-worker-{ordinal}")).collect();
        let starts = futures::future::join_all(names.iter().map(|name| Server::start(name, configuration)));
        let (coordinator, workers) = tokio::join!(coordinator, starts);
        let cluster = Self { coordinator, workers };
        futures::future::join_all(cluster.all().map(Server::prepare)).await;
        let session = cluster.session().await;
        commands::set_coordinator_host(&session, "127.0.0.1", cluster.coordinator.port).await.unwrap();
        for worker in &cluster.workers[..registered] {
            commands::add_node(&session, "127.0.0.1", worker.port).await.unwrap();
        }
        cluster
    }

    pub fn all(&self) -> impl Iterator<Item = &Server> {
        std::iter::once(&self.coordinator).chain(&self.workers)
    }

    /// The operator's session on the coordinator.
    pub async fn session(&self) -> Connection {
        self.coordinator.session(DATABASE).await
    }
}
