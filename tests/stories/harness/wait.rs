//! Waiting: for a condition, until a deadline, which says what was seen last.

use std::{
    fmt::Display,
    time::{Duration, Instant},
};

/// Between two looks.
const TICK: Duration = Duration::from_millis(50);

/// A deadline, as `STORY_PATIENCE` makes it.
pub fn patient(deadline: Duration) -> Duration {
    deadline * u32::try_from(super::setting("STORY_PATIENCE", 1)).unwrap()
}

/// Looks until there is an answer. What is in the way is shown when the deadline passes.
// Not `testkit::eventually`: some looks here change what they have captured, which needs AsyncFnMut; the futures of that
// are not known to be Send, and the benchmark spawns what waits by that one.
pub async fn eventually<T, E: Display>(
    what: &str,
    deadline: Duration,
    mut look: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let deadline = patient(deadline);
    let started = Instant::now();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let Ok(looked) = tokio::time::timeout(deadline, look()).await else {
            panic!("not within {deadline:?}: {what}; a look took as long");
        };
        match looked {
            Ok(answer) => return answer,
            Err(seen) => {
                assert!(started.elapsed() < deadline, "not within {deadline:?}: {what}; last seen: {seen}");
            }
        }
    }
}

/// Looks for a while, and fails as soon as something is wrong.
pub async fn throughout<E: Display>(
    what: &str,
    time: Duration,
    mut look: impl AsyncFnMut() -> Result<(), E>,
) {
    let started = Instant::now();
    let mut tick = tokio::time::interval(TICK * 4);
    while started.elapsed() < time {
        tick.tick().await;
        if let Err(wrong) = look().await {
            panic!("not throughout {time:?}: {what}: {wrong}");
        }
    }
}
