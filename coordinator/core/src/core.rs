//! The coordinator's machine: terms, grants, routing of job results, storm brake.

use crate::{
    agents::AgentView,
    config::{Cluster, OnCoordinatorLoss},
    dbss::Dbss,
    event::{Action, AgentReport, Event, JobId, JobResult, Note, SessionId, Severity, VipRow},
    placement::{Owner, VipState},
    quarantine::Quarantines,
    sabotage::Sabotage,
    stand_in::{StandIn, StandInJob},
};
use kage_types::{
    AgentId, AskVip, DomainName, Grant, GrantItem, LeaseTiming, Nonce, Tables, TargetName, Term, Time, Verdict, Vip,
    whole_millis,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// Alerts kept for `status`; the journal has all of them.
const MAX_ALERTS: usize = 20;

/// The term this process acts under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum TermState {
    /// None; asked for, or to be asked for at this time.
    None { retry: Time },
    /// Leased.
    Held {
        term: Term,
        /// Valid until then: sent + T.
        until: Time,
        /// No takeover by patience before: receipt + T + L, with drift (rule 7).
        floor: Time,
        renew: Time,
    },
}

/// What a job was for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum JobFor {
    /// A step of moving a VIP.
    Vip(Vip, VipJob),
    /// A step of supervising a target.
    Target(TargetName, TargetJob),
    /// The double is resumed before the operator's fail-over begins.
    Ready {
        target: TargetName,
        /// To be answered.
        command: u64,
        force: bool,
    },
    /// A long lease of this agent is being noted.
    LongLease(AgentId),
    /// A long lease has been given back.
    LongReturned(Vip),
    /// A double goes to sleep; which target it served last.
    Pause(Owner, TargetName),
    /// A step of a backup server that is supervised itself.
    StandIn(DomainName, StandInJob),
    /// An operator's order is being noted.
    Order(OrderJob),
    /// SIF is told something for the shared tables.
    Signal,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum VipJob {
    Advance,
    Bar(AgentId),
    Release,
    Prepare,
    Resume,
    Conflict,
    Hold,
    /// A writer's power is switched off; then read, asked at.
    PowerOff,
    PowerRead(Time),
    /// A writer's storage access is revoked.
    FenceStorage,
    /// The target says that nothing behind the VIP writes there any more, whoever the owner was.
    LetGo,
    /// The double is suspended before its target writes again.
    Quiet,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum TargetJob {
    Ping,
    Probe(usize),
    /// Asked at.
    Power(Time),
    Restart,
    Reboot,
    Wake,
    /// The target says that nothing behind this virtual IP (by its place among the target's) writes there any more.
    LetGo(usize),
    /// The target gets its storage access back.
    Unfence,
    /// The power of a real server that does not answer, and on which it may be running besides, asked at.
    OtherPower(AgentId, Time),
    /// A virtual server's plug is pulled where it may be running (`other`), before it is started or reset on `host`.
    Clear {
        other: AgentId,
        host: AgentId,
        order: VmOrder,
    },
}

/// What a virtual server's own real server is told next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum VmOrder {
    /// Start it; one that runs runs on.
    Start,
    /// Pull its plug and start it, after so many vain starts.
    Reset,
    /// The same as background job 1.
    Reboot,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct LongAsk {
    session: SessionId,
    nonce: Nonce,
    vips: Vec<AskVip>,
    left: BTreeSet<JobId>,
    noted: bool,
}

/// The coordinator. Serialisable as it stands: the journal's snapshots ([`crate::journal`]) are its whole state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coordinator {
    pub(crate) cluster: Cluster,
    pub(crate) started: Time,
    pub(crate) term: TermState,
    pub(crate) agents: BTreeMap<AgentId, AgentView>,
    pub(crate) vips: BTreeMap<Vip, VipState>,
    pub(crate) targets: BTreeMap<TargetName, Dbss>,
    pub(crate) jobs: BTreeMap<JobId, JobFor>,
    last_job: JobId,
    long_asks: BTreeMap<AgentId, LongAsk>,
    /// By which process, and in which request, a long lease was asked for last: what was said before it and arrives after
    /// it does not give it back. Absent in snapshots of before it was there.
    #[serde(default)]
    last_long: BTreeMap<AgentId, (u64, Nonce)>,
    /// Doubles that are being suspended.
    #[serde(with = "crate::journal::pairs")]
    pub(crate) pausing: BTreeMap<Owner, JobId>,
    /// When this process said it wanted to be called.
    promised: Option<Time>,
    sif: Result<(), String>,
    pub(crate) brake: Option<(Time, String)>,
    alerts: Vec<(Option<TargetName>, String)>,
    pub(crate) orders: Orders,
    /// Given up under an earlier term, and why.
    pub(crate) given_up: BTreeMap<TargetName, String>,
    /// Absent in snapshots of before it was there; so is the next.
    #[serde(default)]
    pub(crate) quarantines: Quarantines,
    /// The shared tables, as last read. Absent in snapshots of before they were there; so are the next.
    #[serde(default)]
    pub(crate) tables: Option<Tables>,
    /// They, or what they are held against, have changed.
    #[serde(default)]
    pub(crate) follow: bool,
    /// Virtual servers in live migration that have left where they were.
    #[serde(default)]
    pub(crate) switched: BTreeMap<DomainName, Switched>,
    #[serde(default)]
    pub(crate) signals: Signals,
    /// Backup servers that keep the place of a target beyond repair, until they sleep at home again. Absent in snapshots of
    /// before they were there.
    #[serde(default)]
    pub(crate) stand_ins: BTreeMap<DomainName, StandIn>,
    /// The wall clock, read at that time: only for what an operator wants done at certain hours.
    wall: Option<(Time, u64)>,
    #[cfg(feature = "sabotage")]
    #[serde(skip)]
    pub(crate) sabotage: Option<Sabotage>,
}

