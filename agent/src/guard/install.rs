//! Setting the guard up, checking that it still stands, taking it down.

use super::{
    GuardKind, IfName, Link, LiveElement, elements,
    netlink::{self, Writer},
    ruleset::{self, Family},
    sys::Socket,
    unprotect_child,
};
use elements::{NFPROTO_BRIDGE, NFPROTO_INET, NFT_MSG_GETGEN, TABLE, nfgenmsg, nft};
use kage_types::Vip;
use std::{
    collections::BTreeSet,
    io::{self, Write},
    process::{Command, Stdio},
};

/// Why the guard does not stand.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// This machine can't enforce a lease (safety rule 10).
    #[error(
        "this machine can't guard its VIPs: {why}; {next}, or accept takeover by proof only (docs/safety.md, rule 10)"
    )]
    Unavailable {
        /// What is missing.
        why: String,
        /// What the administrator can do.
        next: &'static str,
    },
    /// `nft` refused our rules.
    #[error("nft refused the guard's rules: {0}; compare `nft list ruleset` and the kernel's log")]
    Refused(String),
    /// The interface of the VIPs is not there.
    #[error("interface {0} for the guard is not there; check the agent's configuration against `ip link`")]
    NoInterface(IfName),
    /// Talking to the kernel or to `nft` failed.
    #[error("talking to nf_tables failed")]
    Io(#[from] io::Error),
}

/// Does the guard stand as it was installed?
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Tables, chains, rules and listed VIPs are those installed.
    Intact,
    /// Somebody changed them.
    Changed(String),
}

/// Default deny for the listed VIPs, installed. Dropping it leaves the rules in force; see [`Guard::uninstall`].
#[derive(Debug)]
pub struct Guard {
    kind: GuardKind,
    listed: BTreeSet<Vip>,
    egress: bool,
    /// The tables as `nft` lists them, with handles and without elements.
    installed: String,
}

impl Guard {
    /// Installs the guard, or brings the one that is there up to date: elements in force stay.
    ///
    /// # Errors
    /// [`GuardError::Unavailable`] without nf_tables or `nft`; any other leaves what was there before.
    pub fn install(kind: GuardKind, listed: BTreeSet<Vip>) -> Result<Self, GuardError> {
        probe_kernel()?;
        let egress = matches!(kind, GuardKind::Host { .. });
        let mut guard = Self { kind, listed, egress, installed: String::new() };
        let interface = guard.kind.interface();
        Link::find(interface).map_err(|_| GuardError::NoInterface(interface))?;
        match guard.apply() {
            Err(GuardError::Refused(why)) if egress => {
                guard.egress = false;
                guard.apply()?;
                tracing::warn!(why, "no egress hook (Linux 5.16): announcements are checked by the agent only");
            }
            other => other?,
        }
        Ok(guard)
    }

    /// Is there a table on the egress hook, to be kept up by the renewal thread?
    #[must_use]
    pub fn egress(&self) -> bool {
        self.egress
    }

    /// What it guards.
    #[must_use]
    pub fn kind(&self) -> &GuardKind {
        &self.kind
    }

    /// The VIPs under default deny.
    #[must_use]
    pub fn listed(&self) -> &BTreeSet<Vip> {
        &self.listed
    }

    /// Changes which VIPs are under default deny: from now on, in one transaction. Elements in force stay.
    ///
    /// # Errors
    /// As [`Guard::install`]; the list in force is then the old one.
    pub fn set_listed(&mut self, listed: BTreeSet<Vip>) -> Result<(), GuardError> {
        let before = std::mem::replace(&mut self.listed, listed);
        let result = self.apply();
        if result.is_err() {
            self.listed = before;
        }
        result
    }

    /// Puts the guard back as it should be.
    ///
    /// # Errors
    /// As [`Guard::install`].
    pub fn reinstall(&mut self) -> Result<(), GuardError> {
        self.apply()
    }

