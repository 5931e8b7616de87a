//! The deterministic simulator: `simulate lease --seeds 1..1000`.

use clap::{Parser, Subcommand};
use kage_tests::sim::{
    exhaust,
    run::{Options, traced},
    sabotage,
    search::search,
};
use std::{process::ExitCode, time::Instant};

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
    /// Small scope (2 owners, 3 voters, 1 takeover), all orders of events.
    #[arg(long)]
    exhaust: bool,
    /// Go on after a broken promise.
    #[arg(long)]
    all: bool,
}

fn main() -> ExitCode {
    let Command::Lease(lease) = Arguments::parse().command;
    let options = Options { hours: lease.hours, intensity: lease.intensity, gap: lease.gap, ..Options::default() };
    if lease.exhaust {
        return exhausted();
    }
    if let Some(seed) = lease.trace {
        let (outcome, trace) = traced(seed, &options, lease.lines);
        trace.iter().for_each(|line| println!("{line}"));
        println!("{:?}", outcome.failure);
        return ExitCode::SUCCESS;
    }
    let (first, last) = lease
        .seeds
        .split_once("..")
        .and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)))
        .unwrap_or((1, 1000));
    if let Some(words) = &lease.sabotage {
        return sabotages(words, &options, last, lease.jobs);
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
            "reproduce: simulate lease --trace {seed} --hours {} --intensity {} --gap {}",
            lease.hours, lease.intensity, lease.gap
        );
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn sabotages(words: &str, options: &Options, seeds: u64, jobs: usize) -> ExitCode {
    let mut all = true;
    for (name, broken) in sabotage::ALL.into_iter().filter(|(name, _)| words == "all" || name.contains(words)) {
        match sabotage::caught(broken, options, seeds, jobs) {
            Some((seed, failure)) => println!("{name:<52} seed {seed:>5}  {failure}"),
            None => {
                all = false;
                println!("{name:<52} NOT CAUGHT in {seeds} seeds");
            }
        }
    }
    if all { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn exhausted() -> ExitCode {
    let mut good = true;
    for (scope, verdicts, took) in exhaust::both(false, None) {
        let what = if scope.voters { "voters" } else { "coordinator" };
        let verdict = match (&verdicts.broken, verdicts.complete) {
            (Some(_), _) => "TWO OWNERS",
            (None, true) => "never two owners, all explored",
            (None, false) => "never two owners so far; NOT ALL EXPLORED",
        };
        println!(
            "{what}: {} states, {} steps, {} takeovers, {took:.1?}: {verdict}",
            verdicts.states, verdicts.steps, verdicts.takeovers
        );
        good &= verdicts.broken.is_none() && verdicts.complete;
        verdicts.broken.iter().flatten().for_each(|step| println!("  {step}"));
    }
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
