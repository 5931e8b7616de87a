use super::*;
use crate::driver;
use kage_sif_core::{Cause, Electorate, Ended, Recovery, Refusal, Reply, Request, Stage};
use kage_types::{
    AgentId, Claim, Condition, DomainName, GroupName, MigrationRow, OperationRow, OrderScope, RealServerRow, StateRow,
    Step, StepState, TargetName, TransitionRow, Vip,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

fn vip(n: u64) -> Vip {
    format!("10.0.0.{n}").parse().unwrap()
}

fn row(epoch: u64) -> VipRow {
    VipRow {
        epoch: Epoch(epoch),
        after: Epoch(epoch - 1),
        owner: AgentId::new("rs1").unwrap(),
        domain: None,
        target: TargetName::new("mail1").unwrap(),
        cause: Cause::Takeover,
        long_lease: epoch.is_multiple_of(2),
    }
}

fn order(scope: OrderScope, n: u64) -> Order {
    let reason = "disk".to_owned();
    Order {
        scope,
        reason,
        who: "operator a".to_owned(),
        since_unix_ms: n,
        until_unix_ms: n.is_multiple_of(2).then_some(n),
    }
}

/// Every kind of edit; rows come and go.
fn edits(n: u64) -> Vec<Edit> {
    let (place, host) = (DomainName::new(format!("vm{}", n % 3)).unwrap(), AgentId::new("rs1").unwrap());
    let group = GroupName::new("mail").unwrap();
    let there = !n.is_multiple_of(3);
    let row = OperationRow {
        group: Some(group.clone()),
        vm: place.clone(),
        host: host.clone(),
        home: host.clone(),
        home_vips: BTreeSet::from([vip(n % 5 + 1)]),
    };
    let step = Step::SuspendHost { host: host.clone() };
    let transition = TransitionRow {
        id: n,
        by: "c1".to_owned(),
        plan: "x".repeat(usize::try_from(n).unwrap()),
        steps: vec![(step.clone(), StepState::Planned), (step.inverse(), StepState::Planned)],
        groups: BTreeMap::from([(group.clone(), (Condition::Moderate, Condition::Light))]),
    };
    let state = StateRow { condition: Condition::Light, base: Some(host.clone()) };
    let claims = BTreeSet::from([Claim::Vm(place.clone()), Claim::Host(host.clone())]);
    let ended = Ended { id: n, by: "c1".to_owned(), committed: there, state: [(group.clone(), state.clone())].into() };
    let mut edits = vec![
        Edit::Operation(place.clone(), there.then(|| row.clone())),
        Edit::Suspend(place.clone(), (!there).then_some(row)),
        Edit::Displaced(place.clone(), there.then(|| host.clone())),
        Edit::MayBeOn(place.clone(), there.then(|| [host.clone()].into())),
        Edit::LiveMigration(
            place.clone(),
            there.then(|| MigrationRow { vm: place.clone(), original_host: host.clone() }),
        ),
        Edit::RealServer(host, Some(RealServerRow { asleep_since_unix_ms: Some(n), wake_took_ms: None })),
        Edit::State(group, Some(state)),
        Edit::Placement(vip(n % 5 + 1), there.then(|| place.clone())),
        Edit::Paused(place, !there),
        Edit::Recovery(format!("a/ä {}", n % 3), there.then(|| Recovery { why: "down".to_owned(), claims })),
        Edit::Ended(Some(ended)),
    ];
    match n % 8 {
        0 => edits.push(Edit::Transition(None)),
        2 => edits.push(Edit::Transition(Some(transition))),
        4 => edits.push(Edit::TransitionBy(format!("c{n}"))),
        _ => edits.extend([Edit::TransitionStep(0, StepState::Done), Edit::TransitionStep(1, StepState::Begun)]),
    }
    edits
}

/// Every kind of change, several times, in an order that the rules could give.
pub(crate) fn changes(count: u64) -> Vec<Stamped> {
    let target = |n: u64| TargetName::new(format!("t{n}")).unwrap();
    let report = |n: u64| Report { highest_term: Term(n), epochs: BTreeMap::from([(vip(1), Epoch(n))]) };
    let change = |n: u64| match n % 11 {
        0 => Change::Reported { reporter: AgentId::new(format!("a{}", n % 3)).unwrap(), report: report(n) },
        1 => Change::Established { term: Term(n), floors: BTreeMap::from([(vip(1), Epoch(n)), (vip(9), Epoch(n))]) },
        2 => Change::Term { term: Term(n), coordinator: "c".to_owned() },
        6 | 7 => Change::Trouble {
            target: target(n % 2),
            row: TroubleRow { stage: Stage::Backup, detail: "x".to_owned(), since_unix_ms: n },
        },
        8 => Change::TroubleCleared { target: target(n % 2) },
        3 | 9 if n.is_multiple_of(2) => Change::Tables { revision: Revision(n), edits: edits(n) },
        5 if n.is_multiple_of(4) => Change::OrderCleared { scope: OrderScope::Target(target(n % 3)) },
        5 => Change::Order { order: order(OrderScope::Target(target(n % 3)), n) },
        10 if n.is_multiple_of(4) => Change::Restored {
            term: Term(n),
            floors: BTreeMap::from([(vip(2), Epoch(n))]),
            reporter: AgentId::new("a1").unwrap(),
            report: report(n),
        },
        _ => Change::Vip { vip: vip(n % 3 + 1), row: row(n) },
    };
    (1..=count).map(|n| Stamped { revision: Revision(n), change: change(n) }).collect()
}

#[test]
fn what_is_read_is_what_the_core_has() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, contents) = Store::open(directory.path()).unwrap();
    assert_eq!(contents.ledger, Ledger::default());
    let mut ledger = Ledger::default();
    for batch in changes(130).chunks(3) {
        store.commit(batch).unwrap();
        batch.iter().for_each(|change| ledger.apply(change));
        assert_eq!(store.reopen().unwrap().ledger, ledger);
    }
    assert_eq!(store.reopen().unwrap().changes, changes(130));
}

