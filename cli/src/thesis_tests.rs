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
    let mut log = Log::new();
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

#[test]
fn power_saving_has_a_log_of_its_own() {
    let event = |kind: &str, text: &str| Event {
        seq: 1,
        unix_ms: 0,
        target: String::new(),
        severity: "info".into(),
        kind: kind.into(),
        text: text.into(),
    };
    let events = [
        event("pss-begun", "transition begun (3 steps): mail Moderate -> Light, web Moderate -> Light; saves 1.0 W"),
        event("pss-step-done", "done: virtual IP 10.0.0.4: mail2 -> mail1"),
        event("pss-step-done", "done: live migration of ftp1: rs2 -> rs1"),
        event("pss-step-done", "done: suspend mail2 on rs2"),
        event("pss-step-done", "done: suspend host rs2"),
        event("pss-step-done", "done: wake host rs2"),
        event("pss-committed", "transition done: mail Moderate -> Light"),
    ];
    let text = logs(&events, None);
    let found: Vec<&str> = text.lines().skip(3).filter_map(|line| line.split_once(' ')).map(|(_, line)| line).collect();
    let wanted = [
        "Change_of_condition:_mail_(Moderate->Light)",
        "Change_of_condition:_web_(Moderate->Light)",
        "Virtual_IP:_10.0.0.4_(mail2->mail1)",
        "Live_migration:_ftp1_(rs2->rs1)",
        "Suspend_mail2",
        "Suspend_rs2",
        "Activate_suspended_rs2",
        "Change_of_condition_Complete",
    ];
    assert_eq!(found, wanted, "{text}");
    assert!(text.starts_with("System log\nPSS\n"), "{text}");
}
