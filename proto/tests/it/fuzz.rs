//! Tokens, certificates, names and messages of any bytes: an error at worst.

use kage_proto::{
    agent::v1 as agent,
    coordinator::v1 as coordinator,
    issue::{Authority, Subject},
    roles::{Fingerprint, Identity, Role},
    sif::v1 as sif,
    tls::{CA_FILE, CERT_FILE, KEY_FILE, Pki},
    token::Token,
};
use proptest::prelude::*;
use prost::Message;
use std::{fs, sync::LazyLock};

#[path = "../../../tests/src/mangle.rs"]
mod mangle;
use mangle::{Edit, mangle};

/// A machine's three files.
static FILES: LazyLock<[Vec<u8>; 3]> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("dir");
    let authority = Authority::create(&dir.path().join("ca"), "lab", 30).expect("authority");
    let subject = Subject::new(Identity::new(Role::Agent, "rs1").expect("name"));
    let own = dir.path().join("rs1");
    authority.issue_into(&subject, &own).expect("issue");
    [CA_FILE, CERT_FILE, KEY_FILE].map(|name| fs::read(own.join(name)).expect("file"))
});

fn loads(files: &[Vec<u8>; 3]) -> bool {
    let dir = tempfile::tempdir().expect("dir");
    for (name, bytes) in [CA_FILE, CERT_FILE, KEY_FILE].iter().zip(files) {
        fs::write(dir.path().join(name), bytes).expect("write");
    }
    Pki::load(dir.path()).inspect_err(|error| assert!(!error.to_string().is_empty())).is_ok()
}

/// Decodes as M; what was understood can be said again.
fn decodes<M: Message + Default>(bytes: &[u8]) {
    if let Ok(message) = M::decode(bytes) {
        assert!(M::decode(message.encode_to_vec().as_slice()).is_ok());
    }
}

#[test]
fn the_good_files_are_good() {
    assert!(loads(&FILES));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn no_damage_breaks_the_certificates(which in 0..3usize, edits in prop::collection::vec(any::<Edit>(), 1..4)) {
        let mut files = FILES.clone();
        files[which] = mangle(&files[which], &edits);
        let _ = loads(&files);
    }
}

proptest! {
    #[test]
    fn no_line_breaks_the_token(edits in prop::collection::vec(any::<Edit>(), 0..4), text in r"(kage1\.)?(\PC|[A-Za-z0-9_-]){0,80}") {
        let identity = Identity::new(Role::Agent, "rs1").expect("name");
        let token = Token::new("10.0.0.1:7700", Fingerprint::of(b"x"), identity).expect("token");
        let line = String::from_utf8_lossy(&mangle(token.encode().as_bytes(), &edits)).into_owned();
        if let Ok(read) = line.parse::<Token>() {
            prop_assert!(read.coordinator.len() < 4096);
        }
        let _ = text.parse::<Token>();
        let _ = (text.parse::<Fingerprint>(), Identity::from_uri(&text), text.parse::<Role>());
    }

    #[test]
    fn no_bytes_break_a_message(bytes in prop::collection::vec(any::<u8>(), 0..300), edits in prop::collection::vec(any::<Edit>(), 0..6)) {
        let ask = agent::AskVip { vip: "10.0.0.1".into(), epoch: 7 };
        let hello = coordinator::AgentMessage {
            message: Some(coordinator::agent_message::Message::Ask(coordinator::Ask {
                nonce: 1,
                vips: vec![ask; 3],
                ..Default::default()
            })),
        };
        let row = sif::VipRow { vip: "10.0.0.1".into(), epoch: 3, owner: "a".into(), ..Default::default() };
        let ledger = sif::Ledger { revision: 3, vips: vec![row; 4], ..Default::default() };
        for bytes in [bytes, mangle(&hello.encode_to_vec(), &edits), mangle(&ledger.encode_to_vec(), &edits)] {
            decodes::<coordinator::AgentMessage>(&bytes);
            decodes::<coordinator::CoordinatorMessage>(&bytes);
            decodes::<coordinator::Status>(&bytes);
            decodes::<coordinator::EnrolRequest>(&bytes);
            decodes::<agent::ProbeRequest>(&bytes);
            decodes::<agent::Grant>(&bytes);
            decodes::<agent::VoteRequest>(&bytes);
            decodes::<sif::Ledger>(&bytes);
            decodes::<sif::Change>(&bytes);
        }
    }
}
