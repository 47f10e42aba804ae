//! Stories: the real operator, a real Kubernetes, real servers. Each has a namespace and an operator of its own, at most
//! two are told at a time (one that disturbs the whole machine alone), every wait has a deadline and says what was seen
//! when it passes. `STORIES_PARALLEL`, `STORY_ROWS`, `STORY_REST_SECONDS`, `STORY_API_AWAY_SECONDS` and `STORY_SEED` change
//! how much is done; `STORY_PATIENCE` multiplies every deadline for a machine that has more to do, and `STORY_ACCOUNT=1`
//! shows the account of a story that went well, too. `CHAOS_SECONDS` and `CHAOS_SEED` are for `make chaos`.

#![allow(
    clippy::unwrap_used,
    clippy::large_futures,
    clippy::expect_used,
    clippy::panic,
    clippy::too_many_lines
)]

mod harness;

mod bad_images;
mod bad_parameters;
mod birth;
mod chaos;
mod chart;
mod contents;
mod crashes;
mod faults_of_machine;
mod faults_of_operators;
mod faults_of_servers;
mod force_remove;
mod join_timeout;
mod kubernetes_refuses;
mod left_behind;
mod moves_fail;
mod obstacles;
mod partitions;
mod rest;
mod scale_in;
mod scale_out;
mod schema;
mod secrets;
mod states;
mod takeover;
mod volumes;
mod wal_level;
