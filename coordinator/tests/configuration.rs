//! The program itself with a configuration that can't be used.

use std::process::Command;

#[test]
fn a_bad_file_ends_it_with_every_fault_and_status_64() {
    let dir = tempfile::tempdir().expect("directory");
    let file = dir.path().join("cluster.toml");
    std::fs::write(&file, "[cluster]\nname = \"lab\"\nprofile = \"quick\"\n[sif]\nlisten = 7701\n").expect("written");
    let output = Command::new(env!("CARGO_BIN_EXE_kage-coordinator"))
        .arg("--config")
        .arg(&file)
        .args(["--state", "state", "--pki", "pki"])
        .current_dir(dir.path())
        .output()
        .expect("run");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(64), "{said}");
    assert!(said.contains("cluster.toml:3: [cluster]: profile = \"quick\""), "{said}");
    assert!(said.contains("cluster.toml:5: [sif]: listen = 7701"), "{said}");
    assert!(!dir.path().join("state").exists(), "nothing is made");
}
