//! The application's Secret: what its keys are to say, made of its password and of names, and whether they say it. The
//! password itself goes nowhere from here: what is told is how the keys are, never what is in them.

use std::collections::BTreeMap;

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{ResourceExt, runtime::reflector::ObjectRef};
use secrecy::SecretString;

use crate::{
    api::{ClusterId, names::SecretKind, spec::DatabaseSpec},
    kubernetes::caches::WatchScope,
    snapshot::ApplicationSecret,
};

/// Port of every server.
const PORT: u16 = 5432;
/// Key of the password: the one that a person may change.
pub const PASSWORD: &str = "password";
/// Key of the authorities that sign servers, in PEM form.
pub const ROOT: &str = "sslrootcert";

/// From what the other keys are made.
#[derive(Clone, Copy, Debug)]
pub struct Names<'a> {
    /// The cluster.
    pub cluster: &'a ClusterId,
    /// DNS domain of the Kubernetes cluster.
    pub domain: &'a str,
    /// The application's database and role.
    pub database: &'a DatabaseSpec,
}

impl Names<'_> {
    /// Where pods that mount the Secret have it, if they mount it where the README says.
    fn mounted(&self) -> String {
        format!("/etc/{}", self.cluster.secret(SecretKind::App))
    }

    /// Every key but the password and the root, for this password.
    #[must_use]
    pub fn keys(&self, password: &str) -> BTreeMap<&'static str, String> {
        let ClusterId { namespace, .. } = self.cluster;
        let host = format!("{}.{namespace}.svc.{}", self.cluster.service(), self.domain);
        let DatabaseSpec { name, owner, .. } = self.database;
        let (role, dbname, password) = (escaped(owner), escaped(name), escaped(password));
        let uri = format!("postgresql://{role}:{password}@{host}:{PORT}/{dbname}?sslmode=");
        BTreeMap::from([
            // Works in any pod. Without a root nobody verifies whom he talks to.
            ("uri", format!("{uri}require")),
            ("uri-verify-full", format!("{uri}verify-full&sslrootcert={}/{ROOT}", self.mounted())),
            (
                "jdbc-uri",
                format!(
                    "jdbc:postgresql://{host}:{PORT}/{dbname}?user={role}&password={password}&sslmode=require"
                ),
            ),
            ("host", host),
            ("port", PORT.to_string()),
            ("dbname", name.clone()),
            ("user", owner.clone()),
        ])
    }
}

