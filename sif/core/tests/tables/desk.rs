//! The thesis's cluster: two real servers with three groups, and a ledger whose disk always works.

use kage_sif_core::{
    Action, Change, Core, Electorate, Event, Ledger, Refusal, Reply, Report, Request, RequestId, Shared, Signal,
};
use kage_types::{
    AgentId, Claim, Condition, DomainName, GroupName, OperationRow, Revision, StateRow, Step, StepState, Tables, Term,
    Vip,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    str::FromStr,
};

pub fn n<T: FromStr<Err: Debug>>(name: &str) -> T {
    name.parse().unwrap()
}

/// Place, home, virtual IP. Backups mailb and webb are on mgmt.
pub const PLACES: [(&str, &str, &str); 6] = [
    ("mail1", "rs1", "10.0.0.1"),
    ("mail2", "rs2", "10.0.0.4"),
    ("web1", "rs1", "10.0.0.2"),
    ("web2", "rs2", "10.0.0.5"),
    ("ftp1", "rs2", "10.0.0.3"),
    ("ftp2", "rs3", "10.0.0.6"),
];

pub fn row(place: &str, home: &str, vip: &str) -> OperationRow {
    OperationRow {
        group: Some(n(place.trim_end_matches(char::is_numeric))),
        vm: n(place),
        host: n(home),
        home: n(home),
        home_vips: BTreeSet::from([n(vip)]),
    }
}

pub fn arrangement(term: u64) -> Signal {
    Signal::PutArrangement {
        term: Term(term),
        operation: PLACES.iter().map(|(place, home, vip)| (n(place), row(place, home, vip))).collect(),
        real_servers: ["rs1", "rs2", "rs3"].map(n).into(),
        groups: ["mail", "web", "ftp"].map(n).into(),
    }
}

pub struct Desk {
    pub core: Core,
    ids: u64,
    pub now: u64,
}

impl Desk {
    /// Established, with a term, configured, at revision 1 of the tables.
    pub fn new() -> Self {
        let agent: AgentId = n("a");
        let core = Core::new(Ledger::default(), Electorate::new([(agent.clone(), true)]));
        let mut desk = Self { core, ids: 0, now: 0 };
        desk.ask(Request::ReportVoter { reporter: agent, report: Report::default() }).unwrap();
        desk.ask(Request::AcquireTerm { coordinator: "c1".to_owned() }).unwrap();
        assert_eq!(desk.put(arrangement(1)), Ok(()));
        desk
    }

    pub fn ask(&mut self, request: Request) -> Result<Reply, Refusal> {
        self.ids += 1;
        let id = RequestId(self.ids);
        let mut actions = Vec::new();
        self.core.step(Event::Request { id, request }, &mut actions);
        let commits = actions.iter().filter_map(|action| match action {
            Action::Persist { commit, changes } => {
                assert_eq!(changes.iter().filter(|change| matches!(change.change, Change::Tables { .. })).count(), {
                    usize::from(changes.iter().any(|change| matches!(change.change, Change::Tables { .. })))
                });
                Some(*commit)
            }
            _ => None,
        });
        for commit in commits.collect::<Vec<_>>() {
            self.core.step(Event::Persisted { commit }, &mut actions);
        }
        let answer = actions.into_iter().find_map(|action| match action {
            Action::Reply { id: answered, result } if answered == id => Some(result),
            _ => None,
        });
        answer.unwrap()
    }

    /// Sends it twice: the second time changes nothing, and is answered as the first.
    pub fn signal(&mut self, signal: Signal) -> Result<Reply, Refusal> {
        let first = self.ask(Request::Signal(signal.clone()));
        let after = self.core.ledger().clone();
        if first.is_ok() {
            assert_eq!(self.ask(Request::Signal(signal)), first, "repeated");
            assert_eq!(*self.core.ledger(), after, "repeated");
        }
        first
    }

    pub fn put(&mut self, signal: Signal) -> Result<(), Refusal> {
        self.signal(signal).map(drop)
    }

    pub fn tables(&self) -> &Tables {
        &self.core.ledger().shared.tables
    }

    pub fn shared(&self) -> &Shared {
        &self.core.ledger().shared
    }

    pub fn begin(&mut self, steps: &[Step]) -> Result<u64, Refusal> {
        let generation = self.tables().revision;
        let signal = begin(generation, steps);
        match self.signal(signal)? {
            Reply::Transition { id, revision } => {
                assert_eq!((id, revision), (generation.next().0, generation.next()));
                Ok(id)
            }
            other => panic!("{other:?}"),
        }
    }

    pub fn step(&mut self, id: u64, index: usize, state: StepState) -> Result<(), Refusal> {
        self.now += 1;
        let (now_unix_ms, took_ms) = (self.now, Some(8090));
        self.put(Signal::PutStep { id, by: "pss".to_owned(), index, state, took_ms, now_unix_ms })
    }

    /// Begun and done.
    pub fn do_step(&mut self, id: u64, index: usize) {
        self.step(id, index, StepState::Begun).unwrap();
        self.step(id, index, StepState::Done).unwrap();
    }

    pub fn end(&mut self, id: u64, condition: Condition) -> Result<(), Refusal> {
        self.put(end(id, condition))
    }

