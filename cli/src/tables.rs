//! `kagectl tables`: the shared tables of thesis ch. 4, as its files have them.

use crate::{
    Failure, Global, ledger,
    style::{Style, Tone},
    table::{Cell, ago, cell, sheet},
};
use kage_proto::sif::v1::{self as proto, GetTablesRequest};
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

/// Which table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Table {
    /// Virtual servers in their places: group, who fills it, real server, virtual IPs held, home.
    Operation,
    /// Rows taken out of Operation while their real server sleeps, or they are suspended themselves.
    Suspend,
    /// Virtual servers away from home, and where they go back to.
    LiveMigration,
    /// Where virtual servers were last whose place another fills.
    Displaced,
    /// Where virtual servers may be running besides: the ends of their live migrations were not seen.
    MayBeOn,
    /// Real servers: awake or asleep, and how long the last wake took.
    Rsg,
    /// Each group's condition and base server.
    State,
    /// Recoveries under way.
    Trouble,
    /// Virtual IPs that power saving put elsewhere than at home.
    Placement,
    /// What recoveries need, which power saving leaves alone.
    Claims,
    /// Power saving under way, step by step.
    Transition,
}

const ALL: [Table; 11] = [
    Table::Operation,
    Table::Suspend,
    Table::LiveMigration,
    Table::Displaced,
    Table::MayBeOn,
    Table::Rsg,
    Table::State,
    Table::Trouble,
    Table::Placement,
    Table::Claims,
    Table::Transition,
];

/// Options of `kagectl tables`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// One of them; otherwise all.
    table: Option<Table>,
    /// Address of SIF: `[sif] listen` of cluster.toml.
    #[arg(long, env = "KAGE_SIF", default_value = "127.0.0.1:7701", value_name = "HOST:PORT")]
    sif: String,
}

pub async fn run(options: &Options, global: &Global) -> Result<(), Failure> {
    let asked = async {
        let mut client = ledger::client(global, &options.sif)?;
        let tables = client.get_tables(GetTablesRequest {}).await;
        tables.map_err(|status| ledger::told(&options.sif, &status)).map(tonic::Response::into_inner)
    };
    let tables = tokio::time::timeout(global.timeout, asked)
        .await
        .map_err(|_| ledger::unreachable(&options.sif, &format!("no answer within {:?}", global.timeout)))??;
    let wanted = options.table.map_or(ALL.to_vec(), |table| vec![table]);
    if global.json {
        let all = wanted.iter().map(|table| (table.key().to_owned(), rows(*table, &tables)));
        let mut object: serde_json::Map<String, Value> = all.collect();
        object.insert("revision".to_owned(), tables.revision.into());
        println!("{}", Value::Object(object));
    } else {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_unix_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        print!("{}", text(Style::of_stdout(), &wanted, &tables, now_unix_ms));
    }
    Ok(())
}

impl Table {
    fn key(self) -> &'static str {
        match self {
            Table::Operation => "operation",
            Table::Suspend => "suspend",
            Table::LiveMigration => "live_migration",
            Table::Displaced => "displaced",
            Table::MayBeOn => "may_be_on",
            Table::Rsg => "rsg",
            Table::State => "state",
            Table::Trouble => "trouble",
            Table::Placement => "placement",
            Table::Claims => "claims",
            Table::Transition => "transition",
        }
    }

    /// As the thesis calls its files.
    fn title(self) -> &'static str {
        match self {
            Table::Operation => "Operation",
            Table::Suspend => "Suspend",
            Table::LiveMigration => "Live migration",
            Table::Displaced => "Displaced",
            Table::MayBeOn => "May be on",
            Table::Rsg => "RSG",
            Table::State => "State",
            Table::Trouble => "Trouble",
            Table::Placement => "Placement",
            Table::Claims => "Claims",
            Table::Transition => "Transition",
        }
    }
}

/// With what each is, one under the other.
fn text(style: Style, wanted: &[Table], tables: &proto::Tables, now_unix_ms: u64) -> String {
    let mut text = format!("revision {}\n", tables.revision);
    for table in wanted {
        text.push_str(&format!("\n{}\n", table.title()));
        text.push_str(&body(style, *table, tables, now_unix_ms));
    }
    text
}

