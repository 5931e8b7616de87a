//! `kagectl characterise`: what predictions are made from is measured by the calls that supervision itself makes
//! (thesis table 2.1), and kept in `characteristics.json`.

mod away;

use crate::{agents::Agents, clock::unix_ms, driver::Handle};
use kage_coordinator_core::{
    Coordinator,
    characteristics::{Characteristics, Figures, Measured},
    config::{Cluster, Detection, Target},
};
use kage_proto::{
    agent::v1::{Authority, PingRequest, VmRequest, agent_client::AgentClient},
    channel::reason,
};
use kage_types::{AgentId, Profile, TargetName, Term};
use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::mpsc;
use tonic::{Request, Status, transport::Channel};

/// Unless given.
const RUNS: u32 = 5;
/// More takes hours and tells nothing new.
const MAX_RUNS: u32 = 1000;
/// One call; a start or a pause of a VM that takes longer is reported.
const CALL: Duration = Duration::from_secs(20);
/// How long a resumed double may take to answer.
const RESUMED: Duration = Duration::from_secs(60);
/// Between two looks at it: the error of what is measured.
const LOOK: Duration = Duration::from_millis(50);
/// The double sleeps this long between two runs.
const ASLEEP: Duration = Duration::from_secs(1);

/// What was measured, on disk and in memory.
#[derive(Clone)]
pub struct Store(Arc<(PathBuf, Mutex<Characteristics>)>);

impl Store {
    /// From the state directory.
    ///
    /// # Errors
    /// A file that can't be read.
    pub fn load(state: &Path) -> anyhow::Result<Self> {
        use anyhow::Context as _;
        let file = state.join("characteristics.json");
        let known = match std::fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| {
                format!("{} is damaged: delete it, and run kagectl characterise again", file.display())
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Characteristics::default(),
            Err(error) => return Err(error).with_context(|| format!("{} can't be read", file.display())),
        };
        Ok(Self(Arc::new((file, Mutex::new(known)))))
    }

    /// All of it.
    pub fn get(&self) -> Characteristics {
        self.0.1.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn learn(&self, target: TargetName, figures: Figures) -> Result<(), Status> {
        let mut known = self.0.1.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = known.clone();
        next.learn(target, figures);
        let bytes = serde_json::to_vec_pretty(&next).map_err(|error| Status::internal(error.to_string()))?;
        let file = &self.0.0;
        let part = file.with_extension("part");
        std::fs::write(&part, bytes)
            .and_then(|()| std::fs::File::open(&part)?.sync_all())
            .and_then(|()| std::fs::rename(&part, file))
            .map_err(|error| Status::unavailable(format!("{} can't be written: {error}", file.display())))?;
        *known = next;
        Ok(())
    }
}

/// Where progress goes.
type Say = mpsc::Sender<Result<String, Status>>;

/// Measures one target.
pub struct Characterise {
    pub handle: Handle,
    pub agents: Agents,
    pub store: Store,
    pub target: TargetName,
    pub runs: u32,
    /// Of what needs the target away from home; 0: not at all.
    pub machine_runs: u32,
}

/// What a measurement needs to know of its target.
struct Subject {
    target: Target,
    observer: AgentId,
    detection: Detection,
    profile: Profile,
    /// Of its machine, to wake it.
    mac: Option<String>,
}

impl Characterise {
    /// Measure, store, and tell what was found.
    pub async fn run(self, say: Say) {
        if let Err(status) = self.measure(&say).await {
            // The operator may have gone.
            let _ = say.send(Err(status)).await.is_err();
        }
    }

    async fn measure(&self, say: &Say) -> Result<(), Status> {
        let runs = if self.runs == 0 { RUNS } else { self.runs };
        if runs.max(self.machine_runs) > MAX_RUNS {
            return Err(Status::invalid_argument(format!("{MAX_RUNS} runs at most")));
        }
        let name = self.target.clone();
        let subject = self.handle.query(move |core, _| subject(core, &name)).await??;
        if subject.target.vm.is_some() && self.machine_runs > 0 {
            return Err(Status::failed_precondition(format!(
                "{} is a virtual server: its machine is not rebooted and switched off to measure it, as others run there",
                self.target
            )));
        }
        let conditions =
            |what: &str| format!("{what}; from agent {}, profile {}", subject.observer, subject.profile.as_str());
        let mut figures = Figures::default();

        let pings = self.tna(&subject, runs).await?;
        figures.tna = Measured::of(pings, unix_ms(), conditions("ping of the target as supervision does it"));
        tell(say, "Tna", figures.tna.as_ref()).await;

        match subject.target.backup.address {
            Some(address) => {
                let resumes = self.tvs(&subject, address, runs, say).await?;
                let what = format!("double resumed until its own address {address} answered a ping, without VIP");
                figures.tvs = Measured::of(resumes, unix_ms(), conditions(&what));
                tell(say, "Tvs", figures.tvs.as_ref()).await;
            }
            None => {
                let text = "Tvs is not measured: give the double's own address as backup = { address = … }";
                let _ = say.send(Ok(text.to_owned())).await.is_err();
            }
        }
        self.store.learn(self.target.clone(), figures)?;
        if self.machine_runs == 0 {
            return Ok(());
        }
        let found = self.away(&subject, self.machine_runs, say).await?;
        let figures = found.into_figures(unix_ms(), &subject.observer, conditions);
        for (name, figure) in [("Trs", &figures.trs), ("Trr", &figures.trr), ("Tnd", &figures.tnd)] {
            tell(say, name, figure.as_ref()).await;
        }
        for (service, figure) in &figures.tsw {
            tell(say, &format!("Tsw of {service}"), Some(figure)).await;
        }
        self.store.learn(self.target.clone(), figures)
    }

