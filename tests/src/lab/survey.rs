//! What is in every host's memory, by libvirt itself, against the shared tables: whatever the arrangement is, as after a
//! transition that did not end as planned.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};
use serde_json::Value;

use super::nodes::{Kind, of};
use super::power::rows;
use super::{hypervisor, machine};

/// By host and domain: libvirt's word for its state.
type Memory = BTreeMap<(String, String), String>;

/// All that runs or is paused anywhere is what the tables say, where they say it, and nothing else is; no host sleeps with
/// anything in service.
///
/// # Errors
/// It is not so; or a libvirt does not answer.
pub(super) fn agrees(tables: &Value) -> Result<()> {
    let mut found = Memory::new();
    let mut asleep = BTreeSet::new();
    for host in of(Kind::RealServer).chain(of(Kind::Hypervisor)) {
        if machine::power(host) != machine::Power::On {
            asleep.insert(host.name.to_owned());
        }
        for (domain, state) in hypervisor::active(host)? {
            found.insert((host.name.to_owned(), domain), state);
        }
    }
    let doubles: Vec<_> = of(Kind::Domain).map(|double| (double.name, double.host)).collect();
    let faults = differences(tables, &found, &asleep, &doubles);
    ensure!(faults.is_empty(), "tables and hosts differ: {}", faults.join("; "));
    Ok(())
}

/// `doubles`: each with its home, where it is paused unless it fills a place.
fn differences(tables: &Value, found: &Memory, asleep: &BTreeSet<String>, doubles: &[(&str, &str)]) -> Vec<String> {
    let mut faults = Vec::new();
    let mut wanted = Memory::new();
    let word = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
    // A backup server in a place is where it was left, whatever this table says.
    let own = |row: &&Value| row["vm"] == row["place"];
    let moved: BTreeMap<String, String> = rows(&tables["live_migration"])
        .iter()
        .filter(own)
        .map(|row| (word(row, "place"), word(row, "original_host")))
        .collect();
    let mut away = BTreeMap::new();
    for (table, state) in [("operation", "running"), ("suspend", "paused")] {
        for row in rows(&tables[table]) {
            let (host, vm, place) = (word(&row, "host"), word(&row, "vm"), word(&row, "place"));
            if state == "running" && asleep.contains(&host) {
                faults.push(format!("{vm} is in operation on {host}, which sleeps"));
            }
            if vm == place && host != word(&row, "home") {
                away.insert(place, word(&row, "home"));
            }
            // Two rows may name one: it stands in for both.
            wanted.insert((host, vm), state.to_owned());
        }
    }
    for (double, home) in doubles {
        if !wanted.keys().any(|(_, vm)| vm == double) {
            wanted.insert(((*home).to_owned(), (*double).to_owned()), "paused".to_owned());
        }
    }
    for ((host, vm), state) in found {
        if state == "running" && asleep.contains(host) {
            faults.push(format!("{vm} runs on {host}, which sleeps"));
        }
    }
    for key in wanted.keys().chain(found.keys()).collect::<BTreeSet<_>>() {
        let (said, is) = (wanted.get(key), found.get(key));
        if said != is {
            let show = |state: Option<&String>| state.map_or("not there", String::as_str).to_owned();
            faults.push(format!("{} on {}: {} by the tables, {} by libvirt", key.1, key.0, show(said), show(is)));
        }
    }
    if moved != away {
        faults.push(format!("Live migration has {moved:?}, away from home are {away:?}"));
    }
    let slept: BTreeSet<String> = rows(&tables["rsg"])
        .iter()
        .filter(|row| !row["asleep_since_unix_ms"].is_null())
        .map(|row| word(row, "host"))
        .collect();
    if slept != *asleep {
        faults.push(format!("asleep by the tables: {slept:?}, by their power: {asleep:?}"));
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn night() -> Value {
        let row = |vm: &str, host: &str, home: &str| json!({"place": vm, "vm": vm, "host": host, "home": home});
        json!({
            "operation": [row("mail1", "rs1", "rs1"), row("ftp1", "rs1", "rs2")],
            "suspend": [row("mail2", "rs2", "rs2")],
            "live_migration": [{"place": "ftp1", "vm": "ftp1", "original_host": "rs2"}],
            "rsg": [{"host": "rs1", "asleep_since_unix_ms": null}, {"host": "rs2", "asleep_since_unix_ms": 5}],
        })
    }

    fn there(rows: &[(&str, &str, &str)]) -> Memory {
        rows.iter().map(|(host, vm, state)| (((*host).into(), (*vm).into()), (*state).into())).collect()
    }

    const AT_NIGHT: [(&str, &str, &str); 4] = [
        ("rs1", "mail1", "running"),
        ("rs1", "ftp1", "running"),
        ("rs2", "mail2", "paused"),
        ("mgmt", "mailb", "paused"),
    ];

    fn told(found: &[(&str, &str, &str)], asleep: &[&str]) -> Vec<String> {
        let asleep = asleep.iter().map(|host| (*host).to_owned()).collect();
        differences(&night(), &there(found), &asleep, &[("mailb", "mgmt")])
    }

    #[test]
    fn what_is_as_the_tables_say_is_no_difference() {
        assert_eq!(told(&AT_NIGHT, &["rs2"]), Vec::<String>::new());
    }

    #[test]
    fn every_kind_of_difference_is_told() {
        let mut twice = AT_NIGHT.to_vec();
        twice.push(("rs2", "ftp1", "paused"));
        assert_eq!(told(&twice, &["rs2"]), ["ftp1 on rs2: not there by the tables, paused by libvirt"]);
        assert_eq!(told(&AT_NIGHT[..3], &["rs2"]), ["mailb on mgmt: paused by the tables, not there by libvirt"]);
        assert_eq!(told(&AT_NIGHT, &[]), [r#"asleep by the tables: {"rs2"}, by their power: {}"#]);
        let loaded = told(&AT_NIGHT, &["rs1", "rs2"]).join("; ");
        assert!(loaded.contains("mail1 is in operation on rs1, which sleeps"), "{loaded}");
        assert!(loaded.contains("mail1 runs on rs1, which sleeps"), "{loaded}");
        let mut tables = night();
        tables["live_migration"] = json!([]);
        let lost = differences(&tables, &there(&AT_NIGHT), &["rs2".to_owned()].into(), &[("mailb", "mgmt")]);
        assert_eq!(lost, [r#"Live migration has {}, away from home are {"ftp1": "rs2"}"#]);
    }
}
