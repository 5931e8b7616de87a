//! `kagectl pss`: power saving.

use crate::{
    Failure, Global,
    connect::Coordinator,
    status::transition_json,
    table::{table, wrap},
};
use kage_proto::coordinator::v1::{
    GetPowerSavingRequest, GroupSaving, HostSaving, PowerSavingStatus, TransitionStatus,
};
use serde_json::{Value, json};

pub async fn saving(global: &Global) -> Result<(), Failure> {
    let coordinator = Coordinator::new(global)?;
    let status =
        coordinator.ask_saving(async |mut client| client.get_power_saving(GetPowerSavingRequest {}).await).await?;
    if global.json {
        println!("{}", to_json(&status));
    } else {
        print!("{}", to_text(&status));
    }
    Ok(())
}

/// Hundredths of a percent.
fn percent(load: Option<u32>) -> String {
    load.map_or_else(|| "–".to_owned(), |load| format!("{}.{:02}", load / 100, load % 100))
}

fn watts(milliwatts: u64) -> String {
    format!("{}.{} W", milliwatts / 1000, milliwatts % 1000 / 100)
}

fn kwh(watt_hours: u64) -> String {
    format!("{}.{:03} kWh", watt_hours / 1000, watt_hours % 1000)
}

fn class(group: &GroupSaving) -> String {
    match (group.load_class.as_str(), group.more) {
        ("", _) => "not measured".to_owned(),
        (class, 0) => class.to_owned(),
        (class, more) => format!("{class}, {more} more to {}", group.towards),
    }
}

pub fn to_text(status: &PowerSavingStatus) -> String {
    let PowerSavingStatus { sif, groups, hosts, transition, reasons, .. } = status;
    let mut text = String::new();
    if sif != "connected" {
        text.push_str(&wrap(&format!("SIF is away, so that nothing is begun: {sif}"), ""));
    }
    let rows: Vec<_> = groups
        .iter()
        .map(|group| {
            let on = if group.base.is_empty() { String::new() } else { format!(" on {}", group.base) };
            [
                group.group.clone(),
                format!("{}{on}", group.condition),
                percent(group.memory),
                percent(group.cpu),
                percent(group.network),
                class(group),
            ]
        })
        .collect();
    text.push_str(&table(["GROUP", "CONDITION", "MEMORY %", "CPU %", "NETWORK %", "LOAD CLASS"], &rows));
    let members = groups.iter().flat_map(|group| group.members.iter().map(move |member| (group, member)));
    let rows: Vec<_> = members
        .map(|(group, member)| {
            let vips = member.vips.join(", ");
            [group.group.clone(), member.vm.clone(), member.host.clone(), member.state.clone(), vips]
        })
        .collect();
    text.push('\n');
    text.push_str(&table(["GROUP", "MEMBER", "HOST", "STATE", "VIRTUAL IPS"], &rows));
    let rows: Vec<_> = hosts
        .iter()
        .map(|host| {
            let figures = format!("{} / {}", watts(host.awake_mw), watts(host.asleep_mw));
            [host.host.clone(), host.state.clone(), figures, host.wake.clone(), host.pinned.clone()]
        })
        .collect();
    text.push('\n');
    text.push_str(&table(["HOST", "POWER", "AWAKE / ASLEEP", "WAKE", "PINNED"], &rows));
    text.push_str(&format!(
        "\nDrawn now: {} ({}); all awake it would be {} (modelled).\nUsed since the start: {} ({}); saved by sleep: {} \
         (modelled).\n",
        watts(status.drawn_mw),
        status.drawn_source,
        watts(status.always_on_mw),
        kwh(status.used_wh),
        status.used_source,
        kwh(status.saved_wh),
    ));
    if let Some(TransitionStatus { id, by, groups, steps }) = transition {
        text.push_str(&format!("\nTransition {id} of {by}: {}\n", groups.join(", ")));
        let rows: Vec<_> = steps.iter().map(|step| [step.state.clone(), step.step.clone()]).collect();
        text.push_str(&table(["STATE", "STEP"], &rows));
    }
    if !reasons.is_empty() {
        text.push_str("\nWhy nothing more is done:\n");
        reasons.iter().for_each(|reason| text.push_str(&wrap(reason, "  ")));
    }
    text
}

