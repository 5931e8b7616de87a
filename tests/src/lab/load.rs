//! Load on a service group, made inside its first member: the one that stays when the group is gathered.

use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::console;
use super::nodes::{Kind, Spec, of};

/// How much is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Nothing but what clients ask.
    Light,
    /// A processor busy for about half of the time.
    Moderate,
    /// A processor that never rests.
    Heavy,
}

impl FromStr for Level {
    type Err = anyhow::Error;

    fn from_str(word: &str) -> Result<Self> {
        Ok(match word {
            "light" => Self::Light,
            "moderate" => Self::Moderate,
            "heavy" => Self::Heavy,
            other => bail!("`{other}` is no load; loads are light, moderate, heavy"),
        })
    }
}

impl Level {
    /// What runs in the guest, if anything.
    const fn work(self) -> Option<&'static str> {
        match self {
            Self::Light => None,
            Self::Moderate => Some("while :; do i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done; usleep 20000; done"),
            Self::Heavy => Some("while :; do :; done"),
        }
    }
}

/// A guest's console on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);
/// Ends what ran before.
const END: &str = "[ ! -e /run/work ] || { kill $(cat /run/work); rm /run/work; }";

/// The first member of each group; of one group only if it is given.
pub fn first(group: Option<&str>) -> impl Iterator<Item = &'static Spec> {
    let first = move |server: &&Spec| {
        let own = server.group.zip(server.vip_number);
        own.is_some_and(|(its, vip)| its.vips.first() == Some(&vip) && group.is_none_or(|group| its.name == group))
    };
    of(Kind::VirtualServer).filter(first)
}

/// Has it done by one group's first member, or by every group's. What was done before ends.
///
/// # Errors
/// There is no such group, or a guest does not answer on its console.
pub fn set(group: Option<&str>, level: Level) -> Result<()> {
    let servers: Vec<&'static Spec> = first(group).collect();
    if servers.is_empty() {
        let mut names: Vec<_> = of(Kind::VirtualServer).filter_map(|server| Some(server.group?.name)).collect();
        names.dedup();
        bail!("the lab has no such service group; it has {}", names.join(", "));
    }
    servers.into_iter().try_for_each(|server| set_in(server, level))
}

/// Has it done by one guest.
///
/// # Errors
/// It does not answer on its console.
pub fn set_in(server: &Spec, level: Level) -> Result<()> {
    let begin =
        level.work().map_or_else(String::new, |work| format!("; ({work}) > /dev/null 2>&1 & echo $! > /run/work"));
    console::exec_ok(server, &format!("{END}{begin}"), LIMIT)
        .with_context(|| format!("the load of {} is not changed", server.name))
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_have_names() {
        assert_eq!("heavy".parse::<Level>().unwrap(), Level::Heavy);
        assert!("much".parse::<Level>().unwrap_err().to_string().contains("light, moderate, heavy"));
        assert_eq!(Level::Light.work(), None);
    }
}
