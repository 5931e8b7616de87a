//! Every key of `cluster.toml`: what the reader accepts, and the reference in docs/configuration.md.

/// One key.
#[derive(Debug, PartialEq, Eq)]
pub struct Key {
    /// As written.
    pub name: &'static str,
    /// Of what kind its value is.
    pub kind: &'static str,
    /// What it is unless given; empty: it must be given.
    pub default: &'static str,
    /// What it is for.
    pub about: &'static str,
}

/// A table and its keys.
#[derive(Debug, PartialEq, Eq)]
pub struct Section {
    /// As written: `[[agent]]`.
    pub heading: &'static str,
    /// What it is for.
    pub about: &'static str,
    /// All of them.
    pub keys: &'static [Key],
}

const fn key(name: &'static str, kind: &'static str, default: &'static str, about: &'static str) -> Key {
    Key { name, kind, default, about }
}

/// The file itself.
pub const ROOT: Section = Section {
    heading: "cluster.toml",
    about: "The file's sections.",
    keys: &[
        key("cluster", "table", "", "the cluster as a whole"),
        key("coordinator", "table", "", "kage-coordinator"),
        key("sif", "table", "", "kage-sif"),
        key("lease", "table", "of the profile", "the figures of the lease protocol"),
        key("quarantine", "table", "as below", "when a machine that comes and goes is left alone"),
        key("agent", "list of tables", "none", "a machine with an agent, each"),
        key("target", "list of tables", "none", "a supervised server, each"),
        key("host", "list of tables", "none", "a real server of power saving, each"),
        key("group", "list of tables", "none: no power saving", "a service group of power saving, each"),
        key("pss", "table", "as below", "figures of power saving"),
    ],
};

/// `[cluster]`
pub const CLUSTER: Section = Section {
    heading: "[cluster]",
    about: "The cluster as a whole.",
    keys: &[
        key("name", "string", "", "its name, for people"),
        key("profile", "thesis, normal, fast", "normal", "timings of lease and detection: lease 10 s, 2 s, 0.8 s"),
        key(
            "on_coordinator_loss",
            "voters, keep, lapse",
            "voters",
            "what owners do without a coordinator: renew by the voters' consents (three or more agents with voter = true), \
             serve on (then takeover by proof only), or stop serving",
        ),
    ],
};

/// `[coordinator]`
pub const COORDINATOR: Section = Section {
    heading: "[coordinator]",
    about: "kage-coordinator.",
    keys: &[
        key("listen", "IP:PORT", "", "where it serves; also where agents and kagectl find it"),
        key(
            "storage_fence",
            "list of strings",
            "none",
            "program and arguments, run by the coordinator with a machine's address appended, that revoke its access to \
             the storage; status 0: revoked. For writer_fence = \"storage\"",
        ),
        key("storage_unfence", "list of strings", "none", "the same, to give the access back before fail-back"),
    ],
};

/// `[sif]`
pub const SIF: Section = Section {
    heading: "[sif]",
    about: "kage-sif, owner of the ledger.",
    keys: &[
        key("listen", "IP:PORT", "", "where it serves; also where the coordinator finds it"),
        key(
            "term",
            "duration",
            "5s",
            "T, the length of a coordinator's term: 1s to 60s; a new coordinator waits for it",
        ),
    ],
};

/// `[lease]`
pub const LEASE: Section = Section {
    heading: "[lease]",
    about: "Figures of the lease protocol (docs/safety.md), where the profile's don't do. Unsafe ones are refused: \
            lease ≥ 2 element + 2 slack + renewal.",
    keys: &[
        key(
            "lease",
            "duration",
            "of the profile",
            "L, how long a grant is good; the wait for a machine that is silent",
        ),
        key("element", "duration", "of the profile", "K, how long the kernel keeps an address open without renewal"),
        key("renewal", "duration", "of the profile", "R, from one renewal to the next"),
        key("slack", "duration", "50ms", "g, how late a kernel timer may fire"),
        key("long_lease", "duration", "30s", "length of the lease for restarts of an agent"),
    ],
};

