//! Where the SQL of the schema is from: built in, or the user's ConfigMap, which has no label of ours and is therefore
//! in no cache. It is read when it may be needed and then remembered; in a steady state it is asked for seldom.

use std::{
    fmt::Write,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::cache::{CacheHandle, CachedSchema};
use crate::{
    api::{Desired, DialogClusterStatus, spec::ConfigMapKey, status::ConditionType},
    citus::BUILT_IN_SCHEMA,
    context::Context,
    kubernetes::ObjectKey,
    snapshot::{Attempt, Failure, Observed, SchemaSql},
};

/// A ConfigMap that is not there, or that was not applied yet, is looked at again after so long.
const AGAIN: Duration = Duration::from_secs(3);
/// One that was applied, only to tell that it has changed since.
const APPLIED_AGAIN: Duration = Duration::from_secs(30);

/// The SQL of the schema.
pub async fn look(
    context: &Context,
    desired: &Desired,
    status: &DialogClusterStatus,
    cache: &CacheHandle,
) -> Observed<SchemaSql> {
    let Some(source) = &desired.schema_source else {
        return Observed::Known(hashed(BUILT_IN_SCHEMA.to_owned()));
    };
    let applied = status.is_true(ConditionType::SchemaApplied);
    let kept = cache.with(|cache| cache.schema.clone()).filter(|kept| {
        let same = kept.source == *source && kept.generation == desired.generation;
        let again = if applied && kept.sql.known().is_some() { APPLIED_AGAIN } else { AGAIN };
        same && kept.at.elapsed() < again
    });
    if let Some(kept) = kept {
        return kept.sql;
    }
    let sql = read(context, desired, source, cache).await;
    let kept = CachedSchema {
        source: source.clone(),
        generation: desired.generation,
        sql: sql.clone(),
        at: Instant::now(),
    };
    cache.with(|cache| cache.schema = Some(kept));
    sql
}

async fn read(
    context: &Context,
    desired: &Desired,
    source: &ConfigMapKey,
    cache: &CacheHandle,
) -> Observed<SchemaSql> {
    let ConfigMapKey { name, key } = source;
    let namespace = &desired.cluster.namespace;
    let address = ObjectKey { api_version: "v1", kind: "ConfigMap", namespace, name };
    let seen = match context.client.get(address).await {
        Err(refusal) => {
            let failure = Failure::refused(&address, &refusal);
            let generation = desired.generation;
            cache.with(|cache| {
                cache.refusals.failed((&Attempt::Schema, None), &failure, generation, Timestamp::now());
            });
            return Observed::Unknown(format!("{address} (spec.schema.configMapRef): {refusal}"));
        }
        Ok(None) => {
            Observed::Unknown(format!("{address} (spec.schema.configMapRef) does not exist: create it"))
        }
        Ok(Some(map)) => match map.pointer("/data").and_then(|data| data.get(key)?.as_str()) {
            Some(sql) => Observed::Known(hashed(sql.to_owned())),
            None => {
                Observed::Unknown(format!("{address} (spec.schema.configMapRef) has no key '{key}': add it"))
            }
        },
    };
    cache.with(|cache| cache.refusals.succeeded(&Attempt::Schema));
    seen
}

fn hashed(sql: String) -> SchemaSql {
    let hash = Sha256::digest(sql.as_bytes()).iter().fold(String::new(), |mut hash, byte| {
        // Writing to a string cannot fail.
        let _ = write!(hash, "{byte:02x}");
        hash
    });
    SchemaSql { sql, hash }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_sha256_in_hex() {
        assert!(hashed("abc".into()).hash.starts_with("ba7816bf8f01cfea414140de5dae2223"));
    }
}
