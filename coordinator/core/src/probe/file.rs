//! A `[[target.service]]` as written, and what is wrong with it.

use super::{
    MAX_SEND, MAX_STEPS, MAX_TIMEOUT, Probe, Step, Transport, check_pattern,
    preset::{self, Options},
    unescape,
};
use jiff::SignedDuration;
use serde::Deserialize;
use std::time::Duration;

/// What a `[[target.service]]` says of its probe.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileProbe {
    /// Where; the preset's usual port unless given.
    pub port: Option<u16>,
    /// Name of a preset …
    pub probe: Option<String>,
    /// … or steps.
    pub steps: Option<Vec<FileStep>>,
    /// For all of it.
    pub timeout: Option<SignedDuration>,
    /// Speak TLS from the first byte.
    pub tls: Option<bool>,
    /// Datagrams (own steps).
    pub udp: Option<bool>,
    /// http, https: what is asked for.
    pub path: Option<String>,
    /// http, https: the Host header; with TLS the name asked for (SNI).
    pub host: Option<String>,
    /// http, https: pattern of good status codes.
    pub status: Option<String>,
    /// http, https: GET, HEAD …
    pub method: Option<String>,
    /// dns: the name asked for.
    pub query: Option<String>,
}

/// One step as written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileStep {
    /// With the escapes of [`unescape`].
    pub send: Option<String>,
    /// A pattern.
    pub expect: Option<String>,
    /// A pattern.
    pub wrong: Option<String>,
    /// Of this step.
    pub timeout: Option<SignedDuration>,
}

/// What is wrong with a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The key it is about, to find its line; with a step, a key of that.
    pub key: &'static str,
    /// Number of the step, from 1.
    pub step: Option<usize>,
    /// The value, the reason, the next step.
    pub text: String,
}

struct Faults(Vec<Fault>);

impl Faults {
    fn say(&mut self, key: &'static str, text: impl Into<String>) {
        self.0.push(Fault { key, step: None, text: text.into() });
    }

    fn step(&mut self, step: usize, key: &'static str, text: impl Into<String>) {
        self.0.push(Fault { key, step: Some(step), text: text.into() });
    }

    fn timeout(&mut self, step: Option<usize>, given: Option<SignedDuration>) -> Option<Duration> {
        let given = given?;
        match Duration::try_from(given) {
            Ok(timeout) if !timeout.is_zero() && timeout <= MAX_TIMEOUT => Some(timeout),
            Ok(_) | Err(_) => {
                let text = format!("timeout = {given:#}: above 0 and at most {MAX_TIMEOUT:?}, such as \"3s\"");
                self.0.push(Fault { key: "timeout", step, text });
                None
            }
        }
    }
}

impl FileProbe {
    /// Check it: the probe and its port. `host` is what an HTTP request names unless configured: the address clients use.
    ///
    /// # Errors
    /// Every fault found.
    pub fn check(&self, host: &str) -> Result<(u16, Probe), Vec<Fault>> {
        let mut faults = Faults(Vec::new());
        let timeout = faults.timeout(None, self.timeout);
        let mut transport = match (self.tls == Some(true), self.udp == Some(true)) {
            (true, true) => {
                faults.say("udp", "tls = true and udp = true: choose one");
                Transport::Tcp
            }
            (true, false) => Transport::Tls,
            (false, true) => Transport::Udp,
            (false, false) => Transport::Tcp,
        };
        let mut usual_port = None;
        let (preset, steps) = match (&self.probe, &self.steps) {
            (Some(name), None) => match preset::find(name) {
                Some(preset) => {
                    self.only_options_of(preset, &mut faults);
                    usual_port = preset.port;
                    transport = match (preset.transport, transport) {
                        (Transport::Tcp, given) => given,
                        (own @ (Transport::Tls | Transport::Udp), _) => own,
                    };
                    let options = self.options(host, &mut faults);
                    (preset.name.to_owned(), preset.steps(&options))
                }
                None => {
                    let known: Vec<_> = preset::PRESETS.iter().map(|preset| preset.name).collect();
                    let hint = crate::config::nearest(name, known.iter().copied())
                        .map_or_else(|| "or give steps".to_owned(), |near| format!("did you mean {near:?}?"));
                    faults.say("probe", format!("probe = {name:?} is none of {}; {hint}", known.join(", ")));
                    (String::new(), Vec::new())
                }
            },
            (None, Some(steps)) => {
                self.no_options(&mut faults);
                (String::new(), own_steps(steps, transport, &mut faults))
            }
            (Some(_), Some(_)) => {
                faults.say("steps", "probe and steps are both given: `kagectl probe --list-presets` prints a preset's steps to start from, leave out probe");
                (String::new(), Vec::new())
            }
            (None, None) => {
                faults.say(
                    "probe",
                    "neither probe nor steps: give probe = \"tcp\" to see that the port answers, or a preset, or steps",
                );
                (String::new(), Vec::new())
            }
        };
        let port = self.port.or(usual_port).filter(|port| *port != 0);
        if port.is_none() && (usual_port.is_none() || self.port == Some(0)) {
            faults.say("port", "port is missing or 0: give the port it listens at");
        }
        let server_name = match (&self.host, transport) {
            (Some(host), Transport::Tls) => host.clone(),
            (Some(_), Transport::Tcp | Transport::Udp) | (None, _) => String::new(),
        };
        match port {
            Some(port) if faults.0.is_empty() => Ok((port, Probe { preset, transport, server_name, steps, timeout })),
            Some(_) | None => Err(faults.0),
        }
    }

