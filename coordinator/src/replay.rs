//! `kage-coordinator replay`: the journal's events once more through the same core.

use anyhow::Context as _;
use jiff::{Zoned, tz::TimeZone};
use kage_coordinator_core::{
    config::Cluster,
    replay::{Moment, Replayer, inputs, replay},
};
use std::{fs::File, io::BufReader, path::PathBuf};

/// Options of `replay`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// journal.jsonl; several files in the order they were written, journal.1.jsonl first
    #[arg(required = true, value_name = "JOURNAL")]
    journals: Vec<PathBuf>,
    /// Stop there: a time (22:35:00, "2026-11-22 22:35:00"), seconds of the journal's clock (25045.350), an event's number
    #[arg(long, value_name = "TIME|EVENT-NUMBER")]
    until: Option<String>,
    /// The cluster.toml of that time, for a journal of before starts were recorded in it
    #[arg(long, value_name = "cluster.toml")]
    config: Option<PathBuf>,
}

/// Replays, prints what was reached.
///
/// # Errors
/// The first difference, a line that is none, a file that can't be read.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let zone = TimeZone::system();
    let until = options.until.as_deref().map(|text| Moment::parse(text, &zone, Zoned::now().date()));
    let until = until.transpose().map_err(anyhow::Error::msg).context("--until")?;
    let config = match &options.config {
        None => None,
        Some(file) => {
            let text = std::fs::read_to_string(file).with_context(|| format!("{} can't be read", file.display()))?;
            Some(Cluster::parse_file(file, &text).with_context(|| format!("{} can't be used", file.display()))?)
        }
    };
    let mut replayer = Replayer::new(env!("CARGO_PKG_VERSION")).until(until).config(config);
    for file in &options.journals {
        let name = file.display().to_string();
        let reader = BufReader::new(File::open(file).with_context(|| format!("{name} can't be read"))?);
        if let Err(fault) = replay(inputs(&name, reader), &mut replayer) {
            if replayer.counts().events > 0 {
                print!("{}", replayer.summary(&zone));
            }
            anyhow::bail!(fault);
        }
    }
    print!("{}", replayer.summary(&zone));
    anyhow::ensure!(replayer.counts().events > 0, "nothing was replayed");
    Ok(())
}
