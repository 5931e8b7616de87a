//! This crate needs nothing of another controller and has no word of one.

use std::{fs, path::Path};

#[test]
fn it_depends_on_kage_types_and_serde_only() {
    let manifest = include_str!("../../Cargo.toml");
    let (_, after) = manifest.split_once("[dependencies]\n").expect("it has dependencies");
    let (dependencies, _) = after.split_once("\n[").expect("something follows them");
    assert_eq!(dependencies.trim(), "kage-types.workspace = true\nserde.workspace = true");
}

#[test]
fn it_has_no_word_of_another_controller() {
    let read = look(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")));
    assert!(read > 10, "{read} files");
}

fn look(directory: &Path) -> usize {
    let mut read = 0;
    for entry in fs::read_dir(directory).expect("the sources are there") {
        let path = entry.expect("it is there").path();
        if path.is_dir() {
            read += look(&path);
            continue;
        }
        read += 1;
        let text = fs::read_to_string(&path).expect("it can be read").to_lowercase();
        for word in ["msbs", "dbss", "failover", "kage_coordinator"] {
            assert!(!text.contains(word), "{} speaks of {word}", path.display());
        }
    }
    read
}
