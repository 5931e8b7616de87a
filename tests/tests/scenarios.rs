//! Every scenario of `tests/scenarios` keeps its promises and its expectations; faulty files are refused, all faults at
//! once.

use kage_tests::sim::{
    sabotage,
    scenario::{Scenario, keys, load, run},
};
use std::{collections::BTreeSet, path::Path, path::PathBuf};

/// Each by so many seeds.
const SEEDS: u64 = if cfg!(debug_assertions) { 2 } else { 20 };

fn scenarios() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let entries = std::fs::read_dir(&folder).expect("tests/scenarios");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("entry").path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "toml" || extension == "json"));
    files.sort();
    files
}

fn loaded(file: &Path) -> Scenario {
    load(file).unwrap_or_else(|error| panic!("{error}"))
}

fn named(name: &str) -> Scenario {
    loaded(&Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios").join(name))
}

/// What it breaks, by seed.
fn broken(scenario: &Scenario, seeds: std::ops::RangeInclusive<u64>) -> Vec<String> {
    let mut found = Vec::new();
    for seed in seeds {
        match run(scenario, seed, None, 0) {
            Ok((outcome, _)) => {
                found.extend(outcome.broken().into_iter().map(|line| format!("{} seed {seed}: {line}", scenario.file)));
            }
            Err(why) => found.push(format!("{} seed {seed}: {why}", scenario.file)),
        }
    }
    found
}

#[test]
fn every_scenario_holds() {
    let files = scenarios();
    assert!(files.len() >= 12, "{} scenarios", files.len());
    let workers: Vec<_> =
        files.into_iter().map(|file| std::thread::spawn(move || broken(&loaded(&file), 1..=SEEDS))).collect();
    let found: Vec<String> = workers.into_iter().flat_map(|worker| worker.join().expect("a worker")).collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn the_same_seed_is_the_same_outcome() {
    let scenario = named("coordinator-killed-at-each-step.toml");
    let text = || {
        let (outcome, trace) = run(&scenario, 7, None, usize::MAX).expect("it begins");
        (serde_json::to_string(&outcome).expect("JSON"), trace)
    };
    assert!(text() == text());
}

/// One kill at a time, where the scenario of the same name has them one after another.
#[test]
fn the_coordinator_is_killed_once_at_each_step() {
    let all = named("coordinator-killed-at-each-step.toml");
    let words: BTreeSet<String> = all.lines.iter().flat_map(|line| line.on.clone()).collect();
    assert!(words.len() > 5, "{words:?}");
    for word in words {
        let mut scenario = all.clone();
        scenario.file = format!("{} at {word}", all.file);
        scenario.lines.iter_mut().filter(|line| !line.on.is_empty()).for_each(|line| line.on = [word.clone()].into());
        let found = broken(&scenario, 1..=1);
        assert!(found.is_empty(), "{}", found.join("\n"));
    }
}

/// The promises of a scenario are really checked: with its rule broken the promise is.
#[test]
fn a_broken_rule_shows_in_a_scenario() {
    for (name, rule, promise, file) in sabotage::SCENARIOS {
        let noticed = sabotage::noticed(&named(file), rule, promise, 10);
        assert!(noticed.is_some(), "{name} is not noticed in {file}");
    }
}

#[test]
fn a_scenario_may_be_json() {
    let folder = tempfile::tempdir().expect("folder");
    let toml = std::fs::read_to_string(&named("service-crash.toml").file).expect("file");
    let value: serde_json::Value = toml::from_str(&toml).expect("TOML");
    let file = folder.path().join("scenario.json");
    std::fs::write(&file, serde_json::to_string_pretty(&value).expect("JSON")).expect("written");
    let (one, _) = run(&loaded(&file), 1, None, 0).expect("it begins");
    let (other, _) = run(&named("service-crash.toml"), 1, None, 0).expect("it begins");
    assert!(one.passed && other.passed);
    assert_eq!(serde_json::to_string(&one.servers).ok(), serde_json::to_string(&other.servers).ok());
}

#[test]
fn a_scenario_may_be_about_ones_own_cluster() {
    let folder = tempfile::tempdir().expect("folder");
    let mut cluster = "[cluster]\nname = \"own\"\n[coordinator]\nlisten = \"10.0.0.2:7700\"\n\
                       [sif]\nlisten = \"10.0.0.2:7701\"\n"
        .to_owned();
    for (name, last, more) in
        [("mgmt", 2, "guard = \"tap\""), ("db1", 11, ""), ("w1", 21, "voter = true"), ("w2", 22, "voter = true")]
    {
        cluster += &format!("[[agent]]\nname = \"{name}\"\naddress = \"10.0.0.{last}:7702\"\n{more}\n");
    }
    cluster = cluster.replace("name = \"db1\"", "name = \"db1\"\nvoter = true");
    cluster += "[[target]]\nname = \"db\"\nagent = \"db1\"\nvips = [\"10.0.0.100\"]\n\
                backup = { agent = \"mgmt\", domain = \"dbb\" }\n[[target.service]]\nname = \"x\"\nprobe = \"tcp\"\nport = 99\n";
    std::fs::write(folder.path().join("own.toml"), cluster).expect("written");
    let text = |head: &str, host: &str| {
        format!(
            "name = \"own\"\nduration = \"20s\"\ncluster = \"own.toml\"\n{head}\n[[host]]\nname = \"{host}\"\nboot = \"5s\"\n\
             [[event]]\nwhat = \"power-off\"\nat = \"5s\"\nhosts = [\"db1\"]\n\
             [[expect]]\nwhat = \"takeover\"\nserver = \"db\"\nuntil = \"7500ms\"\n"
        )
    };
    let file = folder.path().join("scenario.toml");
    std::fs::write(&file, text("", "db1")).expect("written");
    let scenario = loaded(&file);
    assert_eq!(scenario.seats[0].as_ref().map(|seat| seat.as_str()), Some("mgmt"), "where its address is");
    let found = broken(&scenario, 1..=2);
    assert!(found.is_empty(), "{}", found.join("\n"));
    std::fs::write(&file, text("coordinator = \"w1\"", "db2")).expect("written");
    let error = load(&file).expect_err("it has faults");
    assert_eq!(error.faults.len(), 2, "{error}");
}

#[test]
fn all_faults_are_told_at_once_each_with_its_line() {
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("bad.toml");
    let text = "name = \"bad\"\nduration = \"30\"\ncolour = \"red\"\n[[host]]\nname = \"rs1\"\nvoter = \"yes\"\n\
                [[server]]\nname = \"mail\"\nhost = \"rs7\"\nstandby = { host = \"rs1\" }\nservices = [\"htp\"]\n\
                [[event]]\nwhat = \"power-of\"\n";
    std::fs::write(&file, text).expect("written");
    let error = load(&file).expect_err("it has faults");
    let lines: Vec<usize> = error.faults.iter().map(|fault| fault.line).collect();
    assert_eq!(lines, [2, 3, 6, 9], "{error}");
    let text = error.to_string();
    for part in ["duration = \"30\"", "unknown key colour", "voter = \"yes\"", "no [[host]] of that name"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // What refers to hosts and servers is looked at when these are good.
    let good = "name = \"bad\"\nduration = \"30s\"\non_coordinator_loss = \"keep\"\n[[host]]\nname = \"rs1\"\n\
                [[host]]\nname = \"hv1\"\n[[server]]\nname = \"mail\"\nhost = \"rs1\"\nstandby = { host = \"hv1\" }\n\
                [[event]]\nwhat = \"power-of\"\nhosts = [\"rs1\"]\n[[event]]\nwhat = \"freeze\"\nhosts = [\"rs9\"]\n\
                [[event]]\nwhat = \"failover\"\nserver = \"mial\"\nfor = \"2s\"\n[[expect]]\nwhat = \"owner\"\nserver = \"mail\"\n";
    std::fs::write(&file, good).expect("written");
    let error = load(&file).expect_err("it has faults");
    let text = error.to_string();
    for part in [
        ":13: [[event]] #1: what = \"power-of\": there is nothing of that name: did you mean \"power-off\"?",
        "#2: freeze needs for",
        ":21: [[event]] #3: for has no meaning for failover",
        "[[expect]] #1: owner needs is",
    ] {
        assert!(text.contains(part), "{part}:\n{text}");
    }
}

#[test]
fn the_reference_of_the_format_is_up_to_date() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/simulation.md");
    let text = std::fs::read_to_string(file).expect("docs/simulation.md");
    assert!(text.contains(&keys::reference()), "put what `simulate run --keys` prints into docs/simulation.md");
}
