//! Start: guard first, then adoption, then everything else.

use super::stop;
use crate::{
    config::Config,
    driver::{self, Driver, Parts, TapPort},
    events::Events,
    guard::{self, Guard, IfName, Link, LiveElement, MacAddr, RenewalThread, address, now, port},
    hands::{Hands, LiveVips},
    host::power::Power,
    keeper::{self, Keeper},
    service::{AgentService, Services, Shared, Vms, VoterService, writers},
    session::Session,
    state::{AssignmentState, HeldEntry, OwnerState, StateDir, boot_id},
    storage::Storage,
    votes::Voters,
};
use kage_agent_core::{
    Adopted, Halt, KernelOp, KernelOutcome, OpId, Owner, OwnerEvent, OwnerMemory, Place, Voter, Writers,
};
use kage_proto::{
    agent::v1::{agent_server::AgentServer, voter_server::VoterServer},
    channel::Credentials,
    limits::MAX_COMMAND_BYTES,
    roles::Role,
    server::{self, Security, Server},
    tls::Pki,
};
use kage_types::{DomainName, Term, Vip};
use std::{
    collections::BTreeMap,
    fs::File,
    io::Read,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Operations of the renewal thread that are not the driver's: its own begin at 1.
const FOREIGN_OP: OpId = OpId(0);
/// The address the service listens on may come up after us (networkd, a bridge).
const BIND_AGAIN: Duration = Duration::from_millis(500);

/// A configuration or certificate that can't be used: exit 64.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

fn credentials(config: &Config, plaintext: bool) -> anyhow::Result<(Credentials, Security)> {
    if plaintext {
        return Ok((Credentials::PlaintextLoopback, Security::PlaintextLoopback));
    }
    let pki = Pki::load(&config.pki).map_err(|error| Refused(error.to_string()))?;
    let identity = pki.identity();
    if identity.role != Role::Agent || identity.name != config.name.as_str() {
        anyhow::bail!(Refused(format!(
            "the certificate in {} is that of {identity}, not of agent {}: set name = {:?} in the configuration, or enrol this machine anew",
            config.pki.display(),
            config.name,
            identity.name
        )));
    }
    Ok((Credentials::Tls(pki.clone()), Security::Tls(pki)))
}

/// A certificate that ends within this is renewed through the coordinator; as long before the operator is told of it.
const RENEW_BEFORE: Duration = Duration::from_secs(60 * 24 * 3600);
/// Between two looks, and before the first: the start has more urgent things.
const RENEW_LOOK: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(6 * 3600));

async fn renew(pki: Pki, coordinator: String) {
    let mut pause = RENEW_LOOK.0;
    loop {
        tokio::time::sleep(pause).await;
        pause = RENEW_LOOK.1;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        if pki.not_after_unix_s().saturating_sub(now) > RENEW_BEFORE.as_secs() {
            continue;
        }
        match kage_proto::enrol::renew(&pki, &coordinator).await {
            Ok(()) => tracing::info!(ends_unix_s = pki.not_after_unix_s(), "certificate renewed"),
            // A coordinator without authority, or of an earlier version, does not: the operator is told in time.
            Err(error) => tracing::info!(%error, "certificate not renewed; trying again in six hours"),
        }
    }
}

