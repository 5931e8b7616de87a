//! The DBSS log in the form of the thesis (F4.1–F4.4, and of virtual servers fig. 4.10 and 4.11), made of our events. Which
//! event becomes which line, and what has no counterpart: docs/events.md.
//!
//! As in the printed figures a `.` stands for seconds in which nothing happened but waiting.

mod saving;

use kage_proto::coordinator::v1::{Event, Status};
use std::fmt::Write as _;

/// Where a target is, as far as the wording depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Regular,
    /// Its service is in trouble.
    Service,
    /// Its network is in trouble.
    Network,
    /// The virtual server serves; background job 1 works.
    AwayService,
    /// The same; background job 2.
    AwayNetwork,
    /// The same, and Wake-on-LAN was used.
    AwayWoken,
    /// On its way back.
    Returning,
}

use Phase::{AwayNetwork, AwayService, AwayWoken, Network, Regular, Returning, Service};

/// What is supervised: the letters of chapters 2 and 4 differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// A real server IPR, whose double is the virtual server IPV.
    Real,
    /// A virtual server IPV, whose double is the backup server IPB; times have hundredths there.
    Virtual,
}

/// One event's lines in one phase; `{S}` is the service.
struct Rule {
    kind: &'static str,
    /// Empty: in all.
    phases: &'static [Phase],
    /// None: of both.
    server: Option<Server>,
    lines: &'static [&'static str],
    next: Option<Phase>,
}

const fn rule(
    kind: &'static str,
    phases: &'static [Phase],
    lines: &'static [&'static str],
    next: Option<Phase>,
) -> Rule {
    Rule { kind, phases, server: None, lines, next }
}

const fn of_virtual(kind: &'static str, phases: &'static [Phase], lines: &'static [&'static str]) -> Rule {
    Rule { kind, phases, server: Some(Server::Virtual), lines, next: None }
}

const AWAY: &[Phase] = &[AwayService, AwayNetwork, AwayWoken];

/// The first that fits is taken.
const RULES: &[Rule] = &[
    rule("service-trouble", &[], &["Network_is_normal", "{S}_is_stop_condition"], Some(Service)),
    rule("restarting", &[], &["Network_is_normal", "Start_to_restart_{S}"], Some(Service)),
    rule("service-normal", &[], &["Start_to_check_{S}", "{S}_is_normal"], Some(Regular)),
    rule("network-trouble", &[], &["IPR_network_is_trouble"], Some(Network)),
    rule("network-normal", &[], &["Network_is_normal", "IPR_is_normal"], Some(Regular)),
    rule("rolled-back", &[], &["Network_is_normal", "IPR_is_normal"], Some(Regular)),
    rule("restarts-used-up", &[], &["Cannot_recover_{S}_on_IPR"], Some(Service)),
    rule("confirmed", &[Service], &["Cannot_recover_{S}_on_IPR"], None),
    rule("confirmed", &[], &["IPR_network_is_trouble"], Some(Network)),
    rule("backup-server", &[Service], &["Start_of_virtual_server_(IPV)"], Some(AwayService)),
    rule("backup-server", &[], &["__Restart_check_(IPR)", "Start_of_virtual_server_(IPV)"], Some(AwayNetwork)),
    rule("failover", &[], &["Start_of_virtual_server_(IPV)"], Some(AwayNetwork)),
    rule("released", AWAY, &["Remove_virtual_IP_(IPR)"], None),
    of_virtual("released", &[Returning], &["Remove_virtual_IP_(IPV)"]),
    of_virtual("suspended", &[], &["IPR_is_suspended"]),
    of_virtual("resumed", &[], &["IPR_is_activated"]),
    rule("backup-up", &[], &["Server_start_Complete"], None),
    rule("vip-set", AWAY, &["Virtual_IP:_VIP_(IPV)", "Wait"], None),
    rule("vip-set", &[Returning], &["Virtual_IP:_VIP_(IPV->IPR)"], None),
    rule("vip-set", &[], &["Virtual_IP:_VIP_(IPR)", "IPR_is_normal"], Some(Regular)),
    rule("rebooting", &[], &["__Start_of_restart_(IPR)"], Some(AwayService)),
    rule("waking", &[AwayWoken], &["__Start_IPR_forcibly"], None),
    rule("waking", &[], &["__Server_is_down_(IPR)", "__Start_IPR_forcibly"], Some(AwayWoken)),
    rule("target-back", &[AwayWoken], &["__Server_start_Complete"], None),
    rule("target-back", &[], &["__Restart_is_end_(IPR)"], None),
    rule("target-away", &[], &["__Restart_check_(IPR)"], Some(AwayNetwork)),
    rule("target-up", &[AwayService], &["__Recovery_of_{S}_on_IPR", "__Make_up.file"], None),
    rule("target-up", &[], &["__IPR_is_normal", "__Make_up.file"], None),
    rule("down", &[], &["__Make_down.file", "Find_down.file"], None),
    rule("returning", &[], &["Find_up.file"], Some(Returning)),
    rule("failback", &[], &[], Some(Returning)),
    rule("double-lost", &[], &[], Some(Returning)),
    rule("regular", &[], &["Network_is_normal", "Service_is_normal", "IPR_is_normal"], Some(Regular)),
    rule("double-suspended", &[], &["Suspend_IPV"], None),
];

