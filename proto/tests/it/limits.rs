//! What is too large, too much at once or too often: refused in words, audited, and the rest goes on.

use crate::lab::{Cluster, audited};
use kage_proto::{
    agent::v1::{BarRequest, GetVoterStateRequest, voter_client::VoterClient},
    coordinator::v1::{AgentMessage, Hello, agent_message::Message, lease_client::LeaseClient},
    limits::{MAX_MESSAGE_BYTES, Rate},
    roles::Role,
};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::Code;

#[tokio::test]
async fn a_message_too_large_is_refused_in_words() {
    let cluster = Cluster::new();
    let running = cluster.serve(Role::Agent, "rs1").await;
    let channel = cluster.channel(&running, Role::Coordinator, "large", Role::Agent);
    let mut client = VoterClient::new(channel.clone());
    let refused = client.bar(BarRequest { vip: "x".repeat(MAX_MESSAGE_BYTES + 1), ..BarRequest::default() }).await;
    let refused = refused.expect_err("too large");
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("larger than this call takes"), "{refused}");
    audited(&["coordinator large", "Voter/Bar", "failed", "larger than this call takes"]).await;
    client.bar(BarRequest::default()).await.expect("the connection goes on");
    audited(&["coordinator large", "Voter/Bar", "done", "took_ms"]).await;

    // Within a stream.
    let channel = cluster.channel(&running, Role::Agent, "rs9", Role::Agent);
    let (messages, said) = mpsc::channel(1);
    let mut answers = LeaseClient::new(channel).attend(ReceiverStream::new(said)).await.expect("attend").into_inner();
    let hello = Hello { version: "x".repeat(MAX_MESSAGE_BYTES + 1), ..Hello::default() };
    messages.send(AgentMessage { message: Some(Message::Hello(hello)) }).await.expect("send");
    let status = answers.next().await.expect("answer").expect_err("too large");
    assert!(kage_proto::too_large(&status).is_some_and(|said| said.code() == Code::ResourceExhausted), "{status}");
}

#[tokio::test]
async fn too_many_calls_on_a_connection_are_refused_and_the_others_go_on() {
    let cluster = Cluster::new();
    let running = cluster.serve_with(Role::Coordinator, "c", |config| config.limits.calls_per_connection = 2).await;
    let mut client = LeaseClient::new(cluster.channel(&running, Role::Agent, "rs3", Role::Coordinator));
    let mut streams = Vec::new();
    for _ in 0..2 {
        let (messages, said) = mpsc::channel(1);
        let answers = client.attend(ReceiverStream::new(said)).await.expect("attend").into_inner();
        streams.push((messages, answers));
    }
    let refused = client.attend(tokio_stream::empty()).await.expect_err("a third");
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("2 calls at a time"), "{refused}");
    audited(&["agent rs3", "Lease/Attend", "refused", "calls at a time"]).await;
    let (messages, answers) = &mut streams[0];
    messages.send(AgentMessage::default()).await.expect("send");
    answers.next().await.expect("answer").expect("it goes on");
    // Another connection has its own.
    let mut other = LeaseClient::new(cluster.channel(&running, Role::Agent, "rs4", Role::Coordinator));
    other.attend(tokio_stream::empty()).await.expect("attend");
    drop(streams.pop());
    let begun = Instant::now();
    while let Err(status) = client.attend(tokio_stream::empty()).await {
        assert!(begun.elapsed() < Duration::from_secs(5), "{status}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn one_who_asks_too_often_is_refused_and_no_other() {
    let cluster = Cluster::new();
    let often = |config: &mut kage_proto::server::Config| config.limits.looks = Rate { per_second: 1, burst: 5 };
    let running = cluster.serve_with(Role::Agent, "rs1", often).await;
    let mut wild = VoterClient::new(cluster.channel(&running, Role::Operator, "wild", Role::Agent));
    let mut answered = 0;
    let refused = loop {
        match wild.get_voter_state(GetVoterStateRequest {}).await {
            Ok(_) => answered += 1,
            Err(status) => break status,
        }
        assert!(answered < 20, "never refused");
    };
    assert!(answered >= 5, "{answered}");
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("too many calls of operator wild"), "{refused}");
    audited(&["operator wild", "GetVoterState", "refused", "too many calls"]).await;
    let calm = cluster.channel(&running, Role::Operator, "calm", Role::Agent);
    VoterClient::new(calm).get_voter_state(GetVoterStateRequest {}).await.expect("another operator");
    let mut coordinator = VoterClient::new(cluster.channel(&running, Role::Coordinator, "c", Role::Agent));
    for _ in 0..30 {
        coordinator.bar(BarRequest::default()).await.expect("a recovery does not wait");
    }
}
