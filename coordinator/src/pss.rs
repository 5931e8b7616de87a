//! Power saving (PSS): the shell that drives `kage-pss-core`. It has its own way to SIF and to the agents, and knows of
//! no other controller: it may be a process of its own.

mod act;
mod driver;
mod notes;
mod signal;
#[cfg(test)]
#[path = "saving/tests.rs"]
mod tests;
mod view;
mod watch;
mod wire;

pub use driver::{Input, Sender};

use crate::{
    events::Events,
    journal::{self, Journal},
};
use kage_coordinator::saving::{inventory, policy};
use kage_coordinator_core::config::Cluster;
use kage_proto::{
    channel::{Credentials, Options, channel},
    coordinator::v1::{GetPowerSavingRequest, PowerSavingStatus, power_saving_server},
    roles::Role,
    tls::{Expected, Pki},
};
use std::{path::Path, time::Duration};
use tokio::sync::oneshot;
use tonic::{Request, Response, Status};

/// An answer of the driver's takes microseconds.
const ANSWER: Duration = Duration::from_secs(5);

/// Start it, if the configuration has groups.
///
/// # Errors
/// Figures that can't be used; an address or certificate that can't be used; a journal that can't be written.
pub fn start(cluster: &Cluster, pki: &Pki, events: &Events, state: &Path) -> anyhow::Result<Option<Sender>> {
    if cluster.groups.is_empty() {
        return Ok(None);
    }
    let faults: Vec<String> = policy::policy(cluster).faults().iter().map(ToString::to_string).collect();
    anyhow::ensure!(faults.is_empty(), "power saving's figures can't be used: {}", faults.join("; "));
    let options = Options::noticing_within(Duration::from_secs(2));
    let credentials = Credentials::Tls(pki.clone());
    let sif = channel(&cluster.sif.to_string(), &credentials, Expected::role(Role::Sif), &options)?;
    let sender = driver::spawn(driver::Setup {
        cluster: cluster.clone(),
        pki: pki.clone(),
        events: events.clone(),
        sif,
        // No process before or beside this one has it.
        by: format!("{}-{}-{}", pki.identity().name, std::process::id(), crate::clock::unix_ms()),
        file: state.join("hosts.json"),
        journal: Journal::open(state, journal::SAVING)?,
    })?;
    Ok(Some(sender))
}

/// On SIGHUP, where power saving runs alone: a file with faults changes nothing.
pub async fn reload(file: &Path, to: &Sender) {
    let read = tokio::fs::read_to_string(file).await.map_err(anyhow::Error::from);
    match read.and_then(|text| Ok(Cluster::parse_file(file, &text)?)) {
        Ok(cluster) => {
            to.configure(&cluster);
            tracing::info!(file = %file.display(), "read again and applied");
        }
        Err(error) => format!("nothing was changed: {error}").lines().for_each(|line| tracing::error!("{line}")),
    }
}

/// `kagemusha.coordinator.v1.PowerSaving`.
pub struct Service(pub Option<Sender>);

#[tonic::async_trait]
impl power_saving_server::PowerSaving for Service {
    async fn get_power_saving(&self, _: Request<GetPowerSavingRequest>) -> Result<Response<PowerSavingStatus>, Status> {
        let off = "there is no power saving here: cluster.toml has no [[group]], or --controllers has no pss";
        let driver = self.0.as_ref().ok_or_else(|| Status::failed_precondition(off))?;
        let (answer, answered) = oneshot::channel();
        driver.send(Input::Ask(answer)).await;
        let stopping = || Status::unavailable("power saving is stopping");
        let status = tokio::time::timeout(ANSWER, answered).await.map_err(|_| stopping())?.map_err(|_| stopping())?;
        Ok(Response::new(status))
    }
}
