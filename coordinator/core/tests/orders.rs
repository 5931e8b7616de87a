//! Maintenance, disarm and adopt: what they withhold, what goes on, and what counts afterwards.

use kage_coordinator_core::{
    Action, AgentCommand, AgentReport, Cause, CheckOutcome, Coordinator, Event, Holding, JobResult, SessionId, VipRow,
    config::Cluster,
};
use kage_types::{AgentId, AskVip, Epoch, Nonce, Order, OrderScope, Term, Time, Verdict, Vip};
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
    name = "mail1"
    agent = "mail"
    vips = ["10.0.0.100"]
    backup = { agent = "mgmt", domain = "mailb" }
    [[target.service]]
    name = "smtp"
    port = 25
    probe = "smtp"
"#;

const NOW_UNIX_MS: u64 = 1_700_000_000_000;

struct Bench {
    core: Coordinator,
    now: u64,
    nonce: u64,
    /// Does the target answer?
    well: bool,
}

fn agent(name: &str) -> AgentId {
    AgentId::new(name).expect("name")
}

fn vip() -> Vip {
    "10.0.0.100".parse().expect("vip")
}

fn row(epoch: u64, owner: &str) -> VipRow {
    let domain = (owner == "mgmt").then(|| "mailb".parse().expect("domain"));
    VipRow { vip: vip(), epoch: Epoch(epoch), owner: agent(owner), domain, cause: Cause::Takeover, long_lease: false }
}

fn order(scope: &str, until_unix_ms: Option<u64>) -> Order {
    Order {
        scope: scope.parse().expect("scope"),
        reason: "disk".into(),
        who: "operator alice".into(),
        since_unix_ms: NOW_UNIX_MS,
        until_unix_ms,
    }
}

impl Bench {
    /// Well, serving at home under a term of 500 s.
    fn new(orders: Vec<Order>) -> Self {
        let core = Coordinator::new(Time::ZERO, Cluster::parse(CLUSTER).expect("cluster"));
        let mut bench = Self { core, now: 1000, nonce: 0, well: true };
        bench.step(Event::OrdersRead { orders, now_unix_ms: NOW_UNIX_MS });
        let sent = Time::from_millis(bench.now);
        let length = Duration::from_secs(500);
        bench.step(Event::TermAcquired { term: Term(1), sent, length, rows: vec![row(3, "mail")] });
        bench.run(5000);
        bench
    }

    fn step(&mut self, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        self.core.step(Time::from_millis(self.now), event, &mut actions);
        actions
    }

    fn ask(&mut self, name: &str) -> Vec<Action> {
        self.nonce += 1;
        let vips = if name == "mail" { vec![AskVip { vip: vip(), epoch: Epoch(3) }] } else { vec![] };
        self.step(Event::Ask {
            agent: agent(name),
            session: SessionId(1),
            via: None,
            incarnation: 1,
            nonce: Nonce(self.nonce),
            heard: Nonce(self.nonce - 1),
            vips,
            long: false,
            long_surrendered: true,
        })
    }

    /// Time goes by; agents ask, checks are answered. What else was wanted.
    fn run(&mut self, ms: u64) -> Vec<Action> {
        let mut wanted = Vec::new();
        for _ in 0..ms / 100 {
            self.now += 100;
            let mut new = Vec::new();
            for name in ["mgmt", "v1", "v2", "v3"] {
                new.extend(self.ask(name));
            }
            if self.well {
                new.extend(self.ask("mail"));
            }
            new.extend(self.step(Event::Tick));
            wanted.extend(self.answer(new));
        }
        wanted
    }

    /// Checks are answered at once. What else was wanted.
    fn answer(&mut self, mut new: Vec<Action>) -> Vec<Action> {
        let mut wanted = Vec::new();
        while !new.is_empty() {
            for action in std::mem::take(&mut new) {
                let (Action::Ping { job, .. } | Action::Probe { job, .. }) = action else {
                    wanted.push(action);
                    continue;
                };
                let outcome = if self.well { CheckOutcome::Ok } else { CheckOutcome::Ng("silence".into()) };
                new.extend(self.step(Event::Job { job, result: JobResult::Check(outcome) }));
            }
        }
        wanted
    }

