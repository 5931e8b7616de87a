//! The rules: one request against the durable ledger (safety rules 5 and 7).

use crate::{
    Alert, Change, Electorate, Established, Ledger, Refusal, Reply, Report, Request, Shared, TroubleRow, VipRow,
    signals,
};
use kage_types::{AgentId, Epoch, Order, OrderScope, REASON_LIMIT, Revision, TargetName, Term, Vip};
use std::collections::{BTreeMap, BTreeSet};

/// Bytes of a trouble's detail or a coordinator's name: a line or two for people, not a log.
pub const DETAIL_LIMIT: usize = 1024;

/// Rows of one table: more than the 20,000 services one coordinator is built for (design §6). Bounds the reply of
/// GetLedger to the 4 MB that gRPC clients accept.
pub const ROW_LIMIT: usize = 32_768;

/// A term or epoch above this comes from a damaged store: a change of owner every millisecond takes 8,900 years to
/// get there. Refused, so that one bad report can't use up the numbers, which must never repeat.
pub const PLAUSIBLE_LIMIT: u64 = 1 << 48;

/// A ledger that was lost may have given out terms and epochs that nobody in the reporting majority has seen, and
/// whose holders are still at work. Those of its successor begin this far above what was reported, so that no number
/// is given twice.
pub const UNSEEN_MARGIN: u64 = 1000;

/// What becomes of a request.
pub(crate) enum Verdict {
    /// Nothing to make durable.
    Answer(Result<Reply, Refusal>),
    /// The reply holds once the changes are durable.
    Change { changes: Vec<Change>, reply: Reply, alert: Option<Alert> },
}

/// What a request reads and writes: requests on different keys don't see each other.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    Vip(Vip),
    Trouble(TargetName),
    Order(OrderScope),
    /// The shared tables. Signals do see each other, within a batch too: each is decided on what those before it leave.
    Tables,
    /// Terms and reports: ordered against everything.
    Whole,
}

pub(crate) fn key(request: &Request) -> Key {
    match request {
        Request::AcquireTerm { .. } | Request::RenewTerm { .. } | Request::ReportVoter { .. } => Key::Whole,
        Request::AdvanceEpoch { vip, .. } | Request::SetLongLease { vip, .. } => Key::Vip(*vip),
        Request::PutTrouble { target, .. } => Key::Trouble(target.clone()),
        Request::PutOrder { order, .. } => Key::Order(order.scope.clone()),
        Request::ClearOrder { scope, .. } => Key::Order(scope.clone()),
        Request::Signal(_) => Key::Tables,
    }
}

/// `base` is the revision after which the changes will be made: the ledger's, or higher within a batch. `shared`: the
/// shared tables by then, if the batch changes them.
pub(crate) fn decide(
    ledger: &Ledger,
    electorate: &Electorate,
    base: Revision,
    shared: &mut Option<Box<Shared>>,
    request: Request,
) -> Verdict {
    let outcome = match request {
        Request::Signal(signal) => {
            let now = shared.as_deref().unwrap_or(&ledger.shared);
            let (verdict, next) = signals::decide(ledger, electorate, now, signal);
            *shared = next.map(Box::new).or_else(|| shared.take());
            return verdict;
        }
        Request::AcquireTerm { coordinator } => acquire(ledger, electorate, coordinator),
        Request::RenewTerm { term } => renew(ledger, electorate, term).map(Verdict::answer),
        Request::ReportVoter { reporter, report } => report_voter(ledger, electorate, reporter, report),
        Request::AdvanceEpoch { term, vip, expected, owner, domain, target, cause } => {
            let row = VipRow { epoch: Epoch(0), after: expected, owner, domain, target, cause, long_lease: false };
            writer(ledger, electorate, term).and_then(|()| advance(ledger, base, vip, row))
        }
        Request::SetLongLease { term, vip, outstanding, .. } => {
            writer(ledger, electorate, term).and_then(|()| long_lease(ledger, base, vip, outstanding))
        }
        Request::PutTrouble { term, target, stage, detail, now_unix_ms } => {
            let row = stage.map(|stage| TroubleRow { stage, detail, since_unix_ms: now_unix_ms });
            writer(ledger, electorate, term).and_then(|()| put_trouble(ledger, base, target, row))
        }
        Request::PutOrder { term, order } => {
            writer(ledger, electorate, term).and_then(|()| put_order(ledger, base, order))
        }
        Request::ClearOrder { term, scope } => {
            writer(ledger, electorate, term).map(|()| clear_order(ledger, base, scope))
        }
    };
    outcome.unwrap_or_else(|refusal| Verdict::Answer(Err(refusal)))
}

