//! Services that must not run without a lease: carried out aside, so that the driver waits for no service manager.

use super::{Input, task::Driver};
use crate::{guard::now, service::Services, storage::Write};
use kage_agent_core::{Halt, HaltOutcome, LossReason, WriterAction, WriterEvent};
use kage_proto::agent::v1::{ServiceState, agent_event::Event};
use kage_types::{ServiceName, Vip};

impl Driver {
    /// The guard of this VIP is open. A guest's VIP concerns no service of this machine.
    pub(super) fn lease_opened(&mut self, vip: Vip) {
        if self.live_addresses().contains(&vip) {
            self.step_writers(WriterEvent::Opened(vip));
        }
    }

    /// It is shut. What the kernel was told runs out before the lease does: until then nobody else is its owner.
    pub(super) fn lease_lost(&mut self, vip: Vip, reason: &LossReason) {
        let time = now();
        let until = match reason {
            LossReason::Lapsed => self.owner.owned_until(vip).unwrap_or(time),
            LossReason::Superseded | LossReason::Released | LossReason::ClockJumped | LossReason::SwitchedOver(_) => {
                time
            }
        };
        self.step_writers(WriterEvent::Lost { vip, until });
    }

    /// What is due, and leases that were given up or prolonged while they were waited for.
    pub(super) fn writers_due(&mut self) {
        let time = now();
        let changed: Vec<_> = self
            .writers
            .doubtful()
            .map(|(vip, until)| (vip, until, self.owner.owned_until(vip).unwrap_or(time)))
            .filter(|(_, until, owned)| owned != until)
            .map(|(vip, _, until)| WriterEvent::Lost { vip, until })
            .collect();
        for event in changed {
            self.step_writers(event);
        }
        if self.writers.deadline().is_some_and(|at| at <= time) {
            self.step_writers(WriterEvent::Tick);
        }
    }

    /// Releases are acknowledged once nothing writes behind them any more: the answer lets the double run.
    pub(super) fn acknowledge(&mut self) {
        let waiting = std::mem::take(&mut self.releasing);
        for (vip, reply) in waiting {
            if self.writers.quiet(vip) {
                let _ = reply.send(Ok(()));
            } else if !reply.is_closed() {
                self.releasing.push((vip, reply));
            }
        }
    }

    pub(super) fn step_writers(&mut self, event: WriterEvent) {
        let mut actions = Vec::new();
        self.writers.step(now(), event, &mut actions);
        self.services.set_held(|service| self.writers.holds(service));
        for action in actions {
            match action {
                WriterAction::Halt(service, halt) => self.carry_out(service, halt, true),
                WriterAction::Resume(service, halt) => self.carry_out(service, halt, false),
                WriterAction::Store(memory) => {
                    if !self.storage.write(Write::Writers(memory)) {
                        tracing::warn!("not stored: a restart would not know which services are held back");
                    }
                }
                WriterAction::Tell { service, held, detail } => {
                    tracing::warn!(%service, held, detail, "on_lease_lost");
                    let state = if held { "held" } else { "running" };
                    let (service, state) = (service.to_string(), state.to_owned());
                    self.events.publish(Event::Service(ServiceState { service, state, detail, held: Some(held) }));
                }
            }
        }
    }

    fn carry_out(&mut self, service: ServiceName, halt: Halt, hold: bool) {
        let (services, handle): (Services, _) = (self.services.clone(), self.handle.clone());
        tokio::spawn(async move {
            let outcome =
                if hold { services.halt(&service, halt).await } else { services.resume(&service, halt).await };
            if let HaltOutcome::Failed(reason) = &outcome {
                tracing::error!(%service, hold, reason, "on_lease_lost");
            }
            let _ = handle.tell(Input::Writer(WriterEvent::Ended { service, outcome })).await;
        });
    }
}
