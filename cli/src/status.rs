//! `kagectl status` and `kagectl voters`.

mod saving;

pub use saving::transition_json;

use crate::{
    Failure, Global,
    connect::Coordinator,
    style::{Style, Tone},
    table::{Cell, ago, cell, fit, paragraph, sheet},
};
use kage_proto::{
    coordinator::v1::{
        AgentStatus, CertificateStatus, GetStatusRequest, OrderStatus, QuarantineStatus, Status, TargetStatus,
        VipStatus,
    },
    tls::EXPIRY_NOTICE,
};
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

/// A certificate that ends sooner than this is a matter for today.
const URGENT_DAYS: u64 = 14;

pub async fn status(global: &Global) -> Result<(), Failure> {
    let status = get(global).await?;
    if global.json {
        println!("{}", to_json(&status));
    } else {
        print!("{}", to_text(&status, Style::of_stdout()));
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
    print!("{}", agents_text(&status.agents, Style::of_stdout()));
    Ok(())
}

pub async fn get(global: &Global) -> Result<Status, Failure> {
    Coordinator::new(global)?.ask(async |mut client| client.get_status(GetStatusRequest {}).await).await
}

/// The page: what is wrong or ordered first, then targets with their virtual IPs, then agents.
pub fn to_text(status: &Status, style: Style) -> String {
    let mut text = headline(status, style);
    for order in &status.orders {
        let (word, what) = order_text(order);
        text.push_str(&paragraph(style, &word, &what, Tone::Notice));
    }
    for quarantine in &status.quarantines {
        text.push_str(&paragraph(style, "QUARANTINE  ", &quarantine_text(quarantine), Tone::Notice));
    }
    if !status.storm_brake.is_empty() {
        text.push_str(&paragraph(
            style,
            "BRAKED  ",
            &format!("nothing is acted on: {}", status.storm_brake),
            Tone::Bad,
        ));
    }
    for alert in &status.alerts {
        text.push_str(&paragraph(style, "ALERT  ", alert, Tone::Bad));
    }
    for (words, tone) in endings(status, unix_s()) {
        text.push_str(&paragraph(style, "CERTIFICATE  ", &words, tone));
    }
    if let Some(saving) = &status.saving {
        text.push_str(&saving::head(saving, style));
    }
    text.push('\n');
    let targets: Vec<_> = status.targets.iter().map(|target| target_row(target, style)).collect();
    text.push_str(&sheet(style, ["TARGET", "MODE", "FOR", "SERVICE", "PING", "BACKUP"], &targets));
    if let Some(saving) = status.saving.as_ref().filter(|saving| !saving.groups.is_empty()) {
        text.push('\n');
        text.push_str(&saving::groups(saving, style));
    }
    text.push('\n');
    text.push_str(&agents_text(&status.agents, style));
    text
}

/// Certificates that end within [`EXPIRY_NOTICE`], the soonest first.
pub fn endings(status: &Status, now_unix_s: u64) -> Vec<(String, Tone)> {
    let left = |ends: u64| ends.saturating_sub(now_unix_s);
    let mut soon: Vec<_> =
        status.certificates.iter().filter(|known| left(known.ends_unix_s) < EXPIRY_NOTICE.as_secs()).collect();
    soon.sort_by_key(|known| known.ends_unix_s);
    let words = |known: &&CertificateStatus| {
        let (who, days) = (&known.who, left(known.ends_unix_s) / 86_400);
        match left(known.ends_unix_s) {
            0 => (format!("{who}'s has ended: it can't connect any more; kagectl pki renew"), Tone::Bad),
            _ if days < URGENT_DAYS => (format!("{who}'s ends in {days} days: kagectl pki renew"), Tone::Bad),
            _ => (format!("{who}'s ends in {days} days: kagectl pki renew"), Tone::Notice),
        }
    };
    soon.iter().map(words).collect()
}

pub fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn headline(status: &Status, style: Style) -> String {
    let authority = if status.in_authority { "in authority" } else { "NOT in authority" };
    let words = format!(
        "profile {}, term {} ({authority}), on coordinator loss: {}",
        status.profile, status.term, status.on_coordinator_loss
    );
    let tone = if status.in_authority { Tone::Plain } else { Tone::Bad };
    let mut text = paragraph(style, &format!("Kagemusha {}  ", status.version), &words, tone);
    let tone = if status.sif == "connected" { Tone::Plain } else { Tone::Bad };
    text.push_str(&paragraph(style, "SIF  ", &status.sif, tone));
    text
}

/// Its first word, and the rest.
pub fn order_text(order: &OrderStatus) -> (String, String) {
    let (word, what) = match order.scope.split_once(':') {
        Some(("target", name)) => ("MAINTENANCE  ", format!("{name}: ")),
        Some((_, name)) => ("MAINTENANCE  ", format!("host {name}: ")),
        None => ("DISARMED  ", String::new()),
    };
    let reason = if order.reason.is_empty() { "no reason given" } else { &order.reason };
    let end = order.ends_in_ms.map_or_else(|| "until lifted".to_owned(), |ms| format!("ends in {}", ago(ms)));
    (word.to_owned(), format!("{what}{reason} (by {}, {} ago, {end})", order.who, ago(order.age_ms)))
}

/// Which, why and until when.
pub fn quarantine_text(quarantine: &QuarantineStatus) -> String {
    let QuarantineStatus { agent, reason, age_ms, ends_in_ms } = quarantine;
    format!("{agent}: {reason} (since {}, ends after another {} of quiet)", ago(*age_ms), ago(*ends_in_ms))
}

/// ok, or its first word; the rest is said below the row.
fn verdict(seen: &str) -> Cell {
    let word = seen.split(':').next().unwrap_or(seen);
    let tone = match word {
        "ok" => Tone::Good,
        "unknown" => Tone::Dim,
        _ => Tone::Bad,
    };
    cell(fit(word, 8), tone)
}

fn target_row(target: &TargetStatus, style: Style) -> ([Cell; 6], Vec<String>) {
    let backup = if target.backup_domain.is_empty() {
        target.backup_agent.clone()
    } else {
        format!("{}@{}", target.backup_domain, target.backup_agent)
    };
    let tone = match target.mode.as_str() {
        "regular" => Tone::Good,
        "ended" => Tone::Bad,
        _ => Tone::Notice,
    };
    let row = [
        cell(fit(&target.target, 20), Tone::Strong),
        cell(fit(&target.mode, 22), tone),
        ago(target.mode_for_ms).into(),
        verdict(&target.service),
        verdict(&target.ping),
        fit(&backup, 30).into(),
    ];
    let mut under: Vec<String> = target.vips.iter().map(|vip| vip_line(vip, style)).collect();
    if target.suspended {
        under.push(paragraph(style, "  ", "suspended on purpose, by power saving: not looked at", Tone::Notice));
    }
    if !target.detail.is_empty() {
        under.push(paragraph(style, "  ", &target.detail, Tone::Notice));
    }
    for (what, seen) in [("service", &target.service), ("ping", &target.ping)] {
        if seen.contains(':') {
            under.push(paragraph(style, &format!("  {what}  "), seen, Tone::Plain));
        }
    }
    (row, under)
}

fn vip_line(vip: &VipStatus, style: Style) -> String {
    let (words, tone) = match vip.holder.as_str() {
        "nobody" => ("served by NOBODY".to_owned(), Tone::Bad),
        holder => (format!("served by its {holder} {}", vip.owner), Tone::Plain),
    };
    let granted = vip.granted_ms_ago.map_or_else(|| "none in this term".to_owned(), |ms| format!("{} ago", ago(ms)));
    let words = format!("{words}, epoch {}, last grant {granted}", vip.epoch);
    paragraph(style, &format!("  {}  ", vip.vip), &words, tone)
}

fn agents_text(agents: &[AgentStatus], style: Style) -> String {
    let row = |agent: &AgentStatus| {
        let state = match (agent.connected, agent.asleep) {
            (true, false) => cell("connected", Tone::Good),
            // It is on its way to sleep, or has woken by itself.
            (true, true) => cell("connected, to sleep", Tone::Notice),
            (false, true) => cell("asleep", Tone::Notice),
            (false, false) => cell("AWAY", Tone::Bad),
        };
        let asked = agent.asked_ms_ago.map_or_else(|| "never".to_owned(), |ms| format!("{} ago", ago(ms)));
        let row = [
            cell(fit(&agent.agent, 24), Tone::Strong),
            state,
            if agent.voter { "voter" } else { "" }.into(),
            fit(&agent.address, 24).into(),
            asked.into(),
        ];
        (row, Vec::new())
    };
    let rows: Vec<_> = agents.iter().map(row).collect();
    sheet(style, ["AGENT", "STATE", "VOTER", "ADDRESS", "LAST ASKED"], &rows)
}

pub fn to_json(status: &Status) -> Value {
    json!({
        "version": status.version,
        "profile": status.profile,
        "term": status.term,
        "in_authority": status.in_authority,
        "sif": status.sif,
        "storm_brake": status.storm_brake,
        "alerts": status.alerts,
        "orders": status.orders.iter().map(order_json).collect::<Value>(),
        "quarantines": status.quarantines.iter().map(|known| json!({
            "agent": known.agent, "reason": known.reason, "age_ms": known.age_ms, "ends_in_ms": known.ends_in_ms,
        })).collect::<Value>(),
        "on_coordinator_loss": status.on_coordinator_loss,
        "journal_seq": status.journal_seq,
        "targets": status.targets.iter().map(target_json).collect::<Value>(),
        "agents": status.agents.iter().map(agent_json).collect::<Value>(),
        "certificates": status.certificates.iter().map(|known| {
            json!({ "who": known.who, "ends_unix_s": known.ends_unix_s })
        }).collect::<Value>(),
        "saving": status.saving.as_ref().map(saving::to_json),
    })
}

fn order_json(order: &OrderStatus) -> Value {
    json!({
        "scope": order.scope,
        "reason": order.reason,
        "who": order.who,
        "age_ms": order.age_ms,
        "ends_in_ms": order.ends_in_ms,
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
        "suspended": target.suspended,
        "vm": target.vm,
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
        "asleep": agent.asleep,
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
            orders: vec![
                OrderStatus {
                    scope: "all".into(),
                    who: "operator bob".into(),
                    age_ms: 3 * 86_400_000,
                    ..Default::default()
                },
                OrderStatus {
                    scope: "agent:rs2".into(),
                    reason: "a new disk".into(),
                    who: "operator alice".into(),
                    age_ms: 120_000,
                    ends_in_ms: Some(3_600_000),
                },
            ],
            quarantines: vec![QuarantineStatus {
                agent: "rs3".into(),
                reason: "it came back from silence 3 times within 10 min, of 1.9s the last time".into(),
                age_ms: 120_000,
                ends_in_ms: 480_000,
            }],
            targets: vec![TargetStatus {
                service: "NG: no reply within 3 s".into(),
                ping: "ok".into(),
                target: "mail1".into(),
                mode: "target-server-recovery".into(),
                detail: "d ".repeat(100),
                vips: vec![vip],
                agent: "x".repeat(63),
                backup_agent: "rs2".into(),
                backup_domain: "mailb".into(),
                suspended: true,
                ..TargetStatus::default()
            }],
            agents: [("x".repeat(63), false), ("rs2".to_owned(), true)]
                .map(|(agent, asleep)| AgentStatus {
                    agent,
                    address: "10.0.0.1:7701".into(),
                    asleep,
                    ..AgentStatus::default()
                })
                .into(),
            saving: Some(saving::tests::night()),
            ..Status::default()
        }
    }

    #[test]
    fn the_page_fits_and_says_what_matters() {
        for width in [60, 80, 100, 120] {
            let text = to_text(&sample(), Style { colour: false, width });
            for line in text.lines() {
                assert!(line.chars().count() <= width, "{width}: {line}");
            }
            let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
            let words = [
                "NOT in authority",
                "BRAKED",
                "ALERT x",
                "SIF not connected",
                "DISARMED no reason given (by operator bob, 3 d ago, until lifted)",
                "MAINTENANCE host rs2: a new disk (by operator alice, 2 min ago, ends in 1 h)",
                "QUARANTINE rs3: it came back from silence 3 times",
                "ends after another 8 min of quiet",
                "served by its target",
                "120 ms ago",
                "NG",
                "service NG: no reply within 3 s",
                "AWAY",
                "ASLEEP on purpose, by power saving: rs2 for 2 h",
                "TRANSITION mail Light -> Moderate",
                "suspended on purpose",
                "mail Light rs1",
                "rs2 asleep",
            ];
            for word in words {
                assert!(flat.contains(word), "{width}: {word} in\n{text}");
            }
        }
    }

    #[test]
    fn certificates_that_end_soon_are_told_of() {
        let now = 1_000_000_000_u64;
        let ends = [("sif", 400), ("agent rs1", 20), ("agent rs2", 13), ("agent rs3", -1)];
        let certificates = ends.map(|(who, days): (&str, i64)| CertificateStatus {
            who: who.into(),
            ends_unix_s: now.saturating_add_signed(days * 86_400 + 3600),
        });
        let status = Status { certificates: certificates.into(), ..Status::default() };
        let told: Vec<_> = endings(&status, now).into_iter().map(|(words, _)| words).collect();
        assert_eq!(told.len(), 3, "{told:?}");
        assert!(told[0].contains("rs3's has ended"), "{told:?}");
        assert!(told[1].contains("rs2's ends in 13 days") && told[2].contains("rs1's ends in 20 days"), "{told:?}");
    }

    #[test]
    fn json_keeps_names_whole() {
        let json = to_json(&sample());
        assert_eq!(json["targets"][0]["agent"].as_str().map(str::len), Some(63));
        assert_eq!(json["targets"][0]["vips"][0]["epoch"], 12);
        assert_eq!(json["agents"][0]["asked_ms_ago"], Value::Null);
    }
}
