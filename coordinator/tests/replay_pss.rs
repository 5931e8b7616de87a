//! Power saving's journal: a recorded night is replayed to the same actions and states, and a changed line is found.

use kage_coordinator::saving::journal::Saver;
use kage_coordinator_core::{
    journal::{Because, Core as _, FORMAT, Head, add_actions, event_line, snapshot_line, start_line},
    replay::{Nobody, Replay, inputs, replay_watched},
};
use kage_pss_core::{
    Input,
    execute::{Action, Event, JobResult, Signal},
    inventory::{Group, Host, HostState, HostWatts, Inventory, Vm, VmState, WakePath},
    load::{CpuCounter, Sample},
    policy::{Day, Policy, Wall},
    units::{Bytes, BytesPerSecond, Watts},
};
use kage_types::{Condition, DomainName, Revision, Time};
use std::{
    collections::BTreeMap,
    path::Path,
    process::{Command, Output},
    time::Duration,
};

const UNIX_MS: u64 = 1_795_386_900_000;

fn text(line: Vec<u8>) -> String {
    String::from_utf8(line).expect("text")
}

fn head() -> Head {
    Head { version: env!("CARGO_PKG_VERSION").into(), format: FORMAT, pid: 7, unix_ms: UNIX_MS }
}

/// Two members on two hosts, as all is at home.
fn arrangement() -> Inventory {
    let host = Host {
        state: HostState::Awake,
        answers: true,
        woke: false,
        slept_on: false,
        awake_since: Time::ZERO,
        sleeps: Vec::new(),
        memory: Bytes::gib(8),
        cores: 4,
        wake: WakePath::Verified(Duration::from_secs(8)),
        watts: HostWatts { awake: Watts::of(88), asleep: Watts::of(4) },
        pinned: None,
    };
    let vm = |on: &str, vip: &str| Vm {
        group: Some("mail".parse().expect("name")),
        host: on.parse().expect("name"),
        home: on.parse().expect("name"),
        memory: Bytes::gib(2),
        state: VmState::Running,
        vips: [vip.parse().expect("address")].into(),
        home_vips: [vip.parse().expect("address")].into(),
        shared_storage: true,
        usage: None,
    };
    let members = ["mail1", "mail2"].map(|name| name.parse::<DomainName>().expect("name"));
    let group = Group { members: members.into(), condition: Condition::Moderate, wanted: Condition::Moderate };
    Inventory {
        generation: Revision(1),
        now: Time::ZERO,
        hosts: ["rs1", "rs2"].map(|name| (name.parse().expect("name"), host.clone())).into(),
        vms: [("mail1", vm("rs1", "10.0.0.1")), ("mail2", vm("rs2", "10.0.0.2"))]
            .map(|(name, vm)| (name.parse().expect("name"), vm))
            .into(),
        groups: [("mail".parse().expect("name"), group)].into(),
        claims: [].into(),
        doubts: BTreeMap::new(),
    }
}

/// A cluster that does what it is told, around a core whose inputs are written down.
struct Night {
    core: Saver,
    truth: Inventory,
    now: Time,
    seq: u64,
    used: BTreeMap<DomainName, u64>,
    lines: Vec<String>,
    /// The state is written down after each event, not only at the beginning.
    snapshots: bool,
}

impl Night {
    fn new(snapshots: bool) -> Self {
        let policy =
            Policy { awake_for: Duration::ZERO, base: Some("rs1".parse().expect("name")), ..Policy::default() };
        let now = Time::from_millis(1_000);
        let lines = vec![text(start_line::<Saver>(0, now, &head(), &policy).expect("start"))];
        let core = Saver::begin(now, policy);
        let truth = arrangement();
        let mut night = Self { core, truth, now, seq: 0, used: BTreeMap::new(), lines, snapshots };
        night.input(Input::Inventory(Box::new(night.truth.clone())));
        night
    }