    fn put(&mut self, order: Order) {
        let actions = self.step(Event::PutOrder { command: 1, order: order.clone() });
        let Some(Action::PutOrder { job, order: asked }) = actions.first().cloned() else { panic!("{actions:?}") };
        assert_eq!(asked, order);
        assert_eq!(actions.len(), 1, "answered when durable, not earlier: {actions:?}");
        let actions = self.step(Event::Job { job, result: JobResult::Done });
        let actions = self.answer(actions);
        assert!(actions.contains(&Action::Moved { command: 1, result: Ok(()) }), "{actions:?}");
    }

    fn clear(&mut self, scope: &str) -> Vec<Action> {
        let scope: OrderScope = scope.parse().expect("scope");
        let event = Event::ClearOrder { command: 2, scope, who: "operator bob".into() };
        let actions = self.step(event);
        let Some(Action::ClearOrder { job, .. }) = actions.first().cloned() else { panic!("{actions:?}") };
        let actions = self.step(Event::Job { job, result: JobResult::Done });
        self.answer(actions)
    }

    fn mode(&self) -> (&'static str, String) {
        let view = self.core.target(&"mail1".parse().expect("target")).expect("target");
        (view.mode, view.detail)
    }
}

fn acts(actions: &[Action]) -> Vec<String> {
    let word = |action: &Action| match action {
        Action::AdvanceEpoch { owner, .. } => Some(format!("epoch for {owner}")),
        Action::Command { agent, command, .. } => Some(format!("{agent}: {command:?}")),
        Action::Note(note) if note.kind != "agent-up" => Some(note.kind.clone()),
        Action::Note(_)
        | Action::Reply { .. }
        | Action::AcquireTerm
        | Action::RenewTerm { .. }
        | Action::ReadLedger
        | Action::SetLongLease { .. }
        | Action::Bar { .. }
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
        | Action::Moved { .. }
        | Action::Configured => None,
    };
    actions.iter().filter_map(word).collect()
}

fn granted(actions: &[Action]) -> usize {
    let reply = |action: &&Action| {
        let Action::Reply { grant, .. } = action else { return false };
        grant.items.iter().any(|item| item.verdict == Verdict::Granted)
    };
    actions.iter().filter(reply).count()
}

#[test]
fn a_target_in_maintenance_is_watched_and_left_alone() {
    for scope in ["target:mail1", "agent:mail", "all"] {
        let mut bench = Bench::new(vec![]);
        bench.put(order(scope, None));
        let actions = bench.run(5000);
        assert_eq!((acts(&actions), granted(&actions)), (vec![], 50), "{scope}: leases go on, nothing else happens");
        bench.well = false;
        let actions = bench.run(60_000);
        assert_eq!(acts(&actions), ["withheld"], "{scope}: said once");
        let Some(Action::Note(note)) = actions.iter().find(|action| matches!(action, Action::Note(_))) else {
            panic!()
        };
        assert!(note.text.contains("by operator alice: disk; would have taken over: "), "{note:?}");
        let (mode, detail) = bench.mode();
        assert_eq!(mode, "regular", "{scope}");
        assert!(detail.contains("not acting on: "), "{detail}");
        let view = bench.core.target(&"mail1".parse().expect("target")).expect("target");
        assert_eq!(view.ping, "NG: silence", "{scope}: observation goes on");
        // It comes back by itself, and the next failure is news.
        bench.well = true;
        assert_eq!(acts(&bench.run(10_000)), Vec::<String>::new(), "{scope}");
        bench.well = false;
        assert_eq!(acts(&bench.run(10_000)), ["withheld"], "{scope}");
    }
}

#[test]
fn lifted_evidence_starts_anew() {
    let mut bench = Bench::new(vec![]);
    bench.put(order("target:mail1", None));
    bench.well = false;
    bench.run(60_000);
    assert_eq!(acts(&bench.clear("target:mail1")), ["order-lifted"]);
    let confirm = bench.core.cluster().detection.confirm;
    let early = bench.run(u64::try_from(confirm.as_millis()).expect("ms") - 200);
    assert!(!acts(&early).iter().any(|act| act.starts_with("epoch") || act == "confirmed"), "{:?}", acts(&early));
    let late = acts(&bench.run(10_000));
    let expected = ["confirmed", "backup-server", "epoch for mgmt"];
    let from = late.iter().position(|act| act == "confirmed").unwrap_or_else(|| panic!("{late:?}"));
    assert_eq!(late[from..from + 3], expected, "and then it is taken over");
}

