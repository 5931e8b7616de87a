use super::*;

const DOCS: &str = include_str!("../../docs/events.md");

fn event(at: u64, kind: &str, text: &str) -> Event {
    Event { unix_ms: at * 1000, target: "mail1".into(), kind: kind.into(), text: text.into(), ..Event::default() }
}

/// Lines without their times.
fn wording(text: &str) -> Vec<String> {
    text.lines().map(|line| line.split_once(' ').map_or(line, |(_, line)| line).to_owned()).collect()
}

fn render(events: &[(u64, &str, &str)]) -> String {
    let mut log = Log::new(Server::Real);
    events.iter().map(|(at, kind, text)| log.lines(&event(*at, kind, text))).collect()
}

/// Thesis F4.1, St1. The counters of the interval are left out, as the figure does with dots.
#[test]
fn a_restart_reads_as_in_f4_1() {
    let text = render(&[
        (0, "vip-set", "VIP set: 10.0.0.100 on mail1"),
        (31, "service-trouble", "service postfix is in trouble: NG: no reply"),
        (32, "restarting", "restarting postfix"),
        (34, "service-normal", "the service answers again"),
    ]);
    let expected = [
        "Virtual_IP:_VIP_(IPR)",
        "IPR_is_normal",
        ".",
        "Network_is_normal",
        "postfix_is_stop_condition",
        "Network_is_normal",
        "Start_to_restart_postfix",
        "Start_to_check_postfix",
        "postfix_is_normal",
    ];
    assert_eq!(wording(&text), expected);
}

/// Thesis F4.2, St2.
#[test]
fn a_reboot_reads_as_in_f4_2() {
    let text = render(&[
        (13, "service-trouble", "service postfix is in trouble: NG: no reply"),
        (14, "restarting", "restarting postfix"),
        (16, "confirmed", "its restart did not cure the service: NG"),
        (16, "backup-server", "mailb on mgmt takes over (service trouble)"),
        (18, "backup-up", "mailb is up"),
        (18, "released", "10.0.0.100 released"),
        (18, "vip-set", "VIP set: 10.0.0.100 on mgmt"),
        (18, "rebooting", "rebooting the target"),
        (64, "target-back", "it came back"),
        (66, "target-up", "the target is up and answers"),
        (67, "returning", "going back"),
        (67, "vip-set", "VIP set: 10.0.0.100 on mail1"),
        (67, "regular", "the target serves again"),
        (68, "double-suspended", "mailb is suspended"),
    ]);
    let expected = [
        "Network_is_normal",
        "postfix_is_stop_condition",
        "Network_is_normal",
        "Start_to_restart_postfix",
        "Cannot_recover_postfix_on_IPR",
        "Start_of_virtual_server_(IPV)",
        "Server_start_Complete",
        "Remove_virtual_IP_(IPR)",
        "Virtual_IP:_VIP_(IPV)",
        "Wait",
        "__Start_of_restart_(IPR)",
        ".",
        "Wait",
        "__Restart_is_end_(IPR)",
        ".",
        "Wait",
        "__Recovery_of_postfix_on_IPR",
        "__Make_up.file",
        "Find_up.file",
        "Virtual_IP:_VIP_(IPV->IPR)",
        "Network_is_normal",
        "Service_is_normal",
        "IPR_is_normal",
        "Suspend_IPV",
    ];
    assert_eq!(wording(&text), expected);
}

/// Thesis F4.4, Nt2; F4.3 is the same without the wake.
#[test]
fn a_shutdown_reads_as_in_f4_4() {
    let text = render(&[
        (26, "network-trouble", "ping: NG"),
        (28, "confirmed", "lost: ping NG"),
        (28, "backup-server", "mailb on mgmt takes over (network trouble)"),
        (30, "backup-up", "mailb is up"),
        (30, "vip-set", "VIP set: 10.0.0.100 on mgmt"),
        (88, "waking", "the target is down: Wake-on-LAN"),
        (125, "target-back", "it came back"),
        (127, "target-up", "the target is up and answers"),
        (128, "returning", "going back"),
        (128, "vip-set", "VIP set: 10.0.0.100 on mail1"),
    ]);
    let lines = wording(&text);
    let wanted = [
        "IPR_network_is_trouble",
        "IPR_network_is_trouble",
        "__Restart_check_(IPR)",
        "Start_of_virtual_server_(IPV)",
        "Server_start_Complete",
        "Virtual_IP:_VIP_(IPV)",
        "__Server_is_down_(IPR)",
        "__Start_IPR_forcibly",
        "__Server_start_Complete",
        "__IPR_is_normal",
        "__Make_up.file",
        "Find_up.file",
        "Virtual_IP:_VIP_(IPV->IPR)",
    ];
    let found: Vec<&String> = lines.iter().filter(|line| *line != "Wait" && *line != ".").collect();
    assert_eq!(found, wanted.iter().collect::<Vec<_>>(), "{text}");
}

