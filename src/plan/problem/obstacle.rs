//! The sentences about what keeps tables from being moved: each has the statement that ends it.

use std::fmt;

use super::{TableObstacle, Unmoved, words::NAMED};
use crate::snapshot::ObstacleKind;

impl fmt::Display for TableObstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = self.words();
        // A statement has its own end.
        let end = if words.ends_with(';') { "" } else { "." };
        let stays = match self.stays {
            Unmoved::Everything => "No shard is moved before that",
            Unmoved::These => {
                "Shards of these tables and those colocated with them would stay where they are"
            }
            Unmoved::TheseAlone => {
                "Shards of these tables and those colocated with them stay where they are; all others move"
            }
        };
        let (named, others) = self.tables.split_at(self.tables.len().min(NAMED));
        let others = i64::try_from(others.len()).unwrap_or(i64::MAX).saturating_add(self.more);
        let others = if others == 0 { String::new() } else { format!(" and {others} more") };
        write!(f, "{}{others}: {words}{end} {stays}.", named.join(", "))
    }
}

impl TableObstacle {
    /// Another one that the same statement, or the same change of the spec, ends.
    #[must_use]
    pub fn is_like(&self, other: &Self) -> bool {
        let alike = |one: &Self| (one.kind, one.owner.clone(), one.what.clone(), one.value.clone());
        alike(self) == alike(other)
            && (!self.is_of_one_table() || self.tables.first() == other.tables.first())
    }
    /// Its statement names the table.
    fn is_of_one_table(&self) -> bool {
        match self.kind {
            ObstacleKind::OwnedBySuperuser
            | ObstacleKind::OwnerCannotLogIn
            | ObstacleKind::OwnerHasNoConnections
            | ObstacleKind::PartitionOfAnother
            | ObstacleKind::ReferenceTableRunsCode => true,
            ObstacleKind::NoReplicaIdentity
            | ObstacleKind::Unlogged
            | ObstacleKind::OwnerCannotCreate
            | ObstacleKind::SettingOfRole
            | ObstacleKind::SettingOfRoleInDatabase
            | ObstacleKind::SettingOfDatabase
            | ObstacleKind::SettingOfAll => false,
        }
    }
    fn words(&self) -> String {
        let Self { what, value, .. } = self;
        let table = self.tables.first().map_or("...", String::as_str);
        let [owner, database, application] =
            [&self.owner, &self.database, &self.application].map(|name| identifier(name));
        let setting = |whose: String, altered: String| {
            format!(
                "{what} is {value} for {whose}, and indexes and constraints of shards that move are created as {owner}: ALTER {altered} RESET {what};"
            )
        };
        match self.kind {
            ObstacleKind::NoReplicaIdentity => "cannot use logical replication to transfer shards of the relation since it doesn't have a REPLICA IDENTITY or PRIMARY KEY: ALTER TABLE ... ADD PRIMARY KEY (...); or ALTER TABLE ... REPLICA IDENTITY FULL; or set spec.rebalance.transferMode to force_logical or block_writes".to_owned(),
            ObstacleKind::Unlogged => "unlogged, and logical replication copies no such table: ALTER TABLE ... SET LOGGED; or DROP TABLE ...; or set spec.rebalance.transferMode to block_writes, which moves it with its rows while writes wait".to_owned(),
            ObstacleKind::OwnedBySuperuser => format!("owned by the superuser {owner}, and no move is made as a superuser: ALTER TABLE {table} OWNER TO {application};"),
            ObstacleKind::OwnerCannotLogIn => format!("the owner {owner} may not log in, and shards that move are created as their owner: ALTER ROLE {owner} LOGIN; or ALTER TABLE {table} OWNER TO {application};"),
            ObstacleKind::OwnerHasNoConnections => format!("the owner {owner} may have no connection, and shards that move are created as their owner: ALTER ROLE {owner} CONNECTION LIMIT -1; or ALTER TABLE {table} OWNER TO {application};"),
            ObstacleKind::OwnerCannotCreate => format!("the owner {owner} may not create tables in the schema {what}, and shards that move are created as their owner: GRANT CREATE ON SCHEMA {} TO {owner};", identifier(what)),
            ObstacleKind::PartitionOfAnother => format!("a partition of {what}, which belongs to {value} and not to {owner}: ALTER TABLE {table} OWNER TO {};", identifier(value)),
            ObstacleKind::SettingOfRole => setting(format!("the role {owner}"), format!("ROLE {owner}")),
            ObstacleKind::SettingOfRoleInDatabase => setting(format!("the role {owner} in the database {database}"), format!("ROLE {owner} IN DATABASE {database}")),
            ObstacleKind::SettingOfDatabase => setting(format!("the database {database}"), format!("DATABASE {database}")),
            ObstacleKind::SettingOfAll => setting("all roles".to_owned(), "ROLE ALL".to_owned()),
            ObstacleKind::ReferenceTableRunsCode => format!("{what}, and Citus copies a reference table to a new node as a superuser: ALTER TABLE {table} OWNER TO postgres; GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {owner};"),
        }
    }
}

/// A name as SQL takes it.
fn identifier(name: &str) -> String {
    let plain = |letter: char| letter.is_ascii_lowercase() || letter == '_' || letter.is_ascii_digit();
    if !name.is_empty() && name.chars().all(plain) && !name.starts_with(|first: char| first.is_ascii_digit())
    {
        return name.to_owned();
    }
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_where_they_need_it() {
        assert_eq!(identifier("shop_1"), "shop_1");
        for name in ["1shop", "my-shop", "Shop"] {
            assert_eq!(identifier(name), format!("\"{name}\""));
        }
        assert_eq!(identifier("a\"b"), "\"a\"\"b\"");
    }
}
