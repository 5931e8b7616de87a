//! The shared tables of thesis ch. 4: SIF is told signals, and followed as it changes them.

use crate::{
    driver::Handle,
    sif::{Sif, failure, with_deadline},
};
use kage_coordinator_core::{Event, JobId, JobResult, arrangement::Arrangement};
use kage_proto::{
    channel::reason,
    sif::v1::{
        Claim as WireClaim, FunctionRestoredRequest, GetTablesRequest, MovedToRequest, PutArrangementRequest,
        PutClaimsRequest, TablesReply, TargetVerdictRequest, WatchTablesRequest, sif_client::SifClient,
    },
};
use kage_types::{AgentId, Claim, DomainName, Tables, TargetName, Term};
use std::{collections::BTreeSet, time::Duration};
use tonic::{Response, Status, transport::Channel};

/// Between two tries to follow the tables; twice as long after each that failed, but never longer than the second.
const AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));

type Client = SifClient<Channel>;

impl Sif {
    /// End the job with what this call gives.
    fn signal<F>(&self, job: JobId, call: impl FnOnce(Client) -> F)
    where
        F: Future<Output = Result<Response<TablesReply>, Status>> + Send + 'static,
    {
        let (handle, call) = (self.handle.clone(), call(self.client.clone()));
        tokio::spawn(async move {
            let result = match call.await {
                Ok(_) => JobResult::Done,
                Err(status) => failure(&status),
            };
            handle.ended(job, result).await;
        });
    }

    /// What the configuration says there is.
    pub fn put_arrangement(&self, job: JobId, term: Term, arrangement: &Arrangement) {
        let request = PutArrangementRequest {
            term: term.0,
            operation: arrangement.operation.iter().map(Into::into).collect(),
            real_servers: arrangement.real_servers.iter().map(ToString::to_string).collect(),
            groups: arrangement.groups.iter().map(ToString::to_string).collect(),
        };
        self.signal(job, |mut client| async move { client.put_arrangement(with_deadline(request)).await });
    }

    /// A4.
    pub fn function_restored(&self, job: JobId, term: Term, place: DomainName, backup: DomainName, host: AgentId) {
        let request =
            FunctionRestoredRequest { term: term.0, target: place.into(), backup: backup.into(), host: host.into() };
        self.signal(job, |mut client| async move { client.function_restored(with_deadline(request)).await });
    }

    /// A5.
    pub fn target_verdict(&self, job: JobId, term: Term, place: DomainName, recovered: bool, host: AgentId) {
        let request = TargetVerdictRequest { term: term.0, target: place.into(), recovered, host: host.into() };
        self.signal(job, |mut client| async move { client.target_verdict(with_deadline(request)).await });
    }

    /// What a recovery needs, all of it.
    pub fn put_claims(&self, job: JobId, term: Term, target: TargetName, why: String, claims: &BTreeSet<Claim>) {
        let claims = claims.iter().map(WireClaim::from).collect();
        let request = PutClaimsRequest { term: term.0, by: target.into(), why, claims };
        self.signal(job, |mut client| async move { client.put_claims(with_deadline(request)).await });
    }

    /// A virtual server is there, and does not run on those.
    pub fn moved_to(&self, job: JobId, term: Term, vm: DomainName, host: AgentId, not_on: &BTreeSet<AgentId>) {
        let not_on = not_on.iter().map(ToString::to_string).collect();
        let request = MovedToRequest { term: term.0, vm: vm.into(), host: host.into(), not_on };
        self.signal(job, |mut client| async move { client.moved_to(with_deadline(request)).await });
    }

    /// From now on the core is told of the tables: before each term, and after each change. Once is enough.
    pub fn follow_tables(&self) {
        if self.follows_tables.send_replace(true) {
            return;
        }
        tokio::spawn(follow(self.client.clone(), self.handle.clone()));
    }

    /// Before a term: nothing is moved by what the tables no longer say. Where they can't be read the term is acquired all
    /// the same, as leases are worth more; virtual servers are left as they are until they have been read.
    pub(crate) async fn tell_tables(&mut self) {
        if !*self.follows_tables.borrow() {
            return;
        }
        let read = self.client.get_tables(with_deadline(GetTablesRequest {})).await;
        match read.and_then(|reply| Ok(Tables::try_from(&reply.into_inner())?)) {
            Ok(tables) => self.handle.event(Event::TablesRead { tables: Box::new(tables) }).await,
            Err(status) => tracing::warn!(reason = reason(&status), "SIF's shared tables could not be read"),
        }
    }
}

/// Whole tables, now and after each change, for ever.
async fn follow(mut client: Client, handle: Handle) {
    let mut wait = AGAIN.0;
    loop {
        let ended = follow_once(&mut client, &handle, &mut wait).await;
        tracing::debug!(reason = reason(&ended), "SIF's shared tables are not followed for {wait:?}");
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(AGAIN.1);
    }
}

/// Until the stream ends, and why it did.
async fn follow_once(client: &mut Client, handle: &Handle, wait: &mut Duration) -> Status {
    let mut stream = match client.watch_tables(WatchTablesRequest {}).await {
        Ok(stream) => stream.into_inner(),
        Err(status) => return status,
    };
    loop {
        let tables = match stream.message().await {
            Ok(Some(tables)) => tables,
            Ok(None) => return Status::unavailable("SIF ended the stream"),
            Err(status) => return status,
        };
        match Tables::try_from(&tables) {
            Ok(tables) => {
                *wait = AGAIN.0;
                handle.event(Event::TablesRead { tables: Box::new(tables) }).await;
            }
            Err(error) => return error.into(),
        }
    }
}
