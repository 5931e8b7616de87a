//! `kage-coordinator replay`: the journal's events once more through the same core.

use anyhow::Context as _;
use jiff::{Zoned, tz::TimeZone};
use kage_coordinator::saving::journal::{Saver, Story, is_journal, summary};
use kage_coordinator_core::{
    config::Cluster,
    journal::Core,
    replay::{Moment, Nobody, Replay, Replayer, Watch, inputs, replay_watched},
};
use std::{
    fs::File,
    io::{BufReader, Write as _},
    path::{Path, PathBuf},
};

/// Options of `replay`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// journal.jsonl, or journal-pss.jsonl of power saving; several files in the order they were written,
    /// journal.1.jsonl first
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
    let first = options.journals.first().context("no journal is given")?;
    if is_journal(open(first)?) {
        let mut replayer = Replay::<Saver>::new(env!("CARGO_PKG_VERSION")).until(until);
        // Whoever reads it may have had enough.
        let mut say = |line: String| drop(writeln!(std::io::stdout(), "{line}"));
        let mut story = Story::new(&zone, &mut say);
        return all(&options.journals, &mut replayer, &mut story, |replayer| format!("\n{}", summary(replayer, &zone)));
    }
    let config = match &options.config {
        None => None,
        Some(file) => {
            let text = std::fs::read_to_string(file).with_context(|| format!("{} can't be read", file.display()))?;
            Some(Cluster::parse_file(file, &text).with_context(|| format!("{} can't be used", file.display()))?)
        }
    };
    let mut replayer = Replayer::new(env!("CARGO_PKG_VERSION")).until(until).config(config);
    all(&options.journals, &mut replayer, &mut Nobody, |replayer| replayer.summary(&zone))
}

fn open(file: &Path) -> anyhow::Result<BufReader<File>> {
    Ok(BufReader::new(File::open(file).with_context(|| format!("{} can't be read", file.display()))?))
}

fn all<C: Core>(
    files: &[PathBuf],
    replayer: &mut Replay<C>,
    watch: &mut dyn Watch<C>,
    summary: impl Fn(&Replay<C>) -> String,
) -> anyhow::Result<()> {
    for file in files {
        if let Err(fault) = replay_watched(inputs(&file.display().to_string(), open(file)?), replayer, watch) {
            if replayer.counts().events > 0 {
                print!("{}", summary(replayer));
            }
            anyhow::bail!(fault);
        }
    }
    print!("{}", summary(replayer));
    anyhow::ensure!(replayer.counts().events > 0, "nothing was replayed");
    Ok(())
}
