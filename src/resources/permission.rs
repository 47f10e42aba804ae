//! The permission to initialise, read back from a live ConfigMap, and the start script's word for a volume that is
//! empty without it. Pure text.

use serde_json::Value;

/// What the start script says (termination log) when a volume is empty and may not be initialised.
pub const VOLUME_EMPTY: &str = "volume is empty";

/// Whether the start script may initialise an empty volume, by the live ConfigMap of the node.
#[must_use]
pub fn may_initialise(live: &Value) -> bool {
    live.pointer("/data/initialise").and_then(Value::as_str) == Some("allowed")
}