#[test]
fn a_service_in_trouble_is_not_restarted_and_a_clean_stop_moves_nothing() {
    let mut bench = Bench::new(vec![order("target:mail1", None)]);
    let down = |detail: &str| Event::Report {
        agent: agent("mail"),
        report: AgentReport::ServiceDown { service: "smtp".parse().expect("name"), detail: detail.into() },
    };
    let actions = bench.step(down("exited"));
    assert_eq!(acts(&actions), ["service-down", "withheld"]);
    let what = "host".to_owned();
    let going = Event::Report { agent: agent("mail"), report: AgentReport::GoingDown { machine: true, what } };
    assert_eq!(acts(&bench.step(going)), ["going-down", "withheld"]);
    assert_eq!(bench.mode().0, "regular");
    bench.clear("target:mail1");
    let actions = bench.step(down("exited"));
    let restart = AgentCommand::RestartService { service: "smtp".parse().expect("name") };
    let restarted = |action: &Action| matches!(action, Action::Command { command, .. } if *command == restart);
    assert!(actions.iter().any(restarted), "{actions:?}");
}

#[test]
fn no_takeover_is_sent_to_a_backup_host_in_maintenance() {
    let mut bench = Bench::new(vec![]);
    bench.put(order("agent:mgmt", None));
    assert_eq!(bench.mode(), ("regular", "its backup host mgmt in maintenance".into()));
    assert!(bench.core.alerts().iter().any(|alert| alert.contains("no takeover is sent there")));
    bench.well = false;
    let actions = acts(&bench.run(60_000));
    assert_eq!(actions, ["network-trouble", "withheld"], "examined, and held");
    assert!(bench.core.alerts().iter().any(|alert| alert.contains("would have taken over")), "somebody should look");
    bench.clear("agent:mgmt");
    let actions = acts(&bench.run(10_000));
    assert!(actions.contains(&"epoch for mgmt".to_owned()), "{actions:?}");
}

#[test]
fn the_operators_own_move_is_no_action_of_ours() {
    let mut bench = Bench::new(vec![]);
    bench.put(order("all", None));
    let target = "mail1".parse().expect("target");
    let asked = bench.step(Event::Move { command: 7, target, back: false, force: false });
    let resumed = asked.iter().find_map(|action| {
        let Action::Command { job, command: AgentCommand::ResumeVm { .. }, .. } = action else { return None };
        Some(*job)
    });
    let job = resumed.expect("the double is resumed first");
    let actions = bench.step(Event::Job { job, result: JobResult::Done });
    assert_eq!(acts(&actions), ["failover", "epoch for mgmt"]);
    assert!(actions.contains(&Action::Moved { command: 7, result: Ok(()) }));
}

#[test]
fn an_order_ends_by_itself_by_this_machines_clock() {
    let mut bench = Bench::new(vec![]);
    bench.put(order("all", Some(NOW_UNIX_MS + 30_000)));
    let left =
        |bench: &Bench| bench.core.orders(Time::from_millis(bench.now)).map(|view| view.left).collect::<Vec<_>>();
    assert_eq!(left(&bench), [Some(Duration::from_secs(30))]);
    // Given again: prolonged, its age is kept.
    let again = Order { since_unix_ms: NOW_UNIX_MS + 10_000, ..order("all", Some(NOW_UNIX_MS + 70_000)) };
    let actions = bench.step(Event::PutOrder { command: 3, order: again });
    let Some(Action::PutOrder { job, order: asked }) = actions.first().cloned() else { panic!("{actions:?}") };
    assert_eq!(asked.since_unix_ms, NOW_UNIX_MS);
    bench.step(Event::Job { job, result: JobResult::Done });
    bench.run(59_000);
    assert_eq!(bench.core.orders(Time::ZERO).count(), 1);
    let actions = bench.run(2000);
    assert_eq!(acts(&actions), ["order-lifted"]);
    let cleared = |action: &Action| matches!(action, Action::ClearOrder { scope: OrderScope::All, .. });
    assert!(actions.iter().any(cleared), "SIF is told");
}