    fn given(&self) -> [(&'static str, bool); 5] {
        [
            ("path", self.path.is_some()),
            ("status", self.status.is_some()),
            ("method", self.method.is_some()),
            ("query", self.query.is_some()),
            ("host", self.host.is_some() && self.tls != Some(true)),
        ]
    }

    fn only_options_of(&self, preset: &preset::Preset, faults: &mut Faults) {
        for (key, given) in self.given() {
            if given && !preset.options.contains(&key) {
                faults.say(key, format!("{key} is no option of probe = {:?}: leave it out", preset.name));
            }
        }
        if self.udp.is_some() {
            faults.say("udp", "udp goes with steps; a preset knows its own transport: leave it out");
        }
        if self.tls == Some(true) && preset.transport == Transport::Udp {
            faults.say("tls", format!("tls = true: probe = {:?} is sent over UDP", preset.name));
        }
        if self.tls == Some(false) && preset.transport == Transport::Tls {
            faults.say("tls", format!("tls = false: probe = {:?} speaks TLS; there is probe = \"http\"", preset.name));
        }
    }

    fn no_options(&self, faults: &mut Faults) {
        for (key, given) in self.given() {
            if given {
                faults.say(key, format!("{key} is an option of presets, not of steps: write it into the steps"));
            }
        }
    }

    /// The options, those with a fault replaced by their defaults.
    fn options(&self, host: &str, faults: &mut Faults) -> Options {
        let mut options = Options::of(host);
        let plain = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        if let Some(path) = &self.path {
            if plain(path) && path.starts_with('/') && path.len() <= 1024 {
                options.path.clone_from(path);
            } else {
                faults.say("path", format!("path = {path:?}: begins with /, printable ASCII without spaces (%20)"));
            }
        }
        if let Some(host) = &self.host {
            if plain(host) && host.len() <= 255 {
                options.host.clone_from(host);
            } else {
                faults.say("host", format!("host = {host:?}: a host name such as www.example.com"));
            }
        }
        if let Some(method) = &self.method {
            if !method.is_empty() && method.len() <= 16 && method.bytes().all(|byte| byte.is_ascii_uppercase()) {
                options.method.clone_from(method);
            } else {
                faults.say("method", format!("method = {method:?}: GET, HEAD or another in capitals"));
            }
        }
        if let Some(status) = &self.status {
            match check_pattern(status).and_then(|()| check_pattern(&preset::status_line(status))) {
                Ok(()) => options.status.clone_from(status),
                Err(reason) => faults.say("status", format!("status = {status:?}: {reason}; such as \"2..|3..\"")),
            }
        }
        if let Some(query) = &self.query {
            match preset::dns_name(query) {
                Ok(_) => options.query.clone_from(query),
                Err(reason) => faults.say("query", format!("query = {query:?}: {reason}")),
            }
        }
        options
    }
}

fn own_steps(written: &[FileStep], transport: Transport, faults: &mut Faults) -> Vec<Step> {
    if written.is_empty() || written.len() > MAX_STEPS {
        let count = written.len();
        faults.say("steps", format!("{count} steps: give 1 to {MAX_STEPS}; probe = \"tcp\" needs none"));
    }
    let mut steps = Vec::new();
    for (index, step) in written.iter().enumerate().take(MAX_STEPS) {
        let number = index + 1;
        let mut checked = Step::default();
        match step.send.as_deref().map(unescape) {
            Some(Ok(bytes)) if bytes.len() > MAX_SEND => {
                faults.step(number, "send", format!("sends {} bytes: at most {MAX_SEND}", bytes.len()));
            }
            Some(Ok(bytes)) => checked.send = bytes,
            Some(Err(reason)) => {
                let send = step.send.as_deref().unwrap_or_default();
                faults.step(number, "send", format!("send = {send:?}: {reason}"));
            }
            None => {}
        }
        for (key, given, kept) in
            [("expect", &step.expect, &mut checked.expect), ("wrong", &step.wrong, &mut checked.wrong)]
        {
            let Some(pattern) = given else { continue };
            match check_pattern(pattern) {
                Ok(()) => *kept = Some(pattern.clone()),
                Err(reason) => faults.step(number, key, format!("{key} = {pattern:?}: {reason}")),
            }
        }
        if step.send.as_deref().unwrap_or_default().is_empty() && step.expect.is_none() {
            faults.step(number, "send", "neither sends nor expects: give send, expect or both");
        }
        if step.wrong.is_some() && step.expect.is_none() {
            faults.step(number, "wrong", "wrong goes with expect: it tells a wrong reply before the time is over");
        }
        checked.timeout = faults.timeout(Some(number), step.timeout);
        steps.push(checked);
    }
    let hears = written.iter().any(|step| step.expect.is_some());
    let speaks_first = written.first().is_some_and(|step| step.send.as_deref().is_some_and(|send| !send.is_empty()));
    if transport == Transport::Udp && !(hears && speaks_first) {
        faults.say("steps", "over UDP the first step sends and one expects: nothing else shows that anybody is there");
    }
    steps
}
