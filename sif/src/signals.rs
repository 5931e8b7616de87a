//! Signals about the shared tables (thesis ch. 4) as they come in, and the tables as they go out.

use crate::wire;
use kage_proto::{
    sif::v1 as proto,
    tables::{self, FieldError, parse},
};
use kage_sif_core::{Ledger, Signal, held};
use kage_types::{DomainName, Revision, Tables, Term};
use std::{pin::Pin, sync::Arc, time::Duration};
use tokio::sync::{mpsc, watch};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::Status;

type Taken = Result<Signal, FieldError>;

pub(crate) fn put_arrangement(request: proto::PutArrangementRequest) -> Taken {
    Ok(Signal::PutArrangement {
        term: Term(request.term),
        operation: tables::operation(&request.operation)?,
        real_servers: tables::set("real_servers", &request.real_servers)?,
        groups: tables::set("groups", &request.groups)?,
    })
}

/// A1 to A3. An answer from the durable tables, without waiting for the disk.
pub(crate) fn ask_target(tables: &Tables, request: &proto::AskTargetRequest) -> Result<proto::AskTargetReply, Status> {
    let place: DomainName = parse("target", &request.target)?;
    let (suspended, row) = match (tables.operation.get(&place), tables.suspend.get(&place)) {
        (Some(row), _) => (false, row),
        (None, Some(row)) => (true, row),
        (None, None) => return Err(wire::refused(&kage_sif_core::Refusal::Unknown { what: format!("place {place}") })),
    };
    Ok(proto::AskTargetReply {
        suspended,
        vips: held(tables, &row.vm).iter().map(ToString::to_string).collect(),
        host: row.host.to_string(),
        revision: tables.revision.0,
    })
}

pub(crate) fn function_restored(request: proto::FunctionRestoredRequest) -> Taken {
    Ok(Signal::FunctionRestored {
        term: Term(request.term),
        place: parse("target", &request.target)?,
        backup: parse("backup", &request.backup)?,
        host: parse("host", &request.host)?,
    })
}

pub(crate) fn target_verdict(request: proto::TargetVerdictRequest) -> Taken {
    Ok(Signal::TargetVerdict {
        term: Term(request.term),
        place: parse("target", &request.target)?,
        recovered: request.recovered,
        host: parse("host", &request.host)?,
    })
}

pub(crate) fn put_claims(request: proto::PutClaimsRequest) -> Taken {
    Ok(Signal::PutClaims {
        term: Term(request.term),
        claims: tables::claims(&request.claims)?,
        by: request.by,
        why: request.why,
    })
}

pub(crate) fn moved_to(request: proto::MovedToRequest) -> Taken {
    Ok(Signal::MovedTo {
        term: Term(request.term),
        vm: parse("vm", &request.vm)?,
        host: parse("host", &request.host)?,
        not_on: tables::set("not_on", &request.not_on)?,
    })
}

pub(crate) fn found(request: proto::FoundRequest) -> Taken {
    tracing::info!(by = request.by, vm = request.vm, host = request.host, "a virtual server was found");
    Ok(Signal::Found {
        vm: parse("vm", &request.vm)?,
        host: parse("host", &request.host)?,
        not_on: tables::set("not_on", &request.not_on)?,
        by: request.by,
    })
}

pub(crate) fn begin_transition(request: proto::BeginTransitionRequest) -> Taken {
    Ok(Signal::BeginTransition {
        generation: Revision(request.generation),
        steps: tables::steps(&request.steps)?,
        groups: tables::group_changes(&request.groups)?,
        by: request.by,
        plan: request.plan,
    })
}

pub(crate) fn take_transition(request: proto::TakeTransitionRequest) -> Signal {
    Signal::TakeTransition { id: request.id, from: request.from, by: request.by }
}

pub(crate) fn put_step(request: &proto::PutStepRequest, now_unix_ms: u64) -> Taken {
    Ok(Signal::PutStep {
        id: request.id,
        by: request.by.clone(),
        index: usize::try_from(request.index).unwrap_or(usize::MAX),
        state: tables::step_state(request.state)?,
        took_ms: request.took_ms,
        now_unix_ms,
    })
}

pub(crate) fn end_transition(request: proto::EndTransitionRequest) -> Taken {
    tracing::info!(
        id = request.id,
        by = request.by,
        committed = request.committed,
        why = request.why,
        "transition ends"
    );
    Ok(Signal::EndTransition {
        state: tables::state(&request.state)?,
        id: request.id,
        by: request.by,
        committed: request.committed,
        why: request.why,
    })
}

/// The tables now and after each change. They are taken when there is room for them: a slow reader gets the last ones,
/// and nothing piles up.
pub(crate) fn watch(
    mut tables: watch::Receiver<Arc<Ledger>>,
    mut stop: watch::Receiver<bool>,
) -> Pin<Box<dyn Stream<Item = Result<proto::Tables, Status>> + Send>> {
    let (sender, receiver) = mpsc::channel(1);
    tables.mark_changed();
    tokio::spawn(async move {
        let feed = async {
            while tables.changed().await.is_ok() {
                let Ok(room) = sender.reserve().await else { return };
                let now = Arc::clone(&tables.borrow_and_update());
                room.send(Ok(wire::tables(&now)));
            }
        };
        tokio::select! {
            () = feed => {}
            () = sender.closed() => return,
            _ = stop.wait_for(|stop| *stop) => {}
        }
        // Not waited for: a reader that does not read must not delay the stop of SIF.
        let stopped = sender.send(Err(wire::stopped(crate::driver::Stopped)));
        let _ = tokio::time::timeout(Duration::from_millis(100), stopped).await;
    });
    Box::pin(ReceiverStream::new(receiver))
}
