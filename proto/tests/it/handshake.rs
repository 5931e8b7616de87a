//! Who is refused before any call.

use crate::lab::{Cluster, Running, audited, certified, wait_until};
use kage_proto::{
    agent::v1::{GetVoterStateRequest, voter_client::VoterClient},
    channel::{Options, channel, reason},
    roles::Role,
    tls::{Expected, Pki},
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};
use std::{path::Path, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// A TLS client of no checks of its own: shows this certificate and reads until the server hangs up.
async fn knock(cluster: &Cluster, running: &Running, shown: Option<&Path>) -> (std::io::Result<Vec<u8>>, u16) {
    let config = raw_config(cluster, shown);
    let tcp = TcpStream::connect(running.address).await.expect("tcp");
    let port = tcp.local_addr().expect("address").port();
    let name = ServerName::try_from("localhost").expect("name");
    let mut tls = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await.expect("client's side");
    let _ = tls.write_all(b"x").await;
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(5), tls.read_to_end(&mut answer)).await.expect("hung up");
    (read.map(|_| answer), port)
}

pub fn raw_config(cluster: &Cluster, shown: Option<&Path>) -> rustls::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    let ca = CertificateDer::from_pem_slice(cluster.authority.ca_pem().as_bytes()).expect("ca");
    roots.add(ca).expect("root");
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("version")
        .with_root_certificates(roots);
    let mut config = match shown {
        None => builder.with_no_client_auth(),
        Some(dir) => {
            let (certificate, key) = certified(dir);
            let chain = vec![CertificateDer::from_pem_file(certificate).expect("certificate")];
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(key).expect("key")).expect("config")
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

#[tokio::test]
async fn another_authoritys_certificate_fails_the_handshake_and_is_audited() {
    let (ours, theirs) = (Cluster::new(), Cluster::new());
    let running = ours.serve(Role::Agent, "rs1").await;
    let foreign = theirs.issue(Role::Coordinator, "mallory", 1);
    let (read, port) = knock(&ours, &running, Some(&foreign)).await;
    assert!(read.is_err(), "{read:?}");
    audited(&["handshake", "another authority", &format!("127.0.0.1:{port}\"")]).await;
}

#[tokio::test]
async fn an_expired_certificate_fails_the_handshake_and_is_audited() {
    let cluster = Cluster::new();
    let running = cluster.serve(Role::Agent, "rs1").await;
    let stale = cluster.issue(Role::Coordinator, "late", 0);
    wait_until("the end of a certificate", || {
        Pki::load(&stale).is_err_and(|error| error.to_string().contains("expired"))
    })
    .await;
    let (read, port) = knock(&cluster, &running, Some(&stale)).await;
    assert!(read.is_err(), "{read:?}");
    audited(&["handshake", "expired", &format!("127.0.0.1:{port}\"")]).await;
}

#[tokio::test]
async fn a_silent_client_delays_nobody_and_is_audited() {
    let cluster = Cluster::new();
    let limit = Duration::from_millis(300);
    let running = cluster.serve_with(Role::Agent, "rs1", |config| config.limits.handshake = limit).await;
    let silent = TcpStream::connect(running.address).await.expect("tcp");
    let channel = cluster.channel(&running, Role::Coordinator, "c", Role::Agent);
    VoterClient::new(channel).get_voter_state(GetVoterStateRequest {}).await.expect("served meanwhile");
    let port = silent.local_addr().expect("address").port();
    audited(&["handshake", "no TLS handshake within 300ms", &format!("127.0.0.1:{port}\"")]).await;
}

#[tokio::test]
async fn too_many_handshakes_are_closed_and_audited() {
    let cluster = Cluster::new();
    let running = cluster.serve_with(Role::Agent, "rs1", |config| config.limits.handshakes = 1).await;
    let _first = TcpStream::connect(running.address).await.expect("tcp");
    let mut second = TcpStream::connect(running.address).await.expect("tcp");
    let port = second.local_addr().expect("address").port();
    // Closed with data unread or not: an end or a reset.
    let read = second.read(&mut [0; 8]).await;
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    audited(&["too many handshakes", &format!("127.0.0.1:{port}\"")]).await;
}

/// A connection from an address of this machine, with a handshake or without.
async fn dial(from: [u8; 4], running: &Running) -> TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().expect("socket");
    socket.bind((from, 0).into()).expect("bind");
    socket.connect(running.address).await.expect("tcp")
}

