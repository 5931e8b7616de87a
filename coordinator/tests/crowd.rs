//! A crowd at the coordinator's door: thousands of connections that say nothing, clients that read nothing, frames of no
//! sense. Agents are answered in time all the while, new ones get in, and its memory stays within bounds. There is no
//! SIF, so what agents are told is that there is no term: as much work as a renewal.

use hyper_util::rt::TokioIo;
use kage_proto::{
    agent::v1::{AgentEvent, Warning, agent_event::Event as FromAgent},
    channel::{Credentials, Options, channel},
    coordinator::v1::{
        AgentMessage, Ask, CoordinatorMessage, Event, Hello, WatchEventsRequest, agent_message::Message,
        coordinator_client::CoordinatorClient, coordinator_message::Message as ToAgent, lease_client::LeaseClient,
    },
    issue::{Authority, Subject},
    roles::{Identity, Role},
    tls::{Expected, Pki},
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};
use std::{
    fmt::Write as _,
    fs, io,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    pin::Pin,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    thread::JoinHandle,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::{interval, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Status, Streaming,
    codegen::{Service, http::Uri},
    transport::{Channel, Endpoint},
};

/// Agents that renew, every `R`.
const AGENTS: usize = 8;
const R: Duration = Duration::from_millis(200);
/// Connections that never begin a handshake, from so many addresses.
const STRANGERS: usize = 10_000;
const ADDRESSES: usize = 40;
/// Connections that say nothing after their handshake: without certificate, and with one.
const SILENT: [usize; 2] = [200, 100];
/// Clients that read nothing, and the streams that each of them opens.
const READERS: usize = 50;
const STREAMS: usize = 4;
/// Events that there were before, and how often there is a new one: they outrun whoever does not read.
const EVENTS: u64 = 10_000;
const NEWS: Duration = Duration::from_millis(4);
/// How long is measured: alone, and in the crowd.
const ALONE: Duration = Duration::from_secs(4);
const CROWDED: Duration = Duration::from_secs(8);
/// What the crowd may cost the coordinator. 200 readers of all that is kept, each with a copy, were 450 MiB.
const MEMORY_KIB: u64 = 160 * 1024;
/// `Limits::default()`: handshakes, connections without certificate; and what the coordinator and our own clients have.
const DESCRIPTORS: usize = 1024 + 64 + 300;

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ended = self.0.kill().and_then(|()| self.0.wait());
    }
}

impl Running {
    /// A figure of /proc/PID/status, in KiB.
    fn memory(&self, what: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix(what)).expect("a figure");
        line.trim_matches(|char: char| !char.is_ascii_digit()).parse().expect("a number")
    }

    fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.0.id())).expect("it runs").count()
    }
}

struct Place {
    dir: tempfile::TempDir,
    authority: Authority,
    listen: SocketAddr,
}

impl Place {
    fn issue(&self, role: Role, name: &str) -> PathBuf {
        let out = self.dir.path().join(name);
        let subject = Subject { days: 3, ..Subject::new(Identity::new(role, name).expect("name")) };
        self.authority.issue_into(&subject, &out).expect("issue");
        out
    }

    fn channel(&self, pki: &Pki) -> Channel {
        let (credentials, expected) = (Credentials::Tls(pki.clone()), Expected::role(Role::Coordinator));
        channel(&self.listen.to_string(), &credentials, expected, &Options::default()).expect("channel")
    }

    /// Of a client that lets itself be sent no more than HTTP/2's usual 64 KiB ahead: the rest waits at the coordinator.
    async fn narrow(&self, tls: tokio_rustls::TlsConnector) -> Channel {
        const WINDOW: u32 = 65_535;
        let endpoint = Endpoint::from_shared(format!("http://{}", self.listen)).expect("address");
        let endpoint = endpoint.initial_stream_window_size(WINDOW).initial_connection_window_size(WINDOW * 4);
        endpoint.connect_with_connector(Connector(tls, self.listen)).await.expect("connected")
    }

