//! Accepts connections and shakes hands, many at a time, auditing every failure.

use crate::{
    access::Connected,
    audit,
    limits::Limits,
    roles::{Caller, Fingerprint, Peer},
    tls::{Pki, identity_of},
    wire::{Wire, tune},
};
use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;

/// A connection whose peer is known.
#[derive(Debug)]
pub(crate) struct Connection {
    wire: Wire,
    known: Connected,
    /// Counted against the limits for as long as it lives.
    _permits: [Option<OwnedSemaphorePermit>; 2],
}

impl tonic::transport::server::Connected for Connection {
    /// Goes into the extensions of every request.
    type ConnectInfo = Connected;
    fn connect_info(&self) -> Connected {
        self.known.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().wire).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().wire).poll_write(cx, buf)
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().wire).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.wire.is_write_vectored()
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().wire).poll_flush(cx)
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().wire).poll_shutdown(cx)
    }
}

/// Pause after the system refused an accept (no descriptors left): without it the loop would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts until the receiver is gone. `tls` absent: plaintext, for a listener on loopback.
pub(crate) async fn accept(
    listener: TcpListener,
    tls: Option<Pki>,
    limits: Limits,
    connections: mpsc::Sender<io::Result<Connection>>,
) {
    let door = Arc::new(Door {
        tls,
        connections: Arc::new(Semaphore::new(limits.connections)),
        anonymous: Arc::new(Semaphore::new(limits.anonymous_connections)),
        handshakes: Arc::new(Semaphore::new(limits.handshakes)),
        by_address: Mutex::default(),
        limits,
    });
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = connections.closed() => return,
        };
        match accepted {
            Ok((tcp, address)) => match door.begin(address) {
                Ok(visit) => {
                    let connections = connections.clone();
                    tokio::spawn(async move {
                        match visit.enter(tcp).await {
                            Ok(connection) => drop(connections.send(Ok(connection)).await),
                            Err(reason) => audit::no_connection(address, &reason),
                        }
                    });
                }
                Err(reason) => audit::no_connection(address, reason),
            },
            Err(error) => {
                tracing::warn!(%error, "can't accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

struct Door {
    tls: Option<Pki>,
    limits: Limits,
    connections: Arc<Semaphore>,
    anonymous: Arc<Semaphore>,
    handshakes: Arc<Semaphore>,
    by_address: Mutex<HashMap<IpAddr, usize>>,
}

/// One connection on its way in.
struct Visit {
    door: Arc<Door>,
    address: SocketAddr,
    connection: Option<OwnedSemaphorePermit>,
    _handshake: OwnedSemaphorePermit,
}

impl Door {
    /// Within all limits?
    fn begin(self: &Arc<Self>, address: SocketAddr) -> Result<Visit, &'static str> {
        let Ok(connection) = self.connections.clone().try_acquire_owned() else { return Err("too many connections") };
        let Ok(handshake) = self.handshakes.clone().try_acquire_owned() else {
            return Err("too many handshakes at once");
        };
        let mut by_address = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        let here = by_address.entry(address.ip()).or_default();
        if *here >= self.limits.handshakes_per_address && !address.ip().is_loopback() {
            return Err("too many handshakes at once from this address");
        }
        *here += 1;
        Ok(Visit { door: self.clone(), address, connection: Some(connection), _handshake: handshake })
    }
}

impl Visit {
    async fn enter(mut self, tcp: TcpStream) -> Result<Connection, String> {
        let limits = &self.door.limits;
        tune(&tcp, limits.keepalive_interval + limits.keepalive_timeout).map_err(|error| error.to_string())?;
        let connection = self.connection.take();
        let Some(pki) = &self.door.tls else {
            let peer = Peer { caller: Caller::Local, address: self.address };
            return Ok(Connection { wire: Wire::Plain(tcp), known: fresh(peer), _permits: [connection, None] });
        };
        let acceptor = TlsAcceptor::from(pki.server_config().map_err(|error| error.to_string())?);
        let tls = match timeout(limits.handshake, acceptor.accept(tcp)).await {
            Ok(Ok(tls)) => tls,
            Ok(Err(error)) => return Err(handshake_reason(&error)),
            Err(_) => return Err(format!("no TLS handshake within {:?}", limits.handshake)),
        };
        let (caller, anonymous) = match tls.get_ref().1.peer_certificates().and_then(<[_]>::first) {
            Some(certificate) => {
                let identity = identity_of(certificate).map_err(|error| error.to_string())?;
                (Caller::Certified { identity, fingerprint: Fingerprint::of(certificate) }, None)
            }
            None => match self.door.anonymous.clone().try_acquire_owned() {
                Ok(permit) => (Caller::Anonymous, Some(permit)),
                Err(_) => return Err("too many connections without a certificate".to_owned()),
            },
        };
        let peer = Peer { caller, address: self.address };
        let wire = Wire::Tls(Box::new(tls.into()));
        Ok(Connection { wire, known: fresh(peer), _permits: [connection, anonymous] })
    }
}

/// A connection without calls.
fn fresh(peer: Peer) -> Connected {
    Connected { peer, open: Arc::default() }
}

/// In words for the audit log.
fn handshake_reason(error: &io::Error) -> String {
    use rustls::{CertificateError, Error};
    let cause = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    if let Some(Error::InvalidCertificate(reason)) = cause {
        return if let CertificateError::Expired | CertificateError::ExpiredContext { .. } = reason {
            "the client's certificate has expired".to_owned()
        } else if let CertificateError::UnknownIssuer | CertificateError::BadSignature = reason {
            "the client's certificate is of another authority".to_owned()
        } else {
            format!("the client's certificate is refused: {reason}")
        };
    }
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return "closed before the TLS handshake was done".to_owned();
    }
    error.to_string()
}

impl Drop for Visit {
    fn drop(&mut self) {
        let mut by_address = self.door.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(here) = by_address.get_mut(&self.address.ip()) {
            *here -= 1;
            if *here == 0 {
                by_address.remove(&self.address.ip());
            }
        }
    }
}
