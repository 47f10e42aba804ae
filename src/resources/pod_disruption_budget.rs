//! The PodDisruptionBudget: how many nodes an eviction (a drained host, an autoscaler) may take at once.

use k8s_openapi::{
    api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::{
    Inputs, Rendered,
    meta::{About, nodes_selector, owned, render},
};

/// Whether shards are on the move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moving {
    /// They are: no node may be evicted, because its moves would start over.
    Yes,
    /// They are not.
    No,
}

/// Exactly one budget over all nodes: a pod that two budgets select cannot be evicted at all.
#[must_use]
pub fn pod_disruption_budget(inputs: &Inputs, moving: Moving) -> Rendered {
    let cluster = &inputs.desired.cluster;
    let max_unavailable = match moving {
        Moving::Yes => 0,
        Moving::No => 1,
    };
    render(&PodDisruptionBudget {
        metadata: owned(inputs, cluster.name.clone(), About::Cluster),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(max_unavailable)),
            selector: Some(nodes_selector(cluster)),
            // A node that is not Ready protects nobody: a host with such a pod can be drained.
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        status: None,
    })
}
