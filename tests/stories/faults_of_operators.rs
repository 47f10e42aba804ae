//! What happens to operators: one is killed in the middle of a drain, the Lease is lost, two are at work at once, a
//! clock is wrong; with a writer at work.

use std::time::{Duration, Instant};

use dialog_operator::api::Node;
use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::api::{DeleteParams, PostParams};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use crate::harness::{
    busy::Busy,
    cluster::{Cluster, is_settled_with, spec},
    machine::Fault,
    operator::Operator,
    setting, story, wait,
};

/// Name of the Lease.
pub const LEASE: &str = "dialog-operator";
/// How long somebody else holds the Lease, and a stopped operator stands still: longer than a Lease binds.
const AWAY: Duration = Duration::from_secs(20);

/// No fault of an operator touches a server: no write has failed.
async fn end(cluster: Busy<'_>) {
    assert_eq!(cluster.end().await, Vec::<String>::new(), "writes that failed");
}

/// Nobody holds the Lease any more.
pub async fn lose_lease(cluster: &Cluster) {
    let _ = cluster.api::<Lease>().delete(LEASE, &DeleteParams::default()).await;
}

/// Somebody who never renews it takes the Lease.
pub async fn take_lease(cluster: &Cluster) {
    let leases = cluster.api::<Lease>();
    wait::eventually("somebody else holds the Lease", Duration::from_secs(20), async || {
        let mut lease = leases.get(LEASE).await?;
        let now = Some(MicroTime(Timestamp::now()));
        lease.spec = Some(LeaseSpec {
            holder_identity: Some("somebody-else".to_owned()),
            lease_duration_seconds: i32::try_from(AWAY.as_secs()).ok(),
            acquire_time: now.clone(),
            renew_time: now,
            ..LeaseSpec::default()
        });
        leases.replace(LEASE, &PostParams::default(), &lease).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_the_middle_of_a_drain() {
    story("killed-operator", async |story| {
        let seed = setting("STORY_SEED", u64::from(rand::random::<u32>()));
        story.figure("STORY_SEED", seed);
        let mut random = StdRng::seed_from_u64(seed);
        let mut operator = story.operator();
        let cluster = story.busy_cluster(spec(4)).await;

        // While a move out of the worker that goes is held open.
        let held = cluster.hold_moves_from(Node::Worker(3)).await;
        cluster.scale(3).await;
        held.until_waited_for().await;
        let killed = Instant::now();
        operator.kill();
        lose_lease(&cluster).await;
        operator = story.operator();
        operator.until_it_leads().await;
        drop(held);
        cluster.settles("killed in a move of a drain", killed, 3).await;

        // And at any moment from the edit to the last worker gone.
        let edited = Instant::now();
        cluster.scale(1).await;
        let mut in_time = 0;
        for _ in 0..8 {
            let life = wait::patient(Duration::from_millis(random.random_range(0..2500)));
            let settled = cluster.until("settled", 600, |cluster| is_settled_with(cluster, 1));
            in_time += usize::from(tokio::time::timeout(life, settled).await.is_err());
            operator.kill();
            lose_lease(&cluster).await;
            operator = story.operator();
            operator.until_it_leads().await;
        }
        story.figure("killed before the drains were over, times", in_time);
        cluster.settles("killed again and again", edited, 1).await;
        end(cluster).await;
        drop(operator);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lease_is_lost_and_two_are_at_work() {
    story("lost-lease", async |story| {
        let operators = [story.operator(), story.operator()];
        let cluster = story.busy_cluster(spec(3)).await;

        let held = cluster.hold_moves_from(Node::Worker(2)).await;
        cluster.scale(2).await;
        held.until_waited_for().await;
        let lost = Instant::now();
        lose_lease(&cluster).await;
        drop(held);
        cluster.settles("the Lease deleted", lost, 2).await;

        let held = cluster.hold_moves_from(Node::Worker(0)).await;
        cluster.scale(4).await;
        held.until_waited_for().await;
        let lost = Instant::now();
        take_lease(&cluster).await;
        drop(held);
        cluster.settles("the Lease taken for 20 s", lost, 4).await;

        // The one that leads stands still until the other one leads, and then wakes up in the belief that it leads.
        let held = cluster.hold_moves_from(Node::Worker(3)).await;
        cluster.scale(2).await;
        held.until_waited_for().await;
        let stopped = Instant::now();
        let [leader, other] = leader_first(&cluster, &operators).await;
        let asleep = Fault::stop_process("the leader is stopped", leader.process());
        drop(held);
        wait::eventually("the other one leads", Duration::from_mins(1), async || {
            if holds(&cluster, other).await { Ok(()) } else { Err("it does not") }
        })
        .await;
        drop(asleep);
        cluster.settles("the leader asleep", stopped, 2).await;
        assert!(holds(&cluster, other).await, "the one that slept does not take the Lease back");
        end(cluster).await;
    })
    .await;
}

/// Whether the Lease names this operator.
pub async fn holds(cluster: &Cluster, operator: &Operator) -> bool {
    let lease = cluster.api::<Lease>().get_opt(LEASE).await.unwrap();
    let holder = lease.and_then(|lease| lease.spec?.holder_identity).unwrap_or_default();
    !holder.is_empty() && operator.logged().contains(&format!("identity=\"{holder}\""))
}

async fn leader_first<'a>(cluster: &Cluster, operators: &'a [Operator; 2]) -> [&'a Operator; 2] {
    let [one, two] = operators;
    if holds(cluster, one).await { [one, two] } else { [two, one] }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clock_is_an_hour_off() {
    story("clock", async |story| {
        let mut operator = story.operator_at("+1h");
        let cluster = story.busy_cluster(spec(1)).await;
        assert_clock_is_off(&operator);
        for (shift, workers) in [("-1h", 3), ("+1h", 1), ("-1h", 2), ("+1h", 4)] {
            operator.kill();
            lose_lease(&cluster).await;
            operator = story.operator_at(shift);
            operator.until_it_leads().await;
            assert_clock_is_off(&operator);
            let edited = Instant::now();
            cluster.scale(workers).await;
            cluster.settles(&format!("a clock at {shift}"), edited, workers).await;
        }
        end(cluster).await;
    })
    .await;
}

/// The first line of its log says another hour.
fn assert_clock_is_off(operator: &Operator) {
    let log = operator.logged();
    let said: Timestamp = log.split_whitespace().next().unwrap().parse().unwrap();
    let off = said.duration_since(Timestamp::now()).abs().as_secs();
    assert!(off > 1800, "libfaketime is not at work (Debian's package faketime): {said}");
}