#[test]
fn a_pushed_event_claims_no_ping() {
    let text = render(&[
        (1, "service-down", "service postfix is down: exited"),
        (1, "service-trouble", "service postfix is in trouble: exited"),
        (1, "restarting", "restarting postfix"),
    ]);
    assert_eq!(wording(&text), ["postfix_is_stop_condition", "Start_to_restart_postfix"]);
}

/// docs/events.md says of every event which lines it becomes.
#[test]
fn the_documents_table_has_every_line() {
    for rule in RULES {
        let row = DOCS.lines().find(|line| line.starts_with(&format!("| `{}` |", rule.kind)));
        let row = row.unwrap_or_else(|| panic!("docs/events.md has no row for {}", rule.kind));
        for line in rule.lines {
            let written = line.replace("{S}", "SERVICE");
            assert!(row.contains(&format!("`{written}`")), "{}: {written} is not in {row}", rule.kind);
        }
    }
}

#[test]
fn a_recorded_file_becomes_a_log_for_each_target() {
    let recorded = include_str!("../tests/fixtures/events.jsonl");
    let events = crate::events::parse(recorded.as_bytes()).expect("events").0;
    same_but_times(&logs(&events, None));
}

/// Compared without the times, which depend on the time zone.
fn same_but_times(text: &str) {
    let strip = |line: &str| match line.split_once(' ') {
        Some((time, rest)) if time.len() == 8 && time.contains(':') => rest.to_owned(),
        Some(_) | None => line.to_owned(),
    };
    let found: Vec<String> = text.lines().map(strip).collect();
    let expected: Vec<&str> = include_str!("../tests/fixtures/events.thesis").lines().collect();
    assert_eq!(found, expected, "\n{}", found.join("\n"));
}

/// 15:39 on the day of fig. 4.10, in UTC. Minutes, seconds, hundredths.
fn at(minute: u64, second: u64, hundredth: u64) -> u64 {
    1_795_360_800_000 + 15 * 3_600_000 + minute * 60_000 + second * 1000 + hundredth * 10
}

fn log_of(target: &str, events: &[(u64, &str, &str)]) -> Vec<Event> {
    let event = |(unix_ms, kind, text): &(u64, &str, &str)| Event {
        unix_ms: *unix_ms,
        target: target.into(),
        kind: (*kind).into(),
        text: (*text).into(),
        ..Event::default()
    };
    events.iter().map(event).collect()
}

/// Minutes and later of each time, which do not depend on the time zone (those of half an hour apart).
fn timed(text: &str) -> String {
    let strip = |line: &str| match line.split_once(' ') {
        Some((time, rest)) if time.len() == 11 && time.contains(':') => format!("{} {rest}", &time[6..]),
        Some(_) | None => line.to_owned(),
    };
    text.lines().map(strip).collect::<Vec<_>>().join("\n")
}

