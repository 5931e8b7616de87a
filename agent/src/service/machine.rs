//! Services, and the machine itself.

use super::{Shared, chain, invalid, limit};
use crate::{
    config::{Config, OsConfig, ServiceConfig},
    driver::{Command, Handle, Input},
    events::Events,
    guard::{IfName, Link, MacAddr, wake},
    host::{
        nic::nics,
        os::{Os, ServiceManager},
        service::{ProcessOf, Service, ServiceState},
        watch::{ProcessEvent, ProcessWatch},
    },
};
use kage_agent_core::WriterEvent;
use kage_proto::agent::v1::{self, GoingDown, agent_event::Event};
use kage_types::ServiceName;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::mpsc;
use tonic::{Request, Status};

/// A check that takes longer says nothing.
const CHECK: Duration = Duration::from_secs(5);
/// A restart, if the caller does not say.
const RESTART: Duration = Duration::from_secs(60);
/// Elements are deleted in milliseconds; services that must not run without them take longer. Less than a coordinator waits
/// for the answer (5 s).
const RELEASE: Duration = Duration::from_millis(3500);
/// For the reply to leave before the machine goes down.
const GRACE: Duration = Duration::from_millis(200);
/// For the system's own command to begin it.
const POWER: Duration = Duration::from_secs(60);
/// Process events that may wait.
const BACKLOG: usize = 64;
/// Packets sent by [`wake::wake`].
const PACKETS: u32 = 3;

/// The services of the configuration. Cheap enough to clone.
#[derive(Clone)]
pub struct Services {
    pub(super) all: BTreeMap<ServiceName, Service>,
    system: Arc<Os>,
    /// Restarted by us just now: their process's end is no failure.
    restarting: Arc<Mutex<BTreeMap<ServiceName, Instant>>>,
    /// Held back for want of a lease: nor is it.
    pub(super) held: Arc<Mutex<BTreeSet<ServiceName>>>,
}

fn service(name: &ServiceName, config: &ServiceConfig, os: &OsConfig, system: &Arc<Os>) -> Service {
    let unit = config.unit_on(name, system.manager);
    let commands = config.commands(name, unit.as_deref(), os);
    let process = match (&config.process, &config.pid_file, &unit) {
        (Some(name), _, _) => Some(ProcessOf::Name(name.clone())),
        (None, Some(file), _) => Some(ProcessOf::PidFile(file.clone())),
        (None, None, Some(unit)) if system.manager == ServiceManager::Systemd => Some(ProcessOf::Unit(unit.clone())),
        (None, None, Some(unit)) => Some(ProcessOf::Usual(unit.clone())),
        (None, None, None) => None,
    };
    let os = Arc::clone(system);
    Service { name: name.clone(), unit, commands, process, os, check_deadline: CHECK, restart_deadline: RESTART }
}

impl Services {
    /// As the configuration names them.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let system = Arc::new(config.os.system());
        tracing::info!(manager = %system.manager, reason = system.reason, "services are handled by");
        let one = |(name, one): (&ServiceName, &ServiceConfig)| (name.clone(), service(name, one, &config.os, &system));
        Self {
            all: config.services.iter().map(one).collect(),
            system,
            held: Arc::default(),
            restarting: Arc::default(),
        }
    }

    /// The service of this name.
    #[must_use]
    pub fn get(&self, name: &ServiceName) -> Option<&Service> {
        self.all.get(name)
    }

    /// Every one.
    pub fn all(&self) -> impl Iterator<Item = &Service> {
        self.all.values()
    }

    /// Who handles them.
    #[must_use]
    pub fn system(&self) -> &Os {
        &self.system
    }

    /// Tells of each service whose process ends or comes back. Must be called within a tokio runtime.
    pub fn watch(&self, events: Events, handle: Handle) {
        let (send, mut changes) = mpsc::channel(BACKLOG);
        let watches: Vec<_> =
            self.all.values().filter_map(|service| ProcessWatch::start(service, send.clone())).collect();
        let (restarting, services) = (Arc::clone(&self.restarting), self.clone());
        tokio::spawn(async move {
            let _watches = watches;
            while let Some(change) = changes.recv().await {
                let (service, state, detail) = match change {
                    ProcessEvent::Up { service, pid, .. } => {
                        let _ = handle.tell(Input::Writer(WriterEvent::CameUp(service.clone()))).await;
                        (service, "running", format!("process {pid}"))
                    }
                    ProcessEvent::Down { service, .. } if services.is_held(&service) => {
                        (service, "held", "held back: the lease of its virtual IP is not here".to_owned())
                    }
                    ProcessEvent::Down { service, pid, .. } => {
                        let ours = restarting.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&service);
                        let detail = match (pid, ours) {
                            (_, true) => "being restarted by the agent".to_owned(),
                            (Some(pid), false) => format!("process {pid} ended"),
                            (None, false) => "no process".to_owned(),
                        };
                        (service, "stopped", detail)
                    }
                };
                tracing::info!(%service, state, detail, "service");
                events.publish(Event::Service(v1::ServiceState {
                    service: service.to_string(),
                    state: state.to_owned(),
                    detail,
                    held: None,
                }));
            }
        });
    }

    /// All, asked now.
    pub async fn list(&self) -> Vec<v1::ServiceState> {
        let mut states = Vec::new();
        for service in self.all.values() {
            let mut state = state(service).await;
            if self.is_held(&service.name) {
                state.state = "held".to_owned();
            }
            states.push(state);
        }
        states
    }
}

