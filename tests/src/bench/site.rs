//! Two machines, a client and an observer on a switch of their own: namespaces, so that a machine costs nothing, and
//! one control group each, so that its power can be cut and its processor stopped.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::peers::{ADDRESSES, FENCE_AGENT, INIT, KILL_SERVICE, SERVICE, VIP, fence_agent, manager, take_by_hand};
use super::variant::{Trouble, Variant};
use crate::lab::cgroup::Cgroup;
use crate::lab::dirs;
use crate::lab::nodes::{Kind, Spec, visitor};
use crate::lab::run::{read, run, shell, text, wait_until, write};
use crate::lab::spawn::Daemon;

/// The bridge of a site.
pub const BRIDGE: &str = "br-sw";

/// The place where one variant is measured. Sites are independent: all can stand at once.
#[derive(Debug)]
pub struct Site {
    /// What runs here.
    pub variant: Variant,
    /// Its names begin with this; the lab's `down` removes them too.
    prefix: String,
    number: u8,
    a: Node,
    b: Node,
    switch: &'static Spec,
    client: &'static Spec,
    near: &'static Spec,
}

/// A machine of a site.
#[derive(Clone, Copy, Debug)]
struct Node {
    /// `a` or `b`, for itself and the peers.
    name: &'static str,
    spec: &'static Spec,
    address: &'static str,
}

/// A name of a site's, for as long as this program lives.
fn member(prefix: &str, what: &str, kind: Kind, host_number: u8) -> &'static Spec {
    let name: &'static str = Box::leak(format!("{prefix}{what}").into_boxed_str());
    Box::leak(Box::new(visitor(name, kind, host_number)))
}

fn words(argv: &[&str]) -> Vec<String> {
    argv.iter().map(|&word| word.to_owned()).collect()
}

impl Node {
    fn group(self) -> Cgroup {
        Cgroup::of(self.spec.name)
    }

    fn folder(self) -> PathBuf {
        dirs::node(self.spec.name)
    }

    fn holder(self) -> Daemon {
        Daemon::new(self.spec, "holder")
    }

    /// The machine's process 1, as this machine numbers it.
    fn first(self) -> Result<String> {
        let Some(pid) = self.holder().pid() else { bail!("{} is off", self.spec.name) };
        let children = read(&PathBuf::from(format!("/proc/{pid}/task/{pid}/children")))?;
        children.split_whitespace().next().map(str::to_owned).with_context(|| format!("{} has not begun", self.name))
    }

    fn inside(self, script: &str) -> Result<Vec<String>> {
        Ok(words(&["nsenter", "-t", &self.first()?, "-a", "--", "sh", "-c", script]))
    }

    /// Runs a script there to its end.
    fn shell(self, script: &str) -> Result<String> {
        let words = self.inside(script)?;
        run(&words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Runs a script there for as long as the machine lives.
    fn start(self, name: &str, script: &str) -> Result<()> {
        Daemon::new(self.spec, name).start_bare(&self.inside(script)?)
    }

    fn alive(self) -> bool {
        self.group().alive()
    }
}

impl Site {
    /// The place of a variant, which is not there yet.
    #[must_use]
    pub fn new(variant: Variant) -> Self {
        let number = Variant::ALL.iter().position(|&other| other == variant).unwrap_or(0);
        let number = u8::try_from(number).unwrap_or(0);
        let prefix = format!("b{number}");
        let node =
            |name: &'static str, address, host| Node { name, spec: member(&prefix, name, Kind::Voter, host), address };
        Self {
            variant,
            a: node("a", ADDRESSES[0], 11),
            b: node("b", ADDRESSES[1], 12),
            switch: member(&prefix, "sw", Kind::Switch, 0),
            client: member(&prefix, "client", Kind::Client, 50),
            near: member(&prefix, "near", Kind::Client, 51),
            number,
            prefix,
        }
    }

    /// The namespace of its switch.
    #[must_use]
    pub fn switch(&self) -> String {
        self.switch.namespace()
    }

    /// A process on the switch, in the client, or in the observer beside `a`.
    #[must_use]
    pub fn capture_daemon(&self) -> Daemon {
        Daemon::new(self.switch, "tcpdump")
    }

    /// The client and its namespace.
    #[must_use]
    pub fn client(&self) -> &'static Spec {
        self.client
    }

    /// The observer that can reach `a` only.
    #[must_use]
    pub fn near(&self) -> &'static Spec {
        self.near
    }

    fn mac(&self, host: u8) -> String {
        format!("52:54:00:78:{:02x}:{host:02x}", self.number)
    }

