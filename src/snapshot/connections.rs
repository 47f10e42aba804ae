//! What the snapshot holds of connections that were tried. Plain data.

use serde::{Deserialize, Serialize};

use crate::api::Node;

/// One connection tried with `citus_check_connection_to_node`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionCheck {
    /// The node that connected.
    pub from: Node,
    /// The node that it connected to, by its address.
    pub to: Node,
    /// Why it failed; `None` when it did not.
    pub error: Option<String>,
}

/// What the last look at new connections found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Reach {
    /// Looks in a row that found something broken.
    pub failures: u32,
    /// Connections that could not be made, as sentences of whoever refused.
    pub broken: Vec<String>,
    /// What a new session of the application's role met.
    pub application: Login,
    /// Who had no connection left: busy, and not broken.
    pub busy: Vec<String>,
}

/// What a new session of the application's role met.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Login {
    /// It was not tried, and why.
    Untried(String),
    /// It logged in and every worker answered it.
    #[default]
    Well,
    /// The password in the Secret is not the role's, in PostgreSQL's words.
    PasswordDiffers(String),
    /// It failed, in the words of whoever refused.
    Failed(String),
}
