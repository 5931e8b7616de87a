//! The authority renews a certificate in place, while its bearer runs: each file is replaced whole, and the bearer reads
//! them again when all fit ([`crate::tls::Pki::follow`]).

use crate::{
    enrol::WriteError,
    issue::{Authority, IssueError, Subject},
    roles::Fingerprint,
    tls::{CA_FILE, CERT_FILE, KEY_FILE, identity_of},
};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use std::{
    fs,
    io::{self, Write as _},
    net::IpAddr,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, fchown},
    path::Path,
};
use x509_parser::{extensions::GeneralName, parse_x509_certificate};

/// What becomes of the other authorities in `ca.pem`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// They stay: a change of authority is under way, or there are none.
    Beside,
    /// They go.
    Alone,
}

impl Authority {
    /// A new key and certificate in the place of those in `dir`: same bearer and addresses, and as many days unless told
    /// otherwise. The old one may be of another authority, or have ended.
    ///
    /// # Errors
    /// Files that can't be read or written, a certificate that names no bearer.
    pub fn renew_in(&self, dir: &Path, trust: Trust, days: Option<u32>) -> Result<Subject, IssueError> {
        let file = dir.join(CERT_FILE);
        let bad = |reason: String| IssueError::Read { file: file.clone(), reason };
        let der = CertificateDer::from_pem_file(&file).map_err(|error| bad(error.to_string()))?;
        let mut subject = subject_of(&der).map_err(bad)?;
        subject.days = days.unwrap_or(subject.days);
        let issued = self.issue(&subject)?;
        // What is trusted first, then key and certificate: only between the last two do the files not fit.
        let bundle = self.bundle(dir, trust)?;
        replace(dir, CA_FILE, &bundle)?;
        replace(dir, KEY_FILE, &issued.key_pem)?;
        replace(dir, CERT_FILE, &issued.certificate_pem)?;
        Ok(subject)
    }

    /// Adds this authority to those trusted in `dir`.
    ///
    /// # Errors
    /// Files that can't be read or written.
    pub fn trust_in(&self, dir: &Path) -> Result<(), IssueError> {
        let bundle = self.bundle(dir, Trust::Beside)?;
        Ok(replace(dir, CA_FILE, &bundle)?)
    }

    /// This authority first: tokens name the first.
    fn bundle(&self, dir: &Path, trust: Trust) -> Result<String, IssueError> {
        let mut bundle = self.ca_pem().trim_end().to_owned() + "\n";
        if trust == Trust::Alone {
            return Ok(bundle);
        }
        let file = dir.join(CA_FILE);
        let bad = |reason: String| IssueError::Read { file: file.clone(), reason };
        let text = fs::read_to_string(&file).map_err(|error| bad(error.to_string()))?;
        for part in text.split_inclusive("-----END CERTIFICATE-----") {
            let Some(begin) = part.find("-----BEGIN CERTIFICATE-----") else { continue };
            let der =
                CertificateDer::from_pem_slice(&part.as_bytes()[begin..]).map_err(|error| bad(error.to_string()))?;
            if Fingerprint::of(&der) != self.fingerprint() {
                bundle.push_str(&part[begin..]);
                bundle.push('\n');
            }
        }
        Ok(bundle)
    }
}

/// Bearer, addresses beside loopback, length of life.
fn subject_of(der: &CertificateDer<'_>) -> Result<Subject, String> {
    let identity = identity_of(der).map_err(|error| error.to_string())?;
    let (_, parsed) = parse_x509_certificate(der).map_err(|error| error.to_string())?;
    let names = parsed.subject_alternative_name().map_err(|error| error.to_string())?;
    let names = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
    let address = |name: &GeneralName<'_>| {
        let GeneralName::IPAddress(bytes) = name else { return None };
        let address: IpAddr = match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok()?.into(),
            _ => <[u8; 16]>::try_from(*bytes).ok()?.into(),
        };
        (!address.is_loopback()).then_some(address)
    };
    let validity = parsed.validity();
    let seconds = validity.not_after.timestamp().saturating_sub(validity.not_before.timestamp());
    let days = u32::try_from(seconds / 86_400).map_err(|_| "it ends before it begins".to_owned())?.max(1);
    Ok(Subject { identity, addresses: names.iter().filter_map(address).collect(), days })
}

/// Whole or not at all; owner and mode as before.
fn replace(dir: &Path, name: &str, content: &str) -> Result<(), WriteError> {
    let file = dir.join(name);
    let fresh = dir.join(format!(".{name}.new"));
    let write = || -> io::Result<()> {
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let old = fs::metadata(&file)?;
        let mode = if name == KEY_FILE { old.mode() & 0o660 } else { old.mode() & 0o666 };
        let mut open = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&fresh)?;
        fchown(&open, Some(old.uid()), Some(old.gid()))?;
        open.write_all(content.as_bytes())?;
        open.sync_all()?;
        fs::rename(&fresh, &file)?;
        fs::File::open(dir)?.sync_all()
    };
    write().map_err(|reason| WriteError::Io { file: file.clone(), reason })
}
