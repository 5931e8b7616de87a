//! Authorities, servers with small handlers, clients that misbehave, and the audit log.

use kage_proto::{
    agent::v1::{
        BarReply, BarRequest, GetVoterStateRequest, VoteReply, VoteRequest, VoterState,
        voter_server::{Voter, VoterServer},
    },
    channel::{Credentials, Options, channel},
    coordinator::v1::{
        AgentMessage, Assignment, CoordinatorMessage,
        coordinator_message::Message,
        lease_server::{Lease, LeaseServer},
    },
    issue::{Authority, Subject},
    roles::{Identity, Peer, Role},
    server::{Config, Security, Server, ServerError},
    tls::{Expected, Pki},
};
use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex, Once},
    time::{Duration, Instant},
};
use tokio::{sync::oneshot, task::JoinHandle};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming, transport::Channel};

/// A cluster's authority in a directory of its own.
pub struct Cluster {
    pub dir: tempfile::TempDir,
    pub authority: Authority,
}

impl Cluster {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("directory");
        let authority = Authority::create(&dir.path().join("ca"), "test", 10).expect("authority");
        Self { dir, authority }
    }

    pub fn issue(&self, role: Role, name: &str, days: u32) -> PathBuf {
        let dir = self.dir.path().join(format!("{role}-{name}"));
        let subject = Subject { days, ..Subject::new(Identity::new(role, name).expect("name")) };
        self.authority.issue_into(&subject, &dir).expect("issue");
        dir
    }

    pub fn pki(&self, role: Role, name: &str) -> Pki {
        let dir = self.dir.path().join(format!("{role}-{name}"));
        Pki::load(&if dir.exists() { dir } else { self.issue(role, name, 1) }).expect("pki")
    }

    pub fn credentials(&self, role: Role, name: &str) -> Credentials {
        Credentials::Tls(self.pki(role, name))
    }

    /// A channel as `role` to a server of role `expected`.
    pub fn channel(&self, running: &Running, role: Role, name: &str, expected: Role) -> Channel {
        let credentials = self.credentials(role, name);
        channel(&running.address.to_string(), &credentials, Expected::role(expected), &Options::default())
            .expect("channel")
    }

    pub async fn serve(&self, role: Role, name: &str) -> Running {
        self.serve_with(role, name, |_| {}).await
    }

    pub async fn serve_with(&self, role: Role, name: &str, change: impl FnOnce(&mut Config)) -> Running {
        let mut config = Config::new(([127, 0, 0, 1], 0).into(), Security::Tls(self.pki(role, name)));
        change(&mut config);
        serve(&config).await
    }
}

/// A server under test.
pub struct Running {
    pub address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    pub task: JoinHandle<Result<(), ServerError>>,
}

impl Running {
    pub fn stop(&mut self) {
        drop(self.stop.take());
    }
}

pub async fn serve(config: &Config) -> Running {
    let server = Server::bind(config).await.expect("bind");
    run(server.add(LeaseServer::new(Fake)).add(VoterServer::new(Fake)))
}

pub fn run(server: Server) -> Running {
    audit_log();
    let address = server.address();
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(server.run(async {
        let _ = stopped.await;
    }));
    Running { address, stop: Some(stop), task }
}

/// Says who called.
pub struct Fake;

#[tonic::async_trait]
impl Lease for Fake {
    type AttendStream = Pin<Box<dyn Stream<Item = Result<CoordinatorMessage, Status>> + Send>>;
    async fn attend(&self, request: Request<Streaming<AgentMessage>>) -> Result<Response<Self::AttendStream>, Status> {
        let agent = Peer::of(&request)?.agent()?;
        let answers = request.into_inner().map(move |message| {
            message.map(|_| {
                let assignment = Assignment { vips: vec![agent.to_string()], ..Assignment::default() };
                CoordinatorMessage { message: Some(Message::Assignment(assignment)) }
            })
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

#[tonic::async_trait]
impl Voter for Fake {
    async fn vote(&self, _request: Request<VoteRequest>) -> Result<Response<VoteReply>, Status> {
        Ok(Response::new(VoteReply::default()))
    }
    async fn bar(&self, _request: Request<BarRequest>) -> Result<Response<BarReply>, Status> {
        Ok(Response::new(BarReply::default()))
    }
    async fn get_voter_state(&self, request: Request<GetVoterStateRequest>) -> Result<Response<VoterState>, Status> {
        kage_proto::require(&request, "GetVoterState", &[Role::Operator, Role::Coordinator])?;
        Ok(Response::new(VoterState { is_voter: true, ..VoterState::default() }))
    }
}

static AUDIT: Mutex<Vec<String>> = Mutex::new(Vec::new());

#[derive(Clone)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("lock").extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let text = String::from_utf8(std::mem::take(&mut *self.0.lock().expect("lock"))).expect("text");
        if !text.is_empty() {
            AUDIT.lock().expect("lock").push(text);
        }
    }
}

fn audit_log() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        tracing_subscriber::fmt().json().with_env_filter("audit=info").with_writer(|| Lines(Arc::default())).init();
    });
}

/// Waits for an audit line with all of these in it.
pub async fn audited(words: &[&str]) {
    wait_until(&format!("an audit line with {words:?}"), || {
        AUDIT.lock().expect("lock").iter().any(|line| words.iter().all(|word| line.contains(word)))
    })
    .await;
}

pub async fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < limit, "{what} did not come; audit log: {:#?}", AUDIT.lock().expect("lock"));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The certificate and key files of a directory, unchecked.
pub fn certified(dir: &Path) -> (PathBuf, PathBuf) {
    (dir.join("cert.pem"), dir.join("key.pem"))
}
