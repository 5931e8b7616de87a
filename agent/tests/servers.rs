//! The presets against the servers they are made for, in a network namespace of their own: well, frozen, gone, and asked
//! by the wrong preset. Needs root; servers that are not installed are left out.

use kage_agent::host::probe::{self, Outcome};
use kage_coordinator_core::{
    config::Detection,
    probe::{FileProbe, PRESETS, Transport},
};
use kage_types::Profile;
use rustix::process::{Pid, Signal, geteuid, kill_process};
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// initdb and smbd take seconds on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a server is asked for.
struct Ask {
    preset: &'static str,
    port: u16,
    tls: bool,
}

const fn ask(preset: &'static str, port: u16) -> Ask {
    Ask { preset, port, tls: false }
}

/// A server: `@` in its arguments and its configuration stands for a directory of its own.
struct Server {
    program: &'static str,
    args: &'static str,
    /// `conf` in that directory.
    conf: &'static str,
    /// Run there first, by a shell.
    prepare: &'static str,
    /// Who runs it; else root.
    user: Option<&'static str>,
    asks: &'static [Ask],
    /// Presets that can't tell it from their own.
    taken_for: &'static [&'static str],
}

const SERVERS: &[Server] = &[
    Server {
        program: "/usr/lib/postfix/sbin/master",
        args: "-c @ -d",
        conf: "",
        prepare: "cp -r /etc/postfix/postfix-files /etc/postfix/dynamicmaps.cf @ && mkdir @/queue @/data &&
            chown postfix @/data && printf '%s\n' 'compatibility_level = 3.6' 'queue_directory = @/queue' \
            'data_directory = @/data' 'inet_interfaces = loopback-only' 'inet_protocols = ipv4' \
            'myhostname = mail.example.test' 'maillog_file = /dev/stdout' 'mynetworks_style = host' > @/main.cf &&
            printf '%s\n' 'smtp inet n - n - - smtpd' 'submission inet n - n - - smtpd' 'anvil unix - - n - 1 anvil' \
            'rewrite unix - - n - - trivial-rewrite' 'cleanup unix n - n - 0 cleanup' 'proxymap unix - - n - - proxymap' \
            'postlog unix-dgram n - n - 1 postlogd' 'tlsmgr unix - - n 1000? 1 tlsmgr' > @/master.cf &&
            postfix -c @ check",
        user: None,
        asks: &[ask("smtp", 25), ask("submission", 587)],
        taken_for: &["smtp", "submission", "ftp"],
    },
    Server {
        program: "/usr/sbin/nginx",
        args: "-p @ -c @/conf",
        conf: "daemon off; pid @/pid; error_log @/log; events {}
            http {
                access_log off; client_body_temp_path @/a; proxy_temp_path @/b; fastcgi_temp_path @/c;
                uwsgi_temp_path @/d; scgi_temp_path @/e; ssl_certificate @/cert; ssl_certificate_key @/key;
                server { listen 80; return 200 'well'; }
                server { listen 443 ssl; ssl_protocols TLSv1.3; return 301 /elsewhere; }
                server { listen 8443 ssl; ssl_protocols TLSv1.2; return 204; }
                server { listen 8080; return 503; }
            }",
        prepare: "",
        user: None,
        asks: &[ask("http", 80), ask("https", 443), ask("https", 8443), Ask { preset: "http", port: 443, tls: true }],
        taken_for: &[],
    },
    Server {
        program: "/usr/sbin/vsftpd",
        args: "@/conf",
        conf: "listen=YES\nbackground=NO\nsecure_chroot_dir=@/empty\nanonymous_enable=YES\n",
        prepare: "mkdir @/empty",
        user: None,
        asks: &[ask("ftp", 21)],
        taken_for: &["smtp"],
    },
    Server {
        program: "/usr/sbin/sshd",
        args: "-D -f @/conf",
        conf: "HostKey @/host\nPidFile none\nUsePAM no\n",
        prepare: "ssh-keygen -q -t ed25519 -N '' -f @/host && mkdir -p /run/sshd",
        user: None,
        asks: &[ask("ssh", 22)],
        taken_for: &[],
    },
    Server {
        program: "/usr/sbin/dovecot",
        args: "-F -c @/conf",
        conf: "base_dir = @/run\nstate_dir = @/state\nlog_path = @/log\nprotocols = imap pop3\nlisten = 127.0.0.1
            ssl = yes\nssl_cert = <@/cert\nssl_key = <@/key\npassdb {\n driver = static\n}\n
            userdb {\n driver = static\n args = uid=nobody gid=nogroup home=@\n}\n",
        prepare: "",
        user: None,
        asks: &[
            ask("imap", 143),
            ask("pop3", 110),
            Ask { preset: "imap", port: 993, tls: true },
            Ask { preset: "pop3", port: 995, tls: true },
        ],
        taken_for: &[],
    },
    Server {
        program: "/usr/sbin/named",
        args: "-g -c @/conf",
        conf: "options {
                directory \"@\"; pid-file none; session-keyfile \"@/session\"; recursion no; listen-on-v6 { none; };
            };
            controls {};
            zone \"example.test\" { type primary; file \"@/zone\"; };
            zone \".\" { type primary; file \"@/zone\"; };",
        prepare: "printf '%s\n' '$TTL 60' '@ IN SOA ns.example.test. root.example.test. 1 60 60 60 60' \
            '@ IN NS ns.example.test.' 'ns.example.test. IN A 127.0.0.1' > @/zone",
        user: None,
        asks: &[ask("dns", 53)],
        taken_for: &[],
    },
    Server {
        program: "/usr/sbin/smbd",
        args: "-F --no-process-group -s @/conf",
        conf: "[global]
            private dir = @/p\nlock directory = @/p\nstate directory = @/p\ncache directory = @/p\npid directory = @/p
            ncalrpc dir = @/p/n\nlog file = @/log\nsmb ports = 445\nload printers = no\ndisable spoolss = yes",
        prepare: "mkdir -p @/p/n",
        user: None,
        asks: &[ask("smb", 445)],
        taken_for: &[],
    },
    Server {
        program: "/usr/sbin/chronyd",
        args: "-d -x -f @/conf",
        conf: "local stratum 8\nallow\nbindaddress 127.0.0.1\ncmdport 0\nbindcmdaddress /\npidfile @/pid\n",
        prepare: "",
        user: None,
        asks: &[ask("ntp", 123)],
        taken_for: &[],
    },
    Server {
        program: "/usr/lib/postgresql/15/bin/postgres",
        args: "-D @/db -k @ -c listen_addresses=127.0.0.1",
        conf: "",
        prepare: "chown postgres @ && runuser -u postgres -- /usr/lib/postgresql/15/bin/initdb -N -D @/db",
        user: Some("postgres"),
        asks: &[ask("postgres", 5432)],
        taken_for: &[],
    },
];

