//! Images that cannot be used: refused, and nothing is restarted.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{
    cluster::{condition, is, is_stalled, spec},
    refused_image, story, wait,
};

#[tokio::test(flavor = "multi_thread")]
async fn images_that_cannot_be_used_are_refused() {
    story("images", async |story| {
        let _operator = story.operator();
        let cluster = story.settled_cluster("talk", spec(2)).await;
        cluster.load(1_000).await;
        let born = cluster.pod_uids().await;

        for (image, reason, words) in [
            (&*refused_image("other-major"), "UpgradeNotSupported", "PostgreSQL 99"),
            (&refused_image("other-citus"), "UpgradeNotSupported", "Citus"),
            ("localhost/nothing:here", "ImageNotUsable", "localhost/nothing:here"),
        ] {
            cluster.edit(json!({"image": image})).await;
            let (_, seen) = cluster
                .until(&format!("{image} is refused"), 90, |cluster| is_stalled(cluster, reason))
                .await;
            let message = condition(&seen, "Stalled").unwrap().message.clone();
            story.figure(image, &message);
            assert!(message.contains(words) && message.contains("spec.image"), "{message}");
            assert!(is(&seen, "Ready", "True"), "the cluster serves");
            assert_eq!(cluster.pod_uids().await, born, "{image} restarts nobody");
            cluster.edit(json!({"image": Value::Null})).await;
            cluster.until_settled(30).await;
        }
        wait::eventually(
            "pods that asked what is in an image are gone",
            Duration::from_mins(1),
            async || {
                let pods = story.kubectl(&["get", "pods", "-o", "name"]);
                if pods.contains("-image-") { Err(pods) } else { Ok(()) }
            },
        )
        .await;
        assert_eq!(cluster.pod_uids().await, born);
        assert_eq!(cluster.rows().await, 1_000);
    })
    .await;
}
