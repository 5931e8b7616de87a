//! Certificates that change while we run: every new connection is made with the files as they are now, those that are
//! open stay as they were made.

use crate::{
    roles::{Fingerprint, Identity},
    tls::{CA_FILE, CERT_FILE, Expected, KEY_FILE, Material, PkiError},
};
use rustls::pki_types::UnixTime;
use std::{
    fmt, fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, interval},
};

/// The certificates of one of our parts. Clones share what is read again.
#[derive(Clone)]
pub struct Pki {
    dir: Arc<Path>,
    identity: Arc<Identity>,
    now: Arc<RwLock<Arc<Material>>>,
}

/// A certificate that ends within this time is told of.
pub const EXPIRY_NOTICE: Duration = Duration::from_secs(30 * 24 * 3600);
/// How often the files are looked at; nothing but three `stat`.
const LOOK: Duration = Duration::from_secs(5);
/// How often a certificate that ends soon is told of.
const REMIND: Duration = Duration::from_secs(24 * 3600);

impl fmt::Debug for Pki {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pki").field("dir", &self.dir).field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// Which files these are, as far as the file system tells.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp([Option<(u64, u64, i64, i64)>; 3]);

impl Stamp {
    fn of(dir: &Path) -> Self {
        Self([CA_FILE, CERT_FILE, KEY_FILE].map(|name| {
            let meta = fs::metadata(dir.join(name)).ok()?;
            Some((meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec()))
        }))
    }
}

impl Pki {
    /// From `ca.pem`, `cert.pem` and `key.pem` in a directory. Warns in the log if the certificate ends within 30 days.
    ///
    /// # Errors
    /// A file that can't be read, a certificate that is expired, of another authority or without a role, or a key
    /// that is not the certificate's.
    pub fn load(dir: &Path) -> Result<Self, PkiError> {
        let material = Material::load(dir)?;
        let identity = Arc::new(material.identity.clone());
        let pki = Self { dir: dir.into(), identity, now: Arc::new(RwLock::new(Arc::new(material))) };
        pki.remind();
        Ok(pki)
    }

    /// Reads the files again. What is wrong with them changes nothing.
    ///
    /// # Errors
    /// As [`Pki::load`]; or a certificate of another bearer.
    pub fn reload(&self) -> Result<(), PkiError> {
        let fresh = Material::load(&self.dir)?;
        if fresh.identity != *self.identity {
            let reason = format!("it is of {}, this is {}", fresh.identity, self.identity);
            return Err(PkiError::Invalid { file: self.dir.join(CERT_FILE), reason });
        }
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(fresh);
        Ok(())
    }

    /// Reads the files again when they change, and on SIGHUP; reminds daily of a certificate that ends soon. For ever.
    pub async fn follow(self) {
        let mut read = Stamp::of(&self.dir);
        // Changed between loading and now: once more does no harm.
        let mut again = true;
        let mut looks = interval(LOOK);
        let mut reminded = Instant::now();
        let mut hangups = signal(SignalKind::hangup()).ok();
        loop {
            let told = async {
                match &mut hangups {
                    Some(hangups) => hangups.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = looks.tick() => {}
                _ = told => again = true,
            }
            let now = Stamp::of(&self.dir);
            if std::mem::take(&mut again) || now != read {
                read = now;
                self.take_up();
            }
            if reminded.elapsed() >= REMIND {
                reminded = Instant::now();
                self.remind();
            }
        }
    }

    fn take_up(&self) {
        let before = self.seen();
        match self.reload() {
            Ok(()) if self.seen() == before => {}
            Ok(()) => {
                let (ends_unix_s, fingerprint) = (self.not_after_unix_s(), self.fingerprint());
                tracing::info!(dir = %self.dir.display(), ends_unix_s, %fingerprint, "certificates read again; new connections use them");
                self.remind();
            }
            // Often only in the midst of being replaced: the next look sees the rest.
            Err(error) => tracing::warn!(%error, "changed certificates can't be used; those read before stay in use"),
        }
    }

    fn seen(&self) -> (Fingerprint, Vec<Fingerprint>) {
        let now = self.current();
        (now.fingerprint(), now.authorities())
    }

    fn remind(&self) {
        let left = self.not_after_unix_s().saturating_sub(UnixTime::now().as_secs());
        if left < EXPIRY_NOTICE.as_secs() {
            let days_left = left / 86_400;
            let file = self.dir.join(CERT_FILE);
            tracing::warn!(file = %file.display(), days_left, "certificate ends soon: `kagectl pki renew` makes a new one, which is taken up without a restart");
        }
    }

    fn current(&self) -> Arc<Material> {
        self.now.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where the files are.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        self.dir.to_path_buf()
    }

    /// Who we are.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// When our certificate ends, in seconds since 1970.
    #[must_use]
    pub fn not_after_unix_s(&self) -> u64 {
        self.current().not_after.as_secs()
    }

    /// Of our certificate.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.current().fingerprint()
    }

    /// Of the (first) authority's certificate, as a token names it.
    #[must_use]
    pub fn authority_fingerprint(&self) -> Fingerprint {
        self.current().authority_fingerprint()
    }

    pub(crate) fn server_config(&self) -> Result<Arc<rustls::ServerConfig>, rustls::Error> {
        self.current().server_config()
    }

    pub(crate) fn client_config(&self, expected: Expected) -> Result<rustls::ClientConfig, rustls::Error> {
        self.current().client_config(expected)
    }
}
