//! Random requests, crashes, failing disks and restored backups: terms and epochs never repeat and never go down, and
//! what was answered survives.

#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "tests")]

use kage_sif_core::{
    Action, Cause, CommitId, Core, Electorate, Event, Ledger, Refusal, Reply, Report, Request, RequestId, Signal,
    Stage, Stamped,
};
use kage_types::{AgentId, DomainName, Epoch, OperationRow, Order, OrderScope, TargetName, Term, Vip};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const VOTERS: [&str; 3] = ["v1", "v2", "v3"];

fn agent(name: &str) -> AgentId {
    AgentId::new(name).unwrap()
}

fn vip(n: u8) -> Vip {
    format!("10.0.0.{}", n + 1).parse().unwrap()
}

fn arrangement(term: Term) -> Request {
    let row = |place: &DomainName| OperationRow {
        group: None,
        vm: place.clone(),
        host: agent("rs1"),
        home: agent("rs1"),
        home_vips: BTreeSet::new(),
    };
    let places = (0..3).map(|n| DomainName::new(format!("t{n}")).unwrap());
    Request::Signal(Signal::PutArrangement {
        term,
        operation: places.map(|place| (place.clone(), row(&place))).collect(),
        real_servers: BTreeSet::from([agent("rs1")]),
        groups: BTreeSet::new(),
    })
}

#[derive(Clone, Debug)]
enum Op {
    Acquire,
    Advance { vip: u8, owner: u8, off: u64, stale: bool },
    Repeat,
    LongLease { vip: u8, outstanding: bool },
    Trouble { target: u8, stage: Option<Stage> },
    Order { target: u8, lifted: bool },
    Signal { place: u8, restored: bool },
    Renew { stale: bool },
    Report { voter: u8 },
    DiskDone,
    DiskFails { landed: bool },
    Reload,
    Crash { landed: bool },
    Backup,
    Restore { landed: bool },
}

fn op() -> impl Strategy<Value = Op> {
    let stage = proptest::option::of(prop_oneof![Just(Stage::Backup), Just(Stage::Down)]);
    prop_oneof![
        2 => Just(Op::Acquire),
        8 => (0..3u8, 0..3u8, prop_oneof![4 => Just(0u64), 1 => 0..3u64], proptest::bool::weighted(0.1))
            .prop_map(|(vip, owner, off, stale)| Op::Advance { vip, owner, off, stale }),
        3 => Just(Op::Repeat),
        2 => (0..3u8, any::<bool>()).prop_map(|(vip, outstanding)| Op::LongLease { vip, outstanding }),
        2 => (0..2u8, stage).prop_map(|(target, stage)| Op::Trouble { target, stage }),
        2 => (0..2u8, any::<bool>()).prop_map(|(target, lifted)| Op::Order { target, lifted }),
        3 => (0..3u8, any::<bool>()).prop_map(|(place, restored)| Op::Signal { place, restored }),
        1 => any::<bool>().prop_map(|stale| Op::Renew { stale }),
        2 => (0..3u8).prop_map(|voter| Op::Report { voter }),
        10 => Just(Op::DiskDone),
        1 => any::<bool>().prop_map(|landed| Op::DiskFails { landed }),
        2 => Just(Op::Reload),
        1 => any::<bool>().prop_map(|landed| Op::Crash { landed }),
        1 => Just(Op::Backup),
        1 => any::<bool>().prop_map(|landed| Op::Restore { landed }),
    ]
}

struct World {
    core: Core,
    disk: Ledger,
    backup: Ledger,
    on_the_way: Option<(CommitId, Vec<Stamped>)>,
    broken: bool,
    next_id: u64,
    open: BTreeMap<RequestId, Request>,
    voters: BTreeMap<u8, Report>,
    terms: BTreeSet<Term>,
    epochs: BTreeMap<Vip, BTreeMap<Epoch, Request>>,
    last: Option<Request>,
    sabotaged: bool,
}

fn electorate() -> Electorate {
    Electorate::new(VOTERS.map(|name| (agent(name), true)))
}

impl World {
    fn new(sabotaged: bool) -> Self {
        let mut world = Self {
            core: Core::new(Ledger::default(), electorate()),
            disk: Ledger::default(),
            backup: Ledger::default(),
            on_the_way: None,
            broken: false,
            next_id: 0,
            open: BTreeMap::new(),
            voters: BTreeMap::new(),
            terms: BTreeSet::new(),
            epochs: BTreeMap::new(),
            last: None,
            sabotaged,
        };
        world.start();
        world
    }

