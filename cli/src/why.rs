//! `kagectl why`: what was done about a target, or not, and for what reason.

use crate::{Failure, Global, connect::Coordinator};
use jiff::{Timestamp, Zoned, tz::TimeZone};
use kage_coordinator_core::{
    config::Cluster,
    replay::{Moment, inputs},
    why::{Explanation, Question, explain},
};
use kage_proto::coordinator::v1::ExplainRequest;
use std::{
    fs::File,
    io::{self, BufReader},
    path::{Path, PathBuf},
};

/// What is to be explained.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// A target, one of its virtual IPs, or a service that only one target has.
    name: String,
    /// What was going on then: a time (22:35:00, "2026-11-22 22:35:00"), or an event's number. Without it, the last
    /// that happened.
    #[arg(long, value_name = "TIME|NUMBER")]
    at: Option<String>,
    /// From a coordinator's journal.jsonl instead of asking one; several files in the order they were written.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    journal: Vec<PathBuf>,
    /// The cluster.toml of that time, for a journal of before starts were recorded in it.
    #[arg(long, value_name = "FILE", requires = "journal")]
    config: Option<PathBuf>,
}

pub async fn why(global: &Global, options: &Options) -> Result<(), Failure> {
    let zone = TimeZone::system();
    let at = options.at.as_deref().map(|text| Moment::parse(text, &zone, Zoned::now().date()));
    let at = at.transpose().map_err(Failure::Failed)?;
    let explanation = if options.journal.is_empty() {
        ask(global, &options.name, at).await?
    } else {
        let question = Question { name: options.name.clone(), at };
        offline(&options.journal, options.config.as_deref(), &question)?
    };
    if global.json {
        println!("{}", serde_json::to_string(&explanation)?);
    } else {
        print!("{}", explanation.to_text(&zone));
    }
    Ok(())
}

async fn ask(global: &Global, name: &str, at: Option<Moment>) -> Result<Explanation, Failure> {
    let request = ExplainRequest { name: name.to_owned(), at: at.map_or_else(String::new, in_utc) };
    let reply = Coordinator::new(global)?.ask(async |mut client| client.explain(request).await).await?;
    serde_json::from_str(&reply.explanation_json).map_err(|error| {
        Failure::Failed(format!(
            "the explanation can't be read ({error}): is the coordinator of another version than this kagectl?"
        ))
    })
}

/// As every coordinator reads it, wherever it is.
fn in_utc(at: Moment) -> String {
    match at {
        Moment::Event(number) => number.to_string(),
        Moment::Clock(time) => format!("{}.{:09}", time.as_nanos() / 1_000_000_000, time.as_nanos() % 1_000_000_000),
        Moment::Wall(unix_ms) => {
            let at = i64::try_from(unix_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
            at.unwrap_or(Timestamp::UNIX_EPOCH).to_string()
        }
    }
}

fn offline(journals: &[PathBuf], config: Option<&Path>, question: &Question) -> Result<Explanation, Failure> {
    let config = match config {
        None => None,
        Some(file) => {
            let text = std::fs::read_to_string(file)
                .map_err(|error| Failure::Failed(format!("can't read {}: {error}", file.display())))?;
            let cluster = Cluster::parse_file(file, &text)
                .map_err(|error| Failure::Configuration(format!("{} can't be used:\n{error}", file.display())))?;
            Some(cluster)
        }
    };
    let open = || {
        let mut lines = Vec::new();
        for journal in journals {
            let name = journal.display().to_string();
            let file = File::open(journal).map_err(|error| io::Error::other(format!("can't read {name}: {error}")))?;
            lines.push(inputs(&name, BufReader::new(file)));
        }
        Ok::<_, io::Error>(lines.into_iter().flatten())
    };
    explain(open, question, env!("CARGO_PKG_VERSION"), config.as_ref()).map_err(Failure::Failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kage_types::Time;

    #[test]
    fn a_moment_means_the_same_to_the_coordinator() {
        for at in
            [Moment::Event(7), Moment::Clock(Time::from_nanos(25_045_350_825_538)), Moment::Wall(1_795_386_961_665)]
        {
            let read = Moment::parse(&in_utc(at), &TimeZone::UTC, jiff::civil::date(1970, 1, 1));
            assert_eq!(read, Ok(at), "{}", in_utc(at));
        }
    }
}
