//! The guard against a real kernel, in network namespaces of its own. Needs root and nf_tables; skips without.
#![allow(clippy::unwrap_used, reason = "helpers of tests, too")]

#[path = "guard_net/mod.rs"]
mod guard_net;

use guard_net::*;
use kage_agent::{
    events::Events,
    guard::{Guard, GuardKind, Health, Link, Monitor, Place, address, announce, sockets, wake},
    hands::{Hands, LiveVips, Order},
};
use kage_agent_core::{KernelOp, KernelOutcome};
use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

const HOST: Place = Place::Host;

fn host_guard(host: &Space) -> Guard {
    let listed = BTreeSet::from([vip4(), vip6()]);
    let guard = host
        .inside(|| Guard::install(GuardKind::Host { interface: ifname("eth0") }, listed))
        .unwrap_or_else(|error| panic!("install: {error}"));
    let link = host.link("eth0");
    for vip in [vip4(), vip6()] {
        host.inside(|| address::hold(&link, vip, Duration::from_secs(60))).expect("address");
    }
    guard
}

/// `ping -D`: times and sequence numbers of the replies, on the wall clock.
struct Pings(Child);

impl Pings {
    fn start(space: &Space, interval: &str, seconds: u32) -> Self {
        let arguments = ["netns", "exec", &space.0, "ping", "-D", "-n", "-i", interval, "-w", &seconds.to_string()];
        let child = Command::new("ip").args(arguments).arg(vip4().to_string()).stdout(Stdio::piped()).spawn();
        Self(child.expect("ping"))
    }

    fn replies(self) -> Vec<(f64, u64)> {
        let output = self.0.wait_with_output().expect("ping");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let reply = |line: &str| {
            let time = line.strip_prefix('[')?.split(']').next()?.parse().ok()?;
            let sequence = line.split("icmp_seq=").nth(1)?.split(' ').next()?.parse().ok()?;
            line.contains("time=").then_some((time, sequence))
        };
        text.lines().filter_map(reply).collect()
    }
}

fn wall() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

#[test]
fn a_listed_vip_is_silent_unless_live() {
    needs_root!();
    let (host, client) = host_and_client();
    let guard = host_guard(&host);
    assert!(guard.egress(), "this kernel has the egress hook");
    let mut kernel = Kernel::start(&host, guard.egress());
    for vip in [vip4(), vip6()] {
        assert_eq!(client.ask(vip), None, "{vip} denied");
        assert!(!client.pings(vip));
        assert!(host.pings(vip), "to itself, inside");
        kernel.acquire(vip, HOST, ms(5000));
        assert_eq!(client.ask(vip), Some(host.link("eth0").mac), "{vip} live");
        assert!(client.pings(vip));
        assert_eq!(kernel.close(vip, HOST), KernelOutcome::Done);
        assert_eq!(client.ask(vip), None, "{vip} closed");
        assert!(!client.pings(vip));
    }
    assert!(client.pings("10.78.0.1".parse().unwrap()), "what is not listed is not touched");
    host.inside(|| guard.uninstall()).expect("uninstall");
    assert_eq!(host.sh("nft list ruleset"), "");
    assert!(client.pings(vip4()));
}