fn body(style: Style, table: Table, tables: &proto::Tables, now_unix_ms: u64) -> String {
    let since = |then: u64| ago(now_unix_ms.saturating_sub(then));
    match table {
        Table::Operation => places(style, &tables.operation, tables),
        Table::Suspend => places(style, &tables.suspend, tables),
        Table::LiveMigration => {
            list(style, ["PLACE", "VIRTUAL SERVER", "ORIGINAL REAL SERVER"], &tables.live_migration, |row| {
                [row.place.as_str().into(), row.vm.as_str().into(), row.original_host.as_str().into()]
            })
        }
        Table::Displaced => list(style, ["PLACE", "WAS LAST ON"], &tables.displaced, |row| {
            [row.place.as_str().into(), row.host.as_str().into()]
        }),
        Table::MayBeOn => list(style, ["VIRTUAL SERVER", "MAY ALSO BE ON"], &tables.may_be_on, |row| {
            [row.vm.as_str().into(), cell(row.hosts.join(" "), Tone::Notice)]
        }),
        Table::Rsg => list(style, ["REAL SERVER", "STATE", "LAST WAKE TOOK"], &tables.real_servers, |row| {
            let state = match row.asleep_since_unix_ms {
                Some(then) => cell(format!("asleep for {}", since(then)), Tone::Dim),
                None => "awake".into(),
            };
            let took = row.wake_took_ms.map_or("-".to_owned(), |ms| ago(ms.into()));
            [row.host.as_str().into(), state, took.into()]
        }),
        Table::State => list(style, ["GROUP", "CONDITION", "BASE SERVER"], &tables.state, |row| {
            [row.group.as_str().into(), condition(row.condition).into(), dash(&row.base)]
        }),
        Table::Trouble => list(style, ["TARGET", "STAGE", "FOR", "DETAIL"], &tables.troubles, |row| {
            let stage = cell(row.stage.clone(), Tone::Bad);
            [row.target.as_str().into(), stage, since(row.since_unix_ms).into(), row.detail.as_str().into()]
        }),
        Table::Placement => list(style, ["VIRTUAL IP", "WANTED ON"], &tables.placement, |row| {
            [row.vip.as_str().into(), row.vm.as_str().into()]
        }),
        Table::Claims => list(style, ["CLAIMED", "BY", "WHY"], &tables.claims, |row| {
            [claim(row).into(), row.by.as_str().into(), row.why.as_str().into()]
        }),
        Table::Transition => match &tables.transition {
            Some(row) => transition(style, row),
            None => "(none)\n".to_owned(),
        },
    }
}

fn list<R, const N: usize>(style: Style, heading: [&str; N], rows: &[R], row: impl Fn(&R) -> [Cell; N]) -> String {
    if rows.is_empty() {
        return "(none)\n".to_owned();
    }
    let rows: Vec<_> = rows.iter().map(|each| (row(each), Vec::new())).collect();
    sheet(style, heading, &rows)
}

fn dash(text: &str) -> Cell {
    if text.is_empty() { "-".into() } else { text.into() }
}

/// By the leases: whose virtual IPs are on this virtual server.
fn held(row: &proto::OperationRow, tables: &proto::Tables) -> Vec<String> {
    let is = |vip: &&proto::VipRow| {
        vip.domain == row.vm || (vip.domain.is_empty() && (vip.owner == row.vm || vip.target == row.place))
    };
    tables.vips.iter().filter(is).map(|vip| vip.vip.clone()).collect()
}

fn places(style: Style, rows: &[proto::OperationRow], tables: &proto::Tables) -> String {
    let heading = ["PLACE", "GROUP", "VIRTUAL SERVER", "REAL SERVER", "HOME", "HOLDS", "HOME VIPS"];
    list(style, heading, rows, |row| {
        let vm = if row.vm == row.place { row.vm.as_str().into() } else { cell(row.vm.clone(), Tone::Bad) };
        let held = held(row, tables).join(" ");
        [
            row.place.as_str().into(),
            dash(&row.group),
            vm,
            row.host.as_str().into(),
            row.home.as_str().into(),
            dash(&held),
            row.home_vips.join(" ").into(),
        ]
    })
}

