//! `kagectl reload` and `kagectl characterise`.

use crate::{Failure, Global, connect::Coordinator, table::table};
use kage_coordinator_core::characteristics::{Characteristics, Measured};
use kage_proto::coordinator::v1::{CharacteriseRequest, GetCharacteristicsRequest, ReloadRequest};
use serde_json::json;
use std::io::{IsTerminal as _, Write as _};

/// Options of `reload`.
#[derive(Debug, clap::Args)]
pub struct Reload {
    /// Say what would change, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Change even a target that is away from home or in recovery: its supervision begins again from the ledger, and
    /// the owner of a virtual IP that is listed no more closes it.
    #[arg(long)]
    force: bool,
}

pub async fn reload(global: &Global, options: &Reload) -> Result<(), Failure> {
    let request = ReloadRequest { dry_run: options.dry_run, force: options.force };
    let asked = Coordinator::new(global)?.ask(async |mut client| client.reload(request).await).await;
    let reply = asked.map_err(|failure| match failure {
        Failure::Failed(text) if text.contains("has faults") => Failure::Configuration(text),
        Failure::Failed(_) | Failure::Unreachable(_) | Failure::Configuration(_) => failure,
    })?;
    if global.json {
        println!(
            "{}",
            json!({ "changes": reply.changes, "needs_restart": reply.needs_restart, "refused": reply.refused,
                    "applied": !options.dry_run })
        );
    } else {
        let word = if options.dry_run { "would change" } else { "changed" };
        reply.changes.iter().for_each(|line| println!("{word}: {line}"));
        reply.needs_restart.iter().for_each(|line| println!("not before a restart: {line}"));
        if reply.changes.is_empty() && reply.needs_restart.is_empty() {
            println!("nothing has changed");
        }
    }
    if reply.refused.is_empty() {
        Ok(())
    } else {
        Err(Failure::Failed(format!("refused: {}", reply.refused.join("; "))))
    }
}

/// Options of `characterise`.
#[derive(Debug, clap::Args)]
pub struct Characterise {
    /// The target.
    #[arg(required_unless_present = "show")]
    target: Option<String>,
    /// How often each is measured.
    #[arg(long, default_value_t = 5)]
    runs: u32,
    /// Also Trs, Trr, Tnd and Tsw, so often: the target is moved to its double, its services are restarted, its machine
    /// is rebooted, switched off and woken, and it is moved back.
    #[arg(long, value_name = "RUNS", num_args = 0..=1, default_value_t = 0, default_missing_value = "1")]
    machine: u32,
    /// Print what was measured until now, and measure nothing.
    #[arg(long, conflicts_with = "target")]
    show: bool,
    /// Don't ask before the double is woken and put to sleep again.
    #[arg(long)]
    yes: bool,
}

pub async fn characterise(global: &Global, options: &Characterise) -> Result<(), Failure> {
    let coordinator = Coordinator::new(global)?;
    let Some(target) = options.target.clone().filter(|_| !options.show) else {
        let request = GetCharacteristicsRequest {};
        let json = coordinator.ask(async |mut client| client.get_characteristics(request).await).await?.json;
        if global.json {
            println!("{json}");
        } else {
            print!("{}", to_text(&serde_json::from_str(&json)?));
        }
        return Ok(());
    };
    if !options.yes {
        agree(&target, options)?;
    }
    let request = CharacteriseRequest { target, runs: options.runs, machine_runs: options.machine };
    let mut progress = coordinator.ask(async |mut client| client.characterise(request).await).await?;
    while let Some(line) = progress.message().await.map_err(|status| coordinator.explain(&status))? {
        if global.json {
            println!("{}", json!({ "text": line.text }));
        } else {
            println!("{}", line.text);
        }
    }
    Ok(())
}

/// Nothing is woken unasked.
fn agree(target: &str, options: &Characterise) -> Result<(), Failure> {
    let runs = options.runs;
    let machine = match options.machine {
        0 => "its clients notice nothing".to_owned(),
        times => format!(
            "then it serves, while {target} is rebooted, switched off and woken {times} times; clients see two planned moves"
        ),
    };
    if !std::io::stdin().is_terminal() {
        return Err(Failure::Failed(format!(
            "the double of {target} would be resumed and suspended {runs} times, {machine}: say --yes to agree"
        )));
    }
    print!("The double of {target} is resumed and suspended {runs} times; {machine}. Go on? [y/N] ");
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    if ["y", "yes"].contains(&answer.trim().to_ascii_lowercase().as_str()) {
        Ok(())
    } else {
        Err(Failure::Failed("nothing was measured".to_owned()))
    }
}

fn to_text(known: &Characteristics) -> String {
    let mut rows = Vec::new();
    for (target, figures) in &known.targets {
        let named = [
            ("Trs", &figures.trs),
            ("Trr", &figures.trr),
            ("Tvs", &figures.tvs),
            ("Tna", &figures.tna),
            ("Tnd", &figures.tnd),
        ];
        let named = named.into_iter().filter_map(|(name, figure)| Some((name.to_owned(), figure.as_ref()?)));
        let services = figures.tsw.iter().map(|(service, figure)| (format!("Tsw {service}"), figure));
        for (name, Measured { median_ms, worst_ms, runs, unix_ms, conditions }) in named.chain(services) {
            let when = i64::try_from(*unix_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
            rows.push([
                target.to_string(),
                name,
                format!("{median_ms} ms"),
                format!("{worst_ms} ms"),
                runs.to_string(),
                when.map_or_else(String::new, |when| when.strftime("%F").to_string()),
                conditions.clone(),
            ]);
        }
    }
    if rows.is_empty() {
        return "nothing was measured yet: kagectl characterise TARGET\n".to_owned();
    }
    table(["TARGET", "FIGURE", "MEDIAN", "WORST", "RUNS", "DATE", "CONDITIONS"], &rows)
}
