//! A gRPC server with everything ours have in common: mutual TLS, the table of who may call what, audit, health,
//! reflection, limits.
//!
//! ```ignore
//! let server = Server::bind(&Config::new(listen, Security::Tls(pki))).await?.add(SifServer::new(sif));
//! server.run(async { stop.await }).await?;
//! ```

use crate::{
    DESCRIPTORS,
    accept::{Connection, accept},
    access::Guard,
    limits::Limits,
    rate::Rates,
    tls::Pki,
};
use std::{convert::Infallible, future::Future, io, net::SocketAddr};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    time::sleep,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    body::Body,
    codegen::{Service, http},
    server::NamedService,
    service::RoutesBuilder,
};
use tonic_health::{ServingStatus, server::HealthReporter};

/// A server that can't start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The address.
    #[error("can't listen on {address}: {reason}; is another instance running, and is the address this machine's?")]
    Bind {
        /// Which.
        address: SocketAddr,
        /// Why not.
        reason: io::Error,
    },
    /// Plaintext for strangers.
    #[error(
        "{0} is not a loopback address: without certificates only 127.0.0.0/8 and ::1 can be served; give this server a certificate (`kagectl pki issue`) or listen on loopback"
    )]
    PlaintextNotLoopback(SocketAddr),
    /// Certificates that TLS refuses.
    #[error("can't use this server's certificate: {0}; issue a new one with `kagectl pki issue`")]
    Tls(rustls::Error),
    /// A fault of the build.
    #[error("server reflection can't be built: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// While serving.
    #[error("the server on {address} failed: {reason}")]
    Serve {
        /// Where.
        address: SocketAddr,
        /// Why.
        reason: tonic::transport::Error,
    },
}

/// How callers prove who they are.
#[derive(Clone, Debug)]
pub enum Security {
    /// By certificates.
    Tls(Pki),
    /// Not at all: whoever is on this machine is an operator. Asked for explicitly, and on loopback only.
    PlaintextLoopback,
}

/// What a server is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen; port 0: any.
    pub listen: SocketAddr,
    /// How callers prove who they are.
    pub security: Security,
    /// Bounds.
    pub limits: Limits,
}

impl Config {
    /// With the usual limits.
    #[must_use]
    pub fn new(listen: SocketAddr, security: Security) -> Self {
        Self { listen, security, limits: Limits::default() }
    }
}

/// A server that listens, not yet serving.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<Pki>,
    limits: Limits,
    routes: RoutesBuilder,
    names: Vec<&'static str>,
    health: HealthReporter,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("address", &self.address).field("services", &self.names).finish_non_exhaustive()
    }
}

/// Calls above the limit of a connection that are refused at once.
const REFUSED_AT_ONCE: u32 = 64;

/// Connections whose handshake is done and that wait for tonic.
const READY_CONNECTIONS: usize = 128;

/// That this process may have.
fn descriptors() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.map_or(usize::MAX, |most| usize::try_from(most).unwrap_or(usize::MAX))
}

impl Server {
    /// Listens. Connections wait until [`Server::run`].
    ///
    /// # Errors
    /// An address that can't be had, plaintext on other than loopback, a certificate that TLS refuses.
    pub async fn bind(config: &Config) -> Result<Self, ServerError> {
        let tls = match &config.security {
            Security::Tls(pki) => {
                pki.server_config().map_err(ServerError::Tls)?;
                Some(pki.clone())
            }
            Security::PlaintextLoopback if config.listen.ip().is_loopback() => None,
            Security::PlaintextLoopback => return Err(ServerError::PlaintextNotLoopback(config.listen)),
        };
        let bind = |reason| ServerError::Bind { address: config.listen, reason };
        let listener = TcpListener::bind(config.listen).await.map_err(bind)?;
        let address = listener.local_addr().map_err(bind)?;
        let (health, health_service) = tonic_health::server::health_reporter();
        let mut server = Self {
            listener,
            address,
            tls,
            limits: config.limits.clone(),
            routes: RoutesBuilder::default(),
            names: Vec::new(),
            health,
        };
        server.routes.add_service(health_service);
        Ok(server)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// For a service to say that it is not serving now; each is serving from [`Server::run`] on.
    #[must_use]
    pub fn health(&self) -> HealthReporter {
        self.health.clone()
    }

    /// Adds a generated service, e.g. `SifServer::new(sif)`.
    #[must_use]
    #[allow(clippy::should_implement_trait, reason = "a builder's method")]
    pub fn add<S>(mut self, service: S) -> Self
    where
        S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        self.names.push(S::NAME);
        self.routes.add_service(service);
        self
    }

    /// Serves until `stop`; then no new calls, those under way may end within [`Limits::drain`], the rest is cut.
    ///
    /// # Errors
    /// [`ServerError::Serve`]; a failed connection is none.
    pub async fn run(mut self, stop: impl Future<Output = ()> + Send) -> Result<(), ServerError> {
        self.add_reflection()?;
        for name in &self.names {
            self.health.set_service_status(*name, ServingStatus::Serving).await;
        }
        let Self { listener, address, tls, limits, routes, .. } = self;
        let (wanted, limits) = (limits.connections, limits.within(descriptors()));
        if limits.connections < wanted {
            tracing::warn!(%address, "only {} connections are taken: raise the limit of open files (LimitNOFILE=8192)", limits.connections);
        }
        let (ready, connections) = mpsc::channel::<io::Result<Connection>>(READY_CONNECTIONS);
        tokio::spawn(accept(listener, tls, limits.clone(), ready));

        let (stopping, stopped) = oneshot::channel();
        let signal = async move {
            stop.await;
            // Nobody listens only if serving ended already.
            let _ = stopping.send(());
        };
        let rates = Rates::new(limits.commands, limits.looks);
        let guard = Guard::new(routes.routes(), rates, limits.calls_per_connection);
        let serving = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(limits.keepalive_interval))
            .http2_keepalive_timeout(Some(limits.keepalive_timeout))
            // Some above the limit reach the gate, which says what is wrong; HTTP/2 alone would leave them waiting.
            .max_concurrent_streams(limits.calls_per_connection.saturating_add(REFUSED_AT_ONCE))
            .serve_with_incoming_shutdown(guard, ReceiverStream::new(connections), signal);
        let overdue = async {
            if stopped.await.is_err() {
                std::future::pending::<()>().await;
            }
            sleep(limits.drain).await;
        };
        tokio::select! {
            served = serving => served.map_err(|reason| ServerError::Serve { address, reason }),
            () = overdue => {
                tracing::debug!(%address, "streams were open at the stop and are cut");
                Ok(())
            }
        }
    }

    /// Version 1, and v1alpha for older clients (grpcurl before 1.9).
    fn add_reflection(&mut self) -> Result<(), ServerError> {
        let builder = || {
            let builder = tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                .with_service_name("grpc.health.v1.Health");
            self.names.iter().fold(builder, |builder, name| builder.with_service_name(*name))
        };
        let v1 = builder().build_v1()?;
        let v1alpha = builder().build_v1alpha()?;
        self.routes.add_service(v1);
        self.routes.add_service(v1alpha);
        Ok(())
    }
}
