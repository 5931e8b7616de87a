//! What a move may rest on, and what ends it (docs/safety.md, rules 5, 7, 9).

use kage_coordinator_core::{
    Action, AgentCommand, Cause, Coordinator, Event, JobId, JobResult, SessionId, VipRow, config::Cluster,
};
use kage_types::{AgentId, AskVip, Epoch, Nonce, Term, Time, Verdict, Vip};
use std::time::Duration;

const CLUSTER: &str = r#"
    [cluster]
    name = "test"
    [coordinator]
    listen = "10.0.0.2:7700"
    [sif]
    listen = "10.0.0.2:7701"
    [[agent]]
    name = "mail"
    address = "10.0.0.11:7702"
    [[agent]]
    name = "mgmt"
    address = "10.0.0.12:7702"
    guard = "tap"
    [[agent]]
    name = "v1"
    address = "10.0.0.21:7702"
    voter = true
    [[agent]]
    name = "v2"
    address = "10.0.0.22:7702"
    voter = true
    [[agent]]
    name = "v3"
    address = "10.0.0.23:7702"
    voter = true
    [[target]]
    name = "mail"
    agent = "mail"
    vips = ["10.0.0.100"]
    backup = { agent = "mgmt", domain = "mailb" }
"#;

struct Bench {
    core: Coordinator,
    now: u64,
    nonce: u64,
    /// Wanted, and not yet done.
    waiting: Vec<Action>,
}

fn agent(name: &str) -> AgentId {
    AgentId::new(name).expect("name")
}

fn vip() -> Vip {
    "10.0.0.100".parse().expect("vip")
}

fn row(epoch: u64, owner: &str, long_lease: bool) -> VipRow {
    let domain = (owner == "mgmt").then(|| "mailb".parse().expect("domain"));
    VipRow { vip: vip(), epoch: Epoch(epoch), owner: agent(owner), domain, cause: Cause::Takeover, long_lease }
}

impl Bench {
    fn new(rows: Vec<VipRow>) -> Self {
        let core = Coordinator::new(Time::ZERO, Cluster::parse(CLUSTER).expect("cluster"));
        let mut bench = Self { core, now: 1000, nonce: 0, waiting: vec![] };
        bench.term(1, rows);
        bench
    }

    fn step(&mut self, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        self.core.step(Time::from_millis(self.now), event, &mut actions);
        actions
    }

    fn term(&mut self, term: u64, rows: Vec<VipRow>) -> Vec<Action> {
        let sent = Time::from_millis(self.now);
        self.step(Event::TermAcquired { term: Term(term), sent, length: Duration::from_secs(500), rows })
    }

    fn ask(&mut self, name: &str, epoch: u64) -> (Verdict, Vec<Action>) {
        self.nonce += 1;
        let actions = self.step(Event::Ask {
            agent: agent(name),
            session: SessionId(1),
            via: None,
            incarnation: 1,
            nonce: Nonce(self.nonce),
            heard: Nonce(self.nonce - 1),
            vips: vec![AskVip { vip: vip(), epoch: Epoch(epoch) }],
            long: false,
            long_surrendered: true,
        });
        let verdict = actions.iter().find_map(|action| {
            if let Action::Reply { grant, .. } = action { Some(grant.items[0].verdict) } else { None }
        });
        (verdict.expect("an answer"), actions)
    }

    /// The owner asks, and time goes by, until an action is wanted.
    fn until<T>(&mut self, found: impl Fn(&Action) -> Option<T>) -> T {
        for _ in 0..2000 {
            self.now += 50;
            if let Some(wanted) = self.step(Event::Tick).iter().find_map(&found) {
                return wanted;
            }
        }
        panic!("not within 100 s");
    }

    /// Everybody does what the move wants, until the new owner is told to hold.
    fn obeyed_until_held(&mut self) -> (JobId, AgentId, Epoch) {
        let mut waiting = std::mem::take(&mut self.waiting);
        for _ in 0..2000 {
            self.now += 50;
            waiting.extend(self.step(Event::Tick));
            for action in std::mem::take(&mut waiting) {
                if let Some(told) = hold(&action) {
                    return told;
                }
                let (job, result) = match action {
                    Action::Bar { job, .. } => (job, JobResult::Barred(Duration::from_secs(60))),
                    Action::Command { job, .. } => (job, JobResult::Done),
                    Action::Reply { .. }
                    | Action::AcquireTerm
                    | Action::RenewTerm { .. }
                    | Action::ReadLedger
                    | Action::AdvanceEpoch { .. }
                    | Action::SetLongLease { .. }
                    | Action::Ping { .. }
                    | Action::Probe { .. }
                    | Action::ReadPower { .. }
                    | Action::PowerOff { .. }
                    | Action::FenceStorage { .. }
                    | Action::PutTrouble { .. }
                    | Action::PutOrder { .. }
                    | Action::ClearOrder { .. }
                    | Action::PutArrangement { .. }
                    | Action::FunctionRestored { .. }
                    | Action::TargetVerdict { .. }
                    | Action::PutClaims { .. }
                    | Action::MovedTo { .. }
                    | Action::Note(_)
                    | Action::Configured
                    | Action::Moved { .. } => continue,
                };
                waiting.extend(self.step(Event::Job { job, result }));
            }
        }
        panic!("nobody was told to hold within 100 s");
    }

