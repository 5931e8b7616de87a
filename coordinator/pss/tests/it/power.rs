//! Watts and kWh, modelled or measured, and said which.

use crate::support::{at, host, light, thesis};
use kage_pss_core::{
    power::{PowerMeter, Source},
    units::Watts,
};

#[test]
fn the_thesiss_263_and_93_watts() {
    let mut meter = PowerMeter::default();
    meter.observe(at(0), &thesis().hosts);
    assert_eq!((meter.draw(at(0)).watts.to_string(), meter.draw(at(0)).source), ("263.0 W".into(), Source::Modelled));
    meter.observe(at(3600), &light().hosts);
    assert_eq!(meter.draw(at(3600)).watts.to_string(), "93.0 W");
    assert_eq!(meter.draw(at(3600)).always_on.to_string(), "263.0 W");
    let used = meter.used(at(3 * 3600));
    assert_eq!(used.energy.to_string(), "0.449 kWh", "263 Wh and twice 93 Wh");
    assert_eq!(used.saved.to_string(), "0.340 kWh", "two hosts, two hours, 85 W");
    assert_eq!(used.source, Source::Modelled);
}

#[test]
fn measurements_hold_while_they_are_fresh_and_the_host_is_awake() {
    let mut hosts = thesis().hosts;
    hosts.retain(|name, _| *name == host("rs1"));
    let mut meter = PowerMeter::default();
    meter.observe(at(0), &hosts);
    for second in (0..3600).step_by(30) {
        meter.measured(at(second), &host("rs1"), Watts::of(50));
    }
    assert_eq!(meter.draw(at(3600)).source, Source::Measured);
    let used = meter.used(at(3600));
    assert_eq!((used.energy.to_string(), used.source), ("0.050 kWh".into(), Source::Measured));
    // A minute after the last measurement the configured figure holds again.
    assert_eq!(meter.draw(at(3640)).watts, Watts(87_667));
    assert_eq!(meter.used(at(7200)).source, Source::Modelled);
    meter.measured(at(7200), &host("rs1"), Watts::of(50));
    let asleep = light().hosts[&host("rs2")].clone();
    meter.observe(at(7201), &[(host("rs1"), asleep)].into());
    meter.measured(at(7202), &host("rs1"), Watts::of(50));
    assert_eq!(meter.draw(at(7202)).watts, Watts(2_667), "a host that sleeps measures nothing");
}
