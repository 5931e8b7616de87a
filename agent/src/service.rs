//! The agent's gRPC services, on top of the modules.

mod lease;
mod look;
mod machine;
mod sleep;
mod vms;
mod voter;
mod writers;

pub use machine::Services;
pub use vms::Vms;
pub use voter::VoterService;
pub use writers::writers;

use crate::{config::Config, driver::Handle, events::Events, guard::IfName, host::power::Power, keeper::GuardStatus};
use kage_proto::{
    agent::v1::{self as v1, Authority, agent_server::Agent},
    audit,
    roles::{Peer, Role},
};
use kage_types::Term;
use std::{pin::Pin, sync::Arc, time::Duration};
use tokio::sync::watch;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

/// What every handler may use.
pub struct Shared {
    /// As read at start.
    pub config: Config,
    /// To the driver.
    pub handle: Handle,
    /// What is watched.
    pub events: Events,
    /// Does the guard stand?
    pub guard: watch::Receiver<GuardStatus>,
    /// Where VIPs are announced; none for a witness.
    pub interface: Option<IfName>,
    /// The virtual machines.
    pub vms: Vms,
    /// The services.
    pub services: Services,
    /// The machine's power.
    pub power: Power,
    /// Of this boot.
    pub boot_id: String,
}

/// `kagemusha.agent.v1.Agent`.
#[derive(Clone)]
pub struct AgentService(pub Arc<Shared>);

type Reply<T> = Result<Response<T>, Status>;
type Many<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Shared {
    /// May this command be obeyed? A coordinator names its term, an operator none.
    async fn admit<T>(&self, request: &Request<T>, authority: Option<&Authority>) -> Result<(), Status> {
        let term = Term(authority.map_or(0, |authority| authority.term));
        if term != Term(0) {
            return self.handle.admit(term).await;
        }
        match Peer::of(request)?.role() {
            Some(Role::Operator) => Ok(()),
            Some(_) | None => {
                Err(Status::failed_precondition("a coordinator's command must carry its term (authority.term)"))
            }
        }
    }

    fn require_tap_guard(&self) -> Result<(), Status> {
        use crate::config::GuardPlace;
        let wanted = self.config.guard.as_ref().is_some_and(|guard| guard.kind == GuardPlace::Tap);
        let status = self.guard.borrow().clone();
        match status {
            GuardStatus::Missing(reason) if wanted => Err(Status::failed_precondition(format!(
                "no guest is let run while the guard of its addresses does not stand: {reason}"
            ))),
            GuardStatus::Missing(_) | GuardStatus::Witness | GuardStatus::Host | GuardStatus::Tap => Ok(()),
        }
    }
}

/// A limit given in milliseconds; 0: the usual one.
fn limit(ms: u32, usual: Duration) -> Duration {
    if ms == 0 { usual } else { Duration::from_millis(ms.into()) }
}

fn invalid(error: impl std::fmt::Display) -> Status {
    Status::invalid_argument(error.to_string())
}

/// The error and its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[tonic::async_trait]
impl Agent for AgentService {
    type WatchLoadStream = Many<v1::LoadSample>;
    type WatchEventsStream = Many<v1::AgentEvent>;
    type MigrateVmStream = Many<v1::MigrateProgress>;

    async fn get_facts(&self, _: Request<v1::GetFactsRequest>) -> Reply<v1::Facts> {
        self.0.facts().await.map(Response::new)
    }

    async fn watch_load(&self, request: Request<v1::WatchLoadRequest>) -> Reply<Self::WatchLoadStream> {
        look::watch_load(&self.0, request.into_inner().interval_ms).map(Response::new)
    }

    async fn watch_events(&self, _: Request<v1::WatchEventsRequest>) -> Reply<Self::WatchEventsStream> {
        Ok(Response::new(look::watch_events(&self.0)))
    }

    async fn list_vms(&self, _: Request<v1::ListVmsRequest>) -> Reply<v1::ListVmsReply> {
        self.0
            .vms
            .list()
            .await
            .map(|vms| Response::new(v1::ListVmsReply { vms: vms.iter().map(|vm| self.0.vms.to_wire(vm)).collect() }))
    }

    async fn start_vm(&self, request: Request<v1::StartVmRequest>) -> Reply<v1::VmReply> {
        audit::about(request.get_ref());
        self.0.start_vm(request).await.map(Response::new)
    }

