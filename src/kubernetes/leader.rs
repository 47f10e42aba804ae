//! Leader election by a Lease, as client-go does it: only the holder reconciles. A Lease is taken and renewed by a
//! replace of exactly the version that was read, so two can never both believe that they won, and its age is measured
//! by this machine's own clock since it last changed, so clocks may differ. What the leader does is not decided here.

use std::{future::Future, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{ApiClient, ApiError};

/// How long a Lease that is not renewed still binds the others.
const DURATION: Duration = Duration::from_secs(15);
/// A leader that could not renew for so long steps down, well before another one may take over.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Pause between two looks of the leader: each is a write.
const RENEW_PERIOD: Duration = Duration::from_secs(3);
/// Pause between two looks of a standby: each is a read, and the longest wait after a graceful end of the leader.
const RETRY_PERIOD: Duration = Duration::from_secs(1);

/// Where the Lease is and who this operator is in it.
#[derive(Clone, Debug)]
pub struct LeaseIdentity {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of the Lease.
    pub name: String,
    /// This process and no other one: a restarted container is another one.
    pub identity: String,
}

/// Tells whether this operator leads.
#[derive(Clone)]
pub struct LeaderGuard {
    client: ApiClient,
    candidate: LeaseIdentity,
    leading: watch::Receiver<bool>,
}

/// This operator may not go on.
#[derive(Debug, thiserror::Error)]
pub enum LeadershipError {
    /// Another one holds the Lease, or nobody.
    #[error("the Lease {0} is held by {1}, not by this operator ({2}): nothing disruptive is done")]
    Other(String, String, String),
    /// The Lease could not be read.
    #[error("the Lease {0} could not be read, so nothing disruptive is done: {1}")]
    Unknown(String, String),
}

impl LeaderGuard {
    /// Reads the Lease again.
    ///
    /// # Errors
    /// When this operator does not hold it, or nobody can tell.
    pub async fn still_held(&self) -> Result<(), LeadershipError> {
        let LeaseIdentity { namespace, name, identity } = &self.candidate;
        let place = format!("{namespace}/{name}");
        let lease = match self.client.lease(namespace, name).await {
            Ok(lease) => lease,
            Err(error) => return Err(LeadershipError::Unknown(place, error.to_string())),
        };
        let holder = lease.as_ref().and_then(holder).unwrap_or("nobody");
        if holder == identity && *self.leading.borrow() {
            return Ok(());
        }
        Err(LeadershipError::Other(place, holder.to_owned(), identity.clone()))
    }
    /// Whether this operator led when it last looked: no request.
    #[must_use]
    pub fn leads(&self) -> bool {
        *self.leading.borrow()
    }
    /// Waits until this operator leads (`true`) or no longer leads (`false`).
    pub async fn wait_until(&self, leads: bool) {
        // An error means that the elector is gone, which only happens when the program ends.
        let _ = self.leading.clone().wait_for(|now| *now == leads).await;
    }
}

/// Takes part in the election until `stop` is cancelled, then gives the Lease back. The second value is to be awaited
/// at the end of the program.
pub fn elect(
    client: ApiClient,
    candidate: LeaseIdentity,
    stop: CancellationToken,
) -> (LeaderGuard, impl Future<Output = ()> + Send) {
    let (sender, leading) = watch::channel(false);
    let guard = LeaderGuard { client: client.clone(), candidate: candidate.clone(), leading };
    let elector = Elector { client, candidate, seen: None, renewed: None, sender };
    (guard, elector.run(stop))
}

struct Elector {
    client: ApiClient,
    candidate: LeaseIdentity,
    /// The Lease as last read, and when it was first read so.
    seen: Option<(Lease, Instant)>,
    /// When this operator last wrote itself into it.
    renewed: Option<Instant>,
    sender: watch::Sender<bool>,
}

impl Elector {
    async fn run(mut self, stop: CancellationToken) {
        loop {
            // It steps down before it asks, and a request that hangs does not keep it from that.
            let left = self.left();
            self.announce(left.is_some());
            let look = tokio::time::timeout(left.unwrap_or(Duration::MAX), self.look());
            match look.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!(%error, lease = self.candidate.name, "the Lease could not be acquired or renewed");
                }
                Err(_) => {
                    tracing::warn!(lease = self.candidate.name, "the Lease could not be renewed in time");
                }
            }
            let left = self.left();
            self.announce(left.is_some());
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(left.map_or(RETRY_PERIOD, |left| left.min(RENEW_PERIOD))) => {}
            }
        }
        self.release().await;
    }

    /// How long this operator leads if it writes nothing more; `None` when it does not lead.
    fn left(&self) -> Option<Duration> {
        RENEW_DEADLINE.checked_sub(self.renewed?.elapsed()).filter(|left| !left.is_zero())
    }

    fn announce(&mut self, leads: bool) {
        if !leads {
            self.renewed = None;
        }
        let changed = self.sender.send_if_modified(|now| std::mem::replace(now, leads) != leads);
        if changed {
            tracing::info!(leads, identity = self.candidate.identity, "leadership changed");
        }
    }

    /// Reads the Lease (a leader trusts what it wrote last) and takes or renews it when it may.
    async fn look(&mut self) -> Result<(), ApiError> {
        let LeaseIdentity { namespace, name, identity } = self.candidate.clone();
        if self.renewed.is_none() {
            let lease = self.client.lease(&namespace, &name).await?;
            self.remember(lease);
        }
        let now = Instant::now();
        let Some(lease) = claim(self.seen.as_ref(), now, &self.candidate) else { return Ok(()) };
        match self.client.write_lease(&namespace, &name, &lease).await {
            Ok(written) => {
                self.remember(Some(written));
                // From before the request, so that this clock runs out before the others'.
                self.renewed = Some(now);
                Ok(())
            }
            Err(ApiError::Conflict(_) | ApiError::AlreadyExists(_) | ApiError::NotFound(_)) => {
                // Somebody wrote it meanwhile: only a fresh look tells whether it is still ours.
                let lease = self.client.lease(&namespace, &name).await?;
                if lease.as_ref().and_then(holder) != Some(identity.as_str()) {
                    self.renewed = None;
                }
                self.remember(lease);
                Ok(())
            }
            Err(other) => Err(other),
        }
    }

    fn remember(&mut self, lease: Option<Lease>) {
        let same = |old: &Lease, new: &Lease| old.metadata.resource_version == new.metadata.resource_version;
        match (&self.seen, lease) {
            (Some((old, _)), Some(new)) if same(old, &new) => {}
            (_, new) => self.seen = new.map(|lease| (lease, Instant::now())),
        }
    }

    async fn release(mut self) {
        let held = self.renewed.is_some();
        self.announce(false);
        let Some((mut lease, _)) = self.seen.take().filter(|_| held) else { return };
        if holder(&lease) != Some(&self.candidate.identity) {
            return;
        }
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
        }
        match self.client.write_lease(&self.candidate.namespace, &self.candidate.name, &lease).await {
            Ok(_) => tracing::info!("the Lease is given back"),
            Err(error) => tracing::warn!(%error, "the Lease could not be given back; it runs out by itself"),
        }
    }
}