async fn state(service: &Service) -> v1::ServiceState {
    let status = service.status().await;
    let state = match status.state {
        ServiceState::Running => "running",
        ServiceState::Stopped => "stopped",
        ServiceState::Failed => "failed",
        ServiceState::Unknown => "unknown",
    };
    v1::ServiceState { service: service.name.to_string(), state: state.to_owned(), detail: status.detail, held: None }
}

/// What the machine is told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Down {
    Reboot,
    PowerOff,
}

impl Down {
    fn as_str(self) -> &'static str {
        match self {
            Down::Reboot => "reboot",
            Down::PowerOff => "power-off",
        }
    }
}

impl Shared {
    pub(super) async fn restart_service(
        &self,
        request: Request<v1::RestartServiceRequest>,
    ) -> Result<v1::ServiceState, Status> {
        self.admit(&request, request.get_ref().authority.as_ref()).await?;
        let request = request.into_inner();
        let name = ServiceName::new(request.service).map_err(invalid)?;
        let Some(service) = self.services.all.get(&name) else {
            return Err(Status::not_found(format!(
                "no service {name}: add [services.{name}] to this agent's configuration"
            )));
        };
        if self.services.is_held(&name) {
            return Err(Status::failed_precondition(format!(
                "{name} is held back: the lease of its virtual IP is not here (on_lease_lost in agent.toml)"
            )));
        }
        let service = Service { restart_deadline: limit(request.timeout_ms, RESTART), ..service.clone() };
        let restarting = Arc::clone(&self.services.restarting);
        // On its own: a caller that gives up does not kill the restart.
        let task = tokio::spawn(async move {
            let lock = || restarting.lock().unwrap_or_else(PoisonError::into_inner);
            lock().insert(service.name.clone(), Instant::now());
            let restarted = service.restart().await;
            lock().remove(&service.name);
            restarted.map_err(|error| Status::aborted(chain(&error)))?;
            Ok::<_, Status>(state(&service).await)
        });
        task.await.map_err(|error| Status::internal(error.to_string()))?
    }

    /// VIPs are released first, then the caller is answered, then the machine goes down.
    pub(super) async fn go_down(
        self: &Arc<Self>,
        request: Request<v1::HostRequest>,
        how: Down,
    ) -> Result<v1::HostReply, Status> {
        self.admit(&request, request.get_ref().authority.as_ref()).await?;
        let force = request.get_ref().force;
        tracing::warn!(what = how.as_str(), force, "this machine is told to go down");
        self.events.publish(Event::GoingDown(GoingDown { what: how.as_str().to_owned() }));
        match tokio::time::timeout(RELEASE, self.handle.command(Command::ReleaseAll)).await {
            Ok(Ok(())) => {}
            Ok(Err(status)) if !force => {
                self.handle.tell(Input::Stays).await?;
                return Err(status);
            }
            // What is being stopped ends with the machine: a service that can't be stopped must not keep it from the reboot
            // that cures it.
            Err(_) if !force && self.handle.leases().await?.vips.is_empty() => {
                tracing::warn!("services bound to a lease are still being stopped; going down, as no VIP is held");
            }
            Err(_) if !force => {
                self.handle.tell(Input::Stays).await?;
                return Err(Status::deadline_exceeded(format!(
                    "VIPs were not released within {RELEASE:?}; nothing was done (force does it anyway)"
                )));
            }
            Ok(Err(_)) | Err(_) => tracing::error!("VIPs were not released; going down all the same, as forced"),
        }
        let shared = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(GRACE).await;
            let done = match how {
                Down::Reboot => shared.power.reboot(force, POWER).await,
                Down::PowerOff => shared.power.power_off(force, POWER).await,
            };
            if let Err(error) = done {
                tracing::error!(error = chain(&error), what = how.as_str(), "this machine did not go down");
                let _ = shared.handle.tell(Input::Stays).await;
            }
        });
        Ok(v1::HostReply::default())
    }

    pub(super) async fn wake(&self, request: Request<v1::WakeRequest>) -> Result<v1::WakeReply, Status> {
        self.admit(&request, request.get_ref().authority.as_ref()).await?;
        let request = request.into_inner();
        let mac: MacAddr = request.mac.parse().map_err(invalid)?;
        let interface = match request.interface.as_str() {
            "" => self.main_interface()?,
            name => IfName::new(name).map_err(invalid)?,
        };
        let failed = |error: std::io::Error| {
            Status::failed_precondition(format!("can't send a magic packet on {interface}: {error}; check `ip link`"))
        };
        wake::wake(&Link::find(interface).map_err(failed)?, mac).await.map_err(failed)?;
        Ok(v1::WakeReply { packets: PACKETS })
    }

    fn main_interface(&self) -> Result<IfName, Status> {
        let found =
            self.interface.or_else(|| nics().iter().find(|nic| nic.up).and_then(|nic| IfName::new(&nic.name).ok()));
        found.ok_or_else(|| Status::failed_precondition("no interface is up here: name one (interface)"))
    }
}