    fn input(&mut self, input: Input) {
        let mut queue = vec![input];
        while !queue.is_empty() {
            let input = queue.remove(0);
            self.seq += 1;
            let mut line = event_line(self.seq, self.now, &input).expect("event");
            let mut actions = Vec::new();
            self.core.take(self.now, input, &mut actions);
            add_actions::<Saver>(&mut line, &actions).expect("actions");
            line.push(b'}');
            self.lines.push(text(line));
            if self.snapshots {
                let line = snapshot_line(self.seq, self.now, &head(), Because::Length, &self.core);
                self.lines.push(text(line.expect("snapshot")));
            }
            for action in actions {
                queue.extend(self.answer(action));
            }
        }
    }

    fn answer(&mut self, action: Action) -> Vec<Input> {
        match action {
            Action::Signal { id, signal } => {
                if let Signal::Committed { conditions, .. } | Signal::RolledBack { conditions, .. } = signal {
                    for (name, condition) in conditions {
                        self.truth.groups.get_mut(&name).expect("group").condition = condition;
                    }
                }
                let recorded = Event::Recorded { id, revision: self.truth.generation.next() };
                vec![Input::Execute(recorded), self.shown()]
            }
            Action::Do { job, step, .. } => {
                self.truth.apply(&step);
                vec![self.shown(), Input::Execute(Event::Ended { job, result: JobResult::Done })]
            }
            Action::Look { job, .. } => vec![Input::Execute(Event::Ended { job, result: JobResult::Done })],
            Action::Abort { .. } | Action::Yield(_) | Action::Note(_) => Vec::new(),
        }
    }

    fn shown(&mut self) -> Input {
        self.truth.generation = self.truth.generation.next();
        Input::Inventory(Box::new(self.truth.clone()))
    }

    /// One judgement after another, at this load of each member in service.
    fn rounds(&mut self, rounds: u64, percent: u64) {
        for _ in 0..rounds {
            self.now = self.now + Duration::from_secs(10);
            for (name, vm) in self.truth.vms.clone() {
                let used = self.used.entry(name.clone()).or_default();
                *used += percent * 10 * 10_000_000;
                let awake = self.truth.hosts[&vm.host].state == HostState::Awake;
                if vm.vips.is_empty() || !awake {
                    continue;
                }
                let sample = Sample {
                    source: vm.host.clone(),
                    stream: 1,
                    at: self.now,
                    cpu: CpuCounter::DomainNanos(*used),
                    cores: 1,
                    memory_used: Bytes::mib(500),
                    memory_max: Bytes::gib(2),
                    received: Bytes(0),
                    sent: Bytes(0),
                    rated: Some(BytesPerSecond::rated(1000)),
                };
                self.input(Input::Sample { vm: name, sample: Box::new(sample) });
            }
            let minute = u16::try_from(self.now.as_nanos() / 60_000_000_000 % 1440).expect("a minute");
            self.input(Input::Tick(Wall { day: Day::Monday, minute }));
        }
    }
}

/// Light, with the host's suspension; other figures meanwhile; Moderate again.
fn night(snapshots: bool) -> Night {
    let mut night = Night::new(snapshots);
    night.rounds(2, 40);
    night.rounds(8, 5);
    let rs2 = |night: &Night| night.truth.hosts.values().last().map(|host| host.state);
    assert_eq!(rs2(&night), Some(HostState::Asleep));
    let policy = Policy { sleeps_a_day: 3, ..night.core.0.policy().clone() };
    night.input(Input::Configure(Box::new(policy)));
    night.rounds(6, 60);
    assert_eq!(rs2(&night), Some(HostState::Awake));
    assert_eq!(night.truth.vms, arrangement().vms);
    night
}

