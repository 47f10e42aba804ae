//! Who owns a field of an object (`metadata.managedFields`). A create makes our fields owned by an *Update*, and a
//! later server-side apply never removes those: here such fields become owned by our *Apply*, as client-go's
//! csaupgrade does it. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{FieldsV1, ManagedFieldsEntry};
use serde_json::Value;

use crate::api::FIELD_MANAGER;

/// The owners with what we created counted as applied; `None` when nothing has to change.
#[must_use]
pub fn as_applied(owners: &[ManagedFieldsEntry]) -> Option<Vec<ManagedFieldsEntry>> {
    let ours = |entry: &ManagedFieldsEntry, operation: &str| {
        entry.manager.as_deref() == Some(FIELD_MANAGER)
            && entry.operation.as_deref() == Some(operation)
            && entry.subresource.as_deref().unwrap_or_default().is_empty()
    };
    let created = owners.iter().find(|entry| ours(entry, "Update"))?;
    let mut others: Vec<_> = owners.iter().filter(|entry| !ours(entry, "Update")).cloned().collect();
    match others.iter_mut().find(|entry| ours(entry, "Apply")) {
        Some(applied) => {
            let mut fields = applied.fields_v1.take().map_or(Value::Null, |fields| fields.0);
            merge(&mut fields, created.fields_v1.as_ref().map(|fields| &fields.0));
            applied.fields_v1 = Some(FieldsV1(fields));
        }
        None => others.push(ManagedFieldsEntry { operation: Some("Apply".to_owned()), ..created.clone() }),
    }
    Some(others)
}

/// Field sets are trees of objects: their union is the union of their keys at every level.
fn merge(into: &mut Value, from: Option<&Value>) {
    let Some(Value::Object(from)) = from else { return };
    if !into.is_object() {
        *into = Value::Object(serde_json::Map::new());
    }
    let Some(into) = into.as_object_mut() else { return };
    for (key, value) in from {
        merge(into.entry(key.clone()).or_insert_with(|| Value::Object(serde_json::Map::new())), Some(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(manager: &str, operation: &str, fields: Value) -> ManagedFieldsEntry {
        ManagedFieldsEntry {
            manager: Some(manager.to_owned()),
            operation: Some(operation.to_owned()),
            fields_v1: Some(FieldsV1(fields)),
            ..ManagedFieldsEntry::default()
        }
    }

    #[test]
    fn what_was_created_becomes_applied_and_nobody_else_is_touched() {
        let owners = [
            entry(FIELD_MANAGER, "Update", serde_json::json!({"f:data": {"f:initialise": {}, "f:a": {}}})),
            entry(FIELD_MANAGER, "Apply", serde_json::json!({"f:data": {"f:a": {}}, "f:metadata": {}})),
            entry("kubectl", "Update", serde_json::json!({"f:data": {"f:b": {}}})),
        ];
        let mended = as_applied(&owners).unwrap();
        assert_eq!(mended.len(), 2);
        let fields = &mended[0].fields_v1.as_ref().unwrap().0;
        assert_eq!(*fields, serde_json::json!({"f:data": {"f:initialise": {}, "f:a": {}}, "f:metadata": {}}));
        assert_eq!(mended[1], owners[2]);
        assert_eq!(as_applied(&mended), None);
    }
}
