//! The shared tables in the real program: killed under signals, pushed to readers, refused with reasons.

#![allow(clippy::unwrap_used, reason = "tests")]

mod cluster;

use cluster::{Client, Cluster, acquire};
use kage_proto::{
    roles::Role,
    sif::v1::{
        AdvanceEpochRequest, AskTargetRequest, BeginTransitionRequest, Claim, EndTransitionRequest,
        FunctionRestoredRequest, GetTablesRequest, GroupChange, MovedToRequest, OperationRow, PutArrangementRequest,
        PutClaimsRequest, PutStepRequest, StateRow, Step, WatchTablesRequest, claim::What,
    },
};
use kage_sif::REASON_KEY;
use kage_types::{Condition, StepState, Tables};
use std::{
    fs,
    time::{Duration, Instant},
};
use tonic::{Code, Status};

const VIP: &str = "10.0.0.4";

/// mail1 on rs1 and mail2 on rs2; web0 to web2 on rs1.
fn arrangement(term: u64) -> PutArrangementRequest {
    let row = |place: &str, host: &str, vip: &str| OperationRow {
        place: place.to_owned(),
        group: place.trim_end_matches(char::is_numeric).to_owned(),
        vm: place.to_owned(),
        host: host.to_owned(),
        home: host.to_owned(),
        home_vips: vec![vip.to_owned()],
    };
    let mut operation = vec![row("mail1", "rs1", "10.0.0.1"), row("mail2", "rs2", VIP)];
    operation.extend((0..3).map(|n| row(&format!("web{n}"), "rs1", &format!("10.0.1.{}", n + 1))));
    PutArrangementRequest {
        term,
        operation,
        real_servers: ["rs1", "rs2", "rs3"].map(str::to_owned).to_vec(),
        groups: ["mail", "web"].map(str::to_owned).to_vec(),
    }
}

async fn tables(client: &mut Client) -> Result<Tables, Status> {
    Ok(Tables::try_from(&client.get_tables(GetTablesRequest {}).await?.into_inner())?)
}

fn steps() -> [kage_types::Step; 2] {
    let vm = |name: &str| name.parse().unwrap();
    [
        kage_types::Step::MoveVip { vip: VIP.parse().unwrap(), from: vm("mail2"), to: vm("mail1") },
        kage_types::Step::SuspendHost { host: "rs2".parse().unwrap() },
    ]
}

fn begin(generation: u64) -> BeginTransitionRequest {
    BeginTransitionRequest {
        by: "pss".to_owned(),
        generation,
        plan: "{}".to_owned(),
        steps: steps().iter().map(Step::from).collect(),
        groups: vec![GroupChange { group: "mail".to_owned(), before: 2, after: 1 }],
    }
}

fn put(id: u64, (index, state): (u32, StepState)) -> PutStepRequest {
    let state = kage_proto::sif::v1::StepState::from(state).into();
    PutStepRequest { id, by: "pss".to_owned(), index, state, took_ms: None }
}

fn end(id: u64) -> EndTransitionRequest {
    let state = vec![StateRow { group: "mail".to_owned(), condition: 2, base: String::new() }];
    EndTransitionRequest { id, by: "pss".to_owned(), committed: false, state, why: String::new() }
}

/// A transition's way forth and back: 0 is none, 1 begun, then these one after the other, then its end.
const WAY: [(u32, StepState); 8] = [
    (0, StepState::Begun),
    (0, StepState::Done),
    (1, StepState::Begun),
    (1, StepState::Done),
    (1, StepState::UndoBegun),
    (1, StepState::Undone),
    (0, StepState::UndoBegun),
    (0, StepState::Undone),
];

fn position(tables: &Tables) -> usize {
    let Some(row) = &tables.transition else { return 0 };
    let states = [row.steps[0].1, row.steps[1].1];
    let mut at = [StepState::Planned; 2];
    let later = WAY.iter().position(|(index, state)| {
        let here = at == states;
        at[usize::try_from(*index).unwrap()] = *state;
        here
    });
    later.unwrap_or(WAY.len()) + 1
}

/// The next signal of power saving; where it is then.
async fn next(client: &mut Client, at: usize) -> Result<usize, Status> {
    let tables = tables(client).await?;
    let id = tables.transition.as_ref().map_or(0, |row| row.id);
    match at {
        0 => drop(client.begin_transition(begin(tables.revision.0)).await?),
        at if at <= WAY.len() => drop(client.put_step(put(id, WAY[at - 1])).await?),
        _ => {
            client.end_transition(end(id)).await?;
            return Ok(0);
        }
    }
    Ok(at + 1)
}

