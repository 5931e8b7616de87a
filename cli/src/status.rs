//! `kagectl status` and `kagectl voters`.

use crate::{
    Failure, Global,
    connect::Coordinator,
    table::{ago, fit, table, wrap},
};
use kage_proto::coordinator::v1::{AgentStatus, GetStatusRequest, Status, TargetStatus, VipStatus};
use serde_json::{Value, json};
use std::fmt::Write as _;

pub async fn status(global: &Global) -> Result<(), Failure> {
    let status = get(global).await?;
    if global.json {
        println!("{}", to_json(&status));
    } else {
        print!("{}", to_text(&status));
    }
    Ok(())
}

pub async fn voters(global: &Global) -> Result<(), Failure> {
    let mut status = get(global).await?;
    status.agents.retain(|agent| agent.voter);
    if global.json {
        println!("{}", Value::from_iter(status.agents.iter().map(agent_json)));
        return Ok(());
    }
    let reached = status.agents.iter().filter(|agent| agent.connected).count();
    println!(
        "On coordinator loss: {}. {reached} of {} voters connected.",
        status.on_coordinator_loss,
        status.agents.len()
    );
    print!("{}", agents_text(&status.agents));
    Ok(())
}

async fn get(global: &Global) -> Result<Status, Failure> {
    Coordinator::new(global)?.ask(async |mut client| client.get_status(GetStatusRequest {}).await).await
}

fn to_text(status: &Status) -> String {
    let authority = if status.in_authority { "in authority" } else { "NOT in authority" };
    let mut text = format!(
        "Kagemusha {}  profile {}  term {} ({authority})  on coordinator loss: {}\n",
        status.version, status.profile, status.term, status.on_coordinator_loss
    );
    text.push_str(&wrap(&format!("SIF: {}", status.sif), ""));
    if !status.storm_brake.is_empty() {
        text.push_str(&wrap(&format!("BRAKED, nothing is acted on: {}", status.storm_brake), ""));
    }
    for alert in &status.alerts {
        text.push_str(&wrap(&format!("ALERT: {alert}"), ""));
    }
    text.push('\n');
    let targets: Vec<_> = status.targets.iter().map(target_row).collect();
    text.push_str(&table(["TARGET", "MODE", "FOR", "SERVICE", "PING", "AGENT", "BACKUP", "DETAIL"], &targets));
    text.push('\n');
    let vips: Vec<_> =
        status.targets.iter().flat_map(|target| target.vips.iter().map(|vip| vip_row(&target.target, vip))).collect();
    text.push_str(&table(["VIP", "TARGET", "HOLDER", "OWNER", "EPOCH", "LAST GRANT"], &vips));
    text.push('\n');
    text.push_str(&agents_text(&status.agents));
    text
}

fn target_row(target: &TargetStatus) -> [String; 8] {
    let backup = if target.backup_domain.is_empty() {
        target.backup_agent.clone()
    } else {
        format!("{}@{}", target.backup_domain, target.backup_agent)
    };
    [
        fit(&target.target, 16),
        fit(&target.mode, 22),
        ago(target.mode_for_ms),
        target.service.clone(),
        target.ping.clone(),
        fit(&target.agent, 12),
        fit(&backup, 18),
        target.detail.clone(),
    ]
}

fn vip_row(target: &str, vip: &VipStatus) -> [String; 6] {
    [
        vip.vip.clone(),
        fit(target, 16),
        vip.holder.clone(),
        fit(&vip.owner, 20),
        vip.epoch.to_string(),
        vip.granted_ms_ago.map_or_else(|| "none in this term".to_owned(), |ms| format!("{} ago", ago(ms))),
    ]
}

