//! Every kind of note is described in docs/events.md, and nothing else is.

use std::{collections::BTreeSet, fs, path::Path};

const DOCS: &str = include_str!("../../../docs/events.md");

fn sources(directory: &Path, into: &mut String) {
    for entry in fs::read_dir(directory).expect("sources").map(|entry| entry.expect("entry").path()) {
        if entry.is_dir() {
            sources(&entry, into);
        } else {
            into.push_str(&fs::read_to_string(&entry).expect("source"));
        }
    }
}

/// The string literals of the argument after the severity: the kind, or two of them.
fn kinds(text: &str) -> BTreeSet<String> {
    let text = text.replace(".note_stand_in(", ".note(").replace(".say_once(", ".note(");
    let calls = text.split(".note(").skip(1).filter_map(|call| {
        let (_, rest) = call.split_once("everity")?;
        let (_, argument) = rest.split_once(',')?;
        argument.split_once(',').map(|(kind, _)| kind)
    });
    calls.flat_map(|kind| kind.split('"').skip(1).step_by(2)).map(str::to_owned).collect()
}

#[test]
fn every_kind_of_event_is_described_and_nothing_else() {
    let mut text = String::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut text);
    let noted = kinds(&text);
    let rows =
        DOCS.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`')).map(|(kind, _)| kind.to_owned());
    // Power saving's are none of this crate's: coordinator/src/pss/notes.rs holds them against the same document.
    let described: BTreeSet<String> = rows.filter(|kind| !kind.starts_with("pss-")).collect();
    assert!(noted.len() > 30, "{noted:?}");
    let missing: Vec<_> = noted.difference(&described).collect();
    assert!(missing.is_empty(), "not in docs/events.md: {missing:?}");
    let gone: Vec<_> = described.difference(&noted).collect();
    assert!(gone.is_empty(), "no longer noted: {gone:?}");
}
