//! Pods and what keeps them: the questions of the planner and the report about them, in Kubernetes' words. Answers only.

use jiff::SignedDuration;

use super::View;
use crate::{
    api::{Node, names::keys},
    snapshot::{Pod, Warning},
};

/// Longer than a kubelet takes to say that a pod has ended, once its grace is over.
const POD_DELETION_GRACE: SignedDuration = SignedDuration::from_secs(60);

impl<'a> View<'a> {
    /// The pod differs from the one that its StatefulSet would make today, in what is not changed on a running pod.
    #[must_use]
    pub fn update_available(&self, node: Node) -> bool {
        let Some(pod) = self.pod(node) else { return false };
        let newest = self.template_annotation(node, keys::POD_TEMPLATE_HASH);
        newest.is_some_and(|newest| {
            pod.annotations.get(keys::POD_TEMPLATE_HASH).is_some_and(|of_pod| of_pod != newest)
        })
    }
    /// An annotation of the pods that the node's StatefulSet would make today.
    #[must_use]
    pub fn template_annotation(&self, node: Node, key: &str) -> Option<&'a str> {
        let annotations = self.stateful_set(node)?.json.pointer("/spec/template/metadata/annotations")?;
        annotations.get(key)?.as_str()
    }
    /// What controllers say about an object of ours that gets no further.
    #[must_use]
    pub fn warning(&self, kind: &str, name: &str) -> Option<&'a Warning> {
        self.snapshot.warnings.get(&format!("{kind}/{name}"))
    }
    /// The pod was to have ended a while ago: a pod that is being deleted stays for ever when its machine is gone, for
    /// only its kubelet, or the end of its Node, says that it has ended (Kubernetes: "Force Delete StatefulSet Pods").
    #[must_use]
    pub fn is_overdue(&self, pod: &Pod) -> bool {
        pod.deleting
            && pod
                .deletion_timestamp
                .is_some_and(|by| self.snapshot.now.duration_since(by) > POD_DELETION_GRACE)
    }
    pub(super) fn why_still_there(&self, pod: &Pod) -> String {
        match (pod.deletion_timestamp, &pod.node_name) {
            (Some(by), Some(machine)) if self.is_overdue(pod) => format!(
                "pod {} should have ended by {by}, and its Kubernetes node {machine} does not confirm that. If {machine} is gone for good, `kubectl delete node {machine}`: the pod is then created again where its volume can be mounted",
                pod.name
            ),
            _ => format!("pod {} is being deleted", pod.name),
        }
    }
    pub(super) fn why_no_pod(&self, node: Node) -> String {
        match self.warning("StatefulSet", &self.name(node)) {
            Some(refused) => format!("it has no pod yet: {}: {}", refused.reason, refused.message),
            None => "it has no pod yet".to_owned(),
        }
    }
    pub(super) fn why_not_ready(&self, node: Node, pod: &Pod) -> String {
        self.why_no_volume(node, pod).unwrap_or_else(|| why_not_ready(pod))
    }
    /// The scheduler says that a claim is not bound; why, who makes volumes says.
    fn why_no_volume(&self, node: Node, pod: &Pod) -> Option<String> {
        let waiting = pod.waiting.as_ref().filter(|_| pod.node_name.is_none())?;
        let claim = self.claim(node)?;
        let refused = self.warning("PersistentVolumeClaim", claim)?;
        Some(format!(
            "pod {}: {}: {}; volume claim {claim}: {}: {}",
            pod.name, waiting.reason, waiting.message, refused.reason, refused.message
        ))
    }
}

/// The kubelet cannot pull the pod's image.
#[must_use]
pub fn cannot_pull_image(pod: &Pod) -> bool {
    let reasons = ["ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"];
    pod.waiting.as_ref().is_some_and(|waiting| reasons.contains(&waiting.reason.as_str()))
}

fn why_not_ready(pod: &Pod) -> String {
    let last = pod.last_termination.as_ref().filter(|last| !last.message.is_empty());
    match (&pod.waiting, last) {
        (Some(waiting), Some(last)) => {
            format!(
                "pod {}: {}: {} (last end: {})",
                pod.name,
                waiting.reason,
                waiting.message,
                last.message.trim()
            )
        }
        (Some(waiting), None) => format!("pod {}: {}: {}", pod.name, waiting.reason, waiting.message),
        (None, Some(last)) => format!("pod {} is not ready (last end: {})", pod.name, last.message.trim()),
        (None, None) => format!("pod {} is not ready", pod.name),
    }
}
