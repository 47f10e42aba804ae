//! The start script, run for real over this machine's PostgreSQL, with the configuration that the operator renders.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    fs,
    time::{Duration, Instant},
};

use dialog_operator::{
    api::Node,
    resources::{InitdbPermission, StartFailure},
};
use rstest::rstest;
use testkit::{
    kill,
    postgres::{INSTALLATION, Parameters, Secrets, TestNode, as_server_user, code, parameters},
};

fn node() -> TestNode {
    TestNode::new(Node::Worker(0), &Secrets::generate())
}

fn born(parameters: &Parameters) -> TestNode {
    let mut node = node();
    node.configure(parameters, InitdbPermission::Allowed(None));
    node.start();
    node.until_ready();
    node
}

/// Every file below a directory, by name.
fn tree(node: &TestNode, below: &str) -> Vec<String> {
    let output = as_server_user("find").arg(node.path(below)).output().unwrap();
    let mut names: Vec<_> = String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
    names.sort();
    names
}

#[rstest]
#[case::sh(&["sh"])]
#[case::busybox(&["busybox", "sh"])]
fn a_node_is_born_stops_fast_and_comes_back(#[case] shell: &[&'static str]) {
    if std::process::Command::new(shell[0]).arg("true").output().is_err() {
        eprintln!("no {} here", shell[0]);
        return;
    }
    let mut node = node();
    node.shell = shell.to_vec();
    let hash = node.configure(&parameters([("work_mem", "7MB")]), InitdbPermission::Allowed(None));
    node.start();
    node.until_ready();
    let facts = "select current_setting('data_checksums'), current_setting('wal_level'), current_setting('work_mem'), \
                 current_setting('dialog.config_hash'), current_setting('dialog.startup_hash'), \
                 pg_encoding_to_char(encoding), current_setting('archive_mode'), current_setting('shared_buffers') \
                 from pg_database where datname = 'template1'";
    let startup_hash = node.read("config/boot-hash");
    assert_eq!(node.ask(facts), format!("on|logical|7MB|{hash}|{startup_hash}|UTF8|on|128MB"));
    assert_eq!(node.ask("select setting from pg_file_settings where name = 'dialog.config_hash'"), hash);
    let identity = node.ask("select system_identifier from pg_control_system()");

    let asked = Instant::now();
    assert_eq!(code(node.stop()), 0, "{}", node.read("log"));
    assert!(asked.elapsed() < Duration::from_secs(3), "the shutdown took {:?}", asked.elapsed());
    assert!(node.read("log").contains("database system is shut down"), "{}", node.read("log"));
    assert!(!node.path("run/ready").exists());
    assert_eq!(node.read("termination-log"), "");

    node.configure(&Parameters::new(), InitdbPermission::Forbidden);
    node.start();
    node.until_ready();
    assert_eq!(node.ask("select system_identifier from pg_control_system()"), identity);
}

#[test]
fn a_changed_configuration_is_loaded_without_a_restart() {
    let mut node = born(&Parameters::new());
    let hash = node.configure(&parameters([("work_mem", "9MB")]), InitdbPermission::Forbidden);
    let brought =
        "select setting = '{}' and error is null from pg_file_settings where name = 'dialog.config_hash'";
    assert_eq!(node.ask(&brought.replace("{}", &hash)), "t");
    node.ask("select pg_reload_conf()");
    node.until("it is loaded", |node| node.ask("select current_setting('dialog.config_hash')") == hash);
    assert_eq!(node.ask("show work_mem"), "9MB");
}

#[rstest]
#[case::first_node(15, None, "--locale-provider=libc --locale=C")]
#[case::first_node_from_17_on(17, None, "--locale=C --locale-provider=builtin --builtin-locale=C.UTF-8")]
#[case::later_node(17, Some("libc C"), "--locale-provider=libc --locale=C")]
#[case::later_builtin(
    18,
    Some("builtin C.UTF-8"),
    "--locale=C --locale-provider=builtin --builtin-locale=C.UTF-8"
)]
#[case::other_locale(15, Some("libc en_US.UTF-8"), "--locale-provider=libc --locale=en_US.UTF-8")]
#[case::icu(16, Some("icu und"), "--locale=C --locale-provider=icu --icu-locale=und")]
#[case::no_such_provider_yet(
    16,
    Some("builtin C.UTF-8"),
    "provider builtin), which PostgreSQL 16 does not have"
)]
fn every_node_is_made_with_the_locale_of_birth(
    #[case] major: u32,
    #[case] locale: Option<&str>,
    #[case] said: &str,
) {
    let mut node = node();
    node.replace_program("postgres", &format!("echo 'postgres (PostgreSQL) {major}.2'"));
    node.replace_program("initdb", "echo \"$*\"; exit 1");
    node.configure(&Parameters::new(), InitdbPermission::Allowed(locale));
    node.start();
    assert_eq!(code(node.wait_for_end()), 1);
    assert!(node.read("termination-log").contains(said), "{}", node.read("termination-log"));
    assert!(!node.path("volume/pgdata").exists());
}

