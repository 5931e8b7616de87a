//! Virtual servers as targets: their virtual IPs follow the shared tables (thesis ch. 4), under the lease's rules.

#![allow(clippy::wildcard_enum_match_arm, reason = "each test names the actions that it is about")]

use kage_coordinator_core::{
    Action, AgentCommand, AgentReport, Cause, Coordinator, Event, JobId, JobResult, SessionId, VipRow,
    arrangement::Arrangement, config::Cluster,
};
use kage_types::{
    AgentId, AskVip, DomainName, Epoch, Nonce, OperationRow, RealServerRow, Revision, Step, StepState, Tables,
    TargetName, Term, Time, TransitionRow, Verdict, Vip,
};
use std::{collections::BTreeMap, time::Duration};

fn agent(name: &str) -> AgentId {
    name.parse().expect("agent")
}

fn vm(name: &str) -> DomainName {
    name.parse().expect("domain")
}

fn vip(last: u8) -> Vip {
    format!("10.0.0.{last}").parse().expect("vip")
}

/// mail1 on rs1 with VIPs 111 and 112, mail2 on rs2 with 113; their backup server mailb on mgmt; three voters.
fn cluster() -> Cluster {
    let mut text = "[cluster]\nname = \"t\"\nprofile = \"fast\"\n[coordinator]\nlisten = \"10.0.0.2:7700\"\n[sif]\n\
                    listen = \"10.0.0.2:7701\"\n"
        .to_owned();
    for (name, last) in [("mgmt", 2), ("rs1", 11), ("rs2", 12)] {
        text += &format!("[[agent]]\nname = \"{name}\"\naddress = \"10.0.0.{last}:7702\"\nguard = \"tap\"\n");
    }
    for last in 21..24 {
        text += &format!("[[agent]]\nname = \"v{last}\"\naddress = \"10.0.0.{last}:7702\"\nvoter = true\n");
    }
    for (name, host, vips, last) in
        [("mail1", "rs1", "\"10.0.0.111\", \"10.0.0.112\"", 61), ("mail2", "rs2", "\"10.0.0.113\"", 62)]
    {
        text += &format!(
            "[[target]]\nname = \"{name}\"\nvm = {{ domain = \"{name}\", host = \"{host}\" }}\n\
             address = \"10.0.0.{last}\"\nvips = [{vips}]\nbackup = {{ agent = \"mgmt\", domain = \"mailb\" }}\n"
        );
    }
    Cluster::parse(&text).unwrap_or_else(|error| panic!("{error}"))
}

/// The coordinator alone: what it wants done is seen, and ended by the test.
struct Bench {
    core: Coordinator,
    tables: Tables,
    now: u64,
    nonce: u64,
    /// Jobs that have not ended.
    jobs: Vec<(JobId, Action)>,
}

impl Bench {
    /// All VIPs at home at epoch 1, granted and served; the term's first wait is over.
    fn new() -> Self {
        let rows =
            [(111, "rs1", "mail1"), (112, "rs1", "mail1"), (113, "rs2", "mail2")].map(|(last, owner, domain)| VipRow {
                vip: vip(last),
                epoch: Epoch(1),
                owner: agent(owner),
                domain: Some(vm(domain)),
                cause: Cause::First,
                long_lease: false,
            });
        Self::with(cluster(), rows.to_vec())
    }

    /// The same with power saving as its only controller.
    fn of_power_saving(rows: Vec<VipRow>) -> Self {
        Self::with(Cluster { supervise: false, ..cluster() }, rows)
    }

    fn with(cluster: Cluster, rows: Vec<VipRow>) -> Self {
        let operation: BTreeMap<DomainName, OperationRow> = Arrangement::of(&cluster).operation;
        let real_servers = ["rs1", "rs2"]
            .map(|name| (agent(name), RealServerRow { asleep_since_unix_ms: None, wake_took_ms: Some(4000) }));
        let tables = Tables {
            revision: Revision(1),
            operation,
            real_servers: real_servers.into_iter().collect(),
            ..Tables::default()
        };
        let core = Coordinator::new(Time::ZERO, cluster);
        let mut bench = Self { core, tables, now: 1, nonce: 0, jobs: Vec::new() };
        bench.read_tables(|_| {});
        let (sent, length) = (Time::from_millis(1), Duration::from_secs(600));
        bench.step(Event::TermAcquired { term: Term(1), sent, length, rows });
        bench.end(|action| matches!(action, Action::PutArrangement { .. }), JobResult::Done);
        bench.run(2_000);
        bench.jobs.clear();
        bench
    }

