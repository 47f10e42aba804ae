//! The audit log of the local Kubernetes: who wrote what.

use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    path::PathBuf,
};

use serde_json::Value;

/// The log from now on.
pub struct Audit {
    path: PathBuf,
    from: u64,
}

impl Audit {
    pub fn from_now() -> Self {
        let state =
            std::env::var("DIALOG_LOCAL_STATE").unwrap_or("/var/lib/dialog-local-kubernetes".to_owned());
        let path = PathBuf::from(state).join("logs/audit.log");
        let from =
            std::fs::metadata(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).len();
        Self { path, from }
    }

    /// What this user wrote since, as `verb resource/name`.
    pub fn writes(&self, user: &str) -> Vec<String> {
        let mut log = File::open(&self.path).unwrap();
        assert!(log.metadata().unwrap().len() >= self.from, "the audit log was rotated meanwhile");
        log.seek(SeekFrom::Start(self.from)).unwrap();
        let mut text = String::new();
        log.read_to_string(&mut text).unwrap();
        // The last line may be half written.
        let entries = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let writes = entries.filter(|entry| {
            entry["impersonatedUser"]["username"] == user
                && !matches!(entry["verb"].as_str(), Some("get" | "list" | "watch"))
        });
        let told = writes.map(|entry| {
            let what = &entry["objectRef"];
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            format!("{} {}/{}", text(&entry["verb"]), text(&what["resource"]), text(&what["name"]))
        });
        told.collect()
    }
}
