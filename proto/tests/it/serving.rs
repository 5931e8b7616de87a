//! What a server serves, and how it stops.

use crate::lab::{Cluster, serve};
use kage_proto::{
    agent::v1::{BarRequest, GetVoterStateRequest, voter_client::VoterClient},
    channel::{ChannelError, Credentials, Options, channel},
    coordinator::v1::{AgentMessage, coordinator_message::Message, lease_client::LeaseClient},
    roles::Role,
    server::{Config, Security, Server, ServerError},
    tls::Expected,
};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Code, transport::Channel};

#[tokio::test]
async fn a_stream_knows_its_agent_and_is_cut_at_the_stop() {
    let cluster = Cluster::new();
    let mut running = cluster.serve(Role::Coordinator, "c").await;
    let channel = cluster.channel(&running, Role::Agent, "rs7", Role::Coordinator);
    let (ask, asks) = mpsc::channel(1);
    let mut answers = LeaseClient::new(channel).attend(ReceiverStream::new(asks)).await.expect("attend").into_inner();
    ask.send(AgentMessage::default()).await.expect("send");
    let answer = answers.next().await.expect("answer").expect("answer");
    assert!(matches!(answer.message, Some(Message::Assignment(assignment)) if assignment.vips == ["rs7"]));

    let begun = Instant::now();
    running.stop();
    (&mut running.task).await.expect("task").expect("served");
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

async fn reflected(channel: Channel) -> Vec<String> {
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let ask = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = ServerReflectionClient::new(channel)
        .server_reflection_info(tokio_stream::once(ask))
        .await
        .expect("ask")
        .into_inner();
    let answer = answers.next().await.expect("answer").expect("answer");
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else { panic!("{answer:?}") };
    list.service.into_iter().map(|service| service.name).collect()
}

async fn reflected_alpha(channel: Channel) -> usize {
    use tonic_reflection::pb::v1alpha::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest,
    };
    let ask = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::FileContainingSymbol("kagemusha.agent.v1.Voter".to_owned())),
    };
    let mut answers = ServerReflectionClient::new(channel)
        .server_reflection_info(tokio_stream::once(ask))
        .await
        .expect("ask")
        .into_inner();
    answers.next().await.expect("answer").expect("answer").message_response.map_or(0, |_| 1)
}

#[tokio::test]
async fn reflection_and_health_answer_any_role() {
    use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
    let cluster = Cluster::new();
    let running = cluster.serve(Role::Agent, "rs1").await;
    let channel = cluster.channel(&running, Role::Viewer, "v", Role::Agent);
    let services = reflected(channel.clone()).await;
    for service in ["kagemusha.agent.v1.Voter", "kagemusha.coordinator.v1.Lease", "grpc.health.v1.Health"] {
        assert!(services.iter().any(|name| name == service), "{service} of {services:?}");
    }
    assert!(!services.iter().any(|name| name == "kagemusha.sif.v1.Sif"), "not served here: {services:?}");
    assert_eq!(reflected_alpha(channel.clone()).await, 1);
    let request = HealthCheckRequest { service: "kagemusha.agent.v1.Voter".to_owned() };
    let reply = HealthClient::new(channel).check(request).await.expect("health").into_inner();
    assert_eq!(reply.status(), ServingStatus::Serving);
}

#[tokio::test]
async fn plaintext_is_for_loopback_and_an_operator() {
    let open = Config::new(([0, 0, 0, 0], 0).into(), Security::PlaintextLoopback);
    let error = Server::bind(&open).await.expect_err("refused");
    assert!(matches!(error, ServerError::PlaintextNotLoopback(_)), "{error}");
    assert!(error.to_string().contains("kagectl pki issue"), "{error}");

    let running = serve(&Config::new(([127, 0, 0, 1], 0).into(), Security::PlaintextLoopback)).await;
    let to = |address: &str| {
        channel(address, &Credentials::PlaintextLoopback, Expected::role(Role::Agent), &Options::default())
    };
    let mut client = VoterClient::new(to(&running.address.to_string()).expect("channel"));
    client.get_voter_state(GetVoterStateRequest {}).await.expect("an operator may look");
    let status = client.bar(BarRequest::default()).await.expect_err("for the coordinator");
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(matches!(to("10.0.0.1:7700"), Err(ChannelError::PlaintextNotLoopback(_))));
    for bad in ["", "10.0.0.1", "a b:1", "127.0.0.1:1/x", ":7700", "127.0.0.1:99999"] {
        assert!(matches!(to(bad), Err(ChannelError::Address(_))), "{bad}");
    }
}

#[tokio::test]
async fn a_dead_address_is_named() {
    let cluster = Cluster::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address").to_string();
    drop(listener);
    let credentials = cluster.credentials(Role::Operator, "o");
    let channel = channel(&address, &credentials, Expected::role(Role::Agent), &Options::default()).expect("channel");
    let status = VoterClient::new(channel).get_voter_state(GetVoterStateRequest {}).await.expect_err("dead");
    assert_eq!(status.code(), Code::Unavailable);
    let text = kage_proto::channel::reason(&status);
    assert!(text.contains(&format!("can't connect to {address}: Connection refused")), "{text}");
}

#[tokio::test]
async fn a_server_that_stops_answering_is_noticed() {
    let cluster = Cluster::new();
    let running = cluster.serve(Role::Coordinator, "c").await;
    let proxy = crate::serving::stalling_proxy(running.address).await;
    let credentials = cluster.credentials(Role::Agent, "rs1");
    let options = Options::noticing_within(Duration::from_millis(400));
    let channel = channel(&proxy.0, &credentials, Expected::role(Role::Coordinator), &options).expect("channel");
    let (ask, asks) = mpsc::channel(1);
    let mut answers = LeaseClient::new(channel).attend(ReceiverStream::new(asks)).await.expect("attend").into_inner();
    ask.send(AgentMessage::default()).await.expect("send");
    answers.next().await.expect("answer").expect("answer");
    let begun = Instant::now();
    proxy.1.send(()).expect("stall");
    let end = tokio::time::timeout(Duration::from_secs(5), answers.next()).await.expect("noticed");
    assert!(matches!(end, Some(Err(_))), "{end:?}");
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

/// Forwards bytes until told to stall; then it keeps the connection and forwards nothing.
async fn stalling_proxy(to: std::net::SocketAddr) -> (String, tokio::sync::oneshot::Sender<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address").to_string();
    let (stall, stalled) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.expect("accept");
        let mut server = tokio::net::TcpStream::connect(to).await.expect("connect");
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
            _ = stalled => std::future::pending().await,
        }
    });
    (address, stall)
}
