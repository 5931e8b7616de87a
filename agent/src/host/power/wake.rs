//! The way in which a sleeping machine is woken from outside.

use super::{Power, PowerError, command};
use crate::host::nic::{Nic, WakeFlags, arm_magic, nics};
use std::time::Duration;
use tokio::task::spawn_blocking;

/// ethtool, or a script of a few lines.
const ARM: Duration = Duration::from_secs(10);

impl Power {
    /// Makes sure that this machine can be woken. `preferred`: the cards it is reached by; where none of them is a real one
    /// (a bridge, a bond), all real ones that are up. Returns what will wake it, in words for people.
    ///
    /// # Errors
    /// [`PowerError`]: nothing would.
    pub async fn arm_wake(&self, preferred: &[String]) -> Result<String, PowerError> {
        if let Some(argv) = &self.config.arm_wake {
            return command("arm_wake", argv, ARM).await.map(|()| argv.join(" "));
        }
        let preferred = preferred.to_vec();
        let armed = spawn_blocking(move || {
            let (mut good, mut bad) = (Vec::new(), Vec::new());
            for nic in candidates(&nics(), &preferred) {
                match arm_magic(&nic.name) {
                    Ok(()) => good.push(format!("{} {}", nic.name, nic.mac)),
                    Err(error) => bad.push(error.to_string()),
                }
            }
            if good.is_empty() { Err(bad) } else { Ok(good) }
        });
        match armed.await.map_err(PowerError::Internal)? {
            Ok(good) => Ok(format!("magic packet to {}", good.join(", "))),
            Err(bad) if bad.is_empty() => Err(PowerError::NoWake { reason: "no real network card is up".to_owned() }),
            Err(bad) => Err(PowerError::NoWake { reason: bad.join("; ") }),
        }
    }

    /// What can wake this machine, in words for people. Blocks for some milliseconds at most.
    #[must_use]
    pub fn wake_way(&self, all: &[Nic], preferred: &[String]) -> String {
        if let Some(argv) = &self.config.arm_wake {
            return argv.join(" ");
        }
        let can = |nic: &&Nic| nic.wake_on.is_some_and(|wake| wake.supported.contains(WakeFlags::MAGIC));
        let ways: Vec<String> = candidates(all, preferred)
            .into_iter()
            .filter(can)
            .map(|nic| {
                let armed = nic.wake_on.is_some_and(|wake| wake.enabled.contains(WakeFlags::MAGIC));
                let when = if armed { "" } else { ", switched on before each sleep" };
                format!("magic packet to {} {}{when}", nic.name, nic.mac)
            })
            .collect();
        if ways.is_empty() {
            return "none: no network card here tells of Wake-on-LAN; set [power] arm_wake".to_owned();
        }
        ways.join("; ")
    }
}

fn candidates<'a>(all: &'a [Nic], preferred: &[String]) -> Vec<&'a Nic> {
    let named: Vec<_> = all.iter().filter(|nic| nic.physical && preferred.contains(&nic.name)).collect();
    if named.is_empty() { all.iter().filter(|nic| nic.physical && nic.up).collect() } else { named }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{nic::WakeOn, power::PowerConfig};

    fn nic(name: &str, physical: bool, enabled: u32) -> Nic {
        let supported = WakeFlags(if physical { 1 << 5 } else { 0 });
        Nic {
            name: name.to_owned(),
            mac: "52:54:00:77:00:0b".to_owned(),
            addresses: vec![],
            speed_mbps: None,
            wake_on: Some(WakeOn { supported, enabled: WakeFlags(enabled) }),
            up: true,
            physical,
        }
    }

    #[test]
    fn the_cards_it_is_reached_by_come_first() {
        let all = [nic("br0", false, 0), nic("eno1", true, 1 << 5), nic("eno2", true, 0)];
        let names = |preferred: &[&str]| {
            let preferred: Vec<_> = preferred.iter().map(|name| (*name).to_owned()).collect();
            candidates(&all, &preferred).iter().map(|nic| nic.name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(names(&["eno2"]), ["eno2"]);
        assert_eq!(names(&["br0"]), ["eno1", "eno2"]);
        let power = Power::default();
        let way = power.wake_way(&all, &["eno2".to_owned()]);
        assert_eq!(way, "magic packet to eno2 52:54:00:77:00:0b, switched on before each sleep");
        assert!(power.wake_way(&all[..1], &[]).starts_with("none: "));
    }

    #[tokio::test]
    async fn a_command_arms_it_instead() {
        let power = |argv: &[&str]| {
            let arm_wake = Some(argv.iter().map(|word| (*word).to_owned()).collect());
            Power::new(PowerConfig { arm_wake, ..PowerConfig::default() })
        };
        assert_eq!(power(&["true"]).arm_wake(&[]).await.expect("armed"), "true");
        assert!(power(&["false"]).arm_wake(&[]).await.is_err());
    }
}
