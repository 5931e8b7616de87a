//! The coordinator, and in what words it can't be reached.

use crate::{Failure, Global};
use kage_proto::{
    channel::{Credentials, Options, channel, reason},
    coordinator::v1::{coordinator_client::CoordinatorClient, power_saving_client::PowerSavingClient},
    roles::Role,
    tls::{Expected, Pki},
};
use std::{error::Error as _, time::Duration};
use tonic::{Code, Response, Status, transport::Channel};

/// A coordinator to ask.
pub struct Coordinator {
    channel: Channel,
    address: String,
    timeout: Duration,
}

impl Coordinator {
    pub fn new(global: &Global) -> Result<Self, Failure> {
        let credentials =
            if global.plaintext { Credentials::PlaintextLoopback } else { Credentials::Tls(Pki::load(&global.pki)?) };
        let options = Options { connect_timeout: global.timeout.min(Duration::from_secs(5)), ..Options::default() };
        let channel = channel(&global.coordinator, &credentials, Expected::role(Role::Coordinator), &options)?;
        Ok(Self { channel, address: global.coordinator.clone(), timeout: global.timeout })
    }

    /// One question, one answer (or the beginning of a stream), within the time limit.
    pub async fn ask<T>(
        &self,
        question: impl AsyncFnOnce(CoordinatorClient<Channel>) -> Result<Response<T>, Status>,
    ) -> Result<T, Failure> {
        self.within(question(CoordinatorClient::new(self.channel.clone()))).await
    }

    /// The same of its power saving.
    pub async fn ask_saving<T>(
        &self,
        question: impl AsyncFnOnce(PowerSavingClient<Channel>) -> Result<Response<T>, Status>,
    ) -> Result<T, Failure> {
        self.within(question(PowerSavingClient::new(self.channel.clone()))).await
    }

    async fn within<T>(&self, answer: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Failure> {
        match tokio::time::timeout(self.timeout, answer).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(self.explain(&status)),
            Err(_) => Err(self.unreachable(&format!("no answer within {:?}", self.timeout))),
        }
    }

    /// What a status means to the operator. One with a source was made here, by the connection; one without was sent.
    pub fn explain(&self, status: &Status) -> Failure {
        if status.source().is_some() {
            return self.unreachable(&reason(status));
        }
        let text = if status.message().is_empty() { status.code().to_string() } else { status.message().to_owned() };
        Failure::Failed(match status.code() {
            Code::PermissionDenied => format!("refused: {text}; use the certificate of another role with --pki DIR"),
            Code::Unimplemented => format!(
                "refused: {text}; is the coordinator of another version than this kagectl? Where power saving runs alone, \
                 only `kagectl pss` is served"
            ),
            Code::Ok
            | Code::Cancelled
            | Code::Unknown
            | Code::InvalidArgument
            | Code::DeadlineExceeded
            | Code::NotFound
            | Code::AlreadyExists
            | Code::ResourceExhausted
            | Code::FailedPrecondition
            | Code::Aborted
            | Code::OutOfRange
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
            | Code::Unauthenticated => text,
        })
    }

    fn unreachable(&self, why: &str) -> Failure {
        let address = &self.address;
        Failure::Unreachable(format!(
            "can't ask the coordinator at {address}: {why}\n\
             Next: is kage-coordinator running there (`systemctl status kage-coordinator`)? Is the address right \
             (--coordinator, KAGE_COORDINATOR)? Virtual IPs are served on without it.",
        ))
    }
}
