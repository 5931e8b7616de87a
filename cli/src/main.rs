//! `kagectl`: the operator's tool of Kagemusha.

mod check;
mod connect;
mod events;
mod facts;
mod pki;
mod probe;
mod status;
mod table;

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
#[derive(Debug, Args)]
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
        #[arg(long, short)]
        follow: bool,
        /// Only of this target.
        #[arg(long, default_value = "")]
        target: String,
        /// Only those with a higher number.
        #[arg(long, default_value_t = 0, value_name = "NUMBER")]
        after: u64,
        /// text or json.
        #[arg(long, default_value = "text")]
        format: events::Format,
    },
    /// Predicted client outages, and what is not protected: of the running configuration, or of a file.
    Check {
        /// A cluster.toml to check without a coordinator.
        file: Option<PathBuf>,
    },
    /// What an agent's machine is, and how it restarts services, reboots and sleeps. Asks the agent itself.
    Facts {
        /// The agent's name.
        agent: String,
        /// Where it listens, if not where the coordinator's configuration says: then the coordinator is not asked.
        #[arg(long, value_name = "HOST:PORT")]
        address: Option<String>,
    },
    /// Move a target's virtual IPs to its backup server, as planned.
    Failover(Move),
    /// Move them back.
    Failback(Move),
    /// Run a target's configured probes now: OK, ERROR (a wrong reply) or NG (no reply), and each step's time.
    Probe(probe::Options),
    /// Agents that consent to leases while the coordinator is away.
    Voters,
    /// Certificates: make an authority, issue, show; tokens for machines that enrol.
    #[command(subcommand)]
    Pki(pki::Command),
}

/// A planned move.
#[derive(Debug, Args)]
pub struct Move {
    /// The target.
    target: String,
    /// Even if the destination's service does not answer its probe.
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
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into()))
        .without_time()
        .init();
    let outcome = match &cli.command {
        Command::Status => status::status(&cli.global).await,
        Command::Facts { agent, address } => facts::facts(&cli.global, agent, address.as_deref()).await,
        Command::Voters => status::voters(&cli.global).await,
        Command::Events { follow, target, after, format } => {
            let format = if cli.global.json { events::Format::Json } else { *format };
            events::watch(&cli.global, *after, *follow, target, format).await
        }
        Command::Check { file } => check::check(&cli.global, file.as_deref()).await,
        Command::Failover(planned) => events::failover(&cli.global, planned).await,
        Command::Failback(planned) => events::failback(&cli.global, planned).await,
        Command::Probe(options) => probe::run(&cli.global, options).await,
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
