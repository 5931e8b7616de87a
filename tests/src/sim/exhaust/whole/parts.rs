//! What the parts want done: the shells of the small world.

use super::*;

impl Whole {
    // ---- SIF and the coordinator ----

    pub(super) fn ask_sif(&mut self, request: Request) -> Option<Result<kage_sif_core::Reply, Refusal>> {
        self.requests += 1;
        let mut todo = VecDeque::from([kage_sif_core::Event::Request { id: RequestId(self.requests), request }]);
        let mut answer = None;
        while let Some(event) = todo.pop_front() {
            let mut actions = Vec::new();
            Rc::make_mut(&mut self.sif).step(event, &mut actions);
            for action in actions {
                match action {
                    kage_sif_core::Action::Persist { commit, changes } => {
                        let disk = Rc::make_mut(&mut self.disk);
                        changes.iter().for_each(|change| disk.apply(change));
                        todo.push_back(kage_sif_core::Event::Persisted { commit });
                    }
                    kage_sif_core::Action::Reply { result, .. } => answer = Some(result),
                    kage_sif_core::Action::Publish { .. }
                    | kage_sif_core::Action::Reload
                    | kage_sif_core::Action::Alert { .. } => {}
                }
            }
        }
        self.parts[1] = hash(&self.disk);
        answer
    }

    pub(super) fn ends(&mut self, after: Ns, job: JobId, result: JobResult) {
        self.due.push((self.now + after, job, result));
        self.due.sort_by_key(|(at, job, _)| (*at, job.0));
    }

    pub(super) fn act(&mut self, action: Action, scope: &Scope) {
        let term = self.coordinator.authority(self.time()).0;
        let sent = self.time();
        let length = Duration::from_secs(TERM);
        let unknown = || JobResult::Unknown("no answer in time".into());
        match action {
            Action::Reply { session, grant, .. } => {
                let index = usize::try_from(session.0 % 10).unwrap_or(0);
                if index == 1 || (index == 0 && self.well) {
                    self.handed.push_back((index, OwnerEvent::Answer { grant, relayed: false }));
                } else if index == 0 {
                    let items = grant.items.iter().map(|item| (item.epoch, item.verdict as u8)).collect();
                    let Grant { nonce, term, in_authority: authority, .. } = grant;
                    self.send(Message::Grant { nonce, term, authority, items });
                }
            }
            Action::AcquireTerm => {
                match self.ask_sif(Request::AcquireTerm { coordinator: format!("C{}", self.life) }) {
                    Some(Ok(kage_sif_core::Reply::Term { term })) => {
                        let rows = rows(&self.disk);
                        self.inbox.push_back(Event::OrdersRead { orders: Vec::new(), now_unix_ms: 0 });
                        self.inbox.push_back(Event::TermAcquired { term, sent, length, rows });
                    }
                    Some(_) | None => {
                        for voter in 2..5 {
                            let store = self.voters[voter - 2].remembered();
                            let report = Report { highest_term: store.highest_term, epochs: store.epochs.clone() };
                            self.ask_sif(Request::ReportVoter { reporter: agent(voter), report });
                        }
                        self.inbox.push_back(Event::TermFailed { reason: "reports are wanted".into() });
                    }
                }
            }
            Action::RenewTerm { term } => {
                if let Some(Ok(_)) = self.ask_sif(Request::RenewTerm { term }) {
                    self.inbox.push_back(Event::TermRenewed { term, sent, length });
                }
            }
            Action::ReadLedger => self.inbox.push_back(Event::LedgerRead { rows: rows(&self.disk) }),
            Action::AdvanceEpoch { job, vip, expected, owner, domain, target, cause } => {
                let cause = cause.as_str().parse().unwrap_or(Cause::Takeover);
                let request = Request::AdvanceEpoch { term, vip, expected, owner, domain, target, cause };
                let result = match self.ask_sif(request) {
                    Some(Ok(kage_sif_core::Reply::Epoch { epoch, .. })) => JobResult::Epoch(epoch),
                    Some(Ok(_)) => JobResult::Done,
                    Some(Err(refusal)) => JobResult::Failed(refusal.to_string()),
                    None => unknown(),
                };
                self.inbox.push_back(Event::Job { job, result });
            }
            Action::SetLongLease { job, .. }
            | Action::PutOrder { job, .. }
            | Action::ClearOrder { job, .. }
            | Action::PutArrangement { job, .. }
            | Action::FunctionRestored { job, .. }
            | Action::TargetVerdict { job, .. }
            | Action::PutClaims { job, .. }
            | Action::MovedTo { job, .. } => {
                self.ends(MS, job, JobResult::Done);
            }
            Action::Bar { job, voter, floor, .. } => {
                let to = NAMES.iter().position(|name| *name == voter.as_str()).unwrap_or(2) - 2;
                if self.well || !scope.voters || self.lost[to] {
                    self.bar(to, job.0, term, floor);
                } else {
                    self.send(Message::Bar { to, job: job.0, term, floor });
                    self.ends(500 * MS, job, unknown());
                }
            }
            Action::Command { job, agent, command, timeout } => self.command(term, job, &agent, command, timeout),
            Action::Ping { job, address, timeout, .. } => self.look(job, address, timeout),
            Action::Probe { job, address, limits, .. } => self.look(job, address, limits.total),
            Action::ReadPower { job, .. } => self.ends(MS, job, JobResult::Failed("on".into())),
            Action::PowerOff { job, .. } | Action::FenceStorage { job, .. } => {
                self.ends(MS, job, JobResult::Failed("there is no such command".into()));
            }
            Action::PutTrouble { .. } | Action::Configured | Action::Note(_) | Action::Moved { .. } => {}
        }
    }

