//! Ready-made probes. Each is only a name for steps; `kagectl probe --list-presets` prints them to copy and change.

use super::{Probe, Step, Transport, escape};
use crate::config::Detection;
use kage_types::Profile;
use std::fmt::Write as _;

/// A ready-made probe.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// As `probe = "…"` names it.
    pub name: &'static str,
    /// What carries it; presets over TCP can be given `tls = true`.
    pub transport: Transport,
    /// Where such services usually listen; none: must be given.
    pub port: Option<u16>,
    /// Keys it understands.
    pub options: &'static [&'static str],
    /// What it shows, in a few words.
    pub about: &'static str,
    make: fn(&Options) -> Vec<Step>,
}

/// What presets can be told.
pub(super) struct Options {
    pub path: String,
    pub host: String,
    pub status: String,
    pub method: String,
    pub query: String,
}

impl Options {
    pub fn of(host: &str) -> Self {
        Self { path: "/".into(), host: host.into(), status: "2..|3..".into(), method: "GET".into(), query: ".".into() }
    }
}

impl Preset {
    pub(super) fn steps(&self, options: &Options) -> Vec<Step> {
        (self.make)(options)
    }
}

const HTTP_OPTIONS: &[&str] = &["path", "host", "status", "method"];

/// All presets.
pub const PRESETS: &[Preset] = &[
    tcp("tcp", None, "accepts connections", |_| Vec::new()),
    tcp("smtp", Some(25), "greets with 220, says goodbye with 221", |_| {
        vec![hear("^220 ").or_wrong(MAIL_WRONG), say("QUIT\r\n", "^221[ -]").or_wrong(MAIL_WRONG)]
    }),
    tcp("submission", Some(587), "greets with 220, answers EHLO with 250", |_| {
        vec![
            hear("^220 ").or_wrong(MAIL_WRONG),
            say("EHLO kagemusha.invalid\r\n", "^250 ").or_wrong(MAIL_WRONG),
            say("QUIT\r\n", "^221[ -]").or_wrong(MAIL_WRONG),
        ]
    }),
    http("http", Transport::Tcp, 80, "answers a request with status 2xx or 3xx"),
    http("https", Transport::Tls, 443, "does the same over TLS"),
    tcp("ftp", Some(21), "greets with 220, says goodbye with 221", |_| {
        vec![hear("^220 ").or_wrong(MAIL_WRONG), say("QUIT\r\n", "^221[ -]").or_wrong(MAIL_WRONG)]
    }),
    tcp("ssh", Some(22), "says which SSH 2 it speaks", |_| vec![hear(r"^SSH-(?:2\.0|1\.99)-")]),
    tcp("imap", Some(143), "greets with OK, answers LOGOUT", |_| {
        vec![
            hear(r"^\* (?:OK|PREAUTH)").or_wrong(r"^\* BYE"),
            say("k1 LOGOUT\r\n", "^k1 OK").or_wrong("^k1 (?:NO|BAD)"),
        ]
    }),
    tcp("pop3", Some(110), "greets with +OK, answers QUIT", |_| {
        vec![hear(r"^\+OK").or_wrong("^-ERR"), say("QUIT\r\n", r"^\+OK").or_wrong("^-ERR")]
    }),
    Preset {
        name: "dns",
        transport: Transport::Udp,
        port: Some(53),
        options: &["query"],
        about: "answers a query (the root's NS, or the A of `query`) with NOERROR or NXDOMAIN",
        make: dns,
    },
    tcp("smb", Some(445), "negotiates SMB 2 or 3", |_| vec![say(SMB_NEGOTIATE, SMB_AGREED).or_wrong(SMB_ANY)]),
    Preset {
        name: "ntp",
        transport: Transport::Udp,
        port: Some(123),
        options: &[],
        about: "answers as a server whose own clock is synchronised",
        make: ntp,
    },
    tcp("postgres", Some(5432), "answers the question whether it speaks TLS", |_| {
        // SSLRequest (PostgreSQL, "Message Formats"): length 8, code 80877103. The answer is one byte and no more: the
        // greeting of SSH begins with S too.
        vec![say(b"\x00\x00\x00\x08\x04\xd2\x16\x2f", r"\A[SN]\z").or_wrong(r"\A[\x00-\xff]")]
    }),
];

