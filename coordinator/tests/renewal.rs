//! An agent's certificate is renewed by the real coordinator, and nobody else's.

use kage_proto::{
    channel::{Credentials, Options, channel},
    coordinator::v1::{RenewRequest, enrolment_client::EnrolmentClient},
    enrol::{self, EnrolError},
    issue::{Authority, Subject},
    roles::{Identity, Role},
    tls::{Expected, Pki},
};
use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tonic::Code;

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ended = self.0.kill().and_then(|()| self.0.wait());
    }
}

fn issue(dir: &Path, authority: &Authority, role: Role, name: &str) -> PathBuf {
    let out = dir.join(name);
    let subject = Subject { days: 3, ..Subject::new(Identity::new(role, name).expect("name")) };
    authority.issue_into(&subject, &out).expect("issue");
    out
}

#[tokio::test]
async fn an_agent_renews_its_own_certificate_before_it_ends() {
    let dir = tempfile::tempdir().expect("dir");
    let authority = Authority::create(&dir.path().join("ca"), "test", 30).expect("authority");
    let free = || TcpListener::bind("127.0.0.1:0").and_then(|bound| bound.local_addr()).expect("address");
    let (listen, sif) = (free(), free());
    let config = dir.path().join("cluster.toml");
    let text = format!(
        "[cluster]\nname = \"t\"\non_coordinator_loss = \"keep\"\n[coordinator]\nlisten = \"{listen}\"\n\
         [sif]\nlisten = \"{sif}\"\n[[agent]]\nname = \"rs1\"\naddress = \"192.0.2.21:7702\"\n"
    );
    fs::write(&config, text).expect("write");
    let own = issue(dir.path(), &authority, Role::Coordinator, "coordinator");
    let log = fs::File::create(dir.path().join("log")).expect("log");
    let mut command = Command::new(env!("CARGO_BIN_EXE_kage-coordinator"));
    command.arg("--config").arg(&config).arg("--state").arg(dir.path().join("state")).arg("--pki").arg(own);
    command.arg("--authority").arg(dir.path().join("ca")).stderr(Stdio::from(log));
    let _running = Running(command.spawn().expect("spawn"));

    let files = issue(dir.path(), &authority, Role::Agent, "rs1");
    let pki = Pki::load(&files).expect("pki");
    let (before, ends) = (pki.fingerprint(), pki.not_after_unix_s());
    let begun = Instant::now();
    while let Err(error) = enrol::renew(&pki, &listen.to_string()).await {
        let said = || fs::read_to_string(dir.path().join("log")).unwrap_or_default();
        assert!(begun.elapsed() < Duration::from_secs(10), "{error}\n{}", said());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(pki.fingerprint() != before && pki.not_after_unix_s() > ends + 365 * 86_400);
    assert_eq!(Pki::load(&files).expect("on disk").fingerprint(), pki.fingerprint());
    assert!(!files.join(".renewed").exists());
    // The new one is good for the next.
    enrol::renew(&pki, &listen.to_string()).await.expect("again");

    let stranger = Pki::load(&issue(dir.path(), &authority, Role::Agent, "rs9")).expect("pki");
    let before = stranger.fingerprint();
    let refused = enrol::renew(&stranger, &listen.to_string()).await;
    assert!(
        matches!(&refused, Err(EnrolError::NotRenewed { reason, .. }) if reason.contains("not in the coordinator")),
        "{refused:?}"
    );
    assert_eq!(stranger.fingerprint(), before);
    let viewer = Pki::load(&issue(dir.path(), &authority, Role::Viewer, "v")).expect("pki");
    let to =
        channel(&listen.to_string(), &Credentials::Tls(viewer), Expected::role(Role::Coordinator), &Options::default());
    let refused = EnrolmentClient::new(to.expect("channel")).renew(RenewRequest::default()).await;
    assert_eq!(refused.expect_err("no agent").code(), Code::PermissionDenied);
    let said = fs::read_to_string(dir.path().join("log")).expect("log");
    assert!(said.lines().any(|line| line.contains("agent rs1") && line.contains("Enrolment/Renew")), "{said}");
}