    pub(super) fn look(&mut self, job: JobId, address: std::net::IpAddr, timeout: Duration) {
        let lost = !self.well && (address == std::net::IpAddr::from([10, 0, 0, 11]) || address == self.vip().address());
        let (after, outcome) =
            if lost { (ns(timeout), CheckOutcome::Ng("no answer".into())) } else { (MS, CheckOutcome::Ok) };
        self.ends(after, job, JobResult::Check(outcome));
    }

    pub(super) fn command(
        &mut self,
        term: Term,
        job: JobId,
        agent: &AgentId,
        command: AgentCommand,
        timeout: Duration,
    ) {
        let who = usize::from(agent.as_str() != NAMES[0]);
        let reached = who == 1 || self.well;
        let id = CommandId(job.0);
        match command {
            AgentCommand::Hold { ask, domain } if reached => {
                let place = domain.map_or(Place::Host, Place::Vm);
                self.handed.push_back((who, OwnerEvent::Hold { command: id, term, ask, place }));
                self.ends(ns(timeout), job, JobResult::Unknown("no answer in time".into()));
            }
            AgentCommand::Release { ask } => {
                if reached {
                    self.handed.push_back((who, OwnerEvent::Release { command: id, term, ask }));
                } else if !std::mem::replace(&mut self.released, true) {
                    // Further ones are lost: a bound of the scope.
                    self.send(Message::Release { job: job.0, term, ask });
                }
                self.ends(ns(timeout), job, JobResult::Unknown("no answer in time".into()));
            }
            AgentCommand::ProbeVip { listen, .. } => self.ends(ns(listen), job, JobResult::Answered(None)),
            AgentCommand::PauseVm { .. }
            | AgentCommand::ResumeVm { .. }
            | AgentCommand::Prepare { .. }
            | AgentCommand::Wake { .. }
                if reached =>
            {
                self.ends(MS, job, JobResult::Done);
            }
            AgentCommand::Hold { .. }
            | AgentCommand::PauseVm { .. }
            | AgentCommand::ResumeVm { .. }
            | AgentCommand::Prepare { .. }
            | AgentCommand::Wake { .. }
            | AgentCommand::StartVm { .. }
            | AgentCommand::DestroyVm { .. }
            | AgentCommand::RebootVm { .. }
            | AgentCommand::MigrateVm { .. }
            | AgentCommand::FindVm { .. }
            | AgentCommand::RestartService { .. }
            | AgentCommand::Reboot => self.ends(ns(timeout), job, JobResult::Unknown("no answer in time".into())),
        }
    }

    // ---- agents ----

    pub(super) fn send(&mut self, message: Message) {
        self.messages.insert((message, self.now));
    }

    pub(super) fn owner(&mut self, who: usize, event: OwnerEvent, scope: &Scope) {
        let mut actions = Vec::new();
        let time = self.time();
        Rc::make_mut(&mut self.owners[who]).step(time, event, &mut actions);
        for action in actions {
            match action {
                OwnerAction::Kernel { op, change, .. } => self.queues[who].push((op, change, false)),
                OwnerAction::Ask { nonce, heard, vips, long, long_surrendered } => {
                    let (agent, session) = (agent(who), self.session(who));
                    if who == 1 || self.well {
                        let ask = Event::Ask {
                            agent,
                            session,
                            via: None,
                            incarnation: 1,
                            nonce,
                            heard,
                            vips,
                            long,
                            long_surrendered,
                        };
                        self.inbox.push_back(ask);
                    } else if self.asks < scope.asks && !scope.voters {
                        // Beyond the bound, requests of the old owner are lost.
                        self.asks += 1;
                        self.send(Message::Ask { nonce, heard, vips, surrendered: long_surrendered });
                    }
                }
                OwnerAction::AskVoters { nonce, vips, .. } if scope.voters && who == 0 && !self.well => {
                    if self.asks < scope.asks {
                        self.asks += 1;
                        (0..3).for_each(|to| self.send(Message::Vote { to, nonce, vips: vips.clone() }));
                    }
                }
                OwnerAction::Opened { .. } => self.opened |= who == 1,
                OwnerAction::Remember { version, .. } => {
                    self.handed.push_back((who, OwnerEvent::Remembered { version, ok: true }));
                }
                OwnerAction::Done { command, result } => {
                    let result =
                        result.map_or_else(|refused| JobResult::Failed(refused.to_string()), |()| JobResult::Done);
                    self.inbox.push_back(Event::Job { job: JobId(command.0), result });
                }
                OwnerAction::AskVoters { .. }
                | OwnerAction::PutAddress(_)
                | OwnerAction::DropAddress(_)
                | OwnerAction::Announce { .. }
                | OwnerAction::Lost { .. }
                | OwnerAction::Store(_)
                | OwnerAction::KernelTrouble { .. } => {}
            }
        }
        self.parts[2 + who] = hash(&self.owners[who]);
    }