    /// TLS without gRPC.
    fn tls(&self, shown: Option<&Path>) -> tokio_rustls::TlsConnector {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.authority.ca_pem().as_bytes()).expect("ca")).expect("root");
        let builder = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("version")
            .with_root_certificates(roots);
        let mut config = match shown {
            None => builder.with_no_client_auth(),
            Some(dir) => {
                let chain = vec![CertificateDer::from_pem_file(dir.join("cert.pem")).expect("certificate")];
                let key = PrivateKeyDer::from_pem_file(dir.join("key.pem")).expect("key");
                builder.with_client_auth_cert(chain, key).expect("config")
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config).into()
    }

    fn spawn(&self) -> Running {
        let dir = self.dir.path();
        let mut text = format!(
            "[cluster]\nname = \"t\"\non_coordinator_loss = \"keep\"\n[coordinator]\nlisten = \"{}\"\n\
             [sif]\nlisten = \"127.0.0.1:9\"\n",
            self.listen
        );
        for n in 0..AGENTS + 2 {
            write!(text, "[[agent]]\nname = \"rs{n}\"\naddress = \"192.0.2.{}:7702\"\n", 21 + n).expect("text");
        }
        fs::write(dir.join("cluster.toml"), text).expect("write");
        fs::create_dir(dir.join("state")).expect("state");
        let words = "an event as long as many are, of a target and what was done for it and why ".repeat(3);
        let kept: String = (1..=EVENTS)
            .map(|seq| {
                format!(
                    "{{\"seq\":{seq},\"unix_ms\":1,\"target\":null,\"severity\":\"info\",\"kind\":\"t\",\"text\":\"{words}\"}}\n"
                )
            })
            .collect();
        fs::write(dir.join("state/events.jsonl"), kept).expect("write");
        let mut command = Command::new(env!("CARGO_BIN_EXE_kage-coordinator"));
        command.arg("--config").arg(dir.join("cluster.toml")).arg("--state").arg(dir.join("state"));
        command.arg("--pki").arg(self.issue(Role::Coordinator, "coordinator"));
        command.stderr(Stdio::from(fs::File::create(dir.join("log")).expect("log")));
        Running(command.spawn().expect("spawn"))
    }
}

#[derive(Clone)]
struct Connector(tokio_rustls::TlsConnector, SocketAddr);

impl Service<Uri> for Connector {
    type Response = TokioIo<tokio_rustls::client::TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Self(tls, to) = self.clone();
        Box::pin(async move {
            let name = ServerName::try_from("localhost").expect("name");
            Ok(TokioIo::new(tls.connect(name, TcpStream::connect(to).await?).await?))
        })
    }
}

/// An agent's stream.
struct Attending {
    say: mpsc::Sender<AgentMessage>,
    hear: Streaming<CoordinatorMessage>,
    nonce: u64,
    /// As assigned.
    lease: Duration,
}

impl Attending {
    async fn new(channel: Channel) -> Result<Self, Status> {
        let (say, said) = mpsc::channel(64);
        let hello = Message::Hello(Hello { incarnation: 1, ..Hello::default() });
        say.send(AgentMessage { message: Some(hello) }).await.expect("room");
        let mut hear = LeaseClient::new(channel).attend(ReceiverStream::new(said)).await?.into_inner();
        let first = hear.message().await?.and_then(|message| message.message);
        let Some(ToAgent::Assignment(told)) = first else { panic!("{first:?}") };
        Ok(Self { say, hear, nonce: 0, lease: Duration::from_millis(told.lease_ms.into()) })
    }

    /// Ask once; how long the answer took.
    async fn ask(&mut self) -> Result<Duration, Status> {
        let heard = self.nonce;
        self.nonce += 1;
        let ask = Message::Ask(Ask { nonce: self.nonce, heard, incarnation: 1, ..Ask::default() });
        let begun = Instant::now();
        self.say.send(AgentMessage { message: Some(ask) }).await.map_err(|_| Status::aborted("the stream ended"))?;
        loop {
            match self.hear.message().await?.and_then(|message| message.message) {
                Some(ToAgent::Grant(grant)) if grant.nonce == self.nonce => return Ok(begun.elapsed()),
                Some(_) => {}
                None => return Err(Status::aborted("the stream ended")),
            }
        }
    }
}

/// What one agent saw: how long each answer took, and the longest time that a lease had to last.
struct Seen {
    took: Vec<Duration>,
    longest: Duration,
    lease: Duration,
}