#[test]
fn the_log_of_changes_is_bounded() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(directory.path()).unwrap();
    let all = changes(CHANGES_KEPT as u64 + 50);
    all.chunks(1000).for_each(|batch| store.commit(batch).unwrap());
    assert_eq!(store.reopen().unwrap().changes, all[50..]);
}

fn fault(directory: &Path) -> StoreError {
    match Store::open(directory) {
        Ok(_) => panic!("opened"),
        Err(error) => error,
    }
}

#[test]
fn damage_is_named_and_never_a_new_ledger() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join(FILE_NAME);
    drop(Store::open(directory.path()).unwrap());
    let good = fs::read(&file).unwrap();
    let mut middle = good.clone();
    middle.iter_mut().skip(4096).for_each(|byte| *byte ^= 0x5a);
    for bad in [Vec::new(), b"not a ledger".to_vec(), vec![0; good.len()], good[..good.len() / 2].to_vec(), middle] {
        fs::write(&file, &bad).unwrap();
        let error = fault(directory.path());
        assert!(matches!(error, StoreError::Damaged { .. }), "{} bytes: {error:?}", bad.len());
        assert!(error.to_string().contains("restore it from a backup"), "{error}");
        assert_eq!(fs::read(&file).unwrap().len(), bad.len(), "left as it is");
    }
}

#[test]
fn a_ledger_from_before_orders_is_read_and_raised_by_its_next_change() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(directory.path()).unwrap();
    store.commit(&changes(4)).unwrap();
    let transaction = store.database.as_ref().unwrap().begin_write().unwrap();
    transaction.delete_table(ORDERS).unwrap();
    let old = br#"{"format":1,"revision":4,"term":2,"coordinator":"c","established":true}"#;
    transaction.open_table(META).unwrap().insert(HEAD, old.as_slice()).unwrap();
    transaction.commit().unwrap();
    let mut ledger = store.reopen().unwrap().ledger;
    assert_eq!(ledger.revision, Revision(4));
    let change = Change::Order { order: order(OrderScope::All, 5) };
    let change = Stamped { revision: Revision(5), change };
    store.commit(std::slice::from_ref(&change)).unwrap();
    ledger.apply(&change);
    assert_eq!(store.reopen().unwrap().ledger, ledger);
}

