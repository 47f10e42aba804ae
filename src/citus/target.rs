//! Where a server is and with which certificates it is spoken to. How a connection is made, and what is said over it, is
//! elsewhere.

use std::{fmt, net::IpAddr, sync::Arc, time::Duration};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio_postgres_rustls::MakeRustlsConnect;

/// How long a server may take to accept a connection, the login included.
pub(super) const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Name of the node, for errors.
    pub node: String,
    /// The address that is connected to: the pod's, so that a DNS cache cannot lead elsewhere.
    pub hostaddr: IpAddr,
    /// The DNS name of the node's Service: the one that the server's certificate must have.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The database.
    pub database: String,
}

/// Whether and how a connection is encrypted.
#[derive(Clone, Debug)]
pub enum Tls {
    /// Not at all: for servers on the same machine, in tests.
    Off,
    /// TLS, and each side shows a certificate.
    Mutual(ClientTls),
}

/// The operator's side of TLS. Its Debug form shows nothing.
#[derive(Clone)]
pub struct ClientTls(MakeRustlsConnect);

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientTls")
    }
}

/// Certificates that cannot be used. The message never holds a key.
#[derive(Debug, thiserror::Error)]
#[error("the operator's certificates cannot be used: {what}: {why}")]
pub struct TlsError {
    what: &'static str,
    why: String,
}

impl ClientTls {
    /// From PEM: the authorities that sign servers, the client's certificate with its chain, and its key (PKCS#8, SEC1
    /// or PKCS#1).
    ///
    /// # Errors
    /// When one of them is missing or malformed, or the key is not the certificate's.
    pub fn from_pem(server_ca: &[u8], certificate: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let error = |what| move |why: &dyn fmt::Display| TlsError { what, why: why.to_string() };
        let certificates = |what, pem| -> Result<Vec<CertificateDer<'static>>, TlsError> {
            let all = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
            let all = all.map_err(|why| error(what)(&why))?;
            if all.is_empty() { Err(error(what)(&"there is none in the PEM")) } else { Ok(all) }
        };
        let mut roots = RootCertStore::empty();
        for authority in certificates("certificate authority of the servers", server_ca)? {
            roots.add(authority).map_err(|why| error("certificate authority of the servers")(&why))?;
        }
        let chain = certificates("client certificate", certificate)?;
        // The parser's error could quote the PEM.
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|_| error("client key")(&"it is no private key in PEM form"))?;
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|why| error("TLS")(&why))?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(|why| error("client certificate and key")(&why))?;
        Ok(Self(MakeRustlsConnect::new(config)))
    }

    pub(super) fn connector(&self) -> MakeRustlsConnect {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Pem {
        authority: String,
        certificate: String,
        key: String,
    }

    fn pem() -> Pem {
        let authority_key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority = params.self_signed(&authority_key).unwrap();
        let issuer = rcgen::Issuer::new(params, authority_key);
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = rcgen::CertificateParams::new(vec!["postgres".to_owned()]).unwrap();
        let leaf = leaf.signed_by(&key, &issuer).unwrap();
        Pem { authority: authority.pem(), certificate: leaf.pem(), key: key.serialize_pem() }
    }

    #[test]
    fn certificates_of_the_operator_are_taken() {
        let pem = pem();
        let tls =
            ClientTls::from_pem(pem.authority.as_bytes(), pem.certificate.as_bytes(), pem.key.as_bytes());
        assert_eq!(format!("{:?}", tls.unwrap()), "ClientTls");
    }

    #[test]
    fn bad_certificates_are_named_and_keys_are_not_shown() {
        let (one, other) = (pem(), pem());
        let try_with = |ca: &str, certificate: &str, key: &str| {
            let error =
                ClientTls::from_pem(ca.as_bytes(), certificate.as_bytes(), key.as_bytes()).unwrap_err();
            let text = format!("{error} {error:?}");
            assert!(!text.contains(key) || key.is_empty(), "{text}");
            text
        };
        assert!(try_with("", &one.certificate, &one.key).contains("certificate authority of the servers"));
        assert!(try_with(&one.authority, "rubbish", &one.key).contains("client certificate"));
        assert!(try_with(&one.authority, &one.certificate, "").contains("client key"));
        assert!(
            try_with(&one.authority, &one.certificate, &other.key).contains("client certificate and key")
        );
    }
}