    /// Is one of the tables not there at all? Some 0.1 ms.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        let gone =
            |family: &Family| matches!(list_fixed(family), Err(error) if error.raw_os_error() == Some(libc::ENOENT));
        self.families().iter().any(gone)
    }

    /// Compares the kernel's tables with those installed. Some 10 ms: for suspicion and for slow timers.
    ///
    /// # Errors
    /// `nft` or netlink failed: nothing is known.
    pub fn verify(&self) -> Result<Health, GuardError> {
        let standing = match self.list_tables() {
            Err(GuardError::Refused(why)) => return Ok(Health::Changed(why)),
            other => other?,
        };
        if standing != self.installed {
            return Ok(Health::Changed(first_difference(&self.installed, &standing)));
        }
        for family in self.families() {
            let listed = list_fixed(family)?;
            let wanted =
                self.listed.iter().filter(|vip| vip.address().is_ipv4() || *family != "arp").copied().collect();
            if listed != wanted {
                return Ok(Health::Changed(format!(
                    "VIPs listed in table {family} {TABLE}: {listed:?}, not {wanted:?}"
                )));
            }
        }
        Ok(Health::Intact)
    }

    /// The elements in force, with the time they have left: what a starting agent adopts.
    ///
    /// # Errors
    /// Netlink failed, or the tables are gone.
    pub fn live(&self) -> Result<Vec<LiveElement>, GuardError> {
        let family = match self.kind {
            GuardKind::Host { .. } => NFPROTO_INET,
            GuardKind::Tap { .. } => NFPROTO_BRIDGE,
        };
        let socket = Socket::netlink(libc::NETLINK_NETFILTER, 0)?;
        let mut live = elements::list_live(&socket, family, "live4")?;
        live.extend(elements::list_live(&socket, family, "live6")?);
        Ok(live)
    }

    /// Removes everything of this guard: its VIPs are then open. For the removal of the agent, not for its stop.
    ///
    /// # Errors
    /// `nft` failed.
    pub fn uninstall(self) -> Result<(), GuardError> {
        run(&["-f", "-"], &ruleset::removal(self.families())).map(drop)
    }

    fn families(&self) -> &'static [Family] {
        self.kind.families(self.egress)
    }

    fn apply(&mut self) -> Result<(), GuardError> {
        let script = ruleset::script(&self.kind, &self.listed, self.egress);
        let mut tables = match run(&["-f", "-"], &script) {
            Ok(_) => self.list_tables()?,
            Err(GuardError::Refused(_)) => String::from(DORMANT),
            Err(other) => return Err(other),
        };
        if tables.contains(DORMANT) {
            // Sets or hooks of another version, or a table put to sleep: begin anew. Elements in force are lost.
            run(&["-f", "-"], &format!("{}{script}", ruleset::removal(self.families())))?;
            tables = self.list_tables()?;
        }
        self.installed = tables;
        Ok(())
    }

    fn list_tables(&self) -> Result<String, GuardError> {
        let mut tables = String::new();
        for family in self.families() {
            tables.push_str(&run(&["-a", "-t", "list", "table", family, TABLE], "")?);
        }
        Ok(tables)
    }
}

/// In a listing: the table's rules are switched off.
const DORMANT: &str = "flags dormant";

fn list_fixed(family: Family) -> io::Result<BTreeSet<Vip>> {
    let (number, sets): (_, &[_]) = match family {
        "arp" => (elements::NFPROTO_ARP, &["listed4"]),
        "netdev" => (elements::NFPROTO_NETDEV, &["listed4", "listed6"]),
        "bridge" => (NFPROTO_BRIDGE, &["listed4", "listed6"]),
        _ => (NFPROTO_INET, &["listed4", "listed6"]),
    };
    let socket = Socket::netlink(libc::NETLINK_NETFILTER, 0)?;
    let mut listed = BTreeSet::new();
    for set in sets {
        listed.extend(elements::list_fixed(&socket, number, set)?);
    }
    Ok(listed)
}

fn first_difference(was: &str, is: &str) -> String {
    let mut is_lines = is.lines();
    for line in was.lines() {
        match is_lines.next() {
            Some(same) if same == line => {}
            Some(other) => return format!("{:?} instead of {:?}", other.trim(), line.trim()),
            None => return format!("{:?} is missing", line.trim()),
        }
    }
    format!("{:?} was added", is_lines.next().unwrap_or("").trim())
}

fn unavailable(why: String) -> GuardError {
    GuardError::Unavailable { why, next: "load nf_tables (`modprobe nf_tables`; CONFIG_NF_TABLES) and run as root" }
}

/// Asks nf_tables for its generation: the cheapest thing only it can answer.
fn probe_kernel() -> Result<(), GuardError> {
    let ask = || {
        let socket = Socket::netlink(libc::NETLINK_NETFILTER, 0)?;
        let mut writer = Writer::with_capacity(64);
        let message = writer.begin(nft(NFT_MSG_GETGEN), netlink::REQUEST | netlink::ACK, &nfgenmsg(0, 0));
        writer.end(message);
        netlink::request(&socket, &writer)
    };
    ask().map_err(|error: io::Error| unavailable(format!("the kernel's nf_tables does not answer ({error})")))
}

fn run(arguments: &[&str], input: &str) -> Result<String, GuardError> {
    let mut command = Command::new("nft");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = unprotect_child(&mut command).spawn().map_err(|error| {
        if error.kind() == io::ErrorKind::NotFound {
            let why = "the program `nft` is not there".to_owned();
            return GuardError::Unavailable { why, next: "install the package nftables" };
        }
        GuardError::Io(error)
    })?;
    if let Some(mut stdin) = child.stdin.take() {
        // A child that gives up early says why on stderr.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let why = String::from_utf8_lossy(&output.stderr);
    let first = why.lines().next().unwrap_or("no message").trim().to_owned();
    if first.contains("Protocol not supported") || first.contains("Operation not permitted") {
        return Err(unavailable(first));
    }
    Err(GuardError::Refused(first))
}
