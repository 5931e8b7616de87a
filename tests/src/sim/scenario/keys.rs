//! Every key of a scenario file: what the reader accepts, and the reference in docs/simulation.md.

use kage_coordinator_core::config::keys::{Key, Section};

const fn key(name: &'static str, kind: &'static str, default: &'static str, about: &'static str) -> Key {
    Key { name, kind, default, about }
}

/// The file itself.
pub const ROOT: Section = Section {
    heading: "top level",
    about: "A scenario as a whole. Time begins when all that has power at the beginning is up and every VIP is served.",
    keys: &[
        key("name", "string", "", "what it shows, for people"),
        key("duration", "duration", "", "how long it goes on: at most 24h"),
        key("seed", "0 to 4000000000", "1", "all chance (delays, phases) follows from it; `--seed` overrides it"),
        key("profile", "thesis, normal, fast", "normal", "as in cluster.toml"),
        key("on_coordinator_loss", "voters, keep, lapse", "voters", "as in cluster.toml"),
        key("coordinator", "name of a host", "a machine of its own", "where the coordinator lives: it dies with it"),
        key("sif", "name of a host", "a machine of its own", "where SIF lives"),
        key(
            "cluster",
            "file",
            "none",
            "a cluster.toml, next to the scenario, in place of [[server]]: hosts and servers are its own; [[host]] then adds facts only",
        ),
        key(
            "ends",
            "serving, well, any",
            "serving",
            "how it must be at the end: every VIP served; everything up and at rest as well; no matter",
        ),
        key(
            "breaks",
            "list of promises",
            "none",
            "promises (by `name` in the outcome) that may be broken here, by docs/safety.md: told, and no failure",
        ),
        key("quarantine", "table", "of cluster.toml", "as in cluster.toml: lapses, within, hold, hold_limit"),
        key("host", "list of tables", "of `cluster`", "a machine with an agent, each"),
        key("server", "list of tables", "of `cluster`", "a supervised server (target), each"),
        key("event", "list of tables", "none", "what happens, each at its time"),
        key("expect", "list of tables", "none", "what must come of it, each"),
    ],
};

/// `[[host]]`
pub const HOST: Section = Section {
    heading: "[[host]]",
    about: "A machine with an agent.",
    keys: &[
        key("name", "name", "", "used everywhere else in the file"),
        key(
            "voter",
            "boolean",
            "false",
            "as in cluster.toml; three are needed unless on_coordinator_loss says otherwise",
        ),
        key("failure_domain", "string", "its name", "what fails together with it"),
        key(
            "power",
            "none, status, control",
            "none",
            "its power can be read (power_status); and switched off (power_off)",
        ),
        key("boot", "duration", "10s", "from power to its agent"),
        key("wakes", "boolean", "true", "a magic packet starts it"),
        key("state", "on, off", "on", "at the beginning"),
    ],
};

/// `[[server]]`
pub const SERVER: Section = Section {
    heading: "[[server]]",
    about: "A supervised server: a target with its double.",
    keys: &[
        key("name", "name", "", "used everywhere else in the file"),
        key("host", "name of a host", "", "the machine that it is"),
        key("standby", "table", "", "the double"),
        key("vips", "list of IP addresses", "one of its own", "what its clients use"),
        key("services", "list of strings", "[\"http\"]", "presets of docs/probes.md, each a service of that name"),
        key("failback", "auto, manual, keep", "auto", "as in cluster.toml"),
        key(
            "failback_hours",
            "list of windows",
            "always",
            "as in cluster.toml; the scenarios' time begins on a Friday, about 08:00 UTC",
        ),
        key(
            "writer_fence",
            "none, power, storage",
            "any number may write",
            "its services are single writers, bound to its lease and fenced so, as in cluster.toml",
        ),
        key("healthy_for", "duration", "10s", "as in cluster.toml"),
        key("reboot_wait", "duration", "60s", "as in cluster.toml"),
        key("start_wait", "duration", "90s", "as in cluster.toml"),
        key("restarts", "0 to 1000", "3", "budget within an hour, as in cluster.toml"),
        key("reboots", "0 to 1000", "1", "budget within an hour"),
        key("takeovers", "1 to 1000", "3", "budget within an hour"),
    ],
};

/// `standby = { … }`
pub const STANDBY: Section = Section {
    heading: "standby = { … }",
    about: "A server's double. Servers that name the same one share it.",
    keys: &[
        key("host", "name of a host", "", "its hypervisor"),
        key("domain", "name", "the server's and `b`", "the libvirt domain"),
    ],
};

