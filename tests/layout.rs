//! The rules of the house that no compiler knows: which module may do what, how long a file may be, and that the
//! documents speak of the modules that there are.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Lines of a file, without its tests: what can be read at one sitting.
const LONGEST_FILE: usize = 450;

/// A file of `src`, without its tests.
struct Source {
    /// Relative to the repository, such as `src/plan/mod.rs`.
    path: String,
    text: String,
    /// The same lines with comments and the contents of texts left out.
    code: String,
}

impl Source {
    fn read(path: &Path) -> Self {
        let text = without_tests(&fs::read_to_string(path).unwrap());
        let path = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
        Self { path, code: split(&text).0, text }
    }
    fn is_in(&self, places: &[&str]) -> bool {
        places.iter().any(|place| self.path.starts_with(place))
    }
    /// Where `word` stands in the code, and is not a part of a longer one.
    fn uses(&self, word: &str) -> Option<String> {
        let inside = |c: char| c.is_alphanumeric() || c == '_';
        let alone = |code: &str, at: usize| {
            let (before, after) = (&code[..at], &code[at + word.len()..]);
            !(word.starts_with(inside) && before.ends_with(inside)
                || word.ends_with(inside) && after.starts_with(inside))
        };
        let uses = |code: &str| code.match_indices(word).any(|(at, _)| alone(code, at));
        let line = self.code.lines().position(uses)?;
        Some(format!("{}:{}: {word}", self.path, line + 1))
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// All of `src`, without the files that hold nothing but tests.
fn sources() -> Vec<Source> {
    let mut found = vec![];
    let mut rooms = vec![root().join("src")];
    while let Some(room) = rooms.pop() {
        for entry in fs::read_dir(room).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                rooms.push(path);
            } else if path.extension().is_some_and(|rs| rs == "rs") && !path.ends_with("tests.rs") {
                found.push(Source::read(&path));
            }
        }
    }
    found.sort_by(|one, other| one.path.cmp(&other.path));
    assert!(found.len() > 20, "where is src?");
    found
}

/// A file up to its tests, which come last.
fn without_tests(text: &str) -> String {
    text.split("\n#[cfg(test)]\n").next().unwrap().to_owned() + "\n"
}

/// What is code, and what is text between quotes, of a file; line ends stay in the code.
fn split(text: &str) -> (String, String) {
    let (mut code, mut quoted) = (String::new(), String::new());
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let raw = raw_string(rest);
        let (length, is_text) = if rest.starts_with("//") {
            (rest.find('\n').unwrap_or(rest.len()), false)
        } else if let Some(length) = raw {
            (length, true)
        } else if rest.starts_with("'\"'") {
            (3, false)
        } else if next == '"' {
            (end_of_string(rest), true)
        } else {
            code.push(next);
            rest = &rest[next.len_utf8()..];
            continue;
        };
        let (skipped, after) = rest.split_at(length);
        code.extend(skipped.chars().filter(|c| *c == '\n'));
        if is_text {
            quoted.push_str(skipped.trim_start_matches(['r', '#']));
            quoted.push('\n');
            code.push_str("\"\"");
        }
        rest = after;
    }
    (code, quoted)
}

fn end_of_string(text: &str) -> usize {
    let mut escaped = false;
    let end = text.char_indices().skip(1).find(|(_, c)| {
        let ends = *c == '"' && !escaped;
        escaped = *c == '\\' && !escaped;
        ends
    });
    end.map_or(text.len(), |(at, _)| at + 1)
}

fn raw_string(text: &str) -> Option<usize> {
    let marks = text.strip_prefix('r')?.chars().take_while(|c| *c == '#').count();
    let start = marks + 1;
    text[start..].starts_with('"').then(|| {
        let end = format!("\"{}", "#".repeat(marks));
        text[start + 1..].find(&end).map_or(text.len(), |at| start + 1 + at + end.len())
    })
}

/// Names that a `use` of the code brings from `from`, such as `Client` from `kube`.
fn brings(code: &str, from: &str, names: &[&str]) -> Option<String> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let statements = code.split("use ").skip(1).map(|rest| rest.split(';').next().unwrap());
    let ours = statements.filter(|statement| statement.starts_with(&format!("{from}::")));
    ours.flat_map(|statement| statement.split(|c| !is_word(c)))
        .find(|word| names.contains(word))
        .map(|word| format!("{from}::{word}"))
}

fn none(broken: &[String], rule: &str) {
    assert!(broken.is_empty(), "{rule}:\n{}", broken.join("\n"));
}

