//! The figures for people, and what is promised of them. Pure text, but for the machine.

use std::{fs, thread};

use crate::measure::Measured;

/// How many times as fast at least.
const TIMES: f64 = 8.0;

/// What the figures depend on.
pub fn machine() -> String {
    let cores = thread::available_parallelism().map_or(0, usize::from);
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default();
    format!("{cores} cores, load average {load}; figures to publish need an idle machine")
}

/// The figures of both, line by line.
pub fn table(defaults: &Measured, operators: &Measured, rows: u64) -> Vec<String> {
    let mut lines = vec![
        format!(
            "{} moves by_shard_count of 32 shards with {rows} messages, while 4 clients insert 200 rows a second, on {}",
            defaults.moves, operators.citus
        ),
        String::new(),
        format!(
            "{:<12}{:>12}{:>20}{:>17}{:>11}{:>10}{:>17}",
            "", "the moves", "asked until done", "longest insert", "p99.9", "inserts", "failed inserts"
        ),
    ];
    for (name, measured) in [("defaults", defaults), ("operator's", operators)] {
        let inserts = &measured.inserts;
        lines.push(format!(
            "{name:<12}{:>10.1} s{:>18.1} s{:>14} ms{:>8} ms{:>10}{:>17}",
            measured.took.as_secs_f64(),
            measured.asked.as_secs_f64(),
            inserts.longest.as_millis(),
            inserts.p999.as_millis(),
            inserts.writes,
            inserts.failed_tries
        ));
        lines.extend(inserts.words.iter().map(|words| format!("    an insert was told: {words}")));
    }
    lines
}

fn times(defaults: &Measured, operators: &Measured) -> f64 {
    defaults.took.as_secs_f64() / operators.took.as_secs_f64()
}

/// What is promised, and whether it was kept.
pub fn promises(defaults: &Measured, operators: &Measured) -> Vec<(bool, String)> {
    let times = times(defaults, operators);
    let same = |all: fn(&Measured) -> bool| all(defaults) && all(operators);
    vec![
        (times >= TIMES, format!("at least {TIMES} times as fast: {times:.1}")),
        (
            operators.inserts.failed_tries == 0,
            format!("no insert failed in a cluster of the operator: {}", operators.inserts.failed_tries),
        ),
        (
            same(|measured| measured.moves == 16 && measured.shards == [16, 16]),
            format!("the same 16 moves, to 16 / 16: {:?} and {:?}", defaults.shards, operators.shards),
        ),
        (
            same(|measured| measured.rows.0 == measured.rows.1),
            format!("every row is there: {} and {}", defaults.rows.0, operators.rows.0),
        ),
    ]
}
