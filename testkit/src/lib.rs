//! What the tests, the demo and the benchmark share: servers of this machine, a Kubernetes, a load whose every row is
//! accounted for. It panics where a test would; no expectation lives here.

// It is as much a test as those who use it.
#![allow(
    clippy::expect_used,
    clippy::missing_errors_doc,
    clippy::missing_panics_doc,
    clippy::must_use_candidate,
    clippy::panic,
    clippy::unwrap_used
)]

pub mod kubernetes;
pub mod load;
pub mod postgres;

use std::{
    fmt::Debug,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use tokio::time::MissedTickBehavior;

/// Path of a file of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// Standard output and standard error, for a message.
pub fn said(output: &Output) -> String {
    let all = [&output.stdout[..], b"\n", &output.stderr[..]].concat();
    String::from_utf8_lossy(&all).trim().to_owned()
}

/// Standard output of a command that must succeed.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?} ended with {}:\n{}", output.status, said(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Says something past the test's own output, which is kept back when it passes.
#[allow(clippy::explicit_write)] // eprintln! would be kept back, too
pub fn tell(what: &str) {
    writeln!(std::io::stderr(), "{what}").unwrap();
}

/// Sends a signal, such as `-TERM`, to a process or, after a `-`, to a group of them.
pub fn kill(signal: &str, target: &str) {
    run(Command::new("kill").args([signal, "--", target]));
}

/// Looks until there is an answer. What is in the way is shown when the deadline passes.
pub async fn eventually<T, E: Debug, F: Future<Output = Result<T, E>>>(
    what: &str,
    deadline: Duration,
    mut look: impl FnMut() -> F,
) -> T {
    let started = Instant::now();
    let mut tick = tokio::time::interval(Duration::from_millis(50));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let Ok(looked) = tokio::time::timeout(deadline, look()).await else {
            panic!("not within {deadline:?}: {what}; a look took as long");
        };
        match looked {
            Ok(answer) => return answer,
            Err(seen) => {
                assert!(started.elapsed() < deadline, "not within {deadline:?}: {what}; last seen: {seen:?}");
            }
        }
    }
}