#[test]
fn this_test_tells_code_from_text() {
    let (code, quoted) =
        split("let a = \"x \\\" // y\"; // Instant\nlet b = r#\"S\"T\"#; let c = '\"'; f(\"\")");
    assert_eq!(code, "let a = \"\"; \nlet b = \"\"; let c = ; f(\"\")");
    assert_eq!(quoted, "\"x \\\" // y\"\n\"S\"T\"#\n\"\"\n");
    let source = |code: &str| Source { path: String::new(), text: String::new(), code: code.to_owned() };
    assert!(source("a(Instant::now())").uses("Instant").is_some());
    assert!(source("a(AnInstant, Instantly)").uses("Instant").is_none());
    assert!(source("rand::random()").uses("rand::").is_some());
    assert!(source("operand::x").uses("rand::").is_none());
    assert_eq!(brings("use kube::{\n    Api,\n    core::Rule,\n};", "kube", &["Api"]).unwrap(), "kube::Api");
    assert_eq!(brings("use kube::core::Rule; use other::Api;", "kube", &["Api"]), None);
}

#[test]
fn every_module_says_first_what_lives_there() {
    let silent = |source: &Source| !source.text.starts_with("//! ");
    let silent: Vec<_> = sources().into_iter().filter(silent).map(|source| source.path).collect();
    none(&silent, "the first line of a module is `//! what lives there and what may not`");
}

#[test]
fn a_file_can_be_read_at_one_sitting() {
    let sources = sources();
    let lines = sources.iter().map(|source| (&source.path, source.text.trim_end().lines().count()));
    let long = lines
        .filter(|(_, lines)| *lines > LONGEST_FILE)
        .map(|(path, lines)| format!("{path}: {lines} lines"));
    none(&long.collect::<Vec<_>>(), "split what is longer than 450 lines without its tests");
}

#[test]
fn the_planner_is_pure() {
    const IMPURE: &[&str] = &[
        "async",
        "await",
        "tokio",
        "tokio_postgres",
        "tokio_util",
        "futures",
        "kube::Client",
        "kube::Api",
        "Client",
        "::now",
        "Instant",
        "SystemTime",
        "rand",
        "random",
        "thread",
        "Mutex",
        "static",
        "tracing",
        "println",
        "eprintln",
        "std::env",
        "std::fs",
        "std::io",
        "std::net",
        "std::process",
        "unsafe",
    ];
    const OTHER_VERBS: &[&str] = &["act", "citus", "controller", "report", "runtime"];
    let mut broken = vec![];
    for source in sources().iter().filter(|source| source.is_in(&["src/plan/", "src/resources/", "src/api/"]))
    {
        // A lifetime is not a static.
        let code = source.code.replace("'static", "");
        let source = Source { code, path: source.path.clone(), text: String::new() };
        broken.extend(IMPURE.iter().filter_map(|word| source.uses(word)));
        let verbs = brings(&source.code, "crate", OTHER_VERBS);
        broken.extend(verbs.map(|verb| format!("{}: {verb}", source.path)));
    }
    none(
        &broken,
        "no client, no clock, no randomness, no async and nothing that acts in what decides and builds",
    );
}

#[test]
fn sql_is_spoken_in_one_place() {
    const SQL: &[&str] = &[
        "SELECT ",
        "INSERT INTO ",
        "UPDATE ",
        "DELETE FROM ",
        "ALTER SYSTEM SET ",
        "ALTER ROLE ",
        "CREATE ",
        "DROP ",
        "CALL ",
        "GRANT ",
        "REVOKE ",
        "BEGIN",
        "COMMIT",
        "TRUNCATE ",
    ];
    let mut broken = vec![];
    for source in sources().iter().filter(|source| !source.is_in(&["src/citus/"])) {
        broken.extend(source.uses("tokio_postgres"));
        let (_, quoted) = split(&source.text);
        let statements = quoted.lines().filter(|line| {
            let start = line.trim_start_matches(['"', ' ']);
            SQL.iter().any(|verb| start.starts_with(verb))
        });
        broken.extend(statements.map(|statement| format!("{}: {statement}", source.path)));
    }
    none(&broken, "SQL lives in src/citus");
}

#[test]
fn the_kubernetes_client_stays_with_those_who_observe_act_and_report() {
    let allowed =
        ["src/observe/", "src/act/", "src/report/", "src/runtime/", "src/controller.rs", "src/main.rs"];
    let mut broken = vec![];
    for source in sources().iter().filter(|source| !source.is_in(&allowed)) {
        let brought = brings(&source.code, "kube", &["Client", "Api"]);
        broken.extend(brought.map(|name| format!("{}: {name}", source.path)));
        broken.extend(["kube::Client", "kube::Api"].iter().filter_map(|name| source.uses(name)));
    }
    none(&broken, "no Kubernetes client there");
}

