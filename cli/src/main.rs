//! `kagectl`: the operator's tool of Kagemusha.

mod check;
mod configure;
mod connect;
mod events;
mod facts;
#[cfg(test)]
mod fuzz_tests;
mod ledger;
mod orders;
mod pki;
mod probe;
mod saving;
mod status;
mod style;
mod table;
mod tables;
mod thesis;
mod watch;
mod why;

use clap::{Args, Parser, Subcommand};
use std::{path::PathBuf, process::ExitCode, time::Duration};

/// See and steer a Kagemusha cluster.
#[derive(Debug, Parser)]
#[command(
    name = "kagectl",
    version,
    max_term_width = 100,
    after_help = "Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 can't connect, 64 a configuration with faults."
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// Address of the coordinator.
    #[arg(long, global = true, env = "KAGE_COORDINATOR", default_value = "127.0.0.1:7700", value_name = "HOST:PORT")]
    coordinator: String,
    /// Directory of your certificate: ca.pem, cert.pem, key.pem.
    #[arg(long, global = true, env = "KAGE_PKI", default_value = "/etc/kagemusha/operator", value_name = "DIR")]
    pki: PathBuf,
    /// Use no certificate: for a coordinator on this machine that was started without.
    #[arg(long, global = true)]
    plaintext: bool,
    /// Print JSON, one object a line.
    #[arg(long, global = true)]
    json: bool,
    /// Give up after this many seconds without an answer.
    #[arg(long, global = true, default_value = "10", value_name = "SECONDS", value_parser = seconds)]
    timeout: Duration,
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= 86_400.0 => Ok(Duration::from_secs_f64(seconds)),
        Ok(_) | Err(_) => Err("give seconds, above 0 and at most 86400".to_owned()),
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// How the cluster is: targets, who holds which virtual IP, agents, alerts.
    Status,
    /// What happened, from the coordinator's journal.
    Events {
        /// Go on with what happens, until interrupted.
        #[arg(long, short, conflicts_with = "file")]
        follow: bool,
        /// Only of this target.
        #[arg(long, default_value = "")]
        target: String,
        /// Only those with a higher number.
        #[arg(long, default_value_t = 0, value_name = "NUMBER")]
        after: u64,
        /// text, json, or thesis: the DBSS log of the thesis (F4), a log for each target.
        #[arg(long, default_value = "text")]
        format: events::Format,
        /// From a coordinator's events.jsonl instead of asking one.
        #[arg(long, value_name = "PATH")]
        file: Option<PathBuf>,
    },
    /// Predicted client outages, and what is not protected: of the running configuration, or of a file.
    Check {
        /// A cluster.toml to check without a coordinator.
        file: Option<PathBuf>,
        /// What was measured, as `kagectl --json characterise --show` prints it: for FILE.
        #[arg(long, requires = "file", value_name = "FILE")]
        characteristics: Option<PathBuf>,
    },
    /// What an agent's machine is, and how it restarts services, reboots and sleeps. Asks the agent itself.
    Facts {
        /// The agent's name.
        agent: String,
        /// Where it listens, if not where the coordinator's configuration says: then the coordinator is not asked.
        #[arg(long, value_name = "HOST:PORT")]
        address: Option<String>,
    },
    /// Have the coordinator read its configuration again. A bad file changes nothing.
    Reload(configure::Reload),
    /// Measure what predictions are made from: Tna (a ping), Tvs (the double resumed, without its virtual IP).
    Characterise(configure::Characterise),
    /// Move a target's virtual IPs to its backup server, as planned.
    Failover(Move),
    /// Move them back.
    Failback(Move),
    /// Run a target's configured probes now: OK, ERROR (a wrong reply) or NG (no reply), and each step's time.
    Probe(probe::Options),
    /// Leave a target or a host alone while it is worked on.
    #[command(subcommand)]
    Maintenance(orders::Maintenance),
    /// Machines that come and go, to which nothing is brought while there is another place: `status` lists them.
    #[command(subcommand)]
    Quarantine(orders::Quarantine),
    /// Leave everything alone: no restart, reboot, takeover, wake or fail-back.
    Disarm(orders::Terms),
    /// Act again after `disarm`.
    Arm,
    /// After changes by hand: take a target as it is now for the accepted state.
    Adopt {
        /// The target.
        target: String,
    },
    /// The status, kept up to date, with events above it as they come. Plain lines where there is no terminal.
    Watch,
    /// Why a target was taken over, or was not: every observation, the rule, the lease's arithmetic, milliseconds per
    /// stage. From the coordinator's journal, also without a coordinator.
    Why(why::Options),
    /// Power saving: load, class and condition of each service group, power of each host, why nothing more is done.
    Pss,
    /// Agents that consent to leases while the coordinator is away.
    Voters,
    /// Copies of SIF's ledger, for the day its disk is lost.
    #[command(subcommand)]
    Ledger(ledger::Command),
    /// The shared tables of SIF: who is where, what sleeps, which condition each group is in, and what is under way.
    Tables(tables::Options),
    /// Certificates: make an authority, issue, show; tokens for machines that enrol.
    #[command(subcommand)]
    Pki(pki::Command),
}

