//! Virtual machines. Their VIPs are let go of before anything stops them (safety rule 8).

#[cfg(not(feature = "libvirt"))]
mod absent;
mod follow;
mod migrate;
mod ports;

#[cfg(feature = "libvirt")]
pub use crate::vm::Vm;
#[cfg(not(feature = "libvirt"))]
pub use absent::Vm;

use super::{Shared, limit};
use crate::{
    config::LibvirtConfig,
    driver::Command,
    guard::{IfName, now},
    vm::{ConnectionState, DomainEvent, DomainEventDetail, DomainEventKind, DomainInfo, DomainState, Outcome, VmError},
    wire,
};
use kage_proto::agent::v1::{self, VmLifecycle, agent_event::Event};
use kage_types::{DomainName, Term, Time};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tonic::{Request, Status};

/// Start and save, if the caller does not say.
const SLOW: Duration = Duration::from_secs(120);
/// An orderly shutdown, if the caller does not say.
const SHUTDOWN: Duration = Duration::from_secs(90);
/// Guard closed and acknowledged.
const RELEASE: Duration = Duration::from_secs(5);
/// A clock that stood still for less is left to the guest's own time service.
const NAP: Duration = Duration::from_secs(3);
/// What the setting of a clock may cost a takeover.
const SET_TIME: Duration = Duration::from_millis(300);

/// libvirt's machines, or why there are none.
#[derive(Clone)]
pub struct Vms {
    vm: Result<Vm, &'static str>,
    sleeps: Arc<Mutex<BTreeMap<String, Sleep>>>,
    /// Domains that are being moved, and where to.
    moving: Arc<Mutex<BTreeMap<String, String>>>,
    turns: ports::Turns,
}

/// What was seen of a domain's sleep, since this agent started.
#[derive(Clone, Debug, Default)]
struct Sleep {
    /// It stands still since; None: it runs, or nothing is known.
    since: Option<Time>,
    /// When it last went on.
    resumed: Option<Time>,
    /// Its ports of a bridge that are shut meanwhile.
    shut: Vec<IfName>,
}

/// What a command does to a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Resume,
    Pause,
    Save,
    Shutdown,
    Destroy,
    Reboot,
}

impl Vms {
    fn new(vm: Result<Vm, &'static str>) -> Self {
        Self { vm, sleeps: Arc::default(), moving: Arc::default(), turns: ports::Turns::default() }
    }

    /// Connects in the background.
    ///
    /// # Errors
    /// No thread to be had.
    pub fn start(config: Option<&LibvirtConfig>) -> std::io::Result<Self> {
        let Some(config) = config else {
            return Ok(Self::new(Err("no libvirt here: add [libvirt] to this agent's configuration")));
        };
        #[cfg(feature = "libvirt")]
        {
            let config = crate::vm::VmConfig { uri: config.uri.clone(), ..Default::default() };
            Ok(Self::new(Ok(Vm::start(&config)?)))
        }
        #[cfg(not(feature = "libvirt"))]
        {
            tracing::warn!(
                uri = config.uri,
                "[libvirt] is ignored: this kage-agent was built without the feature libvirt"
            );
            Ok(Self::new(Err("this kage-agent was built without the feature libvirt")))
        }
    }

    /// Is there a libvirt?
    #[must_use]
    pub fn are_here(&self) -> bool {
        self.vm.is_ok()
    }

    fn vm(&self) -> Result<&Vm, Status> {
        self.vm.as_ref().map_err(|reason| Status::unimplemented(*reason))
    }

    /// As `GetFacts` tells it.
    #[must_use]
    pub fn connection(&self) -> String {
        let vm = match &self.vm {
            Ok(vm) => vm,
            Err(_) if cfg!(not(feature = "libvirt")) => return "not built in".to_owned(),
            Err(reason) => return format!("disconnected: {reason}"),
        };
        match &*vm.connection().borrow() {
            ConnectionState::Connected { .. } => "connected".to_owned(),
            ConnectionState::Connecting { .. } => "disconnected: connecting".to_owned(),
            ConnectionState::Disconnected { reason, .. } => format!("disconnected: {reason}"),
        }
    }

