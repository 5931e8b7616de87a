//! The rules one by one, by exact answers and actions.

#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "tests")]

use kage_sif_core::{
    Action, Alert, BATCH_LIMIT, Cause, Core, Electorate, Event, Ledger, PLAUSIBLE_LIMIT, QUEUE_LIMIT, Refusal, Reply,
    Report, Request, RequestId, Stage, UNSEEN_MARGIN,
};
use kage_types::{AgentId, Epoch, Order, OrderScope, REASON_LIMIT, Revision, TargetName, Term, Vip};

fn agent(name: &str) -> AgentId {
    AgentId::new(name).unwrap()
}

fn mail() -> Vip {
    "10.0.0.1".parse().unwrap()
}

fn report(term: u64, epoch: u64) -> Report {
    Report { highest_term: Term(term), epochs: (epoch > 0).then_some((mail(), Epoch(epoch))).into_iter().collect() }
}

fn electorate() -> Electorate {
    Electorate::new([("a", true), ("b", true), ("c", true), ("d", false)].map(|(name, voter)| (agent(name), voter)))
}

/// A core on a disk that always works.
struct Desk {
    core: Core,
    ids: u64,
    alerts: Vec<Alert>,
}

impl Desk {
    fn fresh() -> Self {
        Self { core: Core::new(Ledger::default(), electorate()), ids: 0, alerts: Vec::new() }
    }

    fn established() -> Self {
        let mut desk = Self::fresh();
        desk.report("a", report(0, 0)).unwrap();
        desk.report("b", report(0, 0)).unwrap();
        desk.acquire().unwrap();
        desk
    }

    fn ask(&mut self, request: Request) -> Result<Reply, Refusal> {
        self.ids += 1;
        let id = RequestId(self.ids);
        let mut actions = Vec::new();
        self.core.step(Event::Request { id, request }, &mut actions);
        let mut answer = None;
        let mut at = 0;
        while at < actions.len() {
            match actions[at].clone() {
                Action::Persist { commit, .. } => {
                    assert_eq!(at + 1, actions.len(), "nothing after a commit that is under way");
                    self.core.step(Event::Persisted { commit }, &mut actions);
                }
                Action::Reply { id: answered, result } => {
                    assert_eq!(answered, id);
                    answer = Some(result);
                }
                Action::Alert { alert } => self.alerts.push(alert),
                Action::Publish { .. } | Action::Reload => {}
            }
            at += 1;
        }
        answer.expect("answered")
    }

    fn acquire(&mut self) -> Result<Reply, Refusal> {
        self.ask(Request::AcquireTerm { coordinator: "c1".to_owned() })
    }

    fn report(&mut self, reporter: &str, report: Report) -> Result<Reply, Refusal> {
        self.ask(Request::ReportVoter { reporter: agent(reporter), report })
    }

    fn advance(&mut self, term: u64, expected: u64, owner: &str) -> Result<Reply, Refusal> {
        self.ask(advance(term, mail(), expected, owner))
    }

    fn trouble(&mut self, stage: Option<Stage>, detail: &str, now_unix_ms: u64) -> Result<Reply, Refusal> {
        let target = TargetName::new("mail1").unwrap();
        self.ask(Request::PutTrouble { term: Term(1), target, stage, detail: detail.to_owned(), now_unix_ms })
    }
}

fn advance(term: u64, vip: Vip, expected: u64, owner: &str) -> Request {
    Request::AdvanceEpoch {
        term: Term(term),
        vip,
        expected: Epoch(expected),
        owner: agent(owner),
        domain: None,
        target: TargetName::new("mail1").unwrap(),
        cause: Cause::Takeover,
    }
}

