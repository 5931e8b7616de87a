//! Power saving, as the shared tables have it: told by whoever reads them, with or without power saving of its own.

use kage_proto::coordinator::v1::{
    GroupStatus, PlacedMember, SavingStatus, SleepingHost, TransitionStatus, TransitionStepStatus,
};
use kage_types::{GroupName, OperationRow, StateRow, StepState, Tables, TransitionRow};

/// Conditions, sleepers, and the transition under way; none where there is no group.
pub fn status(tables: &Tables, now_unix_ms: u64) -> Option<SavingStatus> {
    let sleeps = tables.real_servers.iter().filter_map(|(host, row)| {
        let since = row.asleep_since_unix_ms?;
        Some(SleepingHost { host: host.to_string(), for_ms: now_unix_ms.saturating_sub(since) })
    });
    let saving = SavingStatus {
        groups: tables.state.iter().map(|(name, row)| group(tables, name, row)).collect(),
        asleep: sleeps.collect(),
        transition: tables.transition.as_ref().map(transition),
    };
    (saving != SavingStatus::default()).then_some(saving)
}

fn group(tables: &Tables, name: &GroupName, row: &StateRow) -> GroupStatus {
    let placed =
        |row: &OperationRow, suspended| PlacedMember { vm: row.vm.to_string(), host: row.host.to_string(), suspended };
    let serving = tables.operation.values().map(|row| (row, false));
    let rows = serving.chain(tables.suspend.values().map(|row| (row, true)));
    GroupStatus {
        group: name.to_string(),
        condition: row.condition.to_string(),
        base: row.base.as_ref().map(ToString::to_string).unwrap_or_default(),
        members: rows
            .filter(|(row, _)| row.group.as_ref() == Some(name))
            .map(|(row, rests)| placed(row, rests))
            .collect(),
    }
}

/// In words.
pub fn transition(row: &TransitionRow) -> TransitionStatus {
    let word = |state: StepState| match state {
        StepState::Planned => "planned",
        StepState::Begun => "begun",
        StepState::Done => "done",
        StepState::UndoBegun => "undo-begun",
        StepState::Undone => "undone",
    };
    let steps = row.steps.iter();
    TransitionStatus {
        id: row.id,
        by: row.by.clone(),
        groups: row.groups.iter().map(|(name, (before, after))| format!("{name} {before} -> {after}")).collect(),
        steps: steps
            .map(|(step, state)| TransitionStepStatus { step: step.to_string(), state: word(*state).to_owned() })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kage_types::{AgentId, Condition, DomainName, RealServerRow, Step};

    fn row(vm: &str, host: &str, group: Option<&str>) -> (DomainName, OperationRow) {
        let vm: DomainName = vm.parse().expect("name");
        let host: AgentId = host.parse().expect("name");
        let group = group.map(|name| name.parse().expect("name"));
        (vm.clone(), OperationRow { group, vm, home: host.clone(), host, home_vips: [].into() })
    }

    #[test]
    fn nothing_where_there_is_no_group() {
        let tables = Tables { operation: [row("db", "rs1", None)].into(), ..Tables::default() };
        assert_eq!(status(&tables, 0), None);
    }

    #[test]
    fn a_night_as_the_tables_have_it() {
        let rs2: AgentId = "rs2".parse().expect("name");
        let light = StateRow { condition: Condition::Light, base: Some("rs1".parse().expect("name")) };
        let asleep = RealServerRow { asleep_since_unix_ms: Some(4_000), wake_took_ms: None };
        let steps = vec![(Step::WakeHost { host: rs2.clone() }, StepState::Begun)];
        let mail: GroupName = "mail".parse().expect("name");
        let changes = [(mail.clone(), (Condition::Light, Condition::Moderate))];
        let tables = Tables {
            operation: [row("mail1", "rs1", Some("mail")), row("db", "rs1", None)].into(),
            suspend: [row("mail2", "rs2", Some("mail"))].into(),
            real_servers: [(rs2, asleep)].into(),
            state: [(mail, light)].into(),
            transition: Some(TransitionRow {
                id: 3,
                by: "c".into(),
                plan: String::new(),
                steps,
                groups: changes.into(),
            }),
            ..Tables::default()
        };
        let saving = status(&tables, 10_000).expect("groups");
        let group = &saving.groups[0];
        assert_eq!((group.group.as_str(), group.condition.as_str(), group.base.as_str()), ("mail", "Light", "rs1"));
        let members: Vec<_> = group.members.iter().map(|it| (it.vm.as_str(), it.suspended)).collect();
        assert_eq!(members, [("mail1", false), ("mail2", true)]);
        assert_eq!((saving.asleep[0].host.as_str(), saving.asleep[0].for_ms), ("rs2", 6_000));
        let transition = saving.transition.expect("transition");
        assert_eq!(transition.groups, ["mail Light -> Moderate"]);
        assert_eq!((transition.steps[0].step.as_str(), transition.steps[0].state.as_str()), ("wake host rs2", "begun"));
    }
}
