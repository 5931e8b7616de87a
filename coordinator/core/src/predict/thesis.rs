//! The thesis's standard troubles: (2.1)–(2.9) with the figures measured of this target, generalised to push events
//! and leases. Without push events the formulas are the thesis's own, beside the lease's patience where that is longer.

use super::{PLANNED, Range, TAKEOVER, TroubleReport, ms};
use crate::{
    characteristics::{Figures, Measured},
    config::{Detection, Target},
};
use kage_types::Profile;
use std::{collections::BTreeSet, ops::Add, time::Duration};

/// How long a restarted service may take to answer before its restart counts as failed, with push events.
pub(super) const RESTART_PATIENCE: Duration = Duration::from_secs(3);

/// A time composed of figures: median and worst, and those of them that nobody measured.
#[derive(Clone, Debug, Default)]
pub(super) struct Sum {
    typical: Duration,
    worst: Duration,
    missing: BTreeSet<String>,
}

impl Sum {
    fn of(typical: Duration, worst: Duration) -> Self {
        Self { typical, worst, missing: BTreeSet::new() }
    }

    fn exactly(duration: Duration) -> Self {
        Self::of(duration, duration)
    }

    fn figure(name: &str, measured: Option<&Measured>) -> Self {
        match measured {
            Some(measured) => {
                Self::of(Duration::from_millis(measured.median_ms), Duration::from_millis(measured.worst_ms))
            }
            None => Self { missing: BTreeSet::from([name.to_owned()]), ..Self::default() },
        }
    }

    /// The later of both.
    fn max(mut self, other: &Self) -> Self {
        self.typical = self.typical.max(other.typical);
        self.worst = self.worst.max(other.worst);
        self.missing.extend(other.missing.iter().cloned());
        self
    }

    /// Shorter by this much in the usual case, and by that in the worst.
    fn less(mut self, typical: Duration, worst: Duration) -> Self {
        self.typical = self.typical.saturating_sub(typical);
        self.worst = self.worst.saturating_sub(worst);
        self
    }

    fn range(&self) -> Option<Range> {
        self.missing.is_empty().then(|| Range { typical: ms(self.typical), worst: ms(self.worst) })
    }
}

impl Add<&Sum> for Sum {
    type Output = Sum;
    fn add(mut self, other: &Sum) -> Sum {
        self.typical += other.typical;
        self.worst += other.worst;
        self.missing.extend(other.missing.iter().cloned());
        self
    }
}

/// The characteristics in force for one target.
struct Times {
    tim: Duration,
    tna: Sum,
    tnd: Sum,
    tvs: Sum,
    trs: Sum,
    trr: Sum,
    trc: Sum,
    /// Tsw after a restart that cures.
    tsw: Sum,
    /// Tsw before a target that came back is looked at.
    settle: Sum,
    healthy: Sum,
    patience: Duration,
}

/// St1, St2, Nt1 and Nt2 of one target.
pub(super) fn troubles(
    patience: Duration,
    profile: Profile,
    detection: &Detection,
    target: &Target,
    figures: &Figures,
) -> Vec<TroubleReport> {
    let restartable: Vec<_> = target.services.iter().filter(|service| service.restart).collect();
    let mut tsw = Sum::exactly(detection.settle);
    for service in &restartable {
        tsw = tsw.max(&Sum::figure(&format!("Tsw of {}", service.name), figures.tsw.get(&service.name)));
    }
    let time_out = Sum::exactly(detection.ping_timeout);
    let times = Times {
        tim: detection.interval,
        tna: Sum::figure("Tna", figures.tna.as_ref()),
        // The time-out is a setting, so that there is something to predict from before a ping was timed.
        tnd: figures.tnd.as_ref().map_or(time_out, |tnd| Sum::figure("Tnd", Some(tnd))),
        tvs: Sum::figure("Tvs", figures.tvs.as_ref()),
        trs: Sum::figure("Trs", figures.trs.as_ref()),
        trr: Sum::figure("Trr", figures.trr.as_ref()),
        trc: Sum::exactly(target.reboot_wait),
        tsw,
        settle: Sum::exactly(detection.settle),
        healthy: Sum::exactly(target.healthy_for),
        patience,
    };
    let mut rows =
        if detection.push { times.pushed(detection, target.longest_probe(profile, detection)) } else { times.polled() };
    if target.services.is_empty() {
        // Nothing of it is watched that could be restarted.
        rows.retain(|row| !row.trouble.starts_with("St"));
    } else if restartable.is_empty() {
        rows.retain(|row| !row.trouble.starts_with("St1"));
    }
    rows
}

