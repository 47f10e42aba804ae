//! The PodDisruptionBudget: how many nodes an eviction (a drained host, an autoscaler) may take at once.

use k8s_openapi::{
    api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::{
    BuildContext, Manifest,
    meta::{Component, nodes_selector, owned, render},
};

/// How many nodes an eviction may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evictions {
    /// None, while shards move: the moves of an evicted node would start over.
    Block,
    /// One node at a time.
    AllowOne,
}

/// Exactly one budget over all nodes: a pod that two budgets select cannot be evicted at all.
#[must_use]
pub fn pod_disruption_budget(inputs: &BuildContext, evictions: Evictions) -> Manifest {
    let cluster = &inputs.desired.cluster;
    let max_unavailable = match evictions {
        Evictions::Block => 0,
        Evictions::AllowOne => 1,
    };
    render(&PodDisruptionBudget {
        metadata: owned(inputs, cluster.name.clone(), Component::Cluster),
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