    fn client(&self, agent: &AgentId) -> Result<AgentClient<Channel>, Status> {
        self.agents.agent(agent).ok_or_else(|| Status::not_found(format!("there is no agent {agent}")))
    }

    /// One ping; was there an answer?
    async fn ping(&self, subject: &Subject, address: IpAddr, timeout: Duration) -> Result<bool, Status> {
        let timeout_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        let request = PingRequest { address: address.to_string(), count: 1, timeout_ms, ..PingRequest::default() };
        let reply = self.client(&subject.observer)?.ping(timed(request)).await.map_err(|status| {
            Status::unavailable(format!("agent {} can't ping {address}: {}", subject.observer, reason(&status)))
        })?;
        Ok(reply.into_inner().received > 0)
    }

    async fn tna(&self, subject: &Subject, runs: u32) -> Result<Vec<Duration>, Status> {
        let address = subject.target.address;
        let mut took = Vec::new();
        for _ in 0..runs {
            let began = Instant::now();
            if !self.ping(subject, address, subject.detection.ping_timeout).await? {
                return Err(Status::failed_precondition(format!(
                    "{address} does not answer a ping: {} must be up to be measured",
                    self.target
                )));
            }
            took.push(began.elapsed());
        }
        Ok(took)
    }

    /// Resume the double, wait for it, suspend it again. If it is needed meanwhile it is left to its work.
    async fn tvs(&self, subject: &Subject, address: IpAddr, runs: u32, say: &Say) -> Result<Vec<Duration>, Status> {
        let backup = &subject.target.backup;
        let mut took = Vec::new();
        for run in 1..=runs {
            let term = self.at_home().await?;
            let began = Instant::now();
            let request = vm(term, backup.domain.to_string());
            self.client(&backup.agent)?.resume_vm(timed(request)).await?;
            let answered = loop {
                if self.ping(subject, address, subject.detection.ping_timeout).await? {
                    break Some(began.elapsed());
                }
                if began.elapsed() > RESUMED {
                    break None;
                }
                tokio::time::sleep(LOOK).await;
            };
            // A takeover may have begun: then it is the backup server now, and it must not be suspended.
            let term = self.at_home().await.map_err(|status| {
                Status::aborted(format!("{}; {} was left running", status.message(), backup.domain))
            })?;
            self.client(&backup.agent)?.pause_vm(timed(vm(term, backup.domain.to_string()))).await?;
            let answered = answered.ok_or_else(|| {
                Status::deadline_exceeded(format!("{} did not answer at {address} within {RESUMED:?}", backup.domain))
            })?;
            took.push(answered);
            let text = format!("run {run} of {runs}: {} answered after {answered:.3?}", backup.domain);
            let _ = say.send(Ok(text)).await.is_err();
            tokio::time::sleep(ASLEEP).await;
        }
        Ok(took)
    }

    /// The target serves itself and nothing is under way; the term to command under.
    async fn at_home(&self) -> Result<Term, Status> {
        let name = self.target.clone();
        self.handle
            .query(move |core, now| {
                quiet(core, &name)?;
                let (term, valid, _) = core.authority(now);
                if valid { Ok(term) } else { Err(Status::failed_precondition("this coordinator has no valid term")) }
            })
            .await?
    }
}

fn timed<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CALL);
    request
}

fn vm(term: Term, domain: String) -> VmRequest {
    VmRequest { authority: Some(Authority { term: term.0 }), domain, ..VmRequest::default() }
}

async fn tell(say: &Say, name: &str, measured: Option<&Measured>) {
    let Some(Measured { median_ms, worst_ms, runs, conditions, .. }) = measured else { return };
    let text = format!("{name}: median {median_ms} ms, worst {worst_ms} ms of {runs} ({conditions})");
    let _ = say.send(Ok(text)).await.is_err();
}

/// Is it in Regular mode, with all its VIPs at home?
fn quiet(core: &Coordinator, name: &TargetName) -> Result<(), Status> {
    let cluster: &Cluster = core.cluster();
    let (Some(target), Some(view)) = (cluster.targets.get(name), core.target(name)) else {
        return Err(Status::not_found(format!("there is no target {name}")));
    };
    let home = target.vips.iter().all(|vip| {
        core.vip(*vip).is_some_and(|vip| {
            let row = vip.row.as_ref();
            vip.moving.is_none() && row.is_some_and(|row| target.is_served_by(row))
        })
    });
    if view.mode != "regular" || !home {
        return Err(Status::failed_precondition(format!(
            "{name} is in mode {} and {}: it is measured only while it serves itself",
            view.mode,
            if home { "at home" } else { "away from home" }
        )));
    }
    Ok(())
}

fn subject(core: &Coordinator, name: &TargetName) -> Result<Subject, Status> {
    quiet(core, name)?;
    let cluster = core.cluster();
    let target = cluster.targets.get(name).cloned().ok_or_else(|| Status::not_found("there is no such target"))?;
    let observer = core.observer().cloned().ok_or_else(|| {
        Status::failed_precondition("no agent to look from: neither on the coordinator's machine nor a voter")
    })?;
    let mac = cluster.agents.get(&target.agent).and_then(|machine| machine.mac.clone());
    Ok(Subject { target, observer, detection: cluster.detection, mac, profile: cluster.profile })
}