fn transition(style: Style, row: &proto::TransitionRow) -> String {
    let groups = row
        .groups
        .iter()
        .map(|group| format!("{} {} -> {}", group.group, condition(group.before), condition(group.after)));
    let mut text = format!("{} of {}: {}\n", row.id, row.by, groups.collect::<Vec<_>>().join(", "));
    let numbered: Vec<_> = row.steps.iter().enumerate().collect();
    text.push_str(&list(style, ["STEP", "STATE", "WHAT"], &numbered, |(index, step)| {
        [index.to_string().into(), step_state(step.state).into(), step_text(step).into()]
    }));
    text
}

fn condition(number: i32) -> &'static str {
    match proto::Condition::try_from(number) {
        Ok(proto::Condition::Light) => "Light",
        Ok(proto::Condition::Moderate) => "Moderate",
        Ok(proto::Condition::Heavy) => "Heavy",
        Ok(proto::Condition::Unspecified) | Err(_) => "?",
    }
}

fn step_state(number: i32) -> &'static str {
    match proto::StepState::try_from(number) {
        Ok(proto::StepState::Planned) => "planned",
        Ok(proto::StepState::Begun) => "begun",
        Ok(proto::StepState::Done) => "done",
        Ok(proto::StepState::UndoBegun) => "being undone",
        Ok(proto::StepState::Undone) => "undone",
        Ok(proto::StepState::Unspecified) | Err(_) => "?",
    }
}

/// A later SIF may know steps that this does not.
fn step_text(step: &proto::TransitionStep) -> String {
    let known = step.step.as_ref().and_then(|step| kage_types::Step::try_from(step).ok());
    known.map_or("?".to_owned(), |step| step.to_string())
}

fn claim(row: &proto::ClaimRow) -> String {
    let known = row.claim.as_ref().and_then(|claim| kage_types::Claim::try_from(claim).ok());
    known.map_or("?".to_owned(), |claim| claim.to_string())
}

