use super::{preset::to_toml, *};
use proptest::prelude::*;

fn read(text: &str) -> Result<(u16, Probe), Vec<Fault>> {
    toml::from_str::<FileProbe>(text).expect(text).check("192.0.2.100")
}

fn good(text: &str) -> (u16, Probe) {
    read(text).unwrap_or_else(|faults| panic!("{text}: {faults:?}"))
}

fn faults(text: &str) -> String {
    let faults = read(text).expect_err(text);
    let step = |fault: &Fault| fault.step.map(|step| format!("step {step} ")).unwrap_or_default();
    faults.iter().map(|fault| format!("{}{}: {}\n", step(fault), fault.key, fault.text)).collect()
}

#[test]
fn steps_are_read() {
    let (port, probe) = good(
        r#"
        port = 25
        steps = [ { expect = "^220 " }, { send = "quit\r\n" }, { expect = '^221', wrong = '^5', timeout = "1s" }, { send = '\x00\\' } ]
        "#,
    );
    let expect = |pattern: &str| Step { expect: Some(pattern.into()), ..Step::default() };
    let steps = vec![
        expect("^220 "),
        Step { send: b"quit\r\n".to_vec(), ..Step::default() },
        Step { wrong: Some("^5".into()), timeout: Some(Duration::from_secs(1)), ..expect("^221") },
        Step { send: b"\x00\\".to_vec(), ..Step::default() },
    ];
    assert_eq!((port, probe), (25, Probe { steps, ..Probe::default() }));
}

#[test]
fn time_outs_follow_the_profile() {
    let limits = |probe: &Probe, profile| {
        let Limits { step, total, .. } = probe.limits(profile, &Detection::of(profile));
        (step.as_millis(), total.as_millis())
    };
    let smtp = good("probe = \"smtp\"").1;
    assert_eq!(limits(&smtp, Profile::Thesis), (3000, 9000), "3 s for the connection and for each message");
    assert_eq!(limits(&smtp, Profile::Normal), (500, 500));
    assert_eq!(limits(&smtp, Profile::Fast), (200, 200));
    let slow = good("probe = \"smtp\"\ntimeout = \"2s\"").1;
    assert_eq!(limits(&slow, Profile::Fast), (2000, 2000));
    let own = good("port = 1\nsteps = [{ expect = 'a', timeout = '1s' }, { send = 'b', expect = 'c' }]");
    assert_eq!(limits(&own.1, Profile::Normal), (500, 2000));
}

#[test]
fn presets_and_their_options() {
    let (port, probe) =
        good("probe = \"https\"\nhost = \"www.example.com\"\npath = \"/health\"\nstatus = \"200\"\nmethod = \"HEAD\"");
    assert_eq!((port, probe.transport), (443, Transport::Tls));
    assert_eq!(probe.server_name, "www.example.com");
    let step = &probe.steps[0];
    assert!(step.send.starts_with(b"HEAD /health HTTP/1.1\r\nHost: www.example.com\r\n"), "{step:?}");
    assert_eq!(step.expect.as_deref(), Some(r"\AHTTP/1\.[01] (?:200)[ \r\n]"));
    let plain = good("probe = \"http\"\nport = 8080");
    assert!(escape(&plain.1.steps[0].send).contains(r"Host: 192.0.2.100\r\n"), "the address clients use");
    let imaps = good("probe = \"imap\"\nport = 993\ntls = true");
    assert_eq!(imaps.1.transport, Transport::Tls);
    let dns = good("probe = \"dns\"\nquery = \"www.example.com\"");
    assert!(dns.1.steps[0].send.ends_with(b"\x03www\x07example\x03com\x00\x00\x01\x00\x01"));
    let smb = good("probe = \"smb\"");
    assert_eq!(smb.1.steps[0].send.len(), 4 + 0x6c, "as its own length says");
}

#[test]
fn every_fault_is_named() {
    let said = faults(
        r#"
        port = 0
        timeout = "2h"
        tls = true
        udp = true
        steps = [ { send = '\q' }, { expect = '(' }, { expect = '.*' }, { expect = 'ü' }, { wrong = 'x' }, { expect = 'a', timeout = "0s" } ]
        path = "/"
        "#,
    );
    for part in [
        "timeout: timeout = 2h: above 0 and at most 60s",
        "udp: tls = true and udp = true: choose one",
        "path: path is an option of presets",
        "step 1 send: send = \"\\\\q\": \\q is no escape",
        "step 2 expect: expect = \"(\": no regular expression",
        "step 3 expect: expect = \".*\": it matches silence",
        r"patterns are ASCII; write 'ü' as its bytes, '\xc3\xbc' in UTF-8",
        "step 5 send: neither sends nor expects",
        "step 6 timeout: timeout = 0s: above 0 and",
        "port: port is missing or 0",
    ] {
        assert!(said.contains(part), "{part:?} is not in\n{said}");
    }
    for (text, part) in [
        ("probe = \"smpt\"\nport = 25", "probe = \"smpt\" is none of tcp, smtp, submission, http, https"),
        ("probe = \"tcp\"", "port is missing"),
        ("port = 1", "neither probe nor steps"),
        ("probe = \"ssh\"\nsteps = []", "probe and steps are both given"),
        ("port = 1\nsteps = []", "0 steps"),
        ("port = 1\nudp = true\nsteps = [{ expect = 'a' }]", "over UDP the first step sends"),
        ("probe = \"ssh\"\npath = \"/\"", "path is no option of probe = \"ssh\""),
        ("probe = \"http\"\npath = \"/a b\"", "printable ASCII without spaces"),
        ("probe = \"http\"\nstatus = \"2..)|(.\"", "no regular expression"),
        ("probe = \"dns\"\nquery = \"a..b\"", "1 to 63 characters"),
        ("probe = \"ntp\"\ntls = true", "is sent over UDP"),
    ] {
        let said = faults(text);
        assert!(said.contains(part), "{part:?} is not in\n{said}");
    }
}