/// Fig. 4.10: a night's two transitions, in PSS's log and in that of DBSS(Mail2).
#[test]
fn transitions_read_as_in_fig_4_10() {
    let light = "ftp Moderate -> Light, mail Moderate -> Light, web Moderate -> Light";
    let moderate = "ftp Light -> Moderate, mail Light -> Moderate, web Light -> Moderate";
    let load = "memory 24.41 %, CPU 10.00 %, network 0.00 %";
    let judged =
        |group: &str, class: &str, count| format!("{group}: {class} load class, {count} judgements running; {load}");
    let mut events = Vec::new();
    for group in ["ftp", "mail", "web"] {
        events.extend(log_of("", &[(at(39, 32, 7), "pss-judged", judged(group, "Light", 6).as_str())]));
    }
    events.extend(log_of(
        "",
        &[
            (at(39, 32, 8), "pss-begun", &format!("transition begun (9 steps): {light}; saves 170.0 W (modelled)")),
            (at(39, 32, 60), "pss-step-done", "done: virtual IP 172.21.14.104: mail2 -> mail1"),
            (at(39, 32, 70), "pss-step-begun", "begun: live migration of ftp1: rs2 -> rs1"),
            (at(39, 35, 90), "pss-step-done", "done: live migration of ftp1: rs2 -> rs1"),
            (at(39, 36, 10), "pss-step-done", "done: suspend mail2 on rs2"),
            (at(39, 36, 20), "pss-step-begun", "begun: suspend host rs2"),
            (at(39, 38, 60), "pss-step-done", "done: suspend host rs2"),
            (at(39, 38, 62), "pss-committed", &format!("transition done: {light}")),
        ],
    ));
    events.extend(log_of("mail2", &[(at(39, 38, 95), "suspended", "suspended on purpose, or about to be")]));
    for group in ["ftp", "mail", "web"] {
        events.extend(log_of("", &[(at(40, 32, 3), "pss-judged", judged(group, "Moderate", 3).as_str())]));
    }
    events.extend(log_of(
        "",
        &[
            (at(40, 32, 4), "pss-begun", &format!("transition begun (9 steps): {moderate}; migrates 2048 MiB")),
            (at(40, 32, 5), "pss-step-begun", "begun: wake host rs2"),
            (at(40, 38, 0), "pss-step-done", "done: wake host rs2"),
            (at(40, 38, 40), "pss-step-done", "done: resume mail2 on rs2"),
            (at(40, 38, 50), "pss-step-begun", "begun: live migration of ftp1: rs1 -> rs2"),
            (at(40, 41, 20), "pss-step-done", "done: live migration of ftp1: rs1 -> rs2"),
            (at(40, 41, 30), "pss-step-done", "done: virtual IP 172.21.14.104: mail1 -> mail2"),
            (at(40, 41, 40), "pss-committed", &format!("transition done: {moderate}")),
        ],
    ));
    events.extend(log_of(
        "mail2",
        &[
            (at(40, 38, 45), "resumed", "meant to be in service again"),
            // Moved by power saving: DBSS has no line for it.
            (at(40, 41, 0), "arranged", "172.21.14.104 goes to mail2 on rs2, as arranged"),
            (at(40, 41, 28), "vip-set", "VIP set: 172.21.14.104 on rs2"),
        ],
    ));
    assert_eq!(
        timed(&logs(&events, None)),
        "System log
Target: mail2 server

38.95 IPV_is_suspended
38.45 IPV_is_activated

System log
PSS

32.07 Light_load_class_(ftp):_6
32.07 Light_load_class_(mail):_6
32.07 Light_load_class_(web):_6
32.08 Change_of_condition:_ftp_(Moderate->Light)
32.08 Change_of_condition:_mail_(Moderate->Light)
32.08 Change_of_condition:_web_(Moderate->Light)
32.60 Virtual_IP:_172.21.14.104_(mail2->mail1)
32.70 Start_of_live_migration:_ftp1_(rs2->rs1)
35.90 Live_migration:_ftp1_(rs2->rs1)
36.10 Suspend_mail2
36.20 Start_to_suspend_rs2
38.60 Suspend_rs2
38.62 Change_of_condition_Complete
38.62 Light_condition_(ftp)
38.62 Light_condition_(mail)
38.62 Light_condition_(web)
32.03 Moderate_load_class_(ftp):_3
32.03 Moderate_load_class_(mail):_3
32.03 Moderate_load_class_(web):_3
32.04 Change_of_condition:_ftp_(Light->Moderate)
32.04 Change_of_condition:_mail_(Light->Moderate)
32.04 Change_of_condition:_web_(Light->Moderate)
32.05 Start_to_activate_rs2
38.00 Activate_suspended_rs2
38.40 Resume_mail2
38.50 Start_of_live_migration:_ftp1_(rs1->rs2)
41.20 Live_migration:_ftp1_(rs1->rs2)
41.30 Virtual_IP:_172.21.14.104_(mail1->mail2)
41.40 Change_of_condition_Complete
41.40 Moderate_condition_(ftp)
41.40 Moderate_condition_(mail)
41.40 Moderate_condition_(web)"
    );
}

