//! `kage-sif`: see `docs/architecture.md` and `kage-sif --help`.

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser, error::ErrorKind};
use kage_proto::{
    roles::Role,
    server::{Config as ServerConfig, Security, Server},
    sif::v1::sif_server::SifServer,
    tls::Pki,
};
use kage_sif::{
    backup,
    config::{Config, ConfigError},
    driver, service,
    store::Store,
};
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

/// Owner of the cluster's ledger: terms, epochs and recoveries under way.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Cli {
    #[command(flatten)]
    serve: Option<Arguments>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Begin a ledger with a copy of `kagectl ledger backup`, where there is none: epochs and terms go on above those
    /// of the copy once a majority of the voters has reported, orders stand (docs/operations.md)
    Restore {
        /// The copy
        file: PathBuf,
        /// Directory of the ledger, as kage-sif will be given it
        #[arg(long, value_name = "DIR")]
        state: PathBuf,
    },
}

#[derive(clap::Args)]
struct Arguments {
    /// The cluster's configuration
    #[arg(long, value_name = "cluster.toml")]
    config: PathBuf,
    /// Directory of the ledger, on a local disk; made if missing
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// Directory with ca.pem, cert.pem and key.pem of role `sif`
    #[arg(long, value_name = "DIR", required_unless_present = "plaintext_loopback")]
    pki: Option<PathBuf>,
    /// Listen here instead of at [sif] listen
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<SocketAddr>,
    /// No certificates, on a loopback address only: whoever is on this machine is an operator, so that the ledger can be read but not written
    #[arg(long, conflicts_with = "pki")]
    plaintext_loopback: bool,
}

/// EX_USAGE: the configuration is wrong, and starting again won't help.
const EXIT_CONFIG: u8 = 64;

/// The last commit gets this long at a stop; a disk that hangs for longer keeps what it acknowledged anyway.
const LAST_COMMIT: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let arguments = match (cli.command, cli.serve) {
        (Some(Command::Restore { file, state }), _) => return restore(&file, &state),
        (None, Some(arguments)) => arguments,
        (None, None) => {
            Cli::command().error(ErrorKind::MissingRequiredArgument, "--config and --state are needed").exit()
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let result =
        runtime.context("kage-sif can't start its threads").and_then(|runtime| runtime.block_on(run(arguments)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("kage-sif: {error:#}");
            if error.is::<ConfigError>() { ExitCode::from(EXIT_CONFIG) } else { ExitCode::FAILURE }
        }
    }
}

fn restore(file: &Path, state: &Path) -> ExitCode {
    let restored = match backup::restore(file, state) {
        Ok(restored) => restored,
        Err(error) => {
            let error = anyhow::Error::from(error);
            tracing::error!("kage-sif: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    println!(
        "{} begins with {} (made {} s after 1970).",
        state.display(),
        file.display(),
        restored.made_unix_ms / 1000
    );
    println!("{} standing orders are kept.", restored.orders);
    for (vip, epoch, owner) in &restored.owners {
        println!("{vip} was {owner}'s at epoch {epoch}; whose it is now, the coordinator decides anew.");
    }
    println!("Next: start kage-sif. It gives out nothing before a majority of the voters has reported.");
    ExitCode::SUCCESS
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM can't be handled")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT can't be handled")?;
    let config = Config::load(&arguments.config)?;
    let security = match &arguments.pki {
        Some(directory) => {
            let pki = Pki::load(directory)?;
            let role = pki.identity().role;
            anyhow::ensure!(
                role == Role::Sif,
                "{} holds a certificate of role {role}, which no client takes for SIF: issue one of role sif with `kagectl pki issue`",
                directory.display()
            );
            tokio::spawn(pki.clone().follow());
            Security::Tls(pki)
        }
        None => {
            tracing::warn!("no certificates: whoever is on this machine may read the ledger, and nobody may write it");
            Security::PlaintextLoopback
        }
    };
    let state = arguments.state;
    let (store, contents) = tokio::task::spawn_blocking(move || Store::open(&state)).await??;
    tracing::info!(
        revision = contents.ledger.revision.0,
        term = contents.ledger.term.0,
        established = contents.ledger.is_established(),
        vips = contents.ledger.vips.len(),
        troubles = contents.ledger.troubles.len(),
        "ledger"
    );
    let (handle, mut driver) = driver::start(store, contents, config.electorate)?;
    let (stopping, stop) = watch::channel(false);
    let pki = if let Security::Tls(pki) = &security { Some(pki.clone()) } else { None };
    let service = service::Service::new(handle, config.term, pki, stop.clone());
    let listen = arguments.listen.unwrap_or(config.listen);
    let server = Server::bind(&ServerConfig::new(listen, security)).await?;
    tracing::info!(address = %server.address(), term_ms = config.term.as_millis(), "listening");
    let server = server.add(SifServer::new(service));
    notify(sd_notify::NotifyState::Ready);
    let mut stopped = stop;
    let serving = server.run(async move {
        // Its sender lives as long as this function.
        let _ = stopped.wait_for(|stop| *stop).await;
    });
    let signalled = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        notify(sd_notify::NotifyState::Stopping);
        stopping.send_replace(true);
        std::future::pending::<()>().await;
    };
    tokio::select! {
        served = serving => served?,
        () = signalled => {}
        ended = &mut driver => ended??,
    }
    // The service and with it the last handle is gone now.
    if driver.is_finished() {
        return Ok(());
    }
    match tokio::time::timeout(LAST_COMMIT, driver).await {
        Ok(ended) => ended??,
        Err(_) => {
            tracing::warn!("the disk hangs: stopped without waiting for the last commit, which nobody was told of")
        }
    }
    Ok(())
}

fn notify(state: sd_notify::NotifyState) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "systemd can't be told");
    }
}
