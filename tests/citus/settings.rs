//! Settings: what a server says to a value, what waits for a restart, what ALTER SYSTEM leaves behind.

use std::time::Duration;

use dialog_operator::{
    citus::{Connection, NodeQuestion, commands, observe_node},
    snapshot::Postgres,
};

use testkit::{
    eventually,
    postgres::{DATABASE, OWNER, Server},
};

async fn seen(session: &Connection) -> Postgres {
    let ask = NodeQuestion {
        database: DATABASE,
        owner: OWNER,
        settings: &["max_worker_processes", "work_mem", "lock_timeout", "datestyle", "search_path"],
    };
    observe_node(session, &ask).await.unwrap()
}

/// A reload is asked for by a signal: it is done a moment later.
async fn seen_when(session: &Connection, what: &str, wanted: impl Fn(&Postgres) -> bool) -> Postgres {
    eventually(what, Duration::from_secs(10), async || {
        let seen = seen(session).await;
        if wanted(&seen) { Ok(seen) } else { Err(seen) }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_are_tried_loaded_and_reset() {
    let server = Server::start("shop-worker-0", "dialog.config_hash = 'c1'\nlock_timeout = '7s'").await;
    server.prepare().await;
    let session = server.session(DATABASE).await;
    values_are_tried(&session).await;
    a_file_comes_and_is_loaded(&server, &session).await;
    leftovers_are_seen_and_reset(&server, &session).await;
    a_rejected_configuration_is_seen(&server).await;
}

async fn values_are_tried(session: &Connection) {
    let words = commands::try_parameter(session, "shared_buffers", "12QB").await.unwrap().expect("a refusal");
    assert!(words.contains("invalid value for parameter \"shared_buffers\": \"12QB\""), "{words}");
    assert!(words.contains("Valid units"), "the hint is kept: {words}");
    let words = commands::try_parameter(session, "no_such_setting", "1").await.unwrap().expect("a refusal");
    assert!(words.contains("unrecognized configuration parameter \"no_such_setting\""), "{words}");
    let words = commands::try_parameter(session, "block_size", "1").await.unwrap().expect("a refusal");
    assert!(words.contains("cannot be changed"), "{words}");
    for (name, value) in [
        ("max_worker_processes", "33"),
        ("work_mem", "8MB"),
        ("log_line_prefix", r"it's %m \ '"),
        ("citus.background_task_queue_interval", "2s"),
    ] {
        assert_eq!(commands::try_parameter(session, name, value).await.unwrap(), None, "{name}");
    }
    assert_eq!(seen(session).await.auto_conf.len(), 0, "a trial leaves nothing");
}

async fn a_file_comes_and_is_loaded(server: &Server, session: &Connection) {
    let before = seen(session).await;
    assert_eq!(before.settings["max_worker_processes"], "32");
    assert_eq!(before.settings["lock_timeout"], "7s", "as the file has it: {before:?}");
    assert_eq!(before.settings["datestyle"], "ISO, MDY");
    assert_eq!(before.settings["search_path"], "\"$user\", public", "not the session's own");

    server
        .configure("dialog.config_hash = 'c2'\nmax_worker_processes = 33\nwork_mem = '8MB'\nport = rubbish");
    let arrived = seen(session).await;
    assert_eq!(
        (arrived.config_hash.as_deref(), arrived.file_config_hash.as_deref()),
        (Some("c1"), Some("c2"))
    );
    // The trap: one sentence for a good value that needs a restart and for rubbish.
    let errors = "SELECT string_agg(DISTINCT error, ',') FROM pg_file_settings
        WHERE name IN ('max_worker_processes', 'port') AND seqno > 5 AND NOT applied";
    assert_eq!(server.value(errors).await, "setting could not be applied");

    server.configure(&format!("port = {}", server.port));
    // Pending for everybody after a reload; the session that reads the file sees it as soon as the file is there.
    assert_eq!(server.value("SELECT count(*) FROM pg_settings WHERE pending_restart").await, "0");
    assert!(seen(session).await.pending_restart.contains("max_worker_processes"));
    commands::reload(session).await.unwrap();
    let loaded =
        seen_when(session, "the file is loaded", |seen| seen.config_hash.as_deref() == Some("c2")).await;
    assert_eq!(loaded.pending_restart.iter().collect::<Vec<_>>(), ["max_worker_processes"]);
    assert_eq!(
        (loaded.settings["max_worker_processes"].as_str(), loaded.settings["work_mem"].as_str()),
        ("32", "8MB")
    );
}

async fn leftovers_are_seen_and_reset(server: &Server, session: &Connection) {
    server
        .sql(&["ALTER SYSTEM SET work_mem = '9MB'", "ALTER SYSTEM SET citus.log_remote_commands = on"])
        .await
        .unwrap();
    let left = seen(session).await;
    let entries: Vec<_> =
        left.auto_conf.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(entries, [("citus.log_remote_commands", "on"), ("work_mem", "9MB")]);
    commands::reload(session).await.unwrap();
    seen_when(session, "ALTER SYSTEM wins", |seen| seen.settings["work_mem"] == "9MB").await;
    let names = ["work_mem".to_owned(), "citus.log_remote_commands".to_owned()];
    for _ in 0..2 {
        commands::reset_alter_system(session, &names).await.unwrap();
    }
    commands::reload(session).await.unwrap();
    seen_when(session, "the file wins", |seen| {
        seen.settings["work_mem"] == "8MB" && seen.auto_conf.is_empty()
    })
    .await;
}

/// How the start script tells that the server runs with its last good configuration.
async fn a_rejected_configuration_is_seen(server: &Server) {
    server.configure("dialog.rejected_hash = 'c3'\ndialog.rejected_message = 'FATAL: it''s no good'");
    server.restart().await;
    let session = server.session(DATABASE).await;
    commands::checkpoint(&session).await.unwrap();
    let seen = seen(&session).await;
    let rejected = seen.rejected.expect("a rejected configuration");
    assert_eq!((rejected.config_hash.as_str(), rejected.message.as_str()), ("c3", "FATAL: it's no good"));
    assert_eq!(seen.settings["max_worker_processes"], "33");
    assert!(seen.pending_restart.is_empty(), "{:?}", seen.pending_restart);
}