#[test]
fn each_outcome_is_as_the_contract_says() {
    needs_root!();
    let (host, client) = host_and_client();
    let guard = host_guard(&host);
    let mut kernel = Kernel::start(&host, guard.egress());
    for vip in [vip4(), vip6()] {
        assert_eq!(kernel.close(vip, HOST), KernelOutcome::Done, "also when nothing is there");
        assert_eq!(kernel.open(vip, HOST, ms(700)), KernelOutcome::NotFound, "not armed");
        assert_eq!(kernel.renew(vip, HOST, ms(700)), KernelOutcome::NotFound, "not live");
        assert_eq!(kernel.arm(vip, HOST), KernelOutcome::Done);
        assert_eq!(kernel.arm(vip, HOST), KernelOutcome::Done, "again");
        assert_eq!(client.ask(vip), None, "armed opens nothing");
        let past = kage_agent::guard::now().before(ms(1));
        let late = KernelOp::Open { vip, life: ms(700), not_after: past };
        assert_eq!(kernel.run(late, HOST), KernelOutcome::TooLate);
        assert_eq!(kernel.arm(vip, HOST), KernelOutcome::Done);
        assert_eq!(kernel.open(vip, HOST, ms(300)), KernelOutcome::Done);
        assert_eq!(kernel.open(vip, HOST, ms(300)), KernelOutcome::NotFound, "armed was used up");
        let late = KernelOp::Renew { vip, life: ms(700), not_after: past };
        assert_eq!(kernel.run(late, HOST), KernelOutcome::TooLate);
        assert_eq!(kernel.renew(vip, HOST, ms(300)), KernelOutcome::Done);
        wait_until(ms(1000), "expiry", || host.inside(|| guard.live()).unwrap().is_empty());
        assert_eq!(kernel.renew(vip, HOST, ms(700)), KernelOutcome::NotFound, "expired");
        assert_eq!(client.ask(vip), None, "and stays closed");
        // armed expires too.
        assert_eq!(kernel.run(KernelOp::Arm { vip, life: ms(50) }, HOST), KernelOutcome::Done);
        std::thread::sleep(ms(120));
        assert_eq!(kernel.open(vip, HOST, ms(700)), KernelOutcome::NotFound, "armed too long ago");
    }
}

#[test]
fn expiry_silences_within_its_life_and_slack() {
    needs_root!();
    let (host, client) = host_and_client();
    let guard = host_guard(&host);
    let mut kernel = Kernel::start(&host, guard.egress());
    for round in 0..3 {
        kernel.acquire(vip4(), HOST, ms(700));
        let opened = wall();
        let pings = Pings::start(&client, "0.004", 2);
        let replies = pings.replies();
        let last = replies.last().expect("replies").0 - opened;
        eprintln!("round {round}: {} replies, the last {last:.3} s after opening for 0.700 s", replies.len());
        assert!((0.5..0.75).contains(&last), "{last}");
    }
}

#[test]
fn renewals_at_five_hertz_lose_nothing() {
    needs_root!();
    let (host, client) = host_and_client();
    let guard = host_guard(&host);
    let mut kernel = Kernel::start(&host, guard.egress());
    kernel.acquire(vip4(), HOST, ms(700));
    kernel.acquire(vip6(), HOST, ms(700));
    // One ping process sends some 130 a second at most.
    let pings: Vec<_> = (0..4).map(|_| Pings::start(&client, "0.002", 6)).collect();
    let begun = Instant::now();
    let mut took = Vec::new();
    while begun.elapsed() < ms(6500) {
        for vip in [vip4(), vip6()] {
            let not_after = kage_agent::guard::now() + ms(500);
            let (outcome, time) = kernel.timed(KernelOp::Renew { vip, life: ms(700), not_after }, HOST);
            assert_eq!(outcome, KernelOutcome::Done, "{vip} after {:?}", begun.elapsed());
            took.push(time);
        }
        std::thread::sleep(ms(200));
    }
    let answers: Vec<_> = pings.into_iter().map(Pings::replies).collect();
    let sent: u64 = answers.iter().map(|replies| replies.last().expect("replies").1).sum();
    let answered: usize = answers.iter().map(Vec::len).sum();
    took.sort();
    let (median, worst) = (took[took.len() / 2], took[took.len() - 1]);
    eprintln!("{} renewals: median {median:?}, worst {worst:?}; {answered} of {sent} pings answered", took.len());
    assert_eq!(u64::try_from(answered).unwrap(), sent);
}

