//! This crate needs nothing of another controller and has no word of one.

use std::{collections::BTreeSet, env, fs, path::Path, process::Command};

#[test]
fn it_depends_on_kage_types_and_serde_only() {
    let manifest = include_str!("../../Cargo.toml");
    let (_, after) = manifest.split_once("[dependencies]\n").expect("it has dependencies");
    let (dependencies, _) = after.split_once("\n[").expect("something follows them");
    assert_eq!(dependencies.trim(), "kage-types.workspace = true\nserde.workspace = true");
}

/// Names of all that a package is made with, by `cargo tree`.
fn tree(package: &str) -> BTreeSet<String> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments =
        ["tree", "--offline", "--locked", "--edges", "normal,build", "--prefix", "none", "--package", package];
    let output =
        Command::new(cargo).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).expect("text");
    lines.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

/// Neither controller is made with the other, nor with anything that could reach it.
#[test]
fn cargo_tree_shows_both_controllers_independent() {
    let own = |package: &str| -> Vec<String> {
        tree(package).into_iter().filter(|name| name.starts_with("kage") && name != package).collect()
    };
    assert_eq!(own("kage-pss-core"), ["kage-types"]);
    assert_eq!(own("kage-coordinator-core"), ["kage-types"]);
    for package in ["kage-pss-core", "kage-coordinator-core"] {
        for shell in ["tokio", "tonic", "virt", "sysinfo", "rand", "hyper"] {
            assert!(!tree(package).contains(shell), "{package} is made with {shell}");
        }
    }
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