    /// All domains.
    ///
    /// # Errors
    /// As [`Vm::list`].
    pub async fn list(&self) -> Result<Vec<DomainInfo>, Status> {
        self.vm()?.list().await.map_err(|error| status(&error))
    }

    async fn find(&self, domain: &str) -> Result<DomainInfo, Status> {
        let found = self.list().await?.into_iter().find(|info| info.name == domain);
        found.ok_or_else(|| status(&VmError::NoDomain { domain: domain.to_owned() }))
    }

    fn sleeps(&self) -> MutexGuard<'_, BTreeMap<String, Sleep>> {
        // Whole after each statement that holds it.
        self.sleeps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slept(&self, event: &DomainEvent) {
        let mut sleeps = self.sleeps();
        match event.kind {
            DomainEventKind::Suspended => sleeps.entry(event.domain.clone()).or_default().since = Some(event.at),
            DomainEventKind::Resumed => {
                let sleep = sleeps.entry(event.domain.clone()).or_default();
                (sleep.since, sleep.resumed) = (None, Some(event.at));
            }
            DomainEventKind::Undefined => {
                sleeps.remove(&event.domain);
            }
            // The clock of one that starts is the host's, or its image's.
            DomainEventKind::Started | DomainEventKind::Stopped => {
                sleeps.entry(event.domain.clone()).or_default().since = None;
            }
            DomainEventKind::Defined
            | DomainEventKind::Shutdown
            | DomainEventKind::PmSuspended
            | DomainEventKind::Crashed => {}
        }
    }

    /// For `ListVms`.
    pub(super) fn to_wire(&self, info: &DomainInfo) -> v1::Vm {
        let resumed = self.sleeps().get(&info.name).and_then(|sleep| sleep.resumed);
        let millis = |at: Time| u64::try_from(now().since(at).as_millis()).unwrap_or(u64::MAX);
        v1::Vm { resumed_ms_ago: resumed.map(millis), ..to_wire(info) }
    }

    /// Lets a domain go on, with its clock put right before the caller hears of it: its guard is opened after that
    /// (safety §4). One that slept for weeks would refuse certificates and expire queues.
    async fn resume(&self, vm: &Vm, domain: &str) -> Result<Option<String>, VmError> {
        let since = self.sleeps().get(domain).and_then(|sleep| sleep.since);
        if self.resume_with_ports(vm, domain).await? == Outcome::Already
            || since.is_some_and(|at| now().since(at) < NAP)
        {
            return Ok(None);
        }
        let begun = now();
        let why = match vm.set_time(domain, SET_TIME).await {
            Ok(Outcome::Done) => {
                tracing::info!(domain, took_ms = now().since(begun).as_millis(), "the guest's clock was set");
                return Ok(None);
            }
            Ok(Outcome::Already) => "install qemu-guest-agent and give the domain its channel".to_owned(),
            Err(VmError::Timeout { .. }) => format!("its qemu-guest-agent did not answer within {SET_TIME:?}"),
            Err(error) => error.to_string(),
        };
        Ok(Some(format!("the clock of {domain} could not be set after its sleep: {why}")))
    }
}

fn lifecycle(event: &DomainEvent) -> VmLifecycle {
    let kind = match event.kind {
        // QEMU ended by itself or was killed, by a signal from its host even in good order: nobody asked libvirt for it.
        // No proof of death: that is what libvirt says of the domain when it is asked (rule 5).
        DomainEventKind::Stopped if matches!(event.detail, DomainEventDetail::Failed | DomainEventDetail::Crashed) => {
            "crashed"
        }
        DomainEventKind::Shutdown if event.detail == DomainEventDetail::ByHost => "crashed",
        DomainEventKind::Defined => "defined",
        DomainEventKind::Undefined => "undefined",
        DomainEventKind::Started => "started",
        DomainEventKind::Suspended => "suspended",
        DomainEventKind::Resumed => "resumed",
        DomainEventKind::Stopped => "stopped",
        DomainEventKind::Shutdown => "shutdown",
        DomainEventKind::PmSuspended => "pmsuspended",
        DomainEventKind::Crashed => "crashed",
    };
    let detail = if let DomainEventDetail::Other(number) = event.detail {
        number.to_string()
    } else {
        serde_json::to_value(event.detail).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
    };
    VmLifecycle { domain: event.domain.clone(), event: kind.to_owned(), detail }
}

