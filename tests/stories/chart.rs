//! The operator as people run it: from the chart, as a pod, with the rights and the confinement of the chart alone.

use std::{process::Command, time::Duration};

use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams},
};
use testkit::kubernetes;

use crate::harness::{cluster::spec, story, wait};

#[tokio::test(flavor = "multi_thread")]
async fn operator_from_the_chart_makes_a_cluster_and_leaves_it() {
    story("chart", async |story| {
        let images = testkit::repository("infrastructure/local-kubernetes/images.sh");
        testkit::run(Command::new(images).args(["operator", env!("CARGO_BIN_EXE_dialog-operator")]));
        let helm = |arguments: &[&str]| {
            testkit::run(kubernetes::tool("helm").args(["--namespace", &story.namespace]).args(arguments))
        };
        let chart = testkit::repository("charts/dialog-operator");
        helm(&[
            "install",
            "dialog-operator",
            chart.to_str().unwrap(),
            // A story's namespace has the chart's roles already, for operators outside of the cluster.
            "--take-ownership",
            // The stories share one CRD; tests/chart.rs has the chart's own.
            "--set=crds.install=false",
            &format!("--set=watchNamespaces={{{}}}", story.namespace),
            "--set=image.repository=localhost/dialog-operator,image.tag=dev",
            &format!("--set=defaultPostgresImage={}", crate::harness::image()),
        ]);
        let cluster = story.settled_cluster("talk", spec(2)).await;
        cluster.load(1_000).await;

        let pods: Api<Pod> = cluster.api();
        let operators =
            ListParams::default().labels("app.kubernetes.io/name=dialog-operator,!dialogcluster.dev/cluster");
        let operators = pods.list(&operators).await.unwrap().items;
        assert_eq!(
            operators.len(),
            2,
            "{:?}",
            operators.iter().map(ResourceExt::name_any).collect::<Vec<_>>()
        );
        for pod in &operators {
            let spec = pod.spec.as_ref().unwrap();
            let confined = spec.containers[0].security_context.as_ref().unwrap();
            assert_eq!(confined.read_only_root_filesystem, Some(true));
            assert_eq!(
                confined.run_as_non_root.or(spec.security_context.as_ref().unwrap().run_as_non_root),
                Some(true)
            );
        }
        let log = story.kubectl(&[
            "logs",
            "--selector=app.kubernetes.io/name=dialog-operator",
            "--tail=-1",
            "--prefix",
        ]);
        assert!(!log.contains("forbidden"), "the chart's rights are enough: {log}");

        // One of the two goes, and the other one works.
        let gone = operators[0].name_any();
        pods.delete(&gone, &DeleteParams::default()).await.unwrap();
        cluster.edit(serde_json::json!({"workers": {"replicas": 3}})).await;
        cluster.until_settled(90).await;
        cluster.assert_even(3).await;

        let pod_uids = cluster.pod_uids().await;
        helm(&["uninstall", "dialog-operator", "--wait"]);
        let deployments: Api<Deployment> = cluster.api();
        wait::eventually("the operator is gone", Duration::from_mins(1), async || {
            let left = deployments.list(&ListParams::default()).await.unwrap().items;
            if left.is_empty() { Ok(()) } else { Err(format!("{} Deployments", left.len())) }
        })
        .await;
        cluster.get().await;
        assert_eq!(cluster.pod_uids().await, pod_uids, "the servers go on without their operator");
        assert_eq!(cluster.rows().await, 1_000);
    })
    .await;
}
