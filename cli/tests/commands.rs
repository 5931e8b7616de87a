//! The program itself against a coordinator of canned answers: what it prints and how it exits.

use kage_proto::{
    agent::v1::{ProbeReply, ProbedStep, probe_reply::Outcome},
    coordinator::v1::{
        AdoptReply, AdoptRequest, CharacteriseProgress, CharacteriseRequest, CheckReply, CheckRequest,
        ClearOrderRequest, CreateTokenReply, CreateTokenRequest, EndQuarantineReply, EndQuarantineRequest, Event,
        ExplainReply, ExplainRequest, GetCharacteristicsReply, GetCharacteristicsRequest, GetStatusRequest,
        MoveRequest, OrderReply, ProbeTargetReply, ProbeTargetRequest, ProbedService, PutOrderRequest, ReloadReply,
        ReloadRequest, Status, WatchEventsRequest,
        coordinator_server::{Coordinator, CoordinatorServer},
    },
    server::{Config, Security, Server},
    tls::Pki,
};
use std::{path::Path, pin::Pin, process::Output};
use tokio::process::Command;
use tokio_stream::Stream;
use tonic::{Request, Response};

struct Canned;

type Events = Pin<Box<dyn Stream<Item = Result<Event, tonic::Status>> + Send>>;

fn events(last: &str) -> Result<Response<Events>, tonic::Status> {
    let event =
        |seq, severity: &str| Event { seq, severity: severity.into(), text: "moved".into(), ..Event::default() };
    Ok(Response::new(Box::pin(tokio_stream::iter([Ok(event(1, "info")), Ok(event(2, last))]))))
}