impl Verdict {
    fn answer(reply: Reply) -> Self {
        Verdict::Answer(Ok(reply))
    }

    fn change(change: Change, reply: Reply) -> Self {
        Verdict::Change { changes: vec![change], reply, alert: None }
    }
}

/// A read: it changes nothing, so it may be answered from what is durable at any moment.
pub(crate) fn renew(ledger: &Ledger, electorate: &Electorate, term: Term) -> Result<Reply, Refusal> {
    writer(ledger, electorate, term).map(|()| Reply::Renewed)
}

/// No write before a majority has reported.
pub(crate) fn established(ledger: &Ledger, electorate: &Electorate) -> Result<(), Refusal> {
    match &ledger.established {
        Established::Fresh { reports } => {
            Err(Refusal::NeedsReports { needed: electorate.missing(reports.keys()).max(1) })
        }
        Established::Established => Ok(()),
    }
}

/// All writes but power saving's need the current term of an established ledger.
pub(crate) fn writer(ledger: &Ledger, electorate: &Electorate, given: Term) -> Result<(), Refusal> {
    established(ledger, electorate)?;
    match given.cmp(&ledger.term) {
        std::cmp::Ordering::Less => Err(Refusal::StaleTerm { given, current: ledger.term }),
        std::cmp::Ordering::Greater => Err(Refusal::UnknownTerm { given, current: ledger.term }),
        std::cmp::Ordering::Equal if given == Term(0) => Err(Refusal::StaleTerm { given, current: ledger.term }),
        std::cmp::Ordering::Equal => Ok(()),
    }
}

fn acquire(ledger: &Ledger, electorate: &Electorate, coordinator: String) -> Result<Verdict, Refusal> {
    if coordinator.len() > DETAIL_LIMIT {
        return Err(too_long("the name of the coordinator"));
    }
    let mut changes = Vec::new();
    let mut highest = ledger.term;
    if let Established::Fresh { reports } = &ledger.established {
        let needed = electorate.missing(reports.keys());
        if needed > 0 {
            return Err(Refusal::NeedsReports { needed });
        }
        // The reports were there already and the configuration now lists fewer agents.
        let (term, floors) = beyond(settled(ledger, reports, ledger.floors.clone()));
        highest = term;
        changes.push(Change::Established { term, floors });
    }
    let term = highest.next();
    changes.push(Change::Term { term, coordinator });
    Ok(Verdict::Change { changes, reply: Reply::Term { term }, alert: None })
}

/// The highest term known, and the epochs above the ledger's; of VIPs in `floors`, in any case.
fn settled(
    ledger: &Ledger,
    reports: &BTreeMap<AgentId, Report>,
    floors: BTreeMap<Vip, Epoch>,
) -> (Term, BTreeMap<Vip, Epoch>) {
    let mut all = Report { highest_term: ledger.term, epochs: floors };
    let kept: BTreeSet<Vip> = all.epochs.keys().copied().collect();
    for report in reports.values() {
        all.merge(report);
    }
    all.epochs.retain(|vip, epoch| kept.contains(vip) || *epoch > ledger.highest_epoch(vip));
    (all.highest_term, all.epochs)
}

