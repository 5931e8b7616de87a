//! Who is refused at a call.

use crate::{
    handshake::raw_config,
    lab::{Cluster, Running, audited},
};
use hyper_util::rt::TokioIo;
use kage_proto::{
    agent::v1::{
        BarRequest, GetFactsRequest, GetVoterStateRequest, agent_client::AgentClient, voter_client::VoterClient,
    },
    coordinator::v1::{MoveRequest, coordinator_client::CoordinatorClient},
    roles::Role,
};
use rustls::pki_types::ServerName;
use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::{
    Code,
    codegen::{Service, http::Uri},
    transport::{Channel, Endpoint},
};

#[derive(Clone)]
struct Anonymous {
    address: SocketAddr,
    tls: TlsConnector,
}

impl Service<Uri> for Anonymous {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;
    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn call(&mut self, _uri: Uri) -> Self::Future {
        let Self { address, tls } = self.clone();
        Box::pin(async move {
            let tcp = TcpStream::connect(address).await?;
            let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
            Ok(TokioIo::new(tls.connect(name, tcp).await?))
        })
    }
}

fn anonymous(cluster: &Cluster, running: &Running) -> Channel {
    let tls = TlsConnector::from(Arc::new(raw_config(cluster, None)));
    Endpoint::from_static("http://test").connect_with_connector_lazy(Anonymous { address: running.address, tls })
}

#[tokio::test]
async fn without_a_certificate_a_call_is_unauthenticated_and_audited() {
    let cluster = Cluster::new();
    let running = cluster.serve(Role::Agent, "nocert").await;
    let mut client = VoterClient::new(anonymous(&cluster, &running));
    let status = client.get_voter_state(GetVoterStateRequest {}).await.expect_err("refused");
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    assert!(status.message().contains("kagectl pki issue"), "{status:?}");
    audited(&["\"who\":\"anonymous\"", "Voter/GetVoterState", "\"outcome\":\"refused\""]).await;
}

#[tokio::test]
async fn a_viewer_may_not_move_and_is_audited() {
    let cluster = Cluster::new();
    let running = cluster.serve(Role::Coordinator, "c").await;
    let channel = cluster.channel(&running, Role::Viewer, "eve", Role::Coordinator);
    let request = MoveRequest { target: "mail1".into(), force: false };
    let status = CoordinatorClient::new(channel).failover(request).await.expect_err("refused");
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    audited(&["\"who\":\"viewer eve\"", "Coordinator/Failover", "\"outcome\":\"refused\"", "\"role\":\"viewer\""])
        .await;
}

#[tokio::test]
async fn an_agent_may_not_command_an_agent() {
    let cluster = Cluster::new();
    let running = cluster.serve(Role::Agent, "rs1").await;
    let channel = cluster.channel(&running, Role::Agent, "rs2", Role::Agent);
    let status = AgentClient::new(channel.clone()).get_facts(GetFactsRequest {}).await.expect_err("refused");
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    let status = VoterClient::new(channel).bar(BarRequest::default()).await.expect_err("refused");
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    audited(&["\"who\":\"agent rs2\"", "Agent/GetFacts", "\"outcome\":\"refused\""]).await;
}

#[tokio::test]
async fn a_change_that_is_allowed_is_audited_too() {
    let cluster = Cluster::new();
    let running = cluster.serve(Role::Agent, "rs1").await;
    let channel = cluster.channel(&running, Role::Coordinator, "audited", Role::Agent);
    VoterClient::new(channel).bar(BarRequest::default()).await.expect("allowed");
    audited(&["\"who\":\"coordinator audited\"", "Voter/Bar", "\"outcome\":\"allowed\"", "\"from\":\"127.0.0.1:"])
        .await;
}

#[tokio::test]
async fn a_handler_may_be_stricter() {
    let cluster = Cluster::new();
    let running = cluster.serve(Role::Agent, "rs1").await;
    let call = async |role| {
        let channel = cluster.channel(&running, role, "x", Role::Agent);
        VoterClient::new(channel).get_voter_state(GetVoterStateRequest {}).await.map_err(|status| status.code())
    };
    assert!(call(Role::Operator).await.is_ok());
    assert_eq!(call(Role::Viewer).await.err(), Some(Code::PermissionDenied));
}
