//! What is kept of each cluster between two looks: in memory only, found out again when it is lost. Who keeps what says so
//! in a type of its own.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// What is kept of all clusters, by uid of the DialogCluster.
pub struct ClusterCaches<T>(Mutex<HashMap<String, ClusterCache<T>>>);

/// What is kept of one cluster, behind a lock that is never held over an await.
pub struct ClusterCache<T>(Arc<Mutex<T>>);

impl<T> Default for ClusterCaches<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Default> Default for ClusterCache<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T> Clone for ClusterCache<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// A lock that a panic elsewhere does not close for ever: what is behind it can be found out again.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T: Default> ClusterCaches<T> {
    /// What is kept of this cluster.
    #[must_use]
    pub fn of(&self, uid: &str) -> ClusterCache<T> {
        locked(&self.0).entry(uid.to_owned()).or_default().clone()
    }
    /// What is kept, of every cluster.
    #[must_use]
    pub fn all(&self) -> Vec<ClusterCache<T>> {
        locked(&self.0).values().cloned().collect()
    }
    /// Forgets clusters that are gone.
    pub fn retain(&self, exists: impl Fn(&str) -> bool) {
        locked(&self.0).retain(|uid, _| exists(uid));
    }
    /// Forgets everything: another operator may have led meanwhile.
    pub fn clear(&self) {
        locked(&self.0).clear();
    }
}

impl<T> ClusterCache<T> {
    /// Looks into it or writes it.
    pub fn with<R>(&self, look: impl FnOnce(&mut T) -> R) -> R {
        look(&mut locked(&self.0))
    }
}
