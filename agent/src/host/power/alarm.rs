//! The alarm that wakes the machine if nobody else does: the real-time clock's, or a command's.

use super::{Power, PowerError, command};
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

/// `linux/Documentation/ABI/testing/sysfs-class-rtc`.
const RTC: &str = "/sys/class/rtc/rtc0";
/// A command that sets an alarm has nothing to wait for.
const COMMAND: Duration = Duration::from_secs(10);

/// In a configured command.
const PLACE: &str = "{seconds}";

/// What was set, for clearing it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AlarmSet {
    /// Somebody else's, by the clock's own seconds, that was replaced by an earlier one.
    replaced: Option<u64>,
    /// Somebody else's comes first: nothing was set.
    others: bool,
}

impl Power {
    /// The machine wakes by itself after so long (rounded up to seconds). Somebody else's alarm that comes earlier is
    /// left alone: it does as well.
    ///
    /// # Errors
    /// [`PowerError`]: no alarm; it may have to be cleared all the same.
    pub async fn set_alarm(&self, after: Duration) -> Result<AlarmSet, PowerError> {
        let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
        match &self.config.alarm {
            Some(argv) => {
                command("alarm", &with_seconds(argv, &seconds.to_string()), COMMAND).await.map(|()| AlarmSet::default())
            }
            None => set(Path::new(RTC), seconds).map_err(refused),
        }
    }

    /// No alarm any more, and the replaced one again. Nothing set is nothing done.
    ///
    /// # Errors
    /// [`PowerError`]: it may still go off.
    pub async fn clear_alarm(&self, alarm: AlarmSet) -> Result<(), PowerError> {
        match &self.config.alarm {
            Some(argv) => command("alarm", &with_seconds(argv, "0"), COMMAND).await,
            None => clear(Path::new(RTC), alarm).map_err(refused),
        }
    }

    /// How, in words for people.
    #[must_use]
    pub fn alarm_way(&self) -> String {
        let file = wakealarm(Path::new(RTC));
        match &self.config.alarm {
            Some(argv) => with_seconds(argv, PLACE).join(" "),
            None if file.exists() => file.display().to_string(),
            None => format!("none: no {}; set [power] alarm", file.display()),
        }
    }
}

fn refused(source: io::Error) -> PowerError {
    PowerError::Alarm { path: wakealarm(Path::new(RTC)), source }
}

fn with_seconds(argv: &[String], seconds: &str) -> Vec<String> {
    let mut words: Vec<String> = argv.iter().map(|word| word.replace(PLACE, seconds)).collect();
    if !argv.iter().any(|word| word.contains(PLACE)) {
        words.push(seconds.to_owned());
    }
    words
}

fn wakealarm(rtc: &Path) -> PathBuf {
    rtc.join("wakealarm")
}

/// In the clock's own seconds; None: none is set.
fn present(rtc: &Path) -> io::Result<Option<u64>> {
    Ok(fs::read_to_string(wakealarm(rtc))?.trim().parse().ok())
}

fn set(rtc: &Path, seconds: u64) -> io::Result<AlarmSet> {
    let clock: u64 = fs::read_to_string(rtc.join("since_epoch"))?.trim().parse().map_err(io::Error::other)?;
    let due = clock + seconds;
    let other = present(rtc)?.filter(|at| *at > clock);
    if other.is_some_and(|at| at <= due) {
        return Ok(AlarmSet { replaced: None, others: true });
    }
    // One that is set must be cleared first (EBUSY).
    fs::write(wakealarm(rtc), "0")?;
    fs::write(wakealarm(rtc), due.to_string())?;
    match present(rtc)? {
        Some(_) => Ok(AlarmSet { replaced: other, others: false }),
        None => Err(io::Error::other("the clock did not keep it")),
    }
}

fn clear(rtc: &Path, alarm: AlarmSet) -> io::Result<()> {
    if alarm.others {
        return Ok(());
    }
    fs::write(wakealarm(rtc), "0")?;
    let clock: u64 = fs::read_to_string(rtc.join("since_epoch"))?.trim().parse().map_err(io::Error::other)?;
    match alarm.replaced.filter(|at| *at > clock) {
        Some(at) => fs::write(wakealarm(rtc), at.to_string()),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::power::PowerConfig;

    #[test]
    fn an_alarm_is_set_and_cleared() {
        let rtc = tempfile::tempdir().expect("directory");
        let rtc = rtc.path();
        fs::write(rtc.join("since_epoch"), "1000\n").expect("write");
        fs::write(wakealarm(rtc), "\n").expect("write");
        let ours = set(rtc, 60).expect("set");
        assert_eq!(present(rtc).expect("read"), Some(1060));
        clear(rtc, ours).expect("clear");
        assert_eq!(present(rtc).expect("read"), Some(0));
        assert!(set(Path::new("/nonexistent"), 60).is_err());
    }

    #[test]
    fn somebody_elses_alarm_survives_ours() {
        let rtc = tempfile::tempdir().expect("directory");
        let rtc = rtc.path();
        fs::write(rtc.join("since_epoch"), "1000\n").expect("write");
        for (theirs, while_asleep) in [(1030, 1030), (1100, 1060)] {
            fs::write(wakealarm(rtc), format!("{theirs}\n")).expect("write");
            let alarm = set(rtc, 60).expect("set");
            assert_eq!(present(rtc).expect("read"), Some(while_asleep));
            clear(rtc, alarm).expect("clear");
            assert_eq!(present(rtc).expect("read"), Some(theirs));
        }
    }

    #[tokio::test]
    async fn a_command_sets_it_instead() {
        let dir = tempfile::tempdir().expect("directory");
        let file = dir.path().join("alarm");
        let script = format!("echo $0 >> {}", file.display());
        let alarm = Some(["sh", "-c", &script].map(str::to_owned).to_vec());
        let power = Power::new(PowerConfig { alarm, ..PowerConfig::default() });
        let set = power.set_alarm(Duration::from_millis(1500)).await.expect("set");
        power.clear_alarm(set).await.expect("clear");
        assert_eq!(fs::read_to_string(file).expect("read"), "2\n0\n");
        assert_eq!(with_seconds(&["wake".into(), "in={seconds}".into()], "7"), ["wake", "in=7"]);
    }
}