/// Of SMTP and FTP: 4yz and 5yz are refusals (RFC 5321 §4.2.1, RFC 959 §4.2).
const MAIL_WRONG: &str = r"^[45]\d\d[ -]";
/// NEGOTIATE of SMB 2.0.2 to 3.0.2 ([MS-SMB2] 2.2.3): NetBIOS length, header, four dialects.
const SMB_NEGOTIATE: &[u8] = b"\x00\x00\x00\x6c\
    \xfeSMB\x40\x00\x00\x00\x00\x00\x00\x00\x00\x00\x1f\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\
    \x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\
    \x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\
    \x24\x00\x04\x00\x01\x00\x00\x00\x00\x00\x00\x00kagemusha-probe!\x00\x00\x00\x00\x00\x00\x00\x00\
    \x02\x02\x10\x02\x00\x03\x02\x03";
/// Status 0 and command 0 in a header of 64 bytes ([MS-SMB2] 2.2.1.2).
const SMB_AGREED: &str = r"\A\x00[\x00-\xff]{3}\xfeSMB@\x00[\x00-\xff]{2}\x00{4}\x00\x00";
const SMB_ANY: &str = r"\A[\x00-\xff]{18}";

const fn tcp(name: &'static str, port: Option<u16>, about: &'static str, make: fn(&Options) -> Vec<Step>) -> Preset {
    Preset { name, transport: Transport::Tcp, port, options: &[], about, make }
}

const fn http(name: &'static str, transport: Transport, port: u16, about: &'static str) -> Preset {
    Preset { name, transport, port: Some(port), options: HTTP_OPTIONS, about, make: request }
}

impl Step {
    fn or_wrong(self, pattern: &str) -> Self {
        Self { wrong: Some(pattern.into()), ..self }
    }
}

fn hear(pattern: &str) -> Step {
    say([], pattern)
}

fn say(bytes: impl AsRef<[u8]>, pattern: &str) -> Step {
    Step { send: bytes.as_ref().to_vec(), expect: Some(pattern.into()), ..Step::default() }
}

/// The pattern of a good status line (RFC 9112 §4); at the very beginning, so that no page can pretend.
pub(super) fn status_line(status: &str) -> String {
    format!(r"\AHTTP/1\.[01] (?:{status})[ \r\n]")
}

fn request(options: &Options) -> Vec<Step> {
    let Options { path, host, status, method, .. } = options;
    let text = format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: kagemusha\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    vec![say(text, &status_line(status)).or_wrong(r"\A[^\n]*\n")]
}

/// A name as DNS writes it (RFC 1035 §3.1).
pub(super) fn dns_name(name: &str) -> Result<Vec<u8>, String> {
    let mut wire = Vec::new();
    let name = name.strip_suffix('.').unwrap_or(name);
    for label in name.split('.').filter(|_| !name.is_empty()) {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length));
        let length = length.ok_or("a DNS name's parts have 1 to 63 characters")?;
        if !label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_') {
            return Err("a DNS name has letters, digits, - and _; write others in punycode".into());
        }
        wire.push(length);
        wire.extend_from_slice(label.as_bytes());
    }
    wire.push(0);
    if wire.len() > 255 { Err("a DNS name has at most 255 bytes".into()) } else { Ok(wire) }
}

/// A query with recursion desired (RFC 1035 §4.1). The identifier may be fixed: each probe has a port of its own, and
/// only the server's datagrams reach it.
fn dns(options: &Options) -> Vec<Step> {
    let mut query = b"KG\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00".to_vec();
    // Checked when it was read; the root stands in for what cannot be.
    let name = dns_name(&options.query).unwrap_or_else(|_| vec![0]);
    let kind = if name.len() == 1 { 2 } else { 1 };
    query.extend_from_slice(&name);
    query.extend_from_slice(&[0, kind, 0, 1]);
    // QR = 1, opcode 0; RCODE 0 or 3 under whatever RA, Z, AD, CD.
    let codes: String = (0..16).map(|high| format!(r"\x{high:x}0\x{high:x}3")).collect();
    vec![say(query, &format!(r"\AKG[\x80-\x87][{codes}]")).or_wrong(r"\AKG[\x80-\xff][\x00-\xff]")]
}

/// Mode 3 of version 4 (RFC 5905 §7.3); good is mode 4 with a leap indicator other than 3 and a stratum of 1 to 15.
fn ntp(_: &Options) -> Vec<Step> {
    let mut query = [0; 48];
    query[0] = 0x23;
    vec![say(query, r"\A[\x1c\x24\x5c\x64\x9c\xa4][\x01-\x0f]").or_wrong(r"\A[\x00-\xff]{2}")]
}