    fn step(&mut self, event: Event) -> Vec<String> {
        let mut actions = Vec::new();
        self.core.step(Time::from_millis(self.now), event, &mut actions);
        let mut words = Vec::new();
        for action in actions {
            words.extend(word(&action));
            if let Some(job) = job(&action) {
                self.jobs.push((job, action));
            }
        }
        words
    }

    /// The tables after this change.
    fn read_tables(&mut self, change: impl FnOnce(&mut Tables)) -> Vec<String> {
        change(&mut self.tables);
        self.tables.revision = Revision(self.tables.revision.0 + 1);
        let tables = Box::new(self.tables.clone());
        self.step(Event::TablesRead { tables })
    }

    /// End the oldest job whose action is like this.
    fn end(&mut self, like: impl Fn(&Action) -> bool, result: JobResult) -> Vec<String> {
        self.now += 1;
        let at = self.jobs.iter().position(|(_, action)| like(action)).unwrap_or_else(|| panic!("{:?}", self.jobs));
        let (job, _) = self.jobs.remove(at);
        self.step(Event::Job { job, result })
    }

    fn commanded(&mut self, like: impl Fn(&AgentCommand) -> bool, result: JobResult) -> Vec<String> {
        self.end(|action| matches!(action, Action::Command { command, .. } if like(command)), result)
    }

    fn bar(&mut self) -> Vec<String> {
        self.end(|action| matches!(action, Action::Bar { .. }), JobResult::Barred(Duration::from_secs(600)))
    }

    /// A majority of them.
    fn bars(&mut self) {
        self.bar();
        self.bar();
    }

    fn epoch(&mut self, epoch: u64) -> Vec<String> {
        self.end(|action| matches!(action, Action::AdvanceEpoch { .. }), JobResult::Epoch(Epoch(epoch)))
    }

    /// An agent asks for all that the ledger, as the core knows it, says is its own.
    fn ask(&mut self, name: &str) -> Vec<(Vip, Verdict)> {
        let owned = [111, 112, 113].into_iter().filter_map(|last| self.core.vip(vip(last))?.row);
        let vips = owned.filter(|row| row.owner.as_str() == name).map(|row| AskVip { vip: row.vip, epoch: row.epoch });
        self.ask_for(name, vips.collect())
    }

    fn ask_for(&mut self, name: &str, vips: Vec<AskVip>) -> Vec<(Vip, Verdict)> {
        self.nonce += 1;
        let mut actions = Vec::new();
        let event = Event::Ask {
            agent: agent(name),
            session: SessionId(1),
            via: None,
            incarnation: 1,
            nonce: Nonce(self.nonce),
            heard: Nonce(self.nonce - 1),
            vips,
            long: false,
            long_surrendered: true,
        };
        self.core.step(Time::from_millis(self.now), event, &mut actions);
        let verdicts = actions.iter().flat_map(|action| match action {
            Action::Reply { grant, .. } => grant.items.iter().map(|item| (item.vip, item.verdict)).collect(),
            _ => Vec::new(),
        });
        let verdicts = verdicts.collect();
        self.jobs.extend(actions.into_iter().filter_map(|action| Some((job(&action)?, action))));
        verdicts
    }

    /// All who are up ask, and checks end well.
    fn run(&mut self, ms: u64) {
        self.run_but(ms, &[]);
    }