/// Runs until a signal.
///
/// # Errors
/// What makes a start impossible; [`Refused`] where the configuration is at fault.
pub async fn run(config: Config, plaintext: bool) -> anyhow::Result<()> {
    let started = now();
    let signals = stop::Signals::listen()?;
    let (credentials, security) = credentials(&config, plaintext)?;
    if let Credentials::Tls(pki) = &credentials {
        tokio::spawn(pki.clone().follow());
        tokio::spawn(renew(pki.clone(), config.coordinator.clone()));
    }
    let dir = StateDir::open(&config.state)?;
    let voter_store = dir.voter()?;
    let mut memory = dir.memory()?;
    // A damaged one costs a lapse, no more.
    let owner_state = dir.owner().inspect_err(|error| tracing::error!(%error, "adopting nothing")).unwrap_or_default();
    let writer_memory = dir
        .writers()
        .inspect_err(|error| tracing::error!(%error, "services held back before this start are left as they are"))
        .unwrap_or_default();
    let stored =
        dir.assignment().inspect_err(|error| tracing::error!(%error, "no VIP is guarded yet")).unwrap_or_default();

    let (reports, mut report_queue) = mpsc::unbounded_channel();
    let mut keeper = Keeper::new(config.guard_kind(), reports, dir.clone(), stored.clone());
    let guard = keeper.status();
    let (kernel, live) = keeper.begin().map_or((None, Vec::new()), |(kernel, live)| (Some(kernel), live));
    let interface = config.guard_kind().map(|kind| kind.interface());

    let boot_id = boot_id();
    let incarnation = random()?;
    let term = stored.as_ref().map_or(Term(0), |stored| stored.term).max(voter_store.highest_term);
    memory.term = memory.term.max(term);
    let mut owner = Owner::new(memory.clone());
    let mut first = Vec::new();
    let mut taps = BTreeMap::new();
    if let Some(stored) = &stored {
        let host_guard = matches!(config.guard_kind(), Some(guard::GuardKind::Host { .. }));
        let adopted = kernel
            .as_ref()
            .map(|kernel| adopt(kernel, live, owner_state, stored, &memory, &boot_id, host_guard))
            .unwrap_or_default();
        settle_foreign(&adopted.foreign, &mut report_queue).await;
        taps = adopted.taps;
        if let Some(interface) = interface.filter(|_| host_guard) {
            sweep(interface, stored, &adopted.held);
        }
        // Nothing is held yet, so that nothing follows from it but what the driver does first.
        owner.step(now(), OwnerEvent::Assigned(stored.to_core()), &mut first);
        if !adopted.held.is_empty() {
            owner.step(now(), OwnerEvent::Adopt(adopted.held), &mut first);
        }
    } else if let Some(kernel) = &kernel {
        // Its state is gone: whatever it held, it does not know under which epoch.
        let foreign = close_foreign(kernel, live.into_iter().map(|found| ((found.vip, found.place), found.remaining)));
        settle_foreign(&foreign, &mut report_queue).await;
    }

    let (handle, inputs) = driver::channel();
    let live_vips = LiveVips::default();
    let events = Events::default();
    let hands = Hands::spawn(interface, live_vips.clone(), events.clone())?;
    let storage = Storage::spawn(dir, handle.inputs())?;
    let mut voters = Voters::new(config.name.clone(), credentials.clone(), handle.clone());
    if let Some(stored) = &stored {
        voters.assign(&stored.voters, stored.timing.renewal);
    }
    let services = Services::new(&config);
    let parts = Parts {
        me: config.name.clone(),
        incarnation,
        boot_id: boot_id.clone(),
        owner,
        voter: Voter::new(started, voter_store),
        kernel,
        reports: report_queue,
        inputs,
        hands: hands.clone(),
        live: live_vips,
        storage: storage.clone(),
        voters,
        events: events.clone(),
        taps,
        first,
        writers: Writers::new(now(), writers(&config), writer_memory),
        services: services.clone(),
        handle: handle.clone(),
    };
    let driver = tokio::spawn(Driver::run(parts));

    let (told, assignments) = mpsc::channel(keeper::QUEUE);
    tokio::spawn(keeper.run(assignments, handle.clone(), events.clone()));
    let stop = CancellationToken::new();
    let session = Session {
        coordinator: config.coordinator.clone(),
        credentials,
        incarnation,
        boot_id: boot_id.clone(),
        handle: handle.clone(),
        keeper: told,
        events: events.clone(),
    };
    let session = tokio::spawn(session.run(stop.clone()));

    let vms = Vms::start(config.libvirt.as_ref())?;
    vms.watch(events.clone(), handle.clone(), interface);
    services.watch(events.clone(), handle.clone());
    let listen = config.listen;
    let power = Power::new(config.power.clone());
    let name = config.name.clone();
    let shared = Shared {
        config,
        handle: handle.clone(),
        events: events.clone(),
        guard,
        interface,
        vms,
        services,
        power,
        boot_id,
    };
    let serving = serve(server::Config::new(listen, security), Arc::new(shared), handle.clone(), stop.clone());
    let serving = tokio::spawn(serving);

    #[cfg(feature = "dbus")]
    tokio::spawn(super::sleep::watch(handle.clone(), events.clone()));

    tracing::info!(agent = %name, %listen, version = env!("CARGO_PKG_VERSION"), took_ms = now().since(started).as_millis(), "kage-agent is up");
    stop::notify_ready(handle.clone());
    let ended = stop::wait(signals, serving, &handle, &events, &hands, &storage, &stop).await;
    let _ = tokio::time::timeout(stop::FLUSH, session).await;
    driver.abort();
    ended
}

