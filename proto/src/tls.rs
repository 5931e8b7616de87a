//! The files that prove who we are, and the rules by which we believe others.
//!
//! TLS 1.3 with client certificates, one private authority. Host names and addresses in certificates mean nothing
//! between our own parts: the role and name do, so that a machine's address can change without a new certificate.
//! Sessions are never resumed: an expired certificate must not live on in a ticket.

pub use crate::rotate::{EXPIRY_NOTICE, Pki};

use crate::roles::{Fingerprint, Identity};
use rustls::{
    DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

/// The authority's certificate(s); during a change of authority both.
pub const CA_FILE: &str = "ca.pem";
/// Our certificate.
pub const CERT_FILE: &str = "cert.pem";
/// Our private key.
pub const KEY_FILE: &str = "key.pem";

/// Files that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// Missing, unreadable or not PEM.
    #[error(
        "can't read {file}: {reason}; make it with `kagectl pki issue --dir AUTHORITY --role ROLE --name NAME --out {dir}`, or on an agent's machine with `kage-agent enrol TOKEN`"
    )]
    Read {
        /// Which.
        file: PathBuf,
        /// Its directory.
        dir: String,
        /// What is wrong.
        reason: String,
    },
    /// Certificate and authority don't belong together, or it is past its time.
    #[error("{file} is not valid: {reason}; issue a new one with `kagectl pki issue`")]
    Invalid {
        /// Which.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Certificate and key don't belong together.
    #[error("{key} is not the key of {certificate}: {reason}; issue both anew with `kagectl pki issue`")]
    Key {
        /// The key's file.
        key: PathBuf,
        /// The certificate's file.
        certificate: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// Our certificate, its key and our authority, as they were read at one time.
pub(crate) struct Material {
    roots: Arc<RootCertStore>,
    authorities: Vec<CertificateDer<'static>>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    pub(crate) identity: Identity,
    pub(crate) not_after: UnixTime,
    /// Made when the first connection comes.
    server: OnceLock<Arc<rustls::ServerConfig>>,
}

impl Material {
    pub(crate) fn load(dir: &Path) -> Result<Self, PkiError> {
        let key_file = dir.join(KEY_FILE);
        let key = PrivateKeyDer::from_pem_file(&key_file).map_err(|error| unreadable(&key_file, pem_reason(error)))?;
        let chain = read_certificates(&dir.join(CERT_FILE))?;
        Self::new(read_certificates(&dir.join(CA_FILE))?, chain, key, dir)
    }

    fn new(
        authorities: Vec<CertificateDer<'static>>,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        dir: &Path,
    ) -> Result<Self, PkiError> {
        let certificate = dir.join(CERT_FILE);
        let roots = roots_of(&authorities).map_err(|reason| PkiError::Invalid { file: dir.join(CA_FILE), reason })?;
        let invalid = |reason: String| PkiError::Invalid { file: certificate.clone(), reason };
        let Some((leaf, intermediates)) = chain.split_first() else {
            return Err(unreadable(&certificate, "it holds no certificate".to_owned()));
        };
        verify_chain(leaf, intermediates, &roots, UnixTime::now(), Usage::Client)
            .map_err(|error| invalid(chain_reason(&error)))?;
        let identity = identity_of(leaf).map_err(|error| invalid(error.to_string()))?;
        let not_after =
            end_of(leaf, intermediates, &roots).ok_or_else(|| invalid("its end can't be read".to_owned()))?;
        let server = OnceLock::new();
        let material = Self { roots: Arc::new(roots), authorities, chain, key, identity, not_after, server };
        let keyed = rustls::sign::CertifiedKey::from_der(material.presented(), material.key.clone_key(), &provider());
        keyed.map_err(|error| PkiError::Key { key: dir.join(KEY_FILE), certificate, reason: error.to_string() })?;
        Ok(material)
    }

    pub(crate) fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(self.chain.first().map_or(&[], |leaf| leaf.as_ref()))
    }

    pub(crate) fn authorities(&self) -> Vec<Fingerprint> {
        self.authorities.iter().map(|authority| Fingerprint::of(authority)).collect()
    }

    pub(crate) fn authority_fingerprint(&self) -> Fingerprint {
        Fingerprint::of(self.authorities.first().map_or(&[], |authority| authority.as_ref()))
    }

    /// What we show: our chain and the authority, by whose fingerprint a machine without certificates knows us.
    fn presented(&self) -> Vec<CertificateDer<'static>> {
        self.chain.iter().chain(&self.authorities).cloned().collect()
    }

    /// For a server: client certificates of our authority are checked, their absence is left to the RPC's rule.
    pub(crate) fn server_config(&self) -> Result<Arc<rustls::ServerConfig>, rustls::Error> {
        if let Some(made) = self.server.get() {
            return Ok(made.clone());
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(self.roots.clone(), provider())
            .allow_unauthenticated()
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        let mut config = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.presented(), self.key.clone_key())?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.send_tls13_tickets = 0;
        Ok(self.server.get_or_init(|| Arc::new(config)).clone())
    }

    /// For a client that believes servers of our authority with the expected role.
    pub(crate) fn client_config(&self, expected: Expected) -> Result<rustls::ClientConfig, rustls::Error> {
        let verifier = RoleVerifier { trust: Trust::Roots(self.roots.clone()), expected };
        let config = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())?;
        Ok(finish(config))
    }
}

