//! `kage-coordinator`: see `docs/architecture.md` and `kage-coordinator --help`.

mod agents;
mod arranged;
mod certificates;
mod characterise;
mod clock;
mod driver;
mod enrol;
mod events;
#[cfg(test)]
mod fuzz_tests;
mod journal;
mod lease;
mod operator;
mod orders;
mod pss;
mod reload;
mod replay;
mod sif;
mod tables;
mod why;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand, ValueEnum};
use kage_coordinator_core::config::{Cluster, ConfigError};
use kage_proto::{
    coordinator::v1::{
        coordinator_server::CoordinatorServer, enrolment_server::EnrolmentServer, lease_server::LeaseServer,
        power_saving_server::PowerSavingServer,
    },
    limits::{MAX_ENROLMENT_BYTES, MAX_OPERATOR_BYTES},
    roles::Role,
    server::{Config as ServerConfig, Security, Server},
    tls::Pki,
};
use std::{net::SocketAddr, path::PathBuf, process::ExitCode};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Supervises targets, grants leases, moves virtual IPs.
#[derive(Parser)]
#[command(version, about, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Cli {
    #[command(flatten)]
    arguments: Option<Arguments>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Step the same core with a journal's events: it must do the same and reach the same state (docs/replay.md).
    /// Status 1: the first difference is printed
    Replay(replay::Options),
}

/// Supervises targets, grants leases, moves virtual IPs.
#[derive(Args)]
struct Arguments {
    /// The cluster's configuration
    #[arg(long, value_name = "cluster.toml")]
    config: PathBuf,
    /// Directory of journal and events; made if missing
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// Directory with ca.pem, cert.pem and key.pem of role `coordinator`
    #[arg(long, value_name = "DIR")]
    pki: PathBuf,
    /// Directory of the certificate authority (ca.pem, key.pem), for enrolment; without it machines can't enrol by token
    #[arg(long, value_name = "DIR")]
    authority: Option<PathBuf>,
    /// Listen here instead of at [coordinator] listen
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<SocketAddr>,
    /// What this process controls: msbs (supervision and takeover), pss (power saving, where the configuration has a
    /// [[group]]), or both
    #[arg(long, value_delimiter = ',', default_value = "msbs,pss", value_name = "LIST")]
    controllers: Vec<Controller>,
    /// Are leases granted here? elsewhere: by another kage-coordinator; only for --controllers pss, and served is only
    /// `kagectl pss`, if --listen is given
    #[arg(long, default_value = "here")]
    leases: Leases,
}

/// A controller of the thesis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Controller {
    /// Multiple server backup system: DBSS for each target.
    Msbs,
    /// Power saving.
    Pss,
}

/// Where leases are granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Leases {
    /// This process acquires the term.
    Here,
    /// Another one does.
    Elsewhere,
}

