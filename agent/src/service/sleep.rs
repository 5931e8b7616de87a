//! The machine sleeps: a transaction, planned by [`SleepPlan`]. Nothing sleeps that is not idle, or that nothing would wake.

use super::{Shared, chain};
use crate::{
    driver::{Command, Input},
    guard::now,
    host::{clock::SleepDetector, power::AlarmSet},
    vm::DomainState,
};
use kage_agent_core::{Idle, SleepPlan, SleepStep, SleepUndo};
use kage_proto::agent::v1::{self, GoingDown, Warning, Woke, agent_event::Event};
use std::{pin::pin, sync::Arc, time::Duration};
use tonic::{Request, Status};

/// All elements are deleted in milliseconds; services that must not run without them take longer.
const RELEASE: Duration = Duration::from_millis(3500);
/// For the reply, and the event, to leave before.
const GRACE: Duration = Duration::from_millis(200);
/// Awake, for the system's own command to begin it.
const POWER: Duration = Duration::from_secs(60);
/// systemd's command ends before the sleep begins, by so much at most: drivers may take seconds.
const ASYNC: Duration = Duration::from_secs(15);
/// How often time is looked at, and what is no stall any more while a suspension is under way: this process stood still,
/// frozen together with the machine, whose clocks may have gone on.
const LOOK: Duration = Duration::from_millis(100);
const FROZEN: Duration = Duration::from_secs(1);

/// What to undo the steps with.
#[derive(Default)]
struct Trace {
    alarm: AlarmSet,
    /// Of the alarm, or of Wake-on-LAN.
    woken_by: Vec<String>,
}

impl Shared {
    /// Refused unless idle; then the way back is made sure, the caller is answered, and the machine sleeps.
    pub(super) async fn suspend_host(
        self: &Arc<Self>,
        request: Request<v1::HostRequest>,
    ) -> Result<v1::HostReply, Status> {
        self.admit(&request, request.get_ref().authority.as_ref()).await?;
        let v1::HostRequest { force, alarm_ms, expect_idle, .. } = request.into_inner();
        let Some(sleeping) = self.power.begin_sleep() else {
            return Err(Status::failed_precondition("this machine is on its way to sleep already"));
        };
        self.power.can_suspend().map_err(|error| Status::failed_precondition(chain(&error)))?;
        if force {
            tracing::warn!("this machine is told to sleep, whatever it does");
        } else {
            let idle = self.idle().await?;
            idle.check(&expect_idle.into_iter().collect()).map_err(|busy| {
                tracing::info!(%busy, "not put to sleep");
                Status::failed_precondition(busy.to_string())
            })?;
        }
        let mut plan = SleepPlan::new((alarm_ms > 0).then(|| Duration::from_millis(alarm_ms)));
        let mut trace = Trace::default();
        // A caller that gives up must not leave it half way.
        let shared = Arc::clone(self);
        let prepared = tokio::spawn(async move {
            while let Some(step) = plan.next_step() {
                if step == SleepStep::Sleep {
                    break;
                }
                if let Err(status) = shared.sleep_step(step, force, &mut trace).await {
                    shared.undo_sleep(&plan, &trace).await;
                    return Err(status);
                }
            }
            let woken_by = trace.woken_by.join("; ");
            tracing::warn!(woken_by, "this machine goes to sleep");
            tokio::spawn(async move {
                tokio::time::sleep(GRACE).await;
                shared.sleep_and_wake(&plan, &trace).await;
                drop(sleeping);
            });
            Ok(v1::HostReply { woken_by })
        });
        prepared.await.map_err(|error| Status::internal(error.to_string()))?
    }

    async fn idle(&self) -> Result<Idle, Status> {
        let vips = self.handle.leases().await?.vips.into_iter().map(|view| view.vip).collect();
        let domains = if self.vms.are_here() { self.vms.list().await? } else { Vec::new() };
        let active = |state| !matches!(state, DomainState::ShutOff | DomainState::Crashed);
        let domains = domains.into_iter().filter(|info| active(info.state)).map(|info| info.name).collect();
        Ok(Idle { vips, domains })
    }

