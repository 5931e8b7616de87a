//! SIF's client: terms, epochs, the tables. Every call has a deadline and ends as one event.

use crate::{
    agents::Agents,
    certificates::Certificates,
    clock::{now, unix_ms},
    driver::Handle,
};
use kage_coordinator_core::{Cause, Event, JobId, JobResult, VipRow, config::Cluster};
use kage_proto::{
    channel::{ChannelError, Credentials, Options, channel, reason},
    roles::Role,
    sif::v1::{
        AcquireTermRequest, AdvanceEpochRequest, ClearOrderRequest, EpochReport, GetLedgerRequest, Ledger, OrderRow,
        PutOrderRequest, PutTroubleRequest, RenewTermReply, RenewTermRequest, ReportVoterRequest, SetLongLeaseRequest,
        sif_client::SifClient,
    },
    tls::{Expected, Pki},
};
use kage_types::{AgentId, DomainName, Epoch, Order, OrderScope, TargetName, Term, Vip};
use std::time::Duration;
use tokio::sync::watch;
use tonic::{Code, Request, Status, transport::Channel};

/// A commit takes milliseconds; a SIF that needs longer than this is away.
const DEADLINE: Duration = Duration::from_millis(1500);

/// The way to SIF.
#[derive(Clone)]
pub struct Sif {
    pub(crate) client: SifClient<Channel>,
    pub(crate) handle: Handle,
    agents: Agents,
    reporters: Vec<AgentId>,
    certificates: Certificates,
    /// Is the core told of the shared tables?
    pub(crate) follows_tables: watch::Sender<bool>,
}

pub(crate) fn with_deadline<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(DEADLINE);
    request
}

/// Certainly not done, or perhaps done?
pub(crate) fn failure(status: &Status) -> JobResult {
    let refused = [
        Code::FailedPrecondition,
        Code::Aborted,
        Code::InvalidArgument,
        Code::NotFound,
        Code::ResourceExhausted,
        Code::PermissionDenied,
        Code::Unauthenticated,
    ];
    if refused.contains(&status.code()) {
        JobResult::Failed(reason(status))
    } else {
        JobResult::Unknown(reason(status))
    }
}

pub(crate) fn rows(ledger: &Ledger) -> Vec<VipRow> {
    ledger
        .vips
        .iter()
        .filter_map(|row| {
            Some(VipRow {
                vip: row.vip.parse().ok()?,
                epoch: Epoch(row.epoch),
                owner: row.owner.parse().ok()?,
                domain: if row.domain.is_empty() { None } else { Some(row.domain.parse().ok()?) },
                cause: row.cause.parse().ok()?,
                long_lease: row.long_lease,
            })
        })
        .collect()
}

/// A row that can't be read is no order that could be obeyed; SIF checks them when they are written.
pub(crate) fn orders(ledger: &Ledger) -> Vec<Order> {
    let order = |row: &OrderRow| {
        Some(Order {
            scope: row.scope.parse().ok()?,
            reason: row.reason.clone(),
            who: row.who.clone(),
            since_unix_ms: row.since_unix_ms,
            until_unix_ms: row.until_unix_ms,
        })
    };
    ledger.orders.iter().filter_map(order).collect()
}

/// Targets with verdict down.
fn given_up(ledger: &Ledger) -> Vec<(TargetName, String)> {
    let down = ledger.troubles.iter().filter(|row| row.stage == "down");
    down.filter_map(|row| Some((row.target.parse().ok()?, row.detail.clone()))).collect()
}

impl Sif {
    /// A channel to the SIF of the configuration.
    ///
    /// # Errors
    /// An address or certificate that can't be used.
    pub fn new(
        cluster: &Cluster,
        pki: &Pki,
        handle: Handle,
        agents: Agents,
        certificates: Certificates,
    ) -> Result<Self, ChannelError> {
        let options = Options::noticing_within(Duration::from_secs(2));
        let channel =
            channel(&cluster.sif.to_string(), &Credentials::Tls(pki.clone()), Expected::role(Role::Sif), &options)?;
        let voters: Vec<AgentId> = cluster.voters().cloned().collect();
        let reporters = if voters.len() >= 3 { voters } else { cluster.agents.keys().cloned().collect() };
        let follows_tables = watch::Sender::new(false);
        Ok(Self { client: SifClient::new(channel), handle, agents, reporters, certificates, follows_tables })
    }

    /// A new term; a new or restored ledger is told first what a majority has stored (rule 7).
    pub fn acquire_term(&self) {
        let mut this = self.clone();
        tokio::spawn(async move {
            let event = match this.try_acquire().await {
                Ok(event) => event,
                Err(status) if status.message().contains("reports-needed") => {
                    this.report_voters().await;
                    this.try_acquire().await.unwrap_or_else(|status| Event::TermFailed { reason: reason(&status) })
                }
                Err(status) => Event::TermFailed { reason: reason(&status) },
            };
            this.handle.event(event).await;
        });
    }

