//! The deterministic simulator: `simulate lease --seeds 1..1000`, `simulate run FILE`.

use clap::{Parser, Subcommand};
use kage_tests::sim::{
    campaign, exhaust,
    net::Weather,
    night,
    run::{Options, traced},
    sabotage, scenario,
    search::search,
    world,
};
use std::{path::PathBuf, process::ExitCode, time::Instant};

#[derive(Parser)]
#[command(about = "Runs the production cores under virtual time, in a world that fails by a seed")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The lease protocol: never two owners (docs/safety.md).
    Lease(Lease),
    /// A scenario file (docs/simulation.md): JSON of what came of it on stdout; status 1 if a promise or an expectation
    /// was broken, 64 if the file has faults.
    Run(Run),
    /// Many seeds in every weather, on and on: docs/measurements/sim.json and sim.md. Goes on where it was stopped.
    Campaign(Campaign),
    /// Power saving and supervision together (docs/power-saving.md): a failure during each step of each transition, or a
    /// day's load.
    Night(Night),
}

#[derive(clap::Args)]
struct Night {
    /// Chance.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only pairs with these words; with the trace of the first that is broken.
    #[arg(long, default_value = "")]
    only: String,
    /// Lines of a trace.
    #[arg(long, default_value_t = 200)]
    lines: usize,
    /// Instead: so many hours of a load that rises and falls with the day.
    #[arg(long)]
    day: Option<u64>,
    /// Every pair and a day, written to docs/measurements/night.json and night.md (`tests/campaign night`).
    #[arg(long)]
    measure: bool,
    /// Only write night.md anew.
    #[arg(long)]
    table: bool,
}

#[derive(clap::Args)]
struct Campaign {
    /// Until there are so many.
    #[arg(long, default_value_t = 1e6)]
    host_hours: f64,
    /// Stop after so many seconds, to go on another time.
    #[arg(long, default_value_t = f64::INFINITY)]
    seconds: f64,
    /// Hours of the cluster's life per seed.
    #[arg(long, default_value_t = 20.0)]
    hours: f64,
    /// Mean hours between episodes of trouble.
    #[arg(long, default_value_t = 1.0)]
    gap: f64,
    /// At most so many faults at once.
    #[arg(long, default_value_t = 4)]
    intensity: u32,
    /// Threads.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Only write the table anew.
    #[arg(long)]
    table: bool,
}

#[derive(clap::Args)]
struct Run {
    /// TOML, or JSON by its name.
    #[arg(required_unless_present = "keys")]
    file: Option<PathBuf>,
    /// Instead of the file's.
    #[arg(long)]
    seed: Option<u64>,
    /// First and last seed, such as 1..100: only a summary is printed.
    #[arg(long)]
    seeds: Option<String>,
    /// Break a rule on purpose (words of its name, as in `lease --sabotage all`).
    #[arg(long)]
    sabotage: Option<String>,
    /// Print so many last lines of the trace on stderr.
    #[arg(long, default_value_t = 0)]
    trace: usize,
    /// Print every key of a scenario file, as Markdown.
    #[arg(long)]
    keys: bool,
}

#[derive(clap::Args)]
struct Lease {
    /// First and last seed.
    #[arg(long, default_value = "1..1000")]
    seeds: String,
    /// Hours of the cluster's life per seed; quiet stretches are not stepped through.
    #[arg(long, default_value_t = 20.0)]
    hours: f64,
    /// At most so many faults at once.
    #[arg(long, default_value_t = 4)]
    intensity: u32,
    /// Mean hours between episodes of trouble.
    #[arg(long, default_value_t = 1.0)]
    gap: f64,
    /// Loss in percent, all the time from the first fault of an episode to its repair; instead of now and then.
    #[arg(long)]
    loss: Option<u32>,
    /// Loss in percent that there may be now and then.
    #[arg(long, default_value_t = 100)]
    bursts: u32,
    /// Threads.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Print the trace of this seed.
    #[arg(long)]
    trace: Option<u64>,
    /// Lines of a trace.
    #[arg(long, default_value_t = 80)]
    lines: usize,
    /// Break each rule on purpose (`all`, or words of its name); at most so many seeds as --seeds has.
    #[arg(long)]
    sabotage: Option<String>,
    /// With --sabotage all: write docs/measurements/sabotage.md.
    #[arg(long)]
    table: bool,
    /// Small scope (2 owners, 3 voters, 1 takeover), all orders of events.
    #[arg(long)]
    exhaust: bool,
    /// With --exhaust: the scopes of the tests, which take a minute, instead of those that take several.
    #[arg(long)]
    small: bool,
    /// With --exhaust: those scopes only that have these words in their name.
    #[arg(long)]
    scope: Option<String>,
    /// With --exhaust: give up after so many states.
    #[arg(long)]
    limit: Option<usize>,
    /// Go on after a broken promise.
    #[arg(long)]
    all: bool,
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Lease(lease) => search_leases(&lease),
        Command::Run(run) => run_scenario(&run),
        Command::Campaign(campaign) => run_campaign(&campaign),
        Command::Night(wanted) => run_night(&wanted),
    }
}

