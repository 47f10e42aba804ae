//! The schema's SQL when it is wrong: that is said at once, whatever kind of error it is, with the line, the statement and
//! the server's words; nothing of it is left, and no row is told.

use dialog_operator::citus::commands;
use secrecy::SecretString;

use testkit::postgres::{Cluster, DATABASE, OWNER, PASSWORD};

/// SQL, and what is said of it. Words of rows have 4711 in them, secrets `geheim`.
const WRONG: &[(&str, &str)] = &[
    ("SELECT 1;\nSELECT 1/0", "line 2, `SELECT 1/0`: division by zero"),
    ("CREATE TABLE shop.orders (id bigint)", "schema \"shop\" does not exist"),
    ("SELECT 'never ends", "unterminated quoted string"),
    ("CREATE EXTENSION nothing_of_that_name", "is not available"),
    ("CREATE EXTENSION dblink", "permission denied"),
    ("VACUUM", "cannot run inside a transaction block"),
    ("ALTER SYSTEM SET work_mem = '1GB'", "cannot run inside a transaction block"),
    ("DROP DATABASE dialogs", "cannot run inside a transaction block"),
    ("DISCARD ALL", "cannot run inside a transaction block"),
    ("SET ROLE postgres", "permission denied to set role"),
    ("SET LOCAL statement_timeout = '10ms'; SELECT pg_sleep(9)", "statement timeout"),
    ("SET TRANSACTION READ ONLY; CREATE TABLE t (a int)", "read-only transaction"),
    ("SET search_path = nowhere; CREATE TABLE t (a int)", "no schema has been selected"),
    ("SELECT $1::int", "`SELECT $1::int`"),
    ("CREATE TABLE t (a text); COPY t TO STDOUT", "writes rows that nobody reads"),
    ("COPY t FROM /* in a moment */ STDIN;\n4711\t4711\n\\.\n", "use INSERT"),
    ("CREATE TABLE t (a int); COMMIT/**/; CREATE TABLE u (a int)", "would end the transaction"),
    ("CREATE TABLE t (a int); DO $$ BEGIN COMMIT; END $$", "invalid transaction termination"),
    (
        "CREATE PROCEDURE p() LANGUAGE plpgsql AS $$ BEGIN COMMIT; END $$; CALL p()",
        "invalid transaction termination",
    ),
    (
        "CREATE TABLE t (a int PRIMARY KEY, b int REFERENCES t DEFERRABLE INITIALLY DEFERRED);
        INSERT INTO t VALUES (1, 4711); ALTER TABLE t ADD COLUMN c int",
        "pending trigger events",
    ),
    (
        "CREATE TABLE t (a int PRIMARY KEY, b int REFERENCES t DEFERRABLE INITIALLY DEFERRED);
        INSERT INTO t VALUES (1, 4711)",
        "`COMMIT`: insert or update on table \"t\" violates foreign key",
    ),
    (
        "CREATE TABLE t (a text PRIMARY KEY); INSERT INTO t VALUES ('PIN 4711'), ('PIN 4711')",
        "`INSERT INTO t ...`: duplicate key",
    ),
    ("CREATE TABLE t (a int); INSERT INTO t VALUES ('PIN 4711')", "invalid input syntax for type integer"),
    (
        "CREATE TABLE t (a int, b text CHECK (b = '')); INSERT INTO t VALUES (1, 'PIN 4711')",
        "violates check constraint",
    ),
    ("CREATE ROLE clerk PASSWORD 'geheim'", "a statement that holds a password: permission denied"),
    ("ALTER ROLE shop PASSWORD 'geheim' 'geheim'", "a statement that holds a password: syntax error"),
    ("SELECT create_distributed_table('nowhere', 'id')", "relation \"nowhere\" does not exist"),
    ("\\! id", "is a command of psql"),
    ("\\restrict a\nSELECT 1;\n\\unrestrict a\n\\connect dialogs", "line 4"),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_in_a_schema_is_said_at_once() {
    let cluster = Cluster::start(1, 1, "").await;
    let session = cluster.session().await;
    commands::create_owner(&session, OWNER, &SecretString::from(PASSWORD), DATABASE).await.unwrap();
    let tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'";
    let (before, long) = (cluster.coordinator.value(tables).await, "1,".repeat(300_000));
    let long = format!("SELECT {long}1 FROM nowhere");
    for (sql, said) in WRONG.iter().copied().chain([(long.as_str(), "does not exist")]) {
        let error = cluster.coordinator.apply(sql, "h").await.unwrap_err();
        let words = error.to_string();
        assert!(error.is_wrong_schema() && words.contains(said), "{said}: {error:?}");
        assert!(words.len() < 1000 && !words.contains("4711") && !words.contains("geheim"), "{words}");
        assert_eq!(cluster.coordinator.value(tables).await, before, "{words}");
    }
    // What is no SQL at all is as good as applied.
    cluster.coordinator.apply("-- nothing\n/* yet */;", "nothing").await.unwrap();
}