#[tokio::test]
async fn when_all_places_are_taken_the_busiest_address_gives_up_its_oldest() {
    let cluster = Cluster::new();
    let running = cluster.serve_with(Role::Agent, "rs1", |config| config.limits.handshakes = 3).await;
    let mut strangers = Vec::new();
    for last in [1, 2, 2] {
        strangers.push(dial([127, 0, 2, last], &running).await);
    }
    // An address that has as many already gets no more.
    let mut another = dial([127, 0, 2, 2], &running).await;
    let port = another.local_addr().expect("address").port();
    let read = another.read(&mut [0; 8]).await;
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    audited(&["too many handshakes at once", &format!("127.0.2.2:{port}\"")]).await;

    let channel = cluster.channel(&running, Role::Coordinator, "c", Role::Agent);
    VoterClient::new(channel).get_voter_state(GetVoterStateRequest {}).await.expect("let in");
    let port = strangers[1].local_addr().expect("address").port();
    let read = strangers[1].read(&mut [0; 8]).await;
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    audited(&["this one gave way", &format!("127.0.2.2:{port}\"")]).await;
    for stays in [0, 2] {
        let read = strangers[stays].try_read(&mut [0; 8]);
        assert!(read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock), "{stays} stays");
    }
}

#[tokio::test]
async fn who_says_nothing_after_its_handshake_or_has_no_certificate_does_not_stay() {
    let cluster = Cluster::new();
    let short = Duration::from_millis(500);
    let running = cluster
        .serve_with(Role::Agent, "rs1", |config| {
            (config.limits.handshake, config.limits.anonymous_stay) = (short, 3 * short);
            config.limits.anonymous_connections = 1;
        })
        .await;
    let agent = cluster.issue(Role::Agent, "rs5", 1);
    // Says what, as whom; is hung up on after how long.
    let preface: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    for (shown, says, ends) in [
        (Some(&agent), &b""[..], Some(short)),
        (Some(&agent), preface, None),
        (None, b"", Some(short)),
        (None, preface, Some(3 * short)),
        (None, preface, Some(3 * short)),
    ] {
        let config = raw_config(&cluster, shown.map(std::path::PathBuf::as_path));
        let tcp = TcpStream::connect(running.address).await.expect("tcp");
        let name = ServerName::try_from("localhost").expect("name");
        let mut tls = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await.expect("handshake");
        let begun = std::time::Instant::now();
        tls.write_all(says).await.expect("said");
        let mut heard = Vec::new();
        let read = tokio::time::timeout(4 * short, tls.read_to_end(&mut heard)).await;
        let (took, case) = (begun.elapsed(), (shown.is_some(), says.len()));
        match ends {
            None => assert!(read.is_err(), "{case:?} was hung up on after {took:?}"),
            Some(least) => assert!(read.is_ok() && took >= least / 2, "{case:?}: {read:?} after {took:?}"),
        }
    }
}

async fn refusal(channel: tonic::transport::Channel) -> String {
    let status = VoterClient::new(channel).get_voter_state(GetVoterStateRequest {}).await.expect_err("refused");
    assert_eq!(status.code(), tonic::Code::Unavailable, "{status:?}");
    reason(&status)
}

#[tokio::test]
async fn a_client_refuses_a_server_of_the_wrong_role_or_name() {
    let cluster = Cluster::new();
    let running = cluster.serve(Role::Agent, "rs1").await;
    let text = refusal(cluster.channel(&running, Role::Operator, "o", Role::Coordinator)).await;
    assert!(text.contains("the server is agent rs1, not coordinator"), "{text}");

    let credentials = cluster.credentials(Role::Coordinator, "c");
    let to = |name: &str| {
        let agent = kage_types::AgentId::new(name).expect("name");
        channel(&running.address.to_string(), &credentials, Expected::agent(&agent), &Options::default())
            .expect("channel")
    };
    let text = refusal(to("rs2")).await;
    assert!(text.contains("the server is agent rs1, not agent rs2"), "{text}");
    VoterClient::new(to("rs1")).get_voter_state(GetVoterStateRequest {}).await.expect("the right one");
}

#[tokio::test]
async fn a_client_refuses_a_server_of_another_authority() {
    let (ours, theirs) = (Cluster::new(), Cluster::new());
    let running = theirs.serve(Role::Agent, "rs1").await;
    let text = refusal(ours.channel(&running, Role::Coordinator, "c", Role::Agent)).await;
    assert!(text.contains("not of the authority"), "{text}");
}

#[tokio::test]
async fn a_certificate_without_a_role_is_refused() {
    use rcgen::{CertificateParams, Issuer, KeyPair};
    let cluster = Cluster::new();
    let running = cluster.serve(Role::Agent, "rs1").await;
    let key =
        KeyPair::from_pem(&std::fs::read_to_string(cluster.dir.path().join("ca/key.pem")).expect("key")).expect("key");
    let issuer = Issuer::from_ca_cert_pem(cluster.authority.ca_pem(), key).expect("issuer");
    let own = KeyPair::generate().expect("key");
    let certificate =
        CertificateParams::new(vec!["x".to_owned()]).expect("names").signed_by(&own, &issuer).expect("sign");
    let dir = cluster.dir.path().join("roleless");
    std::fs::create_dir(&dir).expect("dir");
    std::fs::write(dir.join("cert.pem"), certificate.pem()).expect("write");
    std::fs::write(dir.join("key.pem"), own.serialize_pem()).expect("write");
    let (_, port) = knock(&cluster, &running, Some(&dir)).await;
    audited(&["names no role", &format!("127.0.0.1:{port}\"")]).await;
}