/// One target, for status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetView {
    /// Thesis: the mode's name.
    pub mode: &'static str,
    /// How far within the mode; empty where it has no steps.
    pub step: &'static str,
    /// For people.
    pub detail: String,
    /// Since when.
    pub since: Time,
    /// ok, ng or unknown.
    pub ping: String,
    /// ok, error, ng or unknown.
    pub service: String,
}

/// One VIP, for status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VipView {
    /// As in the ledger.
    pub row: Option<VipRow>,
    /// When the last grant was decided here.
    pub granted: Option<Time>,
    /// Does its owner ask for it?
    pub held: bool,
    /// A move under way.
    pub moving: Option<&'static str>,
}

impl Coordinator {
    /// A coordinator that has just started, without a term.
    #[must_use]
    pub fn new(now: Time, cluster: Cluster) -> Self {
        let vips = cluster.vips().map(|(vip, target)| (vip, VipState::new(target.clone()))).collect();
        let targets = cluster.targets.keys().map(|name| (name.clone(), Dbss::new(now))).collect();
        let agents = cluster.agents.keys().map(|name| (name.clone(), AgentView::default())).collect();
        Self {
            cluster,
            started: now,
            term: TermState::None { retry: now },
            agents,
            vips,
            targets,
            jobs: BTreeMap::new(),
            last_job: JobId(0),
            long_asks: BTreeMap::new(),
            last_long: BTreeMap::new(),
            pausing: BTreeMap::new(),
            promised: None,
            sif: Err("not asked yet".into()),
            brake: None,
            alerts: Vec::new(),
            orders: Orders::default(),
            given_up: BTreeMap::new(),
            quarantines: Quarantines::default(),
            tables: None,
            follow: false,
            switched: BTreeMap::new(),
            signals: Signals::default(),
            stand_ins: BTreeMap::new(),
            wall: None,
            #[cfg(feature = "sabotage")]
            sabotage: None,
        }
    }