    fn start(&mut self) {
        self.core = Core::new(self.disk.clone(), electorate());
        #[cfg(feature = "sabotage")]
        if self.sabotaged {
            self.core.sabotage(kage_sif_core::Sabotage::ReplyBeforeDurable);
        }
        assert!(!self.sabotaged || cfg!(feature = "sabotage"));
        self.on_the_way = None;
        self.broken = false;
        self.open.clear();
    }

    fn ask(&mut self, request: Request) -> Result<(), TestCaseError> {
        self.next_id += 1;
        self.open.insert(RequestId(self.next_id), request.clone());
        self.event(Event::Request { id: RequestId(self.next_id), request })
    }

    fn event(&mut self, event: Event) -> Result<(), TestCaseError> {
        let mut actions = Vec::new();
        self.core.step(event, &mut actions);
        for action in actions {
            match action {
                Action::Persist { commit, changes } => {
                    prop_assert!(self.on_the_way.is_none(), "one commit at a time");
                    prop_assert_eq!(changes[0].revision, self.disk.revision.next(), "no gap");
                    self.on_the_way = Some((commit, changes));
                }
                Action::Reply { id, result } => {
                    let request = self.open.remove(&id);
                    prop_assert!(request.is_some(), "answered once");
                    self.answered(request.unwrap(), result)?;
                }
                Action::Publish { change } => prop_assert!(change.revision <= self.disk.revision, "durable first"),
                Action::Reload => self.broken = true,
                Action::Alert { .. } => {}
            }
        }
        if self.on_the_way.is_none() && !self.broken {
            prop_assert_eq!(self.core.ledger(), &self.disk);
            prop_assert!(self.open.is_empty(), "all answered when idle");
        }
        Ok(())
    }

    fn answered(&mut self, request: Request, result: Result<Reply, Refusal>) -> Result<(), TestCaseError> {
        match result {
            Ok(Reply::Term { term }) => {
                prop_assert!(self.terms.last().is_none_or(|last| term > *last), "{term:?} after {:?}", self.terms);
                prop_assert!(self.disk.term >= term, "durable first");
                self.terms.insert(term);
                self.tell_majority(|report| report.highest_term = report.highest_term.max(term));
            }
            Ok(Reply::Epoch { epoch, .. }) => {
                let Request::AdvanceEpoch { vip, owner, .. } = &request else { unreachable!() };
                prop_assert_eq!(self.disk.vips.get(vip).map(|row| (row.epoch, &row.owner)), Some((epoch, owner)));
                let given = self.epochs.entry(*vip).or_default();
                if let Some(before) = given.get(&epoch) {
                    prop_assert_eq!(without_term(before), without_term(&request), "one epoch, one owner");
                } else {
                    prop_assert!(given.last_key_value().is_none_or(|(last, _)| epoch > *last), "{epoch:?} {given:?}");
                    given.insert(epoch, request.clone());
                }
                self.last = Some(request.clone());
                let vip = *vip;
                self.tell_majority(|report| {
                    report.epochs.insert(vip, epoch);
                });
            }
            Ok(Reply::Tables { revision } | Reply::Transition { revision, .. }) => {
                prop_assert!(self.disk.shared.tables.revision >= revision, "durable first");
            }
            Ok(Reply::Renewed | Reply::Reported { .. } | Reply::Written { .. }) | Err(_) => {}
        }
        Ok(())
    }

    /// Two of three voters, by turns.
    fn tell_majority(&mut self, tell: impl Fn(&mut Report)) {
        let spared = u8::try_from(self.next_id % 3).unwrap();
        (0..3).filter(|n| *n != spared).for_each(|n| tell(self.voters.entry(n).or_default()));
    }

    fn settle(&mut self) -> Result<(), TestCaseError> {
        while let Some((commit, changes)) = self.on_the_way.take() {
            changes.iter().for_each(|change| self.disk.apply(change));
            self.event(Event::Persisted { commit })?;
        }
        Ok(())
    }

    fn report(&mut self, voter: u8) -> Result<(), TestCaseError> {
        let report = self.voters.get(&voter).cloned().unwrap_or_default();
        self.ask(Request::ReportVoter { reporter: agent(VOTERS[usize::from(voter)]), report })
    }

