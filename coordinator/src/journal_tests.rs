use super::*;
use kage_coordinator_core::{
    Event,
    config::Cluster,
    replay::{Replayer, inputs, replay},
};
use std::io::BufReader;

const CONFIG: &str = include_str!("../../deploy/cluster.toml");

fn cluster() -> Cluster {
    Cluster::parse(CONFIG).expect("deploy/cluster.toml")
}

/// A process of a hundred ticks; the state it reached.
fn process(dir: &Path, from: u64) -> Coordinator {
    let mut journal = Journal::open(dir, SUPERVISION).expect("opened");
    let start = Time::from_millis(from);
    journal.start(start, &cluster());
    let mut core = Coordinator::new(start, cluster());
    for tick in 0..100 {
        step(&mut journal, &mut core, from + 100 * tick);
    }
    core
}

fn step(journal: &mut Journal, core: &mut Coordinator, at: u64) {
    let now = Time::from_millis(at);
    let event = Event::TermFailed { reason: format!("no answer at {at}") };
    let pending = journal.begin(now, core, &event);
    let mut actions = Vec::new();
    core.step(now, event, &mut actions);
    pending.end(&actions);
}

fn replayed(files: &[PathBuf]) -> Replayer {
    let mut replayer = Replayer::new(env!("CARGO_PKG_VERSION"));
    for file in files {
        let reader = BufReader::new(File::open(file).expect("journal"));
        replay(inputs(&file.display().to_string(), reader), &mut replayer).expect("replayed");
    }
    replayer
}

#[test]
fn what_two_processes_wrote_is_replayed_and_numbers_go_on() {
    let dir = tempfile::tempdir().expect("directory");
    let file = dir.path().join("journal.jsonl");
    process(dir.path(), 1_000);
    // Killed in the middle of a line.
    let mut torn = OpenOptions::new().append(true).open(&file).expect("journal");
    torn.write_all(b"{\"seq\":101,\"now\":5,\"ev").expect("torn");
    let core = process(dir.path(), 50_000);
    let replayer = replayed(std::slice::from_ref(&file));
    assert_eq!(replayer.core().expect("state").0, &core);
    let counts = replayer.counts();
    assert_eq!((counts.events, counts.compared, counts.processes), (200, 200, 2));
    assert!(replayer.remarks().iter().any(|remark| remark.contains(":102: cut short")), "{:?}", replayer.remarks());
    assert_eq!(last_number(&file, SUPERVISION.bytes), Some(200));
}

#[test]
fn a_new_file_begins_with_a_snapshot_and_so_does_what_follows_a_gap() {
    let dir = tempfile::tempdir().expect("directory");
    let file = dir.path().join("journal.jsonl");
    let mut journal = Journal::open(dir.path(), SUPERVISION).expect("opened");
    journal.start(Time::ZERO, &cluster());
    let mut core = Coordinator::new(Time::ZERO, cluster());
    (0..50).for_each(|tick| step(&mut journal, &mut core, 100 * tick));
    journal.wanted.store(ROTATION, Ordering::Relaxed);
    (50..60).for_each(|tick| step(&mut journal, &mut core, 100 * tick));
    // Lost on the way to the disk.
    journal.seq += 3;
    journal.wanted.store(GAP, Ordering::Relaxed);
    (60..70).for_each(|tick| step(&mut journal, &mut core, 100 * tick));
    drop(journal);
    let whole = replayed(&[dir.path().join("journal.1.jsonl"), file.clone()]);
    assert_eq!(whole.core().expect("state").0, &core);
    assert_eq!((whole.counts().snapshots, whole.counts().events), (1, 70));
    let newer = replayed(&[file]);
    assert_eq!(newer.core().expect("state").0, &core);
    assert!(newer.remarks().iter().any(|remark| remark.contains("goes on from the snapshot")), "{:?}", newer.remarks());
}

#[test]
fn a_full_disk_loses_whole_lines_and_then_a_snapshot_is_wanted() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("journal.jsonl");
    let full = OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
    let wanted = Arc::new(AtomicU8::new(0));
    let mut writer = Writer::new(path.clone(), full, wanted.clone(), SUPERVISION);
    let line = format!("{{\"seq\":1,\"now\":1,\"event\":\"tick\",\"actions\":[{}]}}", " ".repeat(1000));
    (0..1000).for_each(|_| writer.line(line.as_bytes()));
    assert!(writer.broken && writer.gap && writer.buffer.len() <= KEPT + line.len());
    assert_eq!(wanted.load(Ordering::Relaxed), 0);
    // There is room again.
    writer.file = open(&path).expect("opened");
    writer.flush();
    writer.line(line.as_bytes());
    writer.flush();
    assert_eq!(wanted.load(Ordering::Relaxed), GAP);
    let text = std::fs::read_to_string(&path).expect("journal");
    assert!(text.lines().count() > 200 && text.lines().all(|whole| whole == line), "{}", text.lines().count());
}

#[test]
fn an_event_that_the_core_does_not_survive_is_journalled() {
    let dir = tempfile::tempdir().expect("directory");
    let mut journal = Journal::open(dir.path(), SUPERVISION).expect("opened");
    journal.start(Time::ZERO, &cluster());
    let core = Coordinator::new(Time::ZERO, cluster());
    drop(journal.begin(Time::from_millis(1), &core, &Event::Tick));
    drop(journal);
    let text = std::fs::read_to_string(dir.path().join("journal.jsonl")).expect("journal");
    assert!(text.ends_with("{\"seq\":1,\"now\":1000000,\"event\":\"tick\"}\n"), "{text}");
}
