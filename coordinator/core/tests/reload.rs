//! A changed configuration while everything runs: what is touched, and what must not be.

use kage_coordinator_core::{
    Action, AgentCommand, Cause, Coordinator, Event, JobResult, SessionId, VipRow, config::Cluster,
};
use kage_types::{AgentId, AskVip, Epoch, Nonce, Term, Time, Verdict};
use std::time::Duration;

const HEAD: &str = r#"
[cluster]
name = "test"
[coordinator]
listen = "10.0.0.2:7700"
[sif]
listen = "10.0.0.2:7701"
"#;

fn agent(name: &str, last: u8, more: &str) -> String {
    format!("[[agent]]\nname = \"{name}\"\naddress = \"10.0.0.{last}:7702\"\n{more}\n")
}

fn agents() -> String {
    let voters = ["v1", "v2", "v3"].iter().zip(21..).map(|(name, last)| agent(name, last, "voter = true"));
    agent("mail", 11, "") + &agent("web", 13, "") + &agent("mgmt", 12, "guard = \"tap\"") + &voters.collect::<String>()
}

fn target(name: &str, vip: u8, more: &str) -> String {
    format!(
        "[[target]]\nname = \"{name}\"\nagent = \"{name}\"\nvips = [\"10.0.0.{vip}\"]\n\
         backup = {{ agent = \"mgmt\", domain = \"{name}b\" }}\n{more}\n"
    )
}

fn cluster(text: &str) -> Box<Cluster> {
    Box::new(Cluster::parse(text).unwrap_or_else(|error| panic!("{error}")))
}

fn usual() -> String {
    HEAD.to_owned() + &agents() + &target("mail", 100, "") + &target("web", 101, "")
}

struct Bench {
    core: Coordinator,
    now: u64,
    nonce: u64,
}

impl Bench {
    fn new() -> Self {
        let mut bench =
            Self { core: Coordinator::new(Time::from_millis(1000), *cluster(&usual())), now: 1000, nonce: 0 };
        let rows = vec![row(100, "mail"), row(101, "web")];
        bench.step(Event::TermAcquired {
            term: Term(1),
            sent: Time::from_millis(1000),
            length: Duration::from_secs(5000),
            rows,
        });
        for name in ["mail", "web"] {
            let agent = name.parse().expect("name");
            bench.step(Event::AgentUp { agent, session: SessionId(1), incarnation: 1 });
        }
        // The new term has outwaited the one before it.
        for _ in 0..100 {
            bench.now += 100;
            bench.ask("mail", 100);
            bench.ask("web", 101);
        }
        bench
    }

    fn step(&mut self, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        self.core.step(Time::from_millis(self.now), event, &mut actions);
        actions
    }

    fn ask(&mut self, name: &str, vip: u8) -> Verdict {
        self.nonce += 1;
        let actions = self.step(Event::Ask {
            agent: name.parse().expect("name"),
            session: SessionId(1),
            via: None,
            incarnation: 1,
            nonce: Nonce(self.nonce),
            heard: Nonce(self.nonce - 1),
            vips: vec![AskVip { vip: address(vip).parse().expect("vip"), epoch: Epoch(1) }],
            long: false,
            long_surrendered: true,
        });
        let verdict = actions.iter().find_map(|action| {
            let Action::Reply { grant, .. } = action else { return None };
            Some(grant.items[0].verdict)
        });
        verdict.expect("an answer")
    }

    fn reload(&mut self, text: &str, force: bool) -> (Result<(), String>, Vec<Action>) {
        let mut actions = self.step(Event::Reload { command: 7, cluster: cluster(text), force });
        let at =
            actions.iter().position(|action| matches!(action, Action::Moved { command: 7, .. })).expect("answered");
        let Action::Moved { result, .. } = actions.remove(at) else { unreachable!() };
        (result, actions)
    }

    fn mode(&self, target: &str) -> Option<&'static str> {
        self.core.target(&target.parse().expect("name")).map(|view| view.mode)
    }
}

fn address(last: u8) -> String {
    format!("10.0.0.{last}")
}

fn row(vip: u8, owner: &str) -> VipRow {
    VipRow {
        vip: address(vip).parse().expect("vip"),
        epoch: Epoch(1),
        owner: AgentId::new(owner).expect("name"),
        domain: None,
        cause: Cause::First,
        long_lease: false,
    }
}

fn notes(actions: &[Action]) -> Vec<&str> {
    actions
        .iter()
        .filter_map(|action| if let Action::Note(note) = action { Some(note.text.as_str()) } else { None })
        .collect()
}