fn state(state: DomainState) -> &'static str {
    match state {
        DomainState::Running => "running",
        DomainState::Paused => "paused",
        DomainState::ShuttingDown => "shutdown",
        DomainState::ShutOff => "shutoff",
        DomainState::Crashed => "crashed",
        DomainState::PmSuspended => "pmsuspended",
        DomainState::Unknown => "unknown",
    }
}

fn to_wire(info: &DomainInfo) -> v1::Vm {
    let interface =
        |nic: &crate::vm::DomainNic| v1::VmInterface { tap: nic.tap.clone().unwrap_or_default(), mac: nic.mac.clone() };
    v1::Vm {
        domain: info.name.clone(),
        uuid: info.uuid.clone(),
        state: state(info.state).to_owned(),
        vcpus: info.vcpus,
        memory_max_bytes: info.memory_max_bytes,
        interfaces: info.nics.iter().map(interface).collect(),
        memory_resident_bytes: info.memory_resident_bytes,
        resumed_ms_ago: None,
    }
}

/// For `WatchLoad`.
pub(super) fn to_sample(info: &DomainInfo) -> v1::VmSample {
    v1::VmSample {
        domain: info.name.clone(),
        state: state(info.state).to_owned(),
        cpu_time_ns: info.cpu_time_ns,
        vcpus: info.vcpus,
        memory_max_bytes: info.memory_max_bytes,
        memory_used_bytes: memory_used(info),
        received_bytes: info.nics.iter().map(|nic| nic.rx_bytes).sum(),
        sent_bytes: info.nics.iter().map(|nic| nic.tx_bytes).sum(),
    }
}

/// What a domain costs its host. The balloon's size is what the guest may use: all of it where no driver in the guest ever
/// gives any back. So it counts only where libvirt does not tell what is resident. QEMU's own memory is left out.
fn memory_used(info: &DomainInfo) -> u64 {
    let used = info.memory_resident_bytes.unwrap_or(info.memory_used_bytes);
    if info.memory_max_bytes == 0 { used } else { used.min(info.memory_max_bytes) }
}

fn status(error: &VmError) -> Status {
    let text = error.to_string();
    match error {
        VmError::Unreachable { .. } | VmError::Hanging { .. } | VmError::Lost { .. } => Status::unavailable(text),
        VmError::Timeout { .. } => Status::deadline_exceeded(text),
        VmError::Busy { .. } => Status::resource_exhausted(text),
        VmError::NoDomain { .. } => Status::not_found(text),
        VmError::WrongState { .. } | VmError::StillRunning { .. } | VmError::Refused { .. } => {
            Status::failed_precondition(text)
        }
        VmError::Cancelled { .. } => Status::aborted(text),
        VmError::Internal(_) => Status::internal(text),
    }
}

impl Shared {
    pub(super) async fn start_vm(&self, request: Request<v1::StartVmRequest>) -> Result<v1::VmReply, Status> {
        self.admit(&request, request.get_ref().authority.as_ref()).await?;
        let v1::StartVmRequest { domain, paused, timeout_ms, .. } = request.into_inner();
        let begun = now();
        self.require_tap_guard()?;
        let started = self.vms.vm()?.start_domain(&domain, paused, limit(timeout_ms, SLOW)).await;
        started.map_err(|error| {
            if !matches!(error, VmError::NoDomain { .. }) {
                return status(&error);
            }
            Status::not_found(format!(
                "domain {domain} is not defined on this host, so that it can't be started here: define it on every real \
                 server (virsh dumpxml {domain} where it is known | virsh define /dev/stdin here)"
            ))
        })?;
        self.vm_reply(&domain, begun).await
    }

