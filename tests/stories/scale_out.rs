//! One edit of a spec, and the cluster evens itself out, with a writer at work.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use crate::harness::{
    cluster::{Cluster, is, is_ready, is_settled, spec},
    seconds, setting, story,
};
use dialog_operator::api::Node;
use serde_json::json;
use tokio_postgres::error::SqlState;

#[tokio::test(flavor = "multi_thread")]
async fn one_to_two_to_five_workers_under_load() {
    story("scale-out", async |story| {
        let rows = setting("STORY_ROWS", 200_000);
        let _operator = story.operator();
        let cluster = Arc::new(story.settled_cluster("talk", spec(1)).await);
        cluster.load(rows).await;
        let writer = cluster.writer().await;
        let before = cluster.pod_uids().await;

        for (edits, workers) in [(1, 2), (2, 5)] {
            let watch = Watch::start(&cluster, workers).await;
            let edited = Instant::now();
            cluster.edit(json!({"workers": {"replicas": workers}})).await;
            cluster
                .until("all workers are registered", 120, |cluster| is(cluster, "WorkersRegistered", "True"))
                .await;
            let (balanced, seen) = cluster
                .until("Balanced", 180, |cluster| {
                    is_settled(cluster)
                        && cluster.status.as_ref().unwrap().nodes.len() == usize::from(workers) + 1
                })
                .await;
            let times = watch.stop().await;
            let what = format!("to {workers} workers");
            let (last_ready, started, ended) = times.of_job(edits);
            story.figure(&format!("{what}: the whole edit"), seconds(balanced - edited));
            story.figure(&format!("{what}: the job"), seconds(ended - started));
            story.figure_below(
                &format!("{what}: last new pod ready to job started"),
                started - last_ready,
                2.0,
            );
            story.figure_below(&format!("{what}: job ended to Balanced"), balanced - ended, 2.0);
            cluster.assert_even(usize::from(workers)).await;
            let job = seen.status.unwrap().rebalance.unwrap();
            assert_eq!((job.job_id, job.state.as_str()), (edits, "finished"), "one job an edit");
            assert_eq!(
                times.jobs.len(),
                usize::try_from(edits).unwrap(),
                "one job an edit: {:?}",
                times.jobs.keys()
            );
        }

        let ledger = writer.stop().await;
        let figures = ledger.phase("all");
        story.figure("rows written meanwhile", figures.writes);
        story.figure("longest write", seconds(figures.longest));
        assert_eq!(figures.words, Vec::<String>::new(), "writes that failed");
        cluster.assert_kept(&ledger, rows).await;
        let after = cluster.pod_uids().await;
        assert!(before.iter().all(|(pod, life)| after.get(pod) == Some(life)), "{before:?} became {after:?}");
        for reason in ["RebalanceStarted", "RebalanceFinished"] {
            cluster.assert_events(reason, 2).await;
        }
        cluster.assert_events("WorkerJoined", 5).await;
    })
    .await;
}

/// The limit is for clients: what a move copies, and the indexes that it builds, take longer.
#[tokio::test(flavor = "multi_thread")]
async fn a_limit_on_statements_ends_no_move() {
    story("limit", async |story| {
        let rows = setting("STORY_ROWS", 200_000);
        let _operator = story.operator();
        let cluster = story.settled_cluster("talk", spec(1)).await;
        cluster.load(rows).await;
        let limit =
            json!({"postgres": {"parameters": {"statement_timeout": "20ms"}}, "workers": {"replicas": 2}});
        let edited = Instant::now();
        cluster.edit(limit).await;
        let (balanced, seen) = cluster.until_settled_with(2, 120).await;
        story.figure("the whole edit", seconds(balanced - edited));
        cluster.assert_even(2).await;
        let job = seen.status.unwrap().rebalance.unwrap();
        assert_eq!(
            (job.job_id, job.state.as_str(), job.last_error),
            (1, "finished", None),
            "one job, at once"
        );
        assert_eq!(cluster.rows().await, i64::try_from(rows).unwrap());
        let slow = cluster.application().await.batch_execute("SELECT pg_sleep(1)").await.unwrap_err();
        assert_eq!(slow.code(), Some(&SqlState::QUERY_CANCELED), "the limit is one: {slow}");
    })
    .await;
}

/// When pods got ready, and jobs began and ended, to the few milliseconds that a look takes.
struct Watch {
    times: Arc<Mutex<Times>>,
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

#[derive(Clone, Debug, Default)]
struct Times {
    ready: BTreeMap<String, Instant>,
    /// When a job was seen first, and when it was seen ended.
    jobs: BTreeMap<i64, (Instant, Option<Instant>)>,
}

impl Times {
    fn of_job(&self, job: i64) -> (Instant, Instant, Instant) {
        let (started, ended) = self.jobs.get(&job).unwrap_or_else(|| panic!("no job {job}: {self:?}"));
        (*self.ready.values().max().unwrap(), *started, ended.expect("an end"))
    }
}

impl Watch {
    async fn start(cluster: &Arc<Cluster>, workers: u16) -> Self {
        let (times, stop) = (Arc::<Mutex<Times>>::default(), Arc::<AtomicBool>::default());
        let admin = cluster.admin(Node::Coordinator).await;
        let jobs = {
            let (times, stop) = (Arc::clone(&times), Arc::clone(&stop));
            async move {
                let mut tick = tokio::time::interval(Duration::from_millis(20));
                while !stop.load(Ordering::Relaxed) {
                    tick.tick().await;
                    let rows = admin
                        .query("SELECT job_id, finished_at IS NOT NULL FROM pg_dist_background_job", &[]);
                    for row in rows.await.unwrap() {
                        let mut times = times.lock().unwrap();
                        let job = times.jobs.entry(row.get(0)).or_insert((Instant::now(), None));
                        if row.get(1) {
                            job.1.get_or_insert_with(Instant::now);
                        }
                    }
                }
            }
        };
        let pods = {
            let (times, stop, cluster) = (Arc::clone(&times), Arc::clone(&stop), Arc::clone(cluster));
            async move {
                let mut tick = tokio::time::interval(Duration::from_millis(50));
                while !stop.load(Ordering::Relaxed)
                    && times.lock().unwrap().ready.len() <= usize::from(workers)
                {
                    tick.tick().await;
                    for (name, pod) in cluster.pods().await {
                        if is_ready(&pod) {
                            times.lock().unwrap().ready.entry(name).or_insert_with(Instant::now);
                        }
                    }
                }
            }
        };
        Self { times, stop, tasks: vec![tokio::spawn(jobs), tokio::spawn(pods)] }
    }

    async fn stop(self) -> Times {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
        let times = self.times.lock().unwrap();
        times.clone()
    }
}
