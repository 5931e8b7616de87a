//! When the certificates of the cluster end, as far as their bearers have told.

use kage_proto::{coordinator::v1::CertificateStatus, tls::Pki};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

/// Of this coordinator, of SIF, and of the agents that attend.
#[derive(Clone)]
pub struct Certificates(Arc<(Pki, Mutex<BTreeMap<String, u64>>)>);

impl Certificates {
    /// None but our own yet.
    pub fn new(pki: Pki) -> Self {
        Self(Arc::new((pki, Mutex::default())))
    }

    /// A bearer (role and name) says when its certificate ends.
    pub fn told(&self, who: String, ends_unix_s: u64) {
        self.0.1.lock().unwrap_or_else(PoisonError::into_inner).insert(who, ends_unix_s);
    }

    /// For status.
    pub fn status(&self) -> Vec<CertificateStatus> {
        let (pki, told) = &*self.0;
        let own = CertificateStatus { who: pki.identity().to_string(), ends_unix_s: pki.not_after_unix_s() };
        let told = told.lock().unwrap_or_else(PoisonError::into_inner);
        let others = told.iter().map(|(who, ends)| CertificateStatus { who: who.clone(), ends_unix_s: *ends });
        std::iter::once(own).chain(others).collect()
    }
}