fn epoch(result: Result<Reply, Refusal>) -> u64 {
    match result.unwrap() {
        Reply::Epoch { epoch, .. } => epoch.0,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_fresh_ledger_gives_nothing_before_a_majority_has_reported() {
    let mut desk = Desk::fresh();
    assert_eq!(desk.acquire(), Err(Refusal::NeedsReports { needed: 2 }));
    assert_eq!(desk.advance(0, 0, "rs1"), Err(Refusal::NeedsReports { needed: 2 }));
    assert_eq!(desk.report("a", report(7, 4)), Ok(Reply::Reported { established: false, needed: 1 }));
    // Again, and lower: counts once and lowers nothing. No voter: raises, but does not count.
    assert_eq!(desk.report("a", report(1, 0)), Ok(Reply::Reported { established: false, needed: 1 }));
    assert_eq!(desk.report("d", report(9, 2)), Ok(Reply::Reported { established: false, needed: 1 }));
    assert_eq!(desk.report("x", report(99, 99)), Err(Refusal::UnknownReporter { reporter: agent("x") }));
    let damaged = Refusal::Implausible { reporter: agent("b"), number: u64::MAX };
    assert_eq!(desk.report("b", report(u64::MAX, PLAUSIBLE_LIMIT)), Err(damaged));
    assert_eq!(desk.report("b", report(0, 0)), Ok(Reply::Reported { established: true, needed: 0 }));
    // Above what nobody who reported may have seen.
    assert_eq!(desk.acquire(), Ok(Reply::Term { term: Term(UNSEEN_MARGIN + 10) }));
    assert_eq!(epoch(desk.advance(UNSEEN_MARGIN + 10, 0, "rs1")), UNSEEN_MARGIN + 5);
    assert!(desk.core.ledger().vips[&mail()].long_lease, "the unknown owner before may have had one");
}

#[test]
fn reports_outlive_a_smaller_configuration() {
    let mut desk = Desk::fresh();
    desk.report("a", report(3, 0)).unwrap();
    let alone = Electorate::new([(agent("a"), true)]);
    desk.core = Core::new(desk.core.ledger().clone(), alone);
    assert_eq!(desk.acquire(), Ok(Reply::Term { term: Term(UNSEEN_MARGIN + 4) }));
    assert!(desk.core.ledger().is_established());
}

#[test]
fn only_the_current_term_writes() {
    let mut desk = Desk::established();
    assert_eq!(desk.acquire(), Ok(Reply::Term { term: Term(2) }));
    let stale = Refusal::StaleTerm { given: Term(1), current: Term(2) };
    assert_eq!(desk.ask(Request::RenewTerm { term: Term(1) }), Err(stale.clone()));
    assert_eq!(desk.advance(1, 0, "rs1"), Err(stale.clone()));
    assert_eq!(desk.trouble(None, "", 0), Err(stale));
    let unknown = Refusal::UnknownTerm { given: Term(3), current: Term(2) };
    assert_eq!(desk.advance(3, 0, "rs1"), Err(unknown));
    assert_eq!(desk.ask(Request::RenewTerm { term: Term(2) }), Ok(Reply::Renewed));
}

#[test]
fn epochs_are_compare_and_set_and_repeatable() {
    let mut desk = Desk::established();
    assert_eq!(epoch(desk.advance(1, 0, "rs1")), 1);
    let before = desk.core.ledger().clone();
    assert_eq!(epoch(desk.advance(1, 0, "rs1")), 1);
    assert_eq!(desk.core.ledger(), &before, "a repeated request changes nothing");
    let conflict =
        |expected, current| Err(Refusal::Conflict { vip: mail(), expected: Epoch(expected), current: Epoch(current) });
    assert_eq!(desk.advance(1, 0, "rs2"), conflict(0, 1));
    assert_eq!(epoch(desk.advance(1, 1, "rs2")), 2);
    assert_eq!(desk.advance(1, 0, "rs1"), conflict(0, 2), "overtaken, not repeated");
}

#[test]
fn a_change_of_owner_does_not_end_a_long_lease() {
    let mut desk = Desk::established();
    let set = |outstanding| Request::SetLongLease { term: Term(1), vip: mail(), outstanding, sequence: 0 };
    assert_eq!(desk.ask(set(true)), Err(Refusal::UnknownVip { vip: mail() }));
    desk.advance(1, 0, "rs1").unwrap();
    desk.ask(set(true)).unwrap();
    desk.advance(1, 1, "rs2").unwrap();
    assert!(desk.core.ledger().vips[&mail()].long_lease);
    assert_eq!(epoch(desk.advance(1, 1, "rs2")), 2, "still repeatable");
    desk.ask(set(false)).unwrap();
    assert!(!desk.core.ledger().vips[&mail()].long_lease);
}

#[test]
fn a_late_word_of_a_long_lease_does_not_undo_a_newer_one() {
    let mut desk = Desk::established();
    desk.advance(1, 0, "rs1").unwrap();
    let set =
        |term, outstanding, sequence| Request::SetLongLease { term: Term(term), vip: mail(), outstanding, sequence };
    desk.ask(set(1, true, 7)).unwrap();
    assert_eq!(desk.ask(set(1, false, 6)), Err(Refusal::Overtaken { vip: mail(), given: 6, latest: 7 }));
    assert!(desk.core.ledger().vips[&mail()].long_lease);
    desk.ask(set(1, true, 7)).unwrap();
    assert!(matches!(desk.ask(set(9, true, 100)), Err(Refusal::UnknownTerm { .. })));
    desk.ask(set(1, false, 8)).unwrap();
    assert!(!desk.core.ledger().vips[&mail()].long_lease, "a refused term's number counts for nothing");
}

fn order(scope: &str, reason: &str) -> Order {
    let (reason, who) = (reason.to_owned(), "operator alice".to_owned());
    Order { scope: scope.parse().unwrap(), reason, who, since_unix_ms: 100, until_unix_ms: Some(200) }
}

#[test]
fn an_order_is_replaced_by_one_of_its_scope_and_cleared_once() {
    let mut desk = Desk::established();
    let put = |desk: &mut Desk, order: Order| desk.ask(Request::PutOrder { term: Term(1), order });
    let clear =
        |desk: &mut Desk, scope: &str| desk.ask(Request::ClearOrder { term: Term(1), scope: scope.parse().unwrap() });
    let first = put(&mut desk, order("target:mail1", "disk"));
    assert_eq!(put(&mut desk, order("target:mail1", "disk")), first, "repeated: nothing new to write");
    put(&mut desk, order("target:mail1", "fan")).unwrap();
    put(&mut desk, order("all", "move of the rack")).unwrap();
    let rows = |desk: &Desk| desk.core.ledger().orders.values().cloned().collect::<Vec<_>>();
    assert_eq!(rows(&desk), [order("all", "move of the rack"), order("target:mail1", "fan")]);
    clear(&mut desk, "all").unwrap();
    let written = Reply::Written { revision: desk.core.ledger().revision };
    assert_eq!(clear(&mut desk, "all"), Ok(written.clone()), "twice");
    assert_eq!(clear(&mut desk, "agent:rs1"), Ok(written));
    assert_eq!(rows(&desk), [order("target:mail1", "fan")]);
    let long = put(&mut desk, order("all", &"x".repeat(REASON_LIMIT + 1)));
    assert!(matches!(long, Err(Refusal::TooMuch { limit: REASON_LIMIT, .. })), "{long:?}");
    desk.acquire().unwrap();
    let stale = Refusal::StaleTerm { given: Term(1), current: Term(2) };
    assert_eq!(put(&mut desk, order("all", "")), Err(stale.clone()));
    assert_eq!(clear(&mut desk, "target:mail1"), Err(stale));
    assert_eq!(desk.core.ledger().orders.get(&OrderScope::All), None);
}

#[test]
fn a_trouble_keeps_the_time_its_stage_began() {
    let mut desk = Desk::established();
    let since = |desk: &Desk| desk.core.ledger().troubles.values().map(|row| row.since_unix_ms).collect::<Vec<_>>();
    desk.trouble(Some(Stage::Restarting), "try 1", 100).unwrap();
    desk.trouble(Some(Stage::Restarting), "try 2", 200).unwrap();
    assert_eq!(since(&desk), [100]);
    desk.trouble(Some(Stage::Backup), "", 300).unwrap();
    assert_eq!(since(&desk), [300]);
    desk.trouble(None, "", 400).unwrap();
    assert!(since(&desk).is_empty());
    assert_eq!(desk.trouble(None, "", 500), Ok(Reply::Written { revision: desk.core.ledger().revision }));
}

#[test]
fn a_report_above_an_established_ledger_uncovers_an_old_backup() {
    let mut desk = Desk::established();
    desk.advance(1, 0, "rs1").unwrap();
    assert_eq!(desk.report("a", report(1, 1)), Ok(Reply::Reported { established: true, needed: 0 }));
    assert!(desk.alerts.is_empty());
    assert_eq!(desk.report("a", report(1, 6)), Ok(Reply::Reported { established: false, needed: 1 }));
    assert!(matches!(desk.alerts[..], [Alert::OldBackup { reported: 6, known: 1, .. }]), "{:?}", desk.alerts);
    assert_eq!(desk.core.ledger().term, Term(2), "the current coordinator's rows are out of date");
    assert!(desk.core.ledger().vips.is_empty(), "nor may it be granted to the old owner");
    assert_eq!(desk.ask(Request::RenewTerm { term: Term(1) }), Err(Refusal::NeedsReports { needed: 1 }));
    desk.report("c", report(8, 5)).unwrap();
    assert_eq!(desk.acquire(), Ok(Reply::Term { term: Term(UNSEEN_MARGIN + 9) }));
    // Nobody who reported may have seen the last epoch either.
    assert_eq!(epoch(desk.advance(UNSEEN_MARGIN + 9, 0, "rs2")), UNSEEN_MARGIN + 7);
}

#[test]
fn a_restored_ledger_gives_out_nothing_it_may_have_given_before() {
    let mut desk = Desk::established();
    desk.advance(1, 0, "rs1").unwrap();
    desk.advance(1, 1, "rs2").unwrap();
    desk.trouble(Some(Stage::Backup), "", 300).unwrap();
    let scope = OrderScope::All;
    let order = Order { scope, reason: String::new(), who: "a".into(), since_unix_ms: 1, until_unix_ms: None };
    desk.ask(Request::PutOrder { term: Term(1), order: order.clone() }).unwrap();
    let copy = desk.core.ledger().clone();
    let restored = copy.clone().restored();
    assert!(!restored.is_established() && restored.vips.is_empty() && restored.troubles.is_empty());
    assert_eq!(restored.highest_epoch(&mail()), Epoch(2));
    assert_eq!(restored.orders.values().collect::<Vec<_>>(), [&order]);
    assert!(restored.revision > copy.revision);

    // One voter has seen nothing, one less than the copy.
    let mut desk = Desk { core: Core::new(restored, electorate()), ids: 0, alerts: Vec::new() };
    assert_eq!(desk.acquire(), Err(Refusal::NeedsReports { needed: 2 }));
    desk.report("a", report(0, 0)).unwrap();
    desk.report("b", report(1, 1)).unwrap();
    let term = UNSEEN_MARGIN + 2;
    assert_eq!(desk.acquire(), Ok(Reply::Term { term: Term(term) }));
    assert_eq!(epoch(desk.advance(term, 0, "rs1")), UNSEEN_MARGIN + 3);
    assert!(desk.core.ledger().vips[&mail()].long_lease, "an earlier owner's may be out");
}

#[test]
fn requests_that_arrive_while_the_disk_works_share_a_commit() {
    let mut core = Desk::established().core;
    let vip = |n: u64| -> Vip { format!("10.0.1.{n}").parse().unwrap() };
    let mut actions = Vec::new();
    for n in 1..=100 {
        core.step(Event::Request { id: RequestId(n), request: advance(1, vip(n), 0, "rs1") }, &mut actions);
    }
    let mut commits = Vec::new();
    let mut answered = Vec::new();
    let mut at = 0;
    while at < actions.len() {
        match actions[at].clone() {
            Action::Persist { commit, changes } => {
                commits.push(changes.len());
                core.step(Event::Persisted { commit }, &mut actions);
            }
            Action::Reply { id, result } => {
                result.unwrap();
                answered.push(id.0);
            }
            Action::Publish { .. } | Action::Reload | Action::Alert { .. } => {}
        }
        at += 1;
    }
    assert_eq!(commits, [1, BATCH_LIMIT, 99 - BATCH_LIMIT]);
    assert_eq!(answered, (1..=100).collect::<Vec<_>>(), "in order");
}

#[test]
fn a_new_term_parts_the_writes_before_it_from_those_after() {
    let mut core = Desk::established().core;
    let mut actions = Vec::new();
    let other: Vip = "10.0.0.2".parse().unwrap();
    let requests = [
        advance(1, mail(), 0, "rs1"),
        advance(1, other, 0, "rs1"),
        Request::AcquireTerm { coordinator: "c2".to_owned() },
        advance(1, mail(), 1, "rs2"),
    ];
    for (request, id) in requests.into_iter().zip(1..) {
        core.step(Event::Request { id: RequestId(id), request }, &mut actions);
    }
    let mut results = Vec::new();
    let mut at = 0;
    while at < actions.len() {
        match actions[at].clone() {
            Action::Persist { commit, .. } => core.step(Event::Persisted { commit }, &mut actions),
            Action::Reply { result, .. } => results.push(result.map(|_| ())),
            Action::Publish { .. } | Action::Reload | Action::Alert { .. } => {}
        }
        at += 1;
    }
    let stale = Refusal::StaleTerm { given: Term(1), current: Term(2) };
    assert_eq!(results, [Ok(()), Ok(()), Ok(()), Err(stale)]);
}

#[test]
fn a_slow_disk_fills_the_queue_but_costs_no_term() {
    let mut core = Desk::established().core;
    let mut actions = Vec::new();
    for n in 0..=QUEUE_LIMIT as u64 {
        core.step(Event::Request { id: RequestId(n), request: advance(1, mail(), n, "rs1") }, &mut actions);
    }
    assert_eq!(actions.len(), 1, "one commit under way, all others wait");
    actions.clear();
    core.step(Event::Request { id: RequestId(5000), request: advance(1, mail(), 0, "rs1") }, &mut actions);
    core.step(Event::Request { id: RequestId(5001), request: Request::RenewTerm { term: Term(1) } }, &mut actions);
    let busy = Action::Reply { id: RequestId(5000), result: Err(Refusal::Busy { limit: QUEUE_LIMIT }) };
    assert_eq!(actions, [busy, Action::Reply { id: RequestId(5001), result: Ok(Reply::Renewed) }]);
}

#[test]
fn after_a_failed_commit_the_disk_decides() {
    for landed in [false, true] {
        let mut core = Desk::established().core;
        let before = core.ledger().clone();
        let mut actions = Vec::new();
        core.step(Event::Request { id: RequestId(1), request: advance(1, mail(), 0, "rs1") }, &mut actions);
        core.step(Event::Request { id: RequestId(2), request: advance(1, mail(), 1, "rs2") }, &mut actions);
        let Some(Action::Persist { commit, changes }) = actions.pop() else { panic!("a commit") };
        core.step(Event::PersistFailed { commit, reason: "disk full".to_owned() }, &mut actions);
        let unavailable = || Err(Refusal::Unavailable { reason: "disk full".to_owned() });
        assert_eq!(actions[0], Action::Reply { id: RequestId(1), result: unavailable() });
        assert_eq!(actions[1], Action::Reply { id: RequestId(2), result: unavailable() });
        assert_eq!(actions[3], Action::Reload);
        assert_eq!(core.ledger(), &before, "rolled back");
        actions.clear();
        core.step(Event::Request { id: RequestId(3), request: advance(1, mail(), 0, "rs1") }, &mut actions);
        core.step(Event::Request { id: RequestId(4), request: Request::RenewTerm { term: Term(1) } }, &mut actions);
        assert_eq!(actions[0], Action::Reply { id: RequestId(3), result: unavailable() });
        assert_eq!(actions[1], Action::Reply { id: RequestId(4), result: Ok(Reply::Renewed) });
        actions.clear();
        let mut disk = before.clone();
        if landed {
            changes.iter().for_each(|change| disk.apply(change));
        }
        core.step(Event::Reloaded { ledger: Box::new(disk.clone()) }, &mut actions);
        assert_eq!(core.ledger(), &disk);
        assert_eq!(actions.iter().any(|action| matches!(action, Action::Publish { .. })), landed);
        actions.clear();
        core.step(Event::Request { id: RequestId(5), request: advance(1, mail(), 0, "rs1") }, &mut actions);
        assert_eq!(actions.iter().any(|action| matches!(action, Action::Persist { .. })), !landed);
    }
}

#[test]
fn another_ledger_on_disk_is_not_adopted() {
    let mut core = Desk::established().core;
    let mut actions = Vec::new();
    core.step(Event::Request { id: RequestId(1), request: advance(1, mail(), 0, "rs1") }, &mut actions);
    let Some(Action::Persist { commit, .. }) = actions.pop() else { panic!("a commit") };
    core.step(Event::PersistFailed { commit, reason: "disk".to_owned() }, &mut actions);
    actions.clear();
    core.step(Event::Reloaded { ledger: Box::default() }, &mut actions);
    assert!(matches!(actions[..], [Action::Alert { alert: Alert::Diverged { disk: Revision(0), .. } }]), "{actions:?}");
    actions.clear();
    core.step(Event::Request { id: RequestId(2), request: advance(1, mail(), 0, "rs1") }, &mut actions);
    assert!(matches!(actions[..], [Action::Reply { result: Err(Refusal::Unavailable { .. }), .. }]), "{actions:?}");
}