/// A text as part of a URI: everything that libpq or JDBC could take for something else is escaped.
fn escaped(text: &str) -> String {
    let one = |byte: u8| match byte {
        b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(one).collect()
}

/// The password in a Secret, or what is wrong with it, without what is in it.
///
/// # Errors
/// A sentence that names the key.
pub fn password(data: &BTreeMap<String, ByteString>) -> Result<&str, String> {
    let wrong = |why: &str| Err(format!("key '{PASSWORD}' {why}"));
    let Some(ByteString(bytes)) = data.get(PASSWORD) else { return wrong("is missing") };
    match std::str::from_utf8(bytes) {
        Err(_) => wrong("is not UTF-8"),
        Ok("") => wrong("is empty: PostgreSQL would let nobody in by it"),
        Ok(text) if text.ends_with(['\n', '\r']) => {
            wrong("ends in a line break (`echo` adds one: use `printf '%s'` or stringData)")
        }
        Ok(text) if text.chars().any(char::is_control) => wrong("has a control character in it"),
        Ok(text) => Ok(text),
    }
}

/// How the Secret is, as the cache has it. `None`: it is not there, or not ours.
#[must_use]
pub fn look(scope: &WatchScope, names: &Names<'_>) -> Option<ApplicationSecret> {
    let get = |kind| {
        let name = names.cluster.secret(kind);
        let found = scope.secrets.get(&ObjectRef::new(&name).within(&names.cluster.namespace))?;
        found.owner_references().iter().any(|owner| owner.uid == names.cluster.uid).then_some(found)
    };
    let root = get(SecretKind::Ca).and_then(|authorities| root_of(&authorities));
    Some(facts(&*get(SecretKind::App)?, root.as_ref(), names))
}

/// Versions of the Secrets with which connections are made, and the application's password if it is one.
#[must_use]
pub fn credentials(scope: &WatchScope, cluster: &ClusterId) -> (Vec<String>, Option<SecretString>) {
    let get = |kind| scope.secrets.get(&ObjectRef::new(&cluster.secret(kind)).within(&cluster.namespace));
    let kinds = [SecretKind::Server, SecretKind::Node, SecretKind::Superuser, SecretKind::App];
    let version = |kind| get(kind).and_then(|secret| secret.resource_version()).unwrap_or_default();
    let app = get(SecretKind::App).and_then(|secret| secret.data.clone()).unwrap_or_default();
    (kinds.into_iter().map(version).collect(), password(&app).ok().map(Into::into))
}

/// The authority of servers in the Secret of the authorities.
fn root_of(authorities: &Secret) -> Option<ByteString> {
    authorities.data.as_ref()?.get("server-ca.crt").cloned()
}

fn facts(secret: &Secret, root: Option<&ByteString>, names: &Names<'_>) -> ApplicationSecret {
    let version = secret.resource_version().unwrap_or_default();
    let empty = BTreeMap::new();
    let data = secret.data.as_ref().unwrap_or(&empty);
    let password = match password(data) {
        Ok(password) => password,
        Err(why) => return ApplicationSecret { version, unusable: Some(why), stale: Vec::new() },
    };
    let stale = expected_keys(password, root, names)
        .into_iter()
        .filter(|(key, value)| data.get(*key).map(|found| &found.0) != Some(value))
        .map(|(key, _)| key.to_owned());
    ApplicationSecret { version, unusable: None, stale: stale.collect() }
}

/// Every key but the password; the root only where it is known.
#[must_use]
pub fn expected_keys(
    password: &str,
    root: Option<&ByteString>,
    names: &Names<'_>,
) -> BTreeMap<&'static str, Vec<u8>> {
    let keys = names.keys(password).into_iter().map(|(key, value)| (key, value.into_bytes()));
    keys.chain(root.map(|root| (ROOT, root.0.clone()))).collect()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn with_names<T>(look: impl FnOnce(&Names<'_>) -> T) -> T {
        let cluster = ClusterId { namespace: "shop".into(), name: "talk".into(), uid: "1".into() };
        let database: DatabaseSpec =
            serde_json::from_value(serde_json::json!({"name": "messages", "owner": "writer"})).unwrap();
        look(&Names { cluster: &cluster, domain: "cluster.local", database: &database })
    }

    fn secret(password: &str, names: &Names<'_>) -> Secret {
        let mut data: BTreeMap<String, ByteString> =
            expected_keys(password, Some(&ByteString(b"root".to_vec())), names)
                .into_iter()
                .map(|(key, value)| (key.to_owned(), ByteString(value)))
                .collect();
        data.insert(PASSWORD.to_owned(), ByteString(password.as_bytes().to_vec()));
        Secret { data: Some(data), ..Secret::default() }
    }

    #[test]
    fn keys_are_what_people_expect_and_escaped() {
        with_names(|names| {
            let keys = names.keys("a+b c/@:%&ä'\"");
            let written = "a%2Bb%20c%2F%40%3A%25%26%C3%A4%27%22";
            let host = "talk.shop.svc.cluster.local";
            let uri = format!("postgresql://writer:{written}@{host}:5432/messages?sslmode=");
            assert_eq!(keys["uri"], format!("{uri}require"));
            assert_eq!(
                keys["uri-verify-full"],
                format!("{uri}verify-full&sslrootcert=/etc/talk-app/sslrootcert")
            );
            assert_eq!(
                keys["jdbc-uri"],
                format!(
                    "jdbc:postgresql://{host}:5432/messages?user=writer&password={written}&sslmode=require"
                )
            );
        });
    }

    #[test]
    fn a_changed_password_is_seen_and_never_shown() {
        with_names(|names| {
            let root = ByteString(b"root".to_vec());
            let mut secret = secret("before", names);
            assert_eq!(facts(&secret, Some(&root), names), ApplicationSecret::default());
            let password = ByteString(b"s3cret after".to_vec());
            secret.data.as_mut().unwrap().insert(PASSWORD.to_owned(), password);
            let seen = facts(&secret, Some(&root), names);
            assert_eq!(seen.stale, ["jdbc-uri", "uri", "uri-verify-full"]);
            assert!(!format!("{seen:?}").contains("s3cret"));
            let other = ByteString(b"another root".to_vec());
            assert!(facts(&secret, Some(&other), names).stale.contains(&ROOT.to_owned()));
            secret.data.as_mut().unwrap().remove("host");
            assert!(facts(&secret, None, names).stale.contains(&"host".to_owned()));
        });
    }

    #[rstest]
    #[case(None, "missing")]
    #[case(Some(&b""[..]), "empty")]
    #[case(Some(&b"hidden\n"[..]), "line break")]
    #[case(Some(&b"hid\tden"[..]), "control character")]
    #[case(Some(&b"hid\0den"[..]), "control character")]
    #[case(Some(&b"hidden\xff"[..]), "UTF-8")]
    fn a_password_that_cannot_be_one_is_told_by_its_key(#[case] value: Option<&[u8]>, #[case] why: &str) {
        let value = value.map(|value| (PASSWORD.to_owned(), ByteString(value.to_vec())));
        let said = password(&value.into_iter().collect()).unwrap_err();
        assert!(said.contains("'password'") && said.contains(why), "{said}");
        assert!(!said.contains("hid"), "{said}");
    }
}
