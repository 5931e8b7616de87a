use super::*;

const GOOD: &str = r#"
    [cluster]
    name = "lab"
    profile = "fast"
    [coordinator]
    listen = "10.77.0.2:7700"
    [sif]
    listen = "10.77.0.2:7701"
    [[agent]]
    name = "mail"
    address = "10.77.0.11:7702"
    mac = "52:54:00:77:00:0b"
    [[agent]]
    name = "mgmt"
    address = "10.77.0.2:7702"
    guard = "tap"
    [[agent]]
    name = "v1"
    address = "10.77.0.21:7702"
    voter = true
    [[agent]]
    name = "v2"
    address = "10.77.0.22:7702"
    voter = true
    [[agent]]
    name = "v3"
    address = "10.77.0.23:7702"
    voter = true
    [[target]]
    name = "mail"
    agent = "mail"
    vips = ["10.77.0.100"]
    backup = { agent = "mgmt", domain = "mailb" }
    healthy_for = "2s"
    [[target.service]]
    name = "http"
    probe = "http"
    port = 80
"#;

#[test]
fn a_good_file_is_read() {
    let cluster = Cluster::parse(GOOD).expect("good");
    assert_eq!(cluster.timing, LeaseTiming::of(Profile::Fast));
    assert_eq!(cluster.bars_needed(), 2);
    assert_eq!(cluster.targets.len(), 1);
}

/// What the coordinator and `kagectl check` print of it.
fn faults(text: &str) -> String {
    Cluster::parse(text).map_or_else(|error| error.to_string(), |_| "good".into())
}

#[test]
fn every_fault_is_reported_at_once() {
    let text = r#"colour = "blue"
[cluster]
name = "lab"
profile = "quick"
on_coordinator_lost = "keep"
[coordinator]
listen = "10.77.0.2"
[sif]
listen = "10.77.0.2:7701"
term = "90s"
[lease]
renewal = 3
[[agent]]
name = "mail"
address = "10.77.0.11:7702"
mac = "52:54"
[[agent]]
name = "mgmt"
address = "10.77.0.2:7702"
[[agent]]
name = "mail"
address = "10.77.0.12:7702"
voter = "yes"
[[agent]]
name = "-v2"
address = "10.77.0.11:7702"
power_status = []
[[target]]
name = "mail"
agent = "mial"
vips = ["10.77.0.100", "10.77.0.11", "10.77.0.100/24"]
backup = { agent = "mgmt", domain = "mailb" }
healthy_fro = "2s"
reboot_wait = "0s"
start_wait = "soon"
[[target.service]]
name = "http"
probe = "htpp"
port = 80
[[target.service]]
name = "http"
probe = "tcp"
port = 70000
[[target]]
name = "web"
agent = "mgmt"
vips = ["10.77.0.100"]
backup = { agent = "mgmt" }
failback = true
[[target]]
name = "ftp"
vips = []
"#;
    insta::assert_snapshot!(faults(text));
}