fn run_night(wanted: &Night) -> ExitCode {
    let ran = match wanted.day {
        _ if wanted.measure || wanted.table => measured_night(wanted),
        Some(hours) => night::day(wanted.seed, hours).map(|day| {
            println!("{day:#?}");
            true
        }),
        None => night_of_failures(wanted),
    };
    match ran {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(2)
        }
    }
}

fn measured_night(wanted: &Night) -> anyhow::Result<bool> {
    let good = wanted.table || night::report::measure(wanted.seed, &mut |line| eprintln!("{line}"))?;
    println!("{}", night::report::document()?.display());
    Ok(good)
}

/// Every pair of step and victim.
fn night_of_failures(wanted: &Night) -> anyhow::Result<bool> {
    let begun = Instant::now();
    let (mut tried, mut broken) = (0, 0);
    for case in night::cases(night::steps(wanted.seed)?) {
        if !case.to_string().contains(&wanted.only) {
            continue;
        }
        let (it, night) = night::run_case(case, wanted.seed)?;
        tried += 1;
        if let Some(what) = &it.broken {
            broken += 1;
            println!("BROKEN {case} ({}): {what}", it.what);
            if !wanted.only.is_empty() && broken == 1 {
                let lines: Vec<&String> = night.trace().collect();
                lines.iter().skip(lines.len().saturating_sub(wanted.lines)).for_each(|line| println!("{line}"));
            }
        }
    }
    println!("{tried} pairs, {broken} broken, {:.1} s", begun.elapsed().as_secs_f64());
    Ok(broken == 0)
}