const ST1: &str = "St1 service stopped, restart cures";
const ST2: &str = "St2 service stopped, reboot cures";
const NT1: &str = "Nt1 rebooted";
const NT2: &str = "Nt2 shut down";

fn row(trouble: &str, function: Option<Sum>, target: Sum, client: Sum, formula: &str) -> TroubleReport {
    let missing = function.iter().chain([&target, &client]).flat_map(|sum| sum.missing.iter().cloned());
    TroubleReport {
        trouble: trouble.into(),
        not_characterised: missing.collect::<BTreeSet<String>>().into_iter().collect(),
        function_ms: function.as_ref().and_then(Sum::range),
        target_ms: target.range(),
        outage_typical_ms: client.range().map(|range| range.typical),
        outage_worst_ms: client.range().map(|range| range.worst),
        formula: formula.into(),
    }
}

impl Times {
    /// The thesis's own formulas: checks alone, one after another.
    fn polled(self) -> Vec<TroubleReport> {
        let Self { tim, tna, tnd, tvs, trs, trr, trc, tsw, settle, healthy, patience } = self;
        // Tim/2 ± Tim/2
        let phase = Sum::of(tim / 2, tim);
        let ts1t = tna.clone() + &tsw;
        let ts1c = tna.clone() + &ts1t + &phase;
        let ts2f = tna.clone() + &tsw + &tvs;
        let ts2t = tna.clone() + &tsw + &trr + &settle + &healthy;
        let ts2c = tna + &ts2f + &phase;
        // Detection comes Tim/2 ± Tim/2 and one time-out after the trouble; the lease has run out by so much then.
        let lease = Sum::exactly(patience);
        let lease_left = lease.clone().less(tim / 2 + tnd.typical, tnd.typical);
        let tnf = (tnd.clone() + &tvs).max(&lease_left);
        let tnc = (tnd.clone() + &tnd + &tvs + &phase).max(&lease);
        let tn1t = (trr + &settle + &healthy).less(tim / 2 + tnd.typical, tnd.typical);
        let tn2t = tnd + &trc + &trs + &settle + &healthy;
        vec![
            row(ST1, None, ts1t, ts1c, "(2.3), (2.7)"),
            row(ST2, Some(ts2f), ts2t, ts2c, "(2.1), (2.4), (2.8)"),
            row(NT1, Some(tnf.clone()), tn1t, tnc.clone(), "max((2.2), lease left), (2.5), max((2.9), L(1+2ρ))"),
            row(NT2, Some(tnf), tn2t, tnc, "max((2.2), lease left), (2.6), max((2.9), L(1+2ρ))"),
        ]
    }

    /// Agents push what happens; a clean stop is handed over. In the worst case no event comes, and the checks find it:
    /// after `probe`, the longest that one may take.
    fn pushed(self, detection: &Detection, probe: Duration) -> Vec<TroubleReport> {
        let Self { tim, tvs, trs, trr, trc, tsw, settle, healthy, .. } = self;
        let found = Sum::of(Duration::ZERO, tim + probe);
        let takeover = tvs.max(&Sum::of(TAKEOVER / 2, TAKEOVER));
        let given_up = Sum::exactly(detection.settle + RESTART_PATIENCE);
        let st1c = found.clone() + &tsw;
        let ts2f = given_up.clone() + &takeover;
        let ts2t = given_up + &trr + &settle + &healthy;
        let st2c = found + &ts2f;
        let handed_over = Sum::of(Duration::ZERO, PLANNED) + &takeover;
        let tn1t = trr + &settle + &healthy;
        let tn2t = trc + &trs + &settle + &healthy;
        vec![
            row(ST1, None, tsw, st1c, "Tsw; client + Tim + time-out if no event comes; cf. (2.7)"),
            row(ST2, Some(ts2f), ts2t, st2c, "Tsw + 3 s + Tvs; + Trr + Tsw + healthy_for; cf. (2.8)"),
            row(NT1, Some(handed_over.clone()), tn1t, handed_over.clone(), "release + Tvs; Trr + Tsw + healthy_for"),
            row(NT2, Some(handed_over.clone()), tn2t, handed_over, "release + Tvs; Trc + Trs + Tsw + healthy_for"),
        ]
    }
}
