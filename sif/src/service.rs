//! The RPCs. Who may call them is decided before they are reached (`kage_proto::roles`).

use crate::{
    backup,
    driver::{Handle, Subscription},
    signals,
    wire::{self, field, optional},
};
use kage_proto::{audit, sif::v1 as proto, tables::FieldError, tls::Pki};
use kage_sif_core::{Ledger, Reply, Request as Ask, Signal};
use kage_types::{Epoch, Revision, Term, Vip};
use std::{
    pin::Pin,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::sync::{broadcast::error::RecvError, mpsc, watch};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status};

/// A disk that takes longer hangs: the caller is told that the outcome is not known, and repeats.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Changes on their way to one subscriber, besides those the driver keeps for it.
const STREAM_BUFFER: usize = 16;

/// `kagemusha.sif.v1.Sif`.
pub struct Service {
    handle: Handle,
    term_ms: u32,
    pki: Option<Pki>,
    stop: watch::Receiver<bool>,
}

impl Service {
    /// Over a running driver. Streams end when `stop` becomes true.
    #[must_use]
    pub fn new(handle: Handle, term: Duration, pki: Option<Pki>, stop: watch::Receiver<bool>) -> Self {
        Self { handle, term_ms: u32::try_from(term.as_millis()).unwrap_or(u32::MAX), pki, stop }
    }

    async fn ask(&self, rpc: &'static str, request: Ask) -> Result<(Reply, Option<Box<Ledger>>), Status> {
        let answer = tokio::time::timeout(ANSWER_LIMIT, self.handle.ask(request)).await.map_err(|_| {
            Status::deadline_exceeded(
                "the disk of kage-sif hangs and it is not known whether the change was made: repeat the request",
            )
        })?;
        answer.map_err(wire::stopped)?.map_err(|refusal| {
            tracing::info!(rpc, refusal = %refusal, "refused");
            wire::refused(&refusal)
        })
    }

    async fn written(&self, rpc: &'static str, request: Ask) -> Result<u64, Status> {
        match self.ask(rpc, request).await?.0 {
            Reply::Written { revision } => Ok(revision.0),
            Reply::Term { .. }
            | Reply::Renewed
            | Reply::Reported { .. }
            | Reply::Epoch { .. }
            | Reply::Tables { .. }
            | Reply::Transition { .. } => Err(mismatch()),
        }
    }

    /// A signal about the shared tables.
    async fn tell<R: std::fmt::Debug>(
        &self,
        rpc: &'static str,
        request: Request<R>,
        signal: impl FnOnce(R) -> Result<Signal, FieldError>,
    ) -> Result<Reply, Status> {
        audit::about(request.get_ref());
        let signal = signal(request.into_inner())?;
        tracing::debug!(rpc, ?signal, "signal");
        Ok(self.ask(rpc, Ask::Signal(signal)).await?.0)
    }

    async fn signal<R: std::fmt::Debug>(
        &self,
        rpc: &'static str,
        request: Request<R>,
        signal: impl FnOnce(R) -> Result<Signal, FieldError>,
    ) -> Result<Response<proto::TablesReply>, Status> {
        let Reply::Tables { revision } = self.tell(rpc, request, signal).await? else { return Err(mismatch()) };
        Ok(Response::new(proto::TablesReply { revision: revision.0 }))
    }

    async fn transition<R: std::fmt::Debug>(
        &self,
        rpc: &'static str,
        request: Request<R>,
        signal: impl FnOnce(R) -> Result<Signal, FieldError>,
    ) -> Result<Response<proto::TransitionReply>, Status> {
        let Reply::Transition { revision, id } = self.tell(rpc, request, signal).await? else { return Err(mismatch()) };
        tracing::info!(rpc, id, "transition");
        Ok(Response::new(proto::TransitionReply { revision: revision.0, id }))
    }
}

/// A bug in the core.
fn mismatch() -> Status {
    Status::internal("the ledger gave another answer than was asked for: report this with the log of kage-sif")
}