    pub(super) async fn change_vm(
        &self,
        request: Request<v1::VmRequest>,
        change: Change,
    ) -> Result<v1::VmReply, Status> {
        self.admit(&request, request.get_ref().authority.as_ref()).await?;
        let v1::VmRequest { authority, domain, timeout_ms, order, force } = request.into_inner();
        let _turn = match change {
            Change::Resume | Change::Pause => Some(self.vms.turn(&domain).await),
            // Slow ones wait for nobody, and nobody for them.
            Change::Save | Change::Shutdown | Change::Destroy | Change::Reboot => None,
        };
        // A domain whose name is none of ours is no coordinator's.
        if let Ok(name) = DomainName::new(&domain) {
            self.handle.order(name, Term(authority.map_or(0, |authority| authority.term)), order).await?;
        }
        let begun = now();
        let vm = self.vms.vm()?;
        match change {
            Change::Resume => self.require_tap_guard()?,
            Change::Pause | Change::Save | Change::Shutdown | Change::Destroy | Change::Reboot => {
                self.release_vm(&domain).await?;
            }
        }
        let done = match change {
            Change::Resume => self.vms.resume(vm, &domain).await.map(|warning| {
                if let Some(text) = warning {
                    tracing::warn!(text);
                    self.events.publish(Event::Warning(v1::Warning { text }));
                }
                Outcome::Done
            }),
            Change::Pause => vm.pause(&domain).await,
            Change::Save => vm.save(&domain, limit(timeout_ms, SLOW)).await,
            Change::Shutdown => vm.shutdown(&domain, limit(timeout_ms, SHUTDOWN)).await,
            Change::Destroy => vm.destroy(&domain).await,
            Change::Reboot if force => vm.reset(&domain).await,
            Change::Reboot => vm.reboot(&domain).await,
        };
        done.map_err(|error| status(&error))?;
        self.vm_reply(&domain, begun).await
    }

    /// Guard closed for all the VM's addresses, and the kernel has said so.
    async fn release_vm(&self, domain: &str) -> Result<(), Status> {
        // A domain whose name is none of ours can't hold anything.
        let Ok(name) = DomainName::new(domain) else { return Ok(()) };
        let released = tokio::time::timeout(RELEASE, self.handle.command(Command::ReleaseVm(name))).await;
        released.unwrap_or_else(|_| {
            Err(Status::deadline_exceeded(format!(
                "the guard of {domain} was not closed within {RELEASE:?}; nothing was done to it"
            )))
        })
    }

    async fn vm_reply(&self, domain: &str, begun: kage_types::Time) -> Result<v1::VmReply, Status> {
        let took_ms = wire::to_millis(now().since(begun));
        // Transient domains are gone when they end.
        let vm = self.vms.find(domain).await.ok().map(|info| self.vms.to_wire(&info));
        Ok(v1::VmReply { vm, took_ms })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_qemu_that_was_killed_is_a_crash_and_one_that_was_told_to_stop_is_not() {
        let told = |kind, detail| {
            let (domain, uuid) = ("d1".to_owned(), String::new());
            lifecycle(&DomainEvent { domain, uuid, kind, detail, at: Time::ZERO }).event
        };
        use DomainEventDetail as Detail;
        assert_eq!(told(DomainEventKind::Stopped, Detail::Failed), "crashed");
        assert_eq!(told(DomainEventKind::Stopped, Detail::Crashed), "crashed");
        assert_eq!(told(DomainEventKind::Shutdown, Detail::ByHost), "crashed");
        assert_eq!(told(DomainEventKind::Shutdown, Detail::ByGuest), "shutdown");
        for detail in [Detail::ShutDown, Detail::Destroyed, Detail::Saved, Detail::Migrated] {
            assert_eq!(told(DomainEventKind::Stopped, detail), "stopped");
        }
    }

    #[test]
    fn a_listing_tells_when_a_domain_last_went_on() {
        let vms = Vms::new(Err("none"));
        let event = |kind, at| DomainEvent {
            domain: "d1".to_owned(),
            uuid: String::new(),
            kind,
            detail: DomainEventDetail::Paused,
            at,
        };
        let at = now();
        vms.slept(&event(DomainEventKind::Suspended, at));
        assert_eq!(vms.sleeps()["d1"].since, Some(at));
        vms.slept(&event(DomainEventKind::Resumed, at));
        let sleep = vms.sleeps()["d1"].clone();
        assert_eq!((sleep.since, sleep.resumed), (None, Some(at)));
    }
}
