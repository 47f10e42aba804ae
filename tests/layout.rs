//! The rules of the house that no compiler knows: which module may import which, which may do what, how long a file may
//! be, and that the documents speak of the modules that there are.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Lines of a file, without its tests: what can be read at one sitting.
const LONGEST_FILE: usize = 450;

/// Characters of a test's name: subject, condition, expectation.
const LONGEST_TEST_NAME: usize = 60;

/// The floors of the house, from the ground up: a room imports only from floors below its own, and so none of its
/// neighbours. A room is a file or a folder of `src`.
const FLOORS: &[&[&str]] = &[
    &["api"],
    &["snapshot"],
    &["resources", "metrics"],
    &["kubernetes", "citus", "runtime"],
    &["context"],
    &["observe"],
    &["plan"],
    &["act"],
    &["report"],
    &["controller"],
    &["main", "cli"],
];

/// These import nothing but what is named here, whatever else is below them.
const CLOSED: &[(&str, &[&str])] = &[
    ("api", &[]),
    ("snapshot", &["api"]),
    ("resources", &["api", "snapshot"]),
    ("plan", &["api", "snapshot", "resources"]),
];

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
    /// The module that it is: `["plan", "step"]`.
    fn module(&self) -> Vec<String> {
        let path = self.path.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
        path.split('/').map(ToOwned::to_owned).collect()
    }
    /// What it names of this crate: the line, and the path from the root of the crate.
    fn imports(&self) -> Vec<(usize, Vec<String>)> {
        let module = self.module();
        paths(&self.code)
            .into_iter()
            .filter_map(|(line, path)| Some((line, absolute(&module, &path)?)))
            .collect()
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

/// Every file of Rust below some directories.
fn rust_files(directories: &[&str]) -> Vec<PathBuf> {
    let mut found = vec![];
    let mut rooms: Vec<PathBuf> = directories.iter().map(|directory| root().join(directory)).collect();
    while let Some(room) = rooms.pop() {
        for entry in fs::read_dir(room).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                rooms.push(path);
            } else if path.extension().is_some_and(|rs| rs == "rs") {
                found.push(path);
            }
        }
    }
    found
}

/// All of `src`, without the files that hold nothing but tests.
fn sources() -> Vec<Source> {
    let files = rust_files(&["src"]).into_iter().filter(|path| !path.ends_with("tests.rs"));
    let mut found: Vec<Source> = files.map(|path| Source::read(&path)).collect();
    found.sort_by(|one, other| one.path.cmp(&other.path));
    assert!(found.len() > 20, "where is src?");
    found
}

/// A file up to its tests, which come last. Where they have a file of their own, more may follow; lines keep their numbers.
fn without_tests(text: &str) -> String {
    let text = text.replace("\n#[cfg(test)]\nmod tests;\n", "\n\n\n");
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

/// Words and marks of a code, each with its line.
fn tokens(code: &str) -> Vec<(usize, &str)> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut found = vec![];
    for (line, mut rest) in code.lines().enumerate() {
        while let Some(next) = rest.chars().next() {
            let length = match next {
                _ if is_word(next) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
                ':' if rest.starts_with("::") => 2,
                _ => next.len_utf8(),
            };
            let (token, after) = rest.split_at(length);
            if !next.is_whitespace() {
                found.push((line + 1, token));
            }
            rest = after;
        }
    }
    found
}

/// Every path of a `use`, and every other one that begins with `crate`, `super` or `self`, each with its line.
fn paths(code: &str) -> Vec<(usize, Vec<String>)> {
    let (tokens, mut found, mut at) = (tokens(code), vec![], 0);
    let token = |at: usize| tokens.get(at).map_or("", |(_, token)| *token);
    while at < tokens.len() {
        // `use<T>` is a bound, and no import.
        let imports = token(at) == "use" && token(at + 1) != "<";
        let names = ["crate", "super", "self"].contains(&token(at)) && token(at + 1) == "::";
        at =
            if imports || names { tree(&tokens, at + usize::from(imports), &[], &mut found) } else { at + 1 };
    }
    found
}

