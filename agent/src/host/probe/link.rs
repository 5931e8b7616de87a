//! What carries a probe's conversation.

use super::Transport;
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsConnector;

/// After a probe the server may say the rest for so long: closing a socket with unread data would reset the
/// connection, and some servers log that as an attack.
const FAREWELL: Duration = Duration::from_secs(1);
/// So much of the rest is read.
const FAREWELL_BYTES: u64 = 64 * 1024;
/// A connection that is not there after a third of the time is tried again beside the first: a lost SYN is otherwise
/// repeated after one second only, longer than most probes last.
const ATTEMPTS: u32 = 3;

pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

pub(super) enum Link {
    Stream(Box<dyn Duplex>),
    Datagrams(UdpSocket),
}

impl Link {
    /// Connect. The source address is the host's usual one for that way.
    pub async fn open(transport: &Transport, target: SocketAddr, within: Duration) -> io::Result<Self> {
        match transport {
            Transport::Udp => {
                let any: IpAddr = match target {
                    SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                    SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
                };
                let socket = UdpSocket::bind((any, 0)).await?;
                socket.connect(target).await?;
                Ok(Link::Datagrams(socket))
            }
            Transport::Tcp => Ok(Link::Stream(Box::new(connect(target, within).await?))),
            Transport::Tls(name) => {
                let stream = connect(target, within).await?;
                let name = match name {
                    Some(name) => ServerName::try_from(name.clone()).map_err(|_| {
                        io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is no host name"))
                    })?,
                    None => ServerName::IpAddress(target.ip().into()),
                };
                Ok(Link::Stream(Box::new(TlsConnector::from(tls()?).connect(name, stream).await?)))
            }
        }
    }

    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Link::Stream(stream) => {
                stream.write_all(bytes).await?;
                stream.flush().await
            }
            Link::Datagrams(socket) => socket.send(bytes).await.map(drop),
        }
    }

    /// 0: the other side has closed.
    pub async fn receive(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Link::Stream(stream) => stream.read(into).await,
            Link::Datagrams(socket) => socket.recv(into).await,
        }
    }

    /// Close politely, in the background: FIN, then whatever the other side still says, then the end.
    pub fn close(self) {
        if let Link::Stream(mut stream) = self {
            tokio::spawn(async move {
                let farewell = async {
                    stream.shutdown().await?;
                    tokio::io::copy(&mut stream.take(FAREWELL_BYTES), &mut tokio::io::sink()).await
                };
                // The result is known already; whatever goes wrong now is the other side's.
                let _ = timeout(FAREWELL, farewell).await;
            });
        }
    }
}

async fn connect(target: SocketAddr, within: Duration) -> io::Result<TcpStream> {
    let mut attempts = JoinSet::new();
    for number in 0..ATTEMPTS {
        attempts.spawn(TcpStream::connect(target));
        let patience = if number + 1 == ATTEMPTS { within } else { within / ATTEMPTS };
        if let Ok(Some(done)) = timeout(patience, attempts.join_next()).await {
            let stream = done.map_err(io::Error::other)??;
            stream.set_nodelay(true)?;
            return Ok(stream);
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

fn tls() -> io::Result<Arc<ClientConfig>> {
    static CONFIG: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    if let Some(config) = CONFIG.get() {
        return Ok(Arc::clone(config));
    }
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_no_client_auth();
    Ok(Arc::clone(CONFIG.get_or_init(|| Arc::new(config))))
}

/// Takes any certificate: a probe asks whether the service serves and tells it no secret. A wrong or expired
/// certificate is no reason to move a virtual IP.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