fn agents_text(agents: &[AgentStatus]) -> String {
    let rows: Vec<_> = agents
        .iter()
        .map(|agent| {
            [
                fit(&agent.agent, 30),
                if agent.connected { "connected" } else { "AWAY" }.to_owned(),
                if agent.voter { "voter" } else { "" }.to_owned(),
                fit(&agent.address, 30),
                agent.asked_ms_ago.map_or_else(|| "never".to_owned(), |ms| format!("{} ago", ago(ms))),
            ]
        })
        .collect();
    let mut text = String::new();
    // Writing to a string can't fail.
    let _ = write!(text, "{}", table(["AGENT", "STATE", "VOTER", "ADDRESS", "LAST ASKED"], &rows));
    text
}

fn to_json(status: &Status) -> Value {
    json!({
        "version": status.version,
        "profile": status.profile,
        "term": status.term,
        "in_authority": status.in_authority,
        "sif": status.sif,
        "storm_brake": status.storm_brake,
        "alerts": status.alerts,
        "on_coordinator_loss": status.on_coordinator_loss,
        "journal_seq": status.journal_seq,
        "targets": status.targets.iter().map(target_json).collect::<Value>(),
        "agents": status.agents.iter().map(agent_json).collect::<Value>(),
    })
}

fn target_json(target: &TargetStatus) -> Value {
    let vips: Value = target
        .vips
        .iter()
        .map(|vip| {
            json!({
                "vip": vip.vip, "epoch": vip.epoch, "owner": vip.owner, "holder": vip.holder,
                "granted_ms_ago": vip.granted_ms_ago,
            })
        })
        .collect();
    json!({
        "target": target.target,
        "mode": target.mode,
        "mode_for_ms": target.mode_for_ms,
        "detail": target.detail,
        "agent": target.agent,
        "backup_agent": target.backup_agent,
        "backup_domain": target.backup_domain,
        "ping": target.ping,
        "service": target.service,
        "vips": vips,
    })
}

fn agent_json(agent: &AgentStatus) -> Value {
    json!({
        "agent": agent.agent,
        "connected": agent.connected,
        "voter": agent.voter,
        "address": agent.address,
        "asked_ms_ago": agent.asked_ms_ago,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Status {
        let vip = VipStatus {
            vip: "fd00:1234:5678:9abc:def0:1234:5678:9abc".into(),
            epoch: 12,
            owner: "a-very-long-agent-name-indeed".into(),
            granted_ms_ago: Some(120),
            holder: "target".into(),
        };
        Status {
            version: "0.1.0".into(),
            profile: "normal".into(),
            term: 3,
            sif: format!("not connected: {}", "reason ".repeat(30)),
            storm_brake: "5 of 6 hosts look dead at once".into(),
            alerts: vec!["x ".repeat(120)],
            targets: vec![TargetStatus {
                target: "mail1".into(),
                mode: "target-server-recovery".into(),
                detail: "d ".repeat(100),
                vips: vec![vip],
                agent: "x".repeat(63),
                backup_agent: "rs2".into(),
                backup_domain: "mailb".into(),
                ..TargetStatus::default()
            }],
            agents: vec![AgentStatus {
                agent: "x".repeat(63),
                address: "10.0.0.1:7701".into(),
                ..AgentStatus::default()
            }],
            ..Status::default()
        }
    }

    #[test]
    fn the_page_fits_and_says_what_matters() {
        let text = to_text(&sample());
        for line in text.lines() {
            assert!(line.chars().count() <= 100, "{line}");
        }
        for word in ["NOT in authority", "BRAKED", "ALERT: x", "not connected", "mailb@rs2", "120 ms ago", "AWAY"] {
            assert!(text.contains(word), "{word} in\n{text}");
        }
    }

    #[test]
    fn json_keeps_names_whole() {
        let json = to_json(&sample());
        assert_eq!(json["targets"][0]["agent"].as_str().map(str::len), Some(63));
        assert_eq!(json["targets"][0]["vips"][0]["epoch"], 12);
        assert_eq!(json["agents"][0]["asked_ms_ago"], Value::Null);
    }
}