/// Who holds the Lease; an empty name is nobody.
fn holder(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref().filter(|holder| !holder.is_empty())
}

/// The Lease to write now, or `None` when another one holds it.
fn claim(seen: Option<&(Lease, Instant)>, now: Instant, candidate: &LeaseIdentity) -> Option<Lease> {
    let (old, since) = match seen {
        Some((lease, since)) => (Some(lease), *since),
        None => (None, now),
    };
    let spec = old.and_then(|lease| lease.spec.as_ref());
    let ours = old.and_then(holder) == Some(&candidate.identity);
    let seconds = spec.and_then(|spec| spec.lease_duration_seconds).and_then(|s| u64::try_from(s).ok());
    let binding = seconds.map_or(DURATION, Duration::from_secs);
    if !ours && old.and_then(holder).is_some() && now.duration_since(since) < binding {
        return None;
    }
    let time = MicroTime(Timestamp::now());
    let transitions = spec.and_then(|spec| spec.lease_transitions).unwrap_or_default();
    let mut lease = old.cloned().unwrap_or_default();
    lease.metadata.name = Some(candidate.name.clone());
    lease.metadata.namespace = Some(candidate.namespace.clone());
    lease.spec = Some(LeaseSpec {
        holder_identity: Some(candidate.identity.clone()),
        lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
        acquire_time: if ours { spec.and_then(|s| s.acquire_time.clone()) } else { Some(time.clone()) },
        renew_time: Some(time),
        lease_transitions: Some(if ours || old.is_none() { transitions } else { transitions + 1 }),
        ..LeaseSpec::default()
    });
    Some(lease)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::http::{Request, Response};
    use kube::client::Body;

    use super::*;

    fn candidate() -> LeaseIdentity {
        LeaseIdentity { namespace: "system".into(), name: "dialog-operator".into(), identity: "me".into() }
    }
    fn held_by(who: &str) -> Lease {
        let mut lease: Lease = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "dialog-operator", "resourceVersion": "7"},
            "spec": {"holderIdentity": who, "leaseDurationSeconds": 15, "leaseTransitions": 3}
        }))
        .unwrap();
        lease.metadata.namespace = Some("system".into());
        lease
    }

    /// The last request before the deadline may be one that hangs.
    #[tokio::test(start_paused = true)]
    async fn leader_whose_renewal_hangs_steps_down_in_time() {
        let (service, mut requests) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let client = ApiClient::new(kube::Client::new(service, "system"), Arc::default());
        let (guard, election) = elect(client, candidate(), CancellationToken::new());
        let election = tokio::spawn(election);
        let answer = |body: &Lease| Response::new(Body::from(serde_json::to_vec(body).unwrap()));
        // It takes the Lease; what it asks then is refused at once, and after nine seconds not even answered.
        let (_, free) = requests.next_request().await.unwrap();
        free.send_response(answer(&held_by("")));
        let (_, taken) = requests.next_request().await.unwrap();
        taken.send_response(answer(&held_by("me")));
        let start = Instant::now();
        guard.wait_until(true).await;
        let mut hangs = Vec::new();
        let lost = guard.wait_until(false);
        tokio::pin!(lost);
        loop {
            tokio::select! {
                () = &mut lost => break,
                request = requests.next_request() => match request {
                    Some((_, answer)) if start.elapsed() < Duration::from_secs(9) => answer.send_error("refused"),
                    hanging => hangs.push(hanging),
                },
            }
        }
        assert!(start.elapsed() <= RENEW_DEADLINE, "{:?}, {} requests", start.elapsed(), hangs.len());
        election.abort();
    }

    #[test]
    fn a_lease_that_is_not_there_is_created() {
        let lease = claim(None, Instant::now(), &candidate()).unwrap();
        assert_eq!(holder(&lease), Some("me"));
        assert_eq!(lease.metadata.resource_version, None);
    }

    #[test]
    fn lease_of_another_binds_until_unchanged_for_its_duration() {
        let start = Instant::now();
        let seen = (held_by("you"), start);
        assert_eq!(claim(Some(&seen), start + Duration::from_secs(14), &candidate()), None);
        let taken = claim(Some(&seen), start + Duration::from_secs(15), &candidate()).unwrap();
        assert_eq!(taken.spec.as_ref().unwrap().lease_transitions, Some(4));
        assert_eq!(
            taken.metadata.resource_version.as_deref(),
            Some("7"),
            "only this very version is replaced"
        );
    }

    #[test]
    fn a_lease_that_was_given_back_is_taken_at_once() {
        let start = Instant::now();
        assert!(claim(Some(&(held_by(""), start)), start, &candidate()).is_some());
    }

    #[test]
    fn a_renewal_is_no_transition() {
        let start = Instant::now();
        let renewed = claim(Some(&(held_by("me"), start)), start, &candidate()).unwrap();
        assert_eq!(renewed.spec.unwrap().lease_transitions, Some(3));
    }
}
