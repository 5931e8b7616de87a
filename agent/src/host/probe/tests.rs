use super::*;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::sync::Arc;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UdpSocket},
};

const SHORT: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(10);

/// Says these lines, each after it has heard something (the first at once if `greets`). What it hears afterwards is
/// sent to the test: Ok(0) is a FIN, an error a reset.
async fn server(
    greets: bool,
    lines: &'static [&'static [u8]],
) -> (SocketAddr, tokio::sync::oneshot::Receiver<std::io::Result<usize>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    let (ended, end) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("accept");
        let mut chunk = [0; 512];
        for (index, line) in lines.iter().enumerate() {
            if (index > 0 || !greets) && stream.read(&mut chunk).await.unwrap_or(0) == 0 {
                return;
            }
            // Byte by byte: the probe must put lines together.
            for byte in *line {
                if stream.write_all(&[*byte]).await.is_err() {
                    return;
                }
                tokio::task::yield_now().await;
            }
        }
        let last = loop {
            match stream.read(&mut chunk).await {
                Ok(0) => break Ok(0),
                Ok(_) => {}
                Err(error) => break Err(error),
            }
        };
        let _ = ended.send(last);
    });
    (address, end)
}

fn step(send: &[u8], expect: &str, wrong: &str) -> Step {
    let regex = |text: &str| (!text.is_empty()).then(|| pattern(text).expect("pattern"));
    Step { send: send.to_vec(), expect: regex(expect), wrong: regex(wrong), timeout: LONG }
}

fn probe(steps: Vec<Step>) -> Probe {
    Probe { transport: Transport::Tcp, steps, connect_timeout: LONG, deadline: LONG }
}

fn smtp() -> Probe {
    let refused = r"^[45]\d\d[ -]";
    probe(vec![step(b"", "^220 ", refused), step(b"QUIT\r\n", "^221[ -]", refused)])
}

fn hurried(mut probe: Probe) -> Probe {
    probe.steps.iter_mut().for_each(|step| step.timeout = SHORT);
    Probe { connect_timeout: SHORT, ..probe }
}

async fn outcome(probe: Probe, greets: bool, lines: &'static [&'static [u8]]) -> (Outcome, String) {
    let (address, _end) = server(greets, lines).await;
    let report = probe.run(address).await;
    (report.outcome, report.detail)
}

#[tokio::test]
async fn a_good_service_is_good_and_its_connection_ends_with_a_fin() {
    let (address, end) = server(true, &[b"220-a\r\n220 221 b\r\n", b"221 bye\r\nand more that nobody waits for"]).await;
    let report = smtp().run(address).await;
    assert_eq!((report.outcome, report.detail.as_str()), (Outcome::Ok, ""));
    let steps: Vec<_> = report.steps.iter().map(|step| (step.step.as_str(), step.outcome)).collect();
    let names = ["connect", "expect ^220 ", "send QUIT\\r\\n, expect ^221[ -]"];
    assert_eq!(steps, names.map(|name| (name, Outcome::Ok)));
    assert!(report.steps[1].heard.starts_with("\"220-a\\r\\n220 "), "{:?}", report.steps[1]);
    assert!(matches!(end.await, Ok(Ok(0))), "a reset, or data lost");
}

#[tokio::test]
async fn wrong_and_no_replies_are_told_apart() {
    let begin = Instant::now();
    let busy = outcome(smtp(), true, &[b"421 too busy\r\n", b""]).await;
    assert_eq!(busy.0, Outcome::Error);
    assert!(busy.1.starts_with("step 1 (expect ^220 ): it said \"421 "), "{busy:?}");
    let later = outcome(smtp(), true, &[b"220 a\r\n", b"502 what?\r\n"]).await;
    assert!(later.0 == Outcome::Error && later.1.contains("step 2"), "{later:?}");
    assert!(begin.elapsed() < LONG, "a wrong reply is told at once");

    let silent = outcome(hurried(smtp()), true, &[b"", b""]).await;
    assert_eq!(silent, (Outcome::Ng, "step 1 (expect ^220 ): nothing within 300ms".into()));
    let half = outcome(hurried(smtp()), true, &[b"22", b""]).await;
    assert_eq!(half, (Outcome::Error, "step 1 (expect ^220 ): nothing within 300ms after \"22\"".into()));
    let mute = outcome(hurried(smtp()), true, &[b"220 a\r\n"]).await;
    assert!(mute.0 == Outcome::Ng && mute.1.contains("step 2"), "{mute:?}");

    let free = TcpListener::bind("127.0.0.1:0").await.expect("bind").local_addr().expect("address");
    let refused = probe(Vec::new()).run(free).await;
    assert_eq!((refused.outcome, refused.detail.as_str()), (Outcome::Ng, "connect: connection refused"));
}

#[tokio::test]
async fn the_deadline_is_for_everything() {
    let (address, _end) = server(true, &[b"2"]).await;
    let begin = Instant::now();
    let report = Probe { deadline: SHORT, ..smtp() }.run(address).await;
    assert_eq!(report.outcome, Outcome::Error);
    assert!(begin.elapsed() < LONG / 2, "{report:?}");
}

#[tokio::test]
async fn an_endless_reply_ends() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("accept");
        while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
    });
    let report = smtp().run(address).await;
    assert_eq!(report.outcome, Outcome::Error);
    assert!(report.detail.len() < 400 && report.detail.contains("too much"), "{}", report.detail);
}

