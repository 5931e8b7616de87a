//! The energy this machine uses, as far as its processors meter it (RAPL): packages, and memory where it is metered apart.
//! `Documentation/power/powercap/powercap.rst`. Disks, fans and the power supply's loss are not in it.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
};

const POWERCAP: &str = "/sys/class/powercap";

/// All meters, as one that never turns over.
#[derive(Debug, Default)]
pub struct Energy {
    zones: Vec<Zone>,
}

#[derive(Debug)]
struct Zone {
    counter: File,
    /// It begins at zero again beyond this.
    range_uj: u64,
    last_uj: u64,
    total_uj: u64,
}

impl Energy {
    /// Those that may be read; root may, as a rule nobody else (since Linux 5.10).
    #[must_use]
    pub fn find() -> Self {
        Self::under(Path::new(POWERCAP))
    }

    fn under(powercap: &Path) -> Self {
        let zones = fs::read_dir(powercap).into_iter().flatten().flatten();
        Self { zones: zones.filter_map(|zone| Zone::open(&zone.path())).collect() }
    }

    /// Microjoules; None: there is no meter, or one of them could not be read.
    pub fn read(&mut self) -> Option<u64> {
        let mut sum = 0_u64;
        for zone in &mut self.zones {
            sum = sum.wrapping_add(zone.read()?);
        }
        (!self.zones.is_empty()).then_some(sum)
    }
}

impl Zone {
    fn open(path: &Path) -> Option<Self> {
        let text = |name: &str| Some(fs::read_to_string(path.join(name)).ok()?.trim().to_owned());
        // The cores' and the graphics' are in the package's; psys holds them all, where a maker wired it up right.
        let name = text("name").filter(|name| name.starts_with("package") || name == "dram")?;
        // The same meters once more, by another driver.
        if path.file_name()?.to_str()?.starts_with("intel-rapl-mmio") {
            return None;
        }
        let counter = File::open(path.join("energy_uj")).ok()?;
        let last_uj = number(&counter)?;
        tracing::debug!(zone = name, "energy is metered");
        Some(Self { counter, range_uj: text("max_energy_range_uj")?.parse().ok()?, last_uj, total_uj: last_uj })
    }

    fn read(&mut self) -> Option<u64> {
        let at = number(&self.counter)?;
        let used = if at >= self.last_uj { at - self.last_uj } else { at + self.range_uj.saturating_sub(self.last_uj) };
        self.last_uj = at;
        self.total_uj = self.total_uj.wrapping_add(used);
        Some(self.total_uj)
    }
}

fn number(file: &File) -> Option<u64> {
    let mut text = [0; 24];
    let length = file.read_at(&mut text, 0).ok()?;
    std::str::from_utf8(&text[..length]).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_and_memory_are_added_and_turn_over() {
        let root = tempfile::tempdir().expect("directory");
        let zone = |zone: &str, name: &str, energy: u64| {
            let path = root.path().join(zone);
            fs::create_dir_all(&path).expect("directory");
            for (file, text) in
                [("name", name.to_owned()), ("energy_uj", energy.to_string()), ("max_energy_range_uj", "1000".into())]
            {
                fs::write(path.join(file), text + "\n").expect("write");
            }
        };
        zone("intel-rapl:0", "package-0", 900);
        zone("intel-rapl:0:0", "core", 500);
        zone("intel-rapl:0:1", "dram", 10);
        zone("intel-rapl:1", "psys", 5);
        zone("intel-rapl-mmio:0", "package-0", 900);
        let mut energy = Energy::under(root.path());
        assert_eq!(energy.read(), Some(910));
        zone("intel-rapl:0", "package-0", 50);
        zone("intel-rapl:0:1", "dram", 20);
        assert_eq!(energy.read(), Some(1070), "150 and 10 more");
        assert_eq!(Energy::under(Path::new("/nonexistent")).read(), None);
    }
}
