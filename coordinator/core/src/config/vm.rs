//! A target that is a virtual server: `vm = { domain, host }`.

use super::{
    Guard, Target, keys,
    parse::{A_NAME, Places, known},
    read::{Faults, Given, Table},
};
use crate::event::VipRow;
use kage_types::{AgentId, DomainName, TargetName};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, ops::Range};

/// A target that is a libvirt domain on a real server, whose agent guards its virtual IPs from outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtualServer {
    /// The domain; also the name of its place in the shared tables.
    pub domain: DomainName,
    /// The agent inside it, if there is one: restarts of services, events of them.
    pub guest: Option<AgentId>,
}

impl Target {
    /// The domain that it is, if it is a virtual server.
    #[must_use]
    pub fn domain(&self) -> Option<&DomainName> {
        self.vm.as_ref().map(|vm| &vm.domain)
    }

    /// Does it serve this virtual IP itself? A virtual server does so on any real server.
    #[must_use]
    pub fn is_served_by(&self, row: &VipRow) -> bool {
        row.domain.as_ref() == self.domain() && (self.vm.is_some() || row.owner == self.agent)
    }

    /// Who restarts its services and tells of them: the agent on the target itself, be it a machine or a guest.
    #[must_use]
    pub fn inner_agent(&self) -> Option<&AgentId> {
        match &self.vm {
            None => Some(&self.agent),
            Some(vm) => vm.guest.as_ref(),
        }
    }
}

/// As given: the home real server and the domain, each where it stands.
pub(super) struct Vm {
    pub host: Given<AgentId>,
    pub domain: Given<DomainName>,
}

/// Domains that were given to targets above.
pub(super) type Taken = BTreeMap<DomainName, (TargetName, Range<usize>)>;

pub(super) fn vm(
    faults: &mut Faults<'_>,
    target: &Table<'_, '_>,
    name: Option<&TargetName>,
    machines: &BTreeMap<AgentId, super::Machine>,
    places: &Places,
    taken: &mut Taken,
) -> Option<Vm> {
    let table = target.table(faults, "vm", &keys::VM)?;
    let domain: Option<Given<DomainName>> = table.parsed(faults, "domain", A_NAME);
    let domain = table.required(faults, "domain", domain);
    let host: Option<Given<AgentId>> = table.parsed(faults, "host", A_NAME);
    let host = table.required(faults, "host", host);
    known(faults, &table, "host", host.as_ref(), places);
    if let Some(host) = &host
        && machines.get(host.get_ref()).is_some_and(|machine| machine.guard != Guard::Tap)
    {
        let reason =
            format!("[[agent]] {} needs guard = \"tap\": it guards what its virtual servers send", host.get_ref());
        faults.value(&table.place, "host", host.span(), reason);
    }
    if let (Some(domain), Some(name)) = (&domain, name) {
        let (first, _) = taken.entry(domain.get_ref().clone()).or_insert_with(|| (name.clone(), domain.span()));
        if first != name {
            let reason = format!("target {first} is that virtual server already");
            faults.value(&table.place, "domain", domain.span(), reason);
        }
    }
    Some(Vm { host: host?, domain: domain? })
}

/// Agents inside backup servers, where each is named, by the target.
pub(super) type Inside = BTreeMap<TargetName, Range<usize>>;

/// The agent inside: it comes and goes with the virtual server, and guards nothing.
pub(super) fn guest(
    faults: &mut Faults<'_>,
    table: &Table<'_, '_>,
    key: &str,
    guest: Option<&Given<AgentId>>,
    machines: &BTreeMap<AgentId, super::Machine>,
) {
    let Some((guest, machine)) = guest.and_then(|guest| Some((guest, machines.get(guest.get_ref())?))) else { return };
    let name = guest.get_ref();
    if machine.guard != Guard::None {
        let reason = format!("[[agent]] {name} needs guard = \"none\": its host guards its virtual IPs from outside");
        faults.value(&table.place, key, guest.span(), reason);
    }
    if machine.voter {
        let reason = format!("[[agent]] {name} can't be a voter: it is suspended and moved with its virtual server");
        faults.value(&table.place, key, guest.span(), reason);
    }
}

/// What targets say of each other: no virtual server is anybody's backup server, as who is meant by a name in the shared
/// tables must be clear.
pub(super) fn check(faults: &mut Faults<'_>, targets: &BTreeMap<TargetName, Target>, taken: &Taken) {
    for (domain, (name, span)) in taken {
        let backs = |(_, target): &(&TargetName, &Target)| target.backup.domain == *domain;
        if let Some((other, _)) = targets.iter().find(backs) {
            let whose = if other == name {
                "its own backup server".to_owned()
            } else {
                format!("the backup server of {other}")
            };
            faults.value(
                &format!("[[target]] {name} vm"),
                "domain",
                span.clone(),
                format!("{whose} has that name: give it another"),
            );
        }
    }
    for (name, target) in targets.iter().filter(|(_, target)| target.vm.is_some()) {
        if target.writers().is_some_and(|writers| writers.power) {
            let text = format!(
                "[[target]] {name}: writer_fence = \"power\" would switch off all that runs on its real server: use \
                 \"storage\""
            );
            faults.missing(0..0, text);
        }
    }
}

/// What targets say of the agents inside their backup servers: each is in one, and each backup server has one at most.
pub(super) fn check_inside(faults: &mut Faults<'_>, targets: &BTreeMap<TargetName, Target>, inside: &Inside) {
    for (name, span) in inside {
        let Some(target) = targets.get(name) else { continue };
        let Some(guest) = &target.backup.guest else { continue };
        let domain = &target.backup.domain;
        let of_it = |(_, other): &(&TargetName, &Target)| other.inner_agent() == Some(guest);
        let elsewhere = |(_, other): &(&TargetName, &Target)| {
            other.backup.guest.as_ref() == Some(guest) && other.backup.domain != *domain
        };
        let differs = |(_, other): &(&TargetName, &Target)| {
            other.vm.is_some() && other.backup.domain == *domain && other.backup.guest.as_ref() != Some(guest)
        };
        let reason = if target.vm.is_none() {
            "only the backup server of a virtual server is supervised itself: leave it out".to_owned()
        } else if let Some((other, _)) = targets.iter().find(of_it) {
            format!("it is the agent of target {other}: name the one inside {domain}")
        } else if let Some((other, there)) = targets.iter().find(elsewhere) {
            format!("it is inside {}, the backup server of {other}: name the one inside {domain}", there.backup.domain)
        } else if let Some((other, _)) = targets.iter().find(differs) {
            format!("{domain} is the backup server of {other} too, which does not say so: write the same there")
        } else {
            continue;
        };
        faults.value(&format!("[[target]] {name} backup"), "guest", span.clone(), reason);
    }
}