    async fn sleep_step(&self, step: SleepStep, force: bool, trace: &mut Trace) -> Result<(), Status> {
        let refused = |error: &dyn std::error::Error| Status::failed_precondition(chain(error));
        match step {
            SleepStep::ArmWake => {
                let by = self.power.arm_wake(&self.reached_by()).await.map_err(|error| refused(&error))?;
                trace.woken_by.push(by);
            }
            SleepStep::SetAlarm(after) => {
                trace.alarm = self.power.set_alarm(after).await.map_err(|error| refused(&error))?;
                trace.woken_by.push(format!("alarm after {} s", after.as_secs_f64()));
            }
            SleepStep::Release => {
                self.events.publish(Event::GoingDown(GoingDown { what: "suspend".to_owned() }));
                let released = tokio::time::timeout(RELEASE, self.handle.command(Command::ReleaseAll)).await;
                let released = released.unwrap_or_else(|_| {
                    Err(Status::deadline_exceeded(format!(
                        "VIPs were not released within {RELEASE:?}; nothing was done (force does it anyway)"
                    )))
                });
                match released {
                    Err(status) if !force => return Err(status),
                    Err(_) => tracing::error!("VIPs were not released; sleeping all the same, as forced"),
                    Ok(()) => {}
                }
            }
            SleepStep::Sleep => {}
        }
        Ok(())
    }

    async fn sleep_and_wake(&self, plan: &SleepPlan, trace: &Trace) {
        let mut detector = SleepDetector::new();
        let slept = self.slept(&mut detector).await;
        self.undo_sleep(plan, trace).await;
        let woke = match slept {
            Ok(Slept::Jumped(slept)) => {
                tracing::warn!(slept_ms = slept.as_millis(), "this machine is awake again");
                // Told by the driver, which voids all leases at the same time.
                return;
            }
            Ok(Slept::Frozen(slept)) => {
                tracing::warn!(slept_ms = slept.as_millis(), "this machine is awake again");
                Woke { slept_ms: u64::try_from(slept.as_millis()).unwrap_or(u64::MAX), failed: String::new() }
            }
            Err(failed) => {
                tracing::error!(failed, "this machine did not sleep");
                Woke { slept_ms: 0, failed }
            }
        };
        self.events.publish(Event::Woke(woke));
    }

    async fn slept(&self, detector: &mut SleepDetector) -> Result<Slept, String> {
        let mut suspend = pin!(self.power.suspend(POWER));
        let (mut looked, mut longest) = (now(), Duration::ZERO);
        let done = loop {
            let done = tokio::select! {
                biased;
                done = &mut suspend => Some(done),
                () = tokio::time::sleep(LOOK) => None,
            };
            let time = now();
            longest = longest.max(time.since(looked));
            looked = time;
            if let Some(done) = done {
                break done;
            }
        };
        if let Some(slept) = detector.slept() {
            return Ok(Slept::Jumped(slept));
        }
        done.map_err(|error| chain(&error))?;
        if longest >= FROZEN {
            return Ok(Slept::Frozen(longest));
        }
        for _ in 0..ASYNC.as_millis() / LOOK.as_millis() {
            tokio::time::sleep(LOOK).await;
            if let Some(slept) = detector.slept() {
                return Ok(Slept::Jumped(slept));
            }
        }
        Err(format!("its suspend command succeeded, but within {ASYNC:?} it did not sleep: see the system's log"))
    }

    async fn undo_sleep(&self, plan: &SleepPlan, trace: &Trace) {
        for undo in plan.undo() {
            match undo {
                // Ends with the agent.
                SleepUndo::Stay => drop(self.handle.tell(Input::Stays).await),
                SleepUndo::ClearAlarm => {
                    if let Err(error) = self.power.clear_alarm(trace.alarm).await {
                        let text = format!("this machine's alarm may still be set: {}", chain(&error));
                        tracing::warn!(text);
                        self.events.publish(Event::Warning(Warning { text }));
                    }
                }
            }
        }
    }

    /// The cards that its neighbours know.
    pub(super) fn reached_by(&self) -> Vec<String> {
        let uplinks = self.config.guard.iter().flat_map(|guard| guard.uplinks.iter().cloned());
        uplinks.chain(self.interface.map(|interface| interface.to_string())).collect()
    }
}

/// How it is known that the machine slept.
enum Slept {
    /// By the kernel's clocks.
    Jumped(Duration),
    /// Everything stood still, this process too.
    Frozen(Duration),
}