#[test]
fn a_ledger_from_before_the_shared_tables_is_read_and_raised_by_its_next_change() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(directory.path()).unwrap();
    store.commit(&changes(2)).unwrap();
    let transaction = store.database.as_ref().unwrap().begin_write().unwrap();
    transaction.delete_table(SHARED).unwrap();
    let old = br#"{"format":2,"revision":2,"term":2,"coordinator":"c","established":true}"#;
    transaction.open_table(META).unwrap().insert(HEAD, old.as_slice()).unwrap();
    transaction.commit().unwrap();
    let mut ledger = store.reopen().unwrap().ledger;
    assert_eq!((ledger.revision, &ledger.shared), (Revision(2), &Shared::default()));
    let change = Stamped { revision: Revision(3), change: Change::Tables { revision: Revision(1), edits: edits(2) } };
    store.commit(std::slice::from_ref(&change)).unwrap();
    ledger.apply(&change);
    assert!(ledger.shared.tables.transition.is_some());
    assert_eq!(store.reopen().unwrap().ledger, ledger);
}

#[test]
fn a_ledger_from_before_doubts_keeps_from_now_on_where_a_migrated_virtual_server_may_be() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(directory.path()).unwrap();
    let host = |name: &str| AgentId::new(name).unwrap();
    let vm = DomainName::new("mail1").unwrap();
    let row =
        OperationRow { group: None, vm: vm.clone(), host: host("rs1"), home: host("rs1"), home_vips: BTreeSet::new() };
    let migrate = Step::Migrate { vm: vm.clone(), from: host("rs1"), to: host("rs2") };
    let transition = TransitionRow {
        id: 1,
        by: "c1".to_owned(),
        plan: String::new(),
        steps: vec![(migrate, StepState::Begun)],
        groups: BTreeMap::new(),
    };
    let edits = vec![Edit::Operation(vm.clone(), Some(row)), Edit::Transition(Some(transition))];
    let change = Change::Tables { revision: Revision(1), edits };
    store.commit(&[Stamped { revision: Revision(1), change }]).unwrap();
    let transaction = store.database.as_ref().unwrap().begin_write().unwrap();
    let old = br#"{"format":3,"revision":1,"term":2,"coordinator":"c","established":true,"tables":1}"#;
    transaction.open_table(META).unwrap().insert(HEAD, old.as_slice()).unwrap();
    transaction.commit().unwrap();
    drop(store);
    let (mut store, contents) = Store::open(directory.path()).unwrap();
    assert_eq!(contents.ledger.shared.tables.may_be_on[&vm], [host("rs2")].into());
    assert_eq!((contents.ledger.shared.tables.revision, contents.changes.len()), (Revision(2), 2));
    // It ends unseen.
    let change = Change::Tables { revision: Revision(3), edits: vec![Edit::Transition(None)] };
    store.commit(&[Stamped { revision: Revision(3), change }]).unwrap();
    drop(store);
    let (_, contents) = Store::open(directory.path()).unwrap();
    assert_eq!(contents.ledger.shared.tables.may_be_on[&vm], [host("rs2")].into());
}

#[test]
fn a_row_of_the_shared_tables_under_anothers_key_is_damage() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(directory.path()).unwrap();
    let change = Change::Tables { revision: Revision(1), edits: edits(2) };
    store.commit(&[Stamped { revision: Revision(1), change }]).unwrap();
    let transaction = store.database.as_ref().unwrap().begin_write().unwrap();
    {
        let mut shared = transaction.open_table(SHARED).unwrap();
        let row = shared.get("operation/vm2").unwrap().unwrap().value().to_vec();
        shared.insert("operation/vm1", row.as_slice()).unwrap();
    }
    transaction.commit().unwrap();
    let error = store.reopen().unwrap_err();
    assert!(error.to_string().contains("operation/vm1: holds a row of another key"), "{error}");
}