    async fn resume_vm(&self, request: Request<v1::VmRequest>) -> Reply<v1::VmReply> {
        audit::about(request.get_ref());
        self.0.change_vm(request, vms::Change::Resume).await.map(Response::new)
    }

    async fn pause_vm(&self, request: Request<v1::VmRequest>) -> Reply<v1::VmReply> {
        audit::about(request.get_ref());
        self.0.change_vm(request, vms::Change::Pause).await.map(Response::new)
    }

    async fn save_vm(&self, request: Request<v1::VmRequest>) -> Reply<v1::VmReply> {
        audit::about(request.get_ref());
        self.0.change_vm(request, vms::Change::Save).await.map(Response::new)
    }

    async fn shutdown_vm(&self, request: Request<v1::VmRequest>) -> Reply<v1::VmReply> {
        audit::about(request.get_ref());
        self.0.change_vm(request, vms::Change::Shutdown).await.map(Response::new)
    }

    async fn destroy_vm(&self, request: Request<v1::VmRequest>) -> Reply<v1::VmReply> {
        audit::about(request.get_ref());
        self.0.change_vm(request, vms::Change::Destroy).await.map(Response::new)
    }

    async fn reboot_vm(&self, request: Request<v1::VmRequest>) -> Reply<v1::VmReply> {
        audit::about(request.get_ref());
        self.0.change_vm(request, vms::Change::Reboot).await.map(Response::new)
    }

    async fn migrate_vm(&self, request: Request<v1::MigrateVmRequest>) -> Reply<Self::MigrateVmStream> {
        audit::about(request.get_ref());
        self.0.migrate_vm(request).await.map(Response::new)
    }

    async fn list_services(&self, _: Request<v1::ListServicesRequest>) -> Reply<v1::ListServicesReply> {
        Ok(Response::new(v1::ListServicesReply { services: self.0.services.list().await }))
    }

    async fn restart_service(&self, request: Request<v1::RestartServiceRequest>) -> Reply<v1::ServiceState> {
        audit::about(request.get_ref());
        self.0.restart_service(request).await.map(Response::new)
    }

    async fn reboot_host(&self, request: Request<v1::HostRequest>) -> Reply<v1::HostReply> {
        audit::about(request.get_ref());
        self.0.go_down(request, machine::Down::Reboot).await.map(Response::new)
    }

    async fn power_off_host(&self, request: Request<v1::HostRequest>) -> Reply<v1::HostReply> {
        audit::about(request.get_ref());
        self.0.go_down(request, machine::Down::PowerOff).await.map(Response::new)
    }

    async fn suspend_host(&self, request: Request<v1::HostRequest>) -> Reply<v1::HostReply> {
        audit::about(request.get_ref());
        self.0.suspend_host(request).await.map(Response::new)
    }

    async fn wake(&self, request: Request<v1::WakeRequest>) -> Reply<v1::WakeReply> {
        audit::about(request.get_ref());
        self.0.wake(request).await.map(Response::new)
    }

    async fn ping(&self, request: Request<v1::PingRequest>) -> Reply<v1::PingReply> {
        look::ping(request.into_inner()).await.map(Response::new)
    }

    async fn probe(&self, request: Request<v1::ProbeRequest>) -> Reply<v1::ProbeReply> {
        look::probe(request.into_inner()).await.map(Response::new)
    }

    async fn probe_vip(&self, request: Request<v1::ProbeVipRequest>) -> Reply<v1::ProbeVipReply> {
        self.0.probe_vip(request.into_inner()).await.map(Response::new)
    }

    async fn hold_vip(&self, request: Request<v1::HoldVipRequest>) -> Reply<v1::HoldVipReply> {
        audit::about(request.get_ref());
        self.0.hold_vip(request.into_inner()).await.map(Response::new)
    }

    async fn release_vip(&self, request: Request<v1::ReleaseVipRequest>) -> Reply<v1::ReleaseVipReply> {
        audit::about(request.get_ref());
        self.0.release_vip(request.into_inner()).await.map(Response::new)
    }

    async fn list_leases(&self, _: Request<v1::ListLeasesRequest>) -> Reply<v1::ListLeasesReply> {
        self.0.list_leases().await.map(Response::new)
    }
}