/// `[[event]]`
pub const EVENT: Section = Section {
    heading: "[[event]]",
    about: "Something that happens. Which keys go with which `what`: the table below.",
    keys: &[
        key("what", "word", "", "what happens"),
        key("at", "duration", "0", "when, since the beginning; with `on`: not before"),
        key(
            "on",
            "list of kinds",
            "none",
            "when the coordinator says this (docs/events.md), once for each of these kinds",
        ),
        key("about", "name of a server", "any", "of `on`: about this one only"),
        key("for", "duration", "until the end, or at once", "it ends by itself after this"),
        key(
            "hosts",
            "list of hosts",
            "",
            "where; `all` is every host; of the network also `coordinator`, `sif`, `clients`",
        ),
        key("from", "list of hosts", "[\"all\"]", "network-off: cut off from these"),
        key(
            "direction",
            "both, in, out",
            "both",
            "network-off: nothing passes; nothing reaches `hosts`; nothing leaves them",
        ),
        key("percent", "1 to 99", "", "loss: of all packets"),
        key("delay", "duration", "", "slow, libvirt-slow: up to so much more"),
        key("server", "name of a server", "", "which"),
        key("service", "name", "its first", "which"),
        key(
            "cure",
            "restart, reboot, nothing",
            "restart",
            "what brings the service back; nothing: only service-repair",
        ),
        key("vips", "list of IP addresses", "", "stranger: answers for these"),
        key("scope", "all, target:NAME, agent:NAME", "", "of the order"),
        key("reason", "string", "empty", "of the order"),
        key("announced", "boolean", "true", "suspend: the agent is told before and lets go"),
        key("force", "boolean", "false", "failover, failback: even if the destination looks bad"),
        key("lose", "boolean", "false", "sif-kill: its ledger is lost"),
    ],
};

/// `[[expect]]`
pub const EXPECT: Section = Section {
    heading: "[[expect]]",
    about: "Something that must be so. Which keys go with which `what`: the table below.",
    keys: &[
        key("what", "word", "", "what is expected"),
        key("server", "name of a server", "every server", "of which"),
        key("host", "name of a host", "", "of which"),
        key("at", "duration", "the end", "at this time"),
        key("from", "duration", "the beginning", "not before"),
        key("until", "duration", "the end", "not after"),
        key("is", "string", "", "what it must be"),
        key("min", "duration or number", "0", "at least"),
        key("max", "duration or number", "", "at most"),
        key("kind", "kind of event", "any", "docs/events.md"),
    ],
};

/// A word of `what` and the keys that go with it: those it needs, those it may have, what it means.
pub struct Word {
    /// As written.
    pub name: &'static str,
    /// It can't do without.
    pub needs: &'static [&'static str],
    /// It may have.
    pub may: &'static [&'static str],
    /// For people.
    pub about: &'static str,
}

const fn word(
    name: &'static str,
    needs: &'static [&'static str],
    may: &'static [&'static str],
    about: &'static str,
) -> Word {
    Word { name, needs, may, about }
}