/// The log of one target's DBSS.
pub struct Log {
    server: Server,
    phase: Phase,
    service: String,
    /// The service manager told; nobody pinged.
    pushed: bool,
    /// The virtual server serves; the target is waited for.
    waiting: bool,
    /// Power saving moves its virtual IP: DBSS has no line for that.
    arranged: bool,
    /// The second of the last line, and the line.
    last: Option<(u64, &'static str)>,
}

impl Log {
    pub fn new(server: Server) -> Self {
        let service = "service".to_owned();
        Self { server, phase: Regular, service, pushed: false, waiting: false, arranged: false, last: None }
    }

    /// The lines of one event of this target, each with a line feed.
    pub fn lines(&mut self, event: &Event) -> String {
        if let Some(name) = service(event) {
            name.clone_into(&mut self.service);
        }
        if event.kind == "service-down" {
            self.pushed = true;
        }
        self.arranged |= event.kind == "arranged" && self.phase == Regular;
        if event.kind == "vip-set" && self.phase == Regular && std::mem::take(&mut self.arranged) {
            return String::new();
        }
        let fits = |rule: &&Rule| {
            rule.kind == event.kind
                && (rule.phases.is_empty() || rule.phases.contains(&self.phase))
                && rule.server.is_none_or(|server| server == self.server)
        };
        let Some(rule) = RULES.iter().find(fits) else {
            return String::new();
        };
        let second = event.unix_ms / 1000;
        let mut text = String::new();
        for line in rule.lines {
            // In profiles with pushed events no ping precedes the restart.
            if self.pushed && *line == "Network_is_normal" && matches!(rule.kind, "service-trouble" | "restarting") {
                continue;
            }
            self.pass(event.unix_ms, &mut text);
            // Writing to a string can't fail.
            let _ = writeln!(text, "{} {}", self.clock(event.unix_ms), self.words(line));
            self.last = Some((second, line));
            self.waiting |= *line == "Wait";
        }
        self.waiting &= !matches!(rule.next, Some(Regular | Returning));
        self.phase = rule.next.unwrap_or(self.phase);
        if self.phase == Regular {
            self.pushed = false;
        }
        text
    }

    /// With the letters of the chapter.
    fn words(&self, line: &str) -> String {
        let line = line.replace("{S}", &self.service);
        match self.server {
            Server::Real => line,
            Server::Virtual => line.replace("IPV", "IPB").replace("IPR", "IPV"),
        }
    }

    fn clock(&self, unix_ms: u64) -> String {
        match self.server {
            Server::Real => clock(unix_ms, "%T"),
            Server::Virtual => clock(unix_ms, HUNDREDTHS),
        }
    }

