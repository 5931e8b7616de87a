//! The real program over mutual TLS on loopback: killed under load, restarted, stopped, and asked wrong things.

#![allow(clippy::unwrap_used, reason = "tests")]

use kage_proto::{
    channel::{Credentials, Options, channel},
    issue::{Authority, Subject},
    roles::{Identity, Role},
    sif::v1::{
        AcquireTermReply, AcquireTermRequest, AdvanceEpochRequest, Change, ClearOrderRequest, EpochReport,
        GetLedgerRequest, Ledger, OrderRow, PutOrderRequest, PutTroubleRequest, RenewTermRequest, ReportVoterRequest,
        SetLongLeaseRequest, SubscribeRequest, change, sif_client::SifClient,
    },
    tls::{Expected, Pki},
};
use kage_sif::{CURRENT_KEY, REASON_KEY};
use kage_sif_core::UNSEEN_MARGIN;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tonic::{Code, Status, transport::Channel};

type Client = SifClient<Channel>;

struct Cluster {
    directory: tempfile::TempDir,
    address: SocketAddr,
    process: Option<Child>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.kill();
    }
}

fn issue(authority: &Authority, directory: &Path, role: Role) {
    let issued = authority.issue(&Subject::new(Identity::new(role, "x").unwrap())).unwrap();
    fs::create_dir_all(directory).unwrap();
    fs::write(directory.join("ca.pem"), authority.ca_pem()).unwrap();
    fs::write(directory.join("cert.pem"), issued.certificate_pem).unwrap();
    fs::write(directory.join("key.pem"), issued.key_pem).unwrap();
}