#[test]
fn a_transaction_over_several_tables_is_one() {
    needs_root!();
    let (host, client) = host_and_client();
    let mut guard = host_guard(&host);
    let mut kernel = Kernel::start(&host, guard.egress());
    kernel.acquire(vip4(), HOST, ms(3000));
    for family in ["arp", "inet", "netdev"] {
        assert!(host.sh(&format!("nft list set {family} kagemusha live4")).contains("10.78.0.100"), "{family}");
    }
    // The middle one of the three deletions of a renewal can't be done: the others must not be either.
    host.sh("nft delete element arp kagemusha live4 { 10.78.0.100 }");
    assert_eq!(kernel.renew(vip4(), HOST, ms(20_000)), KernelOutcome::NotFound);
    let live = host.inside(|| guard.live()).unwrap();
    assert_eq!(live.len(), 1, "still there");
    assert!(live[0].remaining < ms(3000), "not renewed: {live:?}");
    // A table is lost: renewal says so, and so does arming once all are gone.
    host.sh("nft delete table arp kagemusha");
    assert_eq!(kernel.renew(vip4(), HOST, ms(20_000)), KernelOutcome::NotFound);
    host.sh("nft flush ruleset");
    assert!(matches!(kernel.arm(vip4(), HOST), KernelOutcome::Failed(why) if why.contains("gone")));
    host.inside(|| guard.reinstall()).expect("reinstall");
    assert_eq!(client.ask(vip4()), None);
    kernel.acquire(vip4(), HOST, ms(700));
}

#[test]
fn a_guest_is_bound_at_its_tap() {
    needs_root!();
    let (hypervisor, guest, other, client) =
        (Space::new("hv"), Space::new("guest"), Space::new("other"), Space::new("client"));
    hypervisor.sh("ip link add br0 type bridge; ip link set br0 up; ip addr add 10.78.0.1/24 dev br0");
    for (space, port) in [(&guest, "vnet0"), (&other, "vnet1"), (&client, "up0")] {
        join(&hypervisor, port, space, "eth0");
        hypervisor.sh(&format!("ip link set {port} master br0"));
    }
    guest.sh("ip addr add 10.78.0.10/24 dev eth0; ip addr add 10.78.0.100/32 dev eth0");
    guest.sh("ip addr add fd78::10/64 dev eth0 nodad; ip addr add fd78::100/128 dev eth0 nodad");
    other.sh("ip addr add 10.78.0.11/24 dev eth0; ip addr add fd78::11/64 dev eth0 nodad");
    client.sh("ip addr add 10.78.0.2/24 dev eth0; ip addr add fd78::2/64 dev eth0 nodad");
    wait_until(ms(3000), "the bridge forwards", || client.pings("10.78.0.10".parse().unwrap()));
    assert!(client.pings(vip4()), "without a guard the guest answers");
    let bridge = ifname("br0");
    let kind = GuardKind::Tap { bridge, uplinks: vec![ifname("up0")] };
    let guard = hypervisor
        .inside(|| Guard::install(kind, BTreeSet::from([vip4(), vip6()])))
        .unwrap_or_else(|error| panic!("install: {error}"));
    let mut kernel = Kernel::start(&hypervisor, false);
    let tap = Place::Tap { ifname: ifname("vnet0") };
    let mac = guest.link("eth0").mac;
    for vip in [vip4(), vip6()] {
        for asker in [&client, &other] {
            assert_eq!(asker.ask(vip), None, "{vip} denied");
            assert!(!asker.pings(vip), "{vip} denied");
        }
        // The host itself must not get through either.
        assert!(!hypervisor.pings(vip4()) || vip == vip6());
        kernel.acquire(vip, tap, ms(20_000));
        assert_eq!(client.ask(vip), Some(mac), "{vip} live");
        // Another guest may use the VIP, but not claim it: its probes stay in.
        assert!(client.pings(vip) && other.pings(vip), "{vip} live");
        assert_eq!(kernel.renew(vip, Place::Tap { ifname: ifname("vnet1") }, ms(700)), KernelOutcome::NotFound);
        assert_eq!(kernel.renew(vip, tap, ms(20_000)), KernelOutcome::Done);
    }
    // Nothing is delivered to the guest once closed, though the client still knows its hardware address.
    let received = |space: &Space| space.sh("nft list counters").split("packets ").nth(1).unwrap().to_owned();
    guest.sh("nft 'table inet t { counter c { }; chain c { type filter hook prerouting priority 0; \
         ip daddr 10.78.0.100 counter name c; }; }'");
    assert!(client.pings(vip4()));
    assert_eq!(kernel.close(vip4(), tap), KernelOutcome::Done);
    let before = received(&guest);
    assert!(!client.pings(vip4()));
    assert_eq!(received(&guest), before, "delivered to a guest that isn't live");
    // The announcement on the bridge reaches the network from the guest's address, and only while live.
    let link = hypervisor.link("br0");
    let port_of = || hypervisor.sh(&format!("bridge fdb show br br0 | grep {mac} | grep -v permanent"));
    assert!(client.pings("10.78.0.10".parse().unwrap()));
    let before = port_of();
    assert!(before.contains("vnet0"), "{before}");
    let frames = Frames::on(&client, "arp");
    hypervisor.inside(|| announce::announce_once(&link, mac, vip4())).expect("dropped, not failed");
    assert_eq!(frames.stop().matches("10.78.0.100").count(), 0, "announced without a lease");
    kernel.acquire(vip4(), tap, ms(20_000));
    let frames = Frames::on(&client, "arp");
    hypervisor.inside(|| announce::announce_once(&link, mac, vip4())).expect("announce");
    let seen = frames.stop();
    assert!(seen.contains(&format!("{mac} > ff:ff:ff:ff:ff:ff")), "{seen}");
    assert_eq!(port_of(), before, "the bridge's own table is unchanged");
    assert_eq!(hypervisor.inside(|| guard.verify()).unwrap(), Health::Intact);
}