/// Listens as soon as the address is there: leases do not wait for it.
async fn serve(
    config: server::Config,
    shared: Arc<Shared>,
    handle: driver::Handle,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut told = false;
    let server = loop {
        match Server::bind(&config).await {
            Ok(server) => break server,
            Err(server::ServerError::Bind { address, reason })
                if reason.kind() == std::io::ErrorKind::AddrNotAvailable =>
            {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(%address, %reason, "the address to listen on is not there yet; trying on (`listen` of the configuration)");
                }
            }
            Err(error) => return Err(error.into()),
        }
        tokio::select! {
            () = tokio::time::sleep(BIND_AGAIN) => {}
            () = stop.cancelled() => return Ok(()),
        }
    };
    let server = server
        .add(AgentServer::new(AgentService(shared)).max_decoding_message_size(MAX_COMMAND_BYTES))
        .add(VoterServer::new(VoterService(handle)).max_decoding_message_size(MAX_COMMAND_BYTES));
    server.run(async move { stop.cancelled().await }).await?;
    Ok(())
}

/// Not a counter: after a reboot the clock could give the same again.
fn random() -> anyhow::Result<u64> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}

#[derive(Default)]
struct Adoption {
    held: Vec<Adopted>,
    taps: BTreeMap<DomainName, TapPort>,
    /// What is left of elements that are being closed.
    foreign: Vec<Duration>,
}

/// Live elements whose epoch is stored go on; any other is closed. What is stored and not live is asked for anew.
fn adopt(
    kernel: &RenewalThread,
    live: Vec<LiveElement>,
    owner: OwnerState,
    stored: &AssignmentState,
    memory: &OwnerMemory,
    boot_id: &str,
    host_guard: bool,
) -> Adoption {
    let mut live: BTreeMap<_, _> =
        live.into_iter().map(|element| ((element.vip, element.place), element.remaining)).collect();
    let mut adoption = Adoption::default();
    let over = |entry: &HeldEntry| memory.floors.get(&entry.vip).is_some_and(|floor| entry.epoch < *floor);
    for entry in owner.held.into_iter().filter(|entry| stored.vips.contains(&entry.vip) && !over(entry)) {
        let HeldEntry { vip, epoch, place, tap } = entry;
        let found = match (&place, tap) {
            (Place::Host, _) if host_guard => guard::Place::Host,
            (Place::Vm(domain), Some(tap)) if !host_guard && owner.boot_id == boot_id => {
                let Some(port) = port(&tap.ifname, &tap.mac) else { continue };
                adoption.taps.insert(domain.clone(), port);
                guard::Place::Tap { ifname: port.ifname }
            }
            (Place::Host | Place::Vm(_), _) => continue,
        };
        let remaining = live.remove(&(vip, found)).unwrap_or_default();
        tracing::info!(%vip, %epoch, remaining_ms = remaining.as_millis(), "adopted");
        adoption.held.push(Adopted { vip, epoch, place, remaining });
    }
    adoption.foreign = close_foreign(kernel, live);
    adoption
}