    fn run_but(&mut self, ms: u64, silent: &[&str]) -> Vec<String> {
        let mut words = Vec::new();
        for _ in 0..ms / 50 {
            self.now += 50;
            for name in ["mgmt", "rs1", "rs2", "v21", "v22", "v23"].into_iter().filter(|name| !silent.contains(name)) {
                self.ask(name);
            }
            words.extend(self.step(Event::Tick));
            while self.jobs.iter().any(|(_, action)| matches!(action, Action::Ping { .. })) {
                let good = JobResult::Check(kage_coordinator_core::CheckOutcome::Ok);
                words.extend(self.end(|action| matches!(action, Action::Ping { .. }), good));
            }
        }
        words
    }

    fn switched_over(&mut self, last: u8, from: &str, epoch: u64) -> Vec<String> {
        let ask = AskVip { vip: vip(last), epoch: Epoch(epoch) };
        let reason = "switched over to another host".to_owned();
        self.step(Event::Report { agent: agent(from), report: AgentReport::Lost { ask, reason } })
    }

    fn owner(&self, last: u8) -> String {
        let view = self.core.vip(vip(last)).expect("vip");
        let row = view.row.expect("row");
        let domain = row.domain.map(String::from).unwrap_or_default();
        format!("{} on {} at {}{}", domain, row.owner, row.epoch, if view.moving.is_some() { ", moving" } else { "" })
    }
}

fn job(action: &Action) -> Option<JobId> {
    match action {
        Action::AdvanceEpoch { job, .. }
        | Action::SetLongLease { job, .. }
        | Action::Bar { job, .. }
        | Action::Command { job, .. }
        | Action::Ping { job, .. }
        | Action::PutArrangement { job, .. } => Some(*job),
        _ => None,
    }
}

fn word(action: &Action) -> Option<String> {
    Some(match action {
        Action::AdvanceEpoch { vip, owner, domain, cause, expected, .. } => {
            let domain = domain.as_ref().map_or("-", |domain| domain.as_str());
            format!("epoch after {expected} of {vip}: {domain} on {owner}, {}", cause.as_str())
        }
        Action::Bar { voter, vip, floor, .. } => format!("bar of {voter}: {vip} below {floor}"),
        Action::Command { agent, command, .. } => match command {
            AgentCommand::Hold { ask, .. } => format!("{agent} holds {} at {}", ask.vip, ask.epoch),
            AgentCommand::Prepare { vip, .. } => format!("{agent} prepares {vip}"),
            AgentCommand::Release { ask } => format!("{agent} releases {} at {}", ask.vip, ask.epoch),
            other => format!("{agent}: {other:?}"),
        },
        Action::PutArrangement { arrangement, .. } => format!("arrangement of {}", arrangement.operation.len()),
        Action::Note(note) if note.severity == kage_coordinator_core::Severity::Alert => {
            format!("alert: {}", note.text)
        }
        _ => return None,
    })
}

fn migrating(tables: &mut Tables, from: &str, to: &str, state: StepState) {
    let step = Step::Migrate { vm: vm("mail1"), from: agent(from), to: agent(to) };
    tables.transition = Some(TransitionRow {
        id: 7,
        by: "pss".into(),
        plan: String::new(),
        steps: vec![(step, state)],
        groups: BTreeMap::new(),
    });
}

#[test]
fn a_new_term_tells_the_arrangement_and_moves_nothing_that_is_where_it_belongs() {
    let mut bench = Bench::new();
    for last in [111, 112] {
        assert_eq!(bench.owner(last), "mail1 on rs1 at 1");
    }
    let moved = bench.read_tables(|_| {});
    assert!(moved.is_empty(), "{moved:?}");
    // Another term finds a virtual server away from home, where power saving had it: it stays there.
    bench.tables.operation.get_mut(&vm("mail1")).expect("row").host = agent("rs2");
    bench.tables.placement.insert(vip(113), vm("mail1"));
    let rows = [111, 112, 113].map(|last| VipRow {
        vip: vip(last),
        epoch: Epoch(5),
        owner: agent("rs2"),
        domain: Some(vm("mail1")),
        cause: Cause::Arranged,
        long_lease: false,
    });
    bench.step(Event::TermLost { term: Term(1), reason: "another".into() });
    bench.read_tables(|_| {});
    let (sent, length) = (Time::from_millis(bench.now), Duration::from_secs(600));
    let words = bench.step(Event::TermAcquired { term: Term(2), sent, length, rows: rows.to_vec() });
    assert_eq!(words, ["arrangement of 2"]);
    let words = bench.run_but(1_000, &[]);
    assert!(words.is_empty(), "{words:?}");
    assert_eq!(bench.core.target(&"mail2".parse::<TargetName>().expect("name")).expect("target").mode, "regular");
}

