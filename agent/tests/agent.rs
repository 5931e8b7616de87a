//! Real agents in network namespaces against a coordinator of the test's own. Needs root.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test")]

mod support {
    pub mod coordinator;
    pub mod net;
}

use kage_proto::{
    agent::v1::{
        BarRequest, GetVoterStateRequest, HeldVip, HoldVipReply, HoldVipRequest, HostRequest, ListLeasesReply,
        ListLeasesRequest, ReleaseVipRequest, agent_client::AgentClient, voter_client::VoterClient,
    },
    channel::{Credentials, Options, channel},
    issue::{Authority, Subject},
    roles::{Identity, Role},
    tls::{Expected, Pki},
};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs,
    path::PathBuf,
    process::{Child, Command},
    time::{Duration, Instant},
};
use support::{
    coordinator::Fake,
    net::{COORDINATOR, Net, Pings, VIP, wall},
};
use tempfile::TempDir;
use tonic::{Code, Status, transport::Channel};

/// L of the fake coordinator's assignment.
const LEASE: Duration = Duration::from_secs(2);
const LIMIT: Duration = Duration::from_secs(15);

struct Cluster {
    net: Net,
    dir: TempDir,
    authority: Authority,
    credentials: Credentials,
    fake: Fake,
}

struct Agent {
    name: String,
    namespace: String,
    last: u8,
    config: PathBuf,
    log: PathBuf,
    child: Option<Child>,
    client: Channel,
}

/// KAGE_AGENT: another build of it, to be measured.
fn binary() -> String {
    std::env::var("KAGE_AGENT").unwrap_or_else(|_| env!("CARGO_BIN_EXE_kage-agent").to_owned())
}

impl Agent {
    fn start(&mut self) {
        let log = fs::File::options().create(true).append(true).open(&self.log).expect("log");
        let child = Command::new("ip")
            .args(["netns", "exec", &self.namespace, &binary(), "run", "--config"])
            .arg(&self.config)
            .env("RUST_LOG", "debug,h2=info,hyper=info,tower=info")
            .stderr(log)
            .spawn();
        self.child = Some(child.expect("agent"));
    }

    /// `ip netns exec` becomes the agent.
    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.as_ref().expect("running").id()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), signal).expect("kill");
    }

    /// Does not block: the coordinator lives on the test's thread.
    async fn wait(&mut self) {
        let mut child = self.child.take().expect("running");
        wait_until("the agent ends", async || child.try_wait().expect("wait").is_some()).await;
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    async fn hold(&self, epoch: u64) -> Result<HoldVipReply, Status> {
        let hold = HoldVipRequest {
            term: 1,
            vip: VIP.to_owned(),
            epoch,
            domain: String::new(),
            timeout_ms: 5000,
            prepare: false,
        };
        AgentClient::new(self.client.clone()).hold_vip(hold).await.map(tonic::Response::into_inner)
    }

    async fn leases(&self) -> Option<ListLeasesReply> {
        AgentClient::new(self.client.clone())
            .list_leases(ListLeasesRequest {})
            .await
            .ok()
            .map(tonic::Response::into_inner)
    }

    async fn held(&self) -> Option<HeldVip> {
        self.leases().await?.vips.into_iter().next()
    }

    async fn up(&self) {
        wait_until(&format!("{} reaches its coordinator", self.name), async || {
            self.leases().await.is_some_and(|leases| leases.coordinator_reachable)
        })
        .await;
    }

    fn rss_kib(&self) -> u64 {
        let pid = self.child.as_ref().expect("running").id();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- log of {}\n{}", self.name, self.log());
        }
    }
}

impl Cluster {
    async fn new(voters: &[(&str, u8)]) -> Self {
        let net = Net::enter();
        let dir = tempfile::tempdir().expect("dir");
        let authority = Authority::create(&dir.path().join("ca"), "test", 30).expect("authority");
        let pki = dir.path().join("coordinator");
        authority.issue_into(&Subject::new(Identity::new(Role::Coordinator, "c1").unwrap()), &pki).expect("issue");
        let pki = Pki::load(&pki).expect("pki");
        let fake = Fake::serve(pki.clone(), voters).await;
        Self { net, dir, authority, credentials: Credentials::Tls(pki), fake }
    }