fn run_campaign(wanted: &Campaign) -> ExitCode {
    let Campaign { host_hours, seconds, hours, gap, intensity, jobs, table } = *wanted;
    let options = Options { hours, gap, intensity, ..Options::default() };
    let ran = if table {
        Ok(true)
    } else {
        campaign::campaign(host_hours, seconds, &options, jobs, &mut |line| eprintln!("{line}"))
    };
    match ran.and_then(|good| Ok((good, campaign::document()?))) {
        Ok((good, document)) => {
            println!("{}", document.display());
            if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A mistake in the file (sysexits.h: EX_USAGE).
const FAULTY: u8 = 64;

fn run_scenario(run: &Run) -> ExitCode {
    if run.keys {
        print!("{}", scenario::keys::reference());
        return ExitCode::SUCCESS;
    }
    let Some(file) = &run.file else { return ExitCode::from(FAULTY) };
    let scenario = match scenario::load(file) {
        Ok(scenario) => scenario,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(FAULTY);
        }
    };
    let broken = run.sabotage.as_ref().map(|words| sabotage::named(words));
    if broken == Some(None) {
        let names: Vec<&str> = sabotage::names().collect();
        eprintln!("there is no such sabotage; there are: {}", names.join("; "));
        return ExitCode::from(FAULTY);
    }
    if let Some(seeds) = &run.seeds {
        let Some((first, last)) = range(seeds) else {
            eprintln!("--seeds {seeds}: give the first and the last, such as 1..100");
            return ExitCode::from(FAULTY);
        };
        return run_seeds(&scenario, first, last, broken.flatten());
    }
    let seed = run.seed.unwrap_or(scenario.seed);
    match scenario::run(&scenario, seed, broken.flatten(), run.trace) {
        Ok((outcome, trace)) => {
            trace.iter().for_each(|line| eprintln!("{line}"));
            let text = serde_json::to_string_pretty(&outcome).unwrap_or_else(|error| error.to_string());
            println!("{text}");
            outcome.broken().iter().for_each(|line| eprintln!("{line}"));
            if outcome.passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(why) => {
            eprintln!("{}: {why}", file.display());
            ExitCode::FAILURE
        }
    }
}

fn run_seeds(scenario: &scenario::Scenario, first: u64, last: u64, broken: Option<world::Sabotage>) -> ExitCode {
    let mut failed = Vec::new();
    for seed in first..=last {
        let found = match scenario::run(scenario, seed, broken, 0) {
            Ok((outcome, _)) => outcome.broken(),
            Err(why) => vec![why],
        };
        if !found.is_empty() {
            failed.push(serde_json::json!({ "seed": seed, "broken": found }));
        }
    }
    let good = failed.is_empty();
    let seeds = (last + 1).saturating_sub(first);
    println!("{:#}", serde_json::json!({ "scenario": scenario.name, "seeds": seeds, "failed": failed }));
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn range(text: &str) -> Option<(u64, u64)> {
    text.split_once("..").and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)))
}

fn search_leases(lease: &Lease) -> ExitCode {
    let ppm = |percent: u32| percent.min(100) * 10_000;
    let weather = lease.loss.map_or(Weather::Bursts(ppm(lease.bursts)), |percent| Weather::Steady(ppm(percent)));
    let options =
        Options { hours: lease.hours, intensity: lease.intensity, gap: lease.gap, weather, ..Options::default() };
    if lease.exhaust {
        return exhausted(lease);
    }
    if let Some(seed) = lease.trace {
        let (outcome, trace) = traced(seed, &options, lease.lines);
        trace.iter().for_each(|line| println!("{line}"));
        println!("{:?}", outcome.failure);
        return ExitCode::SUCCESS;
    }
    let (first, last) = range(&lease.seeds).unwrap_or((1, 1000));
    if let Some(words) = &lease.sabotage {
        return sabotages(words, &options, last, lease);
    }
    let began = Instant::now();
    let (outcome, seeds) = search(first, last, &options, lease.jobs, !lease.all);
    #[allow(clippy::cast_precision_loss)]
    let (rate, share) =
        (seeds as f64 / began.elapsed().as_secs_f64(), 100.0 * outcome.served as f64 / outcome.wanted.max(1) as f64);
    println!(
        "{seeds} seeds, {rate:.1} seeds/s, {:.0} host-hours ({:.0} stepped through), {} events, {} episodes, {} takeovers, {} lapses, {share:.2} % served in the time stepped through",
        outcome.host_hours,
        outcome.stepped_host_hours,
        outcome.events,
        outcome.episodes,
        outcome.takeovers,
        outcome.lapses
    );
    if let Some((seed, failure)) = outcome.failure {
        println!("FAILED seed {seed}: {failure}");
        let (_, trace) = traced(seed, &options, lease.lines);
        trace.iter().for_each(|line| println!("{line}"));
        println!(
            "reproduce: simulate lease --trace {seed} --hours {} --intensity {} --gap {}{}",
            lease.hours,
            lease.intensity,
            lease.gap,
            lease.loss.map_or_else(|| format!(" --bursts {}", lease.bursts), |loss| format!(" --loss {loss}"))
        );
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn sabotages(words: &str, options: &Options, seeds: u64, lease: &Lease) -> ExitCode {
    let mut rows = Vec::new();
    for name in sabotage::names().filter(|name| words == "all" || name.contains(words)) {
        match sabotage::row(name, options, seeds, lease.jobs) {
            Ok(row) => {
                println!("{row}");
                rows.push(row);
            }
            Err(error) => {
                eprintln!("{error}");
                return ExitCode::FAILURE;
            }
        }
    }
    if lease.table && words == "all" {
        let file = PathBuf::from(sabotage::DOCUMENT);
        if let Err(error) = std::fs::write(&file, sabotage::table(&rows)) {
            eprintln!("{}: {error}: call it in the project's folder", file.display());
            return ExitCode::FAILURE;
        }
        println!("{}", file.display());
    }
    if rows.iter().all(sabotage::Row::caught) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn exhausted(lease: &Lease) -> ExitCode {
    let mut good = true;
    let broken = lease.sabotage.as_ref().and_then(|words| sabotage::named(words));
    if let Some(broken) = broken {
        let Some((scope, states, way)) = exhaust::found(broken) else {
            println!("not found in any small scope");
            return ExitCode::FAILURE;
        };
        println!("{scope}: two owners, after {states} states; the shortest way has {} steps:", way.len());
        way.iter().for_each(|step| println!("  {step}"));
        return ExitCode::SUCCESS;
    }
    let mut scopes = exhaust::scopes(lease.small, None);
    scopes.retain(|scope| lease.scope.as_ref().is_none_or(|words| scope.name.contains(words.as_str())));
    scopes.iter_mut().for_each(|scope| scope.limit = lease.limit.unwrap_or(scope.limit));
    let found = scopes.chunks(lease.jobs.max(1)).flat_map(|scopes| exhaust::all(scopes, lease.jobs));
    for (scope, verdicts, took) in found {
        let verdict = match (&verdicts.broken, verdicts.complete) {
            (Some(_), _) => "TWO OWNERS",
            (None, true) => "never two owners, all explored",
            (None, false) => "never two owners so far; NOT ALL EXPLORED",
        };
        println!(
            "{}: {} states, {} steps, {} deep, {} takeovers, {took:.1?}: {verdict}",
            scope.name, verdicts.states, verdicts.steps, verdicts.depth, verdicts.takeovers
        );
        good &= verdicts.broken.is_none() && (verdicts.complete || lease.small);
        verdicts.broken.iter().flatten().for_each(|step| println!("  {step}"));
    }
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