/// `[quarantine]`
pub const QUARANTINE: Section = Section {
    heading: "[quarantine]",
    about: "When a machine that comes and goes is left alone (docs/operations.md, \"When a machine is flaky\"): nothing is \
            brought to it while there is another place.",
    keys: &[
        key(
            "lapses",
            "0 to 1000",
            "3",
            "so many times must it come back from a silence in which its lease ran out; 0: no quarantine",
        ),
        key("within", "duration", "10m", "within this time"),
        key(
            "hold",
            "duration",
            "10m",
            "so long must it have been quiet before the quarantine ends; twice as long each time that it comes there again",
        ),
        key("hold_limit", "duration", "4h", "but never longer; after so long without one, it begins at `hold` again"),
    ],
};

/// `[[agent]]`
pub const AGENT: Section = Section {
    heading: "[[agent]]",
    about: "A machine with an agent.",
    keys: &[
        key("name", "name", "", "as in its certificate"),
        key("address", "IP:PORT", "", "where its agent serves, such as \"192.0.2.21:7702\""),
        key("failure_domain", "string", "its name", "what fails together with it (host, rack, switch)"),
        key(
            "voter",
            "boolean",
            "false",
            "it consents to leases while the coordinator is away; three or five, preferably no targets",
        ),
        key("mac", "MAC address", "none: it can't be woken", "where Wake-on-LAN packets go"),
        key(
            "guard",
            "host, tap, none",
            "host",
            "what keeps VIPs shut there: nftables on itself, on the bridge of its VMs, nothing",
        ),
        key(
            "power_status",
            "list of strings",
            "none",
            "program and arguments, run by the coordinator, that print \"off\" when the machine's power reads off: \
             proof of its death, takeover without waiting for its lease",
        ),
        key(
            "power_off",
            "list of strings",
            "none",
            "program and arguments, run by the coordinator, that switch the machine's power off; for writer_fence = \
             \"power\"",
        ),
    ],
};

/// `[[target]]`
pub const TARGET: Section = Section {
    heading: "[[target]]",
    about: "A supervised server.",
    keys: &[
        key("name", "name", "", "for people and commands"),
        key("agent", "name of an agent", "", "the machine that it is"),
        key("vm", "table", "none: a machine", "it is a virtual server on a real server"),
        key("address", "IP address", "its agent's", "pinged and probed there; required with `vm` and no agent"),
        key("vips", "list of IP addresses", "", "the virtual IPs that its clients use"),
        key("backup", "table", "", "the suspended VM that stands in"),
        key("service", "list of tables", "none: only machine and lease are watched", "what it offers"),
        key(
            "failback",
            "auto, manual, keep",
            "auto",
            "back to the target when healthy; only at `kagectl failback`; or the same without an alert: the double keeps \
             serving. Whichever it is, a healthy target takes its place again at once when its double is lost",
        ),
        key(
            "failback_hours",
            "list of windows",
            "always",
            "of `auto`: when, in UTC, such as [\"22:00-06:00\", \"Sat,Sun 00:00-24:00\"]; days (Mon to Sun, Mon-Fri) are \
             those on which a window begins",
        ),
        key(
            "healthy_for",
            "duration",
            "10s; profile thesis: at once",
            "so long must the target answer before it is given back",
        ),
        key("reboot_wait", "duration", "60s", "Trc, how long a rebooting target is waited for before it is woken"),
        key(
            "start_wait",
            "duration",
            "90s",
            "how long a woken target is waited for before it is woken again, and the services of one that came back",
        ),
        key("budget", "table", "as below", "how often each means may be used before the next one is"),
    ],
};

