//! Makes what is in the Secrets of a cluster: certificate authorities, certificates, the application's password.
//! Nothing here is ever printed: the types hide their values, and errors name files, not contents.

use std::{collections::BTreeMap, fmt};

use jiff::{Span, Timestamp, civil::Date, tz::TimeZone};
use k8s_openapi::ByteString;
use rand::distr::{Alphanumeric, SampleString};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, date_time_ymd,
};

use crate::{
    api::{ClusterId, names::SecretKind, spec::DatabaseSpec},
    observe::application::{self, Names},
};

/// Years a certificate holds, authorities and leaves alike.
///
/// Nothing renews certificates yet, and a cluster whose certificates have run out is down, all nodes at once: until
/// rotation exists, a long life is the smaller risk. Whoever holds a key is shut out by making the Secrets anew.
const YEARS: i16 = 10;
/// Length of the application's password: 190 bits.
const PASSWORD: usize = 32;
/// Name in the certificate with which nodes log in to each other (pg_ident.conf).
const NODE: &str = "dialog-node";
/// Name in the certificate with which the operator logs in (pg_ident.conf).
const OPERATOR: &str = "dialog-operator";

/// What a Secret is to hold. Its values are never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Contents(BTreeMap<String, Vec<u8>>);

impl Contents {
    /// As the `data` of a Secret.
    #[must_use]
    pub fn into_data(self) -> BTreeMap<String, ByteString> {
        self.0.into_iter().map(|(key, value)| (key, ByteString(value))).collect()
    }
    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&[u8]> {
        self.0.get(key).map(Vec::as_slice)
    }
    fn of<const N: usize>(pairs: [(&str, String); N]) -> Self {
        Self(pairs.into_iter().map(|(key, value)| (key.to_owned(), value.into_bytes())).collect())
    }
}

impl fmt::Debug for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Contents(keys: {:?})", self.0.keys().collect::<Vec<_>>())
    }
}

/// Why a Secret could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// The Secret with the authorities lacks a key, or what is in it is no certificate or key.
    #[error("Secret {secret} has no usable {key}: delete the Secret if the cluster is new, else restore it")]
    Incomplete {
        /// Name of the Secret.
        secret: String,
        /// Name of its key.
        key: &'static str,
    },
    /// The library's own words.
    #[error("cannot make {what}: {source}")]
    Refused {
        /// What was to be made.
        what: &'static str,
        /// Why not.
        source: rcgen::Error,
    },
}

fn refused(what: &'static str) -> impl FnOnce(rcgen::Error) -> PkiError {
    move |source| PkiError::Refused { what, source }
}

/// For whom and when Secrets are made.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The cluster.
    pub cluster: &'a ClusterId,
    /// DNS domain of the Kubernetes cluster.
    pub cluster_domain: &'a str,
    /// The application's database and role.
    pub database: &'a DatabaseSpec,
    /// The time: certificates hold from yesterday on, for clocks that are behind.
    pub now: Timestamp,
}

/// The two authorities of a cluster: one signs its servers, the other its nodes and the operator, and nobody else.
pub struct Authorities {
    server: Issuer<'static, KeyPair>,
    server_pem: String,
    node: Issuer<'static, KeyPair>,
    node_pem: String,
}

impl fmt::Debug for Authorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authorities(..)")
    }
}

impl Authorities {
    /// The authorities in the Secret `<name>-ca`.
    ///
    /// # Errors
    /// When a key is missing or is no certificate or key.
    pub fn read(cluster: &ClusterId, data: &BTreeMap<String, ByteString>) -> Result<Self, PkiError> {
        let unusable =
            |key: &'static str| PkiError::Incomplete { secret: cluster.secret(SecretKind::Ca), key };
        let text = |key: &'static str| {
            let value = data.get(key).and_then(|value| String::from_utf8(value.0.clone()).ok());
            value.ok_or_else(|| unusable(key))
        };
        let issuer = |certificate: &'static str, key: &'static str| {
            let signer = KeyPair::from_pem(&text(key)?).map_err(|_| unusable(key))?;
            let pem = text(certificate)?;
            let issuer = Issuer::from_ca_cert_pem(&pem, signer).map_err(|_| unusable(certificate))?;
            Ok((issuer, pem))
        };
        let (server, server_pem) = issuer("server-ca.crt", "server-ca.key")?;
        let (node, node_pem) = issuer("node-ca.crt", "node-ca.key")?;
        Ok(Self { server, server_pem, node, node_pem })
    }
}

