//! A spoilt ledger, row, request or configuration: an error with a next step at worst.

use crate::{
    backup,
    config::Config,
    store::{FILE_NAME, Store, StoreError, tests::changes},
    wire,
};
use kage_proto::{roles::Fingerprint, sif::v1 as proto};
use kage_sif_core::{Change, Ledger, Stamped};
use proptest::prelude::*;
use std::{fs, sync::LazyLock};

#[path = "../../tests/src/mangle.rs"]
mod mangle;
use mangle::{Edit, mangle};

/// A good file and what it holds.
static GOOD: LazyLock<(Vec<u8>, Ledger)> = LazyLock::new(|| {
    let directory = tempfile::tempdir().expect("directory");
    let (mut store, _) = Store::open(directory.path()).expect("open");
    changes(60).chunks(7).for_each(|batch| store.commit(batch).expect("commit"));
    let ledger = store.reopen().expect("reopen").ledger;
    drop(store);
    (fs::read(directory.path().join(FILE_NAME)).expect("file"), ledger)
});

fn opened(bytes: &[u8]) -> Result<Ledger, StoreError> {
    let directory = tempfile::tempdir().expect("directory");
    fs::write(directory.path().join(FILE_NAME), bytes).expect("write");
    Store::open(directory.path()).map(|(_, contents)| contents.ledger)
}

#[test]
fn the_good_file_is_good() {
    assert_eq!(opened(&GOOD.0).expect("good"), GOOD.1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn no_damage_breaks_the_store(edits in prop::collection::vec(any::<Edit>(), 1..4)) {
        if let Err(error) = opened(&mangle(&GOOD.0, &edits)) {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    /// One bit of a page in use: never another ledger than some committed one, and that without a word.
    #[test]
    fn no_flipped_bit_is_believed(at in any::<prop::sample::Index>(), bit in 0..8u8) {
        let mut bytes = GOOD.0.clone();
        let used = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0) + 1;
        bytes[at.index(used)] ^= 1 << bit;
        if let Ok(ledger) = opened(&bytes) {
            // A flip in space that is free, or in the commit slot that is not the last: an earlier commit is read.
            let mut known = Ledger::default();
            let committed = std::iter::once(known.clone()).chain(changes(60).chunks(7).map(|batch| {
                batch.iter().for_each(|change| known.apply(change));
                known.clone()
            }).collect::<Vec<_>>());
            prop_assert!(committed.into_iter().any(|known| known == ledger), "{ledger:?}");
        }
    }
}

proptest! {
    #[test]
    fn no_row_breaks_the_reader(index in any::<prop::sample::Index>(), edits in prop::collection::vec(any::<Edit>(), 1..4)) {
        let all = changes(60);
        let good = serde_json::to_vec(index.get(&all)).expect("json");
        if let Ok(stamped) = serde_json::from_slice::<Stamped>(&mangle(&good, &edits)) {
            let mut ledger = GOOD.1.clone();
            ledger.apply(&stamped);
            let restored = matches!(stamped.change, Change::Restored { .. });
            prop_assert!(restored || wire::change(&stamped).is_ok());
            let _ = wire::ledger(&ledger);
        }
    }

    /// Without its checksum a copy would be whatever its JSON says.
    #[test]
    fn no_damage_breaks_a_copy(edits in prop::collection::vec(any::<Edit>(), 1..4), sealed in any::<bool>()) {
        let good = backup::encode(&GOOD.1, 7).expect("copy");
        prop_assert_eq!(backup::decode(&good), Ok((GOOD.1.clone(), 7)));
        let spoilt = mangle(&good, &edits);
        if !sealed {
            prop_assert!(spoilt == good || backup::decode(&spoilt).is_err());
            return Ok(());
        }
        let body = good.splitn(2, |byte| *byte == b'\n').nth(1).expect("body");
        let body = mangle(body, &edits);
        let heading = format!("kagemusha-ledger 1 bytes={} sha256={}\n", body.len(), Fingerprint::of(&body));
        if let Ok((ledger, _)) = backup::decode(&[heading.as_bytes(), &body].concat()) {
            let ledger = ledger.restored();
            prop_assert!(ledger.vips.is_empty() && !ledger.is_established());
            let directory = tempfile::tempdir().expect("directory");
            Store::begin_with(directory.path(), &ledger).expect("begin");
            prop_assert_eq!(Store::open(directory.path()).expect("open").1.ledger, ledger);
        }
    }

    #[test]
    fn no_slip_breaks_the_configuration(edits in prop::collection::vec(any::<Edit>(), 0..4), text in r"(\PC|\n|\[sif\]){0,20}") {
        let spoilt = mangle(include_bytes!("../../deploy/cluster.toml"), &edits);
        let _ = Config::parse("cluster.toml", &String::from_utf8_lossy(&spoilt));
        let _ = Config::parse("cluster.toml", &text);
    }

    #[test]
    fn no_field_breaks_the_conversion(
        text in r"([0-9a-z.:_-]|\PC|target:|all){0,40}", number in any::<u64>(), count in 0..50usize,
    ) {
        let epochs: Vec<_> = (0..count)
            .map(|n| proto::EpochReport { vip: if n % 7 == 6 { text.clone() } else { format!("10.0.0.{n}") }, epoch: number })
            .collect();
        let _ = wire::report(number, &epochs);
        let row = proto::OrderRow {
            scope: text.clone(),
            reason: text.clone(),
            who: text.clone(),
            since_unix_ms: number,
            until_unix_ms: Some(number),
        };
        let _ = wire::order(Some(row));
        let _ = wire::field::<kage_types::TargetName>("target", &text);
        let _ = wire::optional::<kage_sif_core::Stage>("stage", &text);
    }
}