/// tcpdump on `eth0`.
struct Frames {
    child: Child,
    /// Kept open: tcpdump dies of writing to a closed pipe.
    _stderr: std::process::ChildStderr,
}

impl Frames {
    fn on(space: &Space, filter: &str) -> Self {
        let mut child = Command::new("ip")
            .args([
                "netns",
                "exec",
                &space.0,
                "tcpdump",
                "-i",
                "eth0",
                "-l",
                "-n",
                "-e",
                "-x",
                "--immediate-mode",
                filter,
            ])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("tcpdump");
        let mut stderr = child.stderr.take().unwrap();
        let mut said = Vec::new();
        let mut byte = [0];
        while !String::from_utf8_lossy(&said).contains("snapshot length") {
            assert_eq!(stderr.read(&mut byte).unwrap(), 1, "tcpdump ended");
            said.push(byte[0]);
        }
        Self { child, _stderr: stderr }
    }

    fn stop(self) -> String {
        std::thread::sleep(ms(300));
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("kill");
        let output = self.child.wait_with_output().expect("tcpdump");
        assert!(output.status.success(), "tcpdump: {}", output.status);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

#[test]
fn announcements_and_magic_packets_are_on_the_wire() {
    needs_root!();
    let (host, client) = host_and_client();
    let guard = host_guard(&host);
    let mut kernel = Kernel::start(&host, guard.egress());
    let link = host.link("eth0");
    let say = |vip| host.inside(|| announce::announce_once(&link, link.mac, vip)).expect("announce");
    let frames = Frames::on(&client, "arp or icmp6[0] == 136");
    say(vip4());
    say(vip6());
    let seen = frames.stop();
    assert!(!seen.contains("10.78.0.100") && !seen.contains("fd78::100"), "not live: {seen}");
    kernel.acquire(vip4(), HOST, ms(5000));
    kernel.acquire(vip6(), HOST, ms(5000));
    let frames = Frames::on(&client, "arp or icmp6[0] == 136");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    host.inside(|| runtime.block_on(announce::announce(&link, link.mac, vip4(), || true))).expect("announce");
    say(vip6());
    let seen = frames.stop();
    assert_eq!(seen.matches("Request who-has 10.78.0.100").count(), 3, "{seen}");
    assert_eq!(seen.matches(&format!("Reply 10.78.0.100 is-at {}", link.mac)).count(), 3, "{seen}");
    assert_eq!(seen.matches("fd78::100 > ff02::1").count(), 1, "{seen}");
    let frames = Frames::on(&client, "ether proto 0x0842 or udp port 9");
    let sleeper = "52:54:00:aa:bb:cc".parse().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    host.inside(|| runtime.block_on(wake::wake(&link, sleeper))).expect("wake");
    let seen = frames.stop();
    assert_eq!(seen.matches("ffff ffff ffff 5254").count() + seen.matches("ffff ffff 5254 00aa").count(), 6, "{seen}");
}

#[test]
fn a_restarted_agent_adopts_what_is_live() {
    needs_root!();
    let (host, client) = host_and_client();
    let guard = host_guard(&host);
    let mut kernel = Kernel::start(&host, guard.egress());
    kernel.acquire(vip4(), HOST, ms(6000));
    kernel.acquire(vip6(), HOST, ms(9000));
    drop((kernel, guard));
    let mut guard = host_guard(&host);
    let live = host.inside(|| guard.live()).unwrap();
    assert_eq!(
        live.iter().map(|element| (element.vip, element.place)).collect::<Vec<_>>(),
        [(vip4(), HOST), (vip6(), HOST)]
    );
    assert!(live[0].remaining > ms(4000) && live[0].remaining < ms(6000), "{live:?}");
    assert!(live[1].remaining > ms(7000) && live[1].remaining < ms(9000), "{live:?}");
    assert!(client.pings(vip4()));
    // Changing the list keeps them too, and takes effect at once.
    let more = "10.78.0.101".parse().unwrap();
    host.sh("ip addr add 10.78.0.101/32 dev eth0");
    assert!(client.pings(more));
    host.inside(|| guard.set_listed(BTreeSet::from([vip4(), more]))).expect("list");
    assert!(!client.pings(more));
    assert_eq!(host.inside(|| guard.live()).unwrap().len(), 2);
    let mut kernel = Kernel::start(&host, guard.egress());
    assert_eq!(kernel.renew(vip4(), HOST, ms(700)), KernelOutcome::Done);
    assert_eq!(host.inside(|| guard.verify()).unwrap(), Health::Intact);
}

#[test]
fn lost_or_edited_tables_are_put_back() {
    needs_root!();
    let (host, client) = host_and_client();
    let guard = host_guard(&host);
    let mut kernel = Kernel::start(&host, guard.egress());
    let guard = Arc::new(Mutex::new(guard));
    let (sender, mut alerts) = tokio::sync::mpsc::unbounded_channel();
    let monitor = host.inside(|| Monitor::spawn(Arc::clone(&guard), sender)).expect("monitor");
    kernel.acquire(vip6(), HOST, ms(20_000));
    for sabotage in [
        "nft delete table inet kagemusha",
        "nft flush ruleset",
        "nft flush chain arp kagemusha said",
        "nft delete element inet kagemusha listed4 { 10.78.0.100 }",
        "nft insert rule inet kagemusha said ip saddr 10.78.0.100 accept",
        "nft 'add table inet kagemusha { flags dormant; }'",
    ] {
        let begun = Instant::now();
        host.sh(sabotage);
        let mut alert = None;
        wait_until(ms(5000), sabotage, || {
            alert = alerts.try_recv().ok();
            alert.is_some()
        });
        let alert = alert.unwrap();
        eprintln!("{sabotage}: put back after {:?} ({})", begun.elapsed(), alert.what);
        assert!(alert.failed.is_none(), "{alert:?}");
        assert_eq!(host.inside(|| guard.lock().unwrap().verify()).unwrap(), Health::Intact);
        assert_eq!(client.ask(vip4()), None);
        // Our own installation and renewals are no news.
        kernel.acquire(vip6(), HOST, ms(20_000));
        assert_eq!(kernel.renew(vip6(), HOST, ms(20_000)), KernelOutcome::Done);
        std::thread::sleep(ms(300));
        assert!(alerts.try_recv().is_err());
    }
    drop(monitor);
}

#[test]
fn connections_of_a_lost_vip_are_closed() {
    needs_root!();
    let (host, client) = host_and_client();
    let guard = host_guard(&host);
    let mut kernel = Kernel::start(&host, guard.egress());
    for (vip, bind) in [(vip4(), "[::]:8025"), (vip6(), "[fd78::100]:8026")] {
        kernel.acquire(vip, HOST, ms(20_000));
        let listener = host.inside(|| TcpListener::bind(bind)).expect("bind");
        let port = listener.local_addr().unwrap().port();
        let mut outside = client.inside(|| TcpStream::connect((vip.address(), port))).expect("connect");
        let (mut inside, _) = listener.accept().expect("accept");
        outside.write_all(b"x").unwrap();
        inside.read_exact(&mut [0]).unwrap();
        assert_eq!(kernel.close(vip, HOST), KernelOutcome::Done);
        assert_eq!(host.inside(|| sockets::close_connections(vip)).expect("sock_destroy"), 1);
        inside.set_read_timeout(Some(ms(1000))).unwrap();
        let error = inside.read(&mut [0]).expect_err("closed");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionAborted);
        assert_eq!(host.inside(|| sockets::close_connections(vip)).expect("sock_destroy"), 0);
        kernel.acquire(vip, HOST, ms(20_000));
        client.inside(|| TcpStream::connect((vip.address(), port))).expect("the listener is still there");
    }
}

#[test]
fn the_address_has_a_life_of_its_own() {
    needs_root!();
    let (host, _client) = host_and_client();
    let link: Link = host.link("eth0");
    let vips = [vip4(), vip6()];
    let present = || host.inside(|| address::present(&link, vips)).expect("list");
    for vip in vips {
        for seconds in [100, 5] {
            host.inside(|| address::hold(&link, vip, Duration::from_secs(seconds))).expect("hold");
            let shown = host.sh(&format!("ip addr show dev eth0 to {vip}"));
            assert!(shown.contains(&format!("valid_lft {seconds}sec")), "{shown}");
            assert!(shown.contains("noprefixroute") && !shown.contains("tentative"), "{shown}");
        }
    }
    assert_eq!(present(), vips);
    for vip in vips {
        host.inside(|| address::release(&link, vip)).expect("release");
        host.inside(|| address::release(&link, vip)).expect("again");
    }
    assert_eq!(present(), []);
    for vip in vips {
        host.inside(|| address::hold(&link, vip, Duration::from_secs(1))).expect("hold");
    }
    wait_until(ms(3000), "both have lapsed", || present().is_empty());
}

#[test]
fn an_address_that_somebody_takes_off_is_put_back_while_it_is_live() {
    needs_root!();
    let (host, client) = host_and_client();
    let guard = host_guard(&host);
    let mut kernel = Kernel::start(&host, guard.egress());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let _inside = runtime.enter();
    let (live, events) = (LiveVips::default(), Events::default());
    let mut told = events.subscribe();
    let on = || !host.run("ip -o addr show dev eth0 to 10.78.0.100/32").stdout.is_empty();
    let hands = host.inside(|| {
        let _inside = runtime.enter();
        Hands::spawn(Some(ifname("eth0")), live.clone(), events).expect("hands")
    });
    kernel.acquire(vip4(), HOST, ms(20_000));
    hands.order(Order::Put(vip4(), Duration::from_secs(60)));
    live.set(BTreeSet::from([vip4()]));
    wait_until(ms(2000), "put", on);
    assert!(client.pings(vip4()));
    for _ in 0..3 {
        let begun = Instant::now();
        host.sh("ip addr flush dev eth0 to 10.78.0.100/32");
        wait_until(ms(2000), "put back", on);
        eprintln!("an address taken off is back after {:?}, `ip` included", begun.elapsed());
        wait_until(ms(1000), "told", || {
            told.waiting().is_some_and(|event| format!("{event:?}").contains("AddressRestored"))
        });
        std::thread::sleep(ms(150));
    }
    assert!(client.pings(vip4()));
    // Without its element it stays away, whatever the driver last knew; and so does what was dropped.
    assert_eq!(kernel.close(vip4(), HOST), KernelOutcome::Done);
    // `ip addr flush` looks again: some were put back twice.
    while told.waiting().is_some() {}
    host.sh("ip addr del 10.78.0.100/32 dev eth0");
    std::thread::sleep(ms(300));
    assert!(!on(), "put back without an element");
    assert!(told.waiting().is_none());
    kernel.acquire(vip4(), HOST, ms(3000));
    hands.order(Order::Put(vip4(), Duration::from_secs(60)));
    hands.order(Order::Drop(vip4()));
    std::thread::sleep(ms(300));
    assert!(!on() && told.waiting().is_none());
}