#[test]
fn a_virtual_ip_goes_to_the_member_that_power_saving_chose_and_home_again() {
    let mut bench = Bench::new();
    let words = bench.read_tables(|tables| drop(tables.placement.insert(vip(113), vm("mail1"))));
    assert_eq!(words, ["epoch after 1 of 10.0.0.113: mail1 on rs1, arranged"]);
    assert_eq!(
        bench.epoch(2),
        [
            "bar of v21: 10.0.0.113 below 2",
            "bar of v22: 10.0.0.113 below 2",
            "bar of v23: 10.0.0.113 below 2",
            "rs1 prepares 10.0.0.113"
        ]
    );
    bench.bar();
    bench.bar();
    // It serves until the rest is ready.
    let words = bench.commanded(|command| matches!(command, AgentCommand::Prepare { .. }), JobResult::Done);
    assert_eq!(words, ["rs2 releases 10.0.0.113 at 1"]);
    let words = bench.commanded(|command| matches!(command, AgentCommand::Release { .. }), JobResult::Done);
    assert_eq!(words, ["rs1 holds 10.0.0.113 at 2"]);
    bench.commanded(|command| matches!(command, AgentCommand::Hold { .. }), JobResult::Done);
    assert_eq!(bench.owner(113), "mail1 on rs1 at 2");
    let words = bench.read_tables(|tables| tables.placement.clear());
    assert_eq!(words, ["epoch after 2 of 10.0.0.113: mail2 on rs2, arranged"]);
}

/// `--controllers pss`: leases are granted and moved as the tables say, and nobody is looked at or taken over.
#[test]
fn without_supervision_virtual_ips_follow_the_tables_all_the_same() {
    let mut rows = Vec::new();
    for (last, owner, domain) in [(111, "rs1", "mail1"), (112, "rs1", "mail1"), (113, "rs2", "mail2")] {
        let (vip, owner, domain) = (vip(last), agent(owner), Some(vm(domain)));
        rows.push(VipRow { vip, epoch: Epoch(1), owner, domain, cause: Cause::First, long_lease: false });
    }
    let mut bench = Bench::of_power_saving(rows);
    assert!(bench.ask("rs1").iter().all(|(_, verdict)| *verdict == Verdict::Granted));
    let words = bench.read_tables(|tables| drop(tables.placement.insert(vip(113), vm("mail1"))));
    assert_eq!(words, ["epoch after 1 of 10.0.0.113: mail1 on rs1, arranged"]);
    bench.epoch(2);
    bench.bars();
    bench.commanded(|command| matches!(command, AgentCommand::Prepare { .. }), JobResult::Done);
    bench.commanded(|command| matches!(command, AgentCommand::Release { .. }), JobResult::Done);
    bench.commanded(|command| matches!(command, AgentCommand::Hold { .. }), JobResult::Done);
    assert_eq!(bench.owner(113), "mail1 on rs1 at 2");
    let words = bench.run_but(5_000, &["rs1"]);
    assert!(words.is_empty(), "a silent host is not looked at: {words:?}");
}

/// A cluster that is new, with power saving as its only controller: somebody must serve.
#[test]
fn without_supervision_virtual_ips_are_placed_at_home_first() {
    let bench = Bench::of_power_saving(Vec::new());
    for last in [111, 112, 113] {
        let view = bench.core.vip(vip(last)).expect("vip");
        assert!(view.row.is_none() && view.moving.is_some(), "its first epoch is asked for: {view:?}");
    }
}