/// Close elements without a known epoch. Returns what was left of each.
fn close_foreign(
    kernel: &RenewalThread,
    live: impl IntoIterator<Item = ((Vip, guard::Place), Duration)>,
) -> Vec<Duration> {
    let close = |((vip, place), remaining)| {
        tracing::warn!(%vip, ?place, "an element without a known epoch: closed");
        if kernel.submit(FOREIGN_OP, KernelOp::Close { vip }, place).is_err() {
            tracing::error!(%vip, "not closed; it runs out by itself");
        }
        remaining
    };
    live.into_iter().map(close).collect()
}

/// Before the first request goes out, the kernel has closed what nobody asks for: a request says that no element of a
/// long lease is left.
async fn settle_foreign(foreign: &[Duration], reports: &mut mpsc::UnboundedReceiver<guard::RenewalReport>) {
    let longest = foreign.iter().max().copied().unwrap_or_default();
    let closed = async {
        for _ in foreign {
            match reports.recv().await {
                Some(report) if report.outcome == KernelOutcome::Done => {}
                Some(_) | None => return tokio::time::sleep(longest).await,
            }
        }
    };
    // They run out by themselves in the worst case.
    let _ = tokio::time::timeout(longest + Duration::from_secs(1), closed).await;
}

/// The port must still be the same guest's: libvirt gives a tap the guest's address with another first byte.
fn port(ifname: &str, mac: &str) -> Option<TapPort> {
    let (ifname, mac): (IfName, MacAddr) = (ifname.parse().ok()?, mac.parse().ok()?);
    let link = Link::find(ifname).ok()?;
    (link.mac.0[1..] == mac.0[1..]).then_some(TapPort { ifname, mac })
}

/// Addresses that an earlier process left and nobody answers for.
fn sweep(interface: IfName, stored: &AssignmentState, held: &[Adopted]) {
    let strays = stored.vips.iter().copied().filter(|vip| !held.iter().any(|one| one.vip == *vip));
    let swept = Link::find(interface).and_then(|link| {
        for vip in address::present(&link, strays)? {
            tracing::info!(%vip, "an address left by an earlier process is removed");
            address::release(&link, vip)?;
        }
        Ok(())
    });
    if let Err(error) = swept {
        tracing::warn!(%interface, %error, "addresses left by an earlier process were not looked for");
    }
}

/// `kage-agent uninstall`: VIPs and guard are removed; nothing of the state directory is. Services that are held back
/// stay so, as without an agent nothing would tell whether their double runs: they are named.
///
/// # Errors
/// What could not be removed.
pub fn uninstall(config: &Config) -> anyhow::Result<()> {
    let Some(kind) = config.guard_kind() else { return Ok(()) };
    let dir = StateDir::open(&config.state)?;
    for (service, halt) in dir.writers().unwrap_or_default().held {
        let (is, cure) = match halt {
            Halt::Stop => ("stopped", "start"),
            Halt::Freeze => ("frozen", "thaw"),
        };
        println!("service {service} is still {is}, as its virtual IP is not here: {cure} it when its double is down");
    }
    let stored = dir.assignment().unwrap_or_default();
    let vips = stored.map(|stored| stored.vips).unwrap_or_default();
    // While the guard still stands: an address without guard and lease would answer.
    if matches!(kind, guard::GuardKind::Host { .. }) {
        let link = Link::find(kind.interface())?;
        for vip in &vips {
            address::release(&link, *vip)?;
        }
    }
    // Of guests that sleep: nobody would open them any more.
    if let guard::GuardKind::Tap { bridge, .. } = kind {
        for name in port::ports_of(bridge).into_iter().filter(|name| !port::is_open(*name)) {
            port::set_open(name, true)?;
        }
    }
    Guard::install(kind, vips)?.uninstall()?;
    Ok(())
}