#[tokio::test]
async fn every_byte_is_sent_and_matched() {
    let binary = probe(vec![step(b"\x00\xff", r"\A\x00\xff[\x80-\xff]{2}\n\z", "")]);
    assert_eq!(outcome(binary, false, &[b"\x00\xff\x80\xfe\n"]).await.0, Outcome::Ok);
    let shown = hurried(probe(vec![step(b"", "never", "")]));
    let (found, detail) = outcome(shown, true, &[b"\x00\xc3\"\r\n"]).await;
    assert_eq!((found, detail.ends_with(r#" after "\x00\xc3\"\r\n""#)), (Outcome::Error, true), "{detail}");
}

#[tokio::test]
async fn a_lost_datagram_is_sent_again() {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
    let address = socket.local_addr().expect("address");
    tokio::spawn(async move {
        let mut chunk = [0; 64];
        // The first is lost; the second is answered by somebody else's answer, then by the right one.
        socket.recv_from(&mut chunk).await.expect("first");
        let (read, from) = socket.recv_from(&mut chunk).await.expect("second");
        for answer in [&b"other"[..], &chunk[..read]] {
            socket.send_to(answer, from).await.expect("answer");
        }
    });
    let mut asking = hurried(probe(vec![step(b"ask", r"\Aask\z", r"\Awrong")]));
    asking.transport = Transport::Udp;
    let report = asking.run(address).await;
    assert_eq!(report.outcome, Outcome::Ok, "{report:?}");
    let gone = UdpSocket::bind("127.0.0.1:0").await.expect("bind").local_addr().expect("address");
    let report = asking.run(gone).await;
    assert_eq!(report.detail, "step 1 (send ask, expect \\Aask\\z): connection refused");
}

#[tokio::test]
async fn tls_of_either_version_is_spoken_and_its_absence_is_an_error() {
    let key = rcgen::KeyPair::generate().expect("key");
    let certificate = rcgen::CertificateParams::new(vec!["www".into()]).expect("name").self_signed(&key).expect("sign");
    let chain = vec![CertificateDer::from(certificate)];
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("key");
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[version])
            .expect("version")
            .with_no_client_auth()
            .with_single_cert(chain.clone(), key)
            .expect("certificate");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.expect("accept");
            let mut stream = acceptor.accept(stream).await.expect("handshake");
            stream.write_all(b"220 secret\r\n").await.expect("greet");
            let _ = stream.read(&mut [0; 64]).await;
        });
        let secret = Probe { transport: Transport::Tls(Some("www".into())), ..probe(vec![step(b"", "^220 ", "")]) };
        let report = secret.run(address).await;
        assert_eq!(report.outcome, Outcome::Ok, "{version:?}: {report:?}");
    }
    let plain = Probe { transport: Transport::Tls(None), ..probe(Vec::new()) };
    let (found, detail) = outcome(plain, true, &[b"220 not TLS\r\n", b""]).await;
    assert!(found == Outcome::Error && detail.starts_with("connect: "), "{found:?} {detail}");
}

#[test]
fn faulty_and_huge_patterns_are_refused() {
    assert!(pattern("(").is_err());
    assert!(pattern(r"(?:[\x00-\xff]{200}){200}").is_err());
}

/// A server of datagrams that says these, one after the other, whatever it hears.
async fn datagrams(replies: Vec<Vec<u8>>) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
    let address = socket.local_addr().expect("address");
    tokio::spawn(async move {
        let mut chunk = [0; 512];
        for reply in replies.iter().cycle() {
            let Ok((_, from)) = socket.recv_from(&mut chunk).await else { return };
            let _ = socket.send_to(reply, from).await;
        }
    });
    address
}

fn asking(expect: &str, timeout: Duration) -> Step {
    Step { timeout, ..step(b"?", expect, "^wrong") }
}

#[tokio::test]
async fn a_second_datagram_of_other_letters_is_shown() {
    // Three bytes are heard first; the third of the next falls within a letter as they are kept.
    let address = datagrams(vec![b"abc".to_vec(), vec![0xff; 8]]).await;
    let steps = vec![asking("abc", LONG), asking(r"\xff{8}", LONG)];
    let report = Probe { transport: Transport::Udp, ..probe(steps) }.run(address).await;
    assert_eq!((report.outcome, report.detail.as_str()), (Outcome::Ok, ""));
    assert_eq!(report.steps[2].heard, r#""\xff\xff\xff\xff\xff\xff\xff\xff""#);
}

/// Says this at once and closes.
async fn blurts(reply: Vec<u8>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move {
        let Ok((mut stream, _)) = listener.accept().await else { return };
        let _ = stream.write_all(&reply).await;
    });
    address
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    /// Whatever a service says, as a stream or as datagrams: a report, and soon.
    #[test]
    fn no_answer_breaks_a_probe(
        replies in proptest::collection::vec(proptest::collection::vec(proptest::prelude::any::<u8>(), 0..40), 1..3),
        expect in proptest::sample::select(&[r"^a", r"\A\xff", "z{2}", r"[^\x00-\x7f]{3}", r"\n", "e$", r"\xc3\xa9", "."][..]),
        large in proptest::bool::weighted(0.1),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let quick = Duration::from_millis(10);
            let steps = vec![asking(expect, quick), asking(expect, quick), asking("z$", quick)];
            let all = Probe { connect_timeout: LONG, deadline: LONG, transport: Transport::Udp, steps };
            let reports = all.clone().run(datagrams(replies.clone()).await).await;
            assert!(reports.steps.len() <= 4);
            let length = if large { MAX_HEARD * 3 } else { 0 };
            let said = replies.concat().into_iter().chain(std::iter::repeat_n(0xe9, length)).collect();
            let report = Probe { transport: Transport::Tcp, ..all }.run(blurts(said).await).await;
            assert!(report.steps.iter().all(|step| step.heard.len() < SHOWN_BYTES * 4 + 40), "{report:?}");
        });
    }
}
