//! The load balancer in front of the service groups (thesis ch. 4): HAProxy in a namespace on the clients' side. It goes
//! round-robin over each group's fixed virtual IPs and knows nothing of who holds them.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::dirs;
use super::nodes::{Group, Kind, Service, Spec, of};
use super::run::{run, text, wait_until, write};
use super::spawn::{Daemon, run_in};

/// How a service group is offered to clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Front {
    /// The group's name.
    pub name: &'static str,
    /// The port where clients ask.
    pub port: u16,
    /// The group's virtual addresses.
    pub vips: Vec<Ipv4Addr>,
    /// What answers there.
    pub service: Service,
    /// Requests are understood: one whose connection was cut while an address moved is asked again elsewhere. Otherwise
    /// the balancer passes bytes on, and such a cut with them.
    pub asks_again: bool,
}

/// The port where clients expect a group's service. The lab's small guests answer HTTP behind each of them.
const fn port(group: &Group) -> u16 {
    match group.name.as_bytes() {
        b"mail" => 25,
        b"ftp" => 21,
        _ => 80,
    }
}

/// Does the load balancer know the protocol of this group's clients, and ask again elsewhere? Whatever lab is up.
#[must_use]
pub fn asks_again(group: &str) -> bool {
    group == "web"
}

/// All groups of the lab.
#[must_use]
pub fn fronts() -> Vec<Front> {
    let mut fronts: Vec<Front> = Vec::new();
    for server in of(Kind::VirtualServer) {
        let (Some(group), Some(vip)) = (server.group, server.vip()) else { continue };
        match fronts.iter_mut().find(|front| front.name == group.name) {
            Some(front) => front.vips.push(vip),
            None => fronts.push(Front {
                name: group.name,
                port: port(group),
                vips: vec![vip],
                service: server.service,
                asks_again: asks_again(group.name),
            }),
        }
    }
    fronts
}

/// HAProxy's configuration.
///
/// A connection that an address does not take within half a second is tried at the group's other one: while an address
/// moves, its packets are lost. An address is out of use after three failed checks, and back after one good one.
#[must_use]
pub fn configuration(address: Ipv4Addr, control: &Path, fronts: &[Front]) -> String {
    let mut text = format!(
        "global\n    log stdout format raw local0\n    stats socket {} mode 600 level operator\n    nbthread 1\n    \
         maxconn 500\n\n\
         defaults\n    mode tcp\n    log global\n    option tcplog\n    option dontlog-normal\n    balance roundrobin\n    \
         option redispatch 1\n    retries 6\n    timeout connect 500ms\n    timeout client 10s\n    timeout server 10s\n    \
         timeout check 1s\n    default-server check inter 1s fastinter 500ms fall 3 rise 1\n",
        control.display()
    );
    for front in fronts {
        let _ = write!(text, "\nlisten {}\n    bind {address}:{}\n", front.name, front.port);
        if front.asks_again {
            text.push_str(
                // Who was asked and then moved never answers: the question goes elsewhere after this.
                "    mode http\n    http-reuse never\n    timeout server 2s\n    \
                 retry-on conn-failure empty-response response-timeout\n",
            );
        }
        for vip in &front.vips {
            let _ = writeln!(text, "    server {vip} {vip}:{}", front.service.port());
        }
    }
    text
}

fn file(node: &Spec) -> PathBuf {
    dirs::node(node.name).join("haproxy.cfg")
}

fn control(node: &Spec) -> PathBuf {
    dirs::node(node.name).join("haproxy.sock")
}

/// Starts it, and waits until it takes connections.
///
/// # Errors
/// HAProxy is not installed, or refuses its configuration.
pub fn up(node: &'static Spec) -> Result<()> {
    let fronts = fronts();
    write(&file(node), configuration(node.ip(), &control(node), &fronts))?;
    let configuration = text(&file(node));
    run(&["haproxy", "-c", "-q", "-f", &configuration]).context("HAProxy refuses its configuration")?;
    let daemon = Daemon::new(node, "haproxy");
    daemon.start(&["haproxy", "-db", "-f", &configuration]).context("cannot start HAProxy; tests/lab installs it")?;
    for front in fronts {
        let probe = format!("timeout 1 bash -c '</dev/tcp/{}/{}'", node.ip(), front.port);
        wait_until(Duration::from_secs(10), &format!("the load balancer takes connections for {}", front.name), || {
            Ok(run_in(node, &["sh", "-c", &probe]).is_ok())
        })
        .with_context(|| daemon.tail())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_of_a_group_is_a_server_of_it() {
        let vips = vec![Ipv4Addr::new(10, 77, 0, 111), Ipv4Addr::new(10, 77, 0, 112)];
        let front = Front { name: "mail", port: 25, vips, service: Service::Http, asks_again: false };
        let text = configuration(Ipv4Addr::new(10, 77, 0, 51), Path::new("control"), &[front]);
        assert!(
            text.contains("\nlisten mail\n    bind 10.77.0.51:25\n    server 10.77.0.111 10.77.0.111:80\n"),
            "{text}"
        );
        assert!(text.contains("    server 10.77.0.112 10.77.0.112:80\n"), "{text}");
        assert!(text.contains("option redispatch"), "{text}");
    }
}