/// Fig. 4.11: FTP1 is shut down and started again; its backup server IPB serves meanwhile.
#[test]
fn a_virtual_servers_trouble_reads_as_in_fig_4_11() {
    let mut events = log_of(
        "ftp1",
        &[
            (at(23, 50, 34), "network-trouble", "ping: NG"),
            (at(23, 52, 86), "confirmed", "lost: ping NG"),
            (at(23, 52, 97), "backup-server", "ftpb on mgmt takes over (network trouble)"),
            (at(23, 54, 15), "backup-up", "ftpb is up"),
            (at(23, 54, 35), "vip-set", "VIP set: 172.21.14.103 on mgmt"),
            (at(25, 22, 95), "waking", "ftp1 is down: started on rs2 (attempt 1)"),
            (at(26, 21, 30), "target-back", "the target is back; its services are given time to start"),
            (at(26, 21, 36), "target-up", "the target is up and answers"),
            (at(26, 21, 40), "returning", "going back"),
            (at(26, 21, 60), "released", "172.21.14.103 was released"),
            (at(26, 21, 78), "vip-set", "VIP set: 172.21.14.103 on rs2"),
            (at(26, 21, 79), "regular", "the target serves again"),
            (at(26, 21, 90), "double-suspended", "ftpb is suspended"),
        ],
    );
    events.extend(log_of(
        "",
        &[
            (at(23, 45, 31), "pss-unmeasured", "ftp1 can't be measured: ftp can't be judged"),
            (at(23, 58, 66), "pss-measured", "ftp is measured again, all of it"),
        ],
    ));
    assert_eq!(
        timed(&logs(&events, None)),
        "System log
Target: ftp1 server

50.34 IPV_network_is_trouble
52.86 IPV_network_is_trouble
52.97 __Restart_check_(IPV)
52.97 Start_of_virtual_server_(IPB)
54.15 Server_start_Complete
54.35 Virtual_IP:_VIP_(IPB)
54.35 Wait
.
22.95 Wait
22.95 __Server_is_down_(IPV)
22.95 __Start_IPV_forcibly
.
21.30 Wait
21.30 __Server_start_Complete
21.36 __IPV_is_normal
21.36 __Make_up.file
21.40 Find_up.file
21.60 Remove_virtual_IP_(IPB)
21.78 Virtual_IP:_VIP_(IPB->IPV)
21.79 Network_is_normal
21.79 Service_is_normal
21.79 IPV_is_normal
21.90 Suspend_IPB

System log
PSS

45.31 Cannot_measure_load_of_ftp1_(ftp)
58.66 ftp_is_normal"
    );
}

/// What is not complete is not said to be; a step that is taken back is done the other way round.
#[test]
fn a_transition_that_is_taken_back_is_never_complete() {
    let events = log_of(
        "",
        &[
            (0, "pss-step-undone", "done: wake host rs2"),
            (1, "pss-rolled-back", "transition undone: suspend host rs3: the kernel refused"),
            (2, "pss-committed", "transition done but for live migration of ftp1: rs1 -> rs2"),
            (3, "pss-committed", "transition done: no group changes its condition"),
            (4, "pss-judged", "nonsense"),
        ],
    );
    let text = logs(&events, None);
    assert_eq!(wording(&text)[3..], ["Activate_suspended_rs2", "Change_of_condition_Complete"], "{text}");
}

/// The coordinator knows which are virtual servers; the head says who is who.
#[test]
fn the_head_of_a_virtual_servers_log_names_ipv_and_ipb() {
    let known = kage_proto::coordinator::v1::TargetStatus {
        target: "ftp1".into(),
        vm: "ftp1".into(),
        agent: "rs2".into(),
        backup_agent: "mgmt".into(),
        backup_domain: "ftpb".into(),
        ..Default::default()
    };
    let status = Status { targets: vec![known], ..Status::default() };
    let head = heading("ftp1", Some(&status));
    assert!(head.contains("Virtual server: IPV = ftp1 on rs2\nBackup server: IPB = ftpb on mgmt\n"), "{head}");
    assert_eq!(server("ftp1", Some(&status), [].iter()), Server::Virtual);
    assert_eq!(server("web1", None, [].iter()), Server::Real);
}