/// Every edit of a signal or none.
fn whole(tables: &Tables) {
    let at = position(tables);
    let vip = VIP.parse().unwrap();
    assert_eq!(tables.placement.contains_key(&vip), (2..=7).contains(&at), "at {at}: {tables:?}");
    let rs2 = &tables.real_servers[&"rs2".parse().unwrap()];
    assert_eq!(rs2.asleep_since_unix_ms.is_some(), (4..=6).contains(&at), "at {at}: {tables:?}");
    assert_eq!(tables.suspend.contains_key(&"mail2".parse().unwrap()), (4..=6).contains(&at), "at {at}: {tables:?}");
    for (place, row) in tables.operation.iter().filter(|(place, _)| place.as_str().starts_with("web")) {
        assert_eq!(tables.live_migration.contains_key(place), row.host != row.home, "{tables:?}");
    }
    // Both claims of a round.
    let of = |kind: &str| {
        let mut all = tables.claims.keys().map(ToString::to_string).filter(|claim| claim.starts_with(kind));
        all.next().map(|claim| claim.rsplit(['.', 'x']).next().unwrap().to_owned())
    };
    assert_eq!(of("virtual server"), of("virtual IP"), "{tables:?}");
}

async fn move_web(client: &mut Client, term: u64, place: usize, count: u64) -> Result<(), Status> {
    let (vm, host) = (format!("web{place}"), host(count));
    client.moved_to(MovedToRequest { term, vm, host, not_on: Vec::new() }).await.map(drop)
}

fn host(count: u64) -> String {
    if count.is_multiple_of(2) { "rs1".to_owned() } else { "rs3".to_owned() }
}

