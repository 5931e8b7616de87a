//! The real program over mutual TLS on loopback: killed under load, restarted, stopped, and asked wrong things.

#![allow(clippy::unwrap_used, reason = "tests")]

mod cluster;

use cluster::{Client, Cluster, acquire, report};
use kage_proto::{
    channel::{Credentials, Options, channel},
    issue::{Authority, Trust},
    roles::Role,
    sif::v1::{
        AdvanceEpochRequest, BackupRequest, Change, ClearOrderRequest, GetLedgerRequest, OrderRow, PutOrderRequest,
        PutTroubleRequest, RenewTermRequest, SetLongLeaseRequest, SubscribeRequest, change, sif_client::SifClient,
    },
    tls::{Expected, Pki},
};
use kage_sif::{CURRENT_KEY, REASON_KEY};
use kage_sif_core::UNSEEN_MARGIN;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};
use tonic::{Code, Status};

async fn advance(client: &mut Client, term: u64, vip: &str, expected_epoch: u64, owner: &str) -> Result<u64, Status> {
    let request = AdvanceEpochRequest {
        term,
        vip: vip.to_owned(),
        expected_epoch,
        owner: owner.to_owned(),
        domain: String::new(),
        target: "mail1".to_owned(),
        cause: "takeover".to_owned(),
    };
    Ok(client.advance_epoch(request).await?.into_inner().epoch)
}

async fn trouble(client: &mut Client, term: u64, stage: &str, detail: &str) -> Result<u64, Status> {
    let request =
        PutTroubleRequest { term, target: "mail1".to_owned(), stage: stage.to_owned(), detail: detail.to_owned() };
    Ok(client.put_trouble(request).await?.into_inner().revision)
}