#[tonic::async_trait]
impl Coordinator for Canned {
    type WatchEventsStream = Events;
    type FailoverStream = Events;
    type FailbackStream = Events;
    type CharacteriseStream = Pin<Box<dyn Stream<Item = Result<CharacteriseProgress, tonic::Status>> + Send>>;
    async fn get_status(&self, _: Request<GetStatusRequest>) -> Result<Response<Status>, tonic::Status> {
        Ok(Response::new(Status { profile: "normal".into(), term: 4, ..Status::default() }))
    }
    async fn watch_events(&self, _: Request<WatchEventsRequest>) -> Result<Response<Events>, tonic::Status> {
        events("info")
    }
    async fn failover(&self, request: Request<MoveRequest>) -> Result<Response<Events>, tonic::Status> {
        match request.into_inner().target.as_str() {
            "mail1" => events("info"),
            "web1" => events("alert"),
            other => Err(tonic::Status::not_found(format!("there is no target {other}"))),
        }
    }
    async fn failback(&self, _: Request<MoveRequest>) -> Result<Response<Events>, tonic::Status> {
        Ok(Response::new(Box::pin(tokio_stream::empty())))
    }
    async fn put_order(&self, request: Request<PutOrderRequest>) -> Result<Response<OrderReply>, tonic::Status> {
        let PutOrderRequest { scope, reason, for_ms } = request.into_inner();
        match scope.as_str() {
            "all" => Ok(Response::new(OrderReply { scope })),
            "mail1" => Ok(Response::new(OrderReply { scope: format!("target:mail1 {reason} {for_ms:?}") })),
            other => Err(tonic::Status::not_found(format!("there is neither a target nor an agent {other:?}"))),
        }
    }
    async fn clear_order(&self, request: Request<ClearOrderRequest>) -> Result<Response<OrderReply>, tonic::Status> {
        match request.into_inner().scope.as_str() {
            "all" => Err(tonic::Status::failed_precondition("the cluster is armed already")),
            name => Ok(Response::new(OrderReply { scope: format!("agent:{name}") })),
        }
    }
    async fn adopt(&self, _: Request<AdoptRequest>) -> Result<Response<AdoptReply>, tonic::Status> {
        Ok(Response::new(AdoptReply { findings: vec!["10.0.0.100 belongs to mail1 at epoch 4".into()] }))
    }
    async fn end_quarantine(
        &self,
        request: Request<EndQuarantineRequest>,
    ) -> Result<Response<EndQuarantineReply>, tonic::Status> {
        match request.into_inner().agent.as_str() {
            "rs1" => Ok(Response::new(EndQuarantineReply {})),
            other => Err(tonic::Status::failed_precondition(format!("{other} is not in quarantine"))),
        }
    }
    async fn check(&self, _: Request<CheckRequest>) -> Result<Response<CheckReply>, tonic::Status> {
        Ok(Response::new(CheckReply { report_json: "{}".into() }))
    }
    async fn probe_target(
        &self,
        request: Request<ProbeTargetRequest>,
    ) -> Result<Response<ProbeTargetReply>, tonic::Status> {
        let outcome = if request.into_inner().service == "smtp" { Outcome::Ok } else { Outcome::Ng };
        let step = ProbedStep { step: "connect".into(), outcome: outcome.into(), took_us: 1234, heard: String::new() };
        let reply = ProbeReply {
            outcome: outcome.into(),
            detail: "connect: connection refused".into(),
            took_ms: 1,
            steps: vec![step],
        };
        let service = ProbedService { service: "smtp".into(), reply: Some(reply), ..ProbedService::default() };
        Ok(Response::new(ProbeTargetReply { services: vec![service] }))
    }
    async fn reload(&self, request: Request<ReloadRequest>) -> Result<Response<ReloadReply>, tonic::Status> {
        if request.into_inner().force {
            return Err(tonic::Status::invalid_argument("nothing was changed: cluster.toml has faults:\n1: colour"));
        }
        Ok(Response::new(ReloadReply { changes: vec!["[[target]] web: added".into()], ..ReloadReply::default() }))
    }
    async fn characterise(
        &self,
        request: Request<CharacteriseRequest>,
    ) -> Result<Response<Self::CharacteriseStream>, tonic::Status> {
        let text = format!("Tna of {}", request.into_inner().target);
        Ok(Response::new(Box::pin(tokio_stream::iter([Ok(CharacteriseProgress { text })]))))
    }
    async fn get_characteristics(
        &self,
        _: Request<GetCharacteristicsRequest>,
    ) -> Result<Response<GetCharacteristicsReply>, tonic::Status> {
        Ok(Response::new(GetCharacteristicsReply { json: r#"{"targets":{}}"#.into() }))
    }
    async fn explain(&self, request: Request<ExplainRequest>) -> Result<Response<ExplainReply>, tonic::Status> {
        let ExplainRequest { name, at } = request.into_inner();
        let explanation_json = format!(
            "{{\"target\":\"{name}\",\"outcome\":\"quiet\",\"summary\":\"nothing happened {at}\",\"clock_ms\":1.5,\"lasted_ms\":null,\
             \"remarks\":[],\"entries\":[],\"moves\":[],\"rules\":[],\"earlier\":[]}}"
        );
        Ok(Response::new(ExplainReply { explanation_json }))
    }
    async fn create_token(
        &self,
        request: Request<CreateTokenRequest>,
    ) -> Result<Response<CreateTokenReply>, tonic::Status> {
        let CreateTokenRequest { name, role, addresses, valid_minutes } = request.into_inner();
        Ok(Response::new(CreateTokenReply { token: format!("{name} {role} {addresses:?} {valid_minutes}") }))
    }
}

async fn kagectl(dir: &Path, coordinator: &str, role: &str, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kagectl"))
        .current_dir(dir)
        .args(["--coordinator", coordinator, "--pki", &format!("pki/{role}")])
        .args(arguments)
        .output()
        .await
        .expect("run")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test]
async fn commands_against_a_coordinator() {
    let dir = tempfile::tempdir().expect("directory");
    let init = kagectl(dir.path(), "127.0.0.1:1", "operator", &["pki", "init", "--dir", "pki"]).await;
    assert!(init.status.success(), "{init:?}");
    let again = kagectl(dir.path(), "127.0.0.1:1", "operator", &["pki", "init", "--dir", "pki"]).await;
    assert_eq!(again.status.code(), Some(1), "{again:?}");

    let pki = Pki::load(&dir.path().join("pki/coordinator")).expect("pki");
    let server = Server::bind(&Config::new(([127, 0, 0, 1], 0).into(), Security::Tls(pki))).await.expect("bind");
    let address = server.address().to_string();
    tokio::spawn(server.add(CoordinatorServer::new(Canned)).run(std::future::pending()));
    let run = async |role: &str, arguments: &[&str]| kagectl(dir.path(), &address, role, arguments).await;

    let cases: [(&str, &[&str], i32, &str); 39] = [
        ("viewer", &["status"], 0, "profile normal, term 4 (NOT in authority)"),
        ("viewer", &["--json", "status"], 0, r#""term":4"#),
        ("viewer", &["events"], 0, "moved"),
        ("viewer", &["events", "--format", "json"], 0, r#""seq":1"#),
        ("viewer", &["failover", "mail1"], 1, "use the certificate of another role"),
        ("operator", &["failover", "mail1"], 0, "moved"),
        ("operator", &["failover", "web1"], 1, "the move of web1 failed"),
        ("operator", &["failover", "nowhere"], 1, "there is no target nowhere"),
        ("operator", &["failback", "mail1"], 1, "without a word"),
        ("operator", &["check"], 1, "another version"),
        ("operator", &["pki", "token", "--name", "rs9", "--addresses", "10.0.0.9"], 0, r#"rs9 agent ["10.0.0.9"] 60"#),
        ("operator", &["failover"], 2, "TARGET"),
        ("operator", &["probe", "mail1", "smtp"], 0, "OK  1.2 ms  connect"),
        ("operator", &["probe", "mail1"], 1, "smtp of mail1: not well"),
        ("operator", &["--json", "probe", "mail1"], 1, r#""result":"NG""#),
        ("viewer", &["probe", "--list-presets"], 0, r"expect = '^220 '"),
        ("operator", &["probe"], 2, "TARGET"),
        ("viewer", &["disarm"], 1, "use the certificate of another role"),
        ("viewer", &["maintenance", "off", "mail1"], 1, "use the certificate of another role"),
        ("viewer", &["quarantine", "off", "rs1"], 1, "use the certificate of another role"),
        ("operator", &["quarantine", "off", "rs1"], 0, "rs1 is no longer in quarantine"),
        ("operator", &["quarantine", "off", "rs2"], 1, "rs2 is not in quarantine"),
        ("viewer", &["adopt", "mail1"], 1, "use the certificate of another role"),
        (
            "operator",
            &["disarm", "--for", "1h"],
            0,
            "Disarmed: nothing is acted on; leases and observation go on. It ends",
        ),
        (
            "operator",
            &["maintenance", "on", "mail1", "--reason", "a new disk", "--for", "2h"],
            0,
            "Target mail1 a new disk Some(7200000) is in maintenance",
        ),
        ("operator", &["maintenance", "on", "nobody"], 1, "neither a target nor an agent"),
        ("operator", &["maintenance", "off", "rs2"], 0, "Host rs2 is no longer in maintenance"),
        ("operator", &["arm"], 1, "armed already"),
        ("operator", &["adopt", "mail1"], 0, "belongs to mail1 at epoch 4"),
        ("operator", &["reload", "--dry-run"], 0, "would change: [[target]] web: added"),
        ("operator", &["reload", "--force"], 64, "1: colour"),
        ("viewer", &["reload"], 1, "use the certificate of another role"),
        ("operator", &["characterise", "mail1", "--yes"], 0, "Tna of mail1"),
        ("operator", &["characterise", "mail1"], 1, "--yes"),
        ("viewer", &["characterise", "--show"], 0, "nothing was measured yet"),
        ("viewer", &["why", "mail1"], 0, "NOTHING HAPPENED: nothing happened"),
        ("viewer", &["--json", "why", "mail1", "--at", "4711"], 0, r#""summary":"nothing happened 4711""#),
        ("viewer", &["why", "mail1", "--at", "yesterday"], 1, "is no point of a journal"),
        ("viewer", &["why", "mail1", "--journal", "nowhere.jsonl"], 1, "can't read nowhere.jsonl"),
    ];
    for (role, arguments, code, words) in cases {
        let output = run(role, arguments).await;
        let said = text(&output.stdout) + &text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(words), "{arguments:?}: {said}");
    }

    let wrong_authority = tempfile::tempdir().expect("directory");
    kagectl(wrong_authority.path(), "127.0.0.1:1", "operator", &["pki", "init", "--dir", "pki"]).await;
    let output = kagectl(wrong_authority.path(), &address, "operator", &["status"]).await;
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(text(&output.stderr).contains("not of the authority"), "{output:?}");

    let output = kagectl(dir.path(), "127.0.0.1:1", "operator", &["status"]).await;
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(text(&output.stderr).contains("Connection refused"), "{output:?}");
}

#[tokio::test]
async fn a_configuration_is_checked_offline() {
    let dir = tempfile::tempdir().expect("directory");
    std::fs::write(dir.path().join("bad.toml"), "colour = \"blue\"\n").expect("write");
    let output = kagectl(dir.path(), "127.0.0.1:1", "operator", &["check", "bad.toml"]).await;
    assert_eq!(output.status.code(), Some(64), "{output:?}");
    assert!(text(&output.stderr).contains("bad.toml can't be used:\n  "), "{output:?}");
    assert!(text(&output.stderr).contains("bad.toml:1: top level: unknown key colour"), "{output:?}");
}