/// Above what nobody who has reported may have seen. A cluster that never gave out anything begins at one.
fn beyond((term, mut floors): (Term, BTreeMap<Vip, Epoch>)) -> (Term, BTreeMap<Vip, Epoch>) {
    for epoch in floors.values_mut() {
        epoch.0 += UNSEEN_MARGIN;
    }
    (if term > Term(0) { Term(term.0 + UNSEEN_MARGIN) } else { term }, floors)
}

fn report_voter(
    ledger: &Ledger,
    electorate: &Electorate,
    reporter: AgentId,
    report: Report,
) -> Result<Verdict, Refusal> {
    if !electorate.knows(&reporter) {
        return Err(Refusal::UnknownReporter { reporter });
    }
    let numbers = report.epochs.values().map(|epoch| epoch.0).chain([report.highest_term.0]);
    if let Some(number) = numbers.max().filter(|number| *number > PLAUSIBLE_LIMIT) {
        return Err(Refusal::Implausible { reporter, number });
    }
    if report.epochs.len() > ROW_LIMIT {
        return Err(too_many("VIPs in one report", "remove VIPs that the configuration no longer lists"));
    }
    match &ledger.established {
        Established::Fresh { reports } => {
            let mut merged = reports.get(&reporter).cloned().unwrap_or_default();
            merged.merge(&report);
            let mut reports = reports.clone();
            let known = reports.insert(reporter.clone(), merged.clone());
            let needed = electorate.missing(reports.keys());
            let reply = Reply::Reported { established: needed == 0, needed };
            if needed == 0 {
                let (term, floors) = beyond(settled(ledger, &reports, ledger.floors.clone()));
                Ok(Verdict::change(Change::Established { term, floors }, reply))
            } else if known.as_ref() == Some(&merged) {
                Ok(Verdict::answer(reply))
            } else {
                Ok(Verdict::change(Change::Reported { reporter, report: merged }, reply))
            }
        }
        Established::Established => {
            let Some(alert) = old_backup(ledger, &reporter, &report) else {
                return Ok(Verdict::answer(Reply::Reported { established: true, needed: 0 }));
            };
            let reports = BTreeMap::from([(reporter.clone(), report.clone())]);
            let (term, floors) = settled(ledger, &reports, BTreeMap::new());
            // Even if only an epoch was above: the coordinator of this term acts on rows that are out of date.
            let term = term.max(ledger.term.next());
            let needed = electorate.missing([&reporter]);
            // A majority of one is content with this report: it was in force before, too.
            let established = needed == 0;
            let mut changes = vec![Change::Restored { term, floors, reporter, report }];
            let shared = ledger.shared.clone().restored();
            let edits = ledger.shared.edits_to(&shared);
            changes.push(Change::Tables { revision: shared.tables.revision, edits });
            if established {
                changes.push(Change::Established { term, floors: BTreeMap::new() });
            }
            Ok(Verdict::Change { changes, reply: Reply::Reported { established, needed }, alert: Some(alert) })
        }
    }
}

/// Does the report prove that the ledger once was further?
fn old_backup(ledger: &Ledger, reporter: &AgentId, report: &Report) -> Option<Alert> {
    let above = |what: String, reported, known| Alert::OldBackup { reporter: reporter.clone(), what, reported, known };
    if report.highest_term > ledger.term {
        return Some(above("term".to_owned(), report.highest_term.0, ledger.term.0));
    }
    report.epochs.iter().find_map(|(vip, epoch)| {
        let known = ledger.highest_epoch(vip);
        (*epoch > known).then(|| above(format!("epoch of {vip}"), epoch.0, known.0))
    })
}

