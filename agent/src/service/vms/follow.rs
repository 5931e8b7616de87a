//! Domains come and go: what that means for their VIPs, and where their ports are.

use super::{Shared, Vms, lifecycle};
use crate::{
    driver::{Command, Handle, Input, TapPort},
    events::Events,
    guard::{IfName, now},
    vm::{DomainEvent, DomainEventDetail, DomainEventKind, DomainInfo, DomainState, VmEvent},
};
use kage_agent_core::Place;
use kage_proto::agent::v1::agent_event::Event;
use kage_types::DomainName;
use std::time::Duration;
use tokio::{
    sync::broadcast::error::RecvError,
    time::{Instant, timeout, timeout_at},
};
use tonic::{Code, Status};

/// An event so young tells how it is now: libvirt need not be asked.
const FRESH: Duration = Duration::from_millis(100);
/// How often an arriving domain's port is looked for where its event is missing.
const LOOK: Duration = Duration::from_millis(250);

/// What an event means for the domain's VIPs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    /// It runs on another host, or is about to.
    SwitchedOver,
    /// It stands still: it must not speak when it goes on, and starts without an element.
    Still,
    /// It came from another host and runs.
    Arrived,
    /// Nothing.
    Nothing,
}

fn meaning(event: &DomainEvent) -> Meaning {
    match (event.kind, event.detail) {
        (DomainEventKind::Suspended | DomainEventKind::Stopped, DomainEventDetail::Migrated) => Meaning::SwitchedOver,
        (DomainEventKind::Resumed, DomainEventDetail::Migrated) => Meaning::Arrived,
        (
            DomainEventKind::Stopped
            | DomainEventKind::Suspended
            | DomainEventKind::Crashed
            | DomainEventKind::PmSuspended,
            _,
        ) => Meaning::Still,
        (
            DomainEventKind::Defined
            | DomainEventKind::Undefined
            | DomainEventKind::Started
            | DomainEventKind::Resumed
            | DomainEventKind::Shutdown,
            _,
        ) => Meaning::Nothing,
    }
}

/// Why a domain has no port.
enum NoPort {
    /// It may get one: it is not there yet, or arriving.
    Yet(Status),
    Ever(Status),
}

impl Vms {
    /// The domain's port of the guarded bridge. One that is arriving by migration has one before it runs; it is waited for
    /// so long.
    ///
    /// # Errors
    /// FAILED_PRECONDITION: it does not run, or no card of it is on that bridge (macvtap, SR-IOV: can't be guarded).
    pub async fn port(&self, domain: &DomainName, bridge: IfName, wait: Duration) -> Result<TapPort, Status> {
        let until = Instant::now() + wait;
        let mut events = self.vm()?.events();
        loop {
            let yet = match self.port_now(domain, bridge).await {
                Ok(port) => return Ok(port),
                Err(NoPort::Ever(status)) => return Err(status),
                Err(NoPort::Yet(status)) => status,
            };
            if Instant::now() >= until {
                return Err(yet);
            }
            let _ = timeout_at(until.min(Instant::now() + LOOK), async {
                while let Ok(event) = events.recv().await {
                    if matches!(event, VmEvent::Domain(event) if event.domain == domain.as_str()) {
                        return;
                    }
                }
                // Lagged or closed: looking will do.
                std::future::pending().await
            })
            .await;
        }
    }