#[test]
fn a_server_says_with_which_locale_it_was_made() {
    let mut node = node();
    node.configure(&Parameters::new(), InitdbPermission::Allowed(Some("libc C.UTF-8")));
    node.start();
    node.until_ready();
    let made = "select datlocprovider::text || ' ' || datcollate || ' ' || datctype from pg_database where datname = 'template0'";
    assert_eq!(node.ask(made), "c C.UTF-8 C.UTF-8");
}

#[test]
fn nothing_sends_wal_elsewhere() {
    let mut node = born(&Parameters::new());
    // A reload must not take these, and no restart either.
    for other in ["archive_command = 'cp %p /tmp'", "archive_library = 'elsewhere'"] {
        assert_eq!(node.ask(&format!("alter system set {other}")), "");
    }
    let file = node.path("config/postgresql.conf");
    let text = format!("archive_command = 'false'\n{}", fs::read_to_string(&file).unwrap());
    fs::write(&file, text).unwrap();
    let ours = format!("sh '{}' '%p' '%f'|", node.path("config/archive.sh").display());
    let shown = "select current_setting('archive_command'), current_setting('archive_library')";
    let loads = "select pg_conf_load_time()";
    let before = node.ask(loads);
    node.ask("select pg_reload_conf()");
    node.until("it is loaded", |node| node.ask(loads) != before);
    assert_eq!(node.ask(shown), ours);
    assert_eq!(code(node.stop()), 0);
    node.start();
    node.until_ready();
    assert_eq!(node.ask(shown), ours);
    // And what is to be archived is let go.
    let segment = node.ask("select pg_walfile_name(pg_switch_wal())");
    node.until("the segment is done with", |node| {
        node.ask("select coalesce(last_archived_wal, '') from pg_stat_archiver") >= segment
    });
    assert_eq!(node.ask("select failed_count from pg_stat_archiver"), "0");
}

#[test]
fn a_synchronous_standby_is_a_matter_of_the_file() {
    let mut node = born(&Parameters::new());
    let shown = "select setting || source || coalesce(sourcefile, '') from pg_settings where name = 'synchronous_standby_names'";
    assert_eq!(
        node.ask(shown),
        format!("configuration file{}", node.path("config/postgresql.conf").display())
    );
    assert_eq!(node.ask("alter system set synchronous_standby_names = 'someone'"), "");
    node.ask("select pg_reload_conf()");
    node.until("it is loaded", |node| node.ask("show synchronous_standby_names") == "someone");
}

const LIBRARIES: &str = "output_plugin_libraries";

#[test]
fn citus_may_decode_from_the_first_start_on() {
    let mut node = born(&Parameters::new());
    let shown = format!("select coalesce(current_setting('{LIBRARIES}', true), 'unknown')");
    if node.ask(&shown) == "unknown" {
        eprintln!("this server does not know {LIBRARIES}");
        return;
    }
    assert_eq!(node.ask(&shown), "pgoutput, test_decoding, citus");
    let added = parameters([(LIBRARIES, "wal2json,citus")]);
    let hash = node.configure(&added, InitdbPermission::Forbidden);
    node.ask("select pg_reload_conf()");
    node.until("it is loaded", |node| node.ask("select current_setting('dialog.config_hash')") == hash);
    assert_eq!(node.ask(&shown), "pgoutput, test_decoding, citus, wal2json");
    // It is of the configuration that is left when it does not start.
    node.stop();
    node.configure(&parameters([("work_mem", "banana")]), InitdbPermission::Forbidden);
    node.start();
    node.until_ready();
    assert_eq!(node.ask(&shown), "pgoutput, test_decoding, citus");
}