#[test]
fn a_restored_ledger_is_begun_with_its_tables() {
    let directory = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::default();
    let (rs1, group) = (AgentId::new("rs1").unwrap(), GroupName::new("mail").unwrap());
    let edits = vec![
        Edit::RealServer(rs1, Some(RealServerRow { asleep_since_unix_ms: Some(5), wake_took_ms: Some(7) })),
        Edit::State(group, Some(StateRow { condition: Condition::Light, base: None })),
    ];
    ledger.apply(&Stamped { revision: Revision(9), change: Change::Tables { revision: Revision(3), edits } });
    let restored = ledger.clone().restored();
    assert_eq!(restored.shared.tables.real_servers, ledger.shared.tables.real_servers);
    Store::begin_with(directory.path(), &restored).unwrap();
    assert_eq!(Store::open(directory.path()).unwrap().1.ledger, restored);
}

#[test]
fn a_newer_format_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(directory.path()).unwrap();
    let transaction = store.database.as_ref().unwrap().begin_write().unwrap();
    transaction.open_table(META).unwrap().insert(HEAD, br#"{"format":5,"other":[]}"#.as_slice()).unwrap();
    transaction.commit().unwrap();
    drop(store);
    assert!(matches!(fault(directory.path()), StoreError::Newer { found: 5, .. }));
}

#[test]
fn a_ledger_has_one_owner() {
    let directory = tempfile::tempdir().unwrap();
    let _first = Store::open(directory.path()).unwrap();
    assert!(matches!(fault(directory.path()), StoreError::InUse { .. }));
}

/// A disk that is full when told so.
#[derive(Debug)]
struct Disk {
    file: redb::backends::FileBackend,
    full: Arc<AtomicBool>,
}

impl Disk {
    fn check(&self) -> io::Result<()> {
        if self.full.load(Ordering::SeqCst) { Err(io::Error::from(io::ErrorKind::StorageFull)) } else { Ok(()) }
    }
}

impl redb::StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check()?;
        self.file.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.check()?;
        self.file.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check()?;
        self.file.write(offset, data)
    }
}

#[tokio::test]
async fn a_full_disk_refuses_writes_serves_reads_and_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    drop(Store::open(directory.path()).unwrap());
    let file = directory.path().join(FILE_NAME);
    let full = Arc::new(AtomicBool::new(false));
    let open = {
        let (file, full) = (file.clone(), Arc::clone(&full));
        move || {
            let file = fs::OpenOptions::new().read(true).write(true).open(&file)?;
            builder()
                .create_with_backend(Disk { file: redb::backends::FileBackend::new(file)?, full: Arc::clone(&full) })
        }
    };
    let (store, contents) = Store::open_with(file, Box::new(open)).unwrap();
    let agent = AgentId::new("a").unwrap();
    let (handle, task) = driver::start(store, contents, Electorate::new([(agent.clone(), true)])).unwrap();
    let ask = |request: Request| async { handle.ask(request).await.unwrap().map(|(reply, _)| reply) };
    let advance = |expected| Request::AdvanceEpoch {
        term: Term(1),
        vip: vip(1),
        expected: Epoch(expected),
        owner: agent.clone(),
        domain: None,
        target: TargetName::new("mail1").unwrap(),
        cause: Cause::First,
    };
    ask(Request::ReportVoter { reporter: agent.clone(), report: Report::default() }).await.unwrap();
    ask(Request::AcquireTerm { coordinator: "c".to_owned() }).await.unwrap();
    ask(advance(0)).await.unwrap();
    for round in 1..4 {
        full.store(true, Ordering::SeqCst);
        let refused = ask(advance(round)).await.unwrap_err();
        assert!(matches!(&refused, Refusal::Unavailable { reason } if reason.contains("has room")), "{refused}");
        assert_eq!(ask(Request::RenewTerm { term: Term(1) }).await, Ok(Reply::Renewed));
        assert_eq!(handle.read().await.unwrap().vips[&vip(1)].epoch, Epoch(round));
        full.store(false, Ordering::SeqCst);
        let epoch = tokio::time::timeout(Duration::from_secs(20), async {
            loop {
                if let Ok(Reply::Epoch { epoch, .. }) = ask(advance(round)).await {
                    return epoch;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        assert_eq!(epoch.await.unwrap(), Epoch(round + 1));
    }
    let before = handle.read().await.unwrap();
    drop(handle);
    task.await.unwrap().unwrap();
    assert_eq!(Store::open(directory.path()).unwrap().1.ledger, before);
}
