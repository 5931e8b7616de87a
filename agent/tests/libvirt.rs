//! The `vm` module against libvirtd and QEMU themselves: private daemons, domains of bare firmware.
//!
//! Needs root, libvirtd and qemu-system-x86_64; skipped with the reason otherwise. Touches nothing of the system's own
//! libvirt: each daemon has a mount namespace with directories of its own.
#![cfg(feature = "libvirt")]

mod daemon;

use daemon::{Daemon, Memory, skip};
use kage_agent::vm::{
    ConnectionState, DomainEventDetail, DomainEventKind, DomainInfo, DomainState, MigrateOptions, Outcome, Vm,
    VmConfig, VmError, VmEvent,
};
use std::{
    future::Future,
    time::{Duration, Instant},
};
use tokio::sync::broadcast::Receiver;

const LONG: Duration = Duration::from_secs(60);

fn connect(daemon: &Daemon) -> Vm {
    Vm::start(&VmConfig { uri: daemon.uri(), ..VmConfig::default() }).expect("threads")
}

async fn connected(vm: &Vm) {
    let mut state = vm.connection();
    let wait = state.wait_for(|state| matches!(state, ConnectionState::Connected { .. }));
    tokio::time::timeout(LONG, wait).await.expect("in time").expect("open");
}

async fn find(vm: &Vm, name: &str) -> DomainInfo {
    let list = timed("list", vm.list()).await.expect("list");
    list.into_iter().find(|domain| domain.name == name).expect("listed")
}

async fn timed<T>(what: &str, future: impl Future<Output = T>) -> T {
    let begin = Instant::now();
    let result = future.await;
    println!("{what}: {:.1} ms", begin.elapsed().as_secs_f64() * 1e3);
    result
}