fn replay(dir: &Path, lines: &[String], options: &[&str]) -> Output {
    std::fs::write(dir.join("journal-pss.jsonl"), lines.join("\n") + "\n").expect("written");
    Command::new(env!("CARGO_BIN_EXE_kage-coordinator"))
        .current_dir(dir)
        .args(["replay", "journal-pss.jsonl"])
        .args(options)
        .env("TZ", "UTC")
        .output()
        .expect("run")
}

#[test]
fn a_night_is_replayed_with_its_reasons() {
    let dir = tempfile::tempdir().expect("directory");
    let night = night(false);
    let output = replay(dir.path(), &night.lines, &[]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let seq = night.seq;
    assert!(
        said.contains(&format!("{seq} events of 1 process(es) replayed; {seq} with recorded actions, all the same"))
    );
    let mut rest = said.as_str();
    for part in [
        "2026-11-22 22:35:00.000        0  power saving begins\n",
        "  mail: Moderate condition\n",
        "  why: mail: waiting for 2 more Light judgements\n",
        "  transition begun (3 steps): mail Moderate -> Light; saves 84.0 W (modelled)",
        "  done: suspend host rs2\n",
        "  mail: Moderate -> Light condition\n",
        "  its figures are changed\n",
        "  why: mail: waiting for 1 more Moderate judgement\n",
        "  transition begun (3 steps): mail Light -> Moderate;",
        "  mail: Light -> Moderate condition\n",
        "  mail: Moderate condition, Moderate load class\n",
        "  rs2: Awake\n",
    ] {
        let (_, after) = rest.split_once(part).unwrap_or_else(|| panic!("{part} in order in\n{said}"));
        rest = after;
    }
    let output = replay(dir.path(), &night.lines, &["--until", "2026-11-22T22:36:30Z"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("State after event") && !said.contains("Light -> Moderate"), "{said}");
}

#[test]
fn a_changed_line_is_found() {
    let dir = tempfile::tempdir().expect("directory");
    let mut lines = night(false).lines;
    // A decision that was another; then an observation that would have led to another.
    let index = lines.iter().position(|line| line.contains("\"transition-begun\"")).expect("a plan");
    let kept = lines[index].clone();
    lines[index] = kept.replace("\"mail2\"", "\"mail1\"");
    let output = replay(dir.path(), &lines, &[]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(said.contains(&format!("journal-pss.jsonl:{}: event {index} at ", index + 1)), "{said}");
    assert!(said.contains("expected: ") && said.contains("got: "), "{said}");
    lines[index] = kept;
    let sample = lines[..index].iter().rposition(|line| line.contains("DomainNanos")).expect("a sample");
    let used = lines[sample].split_once("DomainNanos\":").expect("CPU").1.split_once('}').expect("end").0.to_owned();
    lines[sample] = lines[sample].replace(&used, &format!("9{used}"));
    let output = replay(dir.path(), &lines, &[]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(said.contains(": event "), "{said}");
}

/// Every state on the way can be written down, and read back as the same: replaying may begin at each.
#[test]
fn every_state_is_a_beginning() {
    let lines = night(true).lines;
    let replayed = |lines: &[String]| {
        let mut replay = Replay::<Saver>::new(env!("CARGO_PKG_VERSION"));
        let all = lines.join("\n");
        replay_watched(inputs("journal-pss.jsonl", all.as_bytes()), &mut replay, &mut Nobody).expect("the same");
        replay
    };
    let whole = replayed(&lines);
    assert_eq!(whole.counts().snapshots, whole.counts().events);
    for begin in (2..lines.len()).step_by(14) {
        let part = replayed(&lines[begin..]);
        assert_eq!(part.core(), whole.core(), "from line {begin}");
        assert!(part.counts().compared > 0 || begin + 2 >= lines.len());
    }
}

/// A virtual server's counters are most of the journal.
#[test]
fn a_sample_is_a_short_line() {
    let lines = night(false).lines;
    let longest = lines.iter().filter(|line| line.contains("\"sample\"")).map(String::len).max();
    assert!(longest.is_some_and(|longest| longest < 250), "{longest:?}");
}
