//! The program itself replays a journal: status 0 and the state that was reached, or 1 and the first difference.

use kage_coordinator_core::{
    Coordinator, Event, SessionId,
    config::Cluster,
    journal::{FORMAT, Head, add_actions, event_line, start_line},
};
use kage_types::Time;
use std::{
    path::Path,
    process::{Command, Output},
};

const CONFIG: &str = include_str!("../../deploy/cluster.toml");

/// A process that asks SIF for a term in vain.
fn journal() -> Vec<String> {
    let cluster = Cluster::parse(CONFIG).expect("deploy/cluster.toml");
    let start = Time::from_millis(1_000);
    let head = Head { version: env!("CARGO_PKG_VERSION").into(), format: FORMAT, pid: 7, unix_ms: 1_795_386_900_000 };
    let text = |line: Vec<u8>| String::from_utf8(line).expect("text");
    let mut lines = vec![text(start_line::<Coordinator>(0, start, &head, &cluster).expect("start"))];
    let agent = cluster.agents.keys().next().expect("an agent").clone();
    let mut core = Coordinator::new(start, cluster);
    for seq in 1..=10 {
        let now = Time::from_millis(1_000 + 500 * seq);
        let event = if seq == 3 {
            Event::AgentUp { agent: agent.clone(), session: SessionId(1), incarnation: 1 }
        } else {
            Event::TermFailed { reason: format!("no answer, {seq}") }
        };
        let mut line = event_line(seq, now, &event).expect("event");
        let mut actions = Vec::new();
        core.step(now, event, &mut actions);
        add_actions::<Coordinator>(&mut line, &actions).expect("actions");
        line.push(b'}');
        lines.push(text(line));
    }
    lines
}

fn replay(dir: &Path, lines: &[String], options: &[&str]) -> Output {
    std::fs::write(dir.join("journal.jsonl"), lines.join("\n") + "\n").expect("written");
    Command::new(env!("CARGO_BIN_EXE_kage-coordinator"))
        .current_dir(dir)
        .args(["replay", "journal.jsonl"])
        .args(options)
        .env("TZ", "UTC")
        .output()
        .expect("run")
}

#[test]
fn a_journal_is_replayed_by_the_program() {
    let dir = tempfile::tempdir().expect("directory");
    let lines = journal();
    let output = replay(dir.path(), &lines, &[]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(said.contains("10 events of 1 process(es) replayed; 10 with recorded actions"), "{said}");
    assert!(said.contains("State after event 10 (2026-11-22 22:35:05.000, clock 6.000):"), "{said}");
    assert!(said.contains("SIF: no answer, 10"), "{said}");
    for until in ["4", "3.1", "2026-11-22T22:35:02.100Z"] {
        let output = replay(dir.path(), &lines, &["--until", until]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.contains("State after event 4 "), "{until}: {said}");
    }
}

#[test]
fn the_first_difference_ends_it_with_status_1() {
    let dir = tempfile::tempdir().expect("directory");
    let mut lines = journal();
    let index = lines.iter().position(|line| line.contains("\"kind\":\"agent-up\"")).expect("a note");
    lines[index] = lines[index].replace("\"kind\":\"agent-up\"", "\"kind\":\"agent-lost\"");
    let output = replay(dir.path(), &lines, &[]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    for part in
        [&format!("journal.jsonl:{}: event {index} at ", index + 1), "expected: ", "agent-lost", "got: ", "agent-up"]
    {
        assert!(said.contains(part), "{part}: {said}");
    }
    let output = replay(dir.path(), &lines[1..], &[]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(said.contains("journal.jsonl:1: the journal begins in the middle"), "{said}");
}