fn rows(table: Table, tables: &proto::Tables) -> Value {
    let place = |row: &proto::OperationRow| {
        json!({
            "place": row.place, "group": row.group, "vm": row.vm, "host": row.host, "home": row.home,
            "holds": held(row, tables), "home_vips": row.home_vips,
        })
    };
    match table {
        Table::Operation => tables.operation.iter().map(place).collect(),
        Table::Suspend => tables.suspend.iter().map(place).collect(),
        Table::LiveMigration => (tables.live_migration.iter())
            .map(|row| json!({ "place": row.place, "vm": row.vm, "original_host": row.original_host }))
            .collect(),
        Table::Displaced => {
            tables.displaced.iter().map(|row| json!({ "place": row.place, "host": row.host })).collect()
        }
        Table::MayBeOn => tables.may_be_on.iter().map(|row| json!({ "vm": row.vm, "hosts": row.hosts })).collect(),
        Table::Rsg => (tables.real_servers.iter())
            .map(|row| {
                json!({
                    "host": row.host, "asleep_since_unix_ms": row.asleep_since_unix_ms,
                    "wake_took_ms": row.wake_took_ms,
                })
            })
            .collect(),
        Table::State => (tables.state.iter())
            .map(|row| json!({ "group": row.group, "condition": condition(row.condition), "base": row.base }))
            .collect(),
        Table::Trouble => (tables.troubles.iter())
            .map(|row| {
                json!({
                    "target": row.target, "stage": row.stage, "detail": row.detail,
                    "since_unix_ms": row.since_unix_ms,
                })
            })
            .collect(),
        Table::Placement => tables.placement.iter().map(|row| json!({ "vip": row.vip, "vm": row.vm })).collect(),
        Table::Claims => {
            (tables.claims.iter()).map(|row| json!({ "claim": claim(row), "by": row.by, "why": row.why })).collect()
        }
        Table::Transition => tables.transition.as_ref().map_or(Value::Null, |row| {
            let step =
                |step: &proto::TransitionStep| json!({ "step": step_text(step), "state": step_state(step.state) });
            let group = |group: &proto::GroupChange| {
                json!({
                    "group": group.group, "before": condition(group.before), "after": condition(group.after),
                })
            };
            json!({
                "id": row.id, "by": row.by, "steps": row.steps.iter().map(step).collect::<Value>(),
                "groups": row.groups.iter().map(group).collect::<Value>(),
            })
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folded() -> proto::Tables {
        let row = |place: &str, vm: &str, host: &str, home: &str, vip: &str| proto::OperationRow {
            place: place.to_owned(),
            group: "mail".to_owned(),
            vm: vm.to_owned(),
            host: host.to_owned(),
            home: home.to_owned(),
            home_vips: vec![vip.to_owned()],
        };
        let vip = |vip: &str, domain: &str| proto::VipRow {
            vip: vip.to_owned(),
            owner: "rs1".to_owned(),
            domain: domain.to_owned(),
            ..proto::VipRow::default()
        };
        let step = kage_types::Step::SuspendHost { host: "rs2".parse().expect("name") };
        let step = proto::TransitionStep { step: Some((&step).into()), state: proto::StepState::Begun.into() };
        proto::Tables {
            revision: 7,
            operation: vec![row("mail1", "mail1", "rs1", "rs1", "10.0.0.1")],
            suspend: vec![row("mail2", "mail2", "rs2", "rs2", "10.0.0.4")],
            real_servers: vec![proto::RealServerRow {
                host: "rs2".to_owned(),
                asleep_since_unix_ms: Some(1000),
                wake_took_ms: Some(8090),
            }],
            may_be_on: vec![proto::MayBeOnRow {
                vm: "mail1".to_owned(),
                hosts: vec!["rs2".to_owned(), "rs3".to_owned()],
            }],
            state: vec![proto::StateRow { group: "mail".to_owned(), condition: 1, base: "rs1".to_owned() }],
            vips: vec![vip("10.0.0.1", "mail1"), vip("10.0.0.4", "mail1")],
            transition: Some(proto::TransitionRow {
                id: 5,
                by: "c1".to_owned(),
                plan: String::new(),
                steps: vec![step],
                groups: vec![proto::GroupChange { group: "mail".to_owned(), before: 2, after: 1 }],
            }),
            ..proto::Tables::default()
        }
    }

    #[test]
    fn tables_are_printed_as_the_thesis_has_them() {
        let wanted = [
            Table::Operation,
            Table::Suspend,
            Table::LiveMigration,
            Table::MayBeOn,
            Table::Rsg,
            Table::State,
            Table::Transition,
        ];
        let expected = "\
revision 7

Operation
PLACE  GROUP  VIRTUAL SERVER  REAL SERVER  HOME  HOLDS              HOME VIPS
mail1  mail   mail1           rs1          rs1   10.0.0.1 10.0.0.4  10.0.0.1

Suspend
PLACE  GROUP  VIRTUAL SERVER  REAL SERVER  HOME  HOLDS  HOME VIPS
mail2  mail   mail2           rs2          rs2   -      10.0.0.4

Live migration
(none)

May be on
VIRTUAL SERVER  MAY ALSO BE ON
mail1           rs2 rs3

RSG
REAL SERVER  STATE           LAST WAKE TOOK
rs2          asleep for 5.0 s  8.0 s

State
GROUP  CONDITION  BASE SERVER
mail   Light      rs1

Transition
5 of c1: mail Moderate -> Light
STEP  STATE  WHAT
0     begun  suspend host rs2
";
        let text = text(Style::REPORT, &wanted, &folded(), 6000);
        let squeeze = |text: &str| {
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
        };
        assert_eq!(squeeze(&text), squeeze(expected), "{text}");
    }

    #[test]
    fn every_table_is_json() {
        for table in ALL {
            assert_eq!(rows(table, &proto::Tables::default()).is_null(), table == Table::Transition);
        }
        assert_eq!(rows(Table::State, &folded())[0]["condition"], "Light");
        assert_eq!(rows(Table::Operation, &folded())[0]["holds"][1], "10.0.0.4");
        assert_eq!(rows(Table::Transition, &folded())["steps"][0]["state"], "begun");
    }
}