    /// One event in, actions out.
    pub fn step(&mut self, now: Time, event: Event, actions: &mut Vec<Action>) {
        self.notice_own_stall(now, actions);
        match event {
            Event::TermAcquired { term, sent, length, rows } => {
                self.term_acquired(now, term, sent, length, rows, actions)
            }
            Event::TermRenewed { term, sent, length } => self.term_renewed(term, sent, length),
            Event::TermLost { term, reason } => self.term_lost(now, term, reason, actions),
            Event::TermFailed { reason } => self.term_failed(now, reason, actions),
            Event::LedgerRead { rows } => self.ledger_read(now, &rows, actions),
            Event::AgentUp { agent, session, incarnation } => self.agent_up(&agent, session, incarnation, actions),
            Event::AgentDown { agent, session } => self.agent_down(now, &agent, session, actions),
            Event::Ask { agent, session, via, incarnation, nonce, heard, vips, long, long_surrendered } => {
                let ask = Asked { session, via, incarnation, nonce, heard, vips, long, long_surrendered };
                self.ask(now, &agent, ask, actions);
            }
            Event::Report { agent, report } => self.report(now, &agent, report, actions),
            Event::Job { job, result } => self.job_done(now, job, result, actions),
            Event::Move { command, target, back, force } => {
                self.operator_move(now, command, &target, back, force, actions)
            }
            Event::OrdersRead { orders, now_unix_ms } => {
                self.wall = Some((now, now_unix_ms));
                self.orders_read(now, orders, now_unix_ms, actions);
            }
            Event::WallClock { now_unix_ms } => self.wall = Some((now, now_unix_ms)),
            Event::TroublesRead { down } => self.given_up = down.into_iter().collect(),
            Event::TablesRead { tables } => self.tables_read(now, *tables, actions),
            Event::PutOrder { command, order } => self.put_order(now, command, order, actions),
            Event::ClearOrder { command, scope, who } => self.clear_order(now, command, scope, who, actions),
            Event::Adopt { command, target, who, found } => self.adopt(now, command, &target, &who, &found, actions),
            Event::EndQuarantine { command, agent, who } => self.end_quarantine(now, command, &agent, &who, actions),
            Event::Reload { command, cluster, force } => self.reload(now, command, &cluster, force, actions),
            Event::Tick => {}
        }
        self.run(now, actions);
        self.promised = self.deadline().map(|(time, _)| time);
    }

    /// When to call again, and why.
    #[must_use]
    pub fn deadline(&self) -> Option<(Time, &'static str)> {
        let mut next = match self.term {
            TermState::None { retry } => (retry, "acquire term"),
            TermState::Held { renew, .. } => (renew, "renew term"),
        };
        if let Some(end) = self.orders.deadline() {
            next = next.min((end, "order ends"));
        }
        if let Some(end) = self.quarantines.deadline() {
            next = next.min((end, "quarantine ends"));
        }
        if let Some(due) = self.signals.deadline() {
            next = next.min((due, "tell SIF"));
        }
        for dbss in self.targets.values().filter(|_| self.cluster.supervise) {
            next = next.min((dbss.wake, "supervise"));
        }
        for stand_in in self.stand_ins.values() {
            next = next.min((stand_in.wake, "stand in"));
        }
        for vip in self.vips.values() {
            next = next.min((vip.wake, "move"));
        }
        Some(next)
    }

