//! How a machine without a certificate gets one: it makes a key, sends a request with its token, and believes the
//! coordinator by the authority's fingerprint in the token.

use crate::{
    channel::{ChannelError, Credentials, Options, Tls, channel, connect_lazily},
    coordinator::v1::{EnrolReply, EnrolRequest, RenewRequest, enrolment_client::EnrolmentClient},
    roles::{Fingerprint, Identity, Role},
    tls::{CA_FILE, CERT_FILE, Expected, KEY_FILE, Pki, PkiError, pinned_client_config},
    token::Token,
};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// For the whole call: a person waits for it.
const ENROL_LIMIT: Duration = Duration::from_secs(15);
/// The request as it was sent, kept until the answer is written: a retry after a lost answer sends the same.
const REQUEST_FILE: &str = "request.pem";

/// An enrolment that failed.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// Key or request.
    #[error("can't make a key for {0}: {1}")]
    Make(String, String),
    /// Channel.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// TLS refuses even to begin.
    #[error("can't begin TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// No answer, or a refusal.
    #[error("the coordinator at {coordinator} did not enrol {identity}: {reason}; if the token was used or is too old, make a new one with `kagectl pki token --name {}`", .identity.name)]
    Refused {
        /// Where.
        coordinator: String,
        /// Who.
        identity: Identity,
        /// Why.
        reason: String,
    },
    /// The same, of one that has a certificate.
    #[error(
        "the coordinator at {coordinator} did not renew the certificate of {identity}: {reason}; `kagectl pki renew` does it by hand"
    )]
    NotRenewed {
        /// Where.
        coordinator: String,
        /// Who.
        identity: Identity,
        /// Why.
        reason: String,
    },
    /// An answer that doesn't fit the token.
    #[error("the coordinator's answer is refused: {0}")]
    Answer(String),
    /// The certificate can't be used.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// Files.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// A new key (ECDSA P-256) and a signing request for it.
#[derive(Clone)]
pub struct Request {
    /// PEM certificate signing request.
    pub csr_pem: String,
    /// Its key, which stays on this machine.
    pub key_pem: String,
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request").field("csr_pem", &self.csr_pem).finish_non_exhaustive()
    }
}

/// Makes a key and a signing request. The name in it is for people; the token decides.
///
/// # Errors
/// If the system gives no random numbers.
pub fn new_csr(name: &str) -> Result<Request, EnrolError> {
    let failed = |error: rcgen::Error| EnrolError::Make(name.to_owned(), error.to_string());
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let csr_pem = params.serialize_request(&key).and_then(|csr| csr.pem()).map_err(failed)?;
    Ok(Request { csr_pem, key_pem: key.serialize_pem() })
}

/// Enrols this machine: `dir` then holds `ca.pem`, `cert.pem` and `key.pem`, or nothing.
///
/// May be repeated after a failure: the same request is sent again, and a coordinator that had signed it answers the
/// same.
///
/// # Errors
/// A coordinator that is not of the token's authority, does not answer or refuses; a directory in use.
pub async fn enrol(token: &Token, dir: &Path) -> Result<Pki, EnrolError> {
    if !is_free(dir).map_err(failed(dir))? {
        return Err(WriteError::Exists(dir.to_owned()).into());
    }
    let staging = staging_of(dir);
    let csr_pem = stage_request(&staging, &token.identity.name)?;
    let reply = ask(token, csr_pem).await?;
    check_authority(&reply, token.authority)?;
    for (name, content) in [(CA_FILE, &reply.ca_pem), (CERT_FILE, &reply.certificate_pem)] {
        let file = staging.join(name);
        remove(&file, fs::remove_file(&file))?;
        write_file(&file, content).map_err(failed(&file))?;
    }
    let pki = Pki::load(&staging)?;
    if *pki.identity() != token.identity {
        return Err(EnrolError::Answer(format!(
            "the certificate is of {}, the token of {}",
            pki.identity(),
            token.identity
        )));
    }
    let request = staging.join(REQUEST_FILE);
    fs::remove_file(&request).map_err(failed(&request))?;
    publish(&staging, dir).map_err(failed(dir))?;
    Ok(pki)
}

/// The request kept from an earlier try, else a new one.
fn stage_request(staging: &Path, name: &str) -> Result<String, EnrolError> {
    let request = staging.join(REQUEST_FILE);
    if staging.join(KEY_FILE).exists()
        && let Ok(csr_pem) = fs::read_to_string(&request)
    {
        return Ok(csr_pem);
    }
    remove(staging, fs::remove_dir_all(staging))?;
    let made = new_csr(name)?;
    if let Some(parent) = staging.parent() {
        fs::create_dir_all(parent).map_err(failed(parent))?;
    }
    make_dir(staging).map_err(failed(staging))?;
    // The request last: its presence says that the key is whole.
    for (name, content) in [(KEY_FILE, &made.key_pem), (REQUEST_FILE, &made.csr_pem)] {
        let file = staging.join(name);
        write_file(&file, content).map_err(failed(&file))?;
    }
    Ok(made.csr_pem)
}

async fn ask(token: &Token, csr_pem: String) -> Result<EnrolReply, EnrolError> {
    let config = pinned_client_config(token.authority, Expected::role(Role::Coordinator))?;
    let options = Options { connect_timeout: Duration::from_secs(5), ..Options::default() };
    let channel = connect_lazily(&token.coordinator, Some(Tls::Fixed(Arc::new(config))), &options)?;
    let mut request = tonic::Request::new(EnrolRequest { secret: token.secret.clone(), csr_pem });
    request.set_timeout(ENROL_LIMIT);
    let reply = EnrolmentClient::new(channel).enrol(request).await.map_err(|status| EnrolError::Refused {
        coordinator: token.coordinator.clone(),
        identity: token.identity.clone(),
        reason: crate::channel::reason(&status),
    })?;
    Ok(reply.into_inner())
}