/// An older minor version refuses to start with a setting that it does not know.
#[test]
fn a_server_is_not_told_what_it_does_not_know() {
    let mut node = node();
    node.replace_program(
        "postgres",
        &format!(
            "case $1 in --describe-config) \"$program\" \"$@\" | sed '/^{LIBRARIES}/d' ;; *) exec \"$program\" \"$@\" ;; esac"
        ),
    );
    node.configure(&parameters([(LIBRARIES, "wal2json")]), InitdbPermission::Allowed(None));
    node.start();
    node.until_ready();
    assert_eq!(node.ask(&format!("select count(*) from pg_file_settings where name = '{LIBRARIES}'")), "0");
}

#[test]
fn an_open_session_does_not_hold_the_shutdown_up() {
    let mut node = born(&Parameters::new());
    let mut session = as_server_user(INSTALLATION.bin.join("psql"))
        .args(["-X", "-U", "postgres", "-c", "select pg_sleep(600)", "-h"])
        .arg(node.path("run"))
        .args(["-p", &node.port.to_string()])
        .current_dir("/")
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    node.until("the session sleeps", |node| {
        node.ask("select count(*) from pg_stat_activity where query like '%pg_sleep(600)%' and state = 'active' and pid <> pg_backend_pid()") == "1"
    });
    let asked = Instant::now();
    assert_eq!(code(node.stop()), 0);
    assert!(asked.elapsed() < Duration::from_secs(3), "the shutdown took {:?}", asked.elapsed());
    session.wait().unwrap();
}

#[test]
fn a_signal_before_the_server_is_ready_is_not_lost() {
    let mut node = born(&Parameters::new());
    node.stop();
    // At any moment of a start: the script ends, with the server.
    for milliseconds in [0, 5, 20, 50, 100, 150, 200, 300] {
        node.start();
        node.until("the script runs", |node| {
            fs::read_to_string(format!("/proc/{}/cmdline", node.pid()))
                .is_ok_and(|line| line.contains("start.sh"))
        });
        // The moment itself is what differs, not something waited for.
        std::thread::sleep(Duration::from_millis(milliseconds));
        let asked = Instant::now();
        node.stop();
        assert!(asked.elapsed() < Duration::from_secs(5), "after {milliseconds} ms: {:?}", asked.elapsed());
        assert!(
            !node.path("volume/pgdata/postmaster.pid").exists(),
            "after {milliseconds} ms a server is left"
        );
    }
}

#[test]
fn an_empty_volume_is_initialised_only_with_permission() {
    let mut node = node();
    node.configure(&Parameters::new(), InitdbPermission::Forbidden);
    node.start();
    assert_eq!(code(node.wait_for_end()), StartFailure::VolumeEmpty as i32);
    let said = node.read("termination-log");
    assert!(said.contains("the volume is empty") && said.contains("initialised before"), "{said}");
    assert!(node.read("log").contains("the volume is empty"));
    assert_eq!(tree(&node, "volume").len(), 1, "{:?}", tree(&node, "volume"));
}

#[rstest]
#[case::forbidden(InitdbPermission::Forbidden)]
#[case::allowed(InitdbPermission::Allowed(None))]
fn a_directory_that_is_not_whole_is_left_alone(#[case] initialise: InitdbPermission) {
    let mut node = node();
    fs::create_dir(node.path("volume/pgdata")).unwrap();
    fs::write(node.path("volume/pgdata/PG_VERSION"), "15\n").unwrap();
    node.configure(&Parameters::new(), initialise);
    let before = tree(&node, "volume");
    node.start();
    assert_eq!(code(node.wait_for_end()), StartFailure::NotWhole as i32);
    assert!(node.read("termination-log").contains("is not whole"), "{}", node.read("termination-log"));
    assert_eq!(tree(&node, "volume"), before);
}

