//! The authority: makes itself, issues certificates, signs the requests of machines that enrol.

pub use crate::renew::Trust;
use crate::{
    enrol::{self, WriteError},
    roles::{Fingerprint, Identity},
    tls::{CA_FILE, CERT_FILE, KEY_FILE},
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use std::{
    fmt, fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};
use time::OffsetDateTime;

/// Days an authority lives if not told otherwise.
pub const AUTHORITY_DAYS: u32 = 3650;
/// Days a certificate lives if not told otherwise: long, because one that ends unnoticed stops every renewal.
pub const CERTIFICATE_DAYS: u32 = 1825;
/// Certificates begin this long before now, for machines whose clock is behind.
const CLOCK_SKEW: Duration = Duration::from_secs(3600);

/// An authority that can't be made or used, or a request that can't be signed.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// Of the authority's files.
    #[error(
        "can't read {file}: {reason}; make an authority with `kagectl pki init --dir DIR`, or name the directory that holds its {CA_FILE} and {KEY_FILE}"
    )]
    Read {
        /// Which.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The key is another authority's.
    #[error("{key} is not the key of {certificate}: restore both from the same backup")]
    OtherKey {
        /// The key's file.
        key: PathBuf,
        /// The certificate's file.
        certificate: PathBuf,
    },
    /// The machine's request.
    #[error("the signing request can't be used: {0}; make a new one")]
    Request(String),
    /// The library refused.
    #[error("can't make the certificate of {0}: {1}")]
    Make(String, String),
    /// Files.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// A certificate authority with its key.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    ca_pem: String,
    fingerprint: Fingerprint,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("fingerprint", &self.fingerprint).finish_non_exhaustive()
    }
}

/// A new certificate with its key, both PEM.
#[derive(Clone)]
pub struct Issued {
    /// The certificate.
    pub certificate_pem: String,
    /// Its key.
    pub key_pem: String,
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued").field("certificate_pem", &self.certificate_pem).finish_non_exhaustive()
    }
}

/// What a certificate says.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Role and name.
    pub identity: Identity,
    /// Addresses for foreign clients (grpcurl, browsers); our own parts look at role and name only.
    pub addresses: Vec<IpAddr>,
    /// How long it is valid.
    pub days: u32,
}

impl Subject {
    /// With the usual life and no addresses beside loopback.
    #[must_use]
    pub fn new(identity: Identity) -> Self {
        Self { identity, addresses: Vec::new(), days: CERTIFICATE_DAYS }
    }
}

impl Authority {
    /// A new authority (ECDSA P-256) in `dir`: `ca.pem` and `key.pem` (mode 0600).
    ///
    /// # Errors
    /// If anything is in `dir` already, or it can't be written.
    pub fn create(dir: &Path, cluster: &str, days: u32) -> Result<Self, IssueError> {
        let make = |error: rcgen::Error| IssueError::Make(format!("authority {cluster}"), error.to_string());
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(make)?;
        let mut params = CertificateParams::default();
        // Two clusters of one name must not take their authorities for each other.
        let id = Fingerprint::of(key.public_key_raw()).to_string();
        params.distinguished_name = distinguished_name(&format!("Kagemusha authority {cluster} {}", &id[..8]));
        (params.not_before, params.not_after) = validity(days);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(make)?;
        let ca_pem = certificate.pem();
        enrol::write_dir(dir, &[(CA_FILE, &ca_pem), (KEY_FILE, &key.serialize_pem())])?;
        let fingerprint = Fingerprint::of(certificate.der());
        Ok(Self { issuer: Issuer::new(params, key), ca_pem, fingerprint })
    }

