//! Who owns which field of an object (`managedFields`). Pure.
//!
//! An object is created by a create, so that a stranger's is never taken over, and written by server-side apply later.
//! To the API server these are two owners of one name, and a field that both own stays when the apply leaves it out:
//! a key of a ConfigMap could never be removed. So what we own by create becomes ours by apply (as client-go's
//! `csaupgrade` does it).

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{FieldsV1, ManagedFieldsEntry};
use serde_json::Value;

use crate::api::FIELD_MANAGER;

/// The entries after that change, or `None` when there is nothing to change.
#[must_use]
pub fn by_apply(entries: &[ManagedFieldsEntry]) -> Option<Vec<ManagedFieldsEntry>> {
    let ours = |entry: &&ManagedFieldsEntry, operation: &str| {
        entry.manager.as_deref() == Some(FIELD_MANAGER)
            && entry.operation.as_deref() == Some(operation)
            && entry.subresource.as_deref().unwrap_or_default().is_empty()
    };
    let created = entries.iter().find(|entry| ours(entry, "Update"))?;
    let mut fields = created.fields_v1.clone().map_or(Value::Null, |fields| fields.0);
    if let Some(applied) = entries.iter().find(|entry| ours(entry, "Apply")) {
        merge(&mut fields, applied.fields_v1.as_ref().map_or(&Value::Null, |fields| &fields.0));
    }
    let mut changed: Vec<_> =
        entries.iter().filter(|entry| !ours(entry, "Update") && !ours(entry, "Apply")).cloned().collect();
    changed.push(ManagedFieldsEntry {
        operation: Some("Apply".to_owned()),
        fields_v1: Some(FieldsV1(fields)),
        ..created.clone()
    });
    Some(changed)
}

/// The union of two sets of fields.
fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into @ Value::Null, from) => *into = from.clone(),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn entry(manager: &str, operation: &str, fields: Value) -> ManagedFieldsEntry {
        ManagedFieldsEntry {
            manager: Some(manager.into()),
            operation: Some(operation.into()),
            fields_v1: Some(FieldsV1(fields)),
            ..ManagedFieldsEntry::default()
        }
    }

    #[test]
    fn what_was_created_becomes_applied() {
        let other = entry("kubectl", "Update", json!({"f:data": {"f:x": {}}}));
        let created = entry(FIELD_MANAGER, "Update", json!({"f:data": {"f:initialise": {}, "f:a": {}}}));
        let applied = entry(FIELD_MANAGER, "Apply", json!({"f:data": {"f:a": {}, "f:b": {}}}));
        let changed = by_apply(&[created, other.clone(), applied]).unwrap();
        let all =
            entry(FIELD_MANAGER, "Apply", json!({"f:data": {"f:initialise": {}, "f:a": {}, "f:b": {}}}));
        assert_eq!(changed, [other, all]);
        assert_eq!(by_apply(&changed), None, "once is enough");
    }

    #[test]
    fn a_status_is_not_ours() {
        let mut status = entry(FIELD_MANAGER, "Update", json!({"f:status": {}}));
        status.subresource = Some("status".into());
        assert_eq!(by_apply(&[status]), None);
    }
}
