//! [`ConnectionPool`]: connections kept from one reconcile to the next, so that none opens a TLS connection each second. A
//! pod's connections go with the pod. No statement is written here.

use std::{
    collections::{HashMap, HashSet},
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{
    connection::Connection,
    error::SqlError,
    target::{Target, Tls},
};
use crate::api::{ClusterId, Node};

/// The database that every server has: the way in before the application's database exists.
const MAINTENANCE_DATABASE: &str = "postgres";
/// Connections that nobody asked for so long are closed.
const IDLE: Duration = Duration::from_mins(5);

/// Whose connection it is. A pod that was made again under the same name is another server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionKey {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node.
    pub node: Node,
    /// uid of its pod.
    pub pod_uid: String,
}

/// Connections by node and database. At most `capacity` are kept; beyond that the one unused for longest is closed.
#[derive(Debug)]
pub struct ConnectionPool {
    capacity: usize,
    slots: Mutex<HashMap<(ConnectionKey, String), Slot>>,
}

#[derive(Debug)]
struct Slot {
    /// The inner lock lets two callers of one node share one attempt to connect, and holds up nobody else.
    connection: Arc<tokio::sync::Mutex<Option<Arc<Connection>>>>,
    used: Instant,
}

impl ConnectionPool {
    /// An empty cache.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { capacity, slots: Mutex::new(HashMap::new()) }
    }

    /// A session over the target's database, connected now if need be.
    ///
    /// # Errors
    /// As [`Target::connect`].
    pub async fn get(
        &self,
        key: &ConnectionKey,
        target: &Target,
        tls: &Tls,
    ) -> Result<Arc<Connection>, SqlError> {
        self.get_with(key, &target.database, || target.connect(tls)).await
    }

    /// A session over the target's database, or over `postgres` as long as that database does not exist:
    /// [`Connection::database`] tells which.
    ///
    /// # Errors
    /// As [`Target::connect`].
    pub async fn get_or_maintenance(
        &self,
        key: &ConnectionKey,
        target: &Target,
        tls: &Tls,
    ) -> Result<Arc<Connection>, SqlError> {
        match self.get(key, target, tls).await {
            Err(SqlError::DatabaseMissing { .. }) => self.get_maintenance(key, target, tls).await,
            answer => answer,
        }
    }

    /// A session over the database `postgres`.
    ///
    /// # Errors
    /// As [`Target::connect`].
    pub async fn get_maintenance(
        &self,
        key: &ConnectionKey,
        target: &Target,
        tls: &Tls,
    ) -> Result<Arc<Connection>, SqlError> {
        let target = Target { database: MAINTENANCE_DATABASE.to_owned(), ..target.clone() };
        self.get(key, &target, tls).await
    }

    /// Closes the connections of a cluster to all pods but these.
    pub fn keep_pods(&self, cluster: &ClusterId, pod_uids: &HashSet<&str>) {
        self.slots().retain(|(key, _), _| key.cluster != *cluster || pod_uids.contains(key.pod_uid.as_str()));
    }

    /// Connections and attempts that are kept now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots().len()
    }
    /// None is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots().is_empty()
    }

    async fn get_with<F>(
        &self,
        key: &ConnectionKey,
        database: &str,
        connect: impl FnOnce() -> F,
    ) -> Result<Arc<Connection>, SqlError>
    where
        F: Future<Output = Result<Connection, SqlError>>,
    {
        let slot = self.slot((key.clone(), database.to_owned()));
        let mut kept = slot.lock().await;
        if let Some(connection) = kept.as_ref().filter(|connection| !connection.is_broken()) {
            return Ok(Arc::clone(connection));
        }
        *kept = None;
        let connection = Arc::new(connect().await?);
        *kept = Some(Arc::clone(&connection));
        Ok(connection)
    }

    fn slot(&self, key: (ConnectionKey, String)) -> Arc<tokio::sync::Mutex<Option<Arc<Connection>>>> {
        let now = Instant::now();
        let mut slots = self.slots();
        slots.retain(|_, slot| now.duration_since(slot.used) < IDLE);
        if slots.len() >= self.capacity
            && !slots.contains_key(&key)
            && let Some(oldest) = slots.iter().min_by_key(|(_, slot)| slot.used).map(|(key, _)| key.clone())
        {
            slots.remove(&oldest);
        }
        let slot = slots.entry(key).or_insert_with(|| Slot { connection: Arc::default(), used: now });
        slot.used = now;
        Arc::clone(&slot.connection)
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<(ConnectionKey, String), Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
