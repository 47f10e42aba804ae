//! What a worker holds that is not the cluster's own, as data of a snapshot: names and numbers, never a row's content.
//! No code that reads anything lives here.

use serde::{Deserialize, Serialize};

/// What would go with a worker, and is in no catalog of ours.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Contents {
    /// Other databases of its server that hold something, or could not be looked at.
    pub databases: Vec<OtherDatabase>,
    /// What is in the application's database and Citus does not know.
    pub local: Holdings,
    /// Publications there that Citus does not know.
    pub publications: NamedObjects,
    /// Subscriptions of any database, but those of moves.
    pub subscriptions: NamedObjects,
    /// Replication slots, but those of moves.
    pub slots: NamedObjects,
    /// Prepared transactions, but those that Citus ends itself.
    pub prepared: NamedObjects,
    /// Tables with more than one placement of a shard that has one here, and how many such shards.
    pub copies: Vec<Copies>,
}

/// Some names and how many there are in all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct NamedObjects {
    pub count: i64,
    pub first: Vec<String>,
}

/// What of people's making is in a database.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Holdings {
    /// Tables, materialized views and foreign tables that are neither temporary, nor an extension's, nor Citus'.
    pub tables: i64,
    /// Rows in them, as far as PostgreSQL's statistics tell.
    pub rows: i64,
    /// How many of them have pages and no statistics: rows that were not counted.
    pub uncounted: i64,
    /// The fullest of them.
    pub first: Vec<LocalTable>,
    /// Sequences that belong to no table.
    pub sequences: NamedObjects,
    /// Large objects.
    pub large_objects: i64,
}

/// A table that Citus does not know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct LocalTable {
    pub name: String,
    /// `None` when it was not counted.
    pub rows: Option<i64>,
}

/// Another database of the same server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OtherDatabase {
    /// Its name.
    pub name: String,
    /// Why nobody can look into it: then it counts as not empty.
    pub closed: Option<String>,
    /// What is in it.
    pub holds: Holdings,
    /// Its part in another Citus cluster, if it is in one.
    pub member: Option<Membership>,
}

/// The part of a database in another Citus cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Membership {
    /// `groupid` that it says it is.
    pub group: i32,
    /// Nodes that it knows.
    pub nodes: i64,
    /// Shards that are there.
    pub shards: i64,
    /// Rows in them, as far as PostgreSQL's statistics tell.
    pub rows: i64,
}

/// A table whose shards have more than one placement.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Copies {
    pub table: String,
    pub shards: i64,
}

impl Contents {
    /// There is nothing but the cluster's own.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let named = [&self.publications, &self.subscriptions, &self.slots, &self.prepared];
        self.databases.is_empty()
            && self.local.is_empty()
            && named.iter().all(|named| named.count == 0)
            && self.copies.is_empty()
    }
}

impl Holdings {
    /// Nothing of people's making is there. A table without rows is something.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tables == 0 && self.sequences.count == 0 && self.large_objects == 0
    }
}