/// `vm = { … }` of a target.
pub const VM: Section = Section {
    heading: "[[target]] vm",
    about: "A target that is a virtual server: a libvirt domain on a real server, whose agent has guard = \"tap\". All \
            virtual IPs of its service group, and those of its backup server, are configured inside it: the bridge keeps \
            them silent where the lease is not. `agent` is then the one inside it (guard = \
            \"none\"), which restarts its services and reports them; it may be left out: then they are only probed.",
    keys: &[
        key("domain", "name", "", "the libvirt domain; no other target and no backup server has that name"),
        key("host", "name of an agent", "", "the real server that it belongs on"),
    ],
};

/// `backup = { … }` of a target.
pub const BACKUP: Section = Section {
    heading: "[[target]] backup",
    about: "A target's backup server: a libvirt domain on another machine, whose agent has guard = \"tap\".",
    keys: &[
        key("agent", "name of an agent", "", "the hypervisor's"),
        key("domain", "name", "", "the libvirt domain"),
        key("address", "IP address", "none", "its own address, no VIP: where `kagectl characterise` waits for it"),
        key(
            "guest",
            "name of an agent",
            "none: it is only reset",
            "of a virtual server's: the agent inside it (guard = \"none\"), which restarts its services, by the names that \
             they have here, while it stands in for a target beyond repair",
        ),
        key(
            "further",
            "table",
            "none",
            "of a virtual server's: who takes over from it when it stands in for a target beyond repair and can't be cured \
             itself",
        ),
    ],
};

/// `further = { … }` of a backup server.
pub const FURTHER: Section = Section {
    heading: "[[target]] backup further",
    about: "A further backup server, suspended on another machine that does not sleep, whose agent has guard = \"tap\". \
            Targets with the same backup server have the same further one.",
    keys: &[
        key("agent", "name of an agent", "", "the hypervisor's"),
        key("domain", "name", "", "the libvirt domain"),
        key("guest", "name of an agent", "none: it is only reset", "the agent inside it, as of `backup`"),
    ],
};

/// `budget = { … }` of a target.
pub const BUDGET: Section = Section {
    heading: "[[target]] budget",
    about: "How often each means may be used within a window. Out of restarts, the backup server takes over and the \
            target is rebooted; out of reboots, it is given up with an alert; out of takeovers, the backup server keeps \
            serving until the window is over, or until `kagectl failback`, which also begins all counts anew.",
    keys: &[
        key("restarts", "0 to 1000", "3", "of each service"),
        key("reboots", "0 to 1000", "1", "of the target"),
        key("takeovers", "1 to 1000", "3", "because of failures; those asked for don't count"),
        key("within", "duration", "1h", "the window"),
    ],
};

/// `[[target.service]]`
pub const SERVICE: Section = Section {
    heading: "[[target.service]]",
    about: "A service of a target.",
    keys: &[
        key("name", "name", "", "as in agent.toml of the target's machine"),
        key("probe", "name of a preset", "none: `steps`", "how it is asked whether it is well: docs/probes.md"),
        key("steps", "list of tables", "of the preset", "instead of `probe`: what is said and must be answered"),
        key("port", "1 to 65535", "of the preset", "where"),
        key("restart", "boolean", "true", "restart it before anything else is done"),
        key("single_writer", "boolean", "false", "two instances at once would spoil its data (databases, mail queues)"),
        key(
            "writer_fence",
            "none, power, storage",
            "none",
            "of a single_writer: what must be certain before the double of a silent target is resumed: its power reads \
             off (power_status, power_off), or storage_fence has revoked its access. none: not taken over without \
             release or proof",
        ),
        key("timeout", "duration", "of the profile", "for the whole probe: at most 60s"),
        key("tls", "boolean", "of the preset", "speak TLS from the first byte; the certificate is not verified"),
        key("udp", "boolean", "false", "with `steps`: send datagrams"),
        key("path", "string", "/", "http, https: what is asked for"),
        key("host", "string", "the first VIP", "http, https: the Host header; with TLS the name asked for (SNI)"),
        key("status", "pattern", "`2..` or `3..`", "http, https: which status is good"),
        key("method", "string", "GET", "http, https: HEAD and others"),
        key("query", "DNS name", ".", "dns: the name asked for"),
    ],
};