/// New authorities: the Secret `<name>-ca`.
///
/// # Errors
/// When the library refuses.
pub fn new_authorities(request: &Request) -> Result<Contents, PkiError> {
    let authority = |role: &str| -> Result<(String, String), PkiError> {
        let key = new_key()?;
        let mut params = certificate(request, &format!("{} {role} CA", request.cluster.name));
        // One authority may follow: a new root, signed by this one, for clients that never read theirs again.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let signed = params.self_signed(&key).map_err(refused("a certificate authority"))?;
        Ok((signed.pem(), key.serialize_pem()))
    };
    let (server, server_key) = authority("server")?;
    let (node, node_key) = authority("node")?;
    Ok(Contents::of([
        ("server-ca.crt", server),
        ("server-ca.key", server_key),
        ("node-ca.crt", node),
        ("node-ca.key", node_key),
    ]))
}

/// What is in a Secret other than the one of the authorities; `None` for that one, see [`new_authorities`].
///
/// # Errors
/// When the library refuses.
pub fn contents(
    kind: SecretKind,
    request: &Request,
    authorities: &Authorities,
) -> Result<Option<Contents>, PkiError> {
    Ok(Some(match kind {
        SecretKind::Ca => return Ok(None),
        SecretKind::Server => server(request, authorities)?,
        SecretKind::Node => client(request, NODE, authorities)?,
        SecretKind::Superuser => client(request, OPERATOR, authorities)?,
        SecretKind::App => application(request, authorities),
    }))
}

fn server(request: &Request, authorities: &Authorities) -> Result<Contents, PkiError> {
    let mut params = certificate(request, &request.cluster.name);
    params.subject_alt_names = server_names(request)
        .into_iter()
        .map(|name| Ok(SanType::DnsName(name.try_into()?)))
        .collect::<Result<_, _>>()
        .map_err(refused("the names of the server certificate"))?;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let (certificate, key) = leaf(params, &authorities.server, "the server certificate")?;
    Ok(Contents::of([
        ("tls.crt", certificate),
        ("tls.key", key),
        ("client-ca.crt", authorities.node_pem.clone()),
    ]))
}

/// The names of every node's server, in one certificate: a worker that joins needs no new one.
///
/// The wildcards cover every Service of the namespace, and that is no more than it looks: the authority is the
/// cluster's own and only its clients trust it, so nobody else can be taken for one of these by it.
fn server_names(request: &Request) -> Vec<String> {
    let ClusterId { name, namespace, .. } = request.cluster;
    let domain = request.cluster_domain;
    vec![
        // A worker connects to itself so; the coordinator by the name of its pod, under the last wildcard.
        "localhost".to_owned(),
        name.clone(),
        format!("{name}.{namespace}"),
        format!("{name}.{namespace}.svc"),
        format!("{name}.{namespace}.svc.{domain}"),
        format!("*.{namespace}.svc.{domain}"),
        format!("*.{}.{namespace}.svc.{domain}", request.cluster.nodes_service()),
    ]
}

fn client(request: &Request, name: &str, authorities: &Authorities) -> Result<Contents, PkiError> {
    let mut params = certificate(request, name);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let (certificate, key) = leaf(params, &authorities.node, "a client certificate")?;
    Ok(Contents::of([("tls.crt", certificate), ("tls.key", key), ("ca.crt", authorities.server_pem.clone())]))
}

/// The keys people expect, with a password of letters and digits.
fn application(request: &Request, authorities: &Authorities) -> Contents {
    let Request { cluster, cluster_domain: domain, database, .. } = *request;
    let password = Alphanumeric.sample_string(&mut rand::rng(), PASSWORD);
    let root = ByteString(authorities.server_pem.clone().into_bytes());
    let keys = application::expected_keys(&password, Some(&root), &Names { cluster, domain, database });
    let keys = keys.into_iter().map(|(key, value)| (key.to_owned(), value));
    Contents(keys.chain([(application::PASSWORD.to_owned(), password.into_bytes())]).collect())
}

