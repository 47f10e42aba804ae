//! A scenario of the model as a log that people read: what was asked for, each step with its reason, and waits, problems
//! and conditions when they change. Nothing in it is random, and what a log does not need (uids, names made of hashes)
//! is left out. No scenario is told here.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::Path,
};

use jiff::Timestamp;

use super::super::*;

/// Columns of a log.
const WIDTH: usize = 118;
/// What happened stands behind the time and one word for what it is.
const INDENT: usize = 17;

/// A model, and the log of what happens in it from 01:00:00 on.
pub struct Log {
    pub world: World,
    told: Told,
}

/// What was told, and what it was told of: only what changes is told again.
#[derive(Default)]
struct Told {
    text: String,
    time: String,
    refused: BTreeSet<String>,
    waits: BTreeSet<String>,
    problems: BTreeSet<String>,
    conditions: BTreeMap<String, String>,
    ready: BTreeSet<Node>,
    job: Option<(i64, snapshot::JobState)>,
    /// Volume claims, as they are called in the log.
    claims: BTreeMap<String, String>,
}

impl Log {
    pub fn new(what: &str, mut world: World) -> Self {
        world.now = "2026-01-01T01:00:00Z".parse().unwrap();
        let mut told = Told { text: format!("# {what}\n"), ..Told::default() };
        // What is so at the beginning is no news.
        for key in world.objects.keys() {
            key.strip_prefix("PersistentVolumeClaim/").into_iter().for_each(|claim| told.call(claim));
        }
        told.look_at_world(&world, true);
        told.look_at_status(&world);
        told.text.truncate(told.text.find('\n').unwrap() + 1);
        told.time.clear();
        Self { world, told }
    }

    /// Somebody does something, or something happens to the cluster.
    pub fn happens(&mut self, what: &str, how: impl FnOnce(&mut World)) {
        self.told.text.push('\n');
        self.told.line(self.world.now, "HAPPENS", what);
        how(&mut self.world);
    }

    /// Until nothing is planned and nothing changes.
    pub fn rests(&mut self) {
        let told = &mut self.told;
        settle_and(&mut self.world, |world, plan| told.look(world, plan));
        let here = self.at_rest();
        self.told.line(self.world.now, "at rest", &here);
    }

    /// For so many seconds.
    pub fn passes(&mut self, seconds: u32) {
        for _ in 0..seconds {
            let plan = self.world.reconcile(None);
            self.told.look(&self.world, &plan);
            self.world.tick();
        }
    }

    /// Where shards, data and volumes are in the end.
    fn at_rest(&self) -> String {
        let world = &self.world;
        let mut text = "shards:".to_owned();
        for row in world.nodes.iter().filter(|row| row.group_id > 0) {
            let node = row.name.split('.').next().unwrap().trim_start_matches("dialogs-");
            let shards = world.placements.values().filter(|group| **group == row.group_id).count();
            write!(text, " {node} {shards}").unwrap();
        }
        let drained = drained(world);
        if !drained.is_empty() {
            let names: Vec<&str> =
                drained.iter().filter_map(|(key, _)| Some(key.split_once('/')?.1)).collect();
            write!(text, "; kept: {}", names.join(", ")).unwrap();
        }
        let restarts: Vec<String> =
            world.restarts.iter().map(|(node, times)| format!("{node} {times}")).collect();
        if !restarts.is_empty() {
            write!(text, "; restarts: {}", restarts.join(", ")).unwrap();
        }
        text
    }

    /// Compares with the log under version control.
    pub fn ends(self, name: &str) {
        assert_kept(&format!("tests/plan_converges/golden/{name}.txt"), &self.told.text);
    }
}

impl Told {
    fn look(&mut self, world: &World, plan: &Plan) {
        self.look_at_world(world, true);
        self.look_at_steps(world);
        self.look_at_world(world, false);
        let waits: Vec<String> = plan.waits.iter().map(ToString::to_string).collect();
        let news = waits.iter().filter(|wait| !self.waits.contains(*wait));
        for wait in of_nodes(news) {
            self.line(world.now, "waits", &wait);
        }
        self.waits = waits.into_iter().collect();
        let told = plan.problems.iter().map(|problem| format!("{}: {problem}", problem.reason()));
        let problems: BTreeSet<String> = told.collect();
        let reason = |problem: &String| problem.split(':').next().unwrap().to_owned();
        let (new, gone) = (&problems - &self.problems, &self.problems - &problems);
        for problem in &new {
            self.line(world.now, "PROBLEM", problem);
        }
        let open: BTreeSet<String> = problems.iter().map(reason).collect();
        let solved: BTreeSet<String> = gone.iter().map(reason).filter(|one| !open.contains(one)).collect();
        for reason in solved {
            self.line(world.now, "solved", &reason);
        }
        self.problems = problems;
        self.look_at_status(world);
    }