async fn event(events: &mut Receiver<VmEvent>, kind: DomainEventKind) -> DomainEventDetail {
    let wait = async {
        loop {
            match events.recv().await.expect("event") {
                VmEvent::Domain(event) if event.kind == kind => return event.detail,
                VmEvent::Domain(_) | VmEvent::Connected { .. } | VmEvent::Disconnected { .. } => {}
            }
        }
    };
    tokio::time::timeout(LONG, wait).await.unwrap_or_else(|_| panic!("no event {kind:?}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_domains_life() {
    if skip() {
        return;
    }
    let daemon = Daemon::start("life");
    let vm = connect(&daemon);
    timed("connect", connected(&vm)).await;
    let mut events = vm.events();
    daemon.define("d1", Memory::Small);
    event(&mut events, DomainEventKind::Defined).await;

    let info = find(&vm, "d1").await;
    assert_eq!((info.state, info.persistent, info.nics.len()), (DomainState::ShutOff, true, 1));
    assert_eq!(info.nics[0].mac, "52:54:00:00:00:01");

    assert_eq!(timed("start paused", vm.start_domain("d1", true, LONG)).await, Ok(Outcome::Done));
    assert_eq!(event(&mut events, DomainEventKind::Started).await, DomainEventDetail::Booted);
    let info = find(&vm, "d1").await;
    assert_eq!((info.state, info.vcpus), (DomainState::Paused, 1));
    assert_eq!(info.memory_max_bytes, 32 << 20);
    assert_eq!(timed("start again", vm.start_domain("d1", true, LONG)).await, Ok(Outcome::Already));

    assert_eq!(timed("resume", vm.resume("d1")).await, Ok(Outcome::Done));
    assert_eq!(event(&mut events, DomainEventKind::Resumed).await, DomainEventDetail::Unpaused);
    assert_eq!(timed("resume again", vm.resume("d1")).await, Ok(Outcome::Already));
    assert_eq!(vm.start_domain("d1", false, LONG).await, Ok(Outcome::Already));
    assert_eq!(timed("pause", vm.pause("d1")).await, Ok(Outcome::Done));
    assert_eq!(event(&mut events, DomainEventKind::Suspended).await, DomainEventDetail::Paused);
    assert_eq!(vm.pause("d1").await, Ok(Outcome::Already));
    assert_eq!(vm.start_domain("d1", false, LONG).await, Ok(Outcome::Done));
    assert_eq!(timed("set time without agent", vm.set_time("d1", LONG)).await, Ok(Outcome::Already));
    assert!(find(&vm, "d1").await.memory_resident_bytes.is_some());

    let second = Duration::from_secs(1);
    let still = VmError::StillRunning { domain: "d1".into(), after: second };
    assert_eq!(timed("shutdown, ignored", vm.shutdown("d1", second)).await, Err(still));

    assert_eq!(timed("save", vm.save("d1", LONG)).await, Ok(Outcome::Done));
    assert_eq!(event(&mut events, DomainEventKind::Stopped).await, DomainEventDetail::Saved);
    assert_eq!(vm.save("d1", LONG).await, Ok(Outcome::Already));
    assert!(find(&vm, "d1").await.managed_save);
    assert_eq!(timed("restore paused", vm.restore("d1", true, LONG)).await, Ok(Outcome::Done));
    assert_eq!(find(&vm, "d1").await.state, DomainState::Paused);
    assert_eq!(vm.resume("d1").await, Ok(Outcome::Done));
    assert_eq!(timed("reboot", vm.reboot("d1")).await, Ok(Outcome::Done));
    assert_eq!(timed("reset", vm.reset("d1")).await, Ok(Outcome::Done));
    assert_eq!(find(&vm, "d1").await.state, DomainState::Running);

    assert_eq!(timed("destroy", vm.destroy("d1")).await, Ok(Outcome::Done));
    assert_eq!(event(&mut events, DomainEventKind::Stopped).await, DomainEventDetail::Destroyed);
    assert_eq!(vm.destroy("d1").await, Ok(Outcome::Already));
    assert_eq!(vm.shutdown("d1", LONG).await, Ok(Outcome::Already));
    assert!(matches!(vm.pause("d1").await, Err(VmError::WrongState { state: DomainState::ShutOff, .. })));
    assert!(matches!(vm.restore("d1", true, LONG).await, Err(VmError::Refused { .. })));
    assert!(matches!(vm.reset("d1").await, Err(VmError::WrongState { state: DomainState::ShutOff, .. })));
    assert_eq!(vm.destroy("none").await, Ok(Outcome::Already));
    assert_eq!(vm.resume("none").await, Err(VmError::NoDomain { domain: "none".into() }));

    // A crash is told within milliseconds.
    vm.start_domain("d1", false, LONG).await.expect("start");
    event(&mut events, DomainEventKind::Started).await;
    daemon.signal_domain("d1", "KILL");
    let begin = Instant::now();
    assert_eq!(event(&mut events, DomainEventKind::Stopped).await, DomainEventDetail::Failed);
    println!("crash told after {:.1} ms", begin.elapsed().as_secs_f64() * 1e3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_hangs_holds_nothing_else_up() {
    if skip() {
        return;
    }
    let mut daemon = Daemon::start("hang");
    let vm = connect(&daemon);
    connected(&vm).await;
    for name in ["d1", "d2"] {
        daemon.define(name, Memory::Small);
        vm.start_domain(name, false, LONG).await.expect("start");
    }

    // A QEMU that hangs: its own commands time out, others go on, and it can be destroyed.
    daemon.signal_domain("d1", "STOP");
    let (one, two) = (vm.clone(), vm.clone());
    let hung = tokio::spawn(async move { one.pause("d1").await });
    let hung_too = tokio::spawn(async move { two.pause("d1").await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(find(&vm, "d1").await.state, DomainState::Running);
    assert!(matches!(hung.await.expect("join"), Err(VmError::Timeout { .. })));
    assert!(matches!(hung_too.await.expect("join"), Err(VmError::Timeout { .. })));
    let begin = Instant::now();
    assert_eq!(timed("pause beside two hung calls", vm.pause("d2")).await, Ok(Outcome::Done));
    assert!(begin.elapsed() < Duration::from_secs(1));
    assert_eq!(timed("destroy of a stopped QEMU", vm.destroy("d1")).await, Ok(Outcome::Done));

    // A libvirtd that hangs: a clear error in time, and the runtime goes on; then it is found again.
    daemon.signal("STOP");
    let begin = Instant::now();
    let error = timed("pause without libvirtd", vm.pause("d2")).await.expect_err("nobody answers");
    assert!(begin.elapsed() < Duration::from_secs(6), "{:?}", begin.elapsed());
    assert_eq!(error.to_string(), "libvirt did not answer within 5 s; check `systemctl status libvirtd`");
    let mut state = vm.connection();
    let gone = state.wait_for(|state| matches!(state, ConnectionState::Disconnected { .. }));
    tokio::time::timeout(LONG, timed("hang noticed", gone)).await.expect("in time").expect("open");
    daemon.signal("CONT");
    timed("reconnect after the hang", connected(&vm)).await;

    // A libvirtd that is killed and started again: domains stay, events are subscribed to anew.
    let mut events = vm.events();
    daemon.signal("KILL");
    let gone = state.wait_for(|state| matches!(state, ConnectionState::Disconnected { .. }));
    tokio::time::timeout(LONG, timed("death noticed", gone)).await.expect("in time").expect("open");
    drop(state);
    let error = timed("list without libvirtd", vm.list()).await.expect_err("nobody there");
    assert!(error.to_string().contains("systemctl status libvirtd"), "{error}");
    daemon.restart();
    timed("reconnect after the restart", connected(&vm)).await;
    assert_eq!(find(&vm, "d2").await.state, DomainState::Paused);
    assert_eq!(vm.resume("d2").await, Ok(Outcome::Done));
    event(&mut events, DomainEventKind::Resumed).await;
    vm.destroy("d2").await.expect("destroy");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_domain_moves() {
    if skip() {
        return;
    }
    let (here, there) = (Daemon::start("here"), Daemon::start("there"));
    let (from, to) = (connect(&here), connect(&there));
    here.define("mover", Memory::Large);
    here.define("other", Memory::Small);
    from.start_domain("mover", false, LONG).await.expect("start");
    from.start_domain("other", false, LONG).await.expect("start");
    let options = MigrateOptions {
        destination: there.uri(),
        data_uri: Some("tcp://127.0.0.1".to_owned()),
        bandwidth_bytes_per_s: Some(1 << 20),
        max_downtime: Some(Duration::from_millis(200)),
        persist: true,
        keep: false,
        auto_converge: false,
        deadline: LONG,
    };

    let migration = from.migrate("mover", options.clone());
    let mut progress = migration.progress();
    let begun = progress.wait_for(|now| now.total_bytes > 0 && now.remaining_bytes > 0);
    let seen = *tokio::time::timeout(LONG, begun).await.expect("progress").expect("open");
    println!("progress: {seen:?}");
    let begin = Instant::now();
    assert_eq!(timed("pause of another during migration", from.pause("other")).await, Ok(Outcome::Done));
    assert!(begin.elapsed() < Duration::from_secs(1));
    migration.cancel();
    let cancelled = timed("cancel", migration.wait()).await;
    assert_eq!(cancelled, Err(VmError::Cancelled { domain: "mover".into() }));
    assert_eq!(find(&from, "mover").await.state, DomainState::Running);

    let late = MigrateOptions { deadline: Duration::from_secs(1), ..options.clone() };
    let late = timed("migration past its deadline", from.migrate("mover", late).wait()).await;
    assert_eq!(late, Err(VmError::Cancelled { domain: "mover".into() }));

    let mut events = to.events();
    let fast = MigrateOptions { bandwidth_bytes_per_s: None, ..options };
    assert_eq!(timed("migrate", from.migrate("mover", fast.clone()).wait()).await, Ok(()));
    event(&mut events, DomainEventKind::Resumed).await;
    assert_eq!(find(&to, "mover").await.state, DomainState::Running);
    assert!(find(&to, "mover").await.persistent);
    assert!(!from.list().await.expect("list").iter().any(|domain| domain.name == "mover"));

    let nowhere = MigrateOptions { destination: "qemu+unix:///system?socket=/nonexistent".into(), ..fast };
    let error = from.migrate("other", nowhere).wait().await;
    assert!(matches!(error, Err(VmError::Refused { .. })), "{error:?}");
    to.destroy("mover").await.expect("destroy");
    from.destroy("other").await.expect("destroy");
}
