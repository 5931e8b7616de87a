use super::*;

fn at(millis: u64) -> Time {
    Time::from_millis(millis)
}

fn vip() -> Vip {
    "10.0.0.100".parse().expect("vip")
}

fn mail() -> ServiceName {
    ServiceName::new("mail").expect("name")
}

fn writers(memory: WriterMemory) -> Writers {
    let config = WriterConfig { vips: BTreeSet::new(), halt: Halt::Stop };
    Writers::new(at(0), [(mail(), config)].into(), memory)
}

fn step(writers: &mut Writers, millis: u64, event: WriterEvent) -> Vec<WriterAction> {
    let mut actions = Vec::new();
    writers.step(at(millis), event, &mut actions);
    actions.retain(|action| !matches!(action, WriterAction::Store(_) | WriterAction::Tell { .. }));
    actions
}

fn ended(outcome: HaltOutcome) -> WriterEvent {
    WriterEvent::Ended { service: mail(), outcome }
}

fn bound() -> WriterMemory {
    WriterMemory { bound: [mail()].into(), held: BTreeMap::new() }
}

#[test]
fn it_stops_when_the_lease_has_run_out_and_starts_when_the_vip_is_open_again() {
    let mut writers = writers(WriterMemory::default());
    assert_eq!(step(&mut writers, 60_000, WriterEvent::Tick), [], "before its first lease it is left alone");
    step(&mut writers, 60_000, WriterEvent::Opened(vip()));
    assert_eq!(step(&mut writers, 61_000, WriterEvent::Lost { vip: vip(), until: at(62_000) }), []);
    assert_eq!(writers.deadline(), Some(at(62_000)));
    assert_eq!(step(&mut writers, 62_000, WriterEvent::Tick), [WriterAction::Halt(mail(), Halt::Stop)]);
    assert!(writers.holds(&mail()));
    assert_eq!(step(&mut writers, 62_500, ended(HaltOutcome::Done)), []);
    assert_eq!(step(&mut writers, 70_000, WriterEvent::Opened(vip())), [WriterAction::Resume(mail(), Halt::Stop)]);
    step(&mut writers, 70_100, ended(HaltOutcome::Done));
    assert!(!writers.holds(&mail()) && writers.memory.held.is_empty());
}

#[test]
fn a_lapse_shorter_than_the_lease_costs_nothing() {
    let mut writers = writers(bound());
    step(&mut writers, 10, WriterEvent::Opened(vip()));
    assert_eq!(step(&mut writers, 1_000, WriterEvent::Lost { vip: vip(), until: at(2_000) }), []);
    assert_eq!(step(&mut writers, 1_050, WriterEvent::Opened(vip())), []);
    assert_eq!(step(&mut writers, 5_000, WriterEvent::Tick), []);
}

#[test]
fn a_lease_given_up_while_it_was_waited_for_stops_at_once() {
    let mut writers = writers(bound());
    step(&mut writers, 10, WriterEvent::Opened(vip()));
    step(&mut writers, 1_000, WriterEvent::Lost { vip: vip(), until: at(30_000) });
    assert_eq!(writers.doubtful().collect::<Vec<_>>(), [(vip(), at(30_000))]);
    let actions = step(&mut writers, 1_100, WriterEvent::Lost { vip: vip(), until: at(1_100) });
    assert_eq!(actions, [WriterAction::Halt(mail(), Halt::Stop)]);
}

#[test]
fn what_the_administrator_stopped_stays_stopped() {
    let mut writers = writers(bound());
    step(&mut writers, 10, WriterEvent::Opened(vip()));
    step(&mut writers, 1_000, WriterEvent::Lost { vip: vip(), until: at(1_000) });
    step(&mut writers, 1_010, ended(HaltOutcome::NotRunning));
    assert_eq!(step(&mut writers, 9_000, WriterEvent::Opened(vip())), []);
}

#[test]
fn after_a_boot_it_is_stopped_even_if_it_comes_up_later_and_started_with_the_lease() {
    let mut writers = writers(bound());
    assert_eq!(step(&mut writers, 500, WriterEvent::Tick), [WriterAction::Halt(mail(), Halt::Stop)]);
    step(&mut writers, 510, ended(HaltOutcome::NotRunning));
    assert_eq!(step(&mut writers, 3_000, WriterEvent::CameUp(mail())), [WriterAction::Halt(mail(), Halt::Stop)]);
    step(&mut writers, 3_100, ended(HaltOutcome::Done));
    // The agent alone is restarted: it knows whose doing it was.
    let mut writers =
        Writers::new(at(4_000), [(mail(), writers.writers[&mail()].config.clone())].into(), writers.memory);
    assert_eq!(step(&mut writers, 4_500, WriterEvent::Tick), [WriterAction::Halt(mail(), Halt::Stop)]);
    step(&mut writers, 4_510, ended(HaltOutcome::NotRunning));
    assert_eq!(step(&mut writers, 6_000, WriterEvent::Opened(vip())), [WriterAction::Resume(mail(), Halt::Stop)]);
}

#[test]
fn a_failed_stop_is_tried_again_and_a_lease_ends_the_trying() {
    let mut writers = writers(bound());
    step(&mut writers, 500, WriterEvent::Tick);
    step(&mut writers, 600, ended(HaltOutcome::Failed("no".into())));
    assert!(writers.holds(&mail()));
    assert_eq!(step(&mut writers, 1_600, WriterEvent::Tick), [WriterAction::Halt(mail(), Halt::Stop)]);
    step(&mut writers, 1_700, ended(HaltOutcome::Failed("no".into())));
    assert_eq!(step(&mut writers, 1_800, WriterEvent::Opened(vip())), [WriterAction::Resume(mail(), Halt::Stop)]);
    assert_eq!(writers.deadline(), None);
}

#[test]
fn a_release_is_complete_when_nothing_behind_the_vip_runs_any_more() {
    let other: Vip = "10.0.0.101".parse().expect("vip");
    let mut writers = writers(WriterMemory::default());
    assert!(writers.quiet(Some(vip())), "left alone before its first lease");
    step(&mut writers, 10, WriterEvent::Opened(vip()));
    step(&mut writers, 10, WriterEvent::Opened(other));
    assert!(!writers.quiet(Some(vip())));
    step(&mut writers, 1_000, WriterEvent::Lost { vip: vip(), until: at(1_000) });
    assert!(!writers.quiet(Some(vip())), "it runs for the other VIP");
    let actions = step(&mut writers, 1_001, WriterEvent::Lost { vip: other, until: at(1_001) });
    assert_eq!(actions, [WriterAction::Halt(mail(), Halt::Stop)]);
    assert!(!writers.quiet(Some(vip())) && !writers.quiet(Some(other)), "it is being stopped");
    step(&mut writers, 1_500, ended(HaltOutcome::Failed("busy".into())));
    assert!(!writers.quiet(Some(vip())));
    assert_eq!(step(&mut writers, 2_500, WriterEvent::Tick), [WriterAction::Halt(mail(), Halt::Stop)]);
    step(&mut writers, 2_600, ended(HaltOutcome::Done));
    assert!(writers.quiet(Some(vip())) && writers.quiet(Some(other)) && writers.quiet(None));
}