    fn agent(&mut self, name: &str, last: u8, witness: bool) -> Agent {
        self.agent_with(name, last, witness, "")
    }

    fn agent_with(&mut self, name: &str, last: u8, witness: bool, more: &str) -> Agent {
        let namespace = self.net.machine(name, last);
        let (pki, state, config) = (
            self.dir.path().join(format!("{name}-pki")),
            self.dir.path().join(format!("{name}-state")),
            self.dir.path().join(format!("{name}.toml")),
        );
        self.authority.issue_into(&Subject::new(Identity::new(Role::Agent, name).unwrap()), &pki).expect("issue");
        let guard = if witness { "" } else { "[guard]\nkind = \"host\"\ninterface = \"eth0\"\n" };
        let text = format!(
            "name = \"{name}\"\nlisten = \"10.79.0.{last}:7702\"\ncoordinator = \"{COORDINATOR}:7700\"\npki = {pki:?}\nstate = {state:?}\nwitness = {witness}\n{guard}{more}"
        );
        fs::write(&config, text).expect("config");
        let expected = Expected::role(Role::Agent);
        let client = channel(
            &format!("10.79.0.{last}:7702"),
            &self.credentials,
            expected,
            &Options::noticing_within(Duration::from_millis(500)),
        );
        let log = self.dir.path().join(format!("{name}.log"));
        let mut agent = Agent {
            name: name.to_owned(),
            namespace,
            last,
            config,
            log,
            child: None,
            client: client.expect("channel"),
        };
        agent.start();
        agent
    }
}

