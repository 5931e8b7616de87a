//! What the tests of this directory share.

#![allow(dead_code, reason = "each uses its part")]

use super::inventory::{Ledger, Seen, SeenHost, SeenVm};
use kage_coordinator_core::{arrangement::Arrangement, config::Cluster};
use kage_pss_core::{inventory::VmState, units::Bytes};
use kage_types::{Condition, RealServerRow, Revision, StateRow, Tables};

/// The thesis's three real servers, as far as this version reads them.
pub fn cluster() -> Cluster {
    let agent = |name: &str, address: &str, more: &str| {
        format!("[[agent]]\nname = \"{name}\"\naddress = \"{address}:7702\"\nguard = \"tap\"\n{more}\n")
    };
    let mut text = String::from(
        "[cluster]\nname = \"lab\"\non_coordinator_loss = \"keep\"\n[coordinator]\nlisten = \"10.77.0.2:7700\"\n\
         [sif]\nlisten = \"10.77.0.2:7701\"\n",
    );
    text += &agent("mgmt", "10.77.0.2", "");
    for number in 1..=3 {
        text += &agent(
            &format!("rs{number}"),
            &format!("10.77.0.1{number}"),
            &format!("mac = \"52:54:00:77:00:1{number}\""),
        );
        text += &format!("[[host]]\nagent = \"rs{number}\"\n");
    }
    for (name, host, last) in [("mail1", "rs1", 101), ("mail2", "rs2", 104)] {
        text += &target(name, host, last);
    }
    text += "[[group]]\nname = \"mail\"\nmembers = [\"mail1\", \"mail2\"]\n";
    Cluster::parse(&text).unwrap_or_else(|error| panic!("{error}"))
}

fn target(name: &str, host: &str, last: u8) -> String {
    format!(
        "[[target]]\nname = \"{name}\"\nvm = {{ domain = \"{name}\", host = \"{host}\" }}\naddress = \"10.77.1.{last}\"\nvips = [\"10.77.0.{last}\"]\n\
         backup = {{ agent = \"mgmt\", domain = \"mailb\" }}\n"
    )
}

/// At home in Moderate condition.
pub fn ledger() -> Ledger {
    let cluster = cluster();
    let arrangement = Arrangement::of(&cluster);
    let awake = RealServerRow { asleep_since_unix_ms: None, wake_took_ms: None };
    let moderate = StateRow { condition: Condition::Moderate, base: None };
    let rows = arrangement.operation.values();
    let vips = rows.flat_map(|row| row.home_vips.iter().map(|vip| (*vip, (row.host.clone(), Some(row.vm.clone())))));
    Ledger {
        vips: vips.collect(),
        tables: Tables {
            revision: Revision(7),
            real_servers: arrangement.real_servers.into_iter().map(|name| (name, awake.clone())).collect(),
            state: arrangement.groups.into_iter().map(|name| (name, moderate.clone())).collect(),
            operation: arrangement.operation,
            ..Tables::default()
        },
    }
}

/// rs1 with mail1 and rs2 with mail2; rs3 never answered.
pub fn seen() -> Seen {
    let vm = SeenVm { state: VmState::Running, memory: Bytes::gib(2) };
    let host = |name: &str, runs: &str| {
        let there = SeenHost {
            up: true,
            memory: Bytes::gib(8),
            cores: 4,
            speed_mbit: 1000,
            mac: None,
            vms: [(runs.parse().expect("name"), vm)].into(),
        };
        (name.parse().expect("name"), there)
    };
    Seen { hosts: [host("rs1", "mail1"), host("rs2", "mail2")].into() }
}