/// EX_USAGE: the configuration is wrong, and starting again won't help.
const EXIT_CONFIG: u8 = 64;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let result = match cli {
        Cli { command: Some(Command::Replay(options)), .. } => replay::run(&options),
        Cli { arguments: Some(arguments), .. } => serve(arguments),
        Cli { arguments: None, command: None } => Err(anyhow::anyhow!("give --config, --state and --pki: --help")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if let Some(faults) = error.downcast_ref::<ConfigError>() {
                tracing::error!("kage-coordinator: {error}");
                faults.lines().iter().for_each(|fault| tracing::error!("{fault}"));
                return ExitCode::from(EXIT_CONFIG);
            }
            tracing::error!("kage-coordinator: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(arguments: Arguments) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.context("kage-coordinator can't start its threads")?.block_on(run(arguments))
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM can't be handled")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT can't be handled")?;
    let text = std::fs::read_to_string(&arguments.config)
        .with_context(|| format!("{} can't be read", arguments.config.display()))?;
    let mut cluster = Cluster::parse_file(&arguments.config, &text)
        .with_context(|| format!("{} is not applied", arguments.config.display()))?;
    cluster.supervise = arguments.controllers.contains(&Controller::Msbs);
    anyhow::ensure!(
        arguments.leases == Leases::Here || !cluster.supervise,
        "--leases elsewhere is for power saving alone: add --controllers pss, or leave it out"
    );
    let pki = Pki::load(&arguments.pki)?;
    let role = pki.identity().role;
    anyhow::ensure!(
        role == Role::Coordinator,
        "{} holds a certificate of role {role}, which no agent takes for the coordinator: issue one of role coordinator with `kagectl pki issue`",
        arguments.pki.display()
    );
    std::fs::create_dir_all(&arguments.state)
        .with_context(|| format!("{} can't be made", arguments.state.display()))?;
    if arguments.leases == Leases::Elsewhere {
        return alone(arguments, cluster, pki, terminate, interrupt).await;
    }
    let enrolment = enrol::Enrolment::load(arguments.authority.as_deref(), &arguments.state, &cluster)?;
    let listen = arguments.listen.unwrap_or(cluster.coordinator);
    let events = events::Events::load(&arguments.state)?;
    let journal = journal::Journal::open(&arguments.state, journal::SUPERVISION)?;
    let why = why::Why::new(journal.reader());

    let characteristics = characterise::Store::load(&arguments.state)?;
    let (targets, profile) = (cluster.targets.len(), cluster.profile.as_str());

    tokio::spawn(pki.clone().follow());
    let certificates = certificates::Certificates::new(pki.clone());
    let saving = match arguments.controllers.contains(&Controller::Pss) {
        true => pss::start(&cluster, &pki, &events, &arguments.state)?,
        false => None,
    };
    let (handle, agents) = driver::spawn(driver::Setup {
        cluster,
        pki: pki.clone(),
        events: events.clone(),
        journal,
        certificates: certificates.clone(),
        saving: saving.clone(),
    })?;
    let reloader = reload::Reloader::new(handle.clone(), arguments.config);
    let operator = operator::Operator {
        handle: handle.clone(),
        events,
        enrolment: enrolment.clone(),
        reloader: reloader.clone(),
        characteristics,
        agents,
        certificates: certificates.clone(),
        why,
    };

    let enrolment = enrol::Service { enrolment, handle: handle.clone() };
    let server = Server::bind(&ServerConfig::new(listen, Security::Tls(pki)))
        .await?
        .add(LeaseServer::new(lease::LeaseService::new(handle, certificates)))
        .add(PowerSavingServer::new(pss::Service(saving)))
        .add(CoordinatorServer::new(operator).max_decoding_message_size(MAX_OPERATOR_BYTES))
        .add(EnrolmentServer::new(enrolment).max_decoding_message_size(MAX_ENROLMENT_BYTES));
    tracing::info!(address = %server.address(), targets, profile, "kage-coordinator serves");
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::debug!(%error, "systemd was not told");
    }
    let mut hangup = signal(SignalKind::hangup()).context("SIGHUP can't be handled")?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            reloader.on_signal().await;
        }
    });
    server
        .run(async move {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
            tracing::info!("kage-coordinator stops: leases go on by the voters' consents");
        })
        .await?;
    Ok(())
}

/// Power saving alone: no term, no leases.
async fn alone(
    arguments: Arguments,
    cluster: Cluster,
    pki: Pki,
    mut terminate: Signal,
    mut interrupt: Signal,
) -> anyhow::Result<()> {
    let events = events::Events::load(&arguments.state)?;
    tokio::spawn(pki.clone().follow());
    let saving = pss::start(&cluster, &pki, &events, &arguments.state)?;
    let saving = saving.with_context(|| {
        format!("{} has no [[group]]: there is nothing for power saving to do", arguments.config.display())
    })?;
    let mut hangup = signal(SignalKind::hangup()).context("SIGHUP can't be handled")?;
    let (file, told) = (arguments.config, saving.clone());
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            pss::reload(&file, &told).await;
        }
    });
    let stop = async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        tracing::info!("power saving stops: a transition under way is gone on with at the next start");
    };
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::debug!(%error, "systemd was not told");
    }
    let Some(listen) = arguments.listen else {
        tracing::info!("power saving runs alone");
        stop.await;
        return Ok(());
    };
    let server = Server::bind(&ServerConfig::new(listen, Security::Tls(pki)))
        .await?
        .add(PowerSavingServer::new(pss::Service(Some(saving))));
    tracing::info!(address = %server.address(), "power saving runs alone");
    Ok(server.run(stop).await?)
}