/// Gets a new certificate for a new key, as this agent and no other, and puts both in the place of the old ones. The
/// authority stays as it is: it is the operator who changes that.
///
/// # Errors
/// As [`enrol`]. What was there stays in use.
pub async fn renew(pki: &Pki, coordinator: &str) -> Result<(), EnrolError> {
    let identity = pki.identity();
    let made = new_csr(&identity.name)?;
    let credentials = Credentials::Tls(pki.clone());
    let options = Options { connect_timeout: Duration::from_secs(5), ..Options::default() };
    let channel = channel(coordinator, &credentials, Expected::role(Role::Coordinator), &options)?;
    let mut request = tonic::Request::new(RenewRequest { csr_pem: made.csr_pem });
    request.set_timeout(ENROL_LIMIT);
    let reply = EnrolmentClient::new(channel).renew(request).await.map_err(|status| EnrolError::NotRenewed {
        coordinator: coordinator.to_owned(),
        identity: identity.clone(),
        reason: crate::channel::reason(&status),
    })?;
    let dir = pki.dir();
    let staging = dir.join(".renewed");
    remove(&staging, fs::remove_dir_all(&staging))?;
    make_dir(&staging).map_err(failed(&staging))?;
    let authorities = dir.join(CA_FILE);
    let ca_pem = fs::read_to_string(&authorities).map_err(failed(&authorities))?;
    let files = [(CA_FILE, &ca_pem), (CERT_FILE, &reply.into_inner().certificate_pem), (KEY_FILE, &made.key_pem)];
    for (name, content) in files {
        let file = staging.join(name);
        write_file(&file, content).map_err(failed(&file))?;
    }
    // Of our authority, with our role and the new key, or not at all.
    let fresh = Pki::load(&staging)?;
    if fresh.identity() != identity {
        return Err(EnrolError::Answer(format!("the certificate is of {}, not of {identity}", fresh.identity())));
    }
    for name in [KEY_FILE, CERT_FILE] {
        let file = dir.join(name);
        fs::rename(staging.join(name), &file).map_err(failed(&file))?;
    }
    fs::File::open(&dir).and_then(|dir| dir.sync_all()).map_err(failed(&dir))?;
    remove(&staging, fs::remove_dir_all(&staging))?;
    Ok(pki.reload()?)
}

fn check_authority(reply: &EnrolReply, expected: Fingerprint) -> Result<(), EnrolError> {
    let authorities: Vec<_> = CertificateDer::pem_slice_iter(reply.ca_pem.as_bytes()).filter_map(Result::ok).collect();
    if authorities.iter().any(|der| Fingerprint::of(der) == expected) {
        Ok(())
    } else {
        Err(EnrolError::Answer(format!("it is not of the authority {expected} that the token names")))
    }
}

/// Files that can't be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// Nothing is overwritten.
    #[error(
        "{0} is there already and nothing was changed; name another directory, or move it away if it is no longer used"
    )]
    Exists(PathBuf),
    /// The system refused.
    #[error("can't write {file}: {reason}")]
    Io {
        /// Which.
        file: PathBuf,
        /// Why.
        reason: io::Error,
    },
}

/// Writes a directory of PEM files all at once: either every file is there or none. Mode 0700, files 0600 if their
/// name is that of a key and 0644 else. An empty directory of that name is replaced.
#[cfg(feature = "issue")]
pub(crate) fn write_dir(dir: &Path, files: &[(&str, &str)]) -> Result<(), WriteError> {
    if !is_free(dir).map_err(failed(dir))? {
        return Err(WriteError::Exists(dir.to_owned()));
    }
    let staging = staging_of(dir);
    if let Some(parent) = dir.parent() {
        fs::create_dir_all(parent).map_err(failed(parent))?;
    }
    remove(&staging, fs::remove_dir_all(&staging))?;
    make_dir(&staging).map_err(failed(&staging))?;
    for (name, content) in files {
        let file = staging.join(name);
        write_file(&file, content).map_err(failed(&file))?;
    }
    publish(&staging, dir).map_err(failed(dir))
}

fn failed(file: &Path) -> impl FnOnce(io::Error) -> WriteError {
    let file = file.to_owned();
    move |reason| WriteError::Io { file, reason }
}

/// A removal of what need not be there.
fn remove(file: &Path, removed: io::Result<()>) -> Result<(), WriteError> {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(file)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn make_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o700).create(dir)
}

/// Is nothing there, or an empty directory?
fn is_free(dir: &Path) -> io::Result<bool> {
    match fs::read_dir(dir) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

fn staging_of(dir: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(dir.file_name().unwrap_or_default());
    name.push(".new");
    dir.with_file_name(name)
}

fn write_file(file: &Path, content: &str) -> io::Result<()> {
    let mode = if file.ends_with(crate::tls::KEY_FILE) { 0o600 } else { 0o644 };
    let mut open = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(file)?;
    open.write_all(content.as_bytes())?;
    open.sync_all()
}

/// Renames and makes it durable. Fails, changing nothing, if `dir` is no longer free.
fn publish(staging: &Path, dir: &Path) -> io::Result<()> {
    fs::File::open(staging)?.sync_all()?;
    fs::rename(staging, dir)?;
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::File::open(parent)?.sync_all()?;
    }
    Ok(())
}