/// A server that runs. Whatever it has started lives in this namespace too, and ends with it.
struct Running {
    child: Child,
    namespace: String,
}

impl Running {
    fn start(server: &Server, directory: &Path) -> Self {
        let at = directory.display().to_string();
        let here = |text: &str| text.replace("@ IN", "\0").replace('@', &at).replace('\0', "@ IN");
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755)).expect("permissions");
        std::fs::write(directory.join("conf"), here(server.conf)).expect("conf");
        let key = rcgen::generate_simple_self_signed(vec!["server.example.test".into()]).expect("certificate");
        std::fs::write(directory.join("cert"), key.cert.pem()).expect("cert");
        std::fs::write(directory.join("key"), key.signing_key.serialize_pem()).expect("key");
        let prepared = Command::new("sh").args(["-ec", &here(server.prepare)]).output().expect("sh");
        assert!(prepared.status.success(), "{}: {prepared:?}", server.program);
        let log = std::fs::File::create(directory.join("output")).expect("output");
        let mut command = match server.user {
            Some(user) => {
                let mut command = Command::new("setpriv");
                command.args(["--reuid", user, "--regid", user, "--init-groups", server.program]);
                command
            }
            None => Command::new(server.program),
        };
        let args = here(server.args);
        command.args(args.split(' ')).current_dir(directory).process_group(0).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("output")).stderr(log);
        let child = command.spawn().expect(server.program);
        Self { child, namespace: namespace("/proc/thread-self/ns/net") }
    }

    /// It and what it has started, as far as that is in this namespace; this process itself is in another.
    fn processes(&self) -> Vec<Pid> {
        let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
        let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let ours = numbers.filter(|pid| namespace(&format!("/proc/{pid}/ns/net")) == self.namespace);
        ours.filter_map(Pid::from_raw).collect()
    }

    fn signal(&self, signal: Signal) {
        for pid in self.processes() {
            // It may have ended by itself.
            let _ = kill_process(pid, signal);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let begun = Instant::now();
        loop {
            self.signal(Signal::KILL);
            // What is killed stays in the list until its parent has looked: ours to look after only if it is our child.
            let ended = self.child.try_wait().is_ok_and(|status| status.is_some());
            if (ended && self.processes().is_empty()) || begun.elapsed() > PATIENCE {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Empty: no such process.
fn namespace(path: &str) -> String {
    std::fs::read_link(path).map(|link| link.display().to_string()).unwrap_or_default()
}

/// The probe as the coordinator makes it from a configuration and the agent is sent it.
async fn look(ask: &Ask) -> probe::Report {
    let file = FileProbe {
        probe: Some(ask.preset.into()),
        port: Some(ask.port),
        tls: ask.tls.then_some(true),
        ..FileProbe::default()
    };
    let (port, made) = file.check("server.example.test").expect("a preset's options");
    let limits = made.limits(Profile::Normal, &Detection::of(Profile::Normal));
    let pattern = |text: &Option<String>| text.as_deref().map(|text| probe::pattern(text).expect("a pattern"));
    let step = |step: &kage_coordinator_core::probe::Step| probe::Step {
        send: step.send.clone(),
        expect: pattern(&step.expect),
        wrong: pattern(&step.wrong),
        timeout: step.timeout.unwrap_or(limits.step),
    };
    let made = probe::Probe {
        transport: match made.transport {
            Transport::Tcp => probe::Transport::Tcp,
            Transport::Tls => probe::Transport::Tls(Some(made.server_name).filter(|name| !name.is_empty())),
            Transport::Udp => probe::Transport::Udp,
        },
        steps: made.steps.iter().map(step).collect(),
        connect_timeout: limits.step,
        deadline: limits.total,
    };
    made.run(SocketAddr::new(LOOPBACK, port)).await
}

/// All that went otherwise than expected.
struct Complaints(Vec<String>);

impl Complaints {
    fn look(&mut self, ask: &Ask, state: &str, report: &probe::Report, good: bool) {
        let tls = if ask.tls { " + TLS" } else { "" };
        let probe::Report { outcome, took, detail, .. } = report;
        let line = format!("{}{tls} at {}, {state}: {outcome:?} in {took:?} {detail}", ask.preset, ask.port);
        println!("  {line}");
        if !good {
            self.0.push(line);
        }
    }
}

async fn drill(server: &Server, complaints: &mut Complaints) {
    let directory = tempfile::tempdir().expect("directory");
    let running = Running::start(server, directory.path());
    let begun = Instant::now();
    for ask in server.asks {
        let mut report = look(ask).await;
        while report.outcome != Outcome::Ok && begun.elapsed() < PATIENCE {
            tokio::time::sleep(Duration::from_millis(100)).await;
            report = look(ask).await;
        }
        complaints.look(ask, "well", &report, report.outcome == Outcome::Ok);
        if report.outcome != Outcome::Ok {
            println!("{}", std::fs::read_to_string(directory.path().join("output")).unwrap_or_default());
        }
    }
    let plain = server.asks.iter().filter(|ask| !ask.tls && ask.preset != "https");
    for other in plain.flat_map(|own| PRESETS.iter().map(|preset| ask(preset.name, own.port))) {
        let own = server.asks.iter().any(|own| own.preset == other.preset && own.port == other.port);
        if own || other.preset == "tcp" || server.taken_for.contains(&other.preset) {
            continue;
        }
        let report = look(&other).await;
        complaints.look(&other, "wrong", &report, report.outcome != Outcome::Ok);
    }
    running.signal(Signal::STOP);
    for ask in server.asks {
        let report = look(ask).await;
        let silent = report.outcome == Outcome::Ng && report.detail.contains("within");
        complaints.look(ask, "frozen", &report, silent);
    }
    drop(running);
    for ask in server.asks {
        let report = look(ask).await;
        let refused = report.outcome == Outcome::Ng && report.detail.contains("refused");
        complaints.look(ask, "gone", &report, refused);
    }
}

#[test]
fn presets_know_their_servers() {
    if !geteuid().is_root() {
        println!("skipped: needs root");
        return;
    }
    // The thread that unshares is the one that runs everything.
    let flags = rustix::thread::UnshareFlags::NEWNET;
    // SAFETY: NEWNET changes nothing that other threads of this process share with this one in memory.
    unsafe { rustix::thread::unshare_unsafe(flags) }.expect("unshare");
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("ip");
    assert!(up.success());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let mut complaints = Complaints(Vec::new());
    for server in SERVERS {
        if Path::new(server.program).exists() {
            println!("{}", server.program);
            runtime.block_on(drill(server, &mut complaints));
        } else {
            println!("{} is not installed: left out", server.program);
        }
    }
    assert!(complaints.0.is_empty(), "{:#?}", complaints.0);
}