/// mail1 is being migrated to rs2, and 111 has been told to have switched over.
fn switching() -> (Bench, Vec<String>) {
    let mut bench = Bench::new();
    let words = bench.read_tables(|tables| migrating(tables, "rs1", "rs2", StepState::Begun));
    assert!(words.is_empty(), "while memory is copied it serves where it is: {words:?}");
    bench.now += 10;
    let words = bench.switched_over(111, "rs1", 1);
    (bench, words)
}

fn advancing(last: u8) -> impl Fn(&Action) -> bool {
    move |action| matches!(action, Action::AdvanceEpoch { vip: of, .. } if *of == vip(last))
}

fn holding(action: &Action) -> bool {
    matches!(action, Action::Command { command: AgentCommand::Hold { .. }, .. })
}

#[test]
fn at_the_switch_over_nothing_is_waited_for_but_the_epoch_and_a_majority_of_bars() {
    let (mut bench, words) = switching();
    assert_eq!(
        words,
        [
            "epoch after 1 of 10.0.0.111: mail1 on rs2, arranged",
            "bar of v21: 10.0.0.111 below 2",
            "bar of v22: 10.0.0.111 below 2",
            "bar of v23: 10.0.0.111 below 2",
            "rs2 prepares 10.0.0.111",
            // Told in a moment as well; nothing is lost by beginning at once.
            "epoch after 1 of 10.0.0.112: mail1 on rs2, arranged",
        ]
    );
    bench.bar();
    assert_eq!(bench.end(advancing(111), JobResult::Epoch(Epoch(2))), ["rs1 releases 10.0.0.111 at 1"]);
    assert_eq!(bench.bar(), ["rs2 holds 10.0.0.111 at 2"]);
    bench.end(holding, JobResult::Done);
    assert_eq!(bench.owner(111), "mail1 on rs2 at 2");
    // The other one, told while its epoch is being made durable.
    let words = bench.switched_over(112, "rs1", 1);
    assert_eq!(words[3], "rs2 prepares 10.0.0.112");
    bench.jobs.retain(|(_, action)| !matches!(action, Action::Bar { vip: of, .. } if *of == vip(111)));
    bench.bars();
    let words = bench.end(advancing(112), JobResult::Epoch(Epoch(2)));
    assert_eq!(words, ["rs2 holds 10.0.0.112 at 2"]);
    bench.end(holding, JobResult::Done);
    // Recorded as done: nothing is left to do.
    let words = bench.read_tables(|tables| {
        tables.operation.get_mut(&vm("mail1")).expect("row").host = agent("rs2");
        migrating(tables, "rs1", "rs2", StepState::Done);
    });
    assert!(words.is_empty(), "{words:?}");
}

#[test]
fn a_grant_after_the_report_of_a_switch_over_has_the_release_waited_for() {
    let (mut bench, _) = switching();
    bench.now += 1;
    let told_again = vec![AskVip { vip: vip(111), epoch: Epoch(1) }];
    assert_eq!(bench.ask_for("rs1", told_again), [(vip(111), Verdict::Granted)]);
    bench.bars();
    assert_eq!(bench.end(advancing(111), JobResult::Epoch(Epoch(2))), ["rs1 releases 10.0.0.111 at 1"]);
    let releasing = |command: &AgentCommand| matches!(command, AgentCommand::Release { .. });
    assert_eq!(bench.commanded(releasing, JobResult::Done), ["rs2 holds 10.0.0.111 at 2"]);
}

#[test]
fn a_report_of_a_lost_lease_for_another_reason_or_an_old_epoch_frees_nothing() {
    let mut bench = Bench::new();
    bench.read_tables(|tables| migrating(tables, "rs1", "rs2", StepState::Begun));
    assert!(bench.switched_over(111, "rs1", 0).is_empty());
    assert!(bench.switched_over(111, "rs2", 1).is_empty());
    let ask = AskVip { vip: vip(111), epoch: Epoch(1) };
    let report = AgentReport::Lost { ask, reason: "the lease ran out".into() };
    assert!(bench.step(Event::Report { agent: agent("rs1"), report }).is_empty());
    assert_eq!(bench.owner(111), "mail1 on rs1 at 1");
}