    async fn port_now(&self, domain: &DomainName, bridge: IfName) -> Result<TapPort, NoPort> {
        let info = self.find(domain.as_str()).await.map_err(|status| {
            if status.code() == Code::NotFound { NoPort::Yet(status) } else { NoPort::Ever(status) }
        })?;
        for nic in &info.nics {
            let Some(tap) = nic.tap.as_deref().and_then(|tap| IfName::new(tap).ok()) else { continue };
            let master = std::fs::read_link(format!("/sys/class/net/{tap}/master"));
            if master.is_ok_and(|path| path.file_name().is_some_and(|name| name == bridge.as_str())) {
                let mac = nic.mac.parse().map_err(|error| {
                    NoPort::Ever(Status::internal(format!("libvirt's address of {domain}: {error}")))
                })?;
                return Ok(TapPort { ifname: tap, mac });
            }
        }
        let status = Status::failed_precondition(format!(
            "domain {domain} (it is {}) has no interface on bridge {bridge}: start it, or attach it to {bridge}; \
             macvtap and passed-through cards can't be guarded",
            info.state
        ));
        Err(match info.state {
            DomainState::ShutOff | DomainState::Paused | DomainState::Unknown => NoPort::Yet(status),
            DomainState::Running | DomainState::ShuttingDown | DomainState::Crashed | DomainState::PmSuspended => {
                NoPort::Ever(status)
            }
        })
    }

    /// Passes lifecycle events on, and lets go of the VIPs of domains that stand still, have stopped or moved away. `bridge`:
    /// the guarded one. Must be called within a tokio runtime.
    pub fn watch(&self, events: Events, handle: Handle, bridge: Option<IfName>) {
        let Ok(vm) = &self.vm else { return };
        let (vms, mut changes) = (self.clone(), vm.events());
        tokio::spawn(async move {
            loop {
                match changes.recv().await {
                    Ok(VmEvent::Domain(event)) => {
                        vms.slept(&event);
                        events.publish(Event::Vm(lifecycle(&event)));
                        vms.after(event, &handle, bridge);
                    }
                    Ok(VmEvent::Connected { .. }) => {
                        tracing::info!("connected to libvirt");
                        tokio::spawn(vms.clone().look_again(handle.clone()));
                    }
                    Ok(VmEvent::Disconnected { reason, .. }) => tracing::warn!(reason, "libvirt is not connected"),
                    Err(RecvError::Lagged(missed)) => {
                        events.publish(Event::Missed(missed));
                        tokio::spawn(vms.clone().look_again(handle.clone()));
                    }
                    Err(RecvError::Closed) => return,
                }
            }
        });
    }

    /// On its own: the next event does not wait for the kernel and the disk.
    fn after(&self, event: DomainEvent, handle: &Handle, bridge: Option<IfName>) {
        let Ok(domain) = DomainName::new(event.domain.as_str()) else { return };
        let (meaning, vms, handle) = (meaning(&event), self.clone(), handle.clone());
        tokio::spawn(async move {
            let late = now().since(event.at) > FRESH;
            match meaning {
                Meaning::Nothing => {}
                // What came to nothing, or came back: it never stood still without its guard being told.
                Meaning::SwitchedOver if late && vms.runs(&domain).await => {}
                Meaning::SwitchedOver => {
                    let to = vms.moving().get(domain.as_str()).cloned();
                    vms.switched_over(&handle, domain, to.unwrap_or_else(|| "another host".to_owned())).await;
                }
                // The event may be old by now.
                Meaning::Still if vms.runs(&domain).await => {}
                Meaning::Still => {
                    if let Err(error) = handle.command(Command::ReleaseVm(domain.clone())).await {
                        tracing::warn!(%domain, %error, "VIPs of a stopped domain were not released");
                    }
                }
                Meaning::Arrived => {
                    let Some(bridge) = bridge else { return };
                    // Its port may have another name than while it was arriving.
                    if let Ok(port) = vms.port(&domain, bridge, Duration::ZERO).await
                        && handle.bind_tap(&domain, port).await.is_ok()
                    {
                        // Frames that went out before may have been overtaken by the last of the source's.
                        let _ = handle.tell(Input::Announce(domain)).await;
                    }
                }
            }
        });
    }

    async fn runs(&self, domain: &DomainName) -> bool {
        matches!(self.find(domain.as_str()).await, Ok(info) if info.state == DomainState::Running)
    }

