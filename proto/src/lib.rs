//! The gRPC contract of Kagemusha: generated code, roles, mutual TLS, wire and domain conversion.
//!
//! A server is made with [`server::Config`], a client with [`channel::channel`]; both prove who they are with a
//! [`tls::Pki`] and [`roles::RULES`] says who may call what.

#[cfg(feature = "server")]
mod accept;
#[cfg(feature = "server")]
mod access;
pub mod audit;
pub mod channel;
#[cfg(feature = "enrol")]
pub mod enrol;
#[cfg(feature = "issue")]
pub mod issue;
pub mod limits;
#[cfg(feature = "server")]
mod rate;
#[cfg(feature = "issue")]
mod renew;
pub mod roles;
mod rotate;
#[cfg(feature = "server")]
pub mod server;
pub mod tables;
pub mod tls;
#[cfg(feature = "enrol")]
pub mod token;
mod wire;

#[cfg(feature = "server")]
pub use access::{require, too_large};

/// Generated code of `kagemusha.agent.v1`.
#[allow(missing_docs, clippy::all, clippy::wildcard_enum_match_arm)]
pub mod agent {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("kagemusha.agent.v1");
    }
}

/// Generated code of `kagemusha.coordinator.v1`.
#[allow(missing_docs, clippy::all, clippy::wildcard_enum_match_arm)]
pub mod coordinator {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("kagemusha.coordinator.v1");
    }
}

/// Generated code of `kagemusha.sif.v1`.
#[allow(missing_docs, clippy::all, clippy::wildcard_enum_match_arm)]
pub mod sif {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("kagemusha.sif.v1");
    }
}

/// The contract as a `FileDescriptorSet`, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
