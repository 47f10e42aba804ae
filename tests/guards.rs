//! Each guard of the planner, by name: what must never happen, and the line that keeps it from happening. Taking any one
//! away must make a test fail (`make guards`, which takes each away in a copy of the project). That the list still fits the
//! code is checked in every run.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// A guard: the rule it is for (the number in ARCHITECTURE.md, or a word), where it stands, the test of `plan_converges`
/// that fails without it, and how it is taken away.
struct Guard {
    name: String,
    file: PathBuf,
    test: String,
    there: String,
    away: String,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// tests/guards.txt: `## name`, the file, the test, lines that begin with `-` (as they are) and with `+` (taken away).
fn guards() -> Vec<Guard> {
    let list = fs::read_to_string(root().join("tests/guards.txt")).unwrap();
    list.split("\n## ")
        .skip(1)
        .map(|part| {
            let mut lines = part.lines();
            let name = lines.next().unwrap().to_owned();
            let file = root().join(lines.next().unwrap());
            let test = lines.next().unwrap().to_owned();
            let side = |sign: char| {
                let lines = part.lines().skip(3).filter_map(|line| line.strip_prefix(sign));
                lines.collect::<Vec<_>>().join("\n")
            };
            Guard { name, file, test, there: side('-'), away: side('+') }
        })
        .collect()
}

#[test]
fn each_guard_is_where_the_list_says() {
    let guards = guards();
    assert!(guards.len() > 20, "{} guards", guards.len());
    for guard in guards {
        let text = fs::read_to_string(&guard.file).unwrap();
        let times = text.matches(&guard.there).count();
        assert_eq!(times, 1, "{}: {} times in {}:\n{}", guard.name, times, guard.file.display(), guard.there);
        assert_ne!(guard.there, guard.away, "{}", guard.name);
        let (module, function) = guard.test.split_once("::").expect("module::test");
        let text = fs::read_to_string(root().join(format!("tests/plan_converges/{module}.rs"))).unwrap();
        assert!(text.contains(&format!("fn {function}(")), "{}: no test {}", guard.name, guard.test);
    }
}

/// A copy of what the planner's tests need, so that nothing here is ever changed.
fn copy(to: &Path) {
    for entry in [
        "Cargo.toml",
        "Cargo.lock",
        "build.rs",
        "src",
        "tests",
        "testkit",
        "infrastructure",
        "crds",
        "charts",
    ] {
        let from = root().join(entry);
        if from.exists() {
            let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
            assert!(copied.success());
        }
    }
}

/// Builds the planner's tests in the copy; what cargo says when that cannot be done.
fn build(copy: &Path) -> Result<PathBuf, String> {
    let output = Command::new(env!("CARGO"))
        .args(["test", "--no-run", "--test", "plan_converges", "--message-format", "json-render-diagnostics"])
        .current_dir(copy)
        .env("CARGO_TARGET_DIR", root().join("target/guards"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut of_tests = messages.filter(|message| message["target"]["name"] == "plan_converges");
    let path = of_tests.find_map(|message| message["executable"].as_str().map(PathBuf::from));
    path.ok_or_else(|| "cargo names no program".to_owned())
}

/// The first of these tests that fails. It is not waited for the others: without some guards they take very long.
fn first_failure(program: &Path, copy: &Path, arguments: &[&str]) -> Option<String> {
    let mut child = Command::new(program)
        .args(arguments)
        .current_dir(copy)
        .env("PROPTEST_CASES", "100")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let failed = |line: String| Some(line.strip_prefix("test ")?.strip_suffix(" ... FAILED")?.to_owned());
    let failure = lines.find_map(failed);
    if failure.is_some() {
        drop(child.kill());
    }
    let ended = child.wait().unwrap();
    failure.or_else(|| (!ended.success()).then(|| ended.to_string()))
}

/// The test that fails in the copy, if there is one. The guard's own first, then the scenarios: they take minutes, and the
/// random histories many. A golden log that is another one proves nothing.
fn caught_by(copy: &Path, test: &str) -> Result<Option<String>, String> {
    let program = build(copy)?;
    Ok(first_failure(&program, copy, &[test])
        .or_else(|| first_failure(&program, copy, &["--skip", "whatever", "--skip", "golden"]))
        .or_else(|| first_failure(&program, copy, &["whatever"])))
}

#[test]
#[ignore = "takes half a minute a guard: make guards"]
fn taking_any_guard_away_makes_a_test_fail() {
    let directory = tempfile::TempDir::with_prefix("guards-").unwrap();
    copy(directory.path());
    let only = std::env::var("GUARD").unwrap_or_default();
    let (mut survived, mut caught_by_others) = (Vec::new(), Vec::new());
    for guard in guards().into_iter().filter(|guard| guard.name.contains(&only)) {
        let file = directory.path().join(guard.file.strip_prefix(root()).unwrap());
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, text.replacen(&guard.there, &guard.away, 1)).unwrap();
        match caught_by(directory.path(), &guard.test) {
            Ok(Some(by)) => {
                println!("caught    {} (by {by})", guard.name);
                if !by.starts_with(&guard.test) {
                    caught_by_others.push(format!("{}: by {by}", guard.name));
                }
            }
            Ok(None) => {
                println!("SURVIVED  {}", guard.name);
                survived.push(guard.name);
            }
            Err(words) => panic!("{}: without it the code does not build:\n{words}", guard.name),
        }
        fs::write(&file, text).unwrap();
    }
    assert!(survived.is_empty(), "taken away, and no test fails: {survived:#?}");
    assert!(caught_by_others.is_empty(), "the test that the list names does not fail: {caught_by_others:#?}");
}