#[test]
fn nothing_is_left_for_later() {
    let mut broken = vec![];
    for source in sources() {
        broken.extend(["todo!", "unimplemented!", "dbg!"].iter().filter_map(|word| source.uses(word)));
        let later = source.text.lines().filter(|line| line.contains("FIXME") || line.contains("TODO"));
        broken.extend(later.map(|line| format!("{}: {line}", source.path)));
    }
    none(&broken, "finish it or write an issue");
}

#[test]
fn the_documents_speak_of_every_module() {
    let read =
        |name: &str| fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    let architecture = read("ARCHITECTURE.md");
    let modules = fs::read_dir(root().join("src")).unwrap().map(|entry| entry.unwrap().file_name());
    let modules = modules.map(|name| name.into_string().unwrap()).filter(|name| name != "lib.rs");
    let missing: Vec<_> = modules.filter(|name| !architecture.contains(&format!("src/{name}"))).collect();
    none(&missing, "ARCHITECTURE.md has no word about src/");
    let version = format!("## {}", env!("CARGO_PKG_VERSION"));
    let changelog = read("CHANGELOG.md");
    assert!(
        changelog.contains("## Unreleased") || changelog.contains(&version),
        "CHANGELOG.md has no {version}"
    );
}

#[test]
fn every_command_that_a_document_names_exists() {
    let makefile = fs::read_to_string(root().join("Makefile")).unwrap();
    let mut broken = vec![];
    for entry in fs::read_dir(root()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "md") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        for target in text.split("`make ").skip(1).chain(text.split("\nmake ").skip(1)) {
            let target = target.split(|c: char| !(c.is_alphanumeric() || c == '-')).next().unwrap();
            if !makefile.contains(&format!("\n{target}:")) {
                broken.push(format!("{}: make {target}", path.display()));
            }
        }
    }
    none(&broken, "the Makefile has no such target");
}

/// People are told to keep clusters of the same name elsewhere.
#[test]
fn the_demo_deletes_only_in_a_namespace_that_it_has_made() {
    let demo = root().join("infrastructure/demo");
    let asks = |label: &str| {
        let script = format!("source settings.sh; kubectl() {{ printf '{label}'; }}; must_be_the_demos");
        let output = std::process::Command::new("bash")
            .args(["-c", &script])
            .env("HERE", &demo)
            .current_dir(&demo)
            .output();
        let output = output.unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(asks("true"), (true, String::new()));
    let (goes_on, said) = asks("");
    assert!(!goes_on && said.contains("it is left alone"), "{said}");
    for (script, deletes) in [("up.sh", "\nforget_cluster\n"), ("down.sh", "kubectl delete namespace")] {
        let text = fs::read_to_string(demo.join(script)).unwrap();
        let (asked, deleted) = (text.find("must_be_the_demos\n").unwrap(), text.find(deletes).unwrap());
        assert!(asked < deleted, "{script} deletes before it has asked");
    }
}

#[test]
fn every_document_that_is_named_exists() {
    let mut broken = vec![];
    let named = |place: &str, text: &str| -> Vec<String> {
        let names =
            text.split("docs/").skip(1).filter_map(|rest| rest.split_once(".md").map(|(name, _)| name));
        let is_name = |name: &&str| name.chars().all(|c| c.is_ascii_lowercase() || c == '-');
        let missing = names.filter(is_name).filter(|name| !root().join(format!("docs/{name}.md")).exists());
        missing.map(|name| format!("{place}: docs/{name}.md")).collect()
    };
    for source in sources() {
        broken.extend(named(&source.path, &source.text));
    }
    for document in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"] {
        broken.extend(named(document, &fs::read_to_string(root().join(document)).unwrap()));
    }
    none(&broken, "there is no such document");
}

/// The variants are read from the source: a new one cannot be forgotten here.
#[test]
fn the_runbook_has_every_reason_of_a_problem() {
    let source = fs::read_to_string(root().join("src/plan/problem/reason.rs")).unwrap();
    let (_, list) = source.split_once("pub enum ProblemReason {").expect("the enum of reasons");
    let (list, _) = list.split_once("\n}").unwrap();
    let lines = list.lines().map(|line| line.trim().trim_end_matches(','));
    let reasons: Vec<_> = lines.filter(|line| line.starts_with(|c: char| c.is_ascii_uppercase())).collect();
    assert!(reasons.len() > 20, "{reasons:?}");
    let runbook = fs::read_to_string(root().join("docs/runbook.md")).unwrap();
    // A row of the table, or a section.
    let told = |reason: &str| {
        let row = format!("| `{reason}` |");
        runbook.lines().any(|line| line.starts_with(&row) || line == format!("## {reason}"))
    };
    let missing: Vec<_> = reasons.into_iter().filter(|reason| !told(reason)).map(ToOwned::to_owned).collect();
    none(&missing, "docs/runbook.md does not say what it means");
}
