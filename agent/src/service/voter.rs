//! Consents among agents (safety rule 6).

use super::{Reply, invalid};
use crate::{driver::Handle, session::voter_state, wire};
use kage_proto::{
    agent::v1::{BarReply, BarRequest, GetVoterStateRequest, VoteReply, VoteRequest, VoterState, voter_server::Voter},
    audit,
    roles::Peer,
};
use kage_types::{Epoch, Term};
use std::time::Duration;
use tonic::{Request, Response, Status};

/// A disk that takes longer is as good as none.
const LIMIT: Duration = Duration::from_secs(5);

/// `kagemusha.agent.v1.Voter`.
#[derive(Clone)]
pub struct VoterService(pub Handle);

async fn within<T>(answer: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    tokio::time::timeout(LIMIT, answer).await.unwrap_or_else(|_| {
        Err(Status::deadline_exceeded(format!(
            "this voter has not answered within {LIMIT:?}: see its log and its disk"
        )))
    })
}

#[tonic::async_trait]
impl Voter for VoterService {
    async fn vote(&self, request: Request<VoteRequest>) -> Reply<VoteReply> {
        let from = Peer::of(&request)?.agent()?;
        let question = request.into_inner();
        let vips = wire::asks(&question.vips).map_err(invalid)?;
        within(self.0.vote(from, vips, question)).await.map(Response::new)
    }

    async fn bar(&self, request: Request<BarRequest>) -> Reply<BarReply> {
        audit::about(request.get_ref());
        let BarRequest { term, vip, floor } = request.into_inner();
        let vip = wire::vip(&vip).map_err(invalid)?;
        let age = within(self.0.bar(Term(term), vip, Epoch(floor))).await?;
        // Rounded down: an age that is too great would shorten a wait.
        let last_consent_age_ms = u64::try_from(age.as_millis()).unwrap_or(0);
        tracing::info!(%vip, floor, term, last_consent_age_ms, "barred");
        Ok(Response::new(BarReply { last_consent_age_ms }))
    }

    async fn get_voter_state(&self, _: Request<GetVoterStateRequest>) -> Reply<VoterState> {
        let (store, is_voter) = self.0.voter().await?;
        Ok(Response::new(voter_state(&store, is_voter)))
    }
}