/// A step of a service's `steps`
pub const STEP: Section = Section {
    heading: "steps = [ { … } ]",
    about: "A step of a service's probe: send something, then wait for something.",
    keys: &[
        key("send", "string", "nothing", "sent first; escapes `\\r \\n \\t \\0 \\\\ \\xHH`"),
        key("expect", "pattern", "nothing", "then read on until this matches"),
        key("wrong", "pattern", "none", "if this matches instead, the reply is wrong at once"),
        key("timeout", "duration", "of the probe", "for this step"),
    ],
};

/// `[[host]]`
pub const HOST: Section = Section {
    heading: "[[host]]",
    about: "A real server of power saving (docs/power-saving.md). Its agent has guard = \"tap\" and is no voter.",
    keys: &[
        key("agent", "name of an agent", "", "its agent"),
        key(
            "watts",
            "table",
            "60 W awake, 3 W asleep",
            "what it draws: what sleep saves, and the sums of `kagectl pss`",
        ),
        key("pinned", "string", "none: it may sleep", "why it never sleeps"),
        key(
            "wake",
            "list of strings",
            "none: magic packets to its agent's mac",
            "program and arguments, run by kage-coordinator, that wake it (a BMC); status 0: it was told",
        ),
        key(
            "wakes_in",
            "duration",
            "none: not before power saving woke it once",
            "you suspended and woke it, and its agent answered after this time: the proof without which no host sleeps",
        ),
    ],
};

/// `watts = { … }` of a host.
pub const WATTS: Section = Section {
    heading: "[[host]] watts",
    about: "What a host draws, in watts.",
    keys: &[key("awake", "0 to 100000", "", "awake, as it usually is"), key("asleep", "0 to 100000", "", "suspended")],
};

/// `[[group]]`
pub const GROUP: Section = Section {
    heading: "[[group]]",
    about: "A service group of power saving: targets, all of them virtual servers, that offer the same service.",
    keys: &[
        key("name", "name", "", "for people"),
        key(
            "members",
            "list of names of targets",
            "",
            "in the order in which they are preferred to stay in Light condition",
        ),
        key("base", "name of a host", "that of [pss], else chosen", "where it is gathered in Light condition"),
        key("thresholds", "table", "as below", "of its load, for its class"),
        key("repeats", "table", "as below", "equal judgements running that change its condition"),
        key(
            "awake",
            "list of windows",
            "none",
            "hours, as of failback_hours (UTC), in which it stays in Moderate condition",
        ),
        key("rated", "1 to 10000000", "the fastest NIC of the member's host", "Mbit/s of each member's NIC"),
        key("shared_storage", "boolean", "true", "its disks are where every host reaches them: it can be migrated"),
    ],
};

/// `thresholds = { … }` of a group.
pub const THRESHOLDS: Section = Section {
    heading: "[[group]] thresholds",
    about: "A table for each kind of load: the thesis's (4.1), (4.2) and (4.3).",
    keys: &[
        key("memory", "table", "60, 75, 85, 95", "thresholds of memory"),
        key("cpu", "table", "20, 50, 70, 85", "thresholds of CPU"),
        key("network", "table", "20, 50, 70, 85", "thresholds of network"),
    ],
};

/// `memory = { … }` of thresholds.
pub const LOAD: Section = Section {
    heading: "[[group]] thresholds memory, cpu, network",
    about: "Percent, rising. Between two of them the class stays as it was.",
    keys: &[
        key("light", "1 to 100", "of the kind", "below it: Light"),
        key("moderate1", "1 to 100", "of the kind", "from it: Moderate, on the way up"),
        key("moderate2", "1 to 100", "of the kind", "below it: Moderate, on the way down"),
        key("heavy", "1 to 100", "of the kind", "from it: Heavy, which is only reported"),
    ],
};