fn finish(mut config: rustls::ClientConfig) -> rustls::ClientConfig {
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    config
}

/// For a machine without certificates: believes a server whose authority has this fingerprint.
#[cfg(feature = "enrol")]
pub(crate) fn pinned_client_config(
    authority: Fingerprint,
    expected: Expected,
) -> Result<rustls::ClientConfig, rustls::Error> {
    let config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(RoleVerifier { trust: Trust::Pinned(authority), expected }))
        .with_no_client_auth();
    Ok(finish(config))
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn unreadable(file: &Path, reason: String) -> PkiError {
    let dir = file.parent().unwrap_or(file).display().to_string();
    PkiError::Read { file: file.to_owned(), dir, reason }
}

fn pem_reason(error: rustls::pki_types::pem::Error) -> String {
    use rustls::pki_types::pem::Error;
    if let Error::Io(error) = error {
        error.to_string()
    } else if let Error::NoItemsFound = error {
        "nothing of the kind in it".to_owned()
    } else {
        error.to_string()
    }
}

fn read_certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    let certificates: Vec<_> = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect)
        .map_err(|error| unreadable(file, pem_reason(error)))?;
    if certificates.is_empty() {
        return Err(unreadable(file, "it holds no certificate".to_owned()));
    }
    Ok(certificates)
}

fn roots_of(authorities: &[CertificateDer<'static>]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority.clone()).map_err(|error| error.to_string())?;
    }
    Ok(roots)
}

#[derive(Clone, Copy)]
enum Usage {
    Client,
    Server,
}

fn verify_chain(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: &RootCertStore,
    now: UnixTime,
    usage: Usage,
) -> Result<(), webpki::Error> {
    let leaf = webpki::EndEntityCert::try_from(leaf)?;
    let usage = match usage {
        Usage::Client => webpki::KeyUsage::client_auth(),
        Usage::Server => webpki::KeyUsage::server_auth(),
    };
    let algorithms = provider().signature_verification_algorithms.all;
    leaf.verify_for_usage(algorithms, &roots.roots, intermediates, now, usage, None, None).map(|_| ())
}

/// When a certificate ends: what a verification in the far future complains of.
fn end_of(leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>], roots: &RootCertStore) -> Option<UnixTime> {
    /// Beyond any date a certificate can name.
    const FAR: UnixTime = UnixTime::since_unix_epoch(Duration::from_secs(u64::MAX));
    match verify_chain(leaf, intermediates, roots, FAR, Usage::Client) {
        Err(webpki::Error::CertExpired { not_after, .. }) => Some(not_after),
        Ok(()) | Err(_) => None,
    }
}

