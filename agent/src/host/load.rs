//! The raw counters of `/proc` that load is computed from.
//!
//! Files stay open and one buffer is reused: a sample allocates nothing but the names of network cards.

use kage_types::Time;
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use super::{clock, energy::Energy};

/// The first bytes of `/proc/stat` hold the sum of all CPUs and some CPUs; the rest (interrupts) is never used.
const FIRST_BUFFER: usize = 16 * 1024;
/// No file read here is longer.
const MAX_BUFFER: usize = 4 << 20;

/// Time the CPUs have spent since boot, all CPUs together, in ticks of 1/100 s (`USER_HZ`); `man 5 proc`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuTicks {
    /// User mode, guests included.
    pub user: u64,
    /// User mode at low priority.
    pub nice: u64,
    /// Kernel mode.
    pub system: u64,
    /// Nothing to do.
    pub idle: u64,
    /// Nothing to do but wait for a disk.
    pub iowait: u64,
    /// Interrupts.
    pub irq: u64,
    /// Soft interrupts.
    pub softirq: u64,
    /// Taken by the hypervisor for others.
    pub steal: u64,
}

/// Memory in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryLoad {
    /// All there is.
    pub total_bytes: u64,
    /// What could be had without swapping.
    pub available_bytes: u64,
    /// Total less available.
    pub used_bytes: u64,
}

/// Counters of a network card since it appeared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicLoad {
    /// `eth0`.
    pub name: String,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
}

/// Pressure stall information: the time some task waited for a resource, microseconds since boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pressure {
    /// For a CPU.
    pub cpu_us: u64,
    /// For memory.
    pub memory_us: u64,
    /// For a disk.
    pub io_us: u64,
}

/// One sample.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HostLoad {
    /// When it was taken.
    pub at: Time,
    /// CPUs on line.
    pub cpus: u32,
    /// CPU time.
    pub ticks: CpuTicks,
    /// Memory.
    pub memory: MemoryLoad,
    /// Every network card of our network namespace, loopback left out.
    pub nics: Vec<NicLoad>,
    /// Load average over 1, 5 and 15 minutes.
    pub load_average: [f32; 3],
    /// None where the kernel has no PSI.
    pub pressure: Option<Pressure>,
    /// Microjoules the machine's packages have used; see [`super::energy`]. Only differences mean something.
    pub energy_uj: Option<u64>,
}

/// A file of `/proc` that could not be read or understood.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Reading failed.
    #[error("cannot read {}; is /proc mounted?", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its contents are not those of `man 5 proc`.
    #[error("{} is not as expected", path.display())]
    Format {
        /// Which.
        path: PathBuf,
    },
}

/// Takes samples.
pub struct Sampler {
    stat: Source,
    memory: Source,
    nics: Source,
    load_average: Source,
    pressure: Option<[Source; 3]>,
    energy: Energy,
    buffer: Vec<u8>,
}

impl Sampler {
    /// Opens the files of `/proc`.
    ///
    /// # Errors
    /// [`LoadError::Read`].
    pub fn new() -> Result<Self, LoadError> {
        let pressure = (|| {
            Ok::<_, LoadError>([
                Source::open("/proc/pressure/cpu")?,
                Source::open("/proc/pressure/memory")?,
                Source::open("/proc/pressure/io")?,
            ])
        })();
        Ok(Self {
            stat: Source::open("/proc/stat")?,
            memory: Source::open("/proc/meminfo")?,
            // The namespace of this thread, not of the process: they differ in tests and tools.
            nics: Source::open("/proc/thread-self/net/dev").or_else(|_| Source::open("/proc/net/dev"))?,
            load_average: Source::open("/proc/loadavg")?,
            pressure: pressure.ok(),
            energy: Energy::find(),
            buffer: vec![0; FIRST_BUFFER],
        })
    }

    /// The counters now.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn sample(&mut self) -> Result<HostLoad, LoadError> {
        let mut load = HostLoad { at: clock::now(), ..HostLoad::default() };
        let buffer = &mut self.buffer;
        (load.cpus, load.ticks) = self.stat.parse(buffer, cpu)?;
        load.memory = self.memory.parse(buffer, memory)?;
        load.nics = self.nics.parse(buffer, nics)?;
        load.load_average = self.load_average.parse(buffer, load_average)?;
        load.pressure = match &self.pressure {
            // Booted with psi=0 the files are there but refuse to be read.
            Some([cpu, memory, io]) => (|| {
                Some(Pressure {
                    cpu_us: cpu.parse(buffer, pressure).ok()?,
                    memory_us: memory.parse(buffer, pressure).ok()?,
                    io_us: io.parse(buffer, pressure).ok()?,
                })
            })(),
            None => None,
        };
        load.energy_uj = self.energy.read();
        Ok(load)
    }
}

struct Source {
    path: &'static Path,
    file: File,
}

impl Source {
    fn open(path: &'static str) -> Result<Self, LoadError> {
        let path = Path::new(path);
        let file = File::open(path).map_err(|source| LoadError::Read { path: path.to_owned(), source })?;
        Ok(Self { path, file })
    }

    fn parse<T>(&self, buffer: &mut Vec<u8>, parse: impl Fn(&str) -> Option<T>) -> Result<T, LoadError> {
        let length = self.read(buffer).map_err(|source| LoadError::Read { path: self.path.to_owned(), source })?;
        let text = std::str::from_utf8(&buffer[..length]).ok();
        text.and_then(parse).ok_or_else(|| LoadError::Format { path: self.path.to_owned() })
    }

