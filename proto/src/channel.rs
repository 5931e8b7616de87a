//! Channels to our servers. They connect when first used and again whenever needed, and believe a server by its
//! authority and role, not by its address.

use crate::{
    tls::{Expected, Pki},
    wire::{Wire, tune},
};
use hyper_util::rt::TokioIo;
use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;
use tonic::{
    codegen::{Service, http::Uri},
    transport::{Channel, Endpoint},
};

/// A channel that can't be made.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// Not an address.
    #[error("{0:?} is no address: give HOST:PORT, e.g. 10.0.0.1:7700 or [fd00::1]:7700")]
    Address(String),
    /// Plaintext to another machine.
    #[error(
        "{0} is not this machine: without certificates only loopback can be called; give the directory of a certificate"
    )]
    PlaintextNotLoopback(String),
    /// Certificates that TLS refuses.
    #[error("can't use this certificate: {0}; issue a new one with `kagectl pki issue`")]
    Tls(rustls::Error),
}

/// How we prove who we are.
#[derive(Clone, Debug)]
pub enum Credentials {
    /// By a certificate.
    Tls(Pki),
    /// Not at all, on this machine.
    PlaintextLoopback,
}

/// How soon a channel gives up on its server.
#[derive(Clone, Debug)]
pub struct Options {
    /// For connection and TLS handshake.
    pub connect_timeout: Duration,
    /// A quiet connection is asked for a sign of life (HTTP/2 ping) this often …
    pub keepalive_interval: Duration,
    /// … and given up if none comes in this time.
    pub keepalive_timeout: Duration,
    /// Sent data must be acknowledged within this time (TCP_USER_TIMEOUT).
    pub user_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(1),
            keepalive_interval: Duration::from_secs(5),
            keepalive_timeout: Duration::from_secs(5),
            user_timeout: Duration::from_secs(5),
        }
    }
}

impl Options {
    /// For lease traffic: a dead server is noticed within `limit`, whether we are sending or waiting.
    #[must_use]
    pub fn noticing_within(limit: Duration) -> Self {
        Self {
            connect_timeout: limit,
            keepalive_interval: limit / 2,
            keepalive_timeout: limit / 2,
            user_timeout: limit,
        }
    }
}

/// A channel to `address` (HOST:PORT), to a server of the expected role. Needs a tokio runtime. Every call on it wants
/// a deadline of its own (`Request::set_timeout`).
///
/// # Errors
/// An address without port, plaintext to other than loopback, a certificate that TLS refuses. That the server is not
/// there, or not the expected one, is the error of the call: UNAVAILABLE with the reason in it.
pub fn channel(
    address: &str,
    credentials: &Credentials,
    expected: Expected,
    options: &Options,
) -> Result<Channel, ChannelError> {
    let tls = match credentials {
        Credentials::Tls(pki) => {
            pki.client_config(expected.clone()).map_err(ChannelError::Tls)?;
            Some(Tls::Live(pki.clone(), expected))
        }
        Credentials::PlaintextLoopback => None,
    };
    connect_lazily(address, tls, options)
}

/// How a connection begins TLS.
#[derive(Clone)]
pub(crate) enum Tls {
    /// With the certificates as they are then.
    Live(Pki, Expected),
    /// Always so.
    #[cfg_attr(not(feature = "enrol"), allow(dead_code))]
    Fixed(Arc<rustls::ClientConfig>),
}

impl Tls {
    fn connector(&self) -> io::Result<TlsConnector> {
        Ok(TlsConnector::from(match self {
            Tls::Live(pki, expected) => Arc::new(pki.client_config(expected.clone()).map_err(io::Error::other)?),
            Tls::Fixed(config) => config.clone(),
        }))
    }
}

pub(crate) fn connect_lazily(address: &str, tls: Option<Tls>, options: &Options) -> Result<Channel, ChannelError> {
    let bad = || ChannelError::Address(address.to_owned());
    // The scheme is for tonic only: TLS is the connector's.
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|_| bad())?;
    let (Some(host), Some(_), "/") = (endpoint.uri().host(), endpoint.uri().port_u16(), endpoint.uri().path()) else {
        return Err(bad());
    };
    if host.is_empty() {
        return Err(bad());
    }
    if tls.is_none() && !is_loopback(host) {
        return Err(ChannelError::PlaintextNotLoopback(address.to_owned()));
    }
    let connector = Connector { address: address.into(), tls, options: options.clone() };
    Ok(endpoint
        .http2_keep_alive_interval(options.keepalive_interval)
        .keep_alive_timeout(options.keepalive_timeout)
        .keep_alive_while_idle(true)
        .connect_with_connector_lazy(connector))
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Why a call failed, causes included: tonic's own message of a connection that fails is "transport error".
#[must_use]
pub fn reason(status: &tonic::Status) -> String {
    const EMPTY: &str = "transport error";
    let mut parts = vec![status.message().to_owned()];
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        let cause = error.to_string();
        if !parts.iter().any(|part| part.contains(&cause)) {
            parts.push(cause);
        }
        source = error.source();
    }
    parts.retain(|part| !part.is_empty() && part != EMPTY);
    if parts.is_empty() { status.code().to_string() } else { parts.join(": ") }
}

#[derive(Clone)]
struct Connector {
    address: Arc<str>,
    tls: Option<Tls>,
    options: Options,
}

impl Connector {
    async fn connect(self) -> io::Result<TokioIo<Wire>> {
        let limit = self.options.connect_timeout;
        let told =
            |error: io::Error| io::Error::new(error.kind(), format!("can't connect to {}: {error}", self.address));
        match timeout(limit, self.handshake()).await {
            Ok(wire) => wire.map(TokioIo::new).map_err(told),
            Err(_) => Err(told(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {limit:?}")))),
        }
    }

    async fn handshake(&self) -> io::Result<Wire> {
        let tcp = TcpStream::connect(&*self.address).await?;
        tune(&tcp, self.options.user_timeout)?;
        let Some(tls) = &self.tls else { return Ok(Wire::Plain(tcp)) };
        // The verifier looks at the role; TLS wants some name and none is sent.
        let name = rustls::pki_types::ServerName::IpAddress(tcp.peer_addr()?.ip().into());
        let stream = tls.connector()?.connect(name, tcp).await?;
        Ok(Wire::Tls(Box::new(stream.into())))
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Wire>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<Wire>>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect())
    }
}
