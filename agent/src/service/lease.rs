//! Hold, release, list. A command never confers ownership: told to hold, the agent asks (safety rule 1).

use super::{Shared, invalid, limit};
use crate::{driver::Command, guard::now, keeper::GuardStatus, wire};
use kage_agent_core::{AskVip, Place};
use kage_proto::agent::v1::{
    HeldVip, HoldVipReply, HoldVipRequest, ListLeasesReply, ReleaseVipReply, ReleaseVipRequest,
};
use kage_types::{DomainName, Epoch, Term};
use std::time::Duration;
use tonic::Status;

/// Several leases: whatever is in the way is then no passing matter.
const HOLD: Duration = Duration::from_secs(5);
/// Of that, what opening takes at most as a rule.
const OPEN: Duration = Duration::from_millis(500);

fn term(term: u64) -> Result<Term, Status> {
    if term == 0 {
        return Err(Status::failed_precondition("the lease moves only under a coordinator's term: name it (term)"));
    }
    Ok(Term(term))
}

impl Shared {
    /// Ends when the VIP is open and announced. A caller that gives up undoes nothing: the agent goes on asking.
    pub(super) async fn hold_vip(&self, request: HoldVipRequest) -> Result<HoldVipReply, Status> {
        let begun = now();
        let term = term(request.term)?;
        let ask = AskVip { vip: wire::vip(&request.vip).map_err(invalid)?, epoch: Epoch(request.epoch) };
        self.handle.admit(term).await?;
        let deadline = limit(request.timeout_ms, HOLD);
        // A guest that is arriving has its port soon; what is left then is for opening.
        let wait = if request.prepare { Duration::ZERO } else { deadline.saturating_sub(OPEN.min(deadline / 2)) };
        let place = self.place(&request.domain, wait).await?;
        if request.prepare {
            self.handle.prepare(ask.vip, place).await;
            return Ok(HoldVipReply { opened_after_ms: 0, announced_after_ms: 0 });
        }
        let left = deadline.saturating_sub(now().since(begun));
        let opened = match tokio::time::timeout(left, self.handle.hold(term, ask, place)).await {
            Ok(opened) => opened?,
            Err(_) => {
                let state = self.handle.leases().await?.vips.into_iter().find(|view| view.vip == ask.vip);
                let state = state.map_or("none", |view| view.state);
                return Err(Status::deadline_exceeded(format!(
                    "{} is not open after {deadline:?} (it is {state}); this agent goes on asking until it is released",
                    ask.vip
                )));
            }
        };
        let after = |at: kage_types::Time| wire::to_millis(at.since(begun));
        Ok(HoldVipReply {
            opened_after_ms: after(opened.opened),
            announced_after_ms: opened.announced.map_or(0, after),
        })
    }

    /// The guard that is needed must stand, and a guest's port be known to the driver.
    async fn place(&self, domain: &str, wait: Duration) -> Result<Place, Status> {
        let guard = self.guard.borrow().clone();
        let refuse = |reason: String| Err(Status::failed_precondition(reason));
        match (guard, domain.is_empty()) {
            (GuardStatus::Witness, _) => refuse("this agent is a witness: it holds no VIPs (witness = true)".into()),
            (GuardStatus::Missing(reason), _) => refuse(format!("no guard here: {reason}")),
            (GuardStatus::Host, true) => Ok(Place::Host),
            (GuardStatus::Tap, true) => refuse(
                "this agent guards guests only ([guard] kind = \"tap\"): name the domain that is to have the VIP"
                    .into(),
            ),
            (GuardStatus::Host, false) => refuse(
                "this agent guards its own addresses only ([guard] kind = \"host\"): set kind = \"tap\" for guests"
                    .into(),
            ),
            (GuardStatus::Tap, false) => {
                let name = DomainName::new(domain).map_err(invalid)?;
                let bridge = self.interface.ok_or_else(|| Status::internal("a tap guard without a bridge"))?;
                let port = self.vms.port(&name, bridge, wait).await?;
                self.handle.bind_tap(&name, port).await?;
                Ok(Place::Vm(name))
            }
        }
    }

    /// Ends when the kernel's element is gone.
    pub(super) async fn release_vip(&self, request: ReleaseVipRequest) -> Result<ReleaseVipReply, Status> {
        let term = term(request.term)?;
        let ask = AskVip { vip: wire::vip(&request.vip).map_err(invalid)?, epoch: Epoch(request.epoch) };
        match tokio::time::timeout(HOLD, self.handle.command(Command::Release(term, ask))).await {
            Ok(released) => released.map(|()| ReleaseVipReply {}),
            Err(_) => Err(Status::deadline_exceeded(format!(
                "the kernel has not confirmed within {HOLD:?} that {} is closed; wait out the lease instead",
                ask.vip
            ))),
        }
    }

    pub(super) async fn list_leases(&self) -> Result<ListLeasesReply, Status> {
        let leases = self.handle.leases().await?;
        let vip = |view: &kage_agent_core::VipView| HeldVip {
            vip: view.vip.to_string(),
            epoch: view.epoch.0,
            state: view.state.to_owned(),
            domain: match &view.place {
                Place::Host => String::new(),
                Place::Vm(domain) => domain.to_string(),
            },
            renewed_ms_ago: view.renewed.map_or(0, |renewed| wire::to_millis(leases.at.since(renewed))),
        };
        Ok(ListLeasesReply {
            vips: leases.vips.iter().map(vip).collect(),
            highest_term: leases.highest_term.0,
            coordinator_reachable: leases.coordinator_reachable,
            renewed_by: leases.renewed_by.to_owned(),
        })
    }
}