/// Renews until it is told to stop. Every ask is answered, on one stream.
async fn renew(mut agent: Attending, stop: Arc<AtomicBool>) -> Seen {
    let mut seen = Seen { took: Vec::new(), longest: Duration::ZERO, lease: agent.lease };
    let mut last = Instant::now();
    let mut tick = interval(R);
    while !stop.load(Relaxed) {
        tick.tick().await;
        let asked = Instant::now();
        seen.took.push(agent.ask().await.expect("an agent that attends is answered"));
        // A lease counts from when it was asked for.
        seen.longest = seen.longest.max(last.elapsed());
        last = asked;
    }
    seen
}

/// All agents, in a thread of their own: what it measures is the coordinator, not the crowd's own runtime.
struct Agents {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Seen>>,
}

impl Agents {
    fn start(channels: Vec<(Pki, String)>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            runtime.block_on(async {
                let mut all = JoinSet::new();
                for (pki, to) in channels {
                    let expected = Expected::role(Role::Coordinator);
                    let channel = channel(&to, &Credentials::Tls(pki), expected, &Options::default()).expect("channel");
                    all.spawn(renew(Attending::new(channel).await.expect("attend"), told.clone()));
                }
                all.join_all().await
            })
        });
        Self { stop, thread }
    }

    async fn end(self, what: &str) {
        self.stop.store(true, Relaxed);
        let seen = tokio::task::spawn_blocking(|| self.thread.join()).await.expect("joined").expect("all answered");
        let mut took: Vec<_> = seen.iter().flat_map(|seen| seen.took.iter().copied()).collect();
        took.sort();
        let at = |percent: usize| took[(took.len() - 1) * percent / 100];
        println!(
            "renewals {what}: {} answered, p50 {:.1?} p90 {:.1?} p99 {:.1?} max {:.1?}",
            took.len(),
            at(50),
            at(90),
            at(99),
            at(100)
        );
        let longest = seen.iter().map(|seen| seen.longest).max();
        println!("  at worst {:.1?} from an ask to the next one's answer", longest.unwrap_or_default());
        for Seen { longest, lease, .. } in seen {
            assert!(longest < lease, "{what}: a lease of {lease:?} would have ended: {longest:?} without an answer");
        }
    }
}

/// From one of many addresses of this machine.
async fn dial(to: SocketAddr, n: usize) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    let last = u8::try_from(n % ADDRESSES).expect("few") + 1;
    socket.bind(([127, 0, 1, last], 0).into())?;
    socket.connect(to).await
}

