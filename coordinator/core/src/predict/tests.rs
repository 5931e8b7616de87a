use super::*;
use crate::characteristics::Measured;

fn cluster(profile: &str) -> Cluster {
    let text = include_str!("../../../../deploy/cluster.toml");
    let text = text.replace("profile = \"normal\"", &format!("profile = \"{profile}\""));
    let text = if profile == "thesis" { text.replace("healthy_for = \"30s\"\n", "") } else { text };
    Cluster::parse(&text).unwrap_or_else(|error| panic!("{error}"))
}

/// Thesis table 2.1.
fn table_2_1() -> Characteristics {
    let one = |ms| Measured::of(vec![Duration::from_millis(ms)], 0, "thesis".into());
    let figures = Figures {
        trs: one(36_300),
        trr: one(47_400),
        tvs: one(2_100),
        tna: one(1_000),
        tnd: one(2_000),
        tsw: one(2_000).map(|tsw| ("smtp".parse().expect("name"), tsw)).into_iter().collect(),
    };
    Characteristics { targets: [("mail".parse().expect("name"), figures)].into() }
}

/// Trouble; function, target, client typical and worst, in milliseconds.
type Row<'a> = (&'a str, Option<u64>, Option<u64>, Option<u64>, Option<u64>);

fn rows(report: &Report) -> Vec<Row<'_>> {
    report.targets[0]
        .troubles
        .iter()
        .map(|row| {
            let name = row.trouble.split(' ').next().expect("name");
            let typical = |range: Option<Range>| range.map(|range| range.typical);
            (name, typical(row.function_ms), typical(row.target_ms), row.outage_typical_ms, row.outage_worst_ms)
        })
        .take(4)
        .collect()
}

#[test]
fn the_thesis_figures_give_the_thesis_predictions() {
    let report = predict(&cluster("thesis"), &table_2_1());
    // Table 2.2, in brackets there: function, target, client ± 5 s.
    assert_eq!(
        rows(&report),
        [
            ("St1", None, Some(3_000), Some(9_000), Some(14_000)),
            ("St2", Some(5_100), Some(52_400), Some(11_100), Some(16_100)),
            ("Nt1", Some(4_100), Some(42_400), Some(11_100), Some(16_100)),
            ("Nt2", Some(4_100), Some(100_300), Some(11_100), Some(16_100)),
        ]
    );
    // The worst case of the function knows the lease, which the thesis has not: detected at once, it has L - Tnd to go.
    let worst = report.targets[0].troubles[2].function_ms.expect("predicted").worst;
    assert_eq!(worst, 10_020 - 2_000);
}

#[test]
fn nothing_is_predicted_from_nothing() {
    let report = predict(&cluster("thesis"), &Characteristics::default());
    let target = &report.targets[0];
    assert_eq!(rows(&report).iter().filter(|row| (row.1, row.2, row.3, row.4) != (None, None, None, None)).count(), 0);
    assert!(
        target
            .notes
            .contains(&"not characterised: Tna, Trr, Trs, Tsw of smtp, Tvs; run kagectl characterise mail".to_owned()),
        "{:?}",
        target.notes
    );
    // What was measured is enough for what it is needed for.
    let mut known = Characteristics::default();
    let one = |ms| Measured::of(vec![Duration::from_millis(ms)], 0, String::new());
    known.learn("mail".parse().expect("name"), Figures { tvs: one(2_100), ..Figures::default() });
    let report = predict(&cluster("thesis"), &known);
    assert_eq!(rows(&report)[2], ("Nt1", Some(4_320), None, Some(10_020), Some(13_500)));
    assert_eq!(report.targets[0].troubles[2].not_characterised, ["Trr"]);
}

#[test]
fn push_events_and_hand_over_shorten_what_they_can() {
    let report = predict(&cluster("normal"), &table_2_1());
    let rows = rows(&report);
    assert_eq!(rows[0], ("St1", None, Some(2_000), Some(2_000), Some(3_000)));
    assert_eq!(rows[1], ("St2", Some(5_200), Some(80_600), Some(5_200), Some(6_200)));
    assert_eq!(rows[2], ("Nt1", Some(2_100), Some(77_500), Some(2_100), Some(2_250)));
    // A double that needs 2.1 s makes a lost host cost patience and 2.1 s.
    assert_eq!(report.targets[0].troubles[4].outage_worst_ms, Some(2_004 + 2_100));
}

#[test]
fn a_patient_probe_finds_trouble_later() {
    let mut cluster = cluster("normal");
    let usual = predict(&cluster, &table_2_1());
    for target in cluster.targets.values_mut() {
        target.services[0].probe.timeout = Some(Duration::from_secs(8));
    }
    let patient = predict(&cluster, &table_2_1());
    // St1 without an event: the probe hangs for 8 s instead of 500 ms.
    assert_eq!(rows(&usual)[0].4, Some(3_000));
    assert_eq!(rows(&patient)[0].4, Some(10_500));
    let lost = |report: &Report| report.targets[0].troubles[4].outage_worst_ms;
    assert_eq!(lost(&usual), Some(2_004 + 2_100));
    // A machine that is gone takes no connection: that needs no 8 s.
    assert_eq!(lost(&patient), lost(&usual));
    // Without connections, only an answer tells.
    for target in cluster.targets.values_mut() {
        target.services[0].probe.transport = crate::probe::Transport::Udp;
    }
    let patient = predict(&cluster, &table_2_1());
    let check = 8_000;
    assert_eq!(lost(&patient), Some(3 * patient.timing.renewal_ms + check + check + 2_100));
}