#[test]
fn a_pattern_too_large_is_refused() {
    assert!(check_pattern(r"(?:[\x00-\xff]{200}){200}").is_err_and(|reason| reason.contains("no regular expression")));
    assert!(check_pattern(&"a".repeat(2000)).is_err_and(|reason| reason.contains("too long")));
    assert!(check_pattern(&format!("{}a{}", "(".repeat(100), ")".repeat(100))).is_err());
}

#[test]
fn what_is_listed_is_what_is_sent() {
    #[derive(serde::Deserialize)]
    struct File {
        target: Target,
    }
    #[derive(serde::Deserialize)]
    struct Target {
        service: Vec<toml::Table>,
    }
    let file: File = toml::from_str(&listing()).expect("TOML");
    assert_eq!(file.target.service.len(), PRESETS.len());
    for (mut service, preset) in file.target.service.into_iter().zip(PRESETS) {
        assert_eq!(service.remove("name"), Some(preset.name.into()));
        let copied: FileProbe = service.try_into().expect("probe");
        let (port, copied) = copied.check("").unwrap_or_else(|faults| panic!("{}: {faults:?}", preset.name));
        let host = if preset.options.contains(&"host") { "host = \"www.example.com\"" } else { "" };
        let (_, own) = good(&format!("probe = \"{}\"\nport = {port}\n{host}", preset.name));
        assert_eq!((copied.transport, &copied.steps), (own.transport, &own.steps));
        for pattern in own.steps.iter().flat_map(|step| [&step.expect, &step.wrong]).flatten() {
            assert_eq!(check_pattern(pattern), Ok(()), "{}", preset.name);
        }
        assert!(own.steps.iter().all(|step| step.send.len() <= MAX_SEND));
    }
}

#[test]
fn the_documentation_has_todays_table() {
    let page = include_str!("../../../../docs/probes.md");
    assert!(page.contains(&table()), "docs/probes.md is stale; the table is now:\n{}", table());
    assert!(page.contains(&times()), "docs/probes.md is stale; the times are now:\n{}", times());
}

proptest! {
    #[test]
    fn escapes_come_back(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let text = escape(&bytes);
        prop_assert!(text.is_ascii() && !text.contains('\''));
        prop_assert_eq!(unescape(&text), Ok(bytes));
    }

    #[test]
    fn no_text_breaks_the_escapes(text in r"(\\|x|[0-9a-g]|\PC){0,40}") {
        let _ = unescape(&text);
    }

    #[test]
    fn no_pattern_breaks_the_check(pattern in r"([\\\[\](){}|*+?^$.,0-9a-z-]|\PC){0,60}") {
        let _ = check_pattern(&pattern);
    }

    #[test]
    fn no_step_breaks_the_parser(
        send in r"(\\|x|[0-9a-g]|\PC){0,20}",
        expect in r"([\\\[\](){}|*+?^$.0-9a-z]){0,20}",
        timeout in r"([-0-9]{1,12}(s|ms|h|d|y)?){1,2}",
        port in any::<u16>(),
        udp in any::<bool>(),
    ) {
        let step = FileStep {
            send: Some(send), expect: Some(expect), wrong: None, timeout: timeout.parse().ok(),
        };
        let file = FileProbe { port: Some(port), udp: Some(udp), steps: Some(vec![step]), ..FileProbe::default() };
        if let Ok((port, probe)) = file.check("192.0.2.1") {
            prop_assert_eq!(good(&to_toml(&probe, port)), (port, probe));
        }
    }

    #[test]
    fn no_option_breaks_a_preset(
        preset in 0..PRESETS.len(), key in 0..5_usize, value in r"([-/.%a-zA-Z0-9\\()|\[]|\PC){0,30}",
    ) {
        let key = ["path", "host", "status", "method", "query"][key];
        let text = format!("port = 7\nprobe = \"{}\"\n", PRESETS[preset].name);
        let mut table: toml::Table = text.parse().expect("TOML");
        table.insert(key.into(), value.into());
        let file: FileProbe = table.try_into().expect("probe");
        if let Ok((_, probe)) = file.check("192.0.2.1") {
            for pattern in probe.steps.iter().flat_map(|step| [&step.expect, &step.wrong]).flatten() {
                prop_assert_eq!(check_pattern(pattern), Ok(()));
            }
        }
    }
}