#[test]
fn what_is_no_toml_does_not_hide_the_rest() {
    let text = r#"[cluster]
name = "lab
profile = "quick"
[coordinator]
listen = "10.77.0.2:7700"
[sif
listen = "10.77.0.2:7701"
[[agent]]
name = mail
address = "10.77.0.11:7702"
voter = 1
[[target]]
name = "mail"
agent = "mail"
healthy_fro = "2s"
vips = ["10.77.0.100"
backup = { agent = "mgmt", domain = "mailb" }
"#;
    insta::assert_snapshot!(faults(text));
}

#[test]
fn a_backup_on_its_own_target_and_two_targets_with_one_vip() {
    let own = GOOD.replace(r#"backup = { agent = "mgmt""#, r#"backup = { agent = "mail""#);
    assert_eq!(
        faults(&own),
        "cluster.toml:33: [[target]] mail backup: agent = \"mail\": the very machine that its backup server stands in for"
    );
    let twice = GOOD.to_owned()
        + "\n[[target]]\nname = \"web\"\nagent = \"v1\"\nvips = [\"10.77.0.100\"]\nbackup = { agent = \"mgmt\", domain = \"webb\" }\n";
    assert_eq!(faults(&twice), "cluster.toml:43: [[target]] web: vips = \"10.77.0.100\": also given to target mail");
}

/// A real server with the virtual servers of these lines.
fn with_vms(targets: &str) -> String {
    GOOD.to_owned()
        + "\n[[agent]]\nname = \"rs1\"\naddress = \"10.77.0.31:7702\"\nguard = \"tap\"\n[[agent]]\nname = \"g1\"\n\
           address = \"10.77.0.61:7702\"\nguard = \"none\"\n"
        + targets
}

#[test]
fn a_virtual_server_is_a_target_with_or_without_an_agent_of_its_own() {
    let text = with_vms(
        "[[target]]\nname = \"web1\"\nvm = { domain = \"web1\", host = \"rs1\" }\nagent = \"g1\"\nvips = [\"10.77.0.111\"]\n\
         backup = { agent = \"mgmt\", domain = \"webb\" }\n\
         [[target]]\nname = \"web2\"\nvm = { domain = \"web2\", host = \"rs1\" }\naddress = \"10.77.0.62\"\nvips = [\"10.77.0.112\"]\n\
         backup = { agent = \"mgmt\", domain = \"webb\" }\n",
    );
    let cluster = Cluster::parse(&text).unwrap_or_else(|error| panic!("{error}"));
    let web1 = &cluster.targets[&"web1".parse().expect("name")];
    assert_eq!((web1.agent.as_str(), web1.address.to_string().as_str()), ("rs1", "10.77.0.61"));
    assert_eq!(web1.inner_agent().map(AgentId::as_str), Some("g1"));
    let web2 = &cluster.targets[&"web2".parse().expect("name")];
    assert_eq!((web2.domain().map(DomainName::as_str), web2.inner_agent()), (Some("web2"), None));
    let arrangement = crate::arrangement::Arrangement::of(&cluster);
    assert_eq!(arrangement.operation.len(), 2, "the machine mail has no place in the tables");
}

#[test]
fn every_fault_of_a_virtual_server_is_told() {
    let backup = "backup = { agent = \"mgmt\", domain = \"web1\" }";
    let text = with_vms(&format!(
        "[[target]]\nname = \"web1\"\nvm = {{ domain = \"web1\", host = \"rs1\" }}\nvips = [\"10.77.0.111\"]\naddress = \"10.77.0.61\"\n{backup}\n\
         [[target]]\nname = \"web2\"\nvm = {{ domain = \"web1\", host = \"v1\" }}\nagent = \"v2\"\nvips = [\"10.77.0.112\"]\n\
         backup = {{ agent = \"mgmt\", domain = \"webb\" }}\n\
         [[target]]\nname = \"web3\"\nvm = {{ domain = \"web3\", host = \"rs2\" }}\nvips = [\"10.77.0.113\"]\naddress = \"10.77.0.63\"\n\
         backup = {{ agent = \"mgmt\", domain = \"webb\" }}\n[[target.service]]\nname = \"db\"\nprobe = \"tcp\"\nport = 1\n\
         single_writer = true\nwriter_fence = \"power\"\n\
         [[target]]\nname = \"web4\"\nvm = {{ host = \"mgmt\" }}\nvips = [\"10.77.0.114\"]\n\
         backup = {{ agent = \"mgmt\", domain = \"webb\" }}\n",
    ));
    insta::assert_snapshot!(faults(&text));
}

#[test]
fn too_few_voters_are_reported_with_the_ways_out() {
    let text = faults(&GOOD.replace("voter = true", "voter = false"));
    assert!(text.contains("cluster.toml:2: [cluster]: on_coordinator_loss = \"voters\" needs three agents"), "{text}");
    assert!(!text.contains('\n'), "{text}");
}

#[test]
fn malformed_hours_and_limits_are_told_with_their_reason() {
    let hours = |keys: &str| faults(&GOOD.replace("healthy_for = \"2s\"", keys));
    assert_eq!(
        hours("failback_hours = [\"22:00-6:00\", \"Son 01:00-02:00\", \"Sat,Sun 00:00-24:00\", \"03:00-03:00\"]"),
        "cluster.toml:34: [[target]] mail: failback_hours = \"22:00-6:00\": \"6:00\" is no time of day: write a window as \
         \"22:00-06:00\", \"Sat,Sun 00:00-24:00\" or \"Mon-Fri 01:30-04:00\" (UTC)\n\
         cluster.toml:34: [[target]] mail: failback_hours = \"Son 01:00-02:00\": \"Son\" is no day: use Mon, Tue, Wed, \
         Thu, Fri, Sat, Sun\n\
         cluster.toml:34: [[target]] mail: failback_hours = \"03:00-03:00\": it ends when it begins: for whole days write \
         00:00-24:00"
    );
    assert_eq!(
        hours("failback_hours = []"),
        "cluster.toml:34: [[target]] mail: failback_hours = []: leave it out, or give one window"
    );
    assert_eq!(
        hours("failback = \"keep\"\nfailback_hours = [\"22:00-06:00\"]"),
        "cluster.toml:35: [[target]] mail: failback_hours = [\"22:00-06:00\"]: only failback = \"auto\" has hours: leave it out"
    );
    let limit = GOOD.replace(
        "[[agent]]\n    name = \"mail\"",
        "[quarantine]\nhold = \"1h\"\nhold_limit = \"30m\"\n[[agent]]\nname = \"mail\"",
    );
    assert_eq!(
        faults(&limit),
        "cluster.toml:11: [quarantine]: hold_limit = \"30m\": shorter than hold (3600s): give as much or more"
    );
    let only_hold =
        Cluster::parse(&limit.replace("hold_limit = \"30m\"", "hold = \"9h\"").replacen("hold = \"1h\"\n", "", 1));
    assert_eq!(only_hold.map(|cluster| cluster.quarantine.hold_limit).ok(), Some(Duration::from_secs(9 * 3600)));
}

/// GOOD with a hypervisor that is no voter.
fn saving(more: &str) -> String {
    format!("{GOOD}\n[[agent]]\nname = \"rs1\"\naddress = \"10.77.0.91:7702\"\nguard = \"tap\"\n{more}\n")
}

#[test]
fn power_saving_is_read_with_its_defaults() {
    let text = saving(
        "[[target]]\nname = \"mail1\"\nvm = { domain = \"mail1\", host = \"rs1\" }\naddress = \"10.77.0.61\"\n\
         vips = [\"10.77.0.111\"]\nbackup = { agent = \"mgmt\", domain = \"mailb\" }\n\
         [[host]]\nagent = \"rs1\"\nwatts = { awake = 88, asleep = 4 }\npinned = \"files\"\nwakes_in = \"9s\"\n\
         [[group]]\nname = \"mail\"\nmembers = [\"mail1\"]\nbase = \"rs1\"\n\
         thresholds = { cpu = { light = 10 } }\nrepeats = { light = 4 }\nawake = [\"Mon-Fri 07:00-19:00\"]\n\
         [pss]\ninterval = \"20s\"\nsurvive_host = false",
    );
    let cluster = Cluster::parse(&text).unwrap_or_else(|error| panic!("{error}"));
    let host = cluster.hosts.values().next().expect("host");
    assert_eq!((host.watts, host.pinned.as_deref()), (Some((88, 4)), Some("files")));
    let group = cluster.groups.values().next().expect("group");
    assert_eq!((group.cpu.light, group.cpu.moderate1, group.memory.light), (10, 50, 60));
    assert_eq!((group.repeats, group.shared_storage, group.awake.windows().len()), ((4, 3, 3), true, 1));
    assert_eq!((cluster.saving.interval.as_secs(), cluster.saving.fresh.as_secs()), (20, 60));
    assert!(!cluster.saving.survive_host && cluster.supervise);
    let none = Cluster::parse(GOOD).expect("good");
    assert!(none.groups.is_empty() && none.saving == saving::Saving::default());
}

#[test]
fn faults_of_power_saving_are_told_with_line_value_and_reason() {
    let text = saving(
        "[[host]]\nagent = \"rs1\"\nwatts = { awake = 4, asleep = 88 }\n[[host]]\nagent = \"rs2\"\n[[host]]\nagent = \"v1\"\n\
         [[group]]\nname = \"mail\"\nmembers = [\"mial\", \"mail\", \"mail\"]\nbase = \"rs3\"\n\
         thresholds = { cpu = { light = 60 }, memory = { heavy = 80 } }\nrepeats = { light = 2 }\nraeted = 5\n\
         [pss]\nfresh = \"5s\"\npatience = \"1m\"\nmigration_uri = \"qemu+tcp://x/system\"\nawake_hosts = 0\nalarm = \"48h\"",
    );
    insta::assert_snapshot!(faults(&text));
}

/// Each by itself: the line, the value, and what would be right.
#[test]
fn what_power_saving_could_never_do_is_told() {
    let fault = |host: &str, group: &str, pss: &str| {
        let faults = faults(&saving(&format!(
            "[[agent]]\nname = \"rs2\"\naddress = \"10.77.0.92:7702\"\nguard = \"tap\"\n\
             [[target]]\nname = \"mail1\"\nvm = {{ domain = \"mail1\", host = \"rs1\" }}\naddress = \"10.77.0.61\"\n\
             vips = [\"10.77.0.111\"]\nbackup = {{ agent = \"mgmt\", domain = \"mailb\" }}\n\
             [[host]]\nagent = \"rs1\"\n[[host]]\nagent = \"rs2\"\n{host}\n\
             [[group]]\nname = \"mail\"\nmembers = [\"mail1\"]\n{group}\n[pss]\n{pss}"
        )));
        faults.trim_start_matches("cluster.toml:").to_owned()
    };
    let cases = [
        ("", "base = \"rs9\"", "", "62: [[group]] mail: base = \"rs9\": there is no [[host]] of that name"),
        ("", "", "base = \"rs9\"", "64: [pss]: base = \"rs9\": there is no [[host]] of that name"),
        ("", "", "awake_hosts = 3", "64: [pss]: awake_hosts = 3: there are only 2 [[host]]: none would ever sleep"),
        ("", "", "awake_hosts = 0", "64: [pss]: awake_hosts = 0: "),
        ("", "repeats = { light = 0 }", "", "62: [[group]] mail repeats: light = 0: give 1 to 100000"),
        ("", "rated = 0", "", "62: [[group]] mail: rated = 0: "),
        (
            "",
            "thresholds = { cpu = { light = 60 } }",
            "",
            "62: [[group]] mail thresholds cpu: light = 60: must be below",
        ),
        ("", "awake = [\"7-19\"]", "", "62: [[group]] mail: awake = \"7-19\": \"7\" is no time of day"),
        ("", "", "awake = [\"Mon-Fry 07:00-19:00\"]", "64: [pss]: awake = \"Mon-Fry 07:00-19:00\": \"Fry\" is no day"),
        ("wakes_in = \"0s\"", "", "", "58: [[host]] #2: wakes_in = \"0s\": "),
        (
            "",
            "shared_storage = false\nbase = \"rs2\"",
            "",
            "63: [[group]] mail: base = \"rs2\": group mail has no shared_storage, and no member of it belongs on rs2: name \
             the real server of a member",
        ),
        (
            "",
            "shared_storage = false",
            "base = \"rs2\"",
            "64: [pss]: base = \"rs2\": group mail has no shared_storage, and no member of it belongs on rs2: name another",
        ),
    ];
    for (host, group, pss, wanted) in cases {
        let told = fault(host, group, pss);
        assert!(told.starts_with(wanted) && !told.contains('\n'), "{told}\nwanted: {wanted}");
    }
    assert_eq!(fault("", "shared_storage = false\nbase = \"rs1\"", "awake_hosts = 2"), "good");
}

#[test]
fn an_empty_file_lacks_what_must_stand_in_it() {
    insta::assert_snapshot!(faults(""), @r#"
    cluster.toml:1: top level: cluster is missing: the cluster as a whole
    cluster.toml:1: top level: coordinator is missing: kage-coordinator
    cluster.toml:1: top level: sif is missing: kage-sif
    "#);
}

#[test]
fn the_example_has_every_key_and_is_good() {
    let text = include_str!("../../../../deploy/cluster.toml");
    let cluster = Cluster::parse(text).unwrap_or_else(|error| panic!("{error}"));
    assert!(!cluster.targets.is_empty());
    for section in keys::SECTIONS {
        for key in section.keys {
            let written = text.lines().map(|line| line.trim_start_matches(['#', ' '])).any(|line| {
                line.starts_with(&format!("{} = ", key.name))
                    || line.trim_matches(['[', ']']).rsplit('.').next() == Some(key.name)
                    || (["vm", "backup", "further", "budget", "… } ]", "watts", "thresholds", "network", "repeats"]
                        .iter()
                        .any(|inline| section.heading.ends_with(inline))
                        && line.contains(&format!("{} = ", key.name)))
            });
            assert!(written, "deploy/cluster.toml says nothing of {} {}", section.heading, key.name);
        }
    }
}

/// The reference is made from the list of keys: `KAGE_UPDATE_DOCS=1 cargo test -p kage-coordinator-core` writes it anew.
#[test]
fn the_reference_is_up_to_date() {
    const BEGIN: &str = "<!-- keys: generated from coordinator/core/src/config/keys.rs -->\n";
    const END: &str = "<!-- end of keys -->\n";
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.md");
    let text = std::fs::read_to_string(path).expect("docs/configuration.md");
    let (before, rest) = text.split_once(BEGIN).expect("begin of keys");
    let (_, after) = rest.split_once(END).expect("end of keys");
    let wanted = format!("{before}{BEGIN}{}{END}{after}", keys::reference());
    if std::env::var_os("KAGE_UPDATE_DOCS").is_some() {
        std::fs::write(path, &wanted).expect("written");
    } else {
        assert!(
            text == wanted,
            "docs/configuration.md is stale: KAGE_UPDATE_DOCS=1 cargo test -p kage-coordinator-core"
        );
    }
}
