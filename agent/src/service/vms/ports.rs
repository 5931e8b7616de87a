//! Ports of guests that sleep are shut, and opened before they go on ([`crate::guard::port`]).

use super::{Vm, Vms};
use crate::{
    guard::{IfName, port},
    vm::{DomainEvent, DomainEventDetail, DomainEventKind, DomainInfo, DomainState, Outcome, VmError},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError},
};
use tokio::sync::{Mutex, OwnedMutexGuard};

/// Of each domain one at a time lets it go on or stand still, or looks which it does and does what follows from it: else
/// the later of two orders could be done first, or a port be shut just after its guest was resumed.
pub(super) type Turns = Arc<std::sync::Mutex<BTreeMap<String, Arc<Mutex<()>>>>>;

impl Vms {
    /// To be held while a domain is made to go on or to stand still, from before the order is looked at.
    pub(super) async fn turn(&self, domain: &str) -> OwnedMutexGuard<()> {
        let turn = {
            // Whole after each statement that holds it.
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(turns.entry(domain.to_owned()).or_default())
        };
        turn.lock_owned().await
    }

    /// Lets a domain go on, with its ports open. Its turn is the caller's.
    pub(super) async fn resume_with_ports(&self, vm: &Vm, domain: &str) -> Result<Outcome, VmError> {
        let shut = self.sleeps().get_mut(domain).map(|sleep| std::mem::take(&mut sleep.shut)).unwrap_or_default();
        set(domain, &shut, true);
        let result = vm.resume(domain).await;
        if result.is_err() && !shut.is_empty() {
            // It sleeps on, or is gone.
            set(domain, &shut, false);
            self.sleeps().entry(domain.to_owned()).or_default().shut = shut;
        }
        result
    }

    /// Shuts the ports of a domain that sleeps, opens those of one that runs again. One that arrives by migration stands
    /// still too, and is left alone: it goes on at any moment.
    pub(super) async fn follow_sleep(&self, event: &DomainEvent) {
        let woke = event.kind == DomainEventKind::Resumed;
        if !woke && (event.kind != DomainEventKind::Suspended || event.detail == DomainEventDetail::Migrated) {
            return;
        }
        let domain = &event.domain;
        let _turn = self.turn(domain).await;
        if let Ok(info) = self.find(domain).await {
            self.set_ports_of(&info);
        }
    }

    /// Of all domains: libvirt is connected anew, and what happened meanwhile is not known.
    pub(super) async fn set_all_ports(&self) {
        for info in self.list().await.unwrap_or_default() {
            let _turn = self.turn(&info.name).await;
            if let Ok(info) = self.find(&info.name).await {
                self.set_ports_of(&info);
            }
        }
    }

    fn set_ports_of(&self, info: &DomainInfo) {
        let open = match info.state {
            DomainState::Running => true,
            DomainState::Paused => false,
            DomainState::ShuttingDown
            | DomainState::ShutOff
            | DomainState::Crashed
            | DomainState::PmSuspended
            | DomainState::Unknown => return,
        };
        let taps = info.nics.iter().filter_map(|nic| IfName::new(nic.tap.as_deref()?).ok());
        let ports: Vec<IfName> = taps.filter(|tap| port::bridge_of(*tap).is_some()).collect();
        let wrong: Vec<IfName> = ports.iter().copied().filter(|tap| port::is_open(*tap) != open).collect();
        set(&info.name, &wrong, open);
        self.sleeps().entry(info.name.clone()).or_default().shut = if open { Vec::new() } else { ports };
    }
}

/// A port that can't be shut costs its guest seconds after a long sleep; one that can't be opened is told of.
fn set(domain: &str, ports: &[IfName], open: bool) {
    for name in ports {
        match port::set_open(*name, open) {
            Ok(()) => tracing::debug!(domain, port = %name, open, "a guest's port"),
            Err(error) if open => tracing::error!(
                domain, port = %name, %error,
                "the port of a guest that goes on can't be opened: `ip link set {name} up`"
            ),
            Err(error) => tracing::warn!(domain, port = %name, %error, "the port of a sleeping guest can't be shut"),
        }
    }
}