/// All events.
pub const EVENTS: &[Word] = &[
    word("power-off", &["hosts"], &["for"], "no power; with `for` it comes back then and the machine boots"),
    word("power-on", &["hosts"], &[], "power, and it boots"),
    word("freeze", &["hosts", "for"], &[], "nothing on it gets any time; then it goes on as if nothing had been"),
    word("network-off", &["hosts"], &["from", "direction", "for"], "cut off"),
    word("network-on", &["hosts"], &[], "every network-off of these hosts without `for` is over"),
    word("loss", &["percent"], &["for"], "packets are lost everywhere"),
    word("slow", &["delay"], &["for"], "packets take longer everywhere"),
    word("agent-stall", &["hosts", "for"], &[], "the agent gets no time, its machine does"),
    word("agent-kill", &["hosts"], &["for"], "its process dies and is started again, after 1s unless `for` says"),
    word("agent-stop", &["hosts"], &["for"], "a planned stop or upgrade, of 1s unless `for` says"),
    word("reboot", &["hosts"], &[], "a clean reboot"),
    word("shutdown", &["hosts"], &[], "a clean shutdown"),
    word("suspend", &["hosts", "for"], &["announced"], "the machine sleeps"),
    word("flush", &["hosts"], &[], "somebody flushes nftables"),
    word("service-crash", &["server"], &["service", "cure", "for"], "its process is gone; its agent sees that"),
    word("service-hang", &["server"], &["service", "cure", "for"], "it takes connections and says nothing"),
    word("service-repair", &["server"], &["service"], "it answers again"),
    word("double-crash", &["server"], &[], "the double's process dies"),
    word("libvirt-hang", &["hosts", "for"], &[], "libvirt answers nobody; then it does all it was asked"),
    word("libvirt-slow", &["hosts", "delay"], &["for"], "each call takes so much longer"),
    word("libvirt-fail", &["hosts"], &["for"], "each call fails"),
    word("power-reads-off", &["hosts"], &["for"], "a power controller that lies: reads off whatever is"),
    word("power-reads-on", &["hosts"], &["for"], "a power controller that lies: reads on, and switches nothing"),
    word("announcements-lost", &["hosts"], &["for"], "gratuitous ARP from there reaches nobody"),
    word("stranger", &["vips"], &["for"], "some other machine answers for these VIPs"),
    word("coordinator-kill", &[], &["for"], "its process dies; with `for` it is started again then"),
    word("coordinator-start", &[], &[], "it is started"),
    word("coordinator-stall", &["for"], &[], "it gets no time"),
    word("sif-kill", &[], &["for", "lose"], "its process dies; with `for` it is started again then"),
    word("sif-start", &[], &[], "it is started"),
    word("maintenance", &["scope"], &["reason", "for"], "`kagectl maintenance`: with `for` it ends by itself"),
    word("end-maintenance", &["scope"], &[], "`kagectl maintenance --end`"),
    word("disarm", &[], &["reason", "for"], "`kagectl disarm`"),
    word("arm", &[], &[], "`kagectl arm`"),
    word("failover", &["server"], &["force"], "`kagectl failover`"),
    word("failback", &["server"], &["force"], "`kagectl failback`"),
];

/// All expectations.
pub const EXPECTATIONS: &[Word] = &[
    word("no-takeover", &[], &["server", "from", "until"], "no VIP of it opens on another machine than the one before"),
    word("takeover", &["server"], &["from", "until"], "a VIP of it opens on its double's host"),
    word("owner", &["server", "is"], &["at"], "all its VIPs are open on this host (or on `nobody`)"),
    word("served", &[], &["server", "at"], "clients get what they want of all its VIPs"),
    word("not-served", &["server"], &["at"], "they don't, of any"),
    word(
        "outage",
        &["max"],
        &["server", "min", "from", "until"],
        "the longest time without service of any of its VIPs",
    ),
    word("two-owners", &["max"], &["server"], "two machines' packets passed for one of its VIPs for so long, together"),
    word("event", &["kind"], &["server", "from", "until"], "the coordinator says this"),
    word("alert", &[], &["kind", "server", "from", "until"], "the coordinator alerts"),
    word("no-alert", &[], &["kind", "server", "from", "until"], "it does not"),
    word("boots", &["host", "is"], &[], "it has booted so often since the beginning"),
    word("power", &["host", "is"], &["at"], "on, off, asleep, frozen"),
    word("mode", &["server", "is"], &["at"], "the mode of its supervision (docs/modes.md), with or without its step"),
    word("restarts", &["server", "is"], &[], "the coordinator has had its services restarted so often"),
    word("reboots", &["server", "is"], &[], "the coordinator has had it rebooted so often"),
    word("answer", &["is"], &["at"], "how the last operator's command before then ended: done, or part of the reason"),
];

/// The reference as Markdown (docs/simulation.md).
#[must_use]
pub fn reference() -> String {
    let mut text = String::new();
    for section in [&ROOT, &HOST, &SERVER, &STANDBY, &EVENT, &EXPECT] {
        text += &format!(
            "### `{}`\n\n{}\n\n| Key | Value | Default | Meaning |\n|---|---|---|---|\n",
            section.heading, section.about
        );
        for key in section.keys {
            let default = if key.default.is_empty() { "**required**" } else { key.default };
            text += &format!("| `{}` | {} | {} | {} |\n", key.name, key.kind, default, key.about);
        }
        text.push('\n');
    }
    let code = |keys: &[&str]| keys.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(" ");
    for (heading, words) in [("Events", EVENTS), ("Expectations", EXPECTATIONS)] {
        text += &format!("### {heading}\n\n| `what` | Needs | May have | Meaning |\n|---|---|---|---|\n");
        for word in words {
            text += &format!("| `{}` | {} | {} | {} |\n", word.name, code(word.needs), code(word.may), word.about);
        }
        text.push('\n');
    }
    text.trim_end().to_owned() + "\n"
}