/// The preset of this name.
pub(super) fn find(name: &str) -> Option<&'static Preset> {
    PRESETS.iter().find(|preset| preset.name == name)
}

/// Text as a TOML string, literal where possible.
fn toml_string(text: &str) -> String {
    if text.contains('\'') {
        format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
    } else {
        format!("'{text}'")
    }
}

/// A service's keys but its name, as TOML.
#[must_use]
pub fn to_toml(probe: &Probe, port: u16) -> String {
    let mut text = format!("port = {port}\n");
    match probe.transport {
        Transport::Tcp => {}
        Transport::Tls => text.push_str("tls = true\n"),
        Transport::Udp => text.push_str("udp = true\n"),
    }
    if let Some(timeout) = probe.timeout {
        let _ = writeln!(text, "timeout = \"{}ms\"", timeout.as_millis());
    }
    if probe.steps.is_empty() {
        text.push_str("probe = \"tcp\"\n");
        return text;
    }
    text.push_str("steps = [\n");
    for step in &probe.steps {
        let mut keys = Vec::new();
        if !step.send.is_empty() {
            keys.push(format!("send = {}", toml_string(&escape(&step.send))));
        }
        for (key, pattern) in [("expect", &step.expect), ("wrong", &step.wrong)] {
            keys.extend(pattern.iter().map(|pattern| format!("{key} = {}", toml_string(pattern))));
        }
        keys.extend(step.timeout.iter().map(|timeout| format!("timeout = \"{}ms\"", timeout.as_millis())));
        let _ = writeln!(text, "  {{ {} }},", keys.join(", "));
    }
    text.push_str("]\n");
    text
}

/// Every preset with its steps, as TOML that can be copied and changed.
#[must_use]
pub fn listing() -> String {
    let mut text = String::new();
    for preset in PRESETS {
        let options = match preset.options {
            [] => String::new(),
            options => format!("; options: {}", options.join(", ")),
        };
        let probe = Probe {
            transport: preset.transport,
            steps: preset.steps(&Options::of("www.example.com")),
            ..Probe::default()
        };
        let _ = write!(
            text,
            "# probe = \"{name}\": {about}{options}\n[[target.service]]\nname = \"{name}\"\n{keys}\n",
            name = preset.name,
            about = preset.about,
            keys = to_toml(&probe, preset.port.unwrap_or(7)),
        );
    }
    text
}

/// The presets as a Markdown table, for docs/probes.md.
#[must_use]
pub fn table() -> String {
    let mut text =
        String::from("| `probe =` | Over | Port | Good is a server that | Options |\n|---|---|---|---|---|\n");
    for preset in PRESETS {
        let over = match preset.transport {
            Transport::Tcp => "TCP",
            Transport::Tls => "TLS",
            Transport::Udp => "UDP",
        };
        let port = preset.port.map_or_else(|| "give it".to_owned(), |port| port.to_string());
        let options: Vec<_> = preset.options.iter().map(|option| format!("`{option}`")).collect();
        let _ = writeln!(text, "| `{}` | {over} | {port} | {} | {} |", preset.name, preset.about, options.join(", "));
    }
    text
}

/// The profiles' waits as a Markdown table, for docs/probes.md.
#[must_use]
pub fn times() -> String {
    let profiles = [Profile::Thesis, Profile::Normal, Profile::Fast];
    let mut text = String::from("|");
    let mut row = |title: &str, cell: &dyn Fn(Profile, Detection) -> String| {
        let cells = profiles.map(|profile| cell(profile, Detection::of(profile)));
        let _ = writeln!(text, " {title} | {} |", cells.join(" | "));
        text.push('|');
    };
    row("", &|profile, _| profile.as_str().to_owned());
    row("---", &|_, _| "---".into());
    row("connecting, and each step", &|_, detection| format!("{:?}", detection.probe_timeout));
    row("the whole probe", &|profile, detection| match profile {
        Profile::Thesis => "as its steps".into(),
        Profile::Normal | Profile::Fast => format!("{:?}", detection.probe_timeout),
    });
    row("ping: echo requests, within", &|_, detection| {
        format!("{}, {:?}", detection.ping_count, detection.ping_timeout)
    });
    text.pop();
    text
}