/// Not as root, who reads everything: such as a volume that was restored as another user.
#[test]
fn a_directory_that_cannot_be_read_is_not_an_empty_one() {
    for (mode, initialise) in [
        ("000", InitdbPermission::Forbidden),
        ("400", InitdbPermission::Forbidden),
        ("000", InitdbPermission::Allowed(None)),
    ] {
        let mut node = born(&Parameters::new());
        node.stop();
        let pgdata = node.path("volume/pgdata");
        let chmod = |mode: &str| as_server_user("chmod").arg(mode).arg(&pgdata).status().unwrap();
        assert!(chmod(mode).success());
        node.configure(&Parameters::new(), initialise);
        node.start();
        assert_eq!(code(node.wait_for_end()), StartFailure::Unreadable as i32);
        let said = node.read("termination-log");
        assert!(chmod("700").success());
        assert!(said.contains("cannot read") && said.contains("Permission denied"), "{said}");
        node.configure(&Parameters::new(), InitdbPermission::Forbidden);
        node.start();
        node.until_ready();
    }
}

#[test]
fn what_a_killed_initdb_left_is_removed_only_with_permission() {
    let mut node = node();
    node.configure(&Parameters::new(), InitdbPermission::Allowed(None));
    node.start();
    node.until("initdb is at work", |node| node.path("volume/pgdata.new/PG_VERSION").exists());
    node.power_cut();
    assert!(!node.path("volume/pgdata").exists());

    node.configure(&Parameters::new(), InitdbPermission::Forbidden);
    let before = tree(&node, "volume");
    node.start();
    assert_eq!(code(node.wait_for_end()), StartFailure::VolumeEmpty as i32);
    let said = node.read("termination-log");
    assert!(said.contains("pgdata.new"), "{said}");
    assert_eq!(tree(&node, "volume"), before);

    node.configure(&Parameters::new(), InitdbPermission::Allowed(None));
    node.start();
    node.until_ready();
    assert!(!node.path("volume/pgdata.new").exists());
    assert_eq!(node.ask("select 1"), "1");
}

#[rstest]
#[case::no_number("work_mem", "banana", "banana")]
#[case::only_a_start_shows_it("huge_pages", "on", "could not map anonymous shared memory")]
#[case::a_quote_and_a_cyrillic_letter("work_mem", "it's ы", "invalid value for parameter")]
fn configuration_that_fails_falls_back_to_the_last_good(
    #[case] name: &str,
    #[case] value: &str,
    #[case] words: &str,
) {
    let mut node = born(&parameters([("work_mem", "7MB")]));
    node.stop();
    let rejected = node.configure(&parameters([(name, value)]), InitdbPermission::Forbidden);
    node.start();
    node.until_ready();
    assert_eq!(node.ask("show work_mem"), "7MB");
    assert_eq!(node.ask("select current_setting('dialog.rejected_hash')"), rejected);
    let message = node.ask("select current_setting('dialog.rejected_message')");
    assert!(message.contains(words) && message.len() <= 500 && !message.contains('\n'), "{message}");
    let told = node.read("termination-log");
    assert!(told.contains(words) && told.contains(&rejected), "{told}");
    node.stop();

    // It is not good because the server ran meanwhile; a corrected one is taken.
    node.start();
    node.until_ready();
    assert_eq!(node.ask("select current_setting('dialog.rejected_hash')"), rejected);
    node.stop();
    node.configure(&parameters([("work_mem", "9MB")]), InitdbPermission::Forbidden);
    node.start();
    node.until_ready();
    assert_eq!(node.ask("show work_mem"), "9MB");
    assert_eq!(node.ask("select coalesce(current_setting('dialog.rejected_hash', true), '')"), "");
}

#[test]
fn unreadable_pg_hba_falls_back_with_the_configuration() {
    let mut node = born(&Parameters::new());
    node.stop();
    fs::write(node.path("config/pg_hba.conf"), "nonsense\n").unwrap();
    node.start();
    node.until_ready();
    let message = node.ask("select current_setting('dialog.rejected_message')");
    assert!(message.contains("nonsense"), "{message}");
}