    async fn try_acquire(&mut self) -> Result<Event, Status> {
        let sent = now();
        let request = AcquireTermRequest { coordinator: "coordinator".into() };
        let reply = self.client.acquire_term(with_deadline(request)).await?.into_inner();
        let ledger = reply.ledger.unwrap_or_default();
        // Before the term: nothing is done against an order that stands.
        let standing = Event::OrdersRead { orders: orders(&ledger), now_unix_ms: unix_ms() };
        self.handle.event(standing).await;
        self.handle.event(Event::TroublesRead { down: given_up(&ledger) }).await;
        self.tell_tables().await;
        let rows = rows(&ledger);
        let length = Duration::from_millis(reply.length_ms.into());
        Ok(Event::TermAcquired { term: Term(reply.term), sent, length, rows })
    }

    async fn report_voters(&mut self) {
        for reporter in self.reporters.clone() {
            let Ok(state) = self.agents.voter_state(&reporter).await else { continue };
            let epochs =
                state.highest_epochs.into_iter().map(|item| EpochReport { vip: item.vip, epoch: item.epoch }).collect();
            let request =
                ReportVoterRequest { reporter: reporter.to_string(), highest_term: state.highest_term, epochs };
            if let Err(status) = self.client.report_voter(with_deadline(request)).await {
                tracing::warn!(%reporter, reason = reason(&status), "SIF did not take a voter's report");
            }
        }
    }

    /// Prolong the term.
    pub fn renew_term(&self, term: Term) {
        let mut this = self.clone();
        tokio::spawn(async move {
            let sent = now();
            let event = match this.client.renew_term(with_deadline(RenewTermRequest { term: term.0 })).await {
                Ok(reply) => {
                    let RenewTermReply { length_ms, certificate_ends_unix_s } = reply.into_inner();
                    if certificate_ends_unix_s > 0 {
                        this.certificates.told("sif".to_owned(), certificate_ends_unix_s);
                    }
                    let length = Duration::from_millis(length_ms.into());
                    Event::TermRenewed { term, sent, length }
                }
                Err(status) if status.code() == Code::FailedPrecondition => {
                    Event::TermLost { term, reason: reason(&status) }
                }
                Err(status) => Event::TermFailed { reason: reason(&status) },
            };
            this.handle.event(event).await;
        });
    }

    /// Read all VIP rows again.
    pub fn read_ledger(&self) {
        let mut this = self.clone();
        tokio::spawn(async move {
            if let Ok(reply) = this.client.get_ledger(with_deadline(GetLedgerRequest {})).await {
                this.handle.event(Event::LedgerRead { rows: rows(&reply.into_inner()) }).await;
            }
        });
    }

    /// Change an owner.
    #[allow(clippy::too_many_arguments)]
    pub fn advance_epoch(
        &self,
        job: JobId,
        term: Term,
        vip: Vip,
        expected: Epoch,
        owner: AgentId,
        domain: Option<DomainName>,
        target: TargetName,
        cause: Cause,
    ) {
        let mut this = self.clone();
        let request = AdvanceEpochRequest {
            term: term.0,
            vip: vip.to_string(),
            expected_epoch: expected.0,
            owner: owner.into(),
            domain: domain.map(String::from).unwrap_or_default(),
            target: target.into(),
            cause: cause.as_str().into(),
        };
        tokio::spawn(async move {
            let result = match this.client.advance_epoch(with_deadline(request)).await {
                Ok(reply) => JobResult::Epoch(Epoch(reply.into_inner().epoch)),
                Err(status) => failure(&status),
            };
            this.handle.ended(job, result).await;
        });
    }

    /// Note a long lease.
    pub fn set_long_lease(&self, job: JobId, term: Term, vip: Vip, outstanding: bool) {
        let mut this = self.clone();
        tokio::spawn(async move {
            let request = SetLongLeaseRequest { term: term.0, vip: vip.to_string(), outstanding, sequence: job.0 };
            let result = match this.client.set_long_lease(with_deadline(request)).await {
                Ok(_) => JobResult::Done,
                Err(status) => failure(&status),
            };
            this.handle.ended(job, result).await;
        });
    }

    /// Note an operator's order.
    pub fn put_order(&self, job: JobId, term: Term, order: Order) {
        let mut this = self.clone();
        let row = OrderRow {
            scope: order.scope.to_string(),
            reason: order.reason,
            who: order.who,
            since_unix_ms: order.since_unix_ms,
            until_unix_ms: order.until_unix_ms,
        };
        tokio::spawn(async move {
            let request = PutOrderRequest { term: term.0, order: Some(row) };
            let result = match this.client.put_order(with_deadline(request)).await {
                Ok(_) => JobResult::Done,
                Err(status) => failure(&status),
            };
            this.handle.ended(job, result).await;
        });
    }

    /// It is lifted, or has ended.
    pub fn clear_order(&self, job: JobId, term: Term, scope: &OrderScope) {
        let mut this = self.clone();
        let request = ClearOrderRequest { term: term.0, scope: scope.to_string() };
        tokio::spawn(async move {
            let result = match this.client.clear_order(with_deadline(request)).await {
                Ok(_) => JobResult::Done,
                Err(status) => failure(&status),
            };
            this.handle.ended(job, result).await;
        });
    }

    /// Thesis: Trouble file.
    pub fn put_trouble(&self, term: Term, target: TargetName, stage: String, detail: String) {
        let mut this = self.clone();
        tokio::spawn(async move {
            let request = PutTroubleRequest { term: term.0, target: target.into(), stage, detail };
            if let Err(status) = this.client.put_trouble(with_deadline(request)).await {
                tracing::warn!(reason = reason(&status), "SIF's Trouble table was not written");
            }
        });
    }
}