fn advance(ledger: &Ledger, base: Revision, vip: Vip, mut row: VipRow) -> Result<Verdict, Refusal> {
    let expected = row.after;
    let highest = ledger.highest_epoch(&vip);
    let current = match ledger.vips.get(&vip) {
        Some(old) => {
            row.epoch = old.epoch;
            // The epoch is the new owner's, the long lease may be the old one's: takeover still has to outwait it.
            row.long_lease = old.long_lease;
            if *old == row {
                return Ok(Verdict::answer(Reply::Epoch { revision: ledger.revision, epoch: old.epoch }));
            }
            old.epoch
        }
        None => {
            if ledger.vips.len() >= ROW_LIMIT {
                return Err(too_many("VIPs in the ledger", "spread the services over two clusters"));
            }
            // Given before, to somebody this ledger does not know, perhaps with a long lease.
            row.long_lease = highest > Epoch(0);
            Epoch(0)
        }
    };
    if current != expected {
        return Err(Refusal::Conflict { vip, expected, current });
    }
    row.epoch = highest.next();
    let epoch = row.epoch;
    Ok(Verdict::change(Change::Vip { vip, row }, Reply::Epoch { revision: base.next(), epoch }))
}

fn long_lease(ledger: &Ledger, base: Revision, vip: Vip, outstanding: bool) -> Result<Verdict, Refusal> {
    let row = ledger.vips.get(&vip).ok_or(Refusal::UnknownVip { vip })?;
    if row.long_lease == outstanding {
        return Ok(Verdict::answer(Reply::Written { revision: ledger.revision }));
    }
    let row = VipRow { long_lease: outstanding, ..row.clone() };
    Ok(Verdict::change(Change::Vip { vip, row }, Reply::Written { revision: base.next() }))
}

fn put_trouble(
    ledger: &Ledger,
    base: Revision,
    target: TargetName,
    row: Option<TroubleRow>,
) -> Result<Verdict, Refusal> {
    let done = Ok(Verdict::answer(Reply::Written { revision: ledger.revision }));
    let written = Reply::Written { revision: base.next() };
    match (ledger.troubles.get(&target), row) {
        (None, None) => done,
        (Some(_), None) => Ok(Verdict::change(Change::TroubleCleared { target }, written)),
        (_, Some(row)) if row.detail.len() > DETAIL_LIMIT => Err(too_long("the detail of a trouble")),
        (Some(old), Some(row)) if old.stage == row.stage && old.detail == row.detail => done,
        (Some(old), Some(mut row)) => {
            if old.stage == row.stage {
                row.since_unix_ms = old.since_unix_ms;
            }
            Ok(Verdict::change(Change::Trouble { target, row }, written))
        }
        (None, Some(_)) if ledger.troubles.len() >= ROW_LIMIT => {
            Err(too_many("troubles in the ledger", "clear those of targets that no longer exist"))
        }
        (None, Some(row)) => Ok(Verdict::change(Change::Trouble { target, row }, written)),
    }
}

fn put_order(ledger: &Ledger, base: Revision, order: Order) -> Result<Verdict, Refusal> {
    // A reason is a line; a name in a certificate is at most 63 bytes.
    if order.reason.len() > REASON_LIMIT || order.who.len() > REASON_LIMIT {
        let what = "the reason of an order in bytes".to_owned();
        return Err(Refusal::TooMuch { what, limit: REASON_LIMIT, next: "shorten it".to_owned() });
    }
    match ledger.orders.get(&order.scope) {
        Some(old) if *old == order => Ok(Verdict::answer(Reply::Written { revision: ledger.revision })),
        None if ledger.orders.len() >= ROW_LIMIT => {
            Err(too_many("orders in the ledger", "lift those of machines that no longer exist"))
        }
        Some(_) | None => Ok(Verdict::change(Change::Order { order }, Reply::Written { revision: base.next() })),
    }
}

fn clear_order(ledger: &Ledger, base: Revision, scope: OrderScope) -> Verdict {
    if ledger.orders.contains_key(&scope) {
        Verdict::change(Change::OrderCleared { scope }, Reply::Written { revision: base.next() })
    } else {
        Verdict::answer(Reply::Written { revision: ledger.revision })
    }
}

fn too_many(what: &str, next: &str) -> Refusal {
    Refusal::TooMuch { what: what.to_owned(), limit: ROW_LIMIT, next: next.to_owned() }
}

fn too_long(what: &str) -> Refusal {
    Refusal::TooMuch { what: format!("{what} in bytes"), limit: DETAIL_LIMIT, next: "shorten it".to_owned() }
}
