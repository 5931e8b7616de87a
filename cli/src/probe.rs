//! `kagectl probe`: a target's configured probes, run now.

use crate::{Failure, Global, connect::Coordinator, table::table};
use kage_coordinator_core::probe;
use kage_proto::{
    agent::v1::{ProbeReply, probe_reply::Outcome},
    coordinator::v1::{ProbeTargetRequest, ProbedService},
};

/// What to probe.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The target.
    #[arg(required_unless_present = "list_presets")]
    target: Option<String>,
    /// One of its services; all unless given.
    service: Option<String>,
    /// Ask the target's own address instead of its virtual IP.
    #[arg(long)]
    at_target: bool,
    /// Print the steps of every preset as TOML to copy and change.
    #[arg(long)]
    list_presets: bool,
}

pub async fn run(global: &Global, options: &Options) -> Result<(), Failure> {
    let target = match &options.target {
        Some(target) if !options.list_presets => target.clone(),
        Some(_) | None => {
            print!("{}", probe::listing());
            return Ok(());
        }
    };
    let service = options.service.clone().unwrap_or_default();
    let request = ProbeTargetRequest { target: target.clone(), service, at_target: options.at_target };
    let reply = Coordinator::new(global)?.ask(async |mut client| client.probe_target(request).await).await?;
    for service in &reply.services {
        if global.json {
            println!("{}", to_json(service));
        } else {
            print!("{}", to_text(service));
        }
    }
    let bad: Vec<_> = reply.services.iter().filter(|service| outcome(service) != Outcome::Ok).collect();
    if bad.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = bad.iter().map(|service| service.service.as_str()).collect();
    Err(Failure::Failed(format!("{} of {target}: not well", names.join(", "))))
}

fn outcome(service: &ProbedService) -> Outcome {
    service.reply.as_ref().map_or(Outcome::Unspecified, ProbeReply::outcome)
}

/// As the thesis calls it.
fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Ok => "OK",
        Outcome::Error => "ERROR",
        Outcome::Ng | Outcome::Unspecified => "NG",
    }
}

fn to_json(service: &ProbedService) -> serde_json::Value {
    let reply = service.reply.clone().unwrap_or_default();
    let steps: Vec<_> = reply
        .steps
        .iter()
        .map(|step| {
            serde_json::json!({
                "step": step.step, "result": word(step.outcome()), "took_us": step.took_us, "heard": step.heard,
            })
        })
        .collect();
    serde_json::json!({
        "service": service.service, "address": service.address, "port": service.port, "from": service.from,
        "probe": service.probe, "result": word(outcome(service)), "detail": reply.detail, "took_ms": reply.took_ms,
        "steps": steps,
    })
}

fn to_text(service: &ProbedService) -> String {
    let ProbedService { service: name, address, port, from, probe, reply } = service;
    let reply = reply.clone().unwrap_or_default();
    let why = if reply.detail.is_empty() { String::new() } else { format!("  {}", reply.detail) };
    let mut text = format!(
        "{name}: {}  {} ms{why}\n  {probe} at {address} port {port}, from {from}\n",
        word(reply.outcome()),
        reply.took_ms
    );
    let rows: Vec<_> = reply
        .steps
        .iter()
        .map(|step| {
            let took = format!("{:.1} ms", f64::from(step.took_us) / 1000.0);
            [word(step.outcome()).to_owned(), took, step.step.clone(), step.heard.clone()]
        })
        .collect();
    text.push_str(&table(["", "TOOK", "STEP", "HEARD"], &rows));
    text
}