fn chain_reason(error: &webpki::Error) -> String {
    if let webpki::Error::CertExpired { .. } = error {
        "it has expired".to_owned()
    } else if let webpki::Error::CertNotValidYet { .. } = error {
        "it is not valid yet (is this machine's clock right?)".to_owned()
    } else if let webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey = error {
        format!("it is not of the authority in {CA_FILE}")
    } else {
        error.to_string()
    }
}

/// A certificate of our authority that doesn't say who its bearer is.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Not readable.
    #[error("the certificate can't be read: {0}")]
    Malformed(String),
    /// Not made by kagectl.
    #[error("the certificate names no role (one URI name kagemusha:ROLE:NAME)")]
    NoRole,
}

/// Who a certificate says its bearer is; it must say so exactly once.
pub(crate) fn identity_of(certificate: &CertificateDer<'_>) -> Result<Identity, IdentityError> {
    let parsed =
        webpki::EndEntityCert::try_from(certificate).map_err(|error| IdentityError::Malformed(error.to_string()))?;
    let mut identities = parsed.valid_uri_names().filter_map(Identity::from_uri);
    match (identities.next(), identities.next()) {
        (Some(identity), None) => Ok(identity),
        (Some(_), Some(_)) | (None, _) => Err(IdentityError::NoRole),
    }
}

/// Whom a client wants at the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Its role.
    pub role: crate::roles::Role,
    /// Its name; none: any of that role.
    pub name: Option<String>,
}

impl Expected {
    /// Any of a role.
    #[must_use]
    pub fn role(role: crate::roles::Role) -> Self {
        Self { role, name: None }
    }

    /// This agent and no other.
    #[must_use]
    pub fn agent(agent: &kage_types::AgentId) -> Self {
        Self { role: crate::roles::Role::Agent, name: Some(agent.as_str().to_owned()) }
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{} {name}", self.role),
            None => write!(f, "{}", self.role),
        }
    }
}

#[derive(Debug)]
enum Trust {
    Roots(Arc<RootCertStore>),
    #[cfg_attr(not(feature = "enrol"), allow(dead_code))]
    Pinned(Fingerprint),
}

/// Believes a server by its authority and role; addresses and host names don't matter.
#[derive(Debug)]
struct RoleVerifier {
    trust: Trust,
    expected: Expected,
}

impl RoleVerifier {
    fn roots(&self, shown: &[CertificateDer<'_>]) -> Result<Arc<RootCertStore>, rustls::Error> {
        match &self.trust {
            Trust::Roots(roots) => Ok(roots.clone()),
            Trust::Pinned(fingerprint) => {
                let authority = shown.iter().find(|der| Fingerprint::of(der) == *fingerprint).ok_or_else(|| {
                    rustls::Error::General(format!(
                        "the server is not of the authority {fingerprint} that the token names"
                    ))
                })?;
                roots_of(&[authority.clone().into_owned()]).map(Arc::new).map_err(rustls::Error::General)
            }
        }
    }
}

impl ServerCertVerifier for RoleVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let refuse = |reason: String| rustls::Error::General(reason);
        let roots = self.roots(intermediates)?;
        verify_chain(end_entity, intermediates, &roots, now, Usage::Server)
            .map_err(|error| refuse(format!("the server's certificate is refused: {}", chain_reason(&error))))?;
        let identity = identity_of(end_entity).map_err(|error| refuse(error.to_string()))?;
        let expected = &self.expected;
        if identity.role != expected.role || expected.name.as_ref().is_some_and(|name| *name != identity.name) {
            return Err(refuse(format!(
                "the server is {identity}, not {expected}: is this the right address and port?"
            )));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not offered".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
