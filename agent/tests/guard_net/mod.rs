//! Network namespaces of our own for the guard's tests: `kgtest-…`, addresses in 10.78.0.0/24 and fd78::/64.

use kage_agent::guard::{IfName, Link, MacAddr, Place, QueueFull, RenewalReport, RenewalThread};
use kage_agent_core::{KernelOp, KernelOutcome, OpId};
use kage_types::Vip;
use std::{
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};
use tokio::sync::mpsc::UnboundedReceiver;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Why these tests can't run here, if they can't.
pub fn obstacle() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("not root".into());
    }
    match Command::new("nft").args(["list", "tables"]).output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => return Some(format!("nf_tables: {}", String::from_utf8_lossy(&output.stderr))),
        Err(error) => return Some(format!("nft: {error}")),
    }
    let tried = Space::try_new("try");
    tried.is_none().then(|| "`ip netns add` failed".to_owned())
}

/// Skips the test, with the reason, where it can't run.
#[macro_export]
macro_rules! needs_root {
    () => {
        if let Some(why) = guard_net::obstacle() {
            eprintln!("skipped: {why}");
            return;
        }
    };
}

pub fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub fn vip4() -> Vip {
    "10.78.0.100".parse().unwrap()
}

pub fn vip6() -> Vip {
    "fd78::100".parse().unwrap()
}

pub fn ifname(name: &str) -> IfName {
    IfName::new(name).unwrap()
}

/// A namespace; deleted when dropped.
pub struct Space(pub String);

impl Space {
    fn try_new(role: &str) -> Option<Self> {
        let name = format!("kgtest-{}-{}-{role}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let made = Command::new("ip").args(["netns", "add", &name]).status().is_ok_and(|status| status.success());
        made.then_some(Self(name))
    }

    pub fn new(role: &str) -> Self {
        let space = Self::try_new(role).expect("ip netns add");
        space.sh("ip link set lo up; sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0");
        space
    }

    pub fn run(&self, script: &str) -> Output {
        Command::new("ip").args(["netns", "exec", &self.0, "sh", "-c", script]).output().expect("ip netns exec")
    }

    /// The script must succeed; its output.
    pub fn sh(&self, script: &str) -> String {
        let output = self.run(script);
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs `act` on a thread that is inside.
    pub fn inside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let path = format!("/run/netns/{}", self.0);
        thread::scope(|scope| {
            let inner = scope.spawn(move || {
                let file = std::fs::File::open(path).expect("namespace");
                rustix::thread::move_into_link_name_space(
                    std::os::fd::AsFd::as_fd(&file),
                    Some(rustix::thread::LinkNameSpaceType::Network),
                )
                .expect("setns");
                act()
            });
            match inner.join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    pub fn link(&self, name: &str) -> Link {
        self.inside(|| Link::find(ifname(name)).expect("link"))
    }

    /// Who answers for the VIP on `eth0`?
    pub fn ask(&self, vip: Vip) -> Option<MacAddr> {
        self.inside(|| {
            kage_agent::guard::conflict::probe(&Link::find(ifname("eth0")).unwrap(), vip, ms(300)).expect("probe")
        })
    }

    pub fn pings(&self, vip: Vip) -> bool {
        self.run(&format!("ping -q -c 2 -i 0.05 -W 0.3 {vip}")).status.success()
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

/// Joins `a` of the one space with `b` of the other.
pub fn join(a: &Space, a_name: &str, b: &Space, b_name: &str) {
    let (space_a, space_b) = (&a.0, &b.0);
    a.sh(&format!("ip link add {a_name} type veth peer name {b_name} netns {space_b}; ip link set {a_name} up"));
    b.sh(&format!("ip link set {b_name} up"));
    let _ = space_a;
}

/// A host that may hold the VIPs, and a client, each with its own address on `eth0`.
pub fn host_and_client() -> (Space, Space) {
    let (host, client) = (Space::new("host"), Space::new("client"));
    join(&host, "eth0", &client, "eth0");
    host.sh("ip addr add 10.78.0.1/24 dev eth0; ip addr add fd78::1/64 dev eth0 nodad");
    client.sh("ip addr add 10.78.0.2/24 dev eth0; ip addr add fd78::2/64 dev eth0 nodad");
    (host, client)
}

/// A renewal thread, driven one operation at a time.
pub struct Kernel {
    thread: RenewalThread,
    reports: UnboundedReceiver<RenewalReport>,
    next: u64,
}

impl Kernel {
    pub fn start(space: &Space, egress: bool) -> Self {
        let (sender, reports) = tokio::sync::mpsc::unbounded_channel();
        let thread = space.inside(|| RenewalThread::spawn(egress, sender).expect("renewal thread"));
        Self { thread, reports, next: 1 }
    }

    pub fn submit(&mut self, op: KernelOp, place: Place) -> Result<OpId, QueueFull> {
        let id = OpId(self.next);
        self.next += 1;
        self.thread.submit(id, op, place).map(|()| id)
    }

    /// The outcome, and how long it took.
    pub fn timed(&mut self, op: KernelOp, place: Place) -> (KernelOutcome, Duration) {
        let begun = kage_agent::guard::now();
        let id = self.submit(op, place).unwrap();
        let report = self.reports.blocking_recv().expect("report");
        assert_eq!(report.id, id);
        (report.outcome, report.at.since(begun))
    }

    pub fn run(&mut self, op: KernelOp, place: Place) -> KernelOutcome {
        self.timed(op, place).0
    }

    pub fn arm(&mut self, vip: Vip, place: Place) -> KernelOutcome {
        self.run(KernelOp::Arm { vip, life: ms(700) }, place)
    }

    pub fn open(&mut self, vip: Vip, place: Place, life: Duration) -> KernelOutcome {
        self.run(KernelOp::Open { vip, life, not_after: kage_agent::guard::now() + ms(1000) }, place)
    }

    pub fn renew(&mut self, vip: Vip, place: Place, life: Duration) -> KernelOutcome {
        self.run(KernelOp::Renew { vip, life, not_after: kage_agent::guard::now() + ms(1000) }, place)
    }

    pub fn close(&mut self, vip: Vip, place: Place) -> KernelOutcome {
        self.run(KernelOp::Close { vip }, place)
    }

    /// Arms and opens: both must succeed.
    pub fn acquire(&mut self, vip: Vip, place: Place, life: Duration) {
        assert_eq!(self.arm(vip, place), KernelOutcome::Done);
        assert_eq!(self.open(vip, place, life), KernelOutcome::Done);
    }
}

/// Waits for a level, with a limit.
pub fn wait_until(limit: Duration, what: &str, mut reached: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !reached() {
        assert!(begun.elapsed() < limit, "not within {limit:?}: {what}");
        thread::sleep(ms(10));
    }
}
