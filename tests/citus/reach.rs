//! New connections, looked at over sessions of their own: what the application's role needs of every worker.

use dialog_operator::citus::{self, Tls, has_no_connection_left, witness};
use secrecy::SecretString;

use testkit::postgres::{Cluster, DATABASE, OWNER, OnlyCitus, skipped};

const PASSWORD: &str = "secret-of-the-shop";

#[tokio::test(flavor = "multi_thread")]
async fn login_check_reaches_every_worker_and_reads_no_row() {
    let cluster = Cluster::start(2, 2, "log_connections = on\nmax_connections = 30").await;
    let coordinator = &cluster.coordinator;
    let operator = coordinator.session(DATABASE).await;
    let password = SecretString::from(PASSWORD);
    let role =
        format!("CREATE ROLE {OWNER} LOGIN PASSWORD '{PASSWORD}'; GRANT CREATE ON SCHEMA public TO {OWNER}");
    coordinator.sql(&[&role]).await.unwrap();
    assert_eq!(witness(&operator, OWNER).await.unwrap(), None, "there is no table yet");

    coordinator
        .sql(&[
            r#"CREATE TABLE public."Odd name" (id bigint PRIMARY KEY, v text)"#,
            r#"SELECT create_distributed_table('public."Odd name"', 'id', shard_count => 4)"#,
            "CREATE TABLE public.more (id bigint PRIMARY KEY)",
            "SELECT create_distributed_table('public.more', 'id', shard_count => 8, colocate_with => 'none')",
        ])
        .await
        .unwrap();
    assert_eq!(witness(&operator, OWNER).await.unwrap(), None, "it may read none of them");
    let grant = format!(r#"GRANT SELECT ON public."Odd name", public.more TO {OWNER}"#);
    coordinator.sql(&[&grant]).await.unwrap();
    let table = witness(&operator, OWNER).await.unwrap().expect("a table on every worker");
    assert_eq!(table, r#"public."Odd name""#, "the one with the fewest shards");

    let logins = || -> Vec<usize> {
        let login = format!("connection authorized: user={OWNER}");
        cluster.workers.iter().map(|worker| worker.log().matches(&login).count()).collect()
    };
    let changes = || coordinator.value("SELECT txid_snapshot_xmax(txid_current_snapshot())");
    let (before, version) = (logins(), changes().await);
    for times in 1..=2 {
        let session = coordinator.target(DATABASE).connect_as(&Tls::Off, OWNER, &password).await.unwrap();
        citus::ask_each_worker(&session, &table).await.unwrap();
        if !skipped(OnlyCitus::NewConnections) {
            let now = logins();
            for (before, now) in before.iter().zip(&now) {
                assert_eq!(now - before, times, "one new connection to each worker: {now:?}");
            }
        }
    }
    assert_eq!(changes().await, version, "nothing is written");
    if skipped(OnlyCitus::NewConnections) {
        return;
    }

    // A worker that no longer lets the role in: what is open goes on, and a new session sees it.
    let open = coordinator.client(OWNER).await.unwrap();
    let count = r#"SELECT count(*) FROM public."Odd name""#;
    open.simple_query(count).await.unwrap();
    let shut = format!("ALTER ROLE {OWNER} CONNECTION LIMIT 0");
    cluster.workers[1].sql_alone(&[&shut]).await.unwrap();
    let session = coordinator.target(DATABASE).connect_as(&Tls::Off, OWNER, &password).await.unwrap();
    let refused = citus::ask_each_worker(&session, &table).await.unwrap_err().to_string();
    assert!(has_no_connection_left(&refused), "{refused}");
    let nobody = format!("ALTER ROLE {OWNER} CONNECTION LIMIT -1 NOLOGIN");
    cluster.workers[1].sql_alone(&[&nobody]).await.unwrap();
    let session = coordinator.target(DATABASE).connect_as(&Tls::Off, OWNER, &password).await.unwrap();
    let refused = citus::ask_each_worker(&session, &table).await.unwrap_err().to_string();
    assert!(refused.contains("not permitted to log in"), "{refused}");
    assert!(!has_no_connection_left(&refused));
}
