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

    /// Its backup server, and the further one if there is one, each where it is configured and with the agent inside it.
    pub(crate) fn doubles(&self) -> impl Iterator<Item = (&DomainName, &AgentId, Option<&AgentId>)> {
        let backup = &self.backup;
        let further = backup.further.iter().map(|it| (&it.domain, &it.agent, it.guest.as_ref()));
        std::iter::once((&backup.domain, &backup.agent, backup.guest.as_ref())).chain(further)
    }

    /// Is this virtual server one of those that stand in for it?
    #[must_use]
    pub fn is_double(&self, domain: &DomainName) -> bool {
        self.doubles().any(|(double, ..)| double == domain)
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

/// Where a target's backup server names the agent inside it, a further backup server, and the agent inside that.
#[derive(Default)]
pub(super) struct Named {
    pub guest: Option<Range<usize>>,
    pub further: Option<Range<usize>>,
    pub further_guest: Option<Range<usize>>,
}

/// Of each target.
pub(super) type Inside = BTreeMap<TargetName, Named>;

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
        let backs = |(_, target): &(&TargetName, &Target)| target.is_double(domain);
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

/// What targets say of the agents inside their backup servers, each of which is in one, and of further backup servers, each
/// of which is that of one.
pub(super) fn check_inside(faults: &mut Faults<'_>, targets: &BTreeMap<TargetName, Target>, inside: &Inside) {
    for (name, named) in inside {
        let Some(target) = targets.get(name) else { continue };
        let place = format!("[[target]] {name} backup");
        let spans = [("guest", named.guest.as_ref()), ("further guest", named.further_guest.as_ref())];
        for ((domain, _, guest), (key, span)) in target.doubles().zip(spans) {
            let (Some(guest), Some(span)) = (guest, span) else { continue };
            if let Some(reason) = not_inside(targets, target, domain, guest) {
                faults.value(&place, key, span.clone(), reason);
            }
        }
        let (Some(further), Some(span)) = (&target.backup.further, &named.further) else { continue };
        let domain = &target.backup.domain;
        let backs = |(_, other): &(&TargetName, &Target)| other.backup.domain == further.domain;
        let behind_another =
            |(_, other): &(&TargetName, &Target)| other.backup.domain != *domain && other.is_double(&further.domain);
        let differs = |(_, other): &(&TargetName, &Target)| {
            other.vm.is_some() && other.backup.domain == *domain && other.backup.further.as_ref() != Some(further)
        };
        let reason = if target.vm.is_none() {
            "only the backup server of a virtual server is supervised itself: leave it out".to_owned()
        } else if let Some((other, _)) = targets.iter().find(backs) {
            format!("it is the backup server of {other}: give another")
        } else if let Some((other, _)) = targets.iter().find(behind_another) {
            format!("it is the further one of {other}, which has another backup server: give each its own")
        } else if let Some((other, _)) = targets.iter().find(differs) {
            format!("{domain} is the backup server of {other} too, which does not say so: write the same there")
        } else {
            continue;
        };
        faults.value(&place, "further", span.clone(), reason);
    }
}

/// Why this agent is not inside that backup server of this target, if so.
fn not_inside(
    targets: &BTreeMap<TargetName, Target>,
    target: &Target,
    domain: &DomainName,
    guest: &AgentId,
) -> Option<String> {
    if target.vm.is_none() {
        return Some("only the backup server of a virtual server is supervised itself: leave it out".to_owned());
    }
    if let Some((other, _)) = targets.iter().find(|(_, other)| other.inner_agent() == Some(guest)) {
        return Some(format!("it is the agent of target {other}: name the one inside {domain}"));
    }
    for (name, other) in targets {
        for (there, _, inside) in other.doubles() {
            if inside == Some(guest) && there != domain {
                return Some(format!(
                    "it is inside {there}, the backup server of {name}: name the one inside {domain}"
                ));
            }
            if inside != Some(guest) && there == domain && other.vm.is_some() {
                return Some(format!(
                    "{domain} is the backup server of {name} too, which does not say so: write the same there"
                ));
            }
        }
    }
    None
}