    /// What the thesis prints while nothing happens.
    fn pass(&self, unix_ms: u64, text: &mut String) {
        let Some((_, line)) = self.last.filter(|(last, _)| unix_ms / 1000 > last + 1) else {
            return;
        };
        if !self.waiting && !line.ends_with("IPR_is_normal") && !line.ends_with("{S}_is_normal") {
            return;
        }
        text.push_str(".\n");
        if self.waiting {
            let _ = writeln!(text, "{} Wait", self.clock(unix_ms));
        }
    }
}

/// The service that an event is about: "service NAME is …", "restarting NAME".
fn service(event: &Event) -> Option<&str> {
    match event.kind.as_str() {
        "service-trouble" | "service-down" => event.text.strip_prefix("service ")?.split(' ').next(),
        "restarting" => event.text.strip_prefix("restarting ")?.split(' ').next(),
        _ => None,
    }
}

/// As chapter 4's logs have it.
const HUNDREDTHS: &str = "%T%.2f";

fn clock(unix_ms: u64, format: &str) -> String {
    let when = i64::try_from(unix_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    when.map_or_else(
        || "??:??:??".to_owned(),
        |when| when.to_zoned(jiff::tz::TimeZone::system()).strftime(format).to_string(),
    )
}

/// By what the coordinator says, else by events that only virtual servers have.
pub fn server<'a>(target: &str, status: Option<&Status>, mut events: impl Iterator<Item = &'a Event>) -> Server {
    let known = status.and_then(|status| status.targets.iter().find(|known| known.target == target));
    let says = |event: &Event| match event.kind.as_str() {
        "suspended" | "resumed" | "arranged" | "server-crashed" | "switched-off" => true,
        "waking" => event.text.contains(" is down: started on "),
        _ => false,
    };
    let is = known.map_or_else(|| events.any(says), |known| !known.vm.is_empty());
    if is { Server::Virtual } else { Server::Real }
}

/// The head of a log: what IPR, IPV and VIP stand for.
pub fn heading(target: &str, status: Option<&Status>) -> String {
    let mut text = format!("System log\nTarget: {target} server\n");
    let known = status.and_then(|status| Some((status, status.targets.iter().find(|known| known.target == target)?)));
    if let Some((status, known)) = known {
        let address = status.agents.iter().find(|agent| agent.agent == known.agent).map(|agent| agent.address.as_str());
        let address = address.map_or("?", |address| address.rsplit_once(':').map_or(address, |(ip, _)| ip));
        let vips: Vec<&str> = known.vips.iter().map(|vip| vip.vip.as_str()).collect();
        let (backup, at) = (&known.backup_domain, &known.backup_agent);
        // Writing to a string can't fail.
        let _ = if known.vm.is_empty() {
            writeln!(text, "Real server: IPR = {address} ({})\nVirtual server: IPV = {backup} on {at}", known.agent)
        } else {
            writeln!(
                text,
                "Virtual server: IPV = {} on {}\nBackup server: IPB = {backup} on {at}",
                known.vm, known.agent
            )
        };
        let _ = writeln!(text, "Virtual IP address: VIP = {}", vips.join(", "));
    }
    text
}

/// Whole logs, one for each target that has events.
pub fn logs(events: &[Event], status: Option<&Status>) -> String {
    let mut targets: Vec<&str> =
        events.iter().map(|event| event.target.as_str()).filter(|name| !name.is_empty()).collect();
    targets.sort_unstable();
    targets.dedup();
    let mut parts = Vec::new();
    for target in targets {
        let own = || events.iter().filter(|event| event.target == target);
        let mut log = Log::new(server(target, status, own()));
        let mut text = heading(target, status);
        text.push('\n');
        own().for_each(|event| text.push_str(&log.lines(event)));
        parts.push(text);
    }
    let saving = saving::log(events);
    if !saving.is_empty() {
        parts.push(format!("System log\nPSS\n\n{saving}"));
    }
    parts.join("\n")
}

#[cfg(test)]
#[path = "thesis_tests.rs"]
mod tests;