#[test]
fn a_migration_that_failed_after_the_switch_over_has_its_virtual_ips_back_at_the_source() {
    let (mut bench, _) = switching();
    bench.bars();
    bench.end(advancing(111), JobResult::Epoch(Epoch(2)));
    bench.end(holding, JobResult::Failed("no domain mail1 here".into()));
    // It is looked at before it is taken back: until that is over it is where it switched over to.
    let words = bench.read_tables(|tables| migrating(tables, "rs1", "rs2", StepState::UndoBegun));
    assert!(words.is_empty(), "{words:?}");
    let words = bench.read_tables(|tables| tables.transition = None);
    assert_eq!(
        words,
        ["epoch after 2 of 10.0.0.111: mail1 on rs1, arranged", "epoch after 1 of 10.0.0.112: mail1 on rs1, arranged"]
    );
    bench.jobs.retain(|(_, action)| !matches!(action, Action::Bar { .. }));
    assert!(bench.end(|action| advancing(112)(action), JobResult::Epoch(Epoch(2))).is_empty(), "that one is given up");
    let words = bench.end(advancing(111), JobResult::Epoch(Epoch(3)));
    assert!(words.contains(&"rs1 prepares 10.0.0.111".to_owned()), "{words:?}");
}

#[test]
fn a_migration_that_is_taken_back_switches_over_the_other_way() {
    let (mut bench, _) = switching();
    bench.bars();
    bench.end(advancing(111), JobResult::Epoch(Epoch(2)));
    bench.end(holding, JobResult::Done);
    assert!(bench.read_tables(|tables| migrating(tables, "rs1", "rs2", StepState::UndoBegun)).is_empty());
    let words = bench.switched_over(111, "rs2", 2);
    assert_eq!(words[0], "epoch after 2 of 10.0.0.111: mail1 on rs1, arranged");
}

#[test]
fn a_takeover_takes_along_what_the_lost_server_held_for_others_and_arrangements_wait_for_its_end() {
    let mut bench = Bench::new();
    bench.read_tables(|tables| drop(tables.placement.insert(vip(113), vm("mail1"))));
    bench.epoch(2);
    bench.bars();
    bench.commanded(|command| matches!(command, AgentCommand::Prepare { .. }), JobResult::Done);
    bench.commanded(|command| matches!(command, AgentCommand::Release { .. }), JobResult::Done);
    bench.end(holding, JobResult::Done);
    let target: TargetName = "mail1".parse().expect("name");
    bench.step(Event::Move { command: 1, target, back: false, force: true });
    let words = bench.commanded(|command| matches!(command, AgentCommand::ResumeVm { .. }), JobResult::Done);
    assert_eq!(
        words,
        [
            "epoch after 1 of 10.0.0.111: mailb on mgmt, failover",
            "epoch after 1 of 10.0.0.112: mailb on mgmt, failover",
            "epoch after 2 of 10.0.0.113: mailb on mgmt, failover",
        ]
    );
    let words = bench.read_tables(|tables| tables.placement.clear());
    assert!(words.is_empty(), "{words:?}");
}

/// Two orders to one backup server could overtake each other on their way, and its agent refuses the earlier one.
#[test]
fn a_backup_server_of_several_virtual_ips_is_resumed_by_one_order() {
    let mut bench = Bench::new();
    let report = AgentReport::VmCrashed { domain: vm("mail1"), detail: "its process is gone".into() };
    bench.step(Event::Report { agent: agent("rs1"), report });
    bench.end(advancing(111), JobResult::Epoch(Epoch(2)));
    bench.end(advancing(112), JobResult::Epoch(Epoch(2)));
    (0..6).for_each(|_| drop(bench.bar()));
    let resumes = |bench: &Bench| {
        let resume = |(_, action): &&(JobId, Action)| {
            matches!(action, Action::Command { command: AgentCommand::ResumeVm { .. }, .. })
        };
        bench.jobs.iter().filter(resume).count()
    };
    assert_eq!(resumes(&bench), 1);
    bench.run(100);
    bench.commanded(|command| matches!(command, AgentCommand::ResumeVm { .. }), JobResult::Done);
    bench.run(100);
    assert_eq!(resumes(&bench), 0, "it runs");
    for last in [111, 112] {
        let release = |command: &AgentCommand| matches!(command, AgentCommand::Release { ask } if ask.vip == vip(last));
        bench.commanded(release, JobResult::Done);
    }
    let held = bench.jobs.iter().filter(|(_, action)| holding(action)).count();
    assert_eq!(held, 2, "both are opened");
}