/// `repeats = { … }` of a group.
pub const REPEATS: Section = Section {
    heading: "[[group]] repeats",
    about: "So many equal judgements running change the condition.",
    keys: &[
        key("light", "1 to 100000", "6", "to Light; not fewer than to Moderate"),
        key("moderate", "1 to 100000", "3", "to Moderate"),
        key("heavy", "1 to 100000", "3", "to Heavy"),
    ],
};

/// `[pss]`
pub const PSS: Section = Section {
    heading: "[pss]",
    about: "Figures of power saving, for all groups. Without any [[group]] there is none.",
    keys: &[
        key("interval", "duration", "10s", "between judgements (Tim)"),
        key("fresh", "duration", "30s, or three intervals", "an older measurement says nothing"),
        key("base", "name of a host", "chosen", "base server of every group that names none"),
        key("awake_hosts", "1 to 100000", "1", "so many hosts are awake at least"),
        key("awake_for", "duration", "15m", "a woken host stays awake for so long"),
        key("sleeps_a_day", "1 to 1000", "6", "a host goes to sleep at most so often in 24 h"),
        key("migrations", "1 to 1000", "2", "live migrations at the same time"),
        key("migration_bandwidth", "1 to 1000000", "the hypervisor's", "MiB/s of one live migration"),
        key("migration_downtime", "duration", "the hypervisor's", "the longest pause at the end of a live migration"),
        key(
            "migration_uri",
            "string",
            "qemu+tcp://{address}/system",
            "libvirt's URI of a host, as other hosts reach it; {address}: of its agent, without port",
        ),
        key("host_memory", "0 to 100000000", "1024", "MiB of each host that no virtual server gets"),
        key("base_cpu", "1 to 100", "70", "percent of a base server's cores that may be used after a plan"),
        key("alarm", "duration", "12h", "a host that sleeps is woken by its own clock after this, whatever happened"),
        key("survive_host", "boolean", "true", "any one host may be lost after every step (N+1)"),
        key("wake_within", "duration", "30s", "hosts that sleep count in that only if they wake within this"),
        key(
            "watts_per_gib",
            "0 to 100000",
            "1",
            "W that a host that sleeps must save for each GiB migrated to empty it",
        ),
        key("awake", "list of windows", "none", "hours, as of failback_hours (UTC), in which nothing sleeps"),
        key("backoff", "duration", "5m", "after a plan that had to be undone; twice as long each time"),
        key("patience", "duration", "1h", "but never longer; and so long a host that did not wake is not counted on"),
        key("vip_limit", "duration", "30s", "the longest move of a virtual IP"),
        key("migration_limit", "duration", "5m", "the longest live migration"),
        key("vm_limit", "duration", "15s", "the longest suspension of a virtual server, or its end"),
        key("suspend_limit", "duration", "30s", "the longest suspension of a host, until it no longer answers"),
        key(
            "wake_limit",
            "duration",
            "10s",
            "the usual time of waking a host that was never measured; it gets twice that",
        ),
    ],
};

/// All of them, in the order of the reference.
pub const SECTIONS: &[&Section] = &[
    &ROOT,
    &CLUSTER,
    &COORDINATOR,
    &SIF,
    &LEASE,
    &QUARANTINE,
    &AGENT,
    &TARGET,
    &VM,
    &BACKUP,
    &FURTHER,
    &BUDGET,
    &SERVICE,
    &STEP,
    &HOST,
    &WATTS,
    &GROUP,
    &THRESHOLDS,
    &LOAD,
    &REPEATS,
    &PSS,
];

/// The reference as Markdown, section by section (docs/configuration.md).
#[must_use]
pub fn reference() -> String {
    let mut text = String::new();
    for section in SECTIONS {
        text += &format!(
            "## `{}`\n\n{}\n\n| Key | Value | Default | Meaning |\n|---|---|---|---|\n",
            section.heading, section.about
        );
        for key in section.keys {
            let default = if key.default.is_empty() { "**required**" } else { key.default };
            text += &format!("| `{}` | {} | {} | {} |\n", key.name, key.kind, default, key.about);
        }
        text.push('\n');
    }
    text
}
