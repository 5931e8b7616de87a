//! What can only be measured while the double serves: the target's services are restarted, its machine is rebooted,
//! switched off and woken. Its clients see two planned moves.

use super::{CALL, Characterise, LOOK, Say, Subject, timed};
use crate::orders;
use kage_coordinator_core::{
    Coordinator, Event,
    characteristics::{Figures, Measured},
    config::Service,
};
use kage_proto::{
    agent::v1::{Authority, HostRequest, RestartServiceRequest, WakeRequest, probe_reply::Outcome},
    channel::reason,
};
use kage_types::{AgentId, ServiceName, TargetName};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};
use tonic::Status;

/// A planned move, either way.
const MOVE: Duration = Duration::from_secs(120);
/// An orderly stop.
const STOP: Duration = Duration::from_secs(180);
/// A machine's start, up to its services' first good answers.
const START: Duration = Duration::from_secs(600);
/// From the last answer of a machine that goes down until its power is surely off.
const POWER_DOWN: Duration = Duration::from_secs(15);
/// Pings in a row without an answer: it is down, and none was merely lost.
const SILENT: u32 = 3;

/// Of one target.
#[derive(Default)]
pub(super) struct Found {
    pub trs: Vec<Duration>,
    pub trr: Vec<Duration>,
    pub tnd: Vec<Duration>,
    pub tsw: BTreeMap<ServiceName, Vec<Duration>>,
}

impl Characterise {
    /// Move away, measure, move back. Back it goes after an error, too.
    pub(super) async fn away(&self, subject: &Subject, runs: u32, say: &Say) -> Result<Found, Status> {
        self.say(say, format!("{} is moved to its double", self.target)).await;
        self.at_home().await?;
        self.ordered(false).await?;
        let found = async {
            self.until("the double serves", MOVE, |core, name| {
                let view = core.target(name);
                view.is_some_and(|view| view.mode == "target-server-recovery") && crate::operator::settled(core, name)
            })
            .await?;
            self.measure_away(subject, runs, say).await
        }
        .await;
        self.say(say, format!("{} takes its place again", self.target)).await;
        let back = self.home().await;
        match (found, back) {
            (Ok(found), Ok(())) => Ok(found),
            (Ok(_), Err(status)) => Err(status),
            (Err(status), Ok(())) => Err(status),
            (Err(first), Err(second)) => {
                Err(Status::new(first.code(), format!("{}; and {}", first.message(), second.message())))
            }
        }
    }

    async fn measure_away(&self, subject: &Subject, runs: u32, say: &Say) -> Result<Found, Status> {
        let mut found = Found::default();
        for run in 1..=runs {
            for service in subject.target.services.iter().filter(|service| service.restart && !service.single_writer) {
                let took = self.restart(subject, service).await?;
                self.say(say, format!("run {run} of {runs}: {} answered {took:.3?} after its restart", service.name))
                    .await;
                found.tsw.entry(service.name.clone()).or_default().push(took);
            }
            let took = self.reboot(subject, &mut found.tnd).await?;
            self.say(say, format!("run {run} of {runs}: rebooted and in service after {took:.3?}")).await;
            found.trr.push(took);
            let Some(mac) = &subject.mac else {
                if run == 1 {
                    let text = "Trs is not measured: without mac in cluster.toml it could not be woken";
                    self.say(say, text.to_owned()).await;
                }
                continue;
            };
            let took = self.start(subject, mac, &mut found.tnd).await?;
            self.say(say, format!("run {run} of {runs}: woken and in service after {took:.3?}")).await;
            found.trs.push(took);
        }
        Ok(found)
    }

    /// Tsw.
    async fn restart(&self, subject: &Subject, service: &Service) -> Result<Duration, Status> {
        let began = Instant::now();
        let request = RestartServiceRequest {
            authority: Some(self.authority().await?),
            service: service.name.to_string(),
            timeout_ms: u32::try_from(CALL.as_millis()).unwrap_or(u32::MAX),
        };
        self.client(&subject.target.agent)?.restart_service(timed(request)).await?;
        self.in_service(subject, std::slice::from_ref(service), began, STOP).await
    }

    /// Trr, and Tnd while it is down.
    async fn reboot(&self, subject: &Subject, tnd: &mut Vec<Duration>) -> Result<Duration, Status> {
        let began = Instant::now();
        let request = HostRequest { authority: Some(self.authority().await?), ..HostRequest::default() };
        self.client(&subject.target.agent)?.reboot_host(timed(request)).await?;
        self.silent(subject, tnd).await?;
        self.in_service(subject, &subject.target.services, began, START).await
    }

    /// Trs, and Tnd while it is down.
    async fn start(&self, subject: &Subject, mac: &str, tnd: &mut Vec<Duration>) -> Result<Duration, Status> {
        let request = HostRequest { authority: Some(self.authority().await?), ..HostRequest::default() };
        self.client(&subject.target.agent)?.power_off_host(timed(request)).await?;
        self.silent(subject, tnd).await?;
        tokio::time::sleep(POWER_DOWN).await;
        let limit = Instant::now() + START;
        loop {
            let began = Instant::now();
            let request =
                WakeRequest { authority: Some(self.authority().await?), mac: mac.to_owned(), interface: String::new() };
            self.client(&subject.observer)?.wake(timed(request)).await?;
            match self.in_service(subject, &subject.target.services, began, subject.target.start_wait).await {
                Ok(took) => return Ok(took),
                // The packet may have been lost, or the machine may not yet have been off.
                Err(_) if Instant::now() < limit => {}
                Err(status) => return Err(status),
            }
        }
    }