#[test]
fn first_configuration_that_fails_ends_with_its_message() {
    let mut node = node();
    node.configure(&parameters([("work_mem", "banana")]), InitdbPermission::Allowed(None));
    node.start();
    assert_eq!(code(node.wait_for_end()), 1);
    let said = node.read("termination-log");
    assert!(said.contains(r#"LOG: invalid value for parameter "work_mem": "banana""#), "{said}");
    // The volume was initialised all the same, and a corrected configuration starts it without permission.
    node.configure(&Parameters::new(), InitdbPermission::Forbidden);
    node.start();
    node.until_ready();
}

#[test]
fn data_of_another_major_version_is_left_alone() {
    let mut node = born(&Parameters::new());
    node.stop();
    node.configure(&Parameters::new(), InitdbPermission::Forbidden);
    fs::write(node.path("volume/pgdata/PG_VERSION"), "14\n").unwrap();
    node.give_to_server_user();
    let before = tree(&node, "volume");
    node.start();
    assert_eq!(code(node.wait_for_end()), StartFailure::OtherMajorVersion as i32);
    let said = node.read("termination-log");
    assert!(said.contains("PostgreSQL 14"), "{said}");
    assert_eq!(tree(&node, "volume"), before);
}

#[test]
fn alter_system_cannot_take_what_never_changes_away() {
    let mut node = born(&Parameters::new());
    assert_eq!(node.ask("alter system set wal_level = 'replica'"), "");
    assert_eq!(node.ask("alter system set shared_preload_libraries = 'nonsense'"), "");
    assert_eq!(node.ask("alter system set port = 1"), "");
    node.stop();
    node.start();
    node.until_ready();
    assert_eq!(node.ask("show wal_level"), "logical");
}

#[test]
fn a_crash_of_a_server_that_was_ready_is_an_end() {
    let mut node = born(&Parameters::new());
    // An old reason in the termination log would be taken for the one of this end.
    fs::write(node.path("termination-log"), "old").unwrap();
    node.give_to_server_user();
    kill("-KILL", &node.postmaster());
    assert_eq!(code(node.wait_for_end()), 137);
    assert_eq!(node.read("termination-log"), "");
    assert!(!node.path("run/ready").exists());
    // postmaster.pid is still there and says 'ready': it is not believed.
    assert!(node.read("volume/pgdata/postmaster.pid").contains("ready"));
    node.start();
    node.until_ready();
    assert_eq!(node.ask("select 1"), "1");
}

#[test]
fn the_number_of_a_killed_server_may_be_somebody_elses() {
    let mut node = born(&parameters([("work_mem", "7MB")]));
    kill("-KILL", &node.postmaster());
    node.wait_for_end();
    // In a container, numbers begin at 1 again.
    let mut somebody = as_server_user("sleep").arg("120").spawn().unwrap();
    // One of the data, one of the socket; the volume of the sockets outlives the container as well.
    let socket_lock = format!("run/.s.PGSQL.{}.lock", node.port);
    for path in ["volume/pgdata/postmaster.pid", &socket_lock] {
        let lock = node.read(path);
        let (_, rest) = lock.split_once('\n').unwrap();
        fs::write(node.path(path), format!("{}\n{rest}", somebody.id())).unwrap();
    }
    node.configure(&parameters([("work_mem", "9MB")]), InitdbPermission::Forbidden);
    node.start();
    node.until_ready();
    somebody.kill().unwrap();
    somebody.wait().unwrap();
    assert_eq!(node.ask("select coalesce(current_setting('dialog.rejected_message', true), '')"), "");
    assert_eq!(node.ask("show work_mem"), "9MB");
}

#[test]
fn data_directory_opened_to_the_group_still_starts() {
    let mut node = born(&Parameters::new());
    node.stop();
    let status = as_server_user("chmod").arg("g+rwx").arg(node.path("volume/pgdata")).status().unwrap();
    assert!(status.success());
    node.start();
    node.until_ready();
}

#[test]
fn an_image_says_what_is_in_it() {
    let node = node();
    let output = as_server_user("sh")
        .args(["-c", include_str!("../src/resources/inspect.sh")])
        .env("PATH", INSTALLATION.path())
        .env("DIALOG_SCRATCH", node.path("scratch"))
        .env("DIALOG_TERMINATION_LOG", node.path("scratch/answer"))
        .current_dir("/")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let answer = node.read("scratch/answer");
    let (postgres, citus) = answer.trim().split_once(' ').unwrap();
    assert!(postgres.strip_prefix("postgres=").unwrap().parse::<u32>().unwrap() >= 15, "{answer}");
    let control = node.path("scratch/inspection");
    assert!(!control.exists());
    let version = citus.strip_prefix("citus=").unwrap();
    assert!(INSTALLATION.control.contains(&format!("'{version}'")), "{answer} / {}", INSTALLATION.control);
}