    /// What happened by itself before the steps, and then what came of them.
    fn look_at_world(&mut self, world: &World, before: bool) {
        let ready: BTreeSet<Node> = world.pods.keys().copied().filter(|node| world.answers(*node)).collect();
        let (what, changed) =
            if before { ("answers", &ready - &self.ready) } else { ("down", &self.ready - &ready) };
        if !changed.is_empty() {
            let names: Vec<String> = changed.iter().map(ToString::to_string).collect();
            self.line(world.now, "world", &format!("{what}: {}", names.join(", ")));
        }
        self.ready.extend(ready.iter().copied());
        if !before {
            self.ready = ready;
        }
        let Some(job) = world.job.as_ref().map(|model| &model.job) else { return };
        let now = Some((job.id, job.state.clone()));
        if now != self.job && before == job.has_ended() {
            let done = format!("job {} is {}, {} moves done", job.id, job.state, moves_done(world));
            self.line(world.now, "world", &done);
            self.job = now;
        }
    }

    /// Steps of one kind for one reason stand on one line; what is refused again and again is told once.
    fn look_at_steps(&mut self, world: &World) {
        let mut groups: Vec<(&str, String, Vec<String>)> = Vec::new();
        let (mut tried, mut refused) = (BTreeSet::new(), BTreeSet::new());
        for (planned, result) in &world.tried {
            if let Step::Kubernetes(KubernetesStep::Create(object)) = &planned.step
                && object.kind == "PersistentVolumeClaim"
            {
                self.call(&object.name);
            }
            let what = planned.step.to_string();
            tried.insert(what.clone());
            let (word, why) = match result {
                Ok(()) => ("step", &planned.why),
                Err(failure) => ("REFUSED", &failure.message),
            };
            if result.is_err() {
                refused.insert(what.clone());
                if self.refused.contains(&what) {
                    continue;
                }
            }
            let why = if result.is_ok() { about_it(&what, why) } else { why.clone() };
            let like = groups.iter_mut().find(|(of, because, all)| {
                *of == word && *because == why && all[0].split(' ').next() == what.split(' ').next()
            });
            match like {
                Some((_, _, all)) => all.push(what),
                None => groups.push((word, why, vec![what])),
            }
        }
        for (word, why, all) in groups {
            self.line(world.now, word, &format!("{}: {why}", together(&all)));
        }
        self.refused.retain(|what| !tried.contains(what));
        self.refused.extend(refused);
    }

    /// A claim's name ends in characters of a hash: in the log they are numbered.
    fn call(&mut self, claim: &str) {
        let node = claim.rsplit_once('-').unwrap().0;
        if !self.claims.contains_key(claim) {
            let before = self.claims.keys().filter(|other| other.rsplit_once('-').unwrap().0 == node).count();
            self.claims.insert(claim.to_owned(), format!("{node}-volume{}", before + 1));
        }
    }

    fn look_at_status(&mut self, world: &World) {
        let Some(status) = &world.cluster.status else { return };
        let now = status.conditions.iter().map(|condition| {
            (
                condition.type_.clone(),
                format!("{}={} ({})", condition.type_, condition.status, condition.reason),
            )
        });
        let now: BTreeMap<String, String> = now.collect();
        let news = status.conditions.iter().map(|condition| &condition.type_);
        let news = news.filter(|kind| now.get(*kind) != self.conditions.get(*kind));
        let news: Vec<&str> = news.map(|kind| now[kind].as_str()).collect();
        if !news.is_empty() {
            self.line(world.now, "status", &news.join(", "));
        }
        self.conditions = now;
    }

    fn line(&mut self, now: Timestamp, word: &str, what: &str) {
        let time = now.strftime("%M:%S").to_string();
        let shown = if time == self.time && word != "HAPPENS" { "" } else { &time };
        let mut line = format!("{shown:<7}{word:<9} ");
        let mut column = INDENT;
        for part in self.redacted(what).split(' ') {
            let length = part.chars().count();
            if column > INDENT && column + 1 + length > WIDTH {
                line = format!("{}\n{:INDENT$}", line.trim_end(), "");
                column = INDENT;
            }
            write!(line, "{part} ").unwrap();
            column += length + 1;
        }
        self.text.push_str(line.trim_end());
        self.text.push('\n');
        self.time = time;
    }

    /// Without what is made of hashes and numbers that are nobody's business.
    fn redacted(&self, what: &str) -> String {
        let mut text = what.replace("2026-01-01T01:", "").replace(" 01:", " ");
        for (claim, name) in &self.claims {
            text = text.replace(claim, name);
        }
        let mut redacted = String::new();
        for part in text.split_inclusive(|c: char| !c.is_ascii_alphanumeric() && c != '-') {
            let word = part.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
            let rest = &part[word.len()..];
            let all = |is: fn(&char) -> bool| word.chars().all(|c| is(&c));
            redacted.push_str(match word.len() {
                19 if all(char::is_ascii_digit) => "<system identifier>",
                16 if all(char::is_ascii_hexdigit) => "<hash>",
                36 if word.starts_with("00000000-") => "<uid>",
                _ => word,
            });
            redacted.push_str(rest);
        }
        redacted
    }
}