    fn run(&mut self, now: Time, actions: &mut Vec<Action>) {
        match self.term {
            TermState::None { retry } if now >= retry => {
                self.term = TermState::None { retry: now + self.cluster.term };
                actions.push(Action::AcquireTerm);
            }
            TermState::Held { term, ref mut renew, .. } if now >= *renew => {
                *renew = now + self.cluster.term / 5;
                actions.push(Action::RenewTerm { term });
            }
            TermState::None { .. } | TermState::Held { .. } => {}
        }
        self.end_orders(now, actions);
        self.update_brake(now, actions);
        self.end_quarantines(now, actions);
        // Without DBSS among the controllers leases are granted and nobody is looked at.
        let supervised = self.targets.iter().filter(|_| self.cluster.supervise);
        let due: Vec<TargetName> =
            supervised.filter(|(_, dbss)| now >= dbss.wake).map(|(name, _)| name.clone()).collect();
        for target in due {
            self.supervise(now, &target, actions);
        }
        self.place_unowned(now);
        self.run_stand_ins(now, actions);
        self.follow_tables(now, actions);
        let due: Vec<Vip> = self.vips.iter().filter(|(_, vip)| now >= vip.wake).map(|(vip, _)| *vip).collect();
        for vip in due {
            self.place(now, vip, actions);
        }
        self.send_signals(now, actions);
    }

    /// An observer that was itself stalled discards its own evidence first (safety: when to act).
    fn notice_own_stall(&mut self, now: Time, actions: &mut Vec<Action>) {
        let Some(promised) = self.promised else {
            return;
        };
        let late = now.since(promised);
        let limit = self.cluster.timing.renewal.max(Duration::from_millis(100));
        if late <= limit {
            return;
        }
        for agent in self.agents.values_mut().filter(|agent| agent.alive.is_some()) {
            agent.alive = Some(now);
        }
        for dbss in self.targets.values_mut() {
            dbss.forget_evidence(now);
            dbss.wake = now;
        }
        self.note(
            None,
            Severity::Warning,
            "stalled",
            format!("this coordinator was stalled for {:?}: what it saw meanwhile is discarded", whole_millis(late)),
            actions,
        );
    }

    // ---- terms (rule 7) ----

    fn term_acquired(
        &mut self,
        now: Time,
        term: Term,
        sent: Time,
        length: Duration,
        rows: Vec<VipRow>,
        actions: &mut Vec<Action>,
    ) {
        let longest = LeaseTiming::patience(self.cluster.timing.lease);
        let mut floor = now + LeaseTiming::patience(length).saturating_add(longest);
        if self.breaks(Sabotage::NoWaitAfterNewTerm) {
            floor = now;
        }
        self.term = TermState::Held { term, until: sent + length, floor, renew: sent + self.cluster.term / 5 };
        self.sif = Ok(());
        self.alerts_over(None);
        self.note(None, Severity::Info, "term", format!("acting under term {term}"), actions);
        let long = LeaseTiming::patience(self.cluster.timing.long_lease).saturating_add(LeaseTiming::patience(length));
        for (vip, state) in &mut self.vips {
            let row = rows.iter().find(|row| row.vip == *vip).cloned();
            // What was begun under an earlier term may rest on rows that another has changed since: begun anew.
            state.begin_term(row);
            // Grants of earlier terms are unknown here: the floor outwaits them.
            state.granted_until = floor;
            if state.row.as_ref().is_some_and(|row| row.long_lease) {
                state.granted_until = floor.max(now + long);
            }
            state.wake = now;
        }
        self.ledger_read(now, &rows, actions);
        for dbss in self.targets.values_mut() {
            dbss.begin_again(now);
        }
        // What they were about is found again in the claims.
        self.stand_ins.clear();
        self.follow = true;
        self.tell_arrangement();
    }

    fn term_renewed(&mut self, renewed: Term, sent: Time, length: Duration) {
        if self.sif.is_err() {
            self.sif = Ok(());
            self.alerts_over(None);
        }
        if let TermState::Held { term, until, .. } = &mut self.term
            && *term == renewed
        {
            *until = (*until).max(sent + length);
        }
    }

    fn term_lost(&mut self, now: Time, lost: Term, reason: String, actions: &mut Vec<Action>) {
        if matches!(self.term, TermState::Held { term, .. } if term == lost) {
            self.term = TermState::None { retry: now + 2 * self.cluster.term };
            self.signals.forget();
            self.note(
                None,
                Severity::Alert,
                "term-lost",
                format!("term {lost} is over: {reason}; another coordinator may be active"),
                actions,
            );
        }
    }