impl Cluster {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let authority = Authority::create(&directory.path().join("authority"), "test", 2).unwrap();
        for role in [Role::Sif, Role::Coordinator, Role::Viewer] {
            issue(&authority, &directory.path().join(role.as_str()), role);
        }
        let mut config = format!("name = 'test'\n[sif]\nlisten = '{address}'\nterm = '3s'\n");
        for name in ["a", "b", "c"] {
            config.push_str(&format!("[[agent]]\nname = '{name}'\naddress = '10.0.0.1:1'\nvoter = true\n"));
        }
        fs::write(directory.path().join("cluster.toml"), config).unwrap();
        Self { directory, address, process: None }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kage-sif"));
        command.arg("--config").arg(self.path("cluster.toml")).arg("--state").arg(self.path("state"));
        command.arg("--pki").arg(self.path("sif"));
        command
    }

    fn start(&mut self) {
        let log = fs::OpenOptions::new().append(true).create(true).open(self.path("log")).unwrap();
        self.process = Some(self.command().stderr(Stdio::from(log)).spawn().unwrap());
    }

    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    fn client(&self, role: Role) -> Client {
        let credentials = Credentials::Tls(Pki::load(&self.path(role.as_str())).unwrap());
        let address = self.address.to_string();
        SifClient::new(channel(&address, &credentials, Expected::role(Role::Sif), &Options::default()).unwrap())
    }

    /// Answers within five seconds.
    async fn ledger(&self, client: &mut Client) -> Ledger {
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
    async fn ready() -> (Self, Client, u64) {
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

async fn report(client: &mut Client, reporter: &str, term: u64, epochs: &[(&str, u64)]) -> Result<(bool, u32), Status> {
    let epochs = epochs.iter().map(|(vip, epoch)| EpochReport { vip: (*vip).to_owned(), epoch: *epoch }).collect();
    let request = ReportVoterRequest { reporter: reporter.to_owned(), highest_term: term, epochs };
    let reply = client.report_voter(request).await?.into_inner();
    Ok((reply.established, reply.reports_needed))
}

async fn acquire(client: &mut Client) -> Result<AcquireTermReply, Status> {
    Ok(client.acquire_term(AcquireTermRequest { coordinator: "c1".to_owned() }).await?.into_inner())
}

async fn advance(client: &mut Client, term: u64, vip: &str, expected_epoch: u64, owner: &str) -> Result<u64, Status> {
    let request = AdvanceEpochRequest {
        term,
        vip: vip.to_owned(),
        expected_epoch,
        owner: owner.to_owned(),
        domain: String::new(),
        target: "mail1".to_owned(),
        cause: "takeover".to_owned(),
    };
    Ok(client.advance_epoch(request).await?.into_inner().epoch)
}

async fn trouble(client: &mut Client, term: u64, stage: &str, detail: &str) -> Result<u64, Status> {
    let request =
        PutTroubleRequest { term, target: "mail1".to_owned(), stage: stage.to_owned(), detail: detail.to_owned() };
    Ok(client.put_trouble(request).await?.into_inner().revision)
}

fn told(status: &Status) -> (Code, Option<&str>, Option<u64>) {
    let text = |key| status.metadata().get(key).map(|value| value.to_str().unwrap());
    (status.code(), text(REASON_KEY), text(CURRENT_KEY).map(|number| number.parse().unwrap()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_under_load_it_keeps_what_it_acknowledged() {
    const ROUNDS: u64 = 20;
    let vip = |n: u64| format!("10.0.0.{}", n + 1);
    let (mut cluster, mut client, mut last_term) = Cluster::ready().await;
    let mut acknowledged = BTreeMap::<String, u64>::new();
    let mut latencies = Vec::new();
    let mut last_revision = 0;
    for round in 0..ROUNDS {
        let workers = (0..4).map(|n| {
            let (mut client, vip, term) = (client.clone(), vip(n), last_term);
            let mut epoch = acknowledged.get(&vip).copied().unwrap_or_default();
            tokio::spawn(async move {
                let mut latencies = Vec::new();
                // What the last kill left in doubt took effect, or not.
                for attempt in 0.. {
                    let begun = Instant::now();
                    match advance(&mut client, term, &vip, epoch, &format!("rs{}", epoch % 3)).await {
                        Ok(given) => {
                            assert!(given > epoch);
                            epoch = given;
                            latencies.push(begun.elapsed());
                        }
                        Err(status) if status.code() == Code::Aborted && attempt == 0 => {
                            assert_eq!(told(&status).2, Some(epoch + 1));
                            epoch += 1;
                        }
                        Err(status) => {
                            assert_ne!(status.code(), Code::Aborted, "{status}");
                            break;
                        }
                    }
                }
                (vip, epoch, latencies)
            })
        });
        let workers: Vec<_> = workers.collect();
        // At no particular point of a commit.
        let mut random = [0; 2];
        std::io::Read::read_exact(&mut fs::File::open("/dev/urandom").unwrap(), &mut random).unwrap();
        tokio::time::sleep(Duration::from_micros(20_000 + u64::from(u16::from_ne_bytes(random)))).await;
        cluster.kill();
        for worker in workers {
            let (vip, epoch, took) = worker.await.unwrap();
            acknowledged.insert(vip, epoch);
            latencies.extend(took);
        }
        cluster.start();
        let ledger = cluster.ledger(&mut client).await;
        assert!(ledger.established && ledger.term == last_term && ledger.revision > last_revision, "round {round}");
        last_revision = ledger.revision;
        let found: BTreeMap<_, _> = ledger.vips.into_iter().map(|row| (row.vip, row.epoch)).collect();
        for (vip, epoch) in acknowledged.iter().filter(|(_, epoch)| **epoch > 0) {
            let there = found[vip];
            assert!(there == *epoch || there == epoch + 1, "round {round}: {vip} at {there}, acknowledged {epoch}");
        }
        let term = acquire(&mut client).await.unwrap().term;
        assert!(term > last_term, "terms never repeat");
        last_term = term;
    }
    latencies.sort();
    println!(
        "{} commits acknowledged in {ROUNDS} rounds, request to answer: median {:?}, 99 % {:?}",
        latencies.len(),
        latencies[latencies.len() / 2],
        latencies[latencies.len() * 99 / 100]
    );
}

#[tokio::test]
async fn refusals_say_which_and_what_would_be_right() {
    let mut cluster = Cluster::new();
    cluster.start();
    let mut client = cluster.client(Role::Coordinator);
    cluster.ledger(&mut client).await;
    let status = acquire(&mut client).await.unwrap_err();
    assert_eq!(told(&status), (Code::FailedPrecondition, Some("reports-needed"), Some(2)));
    assert!(status.message().starts_with("reports-needed: "), "{status}");
    assert_eq!(report(&mut client, "a", 4, &[("10.0.0.1", 7)]).await.unwrap(), (false, 1));
    let status = report(&mut client, "stranger", 4, &[]).await.unwrap_err();
    assert_eq!(told(&status), (Code::InvalidArgument, Some("unknown-reporter"), None));
    // A report outlives a restart.
    cluster.kill();
    cluster.start();
    cluster.ledger(&mut client).await;
    assert_eq!(report(&mut client, "b", 2, &[]).await.unwrap(), (true, 0));
    let reply = acquire(&mut client).await.unwrap();
    assert_eq!((reply.term, reply.length_ms), (UNSEEN_MARGIN + 5, 3000));
    assert!(reply.ledger.unwrap().established);
    assert_eq!(acquire(&mut client).await.unwrap().term, UNSEEN_MARGIN + 6);
    let status = advance(&mut client, UNSEEN_MARGIN + 5, "10.0.0.1", 0, "rs1").await.unwrap_err();
    assert_eq!(told(&status), (Code::FailedPrecondition, Some("stale-term"), Some(UNSEEN_MARGIN + 6)));
    let status = client.renew_term(RenewTermRequest { term: UNSEEN_MARGIN + 7 }).await.unwrap_err();
    assert_eq!(told(&status), (Code::FailedPrecondition, Some("unknown-term"), Some(UNSEEN_MARGIN + 6)));
    assert_eq!(
        client.renew_term(RenewTermRequest { term: UNSEEN_MARGIN + 6 }).await.unwrap().into_inner().length_ms,
        3000
    );
    assert_eq!(
        advance(&mut client, UNSEEN_MARGIN + 6, "10.0.0.1", 0, "rs1").await.unwrap(),
        UNSEEN_MARGIN + 8,
        "above what was reported"
    );
    assert_eq!(
        advance(&mut client, UNSEEN_MARGIN + 6, "10.0.0.1", 0, "rs1").await.unwrap(),
        UNSEEN_MARGIN + 8,
        "repeated"
    );
    let status = advance(&mut client, UNSEEN_MARGIN + 6, "10.0.0.1", UNSEEN_MARGIN + 7, "rs2").await.unwrap_err();
    assert_eq!(told(&status), (Code::Aborted, Some("conflict"), Some(UNSEEN_MARGIN + 8)));
    let long =
        SetLongLeaseRequest { term: UNSEEN_MARGIN + 6, vip: "10.0.0.2".to_owned(), outstanding: true, sequence: 1 };
    assert_eq!(told(&client.set_long_lease(long).await.unwrap_err()), (Code::NotFound, Some("unknown-vip"), None));
    for (vip, owner, field) in [("10.0.0.1/24", "rs1", "vip: "), ("10.0.0.1", "", "owner: ")] {
        let status = advance(&mut client, UNSEEN_MARGIN + 6, vip, UNSEEN_MARGIN + 8, owner).await.unwrap_err();
        assert!(status.code() == Code::InvalidArgument && status.message().starts_with(field), "{status}");
    }
    assert_eq!(trouble(&mut client, UNSEEN_MARGIN + 6, "asleep", "").await.unwrap_err().code(), Code::InvalidArgument);
    let mut viewer = cluster.client(Role::Viewer);
    assert_eq!(cluster.ledger(&mut viewer).await.term, UNSEEN_MARGIN + 6);
    assert_eq!(acquire(&mut viewer).await.unwrap_err().code(), Code::PermissionDenied);
}

fn name(change: &Change) -> String {
    match change.change.as_ref().unwrap() {
        change::Change::Term(term) => format!("term {term}"),
        change::Change::Vip(row) => format!("{} e{} {}", row.vip, row.epoch, row.owner),
        change::Change::Trouble(row) => format!("{} {}", row.target, row.stage),
        change::Change::TroubleCleared(target) => format!("{target} cleared"),
        change::Change::Order(row) => format!("{} {}", row.scope, row.reason),
        change::Change::OrderCleared(scope) => format!("{scope} lifted"),
    }
}

#[tokio::test]
async fn a_subscriber_gets_all_changes_in_order_then_live_ones() {
    let (mut cluster, mut client, term) = Cluster::ready().await;
    advance(&mut client, term, "10.0.0.1", 0, "rs1").await.unwrap();
    let middle = trouble(&mut client, term, "restarting", "").await.unwrap();
    trouble(&mut client, term, "", "").await.unwrap();
    let order = |scope: &str| OrderRow {
        scope: scope.to_owned(),
        reason: "disk".to_owned(),
        who: "operator alice".to_owned(),
        since_unix_ms: 5,
        until_unix_ms: None,
    };
    for scope in ["agent:rs1", "all"] {
        client.put_order(PutOrderRequest { term, order: Some(order(scope)) }).await.unwrap();
    }
    client.clear_order(ClearOrderRequest { term, scope: "all".to_owned() }).await.unwrap();
    let wrong = client.put_order(PutOrderRequest { term, order: Some(order("rs1")) }).await.unwrap_err();
    assert!(wrong.message().contains("agent:NAME"), "{wrong}");
    // The log outlives a restart.
    cluster.kill();
    cluster.start();
    let mut viewer = cluster.client(Role::Viewer);
    assert_eq!(cluster.ledger(&mut viewer).await.orders, [order("agent:rs1")]);
    let refused = viewer.clear_order(ClearOrderRequest { term, scope: "all".to_owned() }).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let mut all = viewer.subscribe(SubscribeRequest { after_revision: 0 }).await.unwrap().into_inner();
    let mut later = viewer.subscribe(SubscribeRequest { after_revision: middle }).await.unwrap().into_inner();
    advance(&mut client, term, "10.0.0.1", 1, "rs2").await.unwrap();
    let mut got = Vec::new();
    let mut revisions = BTreeSet::new();
    for _ in 0..8 {
        let change = all.message().await.unwrap().unwrap();
        assert!(revisions.last().is_none_or(|last| change.revision > *last));
        revisions.insert(change.revision);
        got.push(name(&change));
    }
    let expected = [
        "term 1",
        "10.0.0.1 e1 rs1",
        "mail1 restarting",
        "mail1 cleared",
        "agent:rs1 disk",
        "all disk",
        "all lifted",
        "10.0.0.1 e2 rs2",
    ];
    assert_eq!(got, expected);
    for expected in &expected[3..] {
        assert_eq!(&name(&later.message().await.unwrap().unwrap()), expected);
    }
    let ahead = viewer.subscribe(SubscribeRequest { after_revision: 999 }).await.unwrap_err();
    assert_eq!(ahead.code(), Code::OutOfRange, "{ahead}");
    // An old backup is no change that can be told: read again.
    assert_eq!(report(&mut client, "a", term, &[("10.0.0.1", 9)]).await.unwrap(), (false, 1));
    assert_eq!(all.message().await.unwrap_err().code(), Code::OutOfRange);
    let before = viewer.subscribe(SubscribeRequest { after_revision: middle }).await.unwrap_err();
    assert_eq!(before.code(), Code::OutOfRange, "{before}");
}

#[tokio::test]
async fn a_stop_is_quick_and_clean_and_faults_say_what_to_do() {
    let (mut cluster, mut client, term) = Cluster::ready().await;
    advance(&mut client, term, "10.0.0.1", 0, "rs1").await.unwrap();
    let mut stream = client.subscribe(SubscribeRequest { after_revision: 999 }).await.err();
    assert!(stream.take().is_some());
    let revision = cluster.ledger(&mut client).await.revision;
    let mut stream = client.subscribe(SubscribeRequest { after_revision: revision }).await.unwrap().into_inner();
    let mut process = cluster.process.take().unwrap();
    let begun = Instant::now();
    let pid = rustix::process::Pid::from_child(&process);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(stream.message().await.unwrap_err().code(), Code::Unavailable);
    let status = tokio::task::spawn_blocking(move || process.wait().unwrap()).await.unwrap();
    assert!(status.success(), "{status}");
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    println!("stopped in {:?}", begun.elapsed());

    let run = |cluster: &Cluster| {
        let output = cluster.command().output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    fs::write(cluster.path("state").join("ledger.redb"), "damaged").unwrap();
    let (code, log) = run(&cluster);
    assert!(code == Some(1) && log.contains("restore it from a backup"), "{log}");
    fs::write(cluster.path("cluster.toml"), "[sif]\nlisten = 'nowhere'\n").unwrap();
    let (code, log) = run(&cluster);
    assert!(code == Some(64) && log.contains("nowhere"), "{log}");
}