/// The reason of a step in words that are those of the same step on another node or object.
fn about_it(what: &str, why: &str) -> String {
    let object = what.split_once(' ').map(|(_, object)| object).filter(|object| object.contains('/'));
    let mut why = object.map_or_else(|| why.to_owned(), |object| why.replace(object, "it"));
    for node in (0..10).map(Node::Worker).chain([Node::Coordinator]) {
        if what.contains(&node.to_string()) {
            let name = node.object_name("dialogs");
            why = why.replace(&format!("{name}.shop.svc.cluster.local"), "it").replace(&name, "it");
        }
    }
    why
}

/// The same wait for several nodes stands on one line.
fn of_nodes<'a>(waits: impl Iterator<Item = &'a String>) -> Vec<String> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let mut groups: Vec<(String, Vec<&str>)> = Vec::new();
    for wait in waits {
        let is_node = |word: &&str| word.strip_prefix("worker-").is_some_and(|n| n.parse::<u16>().is_ok());
        let node = wait.split(|c| !is_word(c)).find(is_node).unwrap_or_default();
        let pattern = if node.is_empty() { wait.clone() } else { wait.replace(node, "\0") };
        match groups.iter_mut().find(|(like, _)| *like == pattern) {
            Some((_, nodes)) => nodes.push(node),
            None => groups.push((pattern, vec![node])),
        }
    }
    let told = groups.into_iter().map(|(pattern, nodes)| match nodes.as_slice() {
        [node] => pattern.replace('\0', node),
        nodes => pattern.replacen('\0', &nodes.join(", "), 1).replace('\0', "*"),
    });
    told.collect()
}

/// `creating a now`, `creating b now`: `creating a, b now`.
fn together(all: &[String]) -> String {
    let all: Vec<Vec<&str>> = all.iter().map(|one| one.split(' ').collect()).collect();
    let least = all.iter().map(Vec::len).min().unwrap() - 1;
    let same = |of: &dyn Fn(&Vec<&'_ str>) -> String| all.iter().all(|one| of(one) == of(&all[0]));
    let start = (0..least).take_while(|at| same(&|one| one[*at].to_owned())).count();
    let end = (0..least - start).take_while(|at| same(&|one| one[one.len() - 1 - at].to_owned())).count();
    let rest: Vec<String> = all.iter().map(|one| one[start..one.len() - end].join(" ")).collect();
    let (first, last) = (&all[0][..start], &all[0][all[0].len() - end..]);
    [first, &[&*rest.join(", ")], last].concat().join(" ")
}

/// What is under version control is what comes out now; with UPDATE_GOLDEN=1 it is written.
pub fn assert_kept(path: &str, now: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&file, now).unwrap();
        return;
    }
    let kept = fs::read_to_string(&file).unwrap_or_default();
    assert!(
        kept == now,
        "{path} is not what happens now. `make golden` writes all of these again, for you to read what changes:\n{}",
        difference(&kept, now)
    );
}

/// Lines that are no longer there (`-`) and new ones (`+`), between the first and the last that differ.
fn difference(before: &str, after: &str) -> String {
    let (before, after): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    let same = |(one, other): &(&&str, &&str)| one == other;
    let start = before.iter().zip(&after).take_while(same).count();
    let (old, new) = (&before[start..], &after[start..]);
    let end = old.iter().rev().zip(new.iter().rev()).take_while(same).count();
    let (old, new) = (&old[..old.len() - end], &new[..new.len() - end]);
    let context = before[start.saturating_sub(3)..start].iter().map(|line| format!("  {line}"));
    let lines = context
        .chain(old.iter().take(40).map(|line| format!("- {line}")))
        .chain(new.iter().take(40).map(|line| format!("+ {line}")));
    format!("  ... line {}\n{}", start + 1, lines.collect::<Vec<_>>().join("\n"))
}

#[test]
fn a_difference_is_shown_with_what_stands_before_it() {
    assert_eq!(difference("a\nb\nc\nd", "a\nx\ny\nd"), "  ... line 2\n  a\n- b\n- c\n+ x\n+ y");
    assert_eq!(difference("a\nb", "a\nb\nc"), "  ... line 3\n  a\n  b\n+ c");
}

#[test]
fn what_is_alike_stands_on_one_line() {
    let text = |all: &[&str]| all.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>();
    assert_eq!(together(&text(&["make a b now", "make c now"])), "make a b, c now");
    assert_eq!(together(&text(&["make a", "make b"])), "make a, b");
    assert_eq!(together(&text(&["make it"])), "make it");
    let waits =
        text(&["worker-1: pod x-worker-1 is not ready", "no *", "worker-2: pod x-worker-2 is not ready"]);
    assert_eq!(of_nodes(waits.iter()), ["worker-1, worker-2: pod x-* is not ready", "no *"]);
}
