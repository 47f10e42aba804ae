//! What an image has in it, as data and as the line of text that an inspection pod answers with and a volume keeps. No
//! code that reads anything lives here.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// What an image has in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageFacts {
    /// Major version of PostgreSQL.
    pub postgres_major: u32,
    /// `default_version` of the citus extension, such as `13.2-1`.
    pub citus: String,
}

impl fmt::Display for ImageFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "postgres={} citus={}", self.postgres_major, self.citus)
    }
}

/// The text is not `postgres=<major> citus=<version>`.
#[derive(Debug, thiserror::Error)]
#[error("expected 'postgres=<major> citus=<version>'")]
pub struct NotFacts;

impl FromStr for ImageFacts {
    type Err = NotFacts;
    fn from_str(text: &str) -> Result<Self, NotFacts> {
        let value =
            |key: &str| text.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        let major = value("postgres").and_then(|major| major.parse().ok()).ok_or(NotFacts)?;
        Ok(Self { postgres_major: major, citus: value("citus").ok_or(NotFacts)?.to_owned() })
    }
}