    /// Makes switch, client and observer.
    ///
    /// # Errors
    /// It is there already, or we are not root.
    pub fn up(&self) -> Result<()> {
        let sw = self.switch();
        let mut script = format!(
            "ip netns add {sw}; ip -n {sw} link set lo up
             ip netns exec {sw} sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1
             ip -n {sw} link add {BRIDGE} type bridge forward_delay 0 mcast_snooping 0
             ip -n {sw} link set {BRIDGE} up\n"
        );
        for member in [self.client, self.near] {
            let (ns, port) = (member.namespace(), if member == self.near { "p-near" } else { "p-client" });
            script += &format!(
                "ip netns add {ns}; ip -n {ns} link set lo up
                 ip netns exec {ns} sysctl -qw net.ipv6.conf.default.disable_ipv6=1
                 ip link add eth0 address {mac} netns {ns} type veth peer name {port} netns {sw}
                 ip -n {ns} link set eth0 up
                 ip -n {ns} address add {ip}/24 dev eth0
                 ip -n {sw} link set {port} master {BRIDGE} up\n",
                mac = self.mac(member.host_number),
                ip = member.ip(),
            );
        }
        script += &format!(
            "ip netns exec {sw} nft -f - <<'END'
table bridge bench {{
    chain near {{
        type filter hook forward priority -10; policy accept;
        iifname p-near oifname != p-a drop
        iifname != p-a oifname p-near drop
    }}
}}
END"
        );
        shell(&script)?;
        let sbin = self.sbin();
        let group = Cgroup::of(&self.prefix).procs();
        let group = text(group.parent().context("a group has a folder")?);
        let agent = sbin.join(FENCE_AGENT);
        write(&agent, fence_agent(&group))?;
        run(&["chmod", "755", &text(&agent)])?;
        Ok(())
    }

    fn sbin(&self) -> PathBuf {
        dirs::node(self.switch.name).join("sbin")
    }

    /// Switches both machines off if they are on, boots them, starts what the variant runs, and waits until `a` serves
    /// and `b` stands by.
    ///
    /// # Errors
    /// It does not come to that within a minute.
    pub fn boot(&self) -> Result<()> {
        self.off()?;
        for node in [self.a, self.b] {
            self.power_on(node)?;
        }
        for node in [self.a, self.b] {
            let (script, service) = manager(self.variant, node.name);
            if service {
                node.start("service", SERVICE)?;
            }
            if let Some(script) = script {
                node.start("manager", &script)?;
            }
        }
        if self.variant == Variant::HandVip {
            self.a.shell(&take_by_hand())?;
        }
        wait_until(Duration::from_secs(60), &format!("{} serves", self.variant.name()), || Ok(self.at_home()))?;
        Ok(())
    }

    fn at_home(&self) -> bool {
        let network = format!("--net=/run/netns/{}", self.client.namespace());
        let url = format!("http://{VIP}/");
        let page = run(&["nsenter", &network, "--", "timeout", "1", "busybox", "wget", "-q", "-O", "-", &url]);
        let stands_by = match self.variant {
            Variant::PacemakerDefault | Variant::PacemakerTuned | Variant::PacemakerFenced => {
                let seen = self.b.shell("crm_mon -1").unwrap_or_default();
                seen.contains("Online: [ a b ]")
                    && seen.matches("Started a").count() == 2
                    && (self.variant != Variant::PacemakerFenced || seen.contains("Started b"))
            }
            Variant::KeepalivedDefault | Variant::KeepalivedTuned => {
                let log = read(&Daemon::new(self.b.spec, "manager").log()).unwrap_or_default();
                let last = |word: &str| log.rfind(word);
                last("Entering BACKUP STATE") > last("Entering MASTER STATE")
            }
            Variant::HandVip | Variant::HandVm | Variant::KagemushaNormal | Variant::KagemushaFast => true,
        };
        stands_by && page.is_ok_and(|page| page.trim() == "a")
    }