/// Was it not hung up on?
fn is_open(tcp: &TcpStream) -> bool {
    matches!(tcp.try_read(&mut [0; 64]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

/// Say something senseless, with TLS or without; returns when the coordinator has hung up.
async fn babble(place: &Place, tls: &tokio_rustls::TlsConnector, n: usize) -> io::Result<()> {
    let mut tcp = dial(place.listen, n).await?;
    let mut heard = Vec::new();
    if n.is_multiple_of(6) {
        // A record of TLS that is none.
        tcp.write_all(&[0x16, 3, 1, 0xff, 0xff, 1, 2, 3]).await?;
        tcp.write_all(&[0xa5; 20_000]).await?;
        return tcp.read_to_end(&mut heard).await.map(drop);
    }
    let mut wire = tls.connect(ServerName::try_from("localhost").expect("name"), tcp).await?;
    let frames: &[&[u8]] = match n % 6 {
        1 => &[&[0xff; 4096]],
        // SETTINGS with half an entry; a frame longer than was agreed.
        2 => &[&[0, 0, 3, 4, 0, 0, 0, 0, 0, 1, 2, 3]],
        3 => &[&[0, 0, 0, 4, 0, 0, 0, 0, 0], &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]],
        // HEADERS that are no HPACK; DATA for a stream that was never opened.
        4 => &[&[0, 0, 0, 4, 0, 0, 0, 0, 0], &[0, 0, 4, 1, 5, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff]],
        _ => &[&[0, 0, 0, 4, 0, 0, 0, 0, 0], &[0, 0, 4, 0, 0, 0, 0, 0, 7, 1, 2, 3, 4]],
    };
    wire.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
    for frame in frames {
        wire.write_all(frame).await?;
    }
    wire.flush().await?;
    wire.read_to_end(&mut heard).await.map(drop)
}

async fn watch(channel: &Channel, after_seq: u64) -> Streaming<Event> {
    let request = WatchEventsRequest { after_seq, follow: true, ..WatchEventsRequest::default() };
    CoordinatorClient::new(channel.clone()).watch_events(request).await.expect("watch").into_inner()
}

/// Read at last what waited: without a gap, and then that it was too slow and where to go on.
async fn reads_late(mut events: Streaming<Event>) -> usize {
    let first = events.message().await.expect("answered").expect("an event").seq;
    let (mut last, mut read) = (first, 1);
    loop {
        match timeout(Duration::from_secs(5), events.message()).await.expect("something is said") {
            Ok(Some(event)) => {
                assert_eq!(event.seq, last + 1, "a gap that was not told");
                last = event.seq;
                read += 1;
            }
            Ok(None) => panic!("it ended after {last} as if that were all"),
            Err(status) => {
                assert_eq!(status.code(), Code::DataLoss, "{status}");
                assert!(status.message().contains(&format!("too slowly: ask again after seq {last}")), "{status}");
                return read;
            }
        }
    }
}

/// As many descriptors as we may have; how many strangers that is enough for.
fn strangers() -> usize {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).expect("rlimit");
    let most = limit.maximum.map_or(usize::MAX, |most| usize::try_from(most).unwrap_or(usize::MAX));
    let room = most.saturating_sub(1000);
    if room < STRANGERS {
        println!("SCALED DOWN: `ulimit -Hn` is {most}: {room} strangers instead of {STRANGERS}");
    }
    assert!(room >= 2000, "`ulimit -Hn` is {most}: too few descriptors to try anything");
    room.min(STRANGERS)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_at_the_door_delays_no_renewal() {
    let strangers = strangers();
    let dir = tempfile::tempdir().expect("dir");
    let authority = Authority::create(&dir.path().join("ca"), "test", 30).expect("authority");
    let listen = TcpListener::bind("127.0.0.1:0").and_then(|bound| bound.local_addr()).expect("address");
    let place = Arc::new(Place { dir, authority, listen });
    let running = place.spawn();
    let agents: Vec<_> =
        (0..AGENTS + 2).map(|n| Pki::load(&place.issue(Role::Agent, &format!("rs{n}"))).expect("pki")).collect();
    let begun = Instant::now();
    let mut speaker = loop {
        match Attending::new(place.channel(&agents[AGENTS])).await {
            Ok(attending) => break attending,
            Err(status) => assert!(begun.elapsed() < Duration::from_secs(10), "{status}"),
        }
        sleep(Duration::from_millis(50)).await;
    };
    let renewing = || Agents::start(agents[..AGENTS].iter().map(|pki| (pki.clone(), listen.to_string())).collect());

    let alone = renewing();
    sleep(ALONE).await;
    alone.end("alone").await;
    let before = running.memory("VmRSS:");

    // These attend before the crowd comes.
    let crowded = renewing();
    let viewer_files = place.issue(Role::Viewer, "v");
    let (anonymous, known) = (place.tls(None), place.tls(Some(&viewer_files)));
    let begun = Instant::now();
    let mut unread = Vec::new();
    for _ in 0..READERS {
        let channel = place.narrow(known.clone()).await;
        for _ in 0..STREAMS {
            unread.push(watch(&channel, 0).await);
        }
    }
    let newest = watch(&place.narrow(known.clone()).await, EVENTS).await;
    println!("{} streams that nobody reads, after {:.1?}", unread.len(), begun.elapsed());

    let mut silent = Vec::new();
    for (tls, count) in [(&known, SILENT[1]), (&anonymous, SILENT[0])] {
        for n in 0..count {
            let tcp = dial(listen, n).await.expect("dial");
            if let Ok(wire) = tls.connect(ServerName::try_from("localhost").expect("name"), tcp).await {
                silent.push(wire);
            }
        }
    }
    let mut crowd = Vec::with_capacity(strangers);
    for n in 0..strangers {
        crowd.push(dial(listen, n).await.expect("dial"));
    }
    println!(
        "{strangers} strangers and {} silent after {:.1?}; {} of the strangers not hung up on yet",
        silent.len(),
        begun.elapsed(),
        crowd.iter().filter(|tcp| is_open(tcp)).count()
    );

    let stop = Arc::new(AtomicBool::new(false));
    let mut pressure = JoinSet::new();
    // Who is hung up on comes again.
    let told = stop.clone();
    let pushing = tokio::spawn(async move {
        let (mut again, mut at) = (0, 0);
        while !told.load(Relaxed) {
            for _ in 0..25 {
                at = (at + 1) % crowd.len();
                if !is_open(&crowd[at]) {
                    crowd[at] = dial(listen, at).await.expect("dial");
                    again += 1;
                }
            }
            sleep(Duration::from_millis(25)).await;
        }
        (crowd, again)
    });
    for lane in 0..6 {
        let (told, place, known) = (stop.clone(), place.clone(), known.clone());
        pressure.spawn(async move {
            let mut said = 0;
            while !told.load(Relaxed) {
                let ended = timeout(Duration::from_secs(8), babble(&place, &known, lane)).await;
                assert!(ended.is_ok(), "kind {lane} was not hung up on");
                said += 1;
                sleep(Duration::from_millis(60)).await;
            }
            said
        });
    }
    // News for those who do not read.
    let told = stop.clone();
    let news = tokio::spawn(async move {
        let mut tick = interval(NEWS);
        let mut said = 0;
        while !told.load(Relaxed) {
            tick.tick().await;
            let warning = FromAgent::Warning(Warning { text: format!("{said}: {}", "something was seen ".repeat(15)) });
            let event = AgentEvent { event: Some(warning), ..AgentEvent::default() };
            speaker.say.send(AgentMessage { message: Some(Message::Event(event)) }).await.expect("it attends");
            said += 1;
        }
        speaker.ask().await.expect("its stream goes on");
        said
    });

    // Agents that come anew, as after a restart of the machine.
    let (begun, mut arrived, mut failed) = (Instant::now(), Vec::new(), Vec::new());
    let (mut most_memory, mut most_descriptors) = (0, 0);
    while begun.elapsed() < CROWDED {
        let arriving = Instant::now();
        let attended = async { Attending::new(place.channel(&agents[AGENTS + 1])).await?.ask().await };
        match timeout(Duration::from_secs(5), attended).await {
            Ok(Ok(_)) => arrived.push(arriving.elapsed()),
            Ok(Err(status)) => failed.push(kage_proto::channel::reason(&status)),
            Err(_) => failed.push("no answer within 5 s".to_owned()),
        }
        most_memory = most_memory.max(running.memory("VmRSS:"));
        most_descriptors = most_descriptors.max(running.descriptors());
        sleep(R).await;
    }
    stop.store(true, Relaxed);
    crowded.end("in the crowd").await;
    let (crowd, again) = pushing.await.expect("pushing");
    let said = news.await.expect("news");
    let babbled: usize = pressure.join_all().await.into_iter().sum();
    arrived.sort();
    println!(
        "{again} came again, {babbled} talked nonsense, {said} events; an agent that came anew: {} of {}, median {:.1?} max {:.1?}",
        arrived.len(),
        arrived.len() + failed.len(),
        arrived.get(arrived.len() / 2),
        arrived.last()
    );
    println!("memory {before} KiB before, {most_memory} KiB at most; {most_descriptors} descriptors at most");
    let open = crowd.iter().filter(|tcp| is_open(tcp)).count();
    assert!(open <= 1024, "{open} strangers inside");
    // One in ten may find this machine too busy to connect within its second.
    assert!(failed.len() * 10 <= arrived.len(), "agents were kept out: {failed:?}");
    assert!(most_descriptors <= DESCRIPTORS, "{most_descriptors} descriptors");
    assert!(most_memory < before + MEMORY_KIB, "{before} KiB before, {most_memory} KiB at most");

    // A slow reader is told what it missed.
    let late = reads_late(unread.swap_remove(0)).await;
    let later = reads_late(newest).await;
    println!("readers that begin now still get {late} and {later} events");
    drop((crowd, silent, unread));
}