    pub(super) fn check(&mut self, who: usize) -> Option<(OpId, OwnerEvent)> {
        let time = self.time();
        let (op, change, checked) = self.queues[who].first_mut()?;
        let late = match change {
            KernelOp::Open { not_after, .. } | KernelOp::Renew { not_after, .. } => time > *not_after,
            KernelOp::Arm { .. } | KernelOp::Close { .. } => false,
        };
        *checked = true;
        let op = *op;
        late.then(|| {
            self.queues[who].remove(0);
            (op, OwnerEvent::Kernel { op, outcome: KernelOutcome::TooLate, at: time })
        })
    }

    pub(super) fn effect(&mut self, who: usize) -> OwnerEvent {
        let (op, change, _) = self.queues[who].remove(0);
        let outcome = self.kernels[who].apply(self.now, &Clock::new(0, 0, 0), &change, Duration::ZERO);
        let vip = self.vip();
        self.two |= self.kernels.iter().all(|kernel| kernel.live_until(self.now, vip).is_some());
        OwnerEvent::Kernel { op, outcome, at: self.time() }
    }

    pub(super) fn voter(&mut self, index: usize, event: VoterEvent, nonce: Nonce, job: u64) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let mut actions = Vec::new();
            let time = self.time();
            Rc::make_mut(&mut self.voters[index]).step(time, event, &mut actions);
            for action in actions {
                match action {
                    VoterAction::Store { version, .. } => events.push(VoterEvent::Stored { version, ok: true }),
                    VoterAction::Consent { vips, .. } if !vips.is_empty() => {
                        self.send(Message::Consent { from: index, nonce, vips });
                    }
                    VoterAction::Barred { last_consent_age, .. } => {
                        self.inbox
                            .push_back(Event::Job { job: JobId(job), result: JobResult::Barred(last_consent_age) });
                    }
                    VoterAction::Consent { .. } | VoterAction::Relay { .. } | VoterAction::Refuse { .. } => {}
                }
            }
        }
        self.parts[4 + index] = hash(&self.voters[index]);
    }

    pub(super) fn bar(&mut self, to: usize, job: u64, term: Term, floor: Epoch) {
        self.barred[to] = true;
        self.voter(to, VoterEvent::Bar { id: 1, term, vip: self.vip(), floor }, Nonce(0), job);
    }

    pub(super) fn deliver(&mut self, message: &Message) -> Option<OwnerEvent> {
        match message {
            Message::Vote { to, nonce, vips } => {
                let event = VoterEvent::Vote {
                    id: 0,
                    from: agent(0),
                    nonce: *nonce,
                    vips: vips.clone(),
                    reaches_coordinator: false,
                };
                self.voter(*to, event, *nonce, 0);
                None
            }
            Message::Consent { from, nonce, vips } => {
                let event = OwnerEvent::Consent { voter: agent(2 + from), nonce: *nonce, vips: vips.clone() };
                // With two consents the request is granted: a third could only make the coordinator wait longer.
                let heard = self.heard.entry(*nonce).or_default();
                *heard += 1;
                if *heard >= 2 {
                    self.messages.retain(|(message, _)| match message {
                        Message::Vote { nonce: other, .. } | Message::Consent { nonce: other, .. } => other != nonce,
                        Message::Ask { .. } | Message::Grant { .. } => true,
                        Message::Bar { .. } | Message::Release { .. } => true,
                    });
                }
                Some(event)
            }
            Message::Ask { nonce, heard, vips, surrendered } => {
                let (agent, session) = (agent(0), self.session(0));
                self.inbox.push_back(Event::Ask {
                    agent,
                    session,
                    via: None,
                    incarnation: 1,
                    nonce: *nonce,
                    heard: *heard,
                    vips: vips.clone(),
                    long: false,
                    long_surrendered: *surrendered,
                });
                None
            }
            Message::Grant { nonce, term, authority, items } => {
                let known = [Verdict::Granted, Verdict::Wait, Verdict::Superseded];
                let verdict = |code: u8| known.into_iter().find(|known| *known as u8 == code).unwrap_or(Verdict::Wait);
                let vip = self.vip();
                let item = |(epoch, code): &(Epoch, u8)| GrantItem { vip, epoch: *epoch, verdict: verdict(*code) };
                let grant = Grant {
                    nonce: *nonce,
                    term: *term,
                    in_authority: *authority,
                    length: Duration::from_secs(LEASE),
                    items: items.iter().map(item).collect(),
                };
                Some(OwnerEvent::Answer { grant, relayed: false })
            }
            Message::Bar { to, job, term, floor } => {
                self.bar(*to, *job, *term, *floor);
                None
            }
            Message::Release { job, term, ask } => {
                Some(OwnerEvent::Release { command: CommandId(*job), term: *term, ask: *ask })
            }
        }
    }
}