async fn claim(client: &mut Client, term: u64, count: u64) -> Result<(), Status> {
    let count = count % 200 + 1;
    let what = [What::Vm(format!("x{count}")), What::Vip(format!("10.9.9.{count}"))];
    let claims = what.map(|what| Claim { what: Some(what) }).to_vec();
    let (by, why) = ("web0".to_owned(), "down".to_owned());
    client.put_claims(PutClaimsRequest { term, by, why, claims }).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_under_signals_it_keeps_every_edit_and_none_by_half() {
    const ROUNDS: u64 = 100;
    let (mut cluster, mut client, mut term) = Cluster::ready().await;
    client.put_arrangement(arrangement(term)).await.unwrap();
    let mut counts = [0u64; 4];
    let mut at = 0;
    let mut signals = 0;
    let begun = Instant::now();
    let mut rounds = 0;
    while rounds < ROUNDS && begun.elapsed() < Duration::from_secs(20) {
        rounds += 1;
        let recoveries = counts.iter().enumerate().map(|(who, count)| {
            let (mut client, mut count) = (client.clone(), *count);
            tokio::spawn(async move {
                loop {
                    let told = match who {
                        3 => claim(&mut client, term, count + 1).await,
                        place => move_web(&mut client, term, place, count + 1).await,
                    };
                    match told {
                        Ok(()) => count += 1,
                        Err(_) => return count,
                    }
                }
            })
        });
        let recoveries: Vec<_> = recoveries.collect();
        let mut saving = client.clone();
        let saving = tokio::spawn(async move {
            let (mut at, mut told) = (at, 0);
            loop {
                match next(&mut saving, at).await {
                    Ok(next) => (at, told) = (next, told + 1),
                    // The recoveries changed the tables since they were read.
                    Err(status) if status.code() == Code::Aborted => {}
                    Err(_) => return (at, told),
                }
            }
        });
        // At no particular point of a commit.
        let mut random = [0; 2];
        std::io::Read::read_exact(&mut fs::File::open("/dev/urandom").unwrap(), &mut random).unwrap();
        tokio::time::sleep(Duration::from_micros(20_000 + u64::from(u16::from_ne_bytes(random)))).await;
        cluster.kill();
        let (acknowledged, told) = saving.await.unwrap();
        signals += told;
        let before = counts;
        for (count, worker) in counts.iter_mut().zip(recoveries) {
            *count = worker.await.unwrap();
        }
        signals += counts.iter().sum::<u64>() - before.iter().sum::<u64>();
        cluster.start();
        assert!(cluster.ledger(&mut client).await.established);
        let found = tables(&mut client).await.unwrap();
        whole(&found);
        at = position(&found);
        let next = if acknowledged > WAY.len() { 0 } else { acknowledged + 1 };
        assert!(at == acknowledged || at == next, "round {rounds}: acknowledged {acknowledged}, found {at}");
        for (place, count) in counts.iter_mut().take(3).enumerate() {
            let row = &found.operation[&format!("web{place}").parse().unwrap()];
            // The one in doubt took effect: that is the one that comes next.
            *count += u64::from(row.host.as_str() != host(*count));
        }
        let claimed =
            |count: u64| found.claims.keys().any(|claim| claim.to_string().ends_with(&format!(".{}", count % 200 + 1)));
        assert!(counts[3] == 0 || claimed(counts[3]) || claimed(counts[3] + 1), "{:?}", found.claims);
        term = acquire(&mut client).await.unwrap().term;
    }
    println!("{signals} signals acknowledged, killed {rounds} times in {:?}", begun.elapsed());
    assert!(rounds >= 10 && signals > rounds);
}

#[tokio::test]
async fn readers_get_whole_tables_the_last_ones_and_never_an_old_one() {
    let (mut cluster, mut client, term) = Cluster::ready().await;
    let mut viewer = cluster.client(Role::Viewer);
    let mut watched = viewer.watch_tables(WatchTablesRequest {}).await.unwrap().into_inner();
    assert_eq!(watched.message().await.unwrap().unwrap().revision, 0);
    let revision = client.put_arrangement(arrangement(term)).await.unwrap().into_inner().revision;
    let first = watched.message().await.unwrap().unwrap();
    assert_eq!((first.revision, first.operation.len(), revision), (1, 5, 1));
    // Not read meanwhile: what is read after is never older than what was read before, and ends with the last.
    for count in 1..=300 {
        move_web(&mut client, term, 0, count).await.unwrap();
    }
    let last = tables(&mut client).await.unwrap();
    assert_eq!(last.revision.0, 301);
    let mut seen = first.revision;
    while seen < last.revision.0 {
        let now = watched.message().await.unwrap().unwrap();
        assert!(now.revision > seen, "{} after {seen}", now.revision);
        seen = now.revision;
        if seen == last.revision.0 {
            assert_eq!(Tables::try_from(&now).unwrap(), last);
        }
    }
    let refused = viewer.put_arrangement(arrangement(term)).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let mut process = cluster.process.take().unwrap();
    process.kill().unwrap();
    process.wait().unwrap();
    assert!(watched.message().await.is_err());
}

/// A live migration: who holds the address changes before its place does, and readers see both.
#[tokio::test]
async fn readers_see_a_virtual_ip_move_though_the_tables_stay() {
    let (cluster, mut client, term) = Cluster::ready().await;
    client.put_arrangement(arrangement(term)).await.unwrap();
    let mut viewer = cluster.client(Role::Viewer);
    let mut watched = viewer.watch_tables(WatchTablesRequest {}).await.unwrap().into_inner();
    assert_eq!(watched.message().await.unwrap().unwrap().vips, []);
    for (epoch, owner) in ["rs1", "rs2"].into_iter().enumerate() {
        let request = AdvanceEpochRequest {
            term,
            vip: VIP.to_owned(),
            expected_epoch: u64::try_from(epoch).unwrap(),
            owner: owner.to_owned(),
            domain: "mail2".to_owned(),
            target: "mail2".to_owned(),
            cause: "arranged".to_owned(),
        };
        client.advance_epoch(request).await.unwrap();
        let seen = watched.message().await.unwrap().unwrap();
        let holder = seen.vips.first().unwrap();
        assert_eq!((holder.owner.as_str(), holder.domain.as_str(), seen.revision), (owner, "mail2", 1));
    }
}

#[tokio::test]
async fn answers_and_refusals_are_those_of_the_contract() {
    let (cluster, mut client, term) = Cluster::ready().await;
    let reason = |status: &Status| status.metadata().get(REASON_KEY).unwrap().to_str().unwrap().to_owned();
    client.put_arrangement(arrangement(term)).await.unwrap();
    let id = client.begin_transition(begin(1)).await.unwrap().into_inner().id;
    let again = client.begin_transition(begin(2)).await.unwrap_err();
    assert_eq!((again.code(), reason(&again).as_str()), (Code::Aborted, "transition-under-way"));
    let early = client.put_step(put(id, (1, StepState::Begun))).await.unwrap_err();
    assert_eq!((early.code(), reason(&early).as_str()), (Code::Aborted, "not-as-planned"));
    let other = client.put_step(put(id + 1, WAY[0])).await.unwrap_err();
    assert_eq!((other.code(), reason(&other).as_str()), (Code::NotFound, "other-transition"));
    for word in &WAY[..3] {
        client.put_step(put(id, *word)).await.unwrap();
    }
    let ask = |target: &str| AskTargetRequest { target: target.to_owned() };
    let mail1 = client.ask_target(ask("mail1")).await.unwrap().into_inner();
    assert_eq!(
        (mail1.suspended, mail1.vips, mail1.host.as_str()),
        (false, vec!["10.0.0.1".to_owned(), VIP.to_owned()], "rs1")
    );
    let mail2 = client.ask_target(ask("mail2")).await.unwrap().into_inner();
    assert_eq!((mail2.suspended, mail2.vips.len(), mail2.revision), (true, 0, 5));
    let unknown = client.ask_target(ask("dns1")).await.unwrap_err();
    assert_eq!((unknown.code(), reason(&unknown).as_str()), (Code::NotFound, "unknown"));
    let (target, backup, host) = ("mail1".to_owned(), "mail b".to_owned(), "mgmt".to_owned());
    let bad = client.function_restored(FunctionRestoredRequest { term, target, backup, host }).await.unwrap_err();
    assert!(bad.code() == Code::InvalidArgument && bad.message().starts_with("backup: "), "{bad}");
    client.end_transition(end(id)).await.unwrap();
    client.end_transition(end(id)).await.unwrap();
    let mut viewer = cluster.client(Role::Viewer);
    let seen = tables(&mut viewer).await.unwrap();
    assert!(seen.transition.is_none() && seen.state.values().all(|row| row.condition == Condition::Moderate));
}
