//! The real program with certificates of its own, on loopback.

#![allow(dead_code, clippy::unwrap_used, reason = "each test uses some of it")]

use kage_proto::{
    channel::{Credentials, Options, channel},
    issue::{Authority, Subject},
    roles::{Identity, Role},
    sif::v1::{
        AcquireTermReply, AcquireTermRequest, EpochReport, GetLedgerRequest, Ledger, ReportVoterRequest,
        sif_client::SifClient,
    },
    tls::{Expected, Pki},
};
use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tonic::{Status, transport::Channel};

pub type Client = SifClient<Channel>;

pub struct Cluster {
    pub directory: tempfile::TempDir,
    pub address: SocketAddr,
    pub process: Option<Child>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.kill();
    }
}

pub fn issue(authority: &Authority, directory: &Path, role: Role) {
    let issued = authority.issue(&Subject::new(Identity::new(role, "x").unwrap())).unwrap();
    fs::create_dir_all(directory).unwrap();
    fs::write(directory.join("ca.pem"), authority.ca_pem()).unwrap();
    fs::write(directory.join("cert.pem"), issued.certificate_pem).unwrap();
    fs::write(directory.join("key.pem"), issued.key_pem).unwrap();
}

impl Cluster {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let authority = Authority::create(&directory.path().join("authority"), "test", 2).unwrap();
        for role in [Role::Sif, Role::Coordinator, Role::Operator, Role::Viewer] {
            issue(&authority, &directory.path().join(role.as_str()), role);
        }
        let mut config = format!("name = 'test'\n[sif]\nlisten = '{address}'\nterm = '3s'\n");
        for name in ["a", "b", "c"] {
            config.push_str(&format!("[[agent]]\nname = '{name}'\naddress = '10.0.0.1:1'\nvoter = true\n"));
        }
        fs::write(directory.path().join("cluster.toml"), config).unwrap();
        Self { directory, address, process: None }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kage-sif"));
        command.arg("--config").arg(self.path("cluster.toml")).arg("--state").arg(self.path("state"));
        command.arg("--pki").arg(self.path("sif"));
        command
    }

    pub fn start(&mut self) {
        let log = fs::OpenOptions::new().append(true).create(true).open(self.path("log")).unwrap();
        self.process = Some(self.command().stderr(Stdio::from(log)).spawn().unwrap());
    }

    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    pub fn client(&self, role: Role) -> Client {
        let credentials = Credentials::Tls(Pki::load(&self.path(role.as_str())).unwrap());
        let address = self.address.to_string();
        SifClient::new(channel(&address, &credentials, Expected::role(Role::Sif), &Options::default()).unwrap())
    }

    /// Answers within five seconds.
    pub async fn ledger(&self, client: &mut Client) -> Ledger {
        let begun = Instant::now();
        loop {
            match client.get_ledger(GetLedgerRequest {}).await {
                Ok(ledger) => return ledger.into_inner(),
                Err(error) if begun.elapsed() > Duration::from_secs(5) => {
                    panic!("{error}\n{}", fs::read_to_string(self.path("log")).unwrap())
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    /// Started, established, with a term.
    pub async fn ready() -> (Self, Client, u64) {
        let mut cluster = Self::new();
        cluster.start();
        let mut client = cluster.client(Role::Coordinator);
        assert!(!cluster.ledger(&mut client).await.established);
        for reporter in ["a", "b"] {
            report(&mut client, reporter, 0, &[]).await.unwrap();
        }
        let term = acquire(&mut client).await.unwrap().term;
        (cluster, client, term)
    }
}

pub async fn report(
    client: &mut Client,
    reporter: &str,
    term: u64,
    epochs: &[(&str, u64)],
) -> Result<(bool, u32), Status> {
    let epochs = epochs.iter().map(|(vip, epoch)| EpochReport { vip: (*vip).to_owned(), epoch: *epoch }).collect();
    let request = ReportVoterRequest { reporter: reporter.to_owned(), highest_term: term, epochs };
    let reply = client.report_voter(request).await?.into_inner();
    Ok((reply.established, reply.reports_needed))
}

pub async fn acquire(client: &mut Client) -> Result<AcquireTermReply, Status> {
    Ok(client.acquire_term(AcquireTermRequest { coordinator: "c1".to_owned() }).await?.into_inner())
}
