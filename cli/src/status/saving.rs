//! Of `kagectl status`: what power saving has done, so that nobody takes for a failure what sleeps on purpose.

use crate::{
    style::{Style, Tone},
    table::{Cell, ago, cell, paragraph, sheet},
};
use kage_proto::coordinator::v1::{GroupStatus, PlacedMember, SavingStatus, SleepingHost, TransitionStatus};
use serde_json::{Value, json};

/// At the head of the page: who sleeps, and what is under way.
pub fn head(saving: &SavingStatus, style: Style) -> String {
    let mut text = String::new();
    if !saving.asleep.is_empty() {
        let sleeper = |host: &SleepingHost| format!("{} for {}", host.host, ago(host.for_ms));
        let all: Vec<String> = saving.asleep.iter().map(sleeper).collect();
        let words = format!("on purpose, by power saving: {}", all.join(", "));
        text.push_str(&paragraph(style, "ASLEEP  ", &words, Tone::Notice));
    }
    if let Some(row) = &saving.transition {
        text.push_str(&paragraph(style, "TRANSITION  ", &under_way(row), Tone::Notice));
    }
    text
}

/// What it is for, how far it is, and what is being done.
fn under_way(TransitionStatus { id, groups, steps, .. }: &TransitionStatus) -> String {
    let changes = if groups.is_empty() { "everything to its place".to_owned() } else { groups.join(", ") };
    let is = |states: &[&str]| steps.iter().filter(|step| states.contains(&step.state.as_str())).count();
    let (done, undone, undoes) = (is(&["done"]), is(&["undone"]), is(&["undo-begun", "undone"]) > 0);
    let far = match undoes {
        true => format!("it is taken back, {done} of {} steps left", done + is(&["undo-begun"])),
        false => format!("{} of {} steps done", done + undone, steps.len()),
    };
    let now: Vec<String> = steps
        .iter()
        .filter_map(|step| match step.state.as_str() {
            "begun" => Some(step.step.clone()),
            "undo-begun" => Some(format!("take back: {}", step.step)),
            _ => None,
        })
        .collect();
    let now = if now.is_empty() { String::new() } else { format!("; now: {}", now.join(", ")) };
    format!("{changes} (number {id}): {far}{now}")
}

/// A row for each group.
pub fn groups(saving: &SavingStatus, style: Style) -> String {
    let rows: Vec<_> = saving.groups.iter().map(|group| (row(group), Vec::new())).collect();
    sheet(style, ["GROUP", "CONDITION", "BASE SERVER", "IN SERVICE", "SUSPENDED"], &rows)
}

fn row(group: &GroupStatus) -> [Cell; 5] {
    let tone = if group.condition == "Light" { Tone::Notice } else { Tone::Good };
    let members = |suspended: bool| {
        let these = group.members.iter().filter(|member| member.suspended == suspended);
        let names: Vec<String> = these.map(|PlacedMember { vm, host, .. }| format!("{vm}@{host}")).collect();
        Cell::from(names.join(" "))
    };
    let base = if group.base.is_empty() { "-" } else { &group.base };
    [
        cell(group.group.clone(), Tone::Strong),
        cell(group.condition.clone(), tone),
        base.into(),
        members(false),
        members(true),
    ]
}

pub fn to_json(saving: &SavingStatus) -> Value {
    let group = |group: &GroupStatus| {
        let member = |it: &PlacedMember| json!({ "vm": it.vm, "host": it.host, "suspended": it.suspended });
        json!({
            "group": group.group, "condition": group.condition, "base": group.base,
            "members": group.members.iter().map(member).collect::<Value>(),
        })
    };
    json!({
        "groups": saving.groups.iter().map(group).collect::<Value>(),
        "asleep": saving.asleep.iter().map(|it| json!({ "host": it.host, "for_ms": it.for_ms })).collect::<Value>(),
        "transition": saving.transition.as_ref().map(transition_json),
    })
}

/// As `kagectl pss` has it, too.
pub fn transition_json(row: &TransitionStatus) -> Value {
    let steps = row.steps.iter().map(|step| json!({ "step": step.step, "state": step.state }));
    json!({ "id": row.id, "by": row.by, "groups": row.groups, "steps": steps.collect::<Value>() })
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use kage_proto::coordinator::v1::TransitionStepStatus;

    pub fn night() -> SavingStatus {
        let member = |vm: &str, host: &str, suspended| PlacedMember { vm: vm.into(), host: host.into(), suspended };
        let step = |step: &str, state: &str| TransitionStepStatus { step: step.into(), state: state.into() };
        SavingStatus {
            groups: vec![
                GroupStatus {
                    group: "mail".into(),
                    condition: "Light".into(),
                    base: "rs1".into(),
                    members: vec![member("mail1", "rs1", false), member("mail2", "rs2", true)],
                },
                GroupStatus { group: "web".into(), condition: "Moderate".into(), ..GroupStatus::default() },
            ],
            asleep: vec![
                SleepingHost { host: "rs2".into(), for_ms: 2 * 3_600_000 },
                SleepingHost { host: "rs3".into(), for_ms: 60_000 },
            ],
            transition: Some(TransitionStatus {
                id: 3,
                by: "pss".into(),
                groups: vec!["mail Light -> Moderate".into()],
                steps: vec![step("wake host rs2", "begun"), step("resume mail2 on rs2", "planned")],
            }),
        }
    }

    #[test]
    fn it_says_at_one_look_what_sleeps_on_purpose() {
        let style = Style::REPORT;
        assert_eq!(
            head(&night(), style),
            "ASLEEP  on purpose, by power saving: rs2 for 2 h, rs3 for 1 min\n\
             TRANSITION  mail Light -> Moderate (number 3): 0 of 2 steps done; now: wake host rs2\n"
        );
        assert_eq!(
            groups(&night(), style),
            "GROUP  CONDITION  BASE SERVER  IN SERVICE  SUSPENDED\n\
             mail   Light      rs1          mail1@rs1   mail2@rs2\n\
             web    Moderate   -\n"
        );
    }

    #[test]
    fn a_transition_that_is_taken_back_says_so() {
        let mut saving = night();
        let row = saving.transition.as_mut().expect("transition");
        row.steps[0].state = "undo-begun".into();
        row.steps[1].state = "undone".into();
        let words = under_way(row);
        assert!(words.ends_with("it is taken back, 0 of 1 steps left; now: take back: wake host rs2"), "{words}");
    }

    #[test]
    fn json_has_it_whole() {
        let json = to_json(&night());
        assert_eq!(json["groups"][0]["members"][1]["suspended"], true);
        assert_eq!(json["asleep"][0]["for_ms"], 7_200_000);
        assert_eq!(json["transition"]["steps"][0]["state"], "begun");
        assert_eq!(to_json(&SavingStatus::default())["transition"], Value::Null);
    }
}