    /// The operator moves the target's VIP, up to the durable epoch.
    fn moved(&mut self, back: bool) -> u64 {
        let target = "mail".parse().expect("target");
        let mut actions = self.step(Event::Move { command: 1, target, back, force: true });
        if let Some(job) = actions.iter().find_map(resume) {
            // A fail-over begins when its double runs.
            actions = self.step(Event::Job { job, result: JobResult::Done });
        }
        let advance = |action: &Action| {
            if let Action::AdvanceEpoch { job, expected, .. } = action { Some((*job, expected.0 + 1)) } else { None }
        };
        let (job, epoch) = actions
            .iter()
            .find_map(advance)
            .unwrap_or_else(|| panic!("no new epoch: {:?}", std::mem::take(&mut actions)));
        self.waiting = self.step(Event::Job { job, result: JobResult::Epoch(Epoch(epoch)) });
        epoch
    }
}

fn resume(action: &Action) -> Option<JobId> {
    let Action::Command { job, command: AgentCommand::ResumeVm { .. }, .. } = action else { return None };
    Some(*job)
}

#[test]
fn a_double_that_cannot_be_resumed_takes_nothing_from_a_target_that_serves() {
    let mut bench = Bench::new(vec![row(3, "mail", false)]);
    bench.ask("mail", 3);
    bench.ask("mgmt", 0);
    let target = "mail".parse().expect("target");
    let asked = bench.step(Event::Move { command: 1, target, back: false, force: true });
    let job = asked.iter().find_map(resume).expect("resumed first");
    let actions = bench.step(Event::Job { job, result: JobResult::Failed("no domain".into()) });
    let refused = actions.iter().find_map(|action| {
        let Action::Moved { command: 1, result: Err(why) } = action else { return None };
        Some(why.as_str())
    });
    assert!(refused.is_some_and(|why| why.contains("stays where it is") && why.contains("no domain")), "{actions:?}");
    assert!(!actions.iter().any(|action| matches!(action, Action::AdvanceEpoch { .. })), "{actions:?}");
}

fn hold(action: &Action) -> Option<(JobId, AgentId, Epoch)> {
    if let Action::Command { job, agent, command: AgentCommand::Hold { ask, .. }, .. } = action {
        Some((*job, agent.clone(), ask.epoch))
    } else {
        None
    }
}

#[test]
fn a_newer_row_ends_a_move_and_its_destination_is_not_told_another_owners_epoch() {
    let mut bench = Bench::new(vec![row(3, "mail", false)]);
    bench.ask("mail", 3);
    bench.ask("mgmt", 0);
    assert_eq!(bench.moved(false), 4);
    let (job, to, epoch) = bench.obeyed_until_held();
    assert_eq!((to.as_str(), epoch), ("mgmt", Epoch(4)));
    bench.step(Event::Job { job, result: JobResult::Failed("it has seen a higher term".into()) });
    // Meanwhile another coordinator gave the VIP on, and this one has a new term.
    bench.now += 100;
    let mut actions = bench.term(5, vec![row(7, "mail", false)]);
    for _ in 0..400 {
        bench.now += 50;
        actions.extend(bench.ask("mail", 7).1);
        actions.extend(bench.step(Event::Tick));
    }
    let wrong = actions.iter().filter_map(hold).find(|(_, agent, _)| agent.as_str() == "mgmt");
    assert_eq!(wrong, None, "epoch 7 is the target's");
}

#[test]
fn a_late_read_neither_lowers_the_epoch_nor_forgets_a_long_lease() {
    let mut bench = Bench::new(vec![row(3, "mail", true)]);
    bench.step(Event::LedgerRead { rows: vec![row(2, "mgmt", false)] });
    bench.step(Event::LedgerRead { rows: vec![row(3, "mail", false)] });
    assert_eq!(bench.core.vip(vip()).and_then(|view| view.row), Some(row(3, "mail", true)));
}

#[test]
fn a_new_owner_does_not_return_its_predecessors_long_lease() {
    let mut bench = Bench::new(vec![row(3, "mail", false)]);
    bench.ask("mail", 3);
    bench.ask("mgmt", 0);
    let epoch = bench.moved(false);
    // The ledger still has the old owner's long lease against the new epoch.
    bench.step(Event::LedgerRead { rows: vec![row(epoch, "mgmt", true)] });
    let (_, actions) = bench.ask("mgmt", 0);
    let returned = actions.iter().any(|action| matches!(action, Action::SetLongLease { outstanding: false, .. }));
    assert!(!returned, "{actions:?}");
}

#[test]
fn a_ledger_without_its_rows_is_not_asked_to_advance_what_it_does_not_have() {
    let mut bench = Bench::new(vec![row(3, "mail", false)]);
    bench.now += 100;
    let actions = bench.term(1005, vec![]);
    let expected = |action: &Action| {
        if let Action::AdvanceEpoch { expected, .. } = action { Some(*expected) } else { None }
    };
    let first = actions.iter().find_map(expected).unwrap_or_else(|| bench.until(expected));
    assert_eq!(first, Epoch(0));
}
