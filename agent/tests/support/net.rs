//! A switch and machines, as network namespaces.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// The coordinator's address, and the pinging client's.
pub const COORDINATOR: &str = "10.79.0.1";
/// The address that moves.
pub const VIP: &str = "10.79.0.100";

/// The switch is a bridge in a namespace of its own, in which the test itself lives.
pub struct Net {
    prefix: String,
    machines: Vec<String>,
}

fn ip(arguments: &str) {
    let done = Command::new("ip").args(arguments.split(' ')).output().expect("ip");
    assert!(done.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&done.stderr));
}

impl Net {
    /// Moves the calling thread into it.
    pub fn enter() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("kgagt-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let net = Self { prefix, machines: Vec::new() };
        let switch = net.namespace("sw");
        ip(&format!("netns add {switch}"));
        for rest in ["link set lo up", "link add br0 type bridge", "link set br0 up", "addr add 10.79.0.1/24 dev br0"] {
            ip(&format!("-n {switch} {rest}"));
        }
        let file = std::fs::File::open(format!("/run/netns/{switch}")).expect("namespace");
        rustix::thread::move_into_link_name_space(
            std::os::fd::AsFd::as_fd(&file),
            Some(rustix::thread::LinkNameSpaceType::Network),
        )
        .expect("setns");
        net
    }

    pub fn namespace(&self, machine: &str) -> String {
        format!("{}-{machine}", self.prefix)
    }

    /// A machine with `eth0` on the switch.
    pub fn machine(&mut self, name: &str, last: u8) -> String {
        let (switch, namespace) = (self.namespace("sw"), self.namespace(name));
        ip(&format!("netns add {namespace}"));
        self.machines.push(name.to_owned());
        ip(&format!("-n {switch} link add p-{name} type veth peer name eth0 netns {namespace}"));
        ip(&format!("-n {switch} link set p-{name} master br0 up"));
        for rest in
            ["link set lo up".to_owned(), "link set eth0 up".to_owned(), format!("addr add 10.79.0.{last}/24 dev eth0")]
        {
            ip(&format!("-n {namespace} {rest}"));
        }
        namespace
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for name in self.machines.iter().map(String::as_str).chain(["sw"]) {
            let _ = Command::new("ip").args(["netns", "del", &self.namespace(name)]).output();
        }
    }
}

/// Pings the VIP fifty times a second, from the switch.
pub struct Pings {
    child: Child,
    /// When, since 1970, and to which request.
    replies: Arc<Mutex<Vec<(Duration, u64)>>>,
}

impl Pings {
    pub fn start() -> Self {
        let mut child = Command::new("ping")
            .args(["-n", "-D", "-i", "0.02", VIP])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("ping");
        let replies = Arc::new(Mutex::new(Vec::new()));
        let (output, heard) = (child.stdout.take().expect("stdout"), Arc::clone(&replies));
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                // [1700000000.123456] 64 bytes from 10.79.0.100: icmp_seq=1 ttl=64 time=0.05 ms
                let Some((at, rest)) = line.strip_prefix('[').and_then(|line| line.split_once(']')) else { continue };
                let number = rest.split_once("icmp_seq=").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
                if let Some(number) = number.filter(|_| rest.contains("bytes from")) {
                    heard.lock().unwrap().push((Duration::from_secs_f64(at.parse().expect("time")), number));
                }
            }
        });
        Self { child, replies }
    }

    pub fn count(&self) -> usize {
        self.replies.lock().unwrap().len()
    }

    /// Since 1970.
    pub fn last(&self) -> Option<Duration> {
        self.replies.lock().unwrap().last().map(|(at, _)| *at)
    }

    /// Between two replies.
    pub fn longest_gap(&self) -> Duration {
        let replies = self.replies.lock().unwrap();
        replies.windows(2).map(|pair| pair[1].0.saturating_sub(pair[0].0)).max().unwrap_or_default()
    }

    /// How many requests had no reply after `from`, up to the last reply: by number, as a busy machine delays the
    /// sender too.
    pub fn lost(&self, from: Duration) -> u64 {
        let replies = self.replies.lock().unwrap();
        let mut numbers: Vec<u64> = replies.iter().filter(|(at, _)| *at >= from).map(|(_, number)| *number).collect();
        numbers.sort_unstable();
        numbers.windows(2).map(|pair| (pair[1] - pair[0]).saturating_sub(1)).sum()
    }
}

impl Drop for Pings {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn wall() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("clock")
}