#[test]
fn what_is_not_changed_is_not_touched() {
    let mut bench = Bench::new();
    let before = bench.core.target(&"web".parse().expect("name")).expect("web");
    let text = usual().replace("10.0.0.100", "10.0.0.110") + &agent("ftp", 14, "") + &target("ftp", 102, "");
    let (result, actions) = bench.reload(&text, false);
    assert_eq!(result, Ok(()));
    assert!(actions.contains(&Action::Configured) && actions.contains(&Action::ReadLedger));
    assert_eq!(
        notes(&actions)[..3],
        ["[[agent]] ftp: added", "[[target]] mail: changed: vips", "[[target]] ftp: added"]
    );
    assert_eq!(bench.core.target(&"web".parse().expect("name")), Some(before));
    assert!(bench.mode("ftp").is_some());
    assert_eq!(bench.ask("web", 101), Verdict::Granted);
    // Its owner closes the address that is listed no more; its row stays in the ledger.
    assert_eq!(bench.ask("mail", 100), Verdict::Superseded);
    // Of the one that is new nothing is known before the ledger was read.
    assert_eq!(bench.ask("mail", 110), Verdict::Wait);
}

#[test]
fn the_same_file_changes_nothing() {
    let mut bench = Bench::new();
    let (result, actions) = bench.reload(&usual(), false);
    assert_eq!((result, notes(&actions).len()), (Ok(()), 0));
    assert_eq!(bench.ask("mail", 100), Verdict::Granted);
}

#[test]
fn timings_and_voters_wait_for_a_restart() {
    let mut bench = Bench::new();
    let text = usual()
        .replace("name = \"test\"", "name = \"test\"\nprofile = \"fast\"")
        .replace("10.0.0.2:7701", "10.0.0.2:7801")
        + &agent("v4", 24, "voter = true")
        + &agent("v5", 25, "voter = true");
    let (result, actions) = bench.reload(&text, false);
    assert_eq!(result, Ok(()));
    let notes = notes(&actions).join("\n");
    for part in ["[cluster] profile", "[sif] listen", "[[agent]] v4: voter = true", "[[agent]] v4: added"] {
        assert!(notes.contains(part), "{notes}");
    }
    assert_eq!(bench.core.cluster().timing.lease, Duration::from_secs(2));
    assert_eq!(bench.core.cluster().bars_needed(), 2);
    assert_eq!(bench.core.cluster().sif.port(), 7701);
}

#[test]
fn a_target_away_from_home_is_not_changed_under_its_own_feet() {
    let mut bench = Bench::new();
    bench.step(Event::AgentUp { agent: "mgmt".parse().expect("name"), session: SessionId(2), incarnation: 1 });
    bench.ask("mgmt", 100);
    let moved = bench.step(Event::Move { command: 1, target: "mail".parse().expect("name"), back: false, force: true });
    let resumed = moved.iter().find_map(|action| {
        let Action::Command { job, command: AgentCommand::ResumeVm { .. }, .. } = action else { return None };
        Some(*job)
    });
    let job = resumed.expect("the double is resumed first");
    let moved = bench.step(Event::Job { job, result: JobResult::Done });
    assert!(moved.contains(&Action::Moved { command: 1, result: Ok(()) }), "{moved:?}");
    let without = HEAD.to_owned() + &agents() + &target("web", 101, "");
    let (result, actions) = bench.reload(&without, false);
    let why = result.expect_err("refused");
    assert!(why.contains("mail is") && why.contains("kagectl failback mail"), "{why}");
    assert!(!actions.contains(&Action::Configured));
    assert!(bench.mode("mail").is_some());
    // The other one may be changed meanwhile.
    let other = usual().replace("vips = [\"10.0.0.101\"]", "vips = [\"10.0.0.101\"]\nhealthy_for = \"3s\"");
    assert_eq!(bench.reload(&other, false).0, Ok(()));
    assert_eq!(bench.reload(&without, true).0, Ok(()));
    assert_eq!(bench.mode("mail"), None);
    assert_eq!(bench.ask("mail", 100), Verdict::Superseded);
    // What was under way for it ends in nothing.
    for _ in 0..200 {
        bench.now += 50;
        let late = bench.step(Event::Tick);
        let about =
            |action: &Action| matches!(action, Action::AdvanceEpoch { target, .. } if target.as_str() == "mail");
        assert!(!late.iter().any(about), "{late:?}");
    }
}

#[test]
fn the_owner_of_what_stays_can_not_be_removed() {
    let mut bench = Bench::new();
    // The target moves to another machine while the old one still owns its VIP.
    let text = usual().replace(&agent("mail", 11, ""), "").replace("agent = \"mail\"", "agent = \"v1\"");
    let why = bench.reload(&text, true).0.expect_err("refused");
    assert_eq!(why, "[[agent]] mail can't be removed: it owns 10.0.0.100, which stays");
}
