//! `kagectl facts`: what an agent has found out about its machine.

use crate::{Failure, Global, connect::Coordinator, table};
use kage_proto::{
    agent::v1::{self, GetFactsRequest, agent_client::AgentClient},
    channel::{Credentials, Options, channel, reason},
    coordinator::v1::GetStatusRequest,
    tls::{Expected, Pki},
};
use kage_types::AgentId;
use std::{fmt::Write as _, time::Duration};

/// Asks the agent, at the address the coordinator has for it.
pub async fn facts(global: &Global, agent: &str, address: Option<&str>) -> Result<(), Failure> {
    let id: AgentId = AgentId::new(agent)?;
    let address = match address {
        Some(address) => address.to_owned(),
        None => known_address(global, agent).await?,
    };
    let credentials =
        if global.plaintext { Credentials::PlaintextLoopback } else { Credentials::Tls(Pki::load(&global.pki)?) };
    let options = Options { connect_timeout: global.timeout.min(Duration::from_secs(5)), ..Options::default() };
    let mut client = AgentClient::new(channel(&address, &credentials, Expected::agent(&id), &options)?);
    let unreachable = |why: &str| {
        Failure::Unreachable(format!(
            "can't ask agent {agent} at {address}: {why}\n\
             Next: is its machine up, and kage-agent running there? `kagectl status` shows when it was last heard."
        ))
    };
    let facts = match tokio::time::timeout(global.timeout, client.get_facts(GetFactsRequest {})).await {
        Ok(Ok(facts)) => facts.into_inner(),
        Ok(Err(status)) if std::error::Error::source(&status).is_some() => return Err(unreachable(&reason(&status))),
        Ok(Err(status)) => return Err(Failure::Failed(format!("agent {agent} refused: {}", status.message()))),
        Err(_) => return Err(unreachable(&format!("no answer within {:?}", global.timeout))),
    };
    if global.json {
        println!("{}", json(&facts));
    } else {
        print!("{}", text(&facts));
    }
    Ok(())
}

async fn known_address(global: &Global, agent: &str) -> Result<String, Failure> {
    let status = Coordinator::new(global)?.ask(async |mut client| client.get_status(GetStatusRequest {}).await).await?;
    let names: Vec<_> = status.agents.iter().map(|one| one.agent.as_str()).collect();
    match status.agents.iter().find(|one| one.agent == agent) {
        Some(found) => Ok(found.address.clone()),
        None => Err(Failure::Failed(format!("no agent {agent}: the coordinator knows {}", names.join(", ")))),
    }
}

fn text(facts: &v1::Facts) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:18} {value}");
    };
    line("agent", &format!("{} (kage-agent {})", facts.agent, facts.version));
    line("machine", &format!("{}: {}, Linux {}, {}", facts.hostname, facts.os, facts.kernel, facts.arch));
    line("", &format!("{} CPUs, {} MiB, up {}", facts.cpus, facts.memory_bytes >> 20, table::ago(facts.uptime_ms)));
    for nic in &facts.nics {
        let state = if nic.up { "up" } else { "down" };
        let wake = if nic.wake_on.is_empty() { String::new() } else { format!(", Wake-on: {}", nic.wake_on) };
        line("network card", &format!("{} {} {state}, {}{wake}", nic.name, nic.mac, nic.addresses.join(" ")));
    }
    line("services by", &format!("{} ({})", facts.init, facts.init_reason));
    line("reboot", &facts.reboot);
    line("power-off", &facts.power_off);
    line("suspend", &facts.suspend);
    line("woken by", &facts.wake);
    line("alarm", &facts.alarm);
    line(
        "sleep states",
        &if facts.sleep_states.is_empty() { "none".to_owned() } else { facts.sleep_states.join(", ") },
    );
    line("guard", &facts.guard);
    line(
        "leases enforced by",
        if facts.nf_tables { "nf_tables" } else { "nobody: no nf_tables (docs/safety.md, rule 10)" },
    );
    line("clock", &facts.clock);
    line("libvirt", &facts.libvirt);
    for (name, parties) in [("network by", &facts.network_managers), ("firewall", &facts.firewalls)] {
        if parties.is_empty() {
            line(name, "nobody known");
        }
        for party in parties {
            line(name, &format!("{}: {}", party.name, party.reason));
        }
    }
    for service in &facts.services {
        line("service", &service.service);
        for (name, way) in ways(service) {
            line(&format!("  {name}"), way);
        }
    }
    text
}

fn ways(service: &v1::ServiceWays) -> [(&'static str, &str); 8] {
    [
        ("unit", &service.unit),
        ("watched", &service.watched),
        ("check", &service.check),
        ("restart", &service.restart),
        ("start", &service.start),
        ("stop", &service.stop),
        ("freeze", &service.freeze),
        ("thaw", &service.thaw),
    ]
}

fn json(facts: &v1::Facts) -> serde_json::Value {
    let parties = |parties: &[v1::Party]| -> serde_json::Value {
        parties.iter().map(|one| serde_json::json!({ "name": one.name, "reason": one.reason })).collect()
    };
    let nic = |nic: &v1::Nic| {
        serde_json::json!({
            "name": nic.name, "mac": nic.mac, "up": nic.up, "addresses": nic.addresses,
            "speed_mbit": nic.speed_mbit, "wake_on": nic.wake_on,
        })
    };
    let service = |service: &v1::ServiceWays| {
        let ways = ways(service).into_iter().map(|(name, way)| (name.to_owned(), way.into()));
        (service.service.clone(), serde_json::Value::Object(ways.collect()))
    };
    serde_json::json!({
        "agent": facts.agent, "version": facts.version, "hostname": facts.hostname, "os": facts.os,
        "kernel": facts.kernel, "arch": facts.arch, "cpus": facts.cpus, "memory_bytes": facts.memory_bytes,
        "nics": facts.nics.iter().map(nic).collect::<Vec<_>>(), "uptime_ms": facts.uptime_ms, "boot_id": facts.boot_id,
        "init": facts.init, "init_reason": facts.init_reason, "reboot": facts.reboot, "power_off": facts.power_off,
        "suspend": facts.suspend, "wake": facts.wake, "alarm": facts.alarm, "sleep_states": facts.sleep_states, "guard": facts.guard,
        "nf_tables": facts.nf_tables, "clock": facts.clock, "libvirt": facts.libvirt, "witness": facts.witness,
        "network_managers": parties(&facts.network_managers), "firewalls": parties(&facts.firewalls),
        "services": facts.services.iter().map(service).collect::<serde_json::Map<_, _>>(),
    })
}