    fn power_on(&self, node: Node) -> Result<()> {
        let init = node.folder().join("init.sh");
        write(&init, INIT)?;
        for log in ["manager", "service"] {
            let _ = std::fs::remove_file(Daemon::new(node.spec, log).log());
        }
        let (init, sbin) = (text(&init), text(&self.sbin()));
        let unshare = ["unshare", "-m", "-u", "-i", "-p", "-n", "-f", "--mount-proc", "sh", &init, node.name, &sbin];
        node.holder().start_bare(&words(&unshare))?;
        wait_until(Duration::from_secs(5), &format!("{} runs", node.spec.name), || {
            Ok(node.first().is_ok_and(|pid| PathBuf::from(format!("/proc/{pid}/root/run/ready")).exists()))
        })
        .with_context(|| node.holder().tail())?;
        let (sw, port, pid) = (self.switch(), port(node), node.first()?);
        let (mac, address) = (self.mac(node.spec.host_number), node.address);
        shell(&format!(
            "ip -n {sw} link delete {port} 2> /dev/null || true
             ip link add eth0 address {mac} netns {pid} type veth peer name {port} netns {sw}
             nsenter -t {pid} -n sh -ec '
                sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1
                ip link set lo up; ip link set eth0 up; ip address add {address}/24 dev eth0'
             ip -n {sw} link set {port} master {BRIDGE} up"
        ))?;
        Ok(())
    }

    fn off(&self) -> Result<()> {
        for node in [self.a, self.b] {
            node.group().kill()?;
        }
        self.join()?;
        Ok(())
    }

    /// Does the trouble to `a`. Those who have no manager are served by the bench's own hand, at once.
    ///
    /// # Errors
    /// `a` is off.
    pub fn inject(&self, trouble: Trouble) -> Result<()> {
        let sw = self.switch();
        match trouble {
            Trouble::Service if self.variant == Variant::HandVip => {
                drop(
                    self.a
                        .shell(&format!("{KILL_SERVICE}; setsid -f sh -c '{SERVICE}' < /dev/null > /dev/null 2>&1"))?,
                );
            }
            Trouble::Service => drop(self.a.shell(KILL_SERVICE)?),
            Trouble::Power => {
                // The kernel that the namespace shares goes on answering until the link is down.
                run(&["ip", "-n", &sw, "link", "set", &port(self.a), "down"])?;
                if self.variant == Variant::HandVip {
                    self.b.shell(&take_by_hand())?;
                }
                self.a.group().kill()?;
            }
            Trouble::Frozen => {
                self.a.group().freeze()?;
                self.silence(true)?;
            }
            Trouble::Cut => drop(shell(&format!(
                "ip netns exec {sw} nft -f - <<'END'
table bridge bench {{
    chain cut {{
        type filter hook forward priority 0; policy accept;
        iifname p-a oifname != p-near drop
        iifname != p-near oifname p-a drop
    }}
}}
END"
            ))?),
        }
        Ok(())
    }

    /// Ends what does not end by itself. A machine that its fence device has switched off stays off.
    ///
    /// # Errors
    /// The site is gone.
    pub fn heal(&self, trouble: Trouble) -> Result<()> {
        match trouble {
            Trouble::Service | Trouble::Power => {}
            Trouble::Frozen => {
                if self.a.alive() {
                    self.silence(false)?;
                }
                self.a.group().thaw()?;
            }
            Trouble::Cut => self.join()?,
        }
        Ok(())
    }

    fn join(&self) -> Result<()> {
        let sw = self.switch();
        let joined = ["ip", "netns", "exec", &sw, "nft", "delete", "chain", "bridge", "bench", "cut"];
        // There is none unless it was cut.
        let _ = run(&joined);
        Ok(())
    }

    /// The kernel of a frozen machine does not answer either; this one's would, being everybody's.
    fn silence(&self, silent: bool) -> Result<()> {
        let pid = self.a.first()?;
        let rules = if silent {
            "add table netdev frozen
             add chain netdev frozen in { type filter hook ingress device eth0 priority -500; policy drop; }
             add chain netdev frozen out { type filter hook egress device eth0 priority -500; policy drop; }"
        } else {
            "delete table netdev frozen"
        };
        shell(&format!("nsenter -t {pid} -n nft -f - <<'END'\n{rules}\nEND"))?;
        Ok(())
    }

    /// Removes everything.
    ///
    /// # Errors
    /// Something survives.
    pub fn down(&self) -> Result<()> {
        for spec in [self.a.spec, self.b.spec, self.client, self.near, self.switch] {
            Cgroup::of(spec.name).remove()?;
        }
        for spec in [self.client, self.near, self.switch] {
            let _ = run(&["ip", "netns", "delete", &spec.namespace()]);
        }
        for spec in [self.a.spec, self.b.spec, self.client, self.near, self.switch] {
            let _ = std::fs::remove_dir_all(dirs::node(spec.name));
        }
        Ok(())
    }
}

fn port(node: Node) -> String {
    format!("p-{}", node.name)
}