fn told(status: &Status) -> (Code, Option<&str>, Option<u64>) {
    let text = |key| status.metadata().get(key).map(|value| value.to_str().unwrap());
    (status.code(), text(REASON_KEY), text(CURRENT_KEY).map(|number| number.parse().unwrap()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_under_load_it_keeps_what_it_acknowledged() {
    const ROUNDS: u64 = 20;
    let vip = |n: u64| format!("10.0.0.{}", n + 1);
    let (mut cluster, mut client, mut last_term) = Cluster::ready().await;
    let mut acknowledged = BTreeMap::<String, u64>::new();
    let mut latencies = Vec::new();
    let mut last_revision = 0;
    for round in 0..ROUNDS {
        let workers = (0..4).map(|n| {
            let (mut client, vip, term) = (client.clone(), vip(n), last_term);
            let mut epoch = acknowledged.get(&vip).copied().unwrap_or_default();
            tokio::spawn(async move {
                let mut latencies = Vec::new();
                // What the last kill left in doubt took effect, or not.
                for attempt in 0.. {
                    let begun = Instant::now();
                    match advance(&mut client, term, &vip, epoch, &format!("rs{}", epoch % 3)).await {
                        Ok(given) => {
                            assert!(given > epoch);
                            epoch = given;
                            latencies.push(begun.elapsed());
                        }
                        Err(status) if status.code() == Code::Aborted && attempt == 0 => {
                            assert_eq!(told(&status).2, Some(epoch + 1));
                            epoch += 1;
                        }
                        Err(status) => {
                            assert_ne!(status.code(), Code::Aborted, "{status}");
                            break;
                        }
                    }
                }
                (vip, epoch, latencies)
            })
        });
        let workers: Vec<_> = workers.collect();
        // At no particular point of a commit.
        let mut random = [0; 2];
        std::io::Read::read_exact(&mut fs::File::open("/dev/urandom").unwrap(), &mut random).unwrap();
        tokio::time::sleep(Duration::from_micros(20_000 + u64::from(u16::from_ne_bytes(random)))).await;
        cluster.kill();
        for worker in workers {
            let (vip, epoch, took) = worker.await.unwrap();
            acknowledged.insert(vip, epoch);
            latencies.extend(took);
        }
        cluster.start();
        let ledger = cluster.ledger(&mut client).await;
        assert!(ledger.established && ledger.term == last_term && ledger.revision > last_revision, "round {round}");
        last_revision = ledger.revision;
        let found: BTreeMap<_, _> = ledger.vips.into_iter().map(|row| (row.vip, row.epoch)).collect();
        for (vip, epoch) in acknowledged.iter().filter(|(_, epoch)| **epoch > 0) {
            let there = found[vip];
            assert!(there == *epoch || there == epoch + 1, "round {round}: {vip} at {there}, acknowledged {epoch}");
        }
        let term = acquire(&mut client).await.unwrap().term;
        assert!(term > last_term, "terms never repeat");
        last_term = term;
    }
    latencies.sort();
    println!(
        "{} commits acknowledged in {ROUNDS} rounds, request to answer: median {:?}, 99 % {:?}",
        latencies.len(),
        latencies[latencies.len() / 2],
        latencies[latencies.len() * 99 / 100]
    );
}

#[tokio::test]
async fn refusals_say_which_and_what_would_be_right() {
    let mut cluster = Cluster::new();
    cluster.start();
    let mut client = cluster.client(Role::Coordinator);
    cluster.ledger(&mut client).await;
    let status = acquire(&mut client).await.unwrap_err();
    assert_eq!(told(&status), (Code::FailedPrecondition, Some("reports-needed"), Some(2)));
    assert!(status.message().starts_with("reports-needed: "), "{status}");
    assert_eq!(report(&mut client, "a", 4, &[("10.0.0.1", 7)]).await.unwrap(), (false, 1));
    let status = report(&mut client, "stranger", 4, &[]).await.unwrap_err();
    assert_eq!(told(&status), (Code::InvalidArgument, Some("unknown-reporter"), None));
    // A report outlives a restart.
    cluster.kill();
    cluster.start();
    cluster.ledger(&mut client).await;
    assert_eq!(report(&mut client, "b", 2, &[]).await.unwrap(), (true, 0));
    let reply = acquire(&mut client).await.unwrap();
    assert_eq!((reply.term, reply.length_ms), (UNSEEN_MARGIN + 5, 3000));
    assert!(reply.ledger.unwrap().established);
    assert_eq!(acquire(&mut client).await.unwrap().term, UNSEEN_MARGIN + 6);
    let status = advance(&mut client, UNSEEN_MARGIN + 5, "10.0.0.1", 0, "rs1").await.unwrap_err();
    assert_eq!(told(&status), (Code::FailedPrecondition, Some("stale-term"), Some(UNSEEN_MARGIN + 6)));
    let status = client.renew_term(RenewTermRequest { term: UNSEEN_MARGIN + 7 }).await.unwrap_err();
    assert_eq!(told(&status), (Code::FailedPrecondition, Some("unknown-term"), Some(UNSEEN_MARGIN + 6)));
    assert_eq!(
        client.renew_term(RenewTermRequest { term: UNSEEN_MARGIN + 6 }).await.unwrap().into_inner().length_ms,
        3000
    );
    assert_eq!(
        advance(&mut client, UNSEEN_MARGIN + 6, "10.0.0.1", 0, "rs1").await.unwrap(),
        UNSEEN_MARGIN + 8,
        "above what was reported"
    );
    assert_eq!(
        advance(&mut client, UNSEEN_MARGIN + 6, "10.0.0.1", 0, "rs1").await.unwrap(),
        UNSEEN_MARGIN + 8,
        "repeated"
    );
    let status = advance(&mut client, UNSEEN_MARGIN + 6, "10.0.0.1", UNSEEN_MARGIN + 7, "rs2").await.unwrap_err();
    assert_eq!(told(&status), (Code::Aborted, Some("conflict"), Some(UNSEEN_MARGIN + 8)));
    let long =
        SetLongLeaseRequest { term: UNSEEN_MARGIN + 6, vip: "10.0.0.2".to_owned(), outstanding: true, sequence: 1 };
    assert_eq!(told(&client.set_long_lease(long).await.unwrap_err()), (Code::NotFound, Some("unknown-vip"), None));
    for (vip, owner, field) in [("10.0.0.1/24", "rs1", "vip: "), ("10.0.0.1", "", "owner: ")] {
        let status = advance(&mut client, UNSEEN_MARGIN + 6, vip, UNSEEN_MARGIN + 8, owner).await.unwrap_err();
        assert!(status.code() == Code::InvalidArgument && status.message().starts_with(field), "{status}");
    }
    assert_eq!(trouble(&mut client, UNSEEN_MARGIN + 6, "asleep", "").await.unwrap_err().code(), Code::InvalidArgument);
    let mut viewer = cluster.client(Role::Viewer);
    assert_eq!(cluster.ledger(&mut viewer).await.term, UNSEEN_MARGIN + 6);
    assert_eq!(acquire(&mut viewer).await.unwrap_err().code(), Code::PermissionDenied);
}

fn name(change: &Change) -> String {
    match change.change.as_ref().unwrap() {
        change::Change::Term(term) => format!("term {term}"),
        change::Change::Vip(row) => format!("{} e{} {}", row.vip, row.epoch, row.owner),
        change::Change::Trouble(row) => format!("{} {}", row.target, row.stage),
        change::Change::TroubleCleared(target) => format!("{target} cleared"),
        change::Change::Order(row) => format!("{} {}", row.scope, row.reason),
        change::Change::OrderCleared(scope) => format!("{scope} lifted"),
    }
}

#[tokio::test]
async fn a_subscriber_gets_all_changes_in_order_then_live_ones() {
    let (mut cluster, mut client, term) = Cluster::ready().await;
    advance(&mut client, term, "10.0.0.1", 0, "rs1").await.unwrap();
    let middle = trouble(&mut client, term, "restarting", "").await.unwrap();
    trouble(&mut client, term, "", "").await.unwrap();
    let order = |scope: &str| OrderRow {
        scope: scope.to_owned(),
        reason: "disk".to_owned(),
        who: "operator alice".to_owned(),
        since_unix_ms: 5,
        until_unix_ms: None,
    };
    for scope in ["agent:rs1", "all"] {
        client.put_order(PutOrderRequest { term, order: Some(order(scope)) }).await.unwrap();
    }
    client.clear_order(ClearOrderRequest { term, scope: "all".to_owned() }).await.unwrap();
    let wrong = client.put_order(PutOrderRequest { term, order: Some(order("rs1")) }).await.unwrap_err();
    assert!(wrong.message().contains("agent:NAME"), "{wrong}");
    // The log outlives a restart.
    cluster.kill();
    cluster.start();
    let mut viewer = cluster.client(Role::Viewer);
    assert_eq!(cluster.ledger(&mut viewer).await.orders, [order("agent:rs1")]);
    let refused = viewer.clear_order(ClearOrderRequest { term, scope: "all".to_owned() }).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let mut all = viewer.subscribe(SubscribeRequest { after_revision: 0 }).await.unwrap().into_inner();
    let mut later = viewer.subscribe(SubscribeRequest { after_revision: middle }).await.unwrap().into_inner();
    advance(&mut client, term, "10.0.0.1", 1, "rs2").await.unwrap();
    let mut got = Vec::new();
    let mut revisions = BTreeSet::new();
    for _ in 0..8 {
        let change = all.message().await.unwrap().unwrap();
        assert!(revisions.last().is_none_or(|last| change.revision > *last));
        revisions.insert(change.revision);
        got.push(name(&change));
    }
    let expected = [
        "term 1",
        "10.0.0.1 e1 rs1",
        "mail1 restarting",
        "mail1 cleared",
        "agent:rs1 disk",
        "all disk",
        "all lifted",
        "10.0.0.1 e2 rs2",
    ];
    assert_eq!(got, expected);
    for expected in &expected[3..] {
        assert_eq!(&name(&later.message().await.unwrap().unwrap()), expected);
    }
    let ahead = viewer.subscribe(SubscribeRequest { after_revision: 999 }).await.unwrap_err();
    assert_eq!(ahead.code(), Code::OutOfRange, "{ahead}");
    // An old backup is no change that can be told: read again.
    assert_eq!(report(&mut client, "a", term, &[("10.0.0.1", 9)]).await.unwrap(), (false, 1));
    assert_eq!(all.message().await.unwrap_err().code(), Code::OutOfRange);
    let before = viewer.subscribe(SubscribeRequest { after_revision: middle }).await.unwrap_err();
    assert_eq!(before.code(), Code::OutOfRange, "{before}");
}

#[tokio::test]
async fn a_stop_is_quick_and_clean_and_faults_say_what_to_do() {
    let (mut cluster, mut client, term) = Cluster::ready().await;
    advance(&mut client, term, "10.0.0.1", 0, "rs1").await.unwrap();
    let mut stream = client.subscribe(SubscribeRequest { after_revision: 999 }).await.err();
    assert!(stream.take().is_some());
    let revision = cluster.ledger(&mut client).await.revision;
    let mut stream = client.subscribe(SubscribeRequest { after_revision: revision }).await.unwrap().into_inner();
    let mut process = cluster.process.take().unwrap();
    let begun = Instant::now();
    let pid = rustix::process::Pid::from_child(&process);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(stream.message().await.unwrap_err().code(), Code::Unavailable);
    let status = tokio::task::spawn_blocking(move || process.wait().unwrap()).await.unwrap();
    assert!(status.success(), "{status}");
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    println!("stopped in {:?}", begun.elapsed());

    let run = |cluster: &Cluster| {
        let output = cluster.command().output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    fs::write(cluster.path("state").join("ledger.redb"), "damaged").unwrap();
    let (code, log) = run(&cluster);
    assert!(code == Some(1) && log.contains("restore it from a backup"), "{log}");
    fs::write(cluster.path("cluster.toml"), "[sif]\nlisten = 'nowhere'\n").unwrap();
    let (code, log) = run(&cluster);
    assert!(code == Some(64) && log.contains("nowhere"), "{log}");
}

async fn copy(client: &mut Client) -> Result<Vec<u8>, Status> {
    let mut chunks = client.backup(BackupRequest {}).await?.into_inner();
    let mut file = Vec::new();
    while let Some(chunk) = chunks.message().await? {
        file.extend(chunk.content);
    }
    Ok(file)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_taken_under_load_is_restored_and_no_number_is_given_twice() {
    let (mut cluster, mut client, term) = Cluster::ready().await;
    let order = OrderRow {
        scope: "agent:rs1".to_owned(),
        reason: "disk".to_owned(),
        who: "operator alice".to_owned(),
        since_unix_ms: 5,
        until_unix_ms: None,
    };
    client.put_order(PutOrderRequest { term, order: Some(order.clone()) }).await.unwrap();
    let mut writer = client.clone();
    let load = tokio::spawn(async move {
        let mut epoch = 0;
        while let Ok(given) = advance(&mut writer, term, "10.0.0.1", epoch, &format!("rs{}", epoch % 3)).await {
            epoch = given;
        }
        epoch
    });
    let mut operator = cluster.client(Role::Operator);
    // Operators' commands are limited in number: not asked for before there is something to copy.
    while cluster.ledger(&mut client).await.vips.first().is_none_or(|row| row.epoch < 5) {}
    let file = copy(&mut operator).await.unwrap();
    let (ledger, _) = kage_sif::backup::decode(&file).unwrap();
    let copied = ledger.vips.values().next().map_or(0, |row| row.epoch.0);
    for role in [Role::Viewer, Role::Coordinator] {
        let refused = copy(&mut cluster.client(role)).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    }
    // The ledger goes on after the copy; then its disk is lost.
    let after = Instant::now();
    while after.elapsed() < Duration::from_millis(200) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    cluster.kill();
    let last = load.await.unwrap();
    assert!(last > copied, "{last}, {copied}");
    fs::rename(cluster.path("state"), cluster.path("lost")).unwrap();
    let log = fs::read_to_string(cluster.path("log")).unwrap();
    assert!(log.lines().any(|line| line.contains("Sif/Backup") && line.contains("operator x")), "audited\n{log}");

    let restore = |file: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kage-sif"));
        let output = command.arg("restore").arg(file).arg("--state").arg(cluster.path("state")).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    };
    let mut spoilt = file.clone();
    let middle = spoilt.len() / 2;
    spoilt[middle] ^= 1;
    for bad in [spoilt, file[..file.len() - 1].to_vec(), b"kagemusha-ledger 2 bytes=0".to_vec(), Vec::new()] {
        fs::write(cluster.path("bad"), bad).unwrap();
        let (done, text) = restore(&cluster.path("bad"));
        assert!(!done && text.contains("no good copy"), "{text}");
    }
    assert!(!cluster.path("state").exists(), "nothing is left of a copy that was refused");
    fs::write(cluster.path("copy"), &file).unwrap();
    let (done, text) = restore(&cluster.path("copy"));
    assert!(done && text.contains("1 standing orders") && text.contains("10.0.0.1 was rs"), "{text}");
    let (done, text) = restore(&cluster.path("copy"));
    assert!(!done && text.contains("is there already"), "{text}");

    cluster.start();
    let ledger = cluster.ledger(&mut client).await;
    assert!(!ledger.established && ledger.vips.is_empty());
    assert_eq!(ledger.orders, [order]);
    let refused = acquire(&mut client).await.unwrap_err();
    assert_eq!(told(&refused), (Code::FailedPrecondition, Some("reports-needed"), Some(2)));
    let renewal = client.renew_term(RenewTermRequest { term }).await.unwrap_err();
    assert_eq!(renewal.code(), Code::FailedPrecondition, "the old term is over: {renewal}");
    // No voter of this majority has seen more than the first epoch.
    assert_eq!(report(&mut client, "a", term, &[("10.0.0.1", 1)]).await.unwrap(), (false, 1));
    assert_eq!(report(&mut client, "b", term, &[]).await.unwrap(), (true, 0));
    let next = acquire(&mut client).await.unwrap().term;
    assert!(next > term + UNSEEN_MARGIN, "{next}");
    let epoch = advance(&mut client, next, "10.0.0.1", 0, "rs1").await.unwrap();
    assert!(epoch > copied + UNSEEN_MARGIN && epoch > last, "{epoch} after {copied} and {last}");
    assert!(cluster.ledger(&mut client).await.vips[0].long_lease, "an unknown owner's long lease is outwaited");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_and_authority_change_under_an_open_stream() {
    let (cluster, mut client, term) = Cluster::ready().await;
    let revision = cluster.ledger(&mut client).await.revision;
    let mut stream = client.subscribe(SubscribeRequest { after_revision: revision }).await.unwrap().into_inner();
    let pid = rustix::process::Pid::from_child(cluster.process.as_ref().unwrap());
    let log = || fs::read_to_string(cluster.path("log")).unwrap();
    let said = |text: &str, times: usize| {
        let begun = Instant::now();
        while log().matches(text).count() < times {
            assert!(begun.elapsed() < Duration::from_secs(10), "{text}\n{}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    let hang_up = || rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    let (sif, coordinator, old) = (cluster.path("sif"), cluster.path("coordinator"), cluster.path("old"));
    fs::create_dir(&old).unwrap();
    for name in ["ca.pem", "cert.pem", "key.pem"] {
        fs::copy(coordinator.join(name), old.join(name)).unwrap();
    }

    // What can't be used changes nothing.
    let good = fs::read(sif.join("cert.pem")).unwrap();
    fs::write(sif.join("cert.pem"), "torn").unwrap();
    hang_up();
    said("can't be used", 1);
    cluster.client(Role::Viewer).get_ledger(GetLedgerRequest {}).await.expect("served on");
    fs::write(sif.join("cert.pem"), good).unwrap();

    // The new authority is trusted everywhere before anything is of it.
    let next = Authority::create(&cluster.path("next"), "next", 2).unwrap();
    for dir in [&sif, &coordinator, &old] {
        next.trust_in(dir).unwrap();
    }
    hang_up();
    said("certificates read again", 1);
    let subject = next.renew_in(&coordinator, Trust::Beside, None).unwrap();
    assert_eq!((subject.identity.to_string().as_str(), subject.days), ("coordinator x", 1825));
    assert!(fs::metadata(coordinator.join("key.pem")).unwrap().len() > 0);
    cluster.client(Role::Coordinator).get_ledger(GetLedgerRequest {}).await.expect("of the next authority");
    let mut of_old = Pki::load(&old).unwrap();
    let ask = |pki: &Pki| {
        let credentials = Credentials::Tls(pki.clone());
        let to = channel(&cluster.address.to_string(), &credentials, Expected::role(Role::Sif), &Options::default());
        let mut client = SifClient::new(to.unwrap());
        async move { client.get_ledger(GetLedgerRequest {}).await }
    };
    ask(&of_old).await.expect("both are trusted");

    // Nobody tells it: the files alone.
    next.renew_in(&sif, Trust::Alone, None).unwrap();
    said("certificates read again", 2);
    let mut refused = ask(&of_old).await;
    for _ in 0..100 {
        if refused.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        refused = ask(&of_old).await;
    }
    let refused = refused.expect_err("of an authority that was removed");
    assert!(std::error::Error::source(&refused).is_some(), "no answer of SIF: {refused}");
    said("the client's certificate is of another authority", 1);
    next.renew_in(&old, Trust::Alone, None).unwrap();
    of_old.reload().unwrap();
    ask(&of_old).await.expect("renewed in place");
    of_old = Pki::load(&old).unwrap();
    assert!(of_old.not_after_unix_s() > 0);

    // The connection from the beginning was never cut.
    advance(&mut client, term, "10.0.0.1", 0, "rs1").await.unwrap();
    let change = tokio::time::timeout(Duration::from_secs(5), stream.message()).await.unwrap().unwrap().unwrap();
    assert!(matches!(change.change, Some(change::Change::Vip(_))), "{change:?}");
}
