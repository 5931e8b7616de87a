//! How often one caller may call: a bucket of permits for each, filled as time goes by.

use crate::{
    limits::{MAX_RATED, Rate},
    roles::{Audit, Caller, Peer, Role, Rule},
};
use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};
use tonic::Status;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Who {
    Named(Role, String),
    Address(IpAddr),
}

#[derive(Debug)]
struct Bucket {
    permits: f64,
    at: Instant,
}

/// The buckets of one server.
#[derive(Debug)]
pub(crate) struct Rates {
    commands: Rate,
    looks: Rate,
    buckets: Mutex<HashMap<(Who, bool), Bucket>>,
}

impl Rates {
    pub(crate) fn new(commands: Rate, looks: Rate) -> Self {
        Self { commands, looks, buckets: Mutex::default() }
    }

    /// May this be called now?
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED, and when to come again.
    pub(crate) fn admit(&self, peer: &Peer, rule: &Rule, now: Instant) -> Result<(), Status> {
        let who = match (&peer.caller, peer.role()) {
            (Caller::Certified { .. }, Some(Role::Coordinator | Role::Sif | Role::Agent)) => return Ok(()),
            (Caller::Certified { identity, .. }, _) => Who::Named(identity.role, identity.name.clone()),
            (Caller::Local | Caller::Anonymous, _) => Who::Address(peer.address.ip()),
        };
        let command = rule.audit == Audit::Calls;
        let rate = if command { self.commands } else { self.looks };
        if self.take((who, command), rate, now) {
            return Ok(());
        }
        let (what, pause) = (if command { "commands" } else { "calls" }, 1.0 / f64::from(rate.per_second.max(1)));
        Err(Status::resource_exhausted(format!(
            "too many {what} of {peer}: {} at once and {} a second are taken; try again in {pause:.2} s",
            rate.burst, rate.per_second
        )))
    }

    fn take(&self, key: (Who, bool), rate: Rate, now: Instant) -> bool {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= MAX_RATED && !buckets.contains_key(&key) {
            let full_again = Duration::from_secs(u64::from(rate.burst / rate.per_second.max(1)) + 1);
            buckets.retain(|_, bucket| now.saturating_duration_since(bucket.at) < full_again);
            if buckets.len() >= MAX_RATED {
                // Thousands of callers within seconds are no cluster's.
                return false;
            }
        }
        let bucket = buckets.entry(key).or_insert(Bucket { permits: f64::from(rate.burst), at: now });
        let since = now.saturating_duration_since(bucket.at).as_secs_f64();
        bucket.permits = (bucket.permits + since * f64::from(rate.per_second)).min(f64::from(rate.burst));
        bucket.at = now;
        let taken = bucket.permits >= 1.0;
        if taken {
            bucket.permits -= 1.0;
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::roles::{Fingerprint, Identity, rule};

    fn peer(role: Role, name: &str) -> Peer {
        let identity = Identity::new(role, name).expect("name");
        let caller = Caller::Certified { identity, fingerprint: Fingerprint::of(b"") };
        Peer { caller, address: ([127, 0, 0, 1], 1).into() }
    }

    #[test]
    fn a_burst_then_so_many_a_second_each_for_itself() {
        let rates = Rates::new(Rate { per_second: 2, burst: 3 }, Rate { per_second: 5, burst: 9 });
        let command = rule("/kagemusha.coordinator.v1.Coordinator/Failover").expect("rule");
        let look = rule("/kagemusha.coordinator.v1.Coordinator/GetStatus").expect("rule");
        let (alice, now) = (peer(Role::Operator, "alice"), Instant::now());
        let taken = |who: &Peer, rule: &Rule, now| (0..20).filter(|_| rates.admit(who, rule, now).is_ok()).count();
        assert_eq!(taken(&alice, command, now), 3);
        assert_eq!(taken(&peer(Role::Operator, "bob"), command, now), 3);
        assert_eq!(taken(&alice, look, now), 9, "looking is counted apart");
        assert_eq!(taken(&alice, command, now + Duration::from_secs(1)), 2);
        let refused = rates.admit(&alice, command, now + Duration::from_secs(1)).expect_err("too many");
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        assert!(refused.message().contains("too many commands of operator alice"), "{refused}");
        let coordinator = rule("/kagemusha.agent.v1.Agent/DestroyVm").expect("rule");
        assert_eq!(taken(&peer(Role::Coordinator, "c"), coordinator, now), 20, "a recovery of many does not wait");
    }

    #[test]
    fn strangers_of_any_number_are_remembered_up_to_a_limit() {
        let rates = Rates::new(Rate { per_second: 10, burst: 10 }, Rate { per_second: 10, burst: 10 });
        let enrol = rule("/kagemusha.coordinator.v1.Enrolment/Enrol").expect("rule");
        let now = Instant::now();
        let stranger = |n: u32| Peer { caller: Caller::Anonymous, address: (n.to_be_bytes(), 1).into() };
        let many = u32::try_from(MAX_RATED).expect("small") + 10;
        let taken = (0..many).filter(|n| rates.admit(&stranger(*n), enrol, now).is_ok()).count();
        assert_eq!(taken, MAX_RATED);
        assert!(rates.admit(&stranger(many), enrol, now + Duration::from_secs(3)).is_ok(), "forgotten when full again");
        assert!(rates.buckets.lock().expect("lock").len() < 10);
    }
}