    fn term_failed(&mut self, now: Time, reason: String, actions: &mut Vec<Action>) {
        if self.sif.is_ok() {
            let text = format!("SIF does not answer ({reason}): leases go on, nothing can be moved until it is back");
            self.note(None, Severity::Alert, "sif-away", text, actions);
        }
        self.sif = Err(reason);
        match &mut self.term {
            TermState::None { retry } => *retry = now + Duration::from_millis(500),
            TermState::Held { renew, .. } => *renew = now + self.cluster.term / 10,
        }
    }

    fn ledger_read(&mut self, now: Time, rows: &[VipRow], actions: &mut Vec<Action>) {
        for row in rows {
            let Some(state) = self.vips.get_mut(&row.vip) else {
                continue;
            };
            if state.learn(row)
                && let Some(dbss) = self.targets.get_mut(&state.target)
            {
                dbss.begin_again(now);
            }
            if !self.cluster.agents.contains_key(&row.owner) {
                let text = format!("{} belongs to {}, which is not configured any more", row.vip, row.owner);
                self.note(None, Severity::Alert, "unknown-owner", text, actions);
            }
        }
    }

    pub(crate) fn in_authority(&self, now: Time) -> bool {
        matches!(self.term, TermState::Held { until, .. } if now <= until)
    }

    pub(crate) fn current_term(&self) -> Term {
        match self.term {
            TermState::None { .. } => Term(0),
            TermState::Held { term, .. } => term,
        }
    }

    // ---- agents ----

    fn agent_up(&mut self, agent: &AgentId, session: SessionId, incarnation: u64, actions: &mut Vec<Action>) {
        let Some(view) = self.agents.get_mut(agent) else {
            return;
        };
        view.session = Some(session);
        let _ = incarnation;
        self.note(None, Severity::Info, "agent-up", format!("agent {agent} is connected"), actions);
    }

    fn agent_down(&mut self, now: Time, agent: &AgentId, session: SessionId, actions: &mut Vec<Action>) {
        let Some(view) = self.agents.get_mut(agent) else {
            return;
        };
        if view.session != Some(session) {
            return;
        }
        view.session = None;
        let severity = if self.at_rest(agent) { Severity::Info } else { Severity::Warning };
        self.note(None, severity, "agent-down", format!("the stream of agent {agent} ended"), actions);
        if self.cluster.detection.push {
            self.wake_targets_of(agent, now);
        }
    }