/// Every key is an ECDSA key on P-256: OpenSSL, Java and rustls all take it, and a handshake costs little.
fn new_key() -> Result<KeyPair, PkiError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(refused("a key"))
}

fn certificate(request: &Request, common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, common_name);
    params.distinguished_name = subject;
    let today = request.now.to_zoned(TimeZone::UTC).date();
    let midnight =
        |day: Date| date_time_ymd(day.year().into(), day.month().unsigned_abs(), day.day().unsigned_abs());
    params.not_before = midnight(today.saturating_sub(Span::new().days(1)));
    params.not_after = midnight(today.saturating_add(Span::new().years(YEARS)));
    params
}

fn leaf(
    mut params: CertificateParams,
    issuer: &Issuer<'static, KeyPair>,
    what: &'static str,
) -> Result<(String, String), PkiError> {
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    let key = new_key()?;
    let signed = params.signed_by(&key, issuer).map_err(refused(what))?;
    Ok((signed.pem(), key.serialize_pem()))
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use rustls::{
        RootCertStore,
        client::{WebPkiServerVerifier, danger::ServerCertVerifier as _},
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
        server::WebPkiClientVerifier,
    };
    use strum::IntoEnumIterator;

    use super::*;

    const NOW: i64 = 1_800_000_000;
    const DAY: i64 = 86_400;

    struct Cluster {
        id: ClusterId,
        database: DatabaseSpec,
    }

    impl Cluster {
        fn new() -> Self {
            let id = ClusterId { namespace: "shop".to_owned(), name: "talk".to_owned(), uid: "1".to_owned() };
            let database = DatabaseSpec {
                name: "messages".to_owned(),
                owner: "writer".to_owned(),
                ..DatabaseSpec::default()
            };
            Self { id, database }
        }
        fn request(&self) -> Request<'_> {
            Request {
                cluster: &self.id,
                cluster_domain: "cluster.local",
                database: &self.database,
                now: Timestamp::from_second(NOW).unwrap(),
            }
        }
        fn authorities(&self) -> Authorities {
            let data = new_authorities(&self.request()).unwrap().into_data();
            Authorities::read(&self.id, &data).unwrap()
        }
    }

    fn text(contents: &Contents, key: &str) -> String {
        String::from_utf8(contents.get(key).unwrap_or_else(|| panic!("no {key}")).to_vec()).unwrap()
    }

    fn certificate_of(contents: &Contents, key: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(contents.get(key).unwrap()).unwrap()
    }

    fn roots(contents: &Contents, key: &str) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(certificate_of(contents, key)).unwrap();
        Arc::new(roots)
    }

    fn at(days: i64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(NOW + days * DAY).unwrap()))
    }

    #[test]
    fn certificates_are_valid_for_ten_years_and_one_use() {
        let cluster = Cluster::new();
        let authorities = cluster.authorities();
        let made = |kind| contents(kind, &cluster.request(), &authorities).unwrap().unwrap();
        let (server, node) = (made(SecretKind::Server), made(SecretKind::Node));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let servers =
            WebPkiServerVerifier::builder_with_provider(roots(&node, "ca.crt"), Arc::clone(&provider))
                .build()
                .unwrap();
        let clients = WebPkiClientVerifier::builder_with_provider(roots(&server, "client-ca.crt"), provider)
            .build()
            .unwrap();
        let name = ServerName::try_from("talk-worker-9.shop.svc.cluster.local").unwrap();
        let (of_server, of_node) = (certificate_of(&server, "tls.crt"), certificate_of(&node, "tls.crt"));
        for (days, holds) in [(-3, false), (0, true), (9 * 365, true), (11 * 365, false)] {
            let now = at(days);
            let server = servers.verify_server_cert(&of_server, &[], &name, &[], now);
            assert_eq!(server.is_ok(), holds, "server after {days} days: {server:?}");
            let client = clients.verify_client_cert(&of_node, &[], now);
            assert_eq!(client.is_ok(), holds, "client after {days} days: {client:?}");
        }
        assert!(clients.verify_client_cert(&of_server, &[], at(0)).is_err(), "a server logs in as a node");
        assert!(servers.verify_server_cert(&of_node, &[], &name, &[], at(0)).is_err());
        for contents in [&server, &node, &made(SecretKind::Superuser)] {
            PrivateKeyDer::from_pem_slice(contents.get("tls.key").unwrap()).unwrap();
        }
    }

    /// A client that holds the old root alone, and never reads another, takes servers of the next one.
    #[test]
    fn the_next_authority_can_be_signed_by_this_one() {
        let cluster = Cluster::new();
        let old = cluster.authorities();
        let next = new_authorities(&cluster.request()).unwrap();
        let key = KeyPair::from_pem(&text(&next, "server-ca.key")).unwrap();
        let mut params = certificate(&cluster.request(), "talk server CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let between = params.signed_by(&key, &old.server).unwrap();
        let next = Authorities::read(&cluster.id, &next.into_data()).unwrap();
        let made = |kind, by: &Authorities| contents(kind, &cluster.request(), by).unwrap().unwrap();
        let server = certificate_of(&made(SecretKind::Server, &next), "tls.crt");
        let clients_root = roots(&made(SecretKind::Node, &old), "ca.crt");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let client = WebPkiServerVerifier::builder_with_provider(clients_root, provider).build().unwrap();
        let name = ServerName::try_from("talk.shop.svc").unwrap();
        let verify =
            |chain: &[CertificateDer<'_>]| client.verify_server_cert(&server, chain, &name, &[], at(0));
        verify(&[between.der().clone()]).unwrap();
        assert!(verify(&[]).is_err());
    }

    #[test]
    fn the_application_gets_the_keys_people_expect() {
        let cluster = Cluster::new();
        let authorities = cluster.authorities();
        let made = || contents(SecretKind::App, &cluster.request(), &authorities).unwrap().unwrap();
        let (app, again) = (made(), made());
        let password = text(&app, "password");
        assert!(password.len() == 32 && password.chars().all(|c| c.is_ascii_alphanumeric()));
        assert_ne!(password, text(&again, "password"));
        let host = "talk.shop.svc.cluster.local";
        assert_eq!([text(&app, "host"), text(&app, "port")], [host, "5432"]);
        assert_eq!([text(&app, "dbname"), text(&app, "user")], ["messages", "writer"]);
        assert!(text(&app, "uri").contains(&password) && text(&app, "uri").ends_with("?sslmode=require"));
        assert!(text(&app, "sslrootcert").starts_with("-----BEGIN CERTIFICATE-----"));
    }

    #[test]
    fn nothing_secret_is_printed() {
        let cluster = Cluster::new();
        let authorities = cluster.authorities();
        assert_eq!(format!("{authorities:?}"), "Authorities(..)");
        for kind in SecretKind::iter() {
            let Some(contents) = contents(kind, &cluster.request(), &authorities).unwrap() else {
                assert_eq!(kind, SecretKind::Ca);
                continue;
            };
            let printed = format!("{contents:?}");
            for (key, value) in contents.into_data() {
                assert!(printed.contains(&key));
                assert!(!printed.contains(&*String::from_utf8(value.0).unwrap()), "{kind} {key}");
            }
        }
    }

    #[test]
    fn an_incomplete_secret_is_named_with_its_key() {
        let cluster = Cluster::new();
        let mut data = new_authorities(&cluster.request()).unwrap().into_data();
        let key = data.insert("node-ca.key".to_owned(), ByteString(b"nonsense".to_vec())).unwrap();
        let error = Authorities::read(&cluster.id, &data).unwrap_err().to_string();
        assert!(error.contains("talk-ca") && error.contains("node-ca.key"), "{error}");
        assert!(!error.contains("nonsense"), "{error}");
        data.insert("node-ca.key".to_owned(), key);
        data.remove("server-ca.key");
        let error = Authorities::read(&cluster.id, &data).unwrap_err().to_string();
        assert!(error.contains("talk-ca") && error.contains("server-ca.key"), "{error}");
    }
}