fn now_unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[tonic::async_trait]
impl proto::sif_server::Sif for Service {
    async fn get_ledger(&self, _: Request<proto::GetLedgerRequest>) -> Result<Response<proto::Ledger>, Status> {
        let ledger = self.handle.read().await.map_err(wire::stopped)?;
        Ok(Response::new(wire::ledger(&ledger)))
    }

    type SubscribeStream = Pin<Box<dyn Stream<Item = Result<proto::Change, Status>> + Send>>;

    async fn subscribe(
        &self,
        request: Request<proto::SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let after = Revision(request.into_inner().after_revision);
        let subscription = self.handle.subscribe(after).await.map_err(|error| wire::not_subscribed(&error))?;
        let (sender, receiver) = mpsc::channel(STREAM_BUFFER);
        tokio::spawn(feed(subscription, sender, self.stop.clone()));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn acquire_term(
        &self,
        request: Request<proto::AcquireTermRequest>,
    ) -> Result<Response<proto::AcquireTermReply>, Status> {
        audit::about(request.get_ref());
        let coordinator = request.into_inner().coordinator;
        let request = Ask::AcquireTerm { coordinator: coordinator.clone() };
        let (Reply::Term { term }, Some(ledger)) = self.ask("AcquireTerm", request).await? else {
            return Err(mismatch());
        };
        tracing::info!(term = term.0, coordinator, "new term");
        let ledger = Some(wire::ledger(&ledger));
        Ok(Response::new(proto::AcquireTermReply { term: term.0, length_ms: self.term_ms, ledger }))
    }

    async fn renew_term(
        &self,
        request: Request<proto::RenewTermRequest>,
    ) -> Result<Response<proto::RenewTermReply>, Status> {
        let term = Term(request.into_inner().term);
        self.ask("RenewTerm", Ask::RenewTerm { term }).await?;
        Ok(Response::new(proto::RenewTermReply {
            length_ms: self.term_ms,
            certificate_ends_unix_s: self.pki.as_ref().map_or(0, Pki::not_after_unix_s),
        }))
    }

    async fn report_voter(
        &self,
        request: Request<proto::ReportVoterRequest>,
    ) -> Result<Response<proto::ReportVoterReply>, Status> {
        audit::about(request.get_ref());
        let request = request.into_inner();
        let reporter = field("reporter", &request.reporter)?;
        let report = wire::report(request.highest_term, &request.epochs)?;
        let request = Ask::ReportVoter { reporter, report };
        let (Reply::Reported { established, needed }, _) = self.ask("ReportVoter", request).await? else {
            return Err(mismatch());
        };
        Ok(Response::new(proto::ReportVoterReply { established, reports_needed: needed }))
    }

    async fn advance_epoch(
        &self,
        request: Request<proto::AdvanceEpochRequest>,
    ) -> Result<Response<proto::AdvanceEpochReply>, Status> {
        audit::about(request.get_ref());
        let request = request.into_inner();
        let vip: Vip = field("vip", &request.vip)?;
        let (owner, cause) = (request.owner.clone(), request.cause.clone());
        let ask = Ask::AdvanceEpoch {
            term: Term(request.term),
            vip,
            expected: Epoch(request.expected_epoch),
            owner: field("owner", &request.owner)?,
            domain: optional("domain", &request.domain)?,
            target: field("target", &request.target)?,
            cause: field("cause", &request.cause)?,
        };
        let (Reply::Epoch { revision, epoch }, _) = self.ask("AdvanceEpoch", ask).await? else {
            return Err(mismatch());
        };
        tracing::info!(%vip, epoch = epoch.0, owner, cause, "new owner");
        Ok(Response::new(proto::AdvanceEpochReply { revision: revision.0, epoch: epoch.0 }))
    }

    async fn set_long_lease(
        &self,
        request: Request<proto::SetLongLeaseRequest>,
    ) -> Result<Response<proto::SetLongLeaseReply>, Status> {
        audit::about(request.get_ref());
        let request = request.into_inner();
        let ask = Ask::SetLongLease {
            term: Term(request.term),
            vip: field("vip", &request.vip)?,
            outstanding: request.outstanding,
            sequence: request.sequence,
        };
        let revision = self.written("SetLongLease", ask).await?;
        Ok(Response::new(proto::SetLongLeaseReply { revision }))
    }

    async fn put_trouble(
        &self,
        request: Request<proto::PutTroubleRequest>,
    ) -> Result<Response<proto::PutTroubleReply>, Status> {
        audit::about(request.get_ref());
        let request = request.into_inner();
        let ask = Ask::PutTrouble {
            term: Term(request.term),
            target: field("target", &request.target)?,
            stage: optional("stage", &request.stage)?,
            detail: request.detail,
            now_unix_ms: now_unix_ms(),
        };
        let revision = self.written("PutTrouble", ask).await?;
        Ok(Response::new(proto::PutTroubleReply { revision }))
    }

    async fn put_order(
        &self,
        request: Request<proto::PutOrderRequest>,
    ) -> Result<Response<proto::PutOrderReply>, Status> {
        audit::about(request.get_ref());
        let request = request.into_inner();
        let order = wire::order(request.order)?;
        tracing::info!(scope = %order.scope, who = order.who, reason = order.reason, "order");
        let revision = self.written("PutOrder", Ask::PutOrder { term: Term(request.term), order }).await?;
        Ok(Response::new(proto::PutOrderReply { revision }))
    }

    type BackupStream = Pin<Box<dyn Stream<Item = Result<proto::BackupChunk, Status>> + Send>>;

    /// One answer of the driver: a ledger between two commits, while others go on.
    async fn backup(&self, _: Request<proto::BackupRequest>) -> Result<Response<Self::BackupStream>, Status> {
        let ledger = self.handle.read().await.map_err(wire::stopped)?;
        let file = backup::encode(&ledger, now_unix_ms()).map_err(|error| Status::internal(error.to_string()))?;
        tracing::info!(revision = ledger.revision.0, bytes = file.len(), "a copy of the ledger is taken");
        let chunks: Vec<_> =
            file.chunks(CHUNK).map(|chunk| Ok(proto::BackupChunk { content: chunk.to_vec() })).collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(chunks))))
    }

    async fn clear_order(
        &self,
        request: Request<proto::ClearOrderRequest>,
    ) -> Result<Response<proto::ClearOrderReply>, Status> {
        audit::about(request.get_ref());
        let request = request.into_inner();
        let ask = Ask::ClearOrder { term: Term(request.term), scope: field("scope", &request.scope)? };
        let revision = self.written("ClearOrder", ask).await?;
        Ok(Response::new(proto::ClearOrderReply { revision }))
    }

    async fn get_tables(&self, _: Request<proto::GetTablesRequest>) -> Result<Response<proto::Tables>, Status> {
        let ledger = self.handle.read().await.map_err(wire::stopped)?;
        Ok(Response::new(wire::tables(&ledger)))
    }

    type WatchTablesStream = Pin<Box<dyn Stream<Item = Result<proto::Tables, Status>> + Send>>;

    async fn watch_tables(
        &self,
        _: Request<proto::WatchTablesRequest>,
    ) -> Result<Response<Self::WatchTablesStream>, Status> {
        let tables = self.handle.watch().await.map_err(|error| wire::not_subscribed(&error))?;
        Ok(Response::new(signals::watch(tables, self.stop.clone())))
    }

    async fn put_arrangement(
        &self,
        request: Request<proto::PutArrangementRequest>,
    ) -> Result<Response<proto::TablesReply>, Status> {
        self.signal("PutArrangement", request, signals::put_arrangement).await
    }

    async fn ask_target(
        &self,
        request: Request<proto::AskTargetRequest>,
    ) -> Result<Response<proto::AskTargetReply>, Status> {
        let ledger = self.handle.read().await.map_err(wire::stopped)?;
        Ok(Response::new(signals::ask_target(&ledger.shared.tables, request.get_ref())?))
    }

    async fn function_restored(
        &self,
        request: Request<proto::FunctionRestoredRequest>,
    ) -> Result<Response<proto::TablesReply>, Status> {
        self.signal("FunctionRestored", request, signals::function_restored).await
    }

    async fn target_verdict(
        &self,
        request: Request<proto::TargetVerdictRequest>,
    ) -> Result<Response<proto::TablesReply>, Status> {
        self.signal("TargetVerdict", request, signals::target_verdict).await
    }

    async fn put_claims(
        &self,
        request: Request<proto::PutClaimsRequest>,
    ) -> Result<Response<proto::TablesReply>, Status> {
        self.signal("PutClaims", request, signals::put_claims).await
    }

    async fn moved_to(&self, request: Request<proto::MovedToRequest>) -> Result<Response<proto::TablesReply>, Status> {
        self.signal("MovedTo", request, signals::moved_to).await
    }

    async fn found(&self, request: Request<proto::FoundRequest>) -> Result<Response<proto::TablesReply>, Status> {
        self.signal("Found", request, signals::found).await
    }

    async fn begin_transition(
        &self,
        request: Request<proto::BeginTransitionRequest>,
    ) -> Result<Response<proto::TransitionReply>, Status> {
        self.transition("BeginTransition", request, signals::begin_transition).await
    }

    async fn take_transition(
        &self,
        request: Request<proto::TakeTransitionRequest>,
    ) -> Result<Response<proto::TransitionReply>, Status> {
        self.transition("TakeTransition", request, |request| Ok(signals::take_transition(request))).await
    }

    async fn put_step(&self, request: Request<proto::PutStepRequest>) -> Result<Response<proto::TablesReply>, Status> {
        self.signal("PutStep", request, |request| signals::put_step(&request, now_unix_ms())).await
    }

    async fn end_transition(
        &self,
        request: Request<proto::EndTransitionRequest>,
    ) -> Result<Response<proto::TablesReply>, Status> {
        self.signal("EndTransition", request, signals::end_transition).await
    }
}