fn group_json(group: &GroupSaving) -> Value {
    let members: Vec<Value> = group
        .members
        .iter()
        .map(|member| json!({"vm": member.vm, "host": member.host, "state": member.state, "vips": member.vips}))
        .collect();
    let percent = |load: Option<u32>| load.map(|load| f64::from(load) / 100.0);
    json!({
        "group": group.group, "condition": group.condition, "base": group.base, "memory_percent": percent(group.memory),
        "cpu_percent": percent(group.cpu), "network_percent": percent(group.network), "load_class": group.load_class,
        "more": group.more, "towards": group.towards, "members": members,
    })
}

fn host_json(host: &HostSaving) -> Value {
    json!({
        "host": host.host, "state": host.state, "awake_mw": host.awake_mw, "asleep_mw": host.asleep_mw,
        "wake": host.wake, "pinned": host.pinned,
    })
}

pub fn to_json(status: &PowerSavingStatus) -> Value {
    let transition = status.transition.as_ref().map(transition_json);
    json!({
        "sif": status.sif,
        "groups": status.groups.iter().map(group_json).collect::<Vec<_>>(),
        "hosts": status.hosts.iter().map(host_json).collect::<Vec<_>>(),
        "drawn_mw": status.drawn_mw, "drawn_source": status.drawn_source, "always_on_mw": status.always_on_mw,
        "used_wh": status.used_wh, "used_source": status.used_source, "saved_wh": status.saved_wh,
        "transition": transition, "reasons": status.reasons,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use kage_proto::coordinator::v1::{MemberSaving, TransitionStepStatus};

    #[test]
    fn it_says_what_is_done_and_why_not_more() {
        let status = PowerSavingStatus {
            sif: "connected".into(),
            groups: vec![GroupSaving {
                group: "mail".into(),
                condition: "Light".into(),
                base: "rs1".into(),
                memory: Some(4_567),
                cpu: Some(905),
                network: Some(0),
                load_class: "Moderate".into(),
                more: 2,
                towards: "Moderate".into(),
                members: vec![MemberSaving {
                    vm: "mail1".into(),
                    host: "rs1".into(),
                    state: "running".into(),
                    vips: vec!["10.0.0.1".into()],
                }],
            }],
            hosts: vec![HostSaving {
                host: "rs2".into(),
                state: "asleep".into(),
                awake_mw: 88_000,
                asleep_mw: 4_500,
                wake: "proved: 8.1 s".into(),
                pinned: String::new(),
            }],
            drawn_mw: 92_000,
            drawn_source: "modelled".into(),
            always_on_mw: 176_000,
            used_wh: 1_234,
            used_source: "modelled".into(),
            saved_wh: 80,
            transition: Some(TransitionStatus {
                id: 3,
                by: "x".into(),
                groups: vec!["mail Light -> Moderate".into()],
                steps: vec![TransitionStepStatus { step: "wake host rs2".into(), state: "begun".into() }],
            }),
            reasons: vec!["rs1 stays awake: at least 1 must be".into()],
        };
        let text = to_text(&status);
        for wanted in [
            "Light on rs1  45.67     9.05   0.00       Moderate, 2 more to Moderate",
            "asleep  88.0 W / 4.5 W  proved: 8.1 s",
            "Used since the start: 1.234 kWh (modelled); saved by sleep: 0.080 kWh (modelled).",
            "begun  wake host rs2",
            "  rs1 stays awake",
        ] {
            assert!(text.contains(wanted), "{wanted}\n{text}");
        }
        assert_eq!(to_json(&status)["groups"][0]["cpu_percent"], 9.05);
        assert!(to_text(&PowerSavingStatus { sif: "gone".into(), ..status }).contains("nothing is begun: gone"));
    }
}