    pub(crate) fn wake_targets_of(&mut self, agent: &AgentId, now: Time) {
        let concerned = self.cluster.targets.iter().filter(|(_, target)| self.concerns(target, agent));
        for name in concerned.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            if let Some(dbss) = self.targets.get_mut(&name) {
                dbss.wake = now;
            }
        }
    }

    // ---- reports, jobs, operators ----

    fn report(&mut self, now: Time, agent: &AgentId, report: AgentReport, actions: &mut Vec<Action>) {
        match report {
            AgentReport::Opened(ask) => {
                let target = self.vips.get(&ask.vip).map(|state| state.target.clone());
                let text = format!("{} is open on {agent} at epoch {}", ask.vip, ask.epoch);
                self.note(target, Severity::Info, "vip-open", text, actions);
            }
            AgentReport::Lost { ask, reason } => {
                let target = self.vips.get(&ask.vip).map(|state| state.target.clone());
                let text = format!("{} is closed on {agent} at epoch {}: {reason}", ask.vip, ask.epoch);
                self.note(target, Severity::Info, "vip-closed", text, actions);
                if tables::is_switch_over(&reason) {
                    self.switched_over(now, agent, ask);
                }
            }
            AgentReport::GoingDown { machine, what } => {
                let text = format!("{agent} is going down ({what})");
                self.note(None, Severity::Info, "going-down", text, actions);
                self.silence_announced(now, agent);
                if machine && self.cluster.detection.push {
                    self.going_down(now, agent, actions);
                }
            }
            AgentReport::ServiceDown { service, detail } => {
                if self.cluster.detection.push {
                    self.service_down(now, agent, &service, &detail, actions);
                }
            }
            AgentReport::ServiceHeld { service, held } => self.service_held(agent, &service, held, actions),
            AgentReport::VmCrashed { domain, detail } => {
                self.virtual_server_crashed(now, agent, &domain, &detail, actions);
                self.double_crashed(now, agent, &domain, &detail, actions);
            }
            AgentReport::Other(text) => self.note(None, Severity::Info, "agent", format!("{agent}: {text}"), actions),
        }
    }

    pub(crate) fn job(&mut self, what: JobFor) -> JobId {
        self.last_job = JobId(self.last_job.0 + 1);
        self.jobs.insert(self.last_job, what);
        self.last_job
    }

    fn job_done(&mut self, now: Time, job: JobId, result: JobResult, actions: &mut Vec<Action>) {
        match self.jobs.remove(&job) {
            Some(JobFor::Vip(vip, what)) => self.vip_job_done(now, vip, what, job, result, actions),
            Some(JobFor::Target(target, what)) => self.target_job_done(now, &target, what, job, result, actions),
            Some(JobFor::Ready { target, command, force }) => {
                self.double_ready(now, command, &target, force, &result, actions);
            }
            Some(JobFor::LongLease(agent)) => self.long_noted(now, &agent, job, &result, actions),
            Some(JobFor::Pause(double, target)) => {
                self.pause_done(now, &double, target, job, &result, actions);
            }
            Some(JobFor::Signal) => self.signal_done(now, job, &result, actions),
            Some(JobFor::StandIn(domain, what)) => {
                self.stand_in_job_done(now, &domain, &what, job, &result, actions);
            }
            Some(JobFor::Order(what)) => self.order_job_done(now, what, &result, actions),
            Some(JobFor::LongReturned(_)) | None => {}
        }
    }

    pub(crate) fn note(
        &mut self,
        target: Option<TargetName>,
        severity: Severity,
        kind: &str,
        text: String,
        actions: &mut Vec<Action>,
    ) {
        if severity == Severity::Alert {
            self.alerts.retain(|(about, known)| *about != target || *known != text);
            self.alerts.push((target.clone(), text.clone()));
            if self.alerts.len() > MAX_ALERTS {
                self.alerts.remove(0);
            }
        }
        actions.push(Action::Note(Note { target, severity, kind: kind.to_owned(), text }));
    }

    // ---- storm brake (safety: when to act) ----

    fn update_brake(&mut self, now: Time, actions: &mut Vec<Action>) {
        let limit = self.silence_limit();
        let here = self.cluster.coordinator.ip();
        let mut domains: BTreeMap<&str, bool> = BTreeMap::new();
        for (name, machine) in &self.cluster.agents {
            let Some(alive) = self.agents.get(name).and_then(|view| view.alive) else {
                continue;
            };
            if machine.address.ip() == here || self.at_rest(name) {
                continue;
            }
            let up = now.since(alive) <= limit;
            *domains.entry(self.failure_domain(name, machine)).or_insert(false) |= up;
        }
        let total = domains.len();
        let dark: BTreeSet<&str> = domains.iter().filter(|(_, up)| !**up).map(|(name, _)| *name).collect();
        let storm = dark.len() >= 2 && (dark.len() * 2 > total);
        let text = if !storm {
            None
        } else if dark.len() == total {
            Some(format!("none of {total} failure domains answers: this coordinator is probably cut off itself"))
        } else {
            let names: Vec<&str> = dark.into_iter().collect();
            Some(format!("{} of {total} failure domains went dark at once ({})", names.len(), names.join(", ")))
        };
        if text.is_some() || self.brake.is_some() {
            self.quarantines.braked(now);
        }
        match (text, &self.brake) {
            (Some(text), None) => {
                let message = format!("{text}: nothing is taken over without proof until this clears");
                self.note(None, Severity::Alert, "storm-brake", message, actions);
                self.brake = Some((now, text));
            }
            (None, Some(_)) => {
                self.brake = None;
                self.alerts_over(None);
                self.note(None, Severity::Info, "storm-over", "the storm brake is released".into(), actions);
                for dbss in self.targets.values_mut() {
                    dbss.forget_evidence(now);
                    dbss.wake = now;
                }
            }
            (Some(_), Some(_)) | (None, None) => {}
        }
    }

    /// An agent not heard for longer than this is silent.
    pub(crate) fn silence_limit(&self) -> Duration {
        3 * self.cluster.timing.renewal
    }

    /// May patience ever be relied on against this owner?
    pub(crate) fn patience_allowed(&self, owner: Option<&AgentId>) -> bool {
        let guarded = owner
            .and_then(|owner| self.cluster.agents.get(owner))
            .is_none_or(|machine| machine.guard != crate::config::Guard::None);
        guarded && self.cluster.on_coordinator_loss != OnCoordinatorLoss::Keep
    }

    // ---- views ----

    /// The configuration in force.
    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Term, whether it is valid now, and SIF's state.
    pub fn authority(&self, now: Time) -> (Term, bool, &Result<(), String>) {
        (self.current_term(), self.in_authority(now), &self.sif)
    }

    /// Why nothing is acted on, if so.
    #[must_use]
    pub fn storm_brake(&self) -> Option<&str> {
        self.brake.as_ref().map(|(_, text)| text.as_str())
    }

    /// What was alerted about and is not over, oldest first.
    #[must_use]
    pub fn alerts(&self) -> Vec<String> {
        let line = |(target, text): &(Option<TargetName>, String)| match target {
            Some(target) => format!("{target}: {text}"),
            None => text.clone(),
        };
        self.alerts.iter().map(line).collect()
    }

    /// What was alerted about this target, or about the coordinator itself, is over.
    pub(crate) fn alerts_over(&mut self, target: Option<&TargetName>) {
        self.alerts.retain(|(about, _)| about.as_ref() != target);
    }

    /// This alert, and no other, is over.
    pub(crate) fn alert_over(&mut self, text: &str) {
        self.alerts.retain(|(_, known)| known != text);
    }

    /// The wall clock, milliseconds since 1970, as far as it is known here.
    pub(crate) fn unix_ms(&self, now: Time) -> Option<u64> {
        let (read, unix_ms) = self.wall?;
        Some(unix_ms.saturating_add(u64::try_from(now.since(read).as_millis()).unwrap_or(u64::MAX)))
    }

    /// Is this agent connected, and when did it last ask?
    #[must_use]
    pub fn agent(&self, agent: &AgentId) -> (bool, Option<Time>) {
        self.agents.get(agent).map_or((false, None), |view| (view.session.is_some(), view.asked))
    }

    /// One target.
    #[must_use]
    pub fn target(&self, target: &TargetName) -> Option<TargetView> {
        let mut view = self.targets.get(target).map(Dbss::view)?;
        if let Some(text) = self.stand_in_text(target) {
            view.detail = if view.detail.is_empty() { text } else { format!("{}; {text}", view.detail) };
        }
        view.detail = self.detail_under_orders(target, view.detail);
        Some(view)
    }

    /// One VIP.
    #[must_use]
    pub fn vip(&self, vip: Vip) -> Option<VipView> {
        self.vips.get(&vip).map(VipState::view)
    }
}

mod adopt;
mod grants;
mod orders;
mod reload;
mod signals;
mod tables;
mod unsupervised;
use grants::Asked;
pub use orders::OrderView;
pub(crate) use orders::{Act, OrderJob, Orders, span};
pub(crate) use signals::{Signal, Signals};
pub(crate) use tables::Switched;
