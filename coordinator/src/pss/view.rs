//! Power saving, as `kagectl pss` shows it.

use super::inventory::Ledger;
use crate::arranged;
use kage_proto::coordinator::v1::{GroupSaving, HostSaving, MemberSaving, PowerSavingStatus};
use kage_pss_core::{
    Pss,
    inventory::{Group, Host, HostState, Inventory, VmState, WakePath},
    judge::Judgement,
};
use kage_types::{GroupName, Time};

/// At this moment.
pub fn status(core: &Pss, ledger: &Ledger, now: Time, sif_away: Option<&str>) -> PowerSavingStatus {
    let (draw, used) = (core.power().draw(now), core.power().used(now));
    let wh = |energy: kage_pss_core::units::Energy| u64::try_from(energy.watt_hours()).unwrap_or(u64::MAX);
    let inventory = core.inventory();
    PowerSavingStatus {
        sif: sif_away.unwrap_or("connected").to_owned(),
        groups: inventory
            .iter()
            .flat_map(|there| there.groups.iter().map(|(name, it)| group(core, ledger, there, name, it)))
            .collect(),
        hosts: inventory
            .iter()
            .flat_map(|there| there.hosts.iter().map(|(name, it)| host(name.as_str(), it)))
            .collect(),
        drawn_mw: draw.watts.0,
        drawn_source: draw.source.as_str().to_owned(),
        always_on_mw: draw.always_on.0,
        used_wh: wh(used.energy),
        used_source: used.source.as_str().to_owned(),
        saved_wh: wh(used.saved),
        transition: ledger.tables.transition.as_ref().map(arranged::transition),
        reasons: core.report(now).reasons.iter().map(ToString::to_string).collect(),
    }
}

fn group(core: &Pss, ledger: &Ledger, inventory: &Inventory, name: &GroupName, group: &Group) -> GroupSaving {
    let judged = core.judged().get(name);
    let load = judged.and_then(|judged| judged.load);
    let (more, towards) = match judged.map(|judged| judged.judgement) {
        Some(Judgement::Waiting { to, more }) => (more, to.to_string()),
        Some(Judgement::Unmeasured | Judgement::Suits | Judgement::Due { .. }) | None => (0, String::new()),
    };
    let members = group.members.iter().filter_map(|name| {
        let vm = inventory.vms.get(name)?;
        Some(MemberSaving {
            vm: name.to_string(),
            host: vm.host.to_string(),
            state: match vm.state {
                VmState::Running => "running",
                VmState::Suspended => "suspended",
                VmState::Stopped => "stopped",
            }
            .to_owned(),
            vips: vm.vips.iter().map(ToString::to_string).collect(),
        })
    });
    let base = ledger.tables.state.get(name).and_then(|row| row.base.as_ref());
    GroupSaving {
        group: name.to_string(),
        condition: group.condition.to_string(),
        base: base.map(ToString::to_string).unwrap_or_default(),
        memory: load.map(|load| load.memory.0),
        cpu: load.map(|load| load.cpu.0),
        network: load.map(|load| load.network.0),
        load_class: judged.and_then(|judged| judged.class).map(|class| class.to_string()).unwrap_or_default(),
        more,
        towards,
        members: members.collect(),
    }
}

fn host(name: &str, host: &Host) -> HostSaving {
    let wake = match host.wake {
        WakePath::Verified(took) => format!("proved: {:.1} s", took.as_secs_f64()),
        WakePath::Unproven => "never proved: wake it once, and give wakes_in".to_owned(),
        WakePath::Failed => "did not wake when last told to".to_owned(),
        WakePath::None => "none: give mac or wake".to_owned(),
    };
    let state = match host.state {
        HostState::Awake => "awake",
        HostState::Asleep => "asleep",
        HostState::Lost => "lost",
    };
    HostSaving {
        host: name.to_owned(),
        state: state.to_owned(),
        awake_mw: host.watts.awake.0,
        asleep_mw: host.watts.asleep.0,
        wake,
        pinned: host.pinned.clone().unwrap_or_default(),
    }
}