/// A planned move.
#[derive(Debug, Args)]
pub struct Move {
    /// The target.
    target: String,
    /// Even if the destination's service does not answer its probe, or its machine is in quarantine.
    #[arg(long)]
    force: bool,
}

/// How a command ended when not well.
#[derive(Debug)]
pub enum Failure {
    /// Refused or failed: 1.
    Failed(String),
    /// Can't connect: 3.
    Unreachable(String),
    /// A configuration that is not applied: 64, as the daemons' own.
    Configuration(String),
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        Failure::Failed(text)
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    // A reader that has seen enough (`| head`) ends this program quietly, as it ends others.
    // SAFETY: no other thread handles signals yet, and the default disposition needs no handler.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into()))
        .without_time()
        .init();
    let outcome = match &cli.command {
        Command::Status => status::status(&cli.global).await,
        Command::Facts { agent, address } => facts::facts(&cli.global, agent, address.as_deref()).await,
        Command::Pss => saving::saving(&cli.global).await,
        Command::Voters => status::voters(&cli.global).await,
        Command::Events { follow, target, after, format, file } => {
            let format = if cli.global.json { events::Format::Json } else { *format };
            let wanted = events::Wanted { after: *after, follow: *follow, target, format };
            match file {
                Some(file) => events::replay(file, &wanted),
                None => events::watch(&cli.global, &wanted).await,
            }
        }
        Command::Maintenance(orders::Maintenance::On { name, terms }) => orders::put(&cli.global, name, terms).await,
        Command::Maintenance(orders::Maintenance::Off { name }) => orders::clear(&cli.global, name).await,
        Command::Quarantine(orders::Quarantine::Off { agent }) => orders::end_quarantine(&cli.global, agent).await,
        Command::Disarm(terms) => orders::put(&cli.global, "all", terms).await,
        Command::Arm => orders::clear(&cli.global, "all").await,
        Command::Adopt { target } => orders::adopt(&cli.global, target).await,
        Command::Watch => watch::watch(&cli.global).await,
        Command::Why(options) => why::why(&cli.global, options).await,
        Command::Check { file, characteristics } => {
            check::check(&cli.global, file.as_deref(), characteristics.as_deref()).await
        }
        Command::Reload(options) => configure::reload(&cli.global, options).await,
        Command::Characterise(options) => configure::characterise(&cli.global, options).await,
        Command::Failover(planned) => events::failover(&cli.global, planned).await,
        Command::Failback(planned) => events::failback(&cli.global, planned).await,
        Command::Probe(options) => probe::run(&cli.global, options).await,
        Command::Ledger(command) => ledger::run(command, &cli.global).await,
        Command::Tables(options) => tables::run(options, &cli.global).await,
        Command::Pki(command) => pki::run(command, &cli.global).await,
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Failed(text)) => {
            eprintln!("kagectl: {text}");
            ExitCode::from(1)
        }
        Err(Failure::Unreachable(text)) => {
            eprintln!("kagectl: {text}");
            ExitCode::from(3)
        }
        Err(Failure::Configuration(text)) => {
            eprintln!("kagectl: {text}");
            ExitCode::from(64)
        }
    }
}