    /// From `ca.pem` and `key.pem` in `dir`.
    ///
    /// # Errors
    /// A file that is missing or damaged, or a key of another authority.
    pub fn load(dir: &Path) -> Result<Self, IssueError> {
        let (ca_file, key_file) = (dir.join(CA_FILE), dir.join(KEY_FILE));
        let read = |file: &Path| {
            let unreadable = |error: io::Error| IssueError::Read { file: file.to_owned(), reason: error.to_string() };
            fs::read_to_string(file).map_err(unreadable)
        };
        let bad = |file: &Path, reason: String| IssueError::Read { file: file.to_owned(), reason };
        let ca_pem = read(&ca_file)?;
        let der =
            CertificateDer::from_pem_slice(ca_pem.as_bytes()).map_err(|error| bad(&ca_file, error.to_string()))?;
        let key = KeyPair::from_pem(&read(&key_file)?).map_err(|error| bad(&key_file, error.to_string()))?;
        let parsed =
            rustls::server::ParsedCertificate::try_from(&der).map_err(|error| bad(&ca_file, error.to_string()))?;
        if !parsed.subject_public_key_info().ends_with(key.public_key_raw()) {
            return Err(IssueError::OtherKey { key: key_file, certificate: ca_file });
        }
        let issuer = Issuer::from_ca_cert_der(&der, key).map_err(|error| bad(&ca_file, error.to_string()))?;
        Ok(Self { issuer, ca_pem, fingerprint: Fingerprint::of(&der) })
    }

    /// Of the authority's certificate, as a token names it.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// The authority's certificate.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// A new key and its certificate.
    ///
    /// # Errors
    /// If the library refuses.
    pub fn issue(&self, subject: &Subject) -> Result<Issued, IssueError> {
        let make = |error: rcgen::Error| IssueError::Make(subject.identity.to_string(), error.to_string());
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(make)?;
        let certificate = leaf(subject).and_then(|params| params.signed_by(&key, &self.issuer)).map_err(make)?;
        Ok(Issued { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
    }

    /// A certificate for the key of a request. Only the key is taken from it: `subject` decides every name in it.
    ///
    /// # Errors
    /// A request that is damaged or not signed by its own key.
    pub fn sign(&self, csr_pem: &str, subject: &Subject) -> Result<String, IssueError> {
        let mut request = CertificateSigningRequestParams::from_pem(csr_pem)
            .map_err(|error| IssueError::Request(error.to_string()))?;
        let make = |error: rcgen::Error| IssueError::Make(subject.identity.to_string(), error.to_string());
        request.params = leaf(subject).map_err(make)?;
        Ok(request.signed_by(&self.issuer).map_err(make)?.pem())
    }

    /// Issues into a directory: `ca.pem`, `cert.pem`, `key.pem` (mode 0600), all at once.
    ///
    /// # Errors
    /// As [`Authority::issue`], or if anything is in `dir` already.
    pub fn issue_into(&self, subject: &Subject, dir: &Path) -> Result<(), IssueError> {
        let issued = self.issue(subject)?;
        enrol::write_dir(
            dir,
            &[(CA_FILE, &self.ca_pem), (CERT_FILE, &issued.certificate_pem), (KEY_FILE, &issued.key_pem)],
        )?;
        Ok(())
    }
}

fn distinguished_name(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

fn validity(days: u32) -> (OffsetDateTime, OffsetDateTime) {
    let now = OffsetDateTime::now_utc();
    (now - CLOCK_SKEW, now + Duration::from_secs(u64::from(days) * 86_400))
}

fn leaf(subject: &Subject) -> Result<CertificateParams, rcgen::Error> {
    let identity = &subject.identity;
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished_name(&format!("{}:{}", identity.role, identity.name));
    (params.not_before, params.not_after) = validity(subject.days);
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.subject_alt_names = vec![SanType::URI(identity.uri().try_into()?)];
    // An underscore is no DNS label: such a name is left out, foreign clients use the address.
    if !identity.name.contains('_') {
        params.subject_alt_names.push(SanType::DnsName(identity.name.as_str().try_into()?));
    }
    params.subject_alt_names.push(SanType::DnsName("localhost".try_into()?));
    let loopback = [IpAddr::from([127, 0, 0, 1]), IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])];
    let addresses = loopback.iter().chain(subject.addresses.iter().filter(|address| !loopback.contains(address)));
    params.subject_alt_names.extend(addresses.map(|address| SanType::IpAddress(*address)));
    Ok(params)
}