/// Bytes of a copy in one message, far below the limit of any client.
const CHUNK: usize = 256 << 10;

type Sender = mpsc::Sender<Result<proto::Change, Status>>;

/// One subscriber's task: past changes, then live ones, then why no more.
async fn feed(subscription: Subscription, sender: Sender, mut stop: watch::Receiver<bool>) {
    let Subscription { past, mut live } = subscription;
    let end = async {
        for change in past {
            deliver(&change, &sender).await?;
        }
        loop {
            match live.recv().await {
                Ok(change) => deliver(&change, &sender).await?,
                Err(RecvError::Lagged(missed)) => {
                    let text =
                        format!("{missed} changes behind: read faster, and subscribe again from the last revision");
                    return Err(Some(Status::resource_exhausted(text)));
                }
                Err(RecvError::Closed) => return Err(Some(wire::stopped(crate::driver::Stopped))),
            }
        }
    };
    let end: Result<(), Option<Status>> = tokio::select! {
        end = end => end,
        () = sender.closed() => return,
        _ = stop.wait_for(|stop| *stop) => Err(Some(wire::stopped(crate::driver::Stopped))),
    };
    if let Err(Some(status)) = end {
        // Not waited for when SIF stops: a subscriber that does not read must not delay it.
        let _ = tokio::time::timeout(Duration::from_millis(100), sender.send(Err(status))).await;
    }
}

/// `Err(None)`: the subscriber is gone.
async fn deliver(change: &kage_sif_core::Stamped, sender: &Sender) -> Result<(), Option<Status>> {
    match wire::change(change).map_err(Some)? {
        Some(change) => sender.send(Ok(change)).await.map_err(|_| None),
        None => Ok(()),
    }
}