/// The paths of a tree such as `a::{b, c::d as e}`; answers where it ends.
fn tree(
    tokens: &[(usize, &str)],
    mut at: usize,
    before: &[String],
    found: &mut Vec<(usize, Vec<String>)>,
) -> usize {
    let token = |at: usize| tokens.get(at).map_or("", |(_, token)| *token);
    let line = tokens.get(at).map_or(0, |(line, _)| *line);
    let mut path = before.to_vec();
    loop {
        match token(at) {
            "::" => at += 1,
            "{" => {
                at += 1;
                while !["}", ""].contains(&token(at)) {
                    at = if token(at) == "," { at + 1 } else { tree(tokens, at, &path, found).max(at + 1) };
                }
                return at + 1;
            }
            name if name == "*" || name.starts_with(|c: char| c.is_alphabetic() || c == '_') => {
                path.push(name.to_owned());
                at += 1;
                if token(at) != "::" {
                    break;
                }
            }
            _ => break,
        }
    }
    found.push((line, path));
    if token(at) == "as" { at + 2 } else { at }
}

/// A path from the root of the crate, when it is one of this crate.
fn absolute(module: &[String], path: &[String]) -> Option<Vec<String>> {
    let (first, mut rest) = path.split_first()?;
    let mut found = match first.as_str() {
        // The second is how the command line names the crate.
        "crate" | "dialog_operator" => vec![],
        "self" => module.to_vec(),
        "super" => module[..module.len() - 1].to_vec(),
        _ => return None,
    };
    while let Some((_, after)) = rest.split_first().filter(|(next, _)| *next == "super") {
        found.pop();
        rest = after;
    }
    found.extend(rest.iter().cloned());
    Some(found)
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

/// Functions that are handed a plan to write to and answer as well, each with its line.
fn questions_that_write(code: &str) -> Vec<(usize, &str)> {
    let tokens = tokens(code);
    let token = |at: usize| tokens.get(at).map_or("", |(_, token)| *token);
    let writes_to_plan = |at: &usize| {
        let path = (at + 1..).map(token).take_while(|token| *token == "::" || is_name(token));
        token(*at) == "mut" && path.last() == Some("Plan")
    };
    let is_question = |at: &usize| {
        let Some(begins) =
            (*at..tokens.len()).find(|at| token(*at) == "(" && !token(at - 1).starts_with("Fn"))
        else {
            return false;
        };
        let mut depth = 0;
        let ends = (begins..tokens.len()).find(|at| {
            depth += i32::from(token(*at) == "(") - i32::from(token(*at) == ")");
            depth == 0
        });
        let Some(ends) = ends else { return false };
        [token(ends + 1), token(ends + 2)] == ["-", ">"] && (begins..ends).any(|at| writes_to_plan(&at))
    };
    let functions = (0..tokens.len()).filter(|at| token(*at) == "fn" && is_name(token(at + 1)));
    functions.filter(is_question).map(|at| (tokens[at].0, token(at + 1))).collect()
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
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
    let text = "mod a;\n#[cfg(test)]\nmod tests;\nuse b;\n\n#[cfg(test)]\nmod tests {\n    use c;\n}\n";
    assert_eq!(without_tests(text), "mod a;\n\n\nuse b;\n\n");
}

#[test]
fn this_test_reads_imports() {
    let code = "use std::fmt;\npub use crate::{\n    api::{self, Node as N},\n    citus,\n};\n\
        use super::{super::a::*, b};\nfn f<K>() -> impl Sized + use<K> { crate::act::g::<K>(self::h::I); self.j }\n\
        macro_rules! m { () => { $crate::k!() } }";
    let source = Source { path: "src/plan/step.rs".to_owned(), text: String::new(), code: code.to_owned() };
    let imports = source.imports().into_iter().map(|(line, path)| format!("{line} {}", path.join("::")));
    assert_eq!(
        imports.collect::<Vec<_>>(),
        [
            "3 api::self",
            "3 api::Node",
            "4 citus",
            "6 a::*",
            "6 plan::b",
            "7 act::g",
            "7 plan::step::h::I",
            "8 k"
        ]
    );
}

#[test]
fn this_test_finds_questions_that_write() {
    let code = "fn a(plan: &mut Plan) {}\nfn b(view: View, plan: &mut super::Plan) -> bool { c(|x: u8| -> u8 { x }) }\n\
        fn c<'a>(f: impl Fn(&str) -> bool, plan: &'a Plan) -> Gate {}\n\
        fn d<F: Fn(&str) -> bool>(f: F, plan: &'a mut Plan)\n-> Option<fn(&mut Plan)> {}\n\
        fn e(f: fn(u8) -> u8, plan: &mut Plan) {}";
    assert_eq!(questions_that_write(code), [(2, "b"), (4, "d")]);
}

/// Lists what each room imports: shown with `--nocapture`.
#[test]
fn rooms_import_only_from_floors_below() {
    let floor = |room: &str| FLOORS.iter().position(|rooms| rooms.contains(&room));
    let mut broken = vec![];
    let mut listing: BTreeMap<(usize, String), BTreeSet<String>> = BTreeMap::new();
    for source in sources().iter().filter(|source| source.path != "src/lib.rs") {
        let room = source.module().remove(0);
        let Some(own) = floor(&room) else {
            broken.push(format!("{}: {room} is on no floor", source.path));
            continue;
        };
        let list = listing.entry((own, room.clone())).or_default();
        let closed = CLOSED.iter().find(|(name, _)| *name == room).map(|(_, names)| *names);
        for (line, path) in source.imports() {
            let other = path.first().map_or("the root", String::as_str);
            if other == room {
                continue;
            }
            list.insert(other.to_owned());
            let is_below = floor(other).is_some_and(|floor| floor < own);
            if !is_below || closed.is_some_and(|names| !names.contains(&other)) {
                broken.push(format!("{}:{line}: {room} imports {}", source.path, path.join("::")));
            }
        }
    }
    for ((_, room), imports) in listing.iter().rev() {
        println!("{room} -> {}", imports.iter().map(String::as_str).collect::<Vec<_>>().join(" "));
    }
    none(&broken, "a room imports only from floors below its own, see FLOORS and CLOSED");
}

/// The root of a room speaks for all of its files, and is no part of a circle: what it passes on counts as where it is.
#[test]
fn files_of_a_room_import_each_other_in_no_circle() {
    let sources = sources();
    let modules: BTreeSet<Vec<String>> = sources.iter().map(Source::module).collect();
    let file = |path: &[String]| {
        let lengths = (0..=path.len()).rev();
        lengths.map(|length| path[..length].to_vec()).find(|path| modules.contains(path))
    };
    let mut passed_on = BTreeMap::new();
    for source in sources.iter().filter(|source| source.module().len() == 1) {
        let room = source.module();
        for (_, path) in paths(&source.code) {
            let inside: Vec<String> = room.iter().chain(&path).cloned().collect();
            if let (Some(name), Some(from)) = (path.last(), file(&inside).filter(|from| *from != room)) {
                passed_on.insert([room.as_slice(), std::slice::from_ref(name)].concat(), from);
            }
        }
    }
    let mut arrows: BTreeMap<Vec<String>, BTreeSet<Vec<String>>> = BTreeMap::new();
    for source in &sources {
        let module = source.module();
        if module.len() == 1 {
            continue;
        }
        for (_, path) in source.imports() {
            let other = path.get(..2).and_then(|start| passed_on.get(start).cloned()).or_else(|| file(&path));
            let Some(other) = other.filter(|other| other[0] == module[0] && other.len() > 1) else {
                continue;
            };
            if other != module {
                arrows.entry(module.clone()).or_default().insert(other);
            }
        }
    }
    // What nobody of the rest imports, or what imports nobody of the rest, is in no circle.
    loop {
        let targets: BTreeSet<Vec<String>> = arrows.values().flatten().cloned().collect();
        let before = arrows.clone();
        arrows.retain(|module, _| targets.contains(module));
        let rest: BTreeSet<Vec<String>> = arrows.keys().cloned().collect();
        for others in arrows.values_mut() {
            others.retain(|other| rest.contains(other));
        }
        arrows.retain(|_, others| !others.is_empty());
        if arrows == before {
            break;
        }
    }
    let told = |others: &BTreeSet<Vec<String>>| {
        others.iter().map(|other| other.join("::")).collect::<Vec<_>>().join(", ")
    };
    let circles = arrows.iter().map(|(module, others)| format!("{} -> {}", module.join("::"), told(others)));
    none(&circles.collect::<Vec<_>>(), "move what both need into a file that both look down on");
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
fn questions_of_the_planner_do_not_write() {
    let sources = sources();
    let planner = sources.iter().filter(|source| source.is_in(&["src/plan/"]));
    let broken: Vec<String> = planner
        .flat_map(|source| questions_that_write(&source.code).into_iter().map(|found| (&source.path, found)))
        .map(|(path, (line, name))| format!("{path}:{line}: {name}"))
        .collect();
    none(&broken, "a function that answers returns what it has found (plan/gate.rs), and writes no plan");
}

#[test]
fn the_planner_is_pure() {
    const PURE: &[&str] = &["src/api/", "src/snapshot/", "src/resources/", "src/plan/"];
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
    let mut broken = vec![];
    for source in sources().iter().filter(|source| source.is_in(PURE)) {
        // A lifetime is not a static.
        let code = source.code.replace("'static", "");
        let source = Source { code, path: source.path.clone(), text: String::new() };
        broken.extend(IMPURE.iter().filter_map(|word| source.uses(word)));
    }
    none(&broken, "no client, no clock, no randomness, no async in what decides, builds and is plain data");
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
fn the_kubernetes_client_stays_in_its_room() {
    let allowed = ["src/kubernetes/", "src/main.rs"];
    let mut broken = vec![];
    for source in sources().iter().filter(|source| !source.is_in(&allowed)) {
        let brought = brings(&source.code, "kube", &["Client", "Api"]);
        broken.extend(brought.map(|name| format!("{}: {name}", source.path)));
        broken.extend(["kube::Client", "kube::Api"].iter().filter_map(|name| source.uses(name)));
    }
    none(&broken, "no Kubernetes client there");
}

/// Names of the tests in a file: of each function that follows an attribute of a test.
fn test_names(text: &str) -> Vec<&str> {
    let mut names = vec![];
    let mut is_test = false;
    for line in text.lines().map(str::trim_start) {
        is_test |= ["#[test]", "#[tokio::test", "#[rstest"].iter().any(|start| line.starts_with(start));
        let function = line.trim_start_matches("pub ").trim_start_matches("async ").strip_prefix("fn ");
        let Some(function) = function.filter(|_| is_test) else { continue };
        names.extend(function.split(['(', '<']).next());
        is_test = false;
    }
    names
}

#[test]
fn names_of_tests_are_short() {
    let rust = "fn a() {}\n#[test]\n#[ignore]\nfn b() {}\n  #[rstest]\n  #[case(\n1)]\n  async fn c(#[case] d: u8) {}";
    assert_eq!(test_names(rust), ["b", "c"]);
    let (mut long, mut count) = (vec![], 0);
    for path in rust_files(&["src", "tests", "testkit"]) {
        let text = fs::read_to_string(&path).unwrap();
        let names = test_names(&text);
        count += names.len();
        let too_long = names.into_iter().filter(|name| name.len() > LONGEST_TEST_NAME);
        long.extend(too_long.map(|name| format!("{}: {name}", path.display())));
    }
    assert!(count > 300, "{count} tests");
    none(&long, "a test's name is subject, condition and expectation, and no longer than 60 characters");
}

/// Words that names no longer have: the field's terms took their place (the glossary of ARCHITECTURE.md).
const RETIRED_WORDS: &[&str] = &[
    "aside",
    "begun",
    "beside",
    "besides",
    "booted",
    "born",
    "doing",
    "door",
    "fit",
    "forgotten",
    "hands",
    "hangs",
    "harmed",
    "heal",
    "heals",
    "hurry",
    "lane",
    "lanes",
    "mend",
    "mended",
    "newborn",
    "obey",
    "pace",
    "retire",
    "retired",
    "retires",
    "said",
    "say",
    "seat",
    "soon",
    "stranger",
    "strangers",
    "tell",
    "tidy",
    "told",
    "trials",
    "unborn",
    "unwell",
    "whom",
];

/// The words of a name: `is_free` and `IsFree` have two.
fn words(name: &str) -> Vec<String> {
    let mut words = vec![];
    for part in name.split('_') {
        let mut word = String::new();
        for letter in part.chars() {
            if letter.is_ascii_uppercase() && word.chars().any(|c| c.is_ascii_lowercase()) {
                words.push(std::mem::take(&mut word));
            }
            word.push(letter);
        }
        words.push(word);
    }
    words.into_iter().map(|word| word.to_lowercase()).collect()
}

const KEYWORDS: &[&str] = &["fn", "struct", "enum", "trait", "const", "static", "type", "mod"];

/// The name that a line of code gives to a function, a type, a constant, a module, a field or a variant.
fn named(line: &str) -> Option<&str> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words: Vec<&str> = line.split(|c| !is_name(c)).filter(|word| !word.is_empty()).collect();
    // `const fn a` names a.
    let item = words.windows(2).find(|pair| KEYWORDS.contains(&pair[0]) && !KEYWORDS.contains(&pair[1]));
    if let Some(pair) = item {
        return Some(pair[1]);
    }
    let member = line.trim_start();
    let member = member.strip_prefix("pub ").unwrap_or(member);
    let (name, rest) = member.split_at(member.find(|c| !is_name(c)).unwrap_or(member.len()));
    let is_variant = name.starts_with(|c: char| c.is_ascii_uppercase())
        && (rest.is_empty() || [",", " {", "("].iter().any(|after| rest.starts_with(after)));
    (is_variant || rest.starts_with(": ")).then_some(name)
}

#[test]
fn names_have_no_retired_word() {
    assert_eq!(words("is_Free"), ["is", "free"]);
    assert_eq!(words("WaitingOn"), ["waiting", "on"]);
    assert_eq!(words("MAX_KEPT"), ["max", "kept"]);
    let lines = [
        ("pub(super) async fn hurry(", "hurry"),
        ("pub(super) const fn hurry(", "hurry"),
        ("    pub hurry: bool,", "hurry"),
        ("    Retire {", "Retire"),
        ("    Retire(u8),", "Retire"),
        ("    Retire,", "Retire"),
        ("const BOOTED: u8 = 1;", "BOOTED"),
    ];
    for (line, name) in lines {
        assert_eq!(named(line), Some(name), "{line}");
    }
    assert_eq!(named("        hurry(view);"), None);
    let mut broken = vec![];
    for source in sources() {
        let retired = |name: &str| words(name).iter().any(|word| RETIRED_WORDS.contains(&word.as_str()));
        let names = source.code.lines().filter_map(named).filter(|name| retired(name));
        broken.extend(names.map(|name| format!("{}: {name}", source.path)));
        let module = source.module().into_iter().filter(|part| retired(part));
        broken.extend(module.map(|part| format!("{}: {part}", source.path)));
    }
    none(&broken, "these words were replaced by the field's: see the glossary of ARCHITECTURE.md");
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

/// The variants of an enum without fields, from the source.
fn variants(path: &str, name: &str) -> Vec<String> {
    let source = fs::read_to_string(root().join(path)).unwrap();
    let (_, list) = source.split_once(&format!("enum {name} {{")).expect("the enum");
    let lines = list.split_once("\n}").unwrap().0.lines().map(|line| line.trim().trim_end_matches(','));
    lines.filter(|line| line.starts_with(|c: char| c.is_ascii_uppercase())).map(ToOwned::to_owned).collect()
}

/// The variants are read from the source: a new one cannot be forgotten here.
#[test]
fn the_runbook_has_every_reason_of_a_problem() {
    let reasons = variants("src/plan/problem/reason.rs", "ProblemReason");
    assert!(reasons.len() > 20, "{reasons:?}");
    let runbook = fs::read_to_string(root().join("docs/runbook.md")).unwrap();
    // A row of the table, or a section.
    let told = |reason: &str| {
        let row = format!("| `{reason}` |");
        runbook.lines().any(|line| line.starts_with(&row) || line == format!("## {reason}"))
    };
    let missing: Vec<_> = reasons.into_iter().filter(|reason| !told(reason)).collect();
    none(&missing, "docs/runbook.md does not say what it means");
}

/// What users and their tools read is a contract. The words are read from the source; reasons of `Stalled` are the
/// runbook's, above.
#[test]
fn the_reference_has_every_name_that_users_read() {
    let read = |path: &str| fs::read_to_string(root().join(path)).unwrap();
    // The literals after these words, on the same line or the next.
    let literals = |path: &str, starts: &[&str]| -> Vec<String> {
        let source = read(path);
        let rests = starts.iter().flat_map(|start| source.split(start).skip(1));
        rests
            .filter_map(|rest| rest.trim_start().strip_prefix('"')?.split('"').next().map(ToOwned::to_owned))
            .collect()
    };
    let updates = ["condition_true(", "condition_false(", "condition_unknown("];
    for file in [
        "src/report/conditions.rs",
        "src/report/conditions/balanced.rs",
        "src/report/conditions/reconciling.rs",
    ] {
        assert_eq!(literals(file, &updates), [""; 0], "{file}: a reason is a variant of a type");
    }
    let parts = [
        variants("src/report/conditions/reason.rs", "ConditionReason"),
        variants("src/report/conditions/reconciling.rs", "ReconcilingReason"),
        variants("src/report/events.rs", "EventReason"),
        variants("src/api/status.rs", "NodeState"),
        variants("src/api/status.rs", "Phase"),
        variants("src/api/status.rs", "ConditionType"),
        read("src/api/names.rs")
            .split('"')
            .filter(|t| t.starts_with("dialogcluster.dev/"))
            .map(ToOwned::to_owned)
            .collect(),
        literals("src/metrics.rs", &["registry.register("]),
        literals("src/metrics.rs", &["\n    ("]),
    ];
    let counts: Vec<usize> = parts.iter().map(Vec::len).collect();
    assert!(counts.iter().all(|count| *count > 3), "a list was not found in the source: {counts:?}");
    let reference = read("docs/reference.md");
    let told: BTreeSet<&str> = reference.split('`').skip(1).step_by(2).collect();
    let missing: Vec<_> = parts.concat().into_iter().filter(|word| !told.contains(word.as_str())).collect();
    none(&missing, "docs/reference.md does not say what it means");
}

#[test]
fn every_file_that_the_architecture_names_exists() {
    let architecture = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let quoted = architecture.split('`').skip(1).step_by(2);
    let rooms = ["src/", "tests/", "docs/", "charts/", "testkit/", "infrastructure/"];
    let missing: Vec<_> = quoted
        .filter(|name| rooms.iter().any(|room| name.starts_with(room)) && !root().join(name).exists())
        .map(ToOwned::to_owned)
        .collect();
    none(&missing, "ARCHITECTURE.md names a file that is not there");
}

/// The column "checked on every plan" of the table of invariants is what `invariants.rs` does.
#[test]
fn architecture_says_which_invariants_every_plan_keeps() {
    let number = |text: &str| {
        let digits: String = text.trim_start().chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<u8>().ok()
    };
    let source = ["src/plan/invariants.rs", "src/plan/invariants/removal.rs"]
        .map(|file| fs::read_to_string(root().join(file)).unwrap())
        .concat();
    let mut checked: Vec<_> = source.split("violation(").skip(1).filter_map(number).collect();
    checked.sort_unstable();
    checked.dedup();
    let architecture = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let rows = architecture.lines().filter_map(|line| line.strip_prefix("| "));
    let told: Vec<_> = rows
        .filter_map(|row| Some((number(row)?, row.split('|').nth(2)?.trim())))
        .filter(|(_, checked)| !checked.is_empty())
        .map(|(number, _)| number)
        .collect();
    assert_eq!(told, checked, "the table of invariants in ARCHITECTURE.md");
}
