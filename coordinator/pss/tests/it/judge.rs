//! Load classes (fig. 3.5, 3.6, 4.5), repeats and hours.

use crate::support::group;
use kage_pss_core::{
    class::{Class, Held, LoadThresholds, Region, Thresholds, classify},
    judge::{Judge, Judgement, Repeats},
    load::Load,
    policy::{Day, GroupPolicy, Hours, Policy, Wall},
    units::Percent,
};
use std::fmt::Write as _;

const CLASSES: [Class; 3] = [Class::Light, Class::Moderate, Class::Heavy];

fn load(percent: u32) -> Load {
    Load { memory: Percent::of(1), cpu: Percent::of(percent), network: Percent::of(1) }
}

fn thresholds() -> LoadThresholds {
    GroupPolicy::default().thresholds
}

#[test]
fn table_of_class_and_region() {
    let mut table = String::new();
    for held in CLASSES {
        let row: Vec<String> = [Region::L, Region::Ml, Region::M, Region::Hm, Region::H]
            .map(|region| format!("{region:?} {}", classify(held, region)))
            .into();
        let _ = writeln!(table, "{held}: {}", row.join(", "));
    }
    assert_eq!(
        table,
        "Light: L Light, Ml Light, M Moderate, Hm Moderate, H Moderate\n\
         Moderate: L Light, Ml Moderate, M Moderate, Hm Moderate, H Heavy\n\
         Heavy: L Moderate, Ml Moderate, M Moderate, Hm Heavy, H Heavy\n"
    );
}

#[test]
fn lower_bounds_belong_to_the_region_above() {
    let cpu = thresholds().cpu;
    let edges = [(1999, Region::L), (2000, Region::Ml), (4999, Region::Ml), (5000, Region::M), (6999, Region::M)];
    let edges =
        edges.into_iter().chain([(7000, Region::Hm), (8499, Region::Hm), (8500, Region::H), (14000, Region::H)]);
    for (hundredths, region) in edges {
        assert_eq!(cpu.region(Percent(hundredths)), region, "{hundredths}");
    }
    let chapter_4 = Thresholds { heavy: None, ..cpu };
    assert_eq!(chapter_4.region(Percent::of(100)), Region::M);
}

#[test]
fn the_highest_of_the_three_loads_is_the_groups() {
    let judge = |memory, cpu, network| {
        let load = Load { memory: Percent::of(memory), cpu: Percent::of(cpu), network: Percent::of(network) };
        Held::all(Class::Moderate).judge(&load, &thresholds())
    };
    assert_eq!(judge(10, 10, 10), Class::Light);
    assert_eq!(judge(10, 10, 50), Class::Moderate);
    assert_eq!(judge(80, 10, 10), Class::Moderate);
    assert_eq!(judge(10, 90, 10), Class::Heavy);
    assert_eq!(judge(10, 30, 10), Class::Moderate, "in the dead band it keeps what it had");
}

/// Conditions × judgements: what each of a series of loads leads to.
fn series(condition: Class, loads: &[Option<u32>]) -> Vec<String> {
    let mut judge = Judge::new(condition);
    let repeats = Repeats { light: 4, moderate: 2, heavy: 3 };
    loads
        .iter()
        .map(|percent| {
            let load = percent.map(load);
            match judge.round(condition, load.as_ref(), &thresholds(), &repeats) {
                Judgement::Unmeasured => "unmeasured".to_owned(),
                Judgement::Suits => "suits".to_owned(),
                Judgement::Waiting { to, more } => format!("{to} in {more}"),
                Judgement::Due { to } => format!("{to} due"),
            }
        })
        .collect()
}

#[test]
fn table_of_condition_and_judgements() {
    let low = Some(10);
    let (band, moderate, high) = (Some(30), Some(60), Some(95));
    assert_eq!(series(Class::Moderate, &[low, low, low, low]), ["Light in 3", "Light in 2", "Light in 1", "Light due"]);
    assert_eq!(
        series(Class::Moderate, &[low, low, moderate, low, low]),
        ["Light in 3", "Light in 2", "suits", "Light in 3", "Light in 2"],
        "running means running"
    );
    assert_eq!(
        series(Class::Moderate, &[low, low, None, low]),
        ["Light in 3", "Light in 2", "unmeasured", "Light in 3"],
        "slow to give capacity up"
    );
    assert_eq!(
        series(Class::Light, &[moderate, None, moderate]),
        ["Moderate in 1", "unmeasured", "Moderate due"],
        "quick to bring it back"
    );
    assert_eq!(series(Class::Light, &[high, high]), ["Moderate in 1", "Moderate due"], "Heavy counts for Moderate");
    assert_eq!(series(Class::Light, &[band, low, band]), ["suits", "suits", "suits"]);
    assert_eq!(series(Class::Moderate, &[band, moderate, band]), ["suits", "suits", "suits"]);
    assert_eq!(series(Class::Moderate, &[high, high, high]), ["Heavy in 2", "Heavy in 1", "Heavy due"]);
    assert_eq!(series(Class::Heavy, &[Some(75), low, low]), ["suits", "Moderate in 1", "Moderate due"]);
    assert_eq!(series(Class::Light, &[None]), ["unmeasured"]);
}

#[test]
fn once_due_it_stays_due_while_the_load_does() {
    let lines = series(Class::Moderate, &[Some(10); 6]);
    assert_eq!(lines[3..], ["Light due", "Light due", "Light due"]);
}

#[test]
fn hours_go_past_midnight_from_the_day_they_begin() {
    let night = Hours { days: vec![Day::Friday], from: 22 * 60, to: 6 * 60 };
    let wall = |day, hour: u16, minute| Wall { day, minute: hour * 60 + minute };
    for (day, hour, minute, covered) in [
        (Day::Friday, 21, 59, false),
        (Day::Friday, 22, 0, true),
        (Day::Saturday, 5, 59, true),
        (Day::Saturday, 6, 0, false),
        (Day::Saturday, 23, 0, false),
        (Day::Friday, 3, 0, false),
    ] {
        assert_eq!(night.covers(wall(day, hour, minute)), covered, "{day:?} {hour}:{minute}");
    }
    let office = Hours { days: Vec::new(), from: 8 * 60, to: 18 * 60 };
    let mut policy = Policy::default();
    let own = GroupPolicy { awake: vec![office], ..GroupPolicy::default() };
    policy.groups.insert(group("web"), own);
    assert!(policy.keeps_awake(&group("web"), wall(Day::Sunday, 8, 0)));
    assert!(!policy.keeps_awake(&group("web"), wall(Day::Sunday, 18, 0)));
    assert!(!policy.keeps_awake(&group("mail"), wall(Day::Sunday, 8, 0)));
    policy.awake.push(night);
    assert!(policy.keeps_awake(&group("mail"), wall(Day::Friday, 23, 0)));
}