#[test]
fn orders_survive_a_restart_and_one_that_is_over_does_not_come_back() {
    let mut bench = Bench::new(vec![order("target:mail1", None), order("agent:v1", Some(NOW_UNIX_MS - 1))]);
    let scopes: Vec<String> =
        bench.core.orders(Time::from_millis(bench.now)).map(|view| view.order.scope.to_string()).collect();
    assert_eq!(scopes, ["target:mail1"]);
    bench.well = false;
    assert_eq!(acts(&bench.run(30_000)), ["withheld"]);
}

#[test]
fn what_sif_does_not_take_is_said() {
    let mut bench = Bench::new(vec![]);
    let try_it = |bench: &mut Bench, result: JobResult| {
        let actions = bench.step(Event::PutOrder { command: 9, order: order("all", None) });
        let Some(Action::PutOrder { job, .. }) = actions.first().cloned() else { panic!("{actions:?}") };
        let actions = bench.step(Event::Job { job, result });
        let moved =
            |action: &Action| if let Action::Moved { result, .. } = action { result.clone().err() } else { None };
        let reason = actions.iter().find_map(moved).expect("a refusal");
        (reason, bench.core.orders(Time::ZERO).count())
    };
    let (reason, standing) = try_it(&mut bench, JobResult::Failed("disk full".into()));
    assert!(reason.contains("disk full") && reason.contains("nothing is changed"), "{reason}");
    assert_eq!(standing, 0);
    let (reason, standing) = try_it(&mut bench, JobResult::Unknown("time-out".into()));
    assert!(reason.contains("repeat the command"), "{reason}");
    assert_eq!(standing, 1, "to withhold is safe, to forget is not");
    let event = Event::ClearOrder { command: 4, scope: OrderScope::Agent(agent("v1")), who: "operator bob".into() };
    let Some(Action::Moved { result: Err(reason), .. }) = bench.step(event).first().cloned() else { panic!() };
    assert!(reason.contains("not in maintenance"), "{reason}");
}

#[test]
fn names_are_understood_or_listed() {
    let bench = Bench::new(vec![]);
    let scope = |text: &str| bench.core.order_scope(text).map(|scope| scope.to_string());
    for (text, meant) in [("mail1", "target:mail1"), ("mail", "agent:mail"), ("agent:v1", "agent:v1"), ("all", "all")] {
        assert_eq!(scope(text), Ok(meant.to_owned()));
    }
    for text in ["mail2", "target:mail", "", "agent:"] {
        let reason = scope(text).expect_err(text);
        assert!(reason.contains("mail1") || reason.contains("no name"), "{reason}");
    }
}

#[test]
fn adopted_what_is_there_is_the_accepted_state() {
    let mut bench = Bench::new(vec![]);
    bench.put(order("all", None));
    bench.well = false;
    bench.run(10_000);
    bench.well = true;
    let target = "mail1".parse().expect("target");
    let held = vec![AskVip { vip: vip(), epoch: Epoch(3) }];
    let found = vec![
        Holding { agent: agent("mail"), vips: Ok(held) },
        Holding { agent: agent("mgmt"), vips: Err("no answer".into()) },
    ];
    let actions = bench.step(Event::Adopt { command: 5, target, who: "operator alice".into(), found });
    let said: Vec<&str> = actions
        .iter()
        .filter_map(|action| if let Action::Note(note) = action { Some(note.text.as_str()) } else { None })
        .collect();
    let expected = [
        "adopted as it is by operator alice",
        "10.0.0.100 belongs to mail at epoch 3 and is served there",
        "mgmt could not be asked what it holds: no answer",
    ];
    assert_eq!(said, expected);
    assert!(actions.contains(&Action::ReadLedger) && actions.contains(&Action::Moved { command: 5, result: Ok(()) }));
    assert!(!actions.iter().any(|action| matches!(action, Action::AdvanceEpoch { .. })), "epochs stay");
    assert_eq!(bench.mode(), ("regular", "disarmed".into()));
    let target = "nobody".parse().expect("target");
    let actions = bench.step(Event::Adopt { command: 6, target, who: String::new(), found: vec![] });
    assert!(matches!(actions.first(), Some(Action::Moved { result: Err(_), .. })), "{actions:?}");
}