    fn run(&mut self, op: Op) -> Result<(), TestCaseError> {
        let term = self.core.ledger().term;
        match op {
            Op::Signal { place, restored } => {
                self.ask(arrangement(term))?;
                let place = DomainName::new(format!("t{place}")).unwrap();
                self.ask(Request::Signal(if restored {
                    let backup = DomainName::new("b").unwrap();
                    Signal::FunctionRestored { term, place, backup, host: agent("mgmt") }
                } else {
                    Signal::TargetVerdict { term, place, recovered: true, host: agent("rs1") }
                }))
            }
            Op::Acquire => self.ask(Request::AcquireTerm { coordinator: "c".to_owned() }),
            Op::Advance { vip: n, owner, off, stale } => self.ask(Request::AdvanceEpoch {
                term: if stale { Term(term.0.saturating_sub(1)) } else { term },
                vip: vip(n),
                expected: Epoch(self.core.ledger().vips.get(&vip(n)).map_or(0, |row| row.epoch.0) + off),
                owner: agent(&format!("rs{owner}")),
                domain: None,
                target: TargetName::new("mail1").unwrap(),
                cause: Cause::Takeover,
            }),
            Op::Repeat => match self.last.clone() {
                Some(request) => self.ask(request),
                None => Ok(()),
            },
            Op::LongLease { vip: n, outstanding } => {
                self.ask(Request::SetLongLease { term, vip: vip(n), outstanding, sequence: 0 })
            }
            Op::Trouble { target, stage } => self.ask(Request::PutTrouble {
                term,
                target: TargetName::new(format!("t{target}")).unwrap(),
                stage,
                detail: String::new(),
                now_unix_ms: self.next_id,
            }),
            Op::Order { target, lifted } => {
                let scope = OrderScope::Target(TargetName::new(format!("t{target}")).unwrap());
                let order = Order {
                    scope: scope.clone(),
                    reason: String::new(),
                    who: "operator a".to_owned(),
                    since_unix_ms: self.next_id,
                    until_unix_ms: None,
                };
                self.ask(if lifted { Request::ClearOrder { term, scope } } else { Request::PutOrder { term, order } })
            }
            Op::Renew { stale } => self.ask(Request::RenewTerm { term: if stale { Term(term.0 + 1) } else { term } }),
            Op::Report { voter } => self.report(voter),
            Op::DiskDone => match self.on_the_way.take() {
                Some((commit, changes)) => {
                    changes.iter().for_each(|change| self.disk.apply(change));
                    self.event(Event::Persisted { commit })
                }
                None => Ok(()),
            },
            Op::DiskFails { landed } => match self.on_the_way.take() {
                Some((commit, changes)) => {
                    if landed {
                        changes.iter().for_each(|change| self.disk.apply(change));
                    }
                    self.event(Event::PersistFailed { commit, reason: "no space left".to_owned() })
                }
                None => Ok(()),
            },
            Op::Reload if self.broken => {
                self.broken = false;
                self.event(Event::Reloaded { ledger: Box::new(self.disk.clone()) })
            }
            Op::Reload => Ok(()),
            Op::Crash { landed } => {
                if let (true, Some((_, changes))) = (landed, self.on_the_way.take()) {
                    changes.iter().for_each(|change| self.disk.apply(change));
                }
                self.start();
                Ok(())
            }
            Op::Backup => {
                self.backup = self.disk.clone();
                Ok(())
            }
            // Of the backup, or of nothing. Whoever restores has the voters report before anything else.
            Op::Restore { landed } => {
                self.disk = if landed { self.backup.clone() } else { Ledger::default() };
                self.start();
                for voter in 0..2 {
                    self.report(voter)?;
                    self.settle()?;
                }
                Ok(())
            }
        }
    }
}

fn without_term(request: &Request) -> Request {
    let mut request = request.clone();
    if let Request::AdvanceEpoch { term, .. } = &mut request {
        *term = Term(0);
    }
    request
}

fn run(ops: Vec<Op>, sabotaged: bool) -> Result<World, TestCaseError> {
    let mut world = World::new(sabotaged);
    for voter in 0..2 {
        world.report(voter)?;
        world.settle()?;
    }
    world.ask(Request::AcquireTerm { coordinator: "c".to_owned() })?;
    for op in ops {
        world.run(op)?;
    }
    world.settle()?;
    Ok(world)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn terms_and_epochs_never_repeat(ops in prop::collection::vec(op(), 0..120)) {
        run(ops, false)?;
    }

    #[test]
    fn a_stored_ledger_reads_back_equal(ops in prop::collection::vec(op(), 0..60)) {
        let world = run(ops, false)?;
        let text = serde_json::to_string(&world.disk).unwrap();
        prop_assert_eq!(serde_json::from_str::<Ledger>(&text).unwrap(), world.disk);
    }
}

/// The checks above can fail.
#[cfg(feature = "sabotage")]
#[test]
fn sabotage_is_caught() {
    let result = run(vec![Op::DiskDone, Op::Advance { vip: 0, owner: 0, off: 0, stale: false }], true);
    assert!(result.is_err(), "a reply before its change is durable must be noticed");
}
