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
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Output},
};

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