async fn wait_until(what: &str, mut is: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !is().await {
        assert!(Instant::now() < end, "not within {LIMIT:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// On a thread of its own, which moves into the switch's namespace.
fn in_namespaces(test: impl AsyncFnOnce() + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root for network namespaces and nftables");
        return;
    }
    let body = move || {
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime").block_on(test());
    };
    if let Err(panic) = std::thread::spawn(body).join() {
        std::panic::resume_unwind(panic);
    }
}

async fn answering(pings: &Pings) {
    let before = pings.count();
    wait_until("the VIP answers", async || pings.count() >= before + 5).await;
}

/// Sends something every 20 ms for this long: the agents' and the test's own time goes on.
async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

#[test]
fn held_then_silent_within_the_lease_when_grants_stop() {
    in_namespaces(async || {
        let mut cluster = Cluster::new(&[]).await;
        let agent = cluster.agent("mail", 11, false);
        agent.up().await;
        let pings = Pings::start();
        pass(Duration::from_millis(300)).await;
        assert_eq!(pings.count(), 0, "closed before it is held");
        let refused = agent.client.clone();
        let stranger = HoldVipRequest {
            term: 1,
            vip: "10.79.0.200".to_owned(),
            epoch: 1,
            domain: String::new(),
            timeout_ms: 0,
            prepare: false,
        };
        assert_eq!(AgentClient::new(refused).hold_vip(stranger).await.unwrap_err().code(), Code::FailedPrecondition);

        let begun = Instant::now();
        let reply = agent.hold(1).await.expect("hold");
        println!("hold: {:?} in all, {reply:?}; RSS {} KiB", begun.elapsed(), agent.rss_kib());
        answering(&pings).await;
        assert!(cluster.fake.mood.lock().unwrap().events.iter().any(|(_, what)| what.contains("LeaseOpened")));
        let from = wall();
        pass(Duration::from_secs(3)).await;
        assert_eq!(pings.lost(from), 0);

        let mut latencies = Vec::new();
        for epoch in 2..22 {
            let release = ReleaseVipRequest { term: 1, vip: VIP.to_owned(), epoch };
            AgentClient::new(agent.client.clone()).release_vip(release).await.expect("release");
            let begun = Instant::now();
            agent.hold(epoch + 1).await.expect("hold");
            latencies.push(begun.elapsed());
        }
        latencies.sort();
        println!("hold latency of {}: median {:?}, longest {:?}", latencies.len(), latencies[10], latencies[19]);

        answering(&pings).await;
        let stopped = wall();
        cluster.fake.set(|mood| mood.silent = true);
        wait_until("silence", async || wall() > pings.last().unwrap() + Duration::from_secs(1)).await;
        let served = pings.last().unwrap().saturating_sub(stopped);
        println!("served {served:?} after the last grant");
        assert!(served <= LEASE, "{served:?}");
        cluster.fake.set(|mood| mood.silent = false);
        answering(&pings).await;
    });
}

#[test]
fn superseded_is_closed_at_once_and_stays_closed() {
    in_namespaces(async || {
        let mut cluster = Cluster::new(&[]).await;
        let agent = cluster.agent("mail", 11, false);
        agent.up().await;
        agent.hold(1).await.expect("hold");
        let pings = Pings::start();
        answering(&pings).await;
        let at = wall();
        cluster.fake.set(|mood| mood.superseded = true);
        wait_until("given up", async || agent.held().await.is_none()).await;
        pass(Duration::from_millis(700)).await;
        let served = pings.last().unwrap().saturating_sub(at);
        assert!(served < Duration::from_millis(400), "{served:?}: one renewal interval and a little");
        cluster.fake.set(|mood| mood.superseded = false);
        assert_eq!(agent.hold(1).await.unwrap_err().code(), Code::FailedPrecondition, "the epoch is over");
        agent.hold(2).await.expect("hold");
        answering(&pings).await;
    });
}

#[test]
fn restarts_cost_no_ping() {
    in_namespaces(async || {
        let mut cluster = Cluster::new(&[]).await;
        let mut agent = cluster.agent("mail", 11, false);
        agent.up().await;
        agent.hold(1).await.expect("hold");
        let pings = Pings::start();
        answering(&pings).await;

        let from = wall();
        agent.signal(Signal::TERM);
        agent.wait().await;
        println!("SIGTERM to the end: {:?}", wall().saturating_sub(from));
        // Longer than a lease: the long one holds.
        pass(LEASE + Duration::from_secs(1)).await;
        agent.start();
        agent.up().await;
        wait_until("live again", async || {
            agent.held().await.is_some_and(|held| held.state == "live" && held.epoch == 1)
        })
        .await;
        pass(Duration::from_secs(1)).await;
        assert_eq!(pings.lost(from), 0, "SIGTERM");

        let from = wall();
        agent.signal(Signal::KILL);
        agent.wait().await;
        agent.start();
        agent.up().await;
        pass(LEASE + Duration::from_secs(1)).await;
        assert_eq!(pings.lost(from), 0, "kill -9");
        assert_eq!(agent.held().await.map(|held| held.epoch), Some(1));
    });
}

#[test]
fn the_machine_going_down_releases() {
    in_namespaces(async || {
        let mut cluster = Cluster::new(&[]).await;
        let mut agent = cluster.agent("mail", 11, false);
        agent.up().await;
        agent.hold(1).await.expect("hold");
        let pings = Pings::start();
        answering(&pings).await;
        let at = wall();
        agent.signal(Signal::USR1);
        agent.wait().await;
        let took = wall().saturating_sub(at);
        assert!(took < Duration::from_secs(4), "{took:?}");
        pass(Duration::from_millis(500)).await;
        let served = pings.last().unwrap().saturating_sub(at);
        assert!(served < Duration::from_millis(300), "{served:?}");
        let events = cluster.fake.mood.lock().unwrap().events.clone();
        assert!(events.iter().any(|(_, what)| what.contains("GoingDown")), "{events:?}");
        assert!(events.iter().any(|(_, what)| what.contains("LeaseLost")), "{events:?}");
        agent.start();
        agent.up().await;
        assert!(agent.held().await.is_none(), "nothing is asked for anew");
    });
}

#[test]
fn a_host_sleeps_when_it_is_idle_and_sure_to_wake() {
    in_namespaces(async || {
        let mut cluster = Cluster::new(&[]).await;
        let alarm = cluster.dir.path().join("alarm");
        let set = format!("echo $0 >> {}", alarm.display());
        // As a whole machine that is frozen from outside: the command outlasts the sleep, and no clock jumps.
        let freeze = "kill -STOP $PPID; sleep 1.5; kill -CONT $PPID";
        let power = format!(
            "[power]\nalarm = [\"sh\", \"-c\", {set:?}]\narm_wake = [\"test\", \"-e\", {:?}]\nsuspend = [\"sh\", \"-c\", {freeze:?}]\n",
            cluster.dir.path().join("armed")
        );
        let agent = cluster.agent_with("rs1", 11, false, &power);
        agent.up().await;
        let sleep = async || {
            let authority = Some(kage_proto::agent::v1::Authority { term: 1 });
            let request = HostRequest { authority, alarm_ms: 60_000, ..HostRequest::default() };
            AgentClient::new(agent.client.clone()).suspend_host(request).await.map(tonic::Response::into_inner)
        };
        let alarms = || fs::read_to_string(&alarm).unwrap_or_default();
        let events = || cluster.fake.mood.lock().unwrap().events.clone();

        agent.hold(1).await.expect("hold");
        let refused = sleep().await.expect_err("it serves");
        assert!(refused.message().contains("drain first") && refused.message().contains(VIP), "{refused}");
        let release = ReleaseVipRequest { term: 1, vip: VIP.to_owned(), epoch: 1 };
        AgentClient::new(agent.client.clone()).release_vip(release).await.expect("release");

        let refused = sleep().await.expect_err("nothing would wake it");
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        assert_eq!(alarms(), "", "not even begun");
        agent.hold(2).await.expect("it stays, and takes what it is given");
        let release = ReleaseVipRequest { term: 1, vip: VIP.to_owned(), epoch: 2 };
        AgentClient::new(agent.client.clone()).release_vip(release).await.expect("release");

        fs::write(cluster.dir.path().join("armed"), "").expect("write");
        let reply = sleep().await.expect("sleeps");
        assert!(reply.woken_by.contains("armed") && reply.woken_by.contains("alarm after 60 s"), "{reply:?}");
        let woke = async || events().iter().any(|(_, what)| what.contains("Woke") && what.contains("failed: \"\""));
        wait_until("it wakes", woke).await;
        assert_eq!(alarms(), "60\n0\n", "set, and cleared");
        agent.hold(3).await.expect("it takes virtual IPs again");
    });
}

#[test]
fn a_stalled_agent_lapses_and_needs_a_new_grant() {
    in_namespaces(async || {
        let mut cluster = Cluster::new(&[]).await;
        let agent = cluster.agent("mail", 11, false);
        agent.up().await;
        agent.hold(1).await.expect("hold");
        let pings = Pings::start();
        answering(&pings).await;
        let at = wall();
        agent.signal(Signal::STOP);
        pass(Duration::from_secs(2)).await;
        let served = pings.last().unwrap().saturating_sub(at);
        assert!(served < Duration::from_millis(900), "{served:?}: K and a little");
        cluster.fake.set(|mood| mood.wait = true);
        agent.signal(Signal::CONT);
        let silent = pings.count();
        pass(Duration::from_secs(2)).await;
        assert_eq!(pings.count(), silent, "no grant, no answer");
        cluster.fake.set(|mood| mood.wait = false);
        answering(&pings).await;
        let events = cluster.fake.mood.lock().unwrap().events.clone();
        assert!(events.iter().any(|(_, what)| what.contains("LeaseLost") && what.contains("lapsed")), "{events:?}");
    });
}

#[test]
fn a_service_that_writes_is_stopped_with_the_lease_and_started_with_it() {
    in_namespaces(async || {
        let mut cluster = Cluster::new(&[]).await;
        let runs = cluster.dir.path().join("runs");
        let section = format!(
            "[services.mail]\ncheck = [\"test\", \"-e\", {runs:?}]\nrestart = [\"touch\", {runs:?}]\n\
             stop = [\"rm\", {runs:?}]\non_lease_lost = \"stop\"\n"
        );
        let set = |running: bool| if running { fs::write(&runs, "") } else { fs::remove_file(&runs) }.expect("service");
        set(true);
        let mut agent = cluster.agent_with("mail", 11, false, &section);
        agent.up().await;
        pass(Duration::from_secs(1)).await;
        assert!(runs.exists(), "before its first lease it is left alone");
        agent.hold(1).await.expect("hold");

        // Stalled for longer than the lease: the first thing it does.
        agent.signal(Signal::STOP);
        pass(Duration::from_millis(2500)).await;
        cluster.fake.set(|mood| mood.wait = true);
        let woken = wall();
        agent.signal(Signal::CONT);
        wait_until("stopped", async || !runs.exists()).await;
        println!("stopped {:?} after the agent woke", wall().saturating_sub(woken));
        cluster.fake.set(|mood| mood.wait = false);
        wait_until("started", async || runs.exists()).await;

        // Clean stops and crashes of the agent change nothing while the lease lasts.
        agent.signal(Signal::TERM);
        agent.wait().await;
        pass(Duration::from_secs(1)).await;
        agent.start();
        agent.up().await;
        pass(Duration::from_secs(1)).await;
        assert!(runs.exists());

        // Given up: at once; and still known to have been its own doing after a crash.
        let at = wall();
        cluster.fake.set(|mood| mood.superseded = true);
        wait_until("stopped", async || !runs.exists()).await;
        println!("stopped {:?} after another was said to be the owner", wall().saturating_sub(at));
        pass(Duration::from_millis(300)).await;
        agent.signal(Signal::KILL);
        agent.wait().await;
        agent.start();
        agent.up().await;
        cluster.fake.set(|mood| mood.superseded = false);
        agent.hold(2).await.expect("hold");
        wait_until("started", async || runs.exists()).await;

        // What the administrator stopped stays so.
        set(false);
        cluster.fake.set(|mood| mood.superseded = true);
        wait_until("given up", async || agent.held().await.is_none()).await;
        pass(Duration::from_millis(500)).await;
        cluster.fake.set(|mood| mood.superseded = false);
        agent.hold(3).await.expect("hold");
        pass(Duration::from_secs(1)).await;
        assert!(!runs.exists());
        let told = |cluster: &Cluster, what: &str| {
            cluster.fake.mood.lock().unwrap().events.iter().filter(|(_, event)| event.contains(what)).count()
        };
        assert!(told(&cluster, "\"held\"") > 0);

        // What happens while there is no stream is told when there is one.
        let lost = told(&cluster, "LeaseLost");
        cluster.fake.set(|mood| mood.down = true);
        wait_until("lapsed", async || agent.log().contains("session to the coordinator is down")).await;
        pass(LEASE).await;
        assert_eq!(told(&cluster, "LeaseLost"), lost);
        cluster.fake.set(|mood| mood.down = false);
        wait_until("told afterwards", async || told(&cluster, "LeaseLost") > lost).await;
    });
}

#[test]
fn an_owner_whose_guard_was_flushed_serves_again_at_once() {
    in_namespaces(async || {
        let mut cluster = Cluster::new(&[]).await;
        let agent = cluster.agent("mail", 11, false);
        agent.up().await;
        agent.hold(1).await.expect("hold");
        let pings = Pings::start();
        answering(&pings).await;
        let opened = |cluster: &Cluster| {
            cluster.fake.mood.lock().unwrap().events.iter().filter(|(_, what)| what.contains("LeaseOpened")).count()
        };
        let mut took = Vec::new();
        for _ in 0..10 {
            let before = opened(&cluster);
            let mut flush = Command::new("ip");
            flush.args(["netns", "exec", &agent.namespace, "nft", "flush", "ruleset"]);
            let begun = Instant::now();
            assert!(tokio::task::spawn_blocking(move || flush.status()).await.unwrap().expect("nft").success());
            let flushed = begun.elapsed();
            while opened(&cluster) == before {
                assert!(begun.elapsed() < LIMIT, "never opened again");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            took.push((begun.elapsed(), flushed));
            answering(&pings).await;
            // Renewals and flushes in ever new order.
            pass(Duration::from_millis(430)).await;
        }
        took.sort();
        println!("flush (begun, with the part until nft ended) to open again: {took:?}");
        println!("longest silence {:?}", pings.longest_gap());
        assert!(took[took.len() / 2].0 < Duration::from_millis(200), "{took:?}");
    });
}

#[test]
fn an_owner_cut_from_the_coordinator_is_granted_by_way_of_the_voters() {
    in_namespaces(async || {
        let voters = [("w1", 21), ("w2", 22), ("w3", 23)];
        let mut cluster = Cluster::new(&voters).await;
        let witnesses: Vec<Agent> = voters.iter().map(|(name, last)| cluster.agent(name, *last, true)).collect();
        let agent = cluster.agent("mail", 11, false);
        agent.up().await;
        for witness in &witnesses {
            witness.up().await;
        }
        agent.hold(1).await.expect("hold");
        let pings = Pings::start();
        answering(&pings).await;
        let from = wall();
        let nft = |script: &str| {
            let done = Command::new("ip").args(["netns", "exec", &agent.namespace, "nft", script]).status();
            assert!(done.expect("nft").success(), "{script}");
        };
        // Silence, not a refusal: TCP goes on trying.
        nft(
            "add table inet cut; add chain inet cut out { type filter hook output priority 0; }; add rule inet cut out tcp dport 7700 drop",
        );
        pass(2 * LEASE).await;
        let leases = agent.leases().await.expect("leases");
        assert_eq!((leases.renewed_by.as_str(), leases.coordinator_reachable), ("relay", false));
        assert!(cluster.fake.mood.lock().unwrap().relayed > 10);

        nft("delete table inet cut");
        let healed = Instant::now();
        wait_until("the coordinator answers itself again", async || {
            agent.leases().await.is_some_and(|leases| leases.renewed_by == "coordinator")
        })
        .await;
        println!("direct again {:?} after the cut healed", healed.elapsed());
        assert!(healed.elapsed() < Duration::from_secs(4));
        assert_eq!(pings.lost(from), 0);
    });
}

#[test]
fn voters_keep_an_owner_until_they_are_barred() {
    in_namespaces(async || {
        let voters = [("w1", 21), ("w2", 22), ("w3", 23)];
        let mut cluster = Cluster::new(&voters).await;
        let mut witnesses: Vec<Agent> = voters.iter().map(|(name, last)| cluster.agent(name, *last, true)).collect();
        let agent = cluster.agent("mail", 11, false);
        agent.up().await;
        for witness in &witnesses {
            witness.up().await;
        }
        println!("RSS of a witness {} KiB", witnesses[0].rss_kib());
        agent.hold(1).await.expect("hold");
        let pings = Pings::start();
        answering(&pings).await;

        let from = wall();
        cluster.fake.set(|mood| mood.down = true);
        pass(3 * LEASE).await;
        assert_eq!(agent.leases().await.unwrap().renewed_by, "voters");
        assert_eq!(pings.lost(from), 0);

        for witness in &mut witnesses {
            let voter = || VoterClient::new(witness.client.clone());
            let bar = BarRequest { term: 2, vip: VIP.to_owned(), floor: 2 };
            let age = voter().bar(bar).await.expect("bar").into_inner().last_consent_age_ms;
            assert!(age < 1000, "{age} ms at {}", witness.last);
            witness.signal(Signal::KILL);
            witness.wait().await;
            witness.start();
        }
        for witness in &witnesses {
            wait_until("the voter is back", async || {
                let state = VoterClient::new(witness.client.clone()).get_voter_state(GetVoterStateRequest {}).await;
                state.is_ok_and(|state| {
                    let state = state.into_inner();
                    state.is_voter
                        && state.highest_term == 2
                        && state.highest_epochs.iter().any(|epoch| epoch.epoch == 2)
                })
            })
            .await;
        }
        wait_until("silence", async || wall() > pings.last().unwrap() + LEASE).await;
        let stale = VoterClient::new(witnesses[0].client.clone())
            .bar(BarRequest { term: 1, vip: VIP.to_owned(), floor: 9 })
            .await;
        assert_eq!(stale.unwrap_err().code(), Code::FailedPrecondition);
    });
}