    fn read(&self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        let mut length = 0;
        loop {
            match self.file.read_at(&mut buffer[length..], length as u64) {
                Ok(0) => return Ok(length),
                Ok(read) => length += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if length == buffer.len() {
                if length >= MAX_BUFFER {
                    return Err(io::ErrorKind::FileTooLarge.into());
                }
                buffer.resize(length * 2, 0);
            }
        }
    }
}

fn cpu(text: &str) -> Option<(u32, CpuTicks)> {
    let mut lines = text.lines();
    let mut fields = lines.next()?.strip_prefix("cpu ")?.split_ascii_whitespace().map(str::parse::<u64>);
    // Fields were added over time: what an old kernel does not have is zero.
    let mut next = || fields.next().map_or(Some(0), Result::ok);
    let ticks = CpuTicks {
        user: next()?,
        nice: next()?,
        system: next()?,
        idle: next()?,
        iowait: next()?,
        irq: next()?,
        softirq: next()?,
        steal: next()?,
    };
    let cpus = lines.take_while(|line| line.starts_with("cpu")).count();
    Some((u32::try_from(cpus).ok()?, ticks))
}

fn memory(text: &str) -> Option<MemoryLoad> {
    let bytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
    };
    let total_bytes = bytes("MemTotal")?;
    // Kernels before 3.14 have no MemAvailable: a lower bound of it then.
    let available_bytes = bytes("MemAvailable").or_else(|| bytes("MemFree")?.checked_add(bytes("Cached")?))?;
    Some(MemoryLoad { total_bytes, available_bytes, used_bytes: total_bytes.saturating_sub(available_bytes) })
}

fn nics(text: &str) -> Option<Vec<NicLoad>> {
    let mut all = Vec::new();
    for line in text.lines().skip(2) {
        // A name may hold a colon itself (aliases of old): the last one ends it.
        let (name, counters) = line.rsplit_once(':')?;
        let mut counters = counters.split_ascii_whitespace();
        let rx_bytes = counters.next()?.parse().ok()?;
        let tx_bytes = counters.nth(7)?.parse().ok()?;
        let name = name.trim();
        if name != "lo" {
            all.push(NicLoad { name: name.to_owned(), rx_bytes, tx_bytes });
        }
    }
    Some(all)
}

fn load_average(text: &str) -> Option<[f32; 3]> {
    let mut fields = text.split_ascii_whitespace().map(|field| field.parse().ok());
    Some([fields.next()??, fields.next()??, fields.next()??])
}

fn pressure(text: &str) -> Option<u64> {
    let some = text.lines().find(|line| line.starts_with("some "))?;
    some.split_ascii_whitespace().find_map(|field| field.strip_prefix("total="))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::time::{ClockId, clock_gettime};

    #[test]
    fn this_host_is_sampled() {
        let mut sampler = Sampler::new().expect("proc");
        let first = sampler.sample().expect("sample");
        assert!(first.cpus >= 1 && first.ticks.user + first.ticks.idle > 0);
        assert!(first.memory.total_bytes > first.memory.available_bytes);
        let second = sampler.sample().expect("sample");
        assert!(second.at >= first.at && second.ticks.user >= first.ticks.user);
    }

    /// The goal is 0.5 % of a core at 5 Hz, everything included: 1 ms a sample.
    #[test]
    fn a_sample_is_cheap() {
        let cpu_time = || {
            let time = clock_gettime(ClockId::ThreadCPUTime);
            std::time::Duration::new(u64::try_from(time.tv_sec).unwrap(), u32::try_from(time.tv_nsec).unwrap())
        };
        let mut sampler = Sampler::new().expect("proc");
        sampler.sample().expect("sample");
        let begin = cpu_time();
        for _ in 0..100 {
            sampler.sample().expect("sample");
        }
        let each = (cpu_time() - begin) / 100;
        println!("one sample: {each:?} of CPU");
        assert!(each < std::time::Duration::from_millis(1), "{each:?}");
    }

    proptest::proptest! {
        #[test]
        fn no_text_breaks_the_readers(text in r"((cpu|cpu0|MemTotal|MemFree|Cached|some|eth0|total)[ :=]{1,2}|[0-9]{1,21}|kB|\n| |\PC){0,40}") {
            let _ = (cpu(&text), memory(&text), nics(&text), load_average(&text), pressure(&text));
        }
    }

    #[test]
    fn numbers_too_large_are_no_numbers() {
        let most = u64::MAX / 1024;
        assert_eq!(memory(&format!("MemTotal: 1 kB\nMemFree: {most} kB\nCached: {most} kB\n")), None);
    }

    #[test]
    fn formats_of_other_kernels() {
        assert_eq!(
            cpu("cpu  1 2 3 4\ncpu0 1 2 3 4\nintr 5"),
            Some((1, CpuTicks { user: 1, nice: 2, system: 3, idle: 4, ..CpuTicks::default() }))
        );
        assert_eq!(cpu("intr 5"), None);
        let old = memory("MemTotal: 100 kB\nMemFree: 10 kB\nCached: 20 kB\n").expect("old kernel");
        assert_eq!((old.available_bytes, old.used_bytes), (30 * 1024, 70 * 1024));
        assert_eq!(memory("MemTotal: x kB"), None);
        let text = "h\nh\n    lo: 1 0 0 0 0 0 0 0 1 0\neth0:9 0 0 0 0 0 0 0 8 0 0 0 0 0 0 0\n";
        assert_eq!(nics(text), Some(vec![NicLoad { name: "eth0".into(), rx_bytes: 9, tx_bytes: 8 }]));
        assert_eq!(pressure("some avg10=0.00 avg60=0.00 avg300=0.00 total=77\n"), Some(77));
    }
}