/// Mail2's virtual IP is on mail1: what becomes of mail2 is no reason to leave it behind.
#[test]
fn a_virtual_ip_of_one_that_is_being_recovered_follows_who_holds_it() {
    let mut bench = Bench::new();
    bench.read_tables(|tables| drop(tables.placement.insert(vip(113), vm("mail1"))));
    bench.epoch(2);
    bench.bars();
    bench.commanded(|command| matches!(command, AgentCommand::Prepare { .. }), JobResult::Done);
    bench.commanded(|command| matches!(command, AgentCommand::Release { .. }), JobResult::Done);
    bench.end(holding, JobResult::Done);
    let target: TargetName = "mail2".parse().expect("name");
    let report = AgentReport::VmCrashed { domain: vm("mail2"), detail: "its process is gone".into() };
    bench.step(Event::Report { agent: agent("rs2"), report });
    assert_ne!(bench.core.target(&target).expect("target").mode, "regular");
    bench.read_tables(|tables| migrating(tables, "rs1", "rs2", StepState::Begun));
    let words = bench.switched_over(113, "rs1", 2);
    assert!(words.contains(&"epoch after 2 of 10.0.0.113: mail1 on rs2, arranged".to_owned()), "{words:?}");
}

#[test]
fn a_real_server_that_sleeps_on_purpose_is_neither_dark_nor_flaky() {
    let mut bench = Bench::new();
    for _ in 0..4 {
        bench.read_tables(|tables| {
            let row = tables.operation.remove(&vm("mail2")).expect("row");
            tables.suspend.insert(vm("mail2"), row);
            tables.real_servers.get_mut(&agent("rs2")).expect("row").asleep_since_unix_ms = Some(1);
        });
        // With it, three of five failure domains would be dark.
        let words = bench.run_but(5_000, &["rs2", "v21", "v22"]);
        assert!(!words.iter().any(|word| word.contains("alert") || word.contains("epoch")), "{words:?}");
        assert_eq!(bench.core.storm_brake(), None);
        bench.ask("rs2");
        bench.read_tables(|tables| {
            let row = tables.suspend.remove(&vm("mail2")).expect("row");
            tables.operation.insert(vm("mail2"), row);
            tables.real_servers.get_mut(&agent("rs2")).expect("row").asleep_since_unix_ms = None;
        });
        bench.run(1_000);
    }
    let now = Time::from_millis(bench.now);
    assert_eq!(bench.core.quarantines(now).count(), 0);
}

#[test]
fn signals_are_sent_one_after_another_and_again_until_they_are_answered() {
    let mut bench = Bench::new();
    let now = |bench: &mut Bench| bench.step(Event::Tick);
    bench.step(Event::TermLost { term: Term(1), reason: "another".into() });
    let (sent, length) = (Time::from_millis(bench.now), Duration::from_secs(600));
    let words = bench.step(Event::TermAcquired { term: Term(2), sent, length, rows: Vec::new() });
    assert!(words.contains(&"arrangement of 2".to_owned()), "{words:?}");
    let arrangement = |action: &Action| matches!(action, Action::PutArrangement { .. });
    let words = bench.end(arrangement, JobResult::Unknown("no answer".into()));
    assert!(!words.contains(&"arrangement of 2".to_owned()));
    bench.now += 300;
    assert!(now(&mut bench).contains(&"arrangement of 2".to_owned()));
    bench.end(arrangement, JobResult::Failed("of another term".into()));
    bench.now += 1000;
    assert!(!now(&mut bench).contains(&"arrangement of 2".to_owned()));
}
