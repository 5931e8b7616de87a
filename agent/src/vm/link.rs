//! One connection to libvirt, used by one thread.

use super::{sys, types::VmError};
use virt::{
    connect::Connect,
    domain::Domain,
    error::{Error, ErrorNumber},
};

/// An open connection; closed when dropped.
pub(super) struct Link {
    connect: Connect,
}

impl Link {
    /// Blocks until libvirtd has answered. Silence of libvirtd later closes the connection, so that calls end.
    pub(super) fn open(uri: &str) -> Result<Self, VmError> {
        sys::start_event_loop()?;
        let connect = Connect::open(Some(uri))
            .map_err(|error| VmError::Unreachable { uri: uri.to_owned(), reason: error.message().to_owned() })?;
        let link = Self { connect };
        sys::keep_alive(&link.connect);
        Ok(link)
    }

    pub(super) fn connect(&self) -> &Connect {
        &self.connect
    }

    /// No message is exchanged for this: the event loop notices a closed or silent connection.
    pub(super) fn is_alive(&self) -> bool {
        self.connect.is_alive().unwrap_or(false)
    }

    pub(super) fn domain(&self, name: &str) -> Result<Domain, VmError> {
        if name.contains('\0') {
            return Err(VmError::NoDomain { domain: name.to_owned() });
        }
        Domain::lookup_by_name(&self.connect, name).map_err(|error| self.fault(name, "find", &error))
    }

    /// What an error means to the caller.
    pub(super) fn fault(&self, domain: &str, action: &str, error: &Error) -> VmError {
        let reason = error.message().to_owned();
        if error.code() == ErrorNumber::NoDomain {
            return VmError::NoDomain { domain: domain.to_owned() };
        }
        if !self.is_alive() {
            return VmError::Lost { reason };
        }
        if error.code() == ErrorNumber::OperationAborted {
            return VmError::Cancelled { domain: domain.to_owned() };
        }
        VmError::Refused { domain: domain.to_owned(), action: action.to_owned(), reason }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Err(error) = self.connect.close() {
            tracing::debug!(%error, "closing the connection to libvirt");
        }
    }
}
