//! Where the lab keeps its things: never inside the tree.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::run::run;

fn from_environment(name: &str, default: &str) -> PathBuf {
    std::env::var_os(name).map_or_else(|| PathBuf::from(default), PathBuf::from)
}

/// The state of the running lab: `$KAGE_LAB_DIR`.
#[must_use]
pub fn lab() -> PathBuf {
    from_environment("KAGE_LAB_DIR", "/var/tmp/kagemusha-lab")
}

/// Images, by the hash of their recipe: `$KAGE_LAB_CACHE`.
#[must_use]
pub fn cache() -> PathBuf {
    from_environment("KAGE_LAB_CACHE", "/var/cache/kagemusha-lab")
}

/// One node's folder: logs, state, sockets.
#[must_use]
pub fn node(name: &str) -> PathBuf {
    lab().join("nodes").join(name)
}

/// The project's tree, for the binaries under test.
///
/// # Errors
/// Neither `$KAGE_PROJECT` nor git nor cargo tells.
pub fn project() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("KAGE_PROJECT") {
        return Ok(PathBuf::from(path));
    }
    if let Some(tests) = std::env::var_os("CARGO_MANIFEST_DIR") {
        return Ok(PathBuf::from(tests).join(".."));
    }
    let top = run(&["git", "rev-parse", "--show-toplevel"])
        .context("the project's tree is unknown; call tests/lab, or set KAGE_PROJECT")?;
    Ok(PathBuf::from(top.trim()))
}

/// The binary under test called `name`: from `$KAGE_BIN_DIR`, else as this tree builds it.
#[must_use]
pub fn binary(name: &str) -> Option<PathBuf> {
    std::env::var_os("KAGE_BIN_DIR").and_then(|place| able(&Path::new(&place).join(name))).or_else(|| built(name))
}

/// The binary called `name` of this tree's release build.
#[must_use]
pub fn built(name: &str) -> Option<PathBuf> {
    let project = project().ok()?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| project.join("target"), PathBuf::from);
    ["lab", "release"].iter().find_map(|place| able(&target.join(place).join(name)))
}

/// `None` while it can't do anything: it is missing, or `--help` prints nothing.
fn able(path: &Path) -> Option<PathBuf> {
    let help = run(&[&path.to_string_lossy(), "--help"]).ok()?;
    (!help.trim().is_empty()).then(|| path.to_owned())
}

/// The control group above those of the nodes: `$KAGE_LAB_GROUP`. With `$KAGE_LAB_DIR` of its own and in a mount
/// namespace of its own (`/run/netns`), a second lab does not meet the first.
#[must_use]
pub fn group() -> PathBuf {
    from_environment("KAGE_LAB_GROUP", "kagemusha-lab")
}

/// The version 2 control group hierarchy of this machine.
#[must_use]
pub fn cgroups() -> &'static Path {
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        Path::new("/sys/fs/cgroup")
    } else {
        Path::new("/sys/fs/cgroup/unified")
    }
}