    /// Every step done and committed.
    pub fn transition(&mut self, steps: &[Step], condition: Condition) {
        let id = self.begin(steps).unwrap();
        (0..steps.len()).for_each(|index| self.do_step(id, index));
        self.end(id, condition).unwrap();
    }

    pub fn claim(&mut self, by: &str, claims: &[Claim]) {
        let claims = claims.iter().cloned().collect();
        self.put(Signal::PutClaims { term: Term(1), by: by.to_owned(), why: "down".to_owned(), claims }).unwrap();
    }

    pub fn a4(&mut self, place: &str, backup: &str) -> Result<(), Refusal> {
        self.put(Signal::FunctionRestored { term: Term(1), place: n(place), backup: n(backup), host: n("mgmt") })
    }

    pub fn a5(&mut self, place: &str, recovered: bool, host: &str) -> Result<(), Refusal> {
        self.put(Signal::TargetVerdict { term: Term(1), place: n(place), recovered, host: n(host) })
    }

    pub fn moved(&mut self, vm: &str, host: &str) -> Result<(), Refusal> {
        self.put(Signal::MovedTo { term: Term(1), vm: n(vm), host: n(host), not_on: BTreeSet::new() })
    }

    /// A recovery has pulled its plug there.
    pub fn cleared(&mut self, vm: &str, host: &str, not_on: &str) -> Result<(), Refusal> {
        self.put(Signal::MovedTo { term: Term(1), vm: n(vm), host: n(host), not_on: [n(not_on)].into() })
    }

    /// Power saving has found it.
    pub fn found(&mut self, vm: &str, host: &str, not_on: &str) -> Result<(), Refusal> {
        self.put(Signal::Found { by: "pss".to_owned(), vm: n(vm), host: n(host), not_on: [n(not_on)].into() })
    }

    /// `vm@host, or there`.
    pub fn doubts(&self) -> Vec<String> {
        let tables = self.tables();
        let row = |(vm, hosts): (&DomainName, &BTreeSet<AgentId>)| {
            let others: Vec<String> = hosts.iter().map(ToString::to_string).collect();
            format!("{vm}@{}, or {}", tables.host_of(vm).unwrap(), others.join(", "))
        };
        tables.may_be_on.iter().map(row).collect()
    }

    /// `vm@host` of a place in operation; `(vm@host)` of a suspended one.
    pub fn at(&self, place: &str) -> String {
        let row = |row: &OperationRow| format!("{}@{}", row.vm, row.host);
        match self.tables().operation.get(&n(place)) {
            Some(found) => row(found),
            None => format!("({})", row(&self.tables().suspend[&n(place)])),
        }
    }

    /// Virtual IPs that are elsewhere than at home, the last byte each.
    pub fn placement(&self) -> Vec<String> {
        let short = |vip: &Vip| vip.to_string().rsplit('.').next().unwrap().to_owned();
        self.tables().placement.iter().map(|(vip, vm)| format!("{}:{vm}", short(vip))).collect()
    }

    /// `place=vm>original host`.
    pub fn away(&self) -> Vec<String> {
        let rows = self.tables().live_migration.iter();
        rows.map(|(place, row)| format!("{place}={}>{}", row.vm, row.original_host)).collect()
    }

    pub fn asleep(&self) -> Vec<String> {
        let rows = self.tables().real_servers.iter().filter(|(_, row)| row.asleep_since_unix_ms.is_some());
        rows.map(|(host, _)| host.to_string()).collect()
    }
}

pub fn begin(generation: Revision, steps: &[Step]) -> Signal {
    Signal::BeginTransition {
        by: "pss".to_owned(),
        generation,
        plan: "{\"fold\":1}".to_owned(),
        steps: steps.to_vec(),
        groups: BTreeMap::from([(n("mail"), (Condition::Moderate, Condition::Light))]),
    }
}

pub fn end(id: u64, condition: Condition) -> Signal {
    let base = (condition == Condition::Light).then(|| n("rs1"));
    let state: BTreeMap<GroupName, StateRow> = BTreeMap::from([(n("mail"), StateRow { condition, base })]);
    let (by, why) = ("pss".to_owned(), "as planned".to_owned());
    Signal::EndTransition { id, by, committed: condition == Condition::Light, state, why }
}

pub fn move_vip(vip: u8, from: &str, to: &str) -> Step {
    Step::MoveVip { vip: n(&format!("10.0.0.{vip}")), from: n(from), to: n(to) }
}

pub fn migrate(vm: &str, from: &str, to: &str) -> Step {
    Step::Migrate { vm: n(vm), from: n(from), to: n(to) }
}

pub fn sleep(host: &str) -> Step {
    Step::SuspendHost { host: n(host) }
}

pub fn wake(host: &str) -> Step {
    Step::WakeHost { host: n(host) }
}

/// Thesis 4.2: M2's and W2's virtual IPs to M1 and W1, F1 to RS1, RS2 asleep.
pub fn fold() -> Vec<Step> {
    vec![move_vip(4, "mail2", "mail1"), move_vip(5, "web2", "web1"), migrate("ftp1", "rs2", "rs1"), sleep("rs2")]
}

/// And back.
pub fn unfold() -> Vec<Step> {
    fold().iter().rev().map(Step::inverse).collect()
}
