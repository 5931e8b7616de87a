//! `kage-agent`.

use clap::{Parser, Subcommand};
use kage_agent::{
    config::{Config, ConfigError},
    daemon::{self, Refused},
    host::{facts::Facts, os::services::Verb},
    service::Services,
};
use kage_proto::{enrol, token::Token};
use std::{io::IsTerminal, path::PathBuf, process::ExitCode};
use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

/// Usage or configuration (`sysexits.h`).
const EX_USAGE: u8 = 64;
/// The driver and everything else beside it; the renewal thread is its own.
const WORKERS: usize = 2;

/// Kagemusha's agent: holds virtual IPs under a lease, reports load, runs commands on its machine.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Run until SIGTERM. SIGUSR1 says that the machine itself goes down.
    Run {
        /// The configuration; deploy/agent.toml is an example.
        #[arg(long)]
        config: PathBuf,
        /// Without certificates, on loopback only. For trying things out.
        #[arg(long)]
        plaintext_loopback: bool,
    },
    /// Get this machine its certificate with a token from `kagectl pki token`.
    Enrol {
        /// As kagectl printed it.
        token: String,
        /// Directory to be made for certificate and key.
        #[arg(long)]
        pki: PathBuf,
    },
    /// Print what this machine is, as JSON.
    Facts {
        /// The agent's configuration: says besides how its services are handled.
        #[arg(long)]
        config: Option<PathBuf>,
    },
    /// Remove the guard and all VIPs from this machine, before the agent is removed for good.
    Uninstall {
        /// The configuration the agent ran with.
        #[arg(long)]
        config: PathBuf,
    },
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(EX_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    log();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kage-agent: {error:#}");
            let usage = error.is::<ConfigError>() || error.is::<Refused>();
            if usage { ExitCode::from(EX_USAGE) } else { ExitCode::FAILURE }
        }
    }
}

/// RUST_LOG as usual (`debug,h2=info`), without regular expressions on fields: those cost a tenth of the binary.
fn log() {
    let wanted = std::env::var("RUST_LOG").unwrap_or_default();
    let filter: Targets = wanted.parse().unwrap_or_default();
    let filter = if wanted.is_empty() { filter.with_default(LevelFilter::INFO) } else { filter };
    let lines =
        tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    tracing_subscriber::registry().with(lines).with(filter).init();
}

fn run(action: Action) -> anyhow::Result<()> {
    match action {
        Action::Run { config, plaintext_loopback } => {
            runtime()?.block_on(daemon::run(Config::load(&config)?, plaintext_loopback))
        }
        Action::Enrol { token, pki } => {
            let token: Token = token.parse().map_err(|error| Refused(format!("{error}")))?;
            let pki = runtime()?.block_on(enrol::enrol(&token, &pki))?;
            println!("enrolled as {}", pki.identity());
            Ok(())
        }
        Action::Facts { config } => {
            let mut facts = serde_json::to_value(Facts::read())?;
            if let Some(config) = config {
                let services = Services::new(&Config::load(&config)?);
                let ways = services.all().map(|service| {
                    let way = |verb: Verb| (verb.as_str().to_owned(), service.way(verb).into());
                    let ways: serde_json::Map<_, _> = Verb::ALL.into_iter().map(way).collect();
                    (service.name.to_string(), ways.into())
                });
                facts["services"] = ways.collect::<serde_json::Map<_, _>>().into();
            }
            println!("{}", serde_json::to_string_pretty(&facts)?);
            Ok(())
        }
        Action::Uninstall { config } => daemon::uninstall(&Config::load(&config)?),
    }
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(8)
        .thread_stack_size(512 << 10)
        .enable_all()
        .build()
}