    /// Until it is down; notes how long each ping took that no answer came to.
    async fn silent(&self, subject: &Subject, tnd: &mut Vec<Duration>) -> Result<(), Status> {
        let began = Instant::now();
        let mut bad = Vec::new();
        while bad.len() < SILENT as usize {
            if began.elapsed() > STOP {
                return Err(Status::deadline_exceeded(format!(
                    "{} still answers {STOP:?} after it was told to go down",
                    subject.target.agent
                )));
            }
            let asked = Instant::now();
            if self.ping(subject, subject.target.address, subject.detection.ping_timeout).await? {
                bad.clear();
                tokio::time::sleep(LOOK).await;
            } else {
                bad.push(asked.elapsed());
            }
        }
        tnd.extend(bad);
        Ok(())
    }

    /// Until each of `services` (without any: a ping) answers at the target's own address.
    async fn in_service(
        &self,
        subject: &Subject,
        services: &[Service],
        began: Instant,
        limit: Duration,
    ) -> Result<Duration, Status> {
        let address = subject.target.address;
        loop {
            let mut why = None;
            if services.is_empty() && !self.ping(subject, address, subject.detection.ping_timeout).await? {
                why = Some(format!("{address} does not answer"));
            }
            for service in services {
                let (limits, observer) = (service.probe.limits(subject.profile, &subject.detection), &subject.observer);
                let asked = self
                    .agents
                    .ask_probe(Some(observer.clone()), address, service.port, &service.probe, limits, false)
                    .await;
                let reply = asked.map_err(|status| {
                    Status::unavailable(format!("agent {observer} can't probe {}: {}", service.name, reason(&status)))
                })?;
                if reply.outcome() != Outcome::Ok {
                    why = Some(format!("{}: {}", service.name, reply.detail));
                    break;
                }
            }
            let Some(why) = why else { return Ok(began.elapsed()) };
            if began.elapsed() > limit {
                return Err(Status::deadline_exceeded(format!(
                    "{} is not in service after {limit:?}: {why}",
                    subject.target.agent
                )));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn home(&self) -> Result<(), Status> {
        let began = Instant::now();
        // Its agent may still be on its way to the coordinator.
        while let Err(status) = self.ordered(true).await {
            if began.elapsed() > MOVE {
                return Err(Status::failed_precondition(format!(
                    "{} stays with its double ({}): kagectl failback {}",
                    self.target,
                    status.message(),
                    self.target
                )));
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        self.until("it has its place again", MOVE, |core, name| super::quiet(core, name).is_ok()).await
    }

    /// What `kagectl failover` and `failback` do.
    async fn ordered(&self, back: bool) -> Result<(), Status> {
        let target = self.target.clone();
        orders::command(&self.handle, move |command| Event::Move { command, target, back, force: false }).await
    }

    async fn until(
        &self,
        what: &str,
        limit: Duration,
        reached: fn(&Coordinator, &TargetName) -> bool,
    ) -> Result<(), Status> {
        let began = Instant::now();
        loop {
            let name = self.target.clone();
            if self.handle.query(move |core, _| reached(core, &name)).await? {
                return Ok(());
            }
            if began.elapsed() > limit {
                return Err(Status::deadline_exceeded(format!(
                    "{}: {what} was not reached within {limit:?}; see kagectl events, then kagectl failback {}",
                    self.target, self.target
                )));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Commands to machines need a term in force.
    async fn authority(&self) -> Result<Authority, Status> {
        let (term, valid) = self
            .handle
            .query(|core, now| {
                let (term, valid, _) = core.authority(now);
                (term, valid)
            })
            .await?;
        if valid {
            Ok(Authority { term: term.0 })
        } else {
            Err(Status::failed_precondition("this coordinator has no valid term"))
        }
    }

    async fn say(&self, say: &Say, text: String) {
        // The operator may have gone.
        let _ = say.send(Ok(text)).await.is_err();
    }
}

/// Of what was found, figures with their conditions.
impl Found {
    pub(super) fn into_figures(self, unix_ms: u64, observer: &AgentId, conditions: impl Fn(&str) -> String) -> Figures {
        let of = |runs, what: &str| Measured::of(runs, unix_ms, conditions(what));
        let Self { trs, trr, tnd, tsw } = self;
        Figures {
            trs: of(trs, "magic packet sent until every service answered at its own address"),
            trr: of(trr, "told to reboot until every service answered at its own address"),
            tnd: of(tnd, &format!("ping by {observer} of the target while it is down")),
            tsw: tsw
                .into_iter()
                .filter_map(|(service, runs)| {
                    Some((service, of(runs, "told to restart until it answered at its own address")?))
                })
                .collect(),
            ..Default::default()
        }
    }
}
