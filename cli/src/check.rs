//! `kagectl check`: what an outage would cost, before it does.

use crate::{
    Failure, Global,
    connect::Coordinator,
    status,
    table::{table, wrap},
};
use kage_coordinator_core::{
    characteristics::Characteristics,
    config::Cluster,
    predict::{Range, Report, Timing, predict},
};
use kage_proto::coordinator::v1::CheckRequest;
use std::path::Path;

pub async fn check(global: &Global, file: Option<&Path>, characteristics: Option<&Path>) -> Result<(), Failure> {
    let report = match file {
        None => running(global).await?,
        Some(file) => offline(file, characteristics)?,
    };
    if global.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print!("{}", to_text(&report));
    }
    if file.is_none() {
        for (words, _) in status::endings(&status::get(global).await?, status::unix_s()) {
            eprintln!("kagectl: certificate: {words}");
        }
    }
    if report.ok {
        Ok(())
    } else {
        Err(Failure::Failed("the configuration does not keep its promises; see above".to_owned()))
    }
}

async fn running(global: &Global) -> Result<Report, Failure> {
    let reply = Coordinator::new(global)?.ask(async |mut client| client.check(CheckRequest {}).await).await?;
    serde_json::from_str(&reply.report_json).map_err(|error| {
        Failure::Failed(format!(
            "the report can't be read ({error}): is the coordinator of another version than this kagectl?"
        ))
    })
}

fn offline(file: &Path, characteristics: Option<&Path>) -> Result<Report, Failure> {
    let text = std::fs::read_to_string(file).map_err(|error| {
        Failure::Failed(format!("can't read {}: {error}; give the path of a cluster.toml", file.display()))
    })?;
    let cluster = Cluster::parse_file(file, &text).map_err(|error| {
        let faults: String = error.lines().iter().map(|fault| format!("\n  {fault}")).collect();
        Failure::Configuration(format!("{} can't be used:{faults}", file.display()))
    })?;
    let known = match characteristics {
        None => Characteristics::default(),
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .map_err(|error| Failure::Failed(format!("can't read {}: {error}", path.display())))?;
            serde_json::from_str(&text).map_err(|error| {
                Failure::Failed(format!(
                    "{} can't be understood ({error}): give what `kagectl --json characterise --show` printed",
                    path.display()
                ))
            })?
        }
    };
    Ok(predict(&cluster, &known))
}

/// Typical and worst in seconds; a question mark where a figure is missing, a dash where there is no such recovery.
fn range(range: Option<Range>, applies: bool, missing: bool) -> String {
    match range {
        Some(Range { typical, worst }) if typical == worst => seconds(typical),
        Some(Range { typical, worst }) => format!("{} … {}", seconds(typical), seconds(worst)),
        None if applies && missing => "?".to_owned(),
        None => "–".to_owned(),
    }
}

fn seconds(ms: u64) -> String {
    format!("{}.{:02}", ms / 1000, ms % 1000 / 10)
}

fn to_text(report: &Report) -> String {
    let Timing { lease_ms, element_ms, renewal_ms, slack_ms, drift_one_in, stall_tolerance_ms } = &report.timing;
    let mut text = format!(
        "Profile {}: lease {lease_ms} ms, element {element_ms} ms, renewal {renewal_ms} ms, slack {slack_ms} ms,\n\
         clock drift 1 in {drift_one_in}, stalls tolerated {stall_tolerance_ms} ms\n\n",
        report.profile
    );
    let rows: Vec<_> = report
        .targets
        .iter()
        .flat_map(|target| {
            target.troubles.iter().map(|trouble| {
                let missing = !trouble.not_characterised.is_empty();
                let client = trouble.outage_typical_ms.zip(trouble.outage_worst_ms);
                let client = client.map(|(typical, worst)| Range { typical, worst });
                // Those of the thesis have recoveries of their own; St1 is cured in place.
                let thesis = ["St2", "Nt1", "Nt2"].iter().any(|name| trouble.trouble.starts_with(name));
                [
                    target.target.clone(),
                    trouble.trouble.clone(),
                    range(trouble.function_ms, thesis, missing),
                    range(trouble.target_ms, thesis || trouble.trouble.starts_with("St1"), missing),
                    range(client, true, missing),
                    trouble.formula.clone(),
                ]
            })
        })
        .collect();
    text.push_str("Predicted in seconds, usual … worst: recovery of function, of the target, client outage\n");
    text.push_str(&table(["TARGET", "TROUBLE", "FUNCTION", "SERVER", "CLIENT", "FORMULA"], &rows));
    for target in &report.targets {
        for note in &target.notes {
            text.push_str(&wrap(&format!("{}: {note}", target.target), "  "));
        }
    }
    if !report.not_protected.is_empty() {
        text.push_str("\nNot protected:\n");
        report.not_protected.iter().for_each(|item| text.push_str(&wrap(item, "  ")));
    }
    text.push_str(if report.ok { "\nOK\n" } else { "\nNOT OK\n" });
    text
}
