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
    collections::{BTreeMap, HashMap},
    future::Future as _,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::{Sleep, sleep, timeout},
};
use tokio_rustls::TlsAcceptor;

/// A connection whose peer is known.
#[derive(Debug)]
pub(crate) struct Connection {
    wire: Wire,
    known: Connected,
    /// It is closed then, unless it has said something.
    until: Option<Pin<Box<Sleep>>>,
    /// Once it has said something, it may stay so long; none: for ever.
    stay: Option<Duration>,
    spoken: bool,
    /// Counted against the limits for as long as it lives.
    _permits: [Option<OwnedSemaphorePermit>; 2],
}

impl Connection {
    /// Without calls.
    fn new(wire: Wire, peer: Peer, permits: [Option<OwnedSemaphorePermit>; 2]) -> Self {
        let known = Connected { peer, open: Arc::default() };
        Self { wire, known, until: None, stay: None, spoken: false, _permits: permits }
    }
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
        let this = self.get_mut();
        if this.until.as_mut().is_some_and(|until| until.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut this.wire).poll_read(cx, buf);
        if !this.spoken && buf.filled().len() > before {
            this.spoken = true;
            this.until = this.stay.map(|stay| Box::pin(sleep(stay)));
            if let Some(until) = &mut this.until {
                // So that its end wakes us; it is not now.
                let _later = until.as_mut().poll(cx).is_pending();
            }
        }
        read
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
        handshakes: Mutex::default(),
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
    handshakes: Mutex<Handshakes>,
}

/// Those under way. When all places are taken, the address that has the most gives up its oldest to one that has fewer:
/// strangers, who can be slow on purpose, keep no agent out.
#[derive(Default)]
struct Handshakes {
    /// Dropped, it ends the handshake.
    by_address: HashMap<IpAddr, BTreeMap<u64, oneshot::Sender<()>>>,
    count: usize,
    last: u64,
}

impl Handshakes {
    fn begin(&mut self, address: IpAddr, limits: &Limits) -> Result<(u64, oneshot::Receiver<()>), &'static str> {
        let here = self.by_address.get(&address).map_or(0, BTreeMap::len);
        if here >= limits.handshakes_per_address && !address.is_loopback() {
            return Err("too many handshakes at once from this address");
        }
        if self.count >= limits.handshakes && !self.make_room(here) {
            return Err("too many handshakes at once");
        }
        let (keep, gives_way) = oneshot::channel();
        self.last += 1;
        self.count += 1;
        self.by_address.entry(address).or_default().insert(self.last, keep);
        Ok((self.last, gives_way))
    }

    /// For one of an address that has so many.
    fn make_room(&mut self, here: usize) -> bool {
        let oldest = |address: &IpAddr, all: &BTreeMap<u64, _>| Some((all.len(), *all.keys().next()?, *address));
        let busiest = self.by_address.iter().filter_map(|(address, all)| oldest(address, all));
        match busiest.max_by_key(|(count, number, _)| (*count, std::cmp::Reverse(*number))) {
            Some((count, number, address)) if count > here => {
                self.end(address, number);
                true
            }
            Some(_) | None => false,
        }
    }

    fn end(&mut self, address: IpAddr, number: u64) {
        let Some(all) = self.by_address.get_mut(&address) else { return };
        if all.remove(&number).is_some() {
            self.count -= 1;
        }
        if all.is_empty() {
            self.by_address.remove(&address);
        }
    }
}

/// One connection on its way in.
struct Visit {
    door: Arc<Door>,
    address: SocketAddr,
    connection: Option<OwnedSemaphorePermit>,
    number: u64,
    gives_way: oneshot::Receiver<()>,
}

impl Door {
    /// Within all limits?
    fn begin(self: &Arc<Self>, address: SocketAddr) -> Result<Visit, &'static str> {
        let Ok(connection) = self.connections.clone().try_acquire_owned() else { return Err("too many connections") };
        let (number, gives_way) = self.handshakes().begin(address.ip(), &self.limits)?;
        Ok(Visit { door: self.clone(), address, connection: Some(connection), number, gives_way })
    }

    fn handshakes(&self) -> MutexGuard<'_, Handshakes> {
        self.handshakes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Visit {
    async fn enter(mut self, tcp: TcpStream) -> Result<Connection, String> {
        let limits = &self.door.limits;
        tune(&tcp, limits.keepalive_interval + limits.keepalive_timeout).map_err(|error| error.to_string())?;
        let connection = self.connection.take();
        let Some(pki) = &self.door.tls else {
            let peer = Peer { caller: Caller::Local, address: self.address };
            return Ok(Connection::new(Wire::Plain(tcp), peer, [connection, None]));
        };
        let acceptor = TlsAcceptor::from(pki.server_config().map_err(|error| error.to_string())?);
        let handshake = tokio::select! {
            handshake = timeout(limits.handshake, acceptor.accept(tcp)) => handshake,
            _ = &mut self.gives_way => return Err("too many handshakes at once: this one gave way".to_owned()),
        };
        let tls = match handshake {
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
        let stay = anonymous.is_some().then_some(limits.anonymous_stay);
        let connection = Connection::new(Wire::Tls(Box::new(tls.into())), peer, [connection, anonymous]);
        Ok(Connection { until: Some(Box::pin(sleep(limits.handshake))), stay, ..connection })
    }
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
        self.door.handshakes().end(self.address.ip(), self.number);
    }
}
