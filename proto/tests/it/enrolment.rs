//! A machine gets its certificate with a token, once.

use crate::lab::{Cluster, Running, run};
use kage_proto::{
    coordinator::v1::{
        EnrolReply, EnrolRequest, RenewRequest,
        enrolment_server::{Enrolment, EnrolmentServer},
    },
    enrol::{EnrolError, WriteError, enrol},
    issue::{Authority, Subject},
    roles::{Caller, Identity, Peer, Role},
    server::{Config, Security, Server},
    token::Token,
};
use std::{
    collections::BTreeMap,
    os::unix::fs::PermissionsExt as _,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};
use tonic::{Request, Response, Status};

type Entry = (Identity, Option<(String, EnrolReply)>);

struct Office {
    authority: Authority,
    /// Digest of a secret → whom it enrols, and what was answered to which request.
    tokens: Mutex<BTreeMap<String, Entry>>,
    lose_an_answer: AtomicBool,
}

#[tonic::async_trait]
impl Enrolment for Office {
    async fn renew(&self, _: Request<RenewRequest>) -> Result<Response<EnrolReply>, Status> {
        Err(Status::failed_precondition("enrolment alone is tried here"))
    }

    async fn enrol(&self, request: Request<EnrolRequest>) -> Result<Response<EnrolReply>, Status> {
        assert_eq!(Peer::of(&request)?.caller, Caller::Anonymous);
        let EnrolRequest { secret, csr_pem } = request.into_inner();
        let mut tokens = self.tokens.lock().expect("lock");
        let Some((identity, used)) = tokens.get_mut(&Token::secret_digest(&secret)) else {
            return Err(Status::permission_denied("this token is unknown"));
        };
        let reply = match used {
            None => {
                let certificate_pem = self
                    .authority
                    .sign(&csr_pem, &Subject::new(identity.clone()))
                    .map_err(|error| Status::invalid_argument(error.to_string()))?;
                EnrolReply { certificate_pem, ca_pem: self.authority.ca_pem().to_owned() }
            }
            Some((request, reply)) if *request == csr_pem => reply.clone(),
            Some(_) => return Err(Status::permission_denied("this token was used")),
        };
        *used = Some((csr_pem, reply.clone()));
        if self.lose_an_answer.swap(false, Ordering::SeqCst) {
            return Err(Status::unavailable("lost"));
        }
        Ok(Response::new(reply))
    }
}

async fn office(cluster: &Cluster, lose_an_answer: bool) -> (Running, Token) {
    let server =
        Server::bind(&Config::new(([127, 0, 0, 1], 0).into(), Security::Tls(cluster.pki(Role::Coordinator, "c"))))
            .await
            .expect("bind");
    let identity = Identity::new(Role::Agent, "rs9").expect("name");
    let token =
        Token::new(&server.address().to_string(), cluster.authority.fingerprint(), identity.clone()).expect("token");
    let tokens = BTreeMap::from([(Token::secret_digest(&token.secret), (identity, None))]);
    let authority = Authority::load(&cluster.dir.path().join("ca")).expect("authority");
    let office = Office { authority, tokens: Mutex::new(tokens), lose_an_answer: lose_an_answer.into() };
    (run(server.add(EnrolmentServer::new(office))), token)
}

#[tokio::test]
async fn a_token_enrols_once() {
    let cluster = Cluster::new();
    let (_running, token) = office(&cluster, false).await;
    let token: Token = token.encode().parse().expect("token");
    let dir = cluster.dir.path().join("machine/pki");
    let pki = enrol(&token, &dir).await.expect("enrolled");
    assert_eq!(pki.identity().to_string(), "agent rs9");
    let mode = std::fs::metadata(dir.join("key.pem")).expect("key").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut files: Vec<_> =
        std::fs::read_dir(&dir).expect("dir").map(|entry| entry.expect("entry").file_name()).collect();
    files.sort();
    assert_eq!(files, ["ca.pem", "cert.pem", "key.pem"]);

    let error = enrol(&token, &dir).await.expect_err("in use");
    assert!(matches!(error, EnrolError::Write(WriteError::Exists(_))), "{error}");
    let error = enrol(&token, &cluster.dir.path().join("thief")).await.expect_err("used");
    assert!(error.to_string().contains("this token was used"), "{error}");
}

#[tokio::test]
async fn a_lost_answer_is_asked_for_again() {
    let cluster = Cluster::new();
    let (_running, token) = office(&cluster, true).await;
    let dir = cluster.dir.path().join("machine");
    let error = enrol(&token, &dir).await.expect_err("lost");
    assert!(error.to_string().contains("lost"), "{error}");
    assert!(!dir.exists());
    enrol(&token, &dir).await.expect("the same request again");
    assert!(!cluster.dir.path().join(".machine.new").exists());
}

#[tokio::test]
async fn a_coordinator_of_another_authority_gets_no_secret() {
    let (ours, theirs) = (Cluster::new(), Cluster::new());
    let (_running, token) = office(&theirs, false).await;
    let token = Token { authority: ours.authority.fingerprint(), ..token };
    let error = enrol(&token, &ours.dir.path().join("machine")).await.expect_err("refused");
    assert!(error.to_string().contains("not of the authority"), "{error}");
}

#[tokio::test]
async fn a_server_that_is_no_coordinator_gets_no_secret() {
    let cluster = Cluster::new();
    let running = cluster.serve(Role::Agent, "rs1").await;
    let identity = Identity::new(Role::Agent, "rs9").expect("name");
    let token = Token::new(&running.address.to_string(), cluster.authority.fingerprint(), identity).expect("token");
    let error = enrol(&token, &cluster.dir.path().join("machine")).await.expect_err("refused");
    assert!(error.to_string().contains("the server is agent rs1, not coordinator"), "{error}");
}