    /// Ends when that is told, or will be when the disk takes it.
    pub(super) async fn switched_over(&self, handle: &Handle, domain: DomainName, to: String) {
        let told = handle.command(Command::SwitchedOver(domain.clone(), to));
        match timeout(super::RELEASE, told).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%domain, %error, "VIPs of a domain that was moved were not released"),
            Err(_) => {
                tracing::warn!(%domain, "VIPs of a domain that was moved are not released yet: kernel or disk are slow")
            }
        }
    }

    /// Events may have been missed: domains that are not here any more hold nothing.
    async fn look_again(self, handle: Handle) {
        let (Ok(leases), Ok(domains)) = (handle.leases().await, self.list().await) else { return };
        for domain in gone(leases.vips.iter().map(|view| &view.place), &domains) {
            tracing::warn!(%domain, "it is not here any more, unnoticed: its VIPs are released");
            if let Err(error) = handle.command(Command::ReleaseVm(domain)).await {
                tracing::warn!(%error, "VIPs of a stopped domain were not released");
            }
        }
    }
}

fn gone<'a>(places: impl Iterator<Item = &'a Place>, domains: &[DomainInfo]) -> std::collections::BTreeSet<DomainName> {
    let here =
        |name: &DomainName| domains.iter().any(|info| info.name == name.as_str() && info.state != DomainState::ShutOff);
    places
        .filter_map(|place| match place {
            Place::Vm(domain) if !here(domain) => Some(domain.clone()),
            Place::Vm(_) | Place::Host => None,
        })
        .collect()
}

impl Shared {
    /// Releases the VIPs of a domain that does not run here after a migration of which nobody knows how it ended.
    pub(super) async fn release_unless_it_runs(&self, domain: &DomainName) {
        if !self.vms.runs(domain).await
            && let Err(error) = self.release_vm(domain.as_str()).await
        {
            tracing::warn!(%domain, %error, "VIPs of a domain that was being moved were not released");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kage_types::Time;

    #[test]
    fn only_a_migration_switches_over() {
        use DomainEventDetail as Detail;
        use DomainEventKind as Kind;
        let of = |kind, detail| {
            let (domain, uuid) = ("d1".to_owned(), String::new());
            meaning(&DomainEvent { domain, uuid, kind, detail, at: Time::ZERO })
        };
        assert_eq!(of(Kind::Suspended, Detail::Migrated), Meaning::SwitchedOver);
        assert_eq!(of(Kind::Stopped, Detail::Migrated), Meaning::SwitchedOver);
        assert_eq!(of(Kind::Resumed, Detail::Migrated), Meaning::Arrived);
        assert_eq!(of(Kind::Started, Detail::Migrated), Meaning::Nothing);
        for detail in [Detail::Paused, Detail::IoError, Detail::Postcopy] {
            assert_eq!(of(Kind::Suspended, detail), Meaning::Still);
        }
        assert_eq!(of(Kind::Resumed, Detail::Unpaused), Meaning::Nothing);
        assert_eq!(of(Kind::Stopped, Detail::Destroyed), Meaning::Still);
    }

    #[test]
    fn what_left_unnoticed_holds_nothing() {
        let info = |name: &str, state| DomainInfo {
            name: name.to_owned(),
            uuid: String::new(),
            state,
            vcpus: 1,
            memory_max_bytes: 0,
            memory_used_bytes: 0,
            memory_resident_bytes: None,
            cpu_time_ns: 0,
            nics: vec![],
            persistent: true,
            autostart: false,
            managed_save: false,
            fault: None,
        };
        let here = [
            info("runs", DomainState::Running),
            info("arrives", DomainState::Paused),
            info("off", DomainState::ShutOff),
        ];
        let places: Vec<_> = ["runs", "arrives", "off", "left"]
            .map(|name| Place::Vm(DomainName::new(name).expect("name")))
            .into_iter()
            .chain([Place::Host])
            .collect();
        let gone: Vec<_> = gone(places.iter(), &here).iter().map(DomainName::to_string).collect();
        assert_eq!(gone, ["left", "off"]);
    }
}
