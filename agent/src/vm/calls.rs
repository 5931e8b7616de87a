//! The operations themselves: blocking, one function each, run on a [`super::lane::Lane`].

use super::{
    link::Link,
    sys::{self, Stats},
    types::{DomainInfo, DomainNic, DomainState, JobProgress, MigrateOptions, Outcome, VmError},
    xml,
};
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};
use virt::{
    domain::{Domain, MigrateParameters},
    error::{Error, ErrorNumber},
};
use virt_sys as ffi;

/// How old what a listing knows of a definition may be where no event told of a change (hot-plugged cards).
const DEFINITION_AGE: Duration = Duration::from_secs(10);

type Done = Result<Outcome, VmError>;

/// Starts a domain, from its saved image if it has one. A paused one is resumed unless it is to be paused.
pub(super) fn start(link: &Link, name: &str, paused: bool) -> Done {
    let domain = link.domain(name)?;
    let flags = if paused { ffi::VIR_DOMAIN_START_PAUSED } else { 0 };
    match domain.create_with_flags(flags) {
        Ok(_) => Ok(Outcome::Done),
        Err(error) => match state_after(link, name, &domain, &error)? {
            DomainState::Running => Ok(Outcome::Already),
            DomainState::Paused if paused => Ok(Outcome::Already),
            DomainState::Paused => resume(link, name),
            DomainState::ShutOff => Err(link.fault(name, "start", &error)),
            state @ (DomainState::ShuttingDown
            | DomainState::Crashed
            | DomainState::PmSuspended
            | DomainState::Unknown) => Err(wrong_state(name, "start", state)),
        },
    }
}

pub(super) fn resume(link: &Link, name: &str) -> Done {
    let domain = link.domain(name)?;
    match domain.resume() {
        Ok(_) => Ok(Outcome::Done),
        Err(error) => match state_after(link, name, &domain, &error)? {
            DomainState::Running => Ok(Outcome::Already),
            DomainState::PmSuspended => done(link, name, "wake", domain.pm_wakeup(0)),
            DomainState::Paused => Err(link.fault(name, "resume", &error)),
            state
            @ (DomainState::ShuttingDown | DomainState::ShutOff | DomainState::Crashed | DomainState::Unknown) => {
                Err(wrong_state(name, "resume", state))
            }
        },
    }
}

pub(super) fn pause(link: &Link, name: &str) -> Done {
    let domain = link.domain(name)?;
    // libvirt's answer is the same whether it ran or not.
    if state(link, name, &domain)? == DomainState::Paused {
        return Ok(Outcome::Already);
    }
    match domain.suspend() {
        Ok(_) => Ok(Outcome::Done),
        Err(error) => match state_after(link, name, &domain, &error)? {
            DomainState::Running | DomainState::Paused => Err(link.fault(name, "pause", &error)),
            state @ (DomainState::ShuttingDown
            | DomainState::ShutOff
            | DomainState::Crashed
            | DomainState::PmSuspended
            | DomainState::Unknown) => Err(wrong_state(name, "pause", state)),
        },
    }
}

/// SIGTERM to QEMU, SIGKILL after 10 s. A domain that is not there is destroyed already.
pub(super) fn destroy(link: &Link, name: &str) -> Done {
    let domain = match link.domain(name) {
        Err(VmError::NoDomain { .. }) => return Ok(Outcome::Already),
        found => found?,
    };
    match domain.destroy() {
        Ok(()) => Ok(Outcome::Done),
        Err(error) if error.code() == ErrorNumber::NoDomain => Ok(Outcome::Already),
        Err(error) => match state_after(link, name, &domain, &error) {
            Ok(DomainState::ShutOff) | Err(VmError::NoDomain { .. }) => Ok(Outcome::Already),
            Ok(_) => Err(link.fault(name, "destroy", &error)),
            Err(error) => Err(error),
        },
    }
}

/// Asks the guest to shut down (ACPI or guest agent); does not wait.
pub(super) fn shutdown(link: &Link, name: &str) -> Done {
    let domain = match link.domain(name) {
        Err(VmError::NoDomain { .. }) => return Ok(Outcome::Already),
        found => found?,
    };
    match domain.shutdown() {
        Ok(_) => Ok(Outcome::Done),
        Err(error) => match state_after(link, name, &domain, &error)? {
            DomainState::ShutOff => Ok(Outcome::Already),
            DomainState::ShuttingDown => Ok(Outcome::Done),
            DomainState::Running => Err(link.fault(name, "shut down", &error)),
            state @ (DomainState::Paused | DomainState::Crashed | DomainState::PmSuspended | DomainState::Unknown) => {
                Err(wrong_state(name, "shut down", state))
            }
        },
    }
}

/// Is the domain down? A transient one is gone then.
pub(super) fn is_off(link: &Link, name: &str) -> Result<bool, VmError> {
    match link.domain(name).and_then(|domain| state(link, name, &domain)) {
        Ok(state) => Ok(state == DomainState::ShutOff),
        Err(VmError::NoDomain { .. }) => Ok(true),
        Err(error) => Err(error),
    }
}

pub(super) fn reboot(link: &Link, name: &str) -> Done {
    let domain = link.domain(name)?;
    done(link, name, "reboot", domain.reboot(ffi::VIR_DOMAIN_REBOOT_DEFAULT))
}

/// One that is paused stays so.
pub(super) fn reset(link: &Link, name: &str) -> Done {
    let domain = link.domain(name)?;
    match domain.reset() {
        Ok(_) => Ok(Outcome::Done),
        Err(error) => match state_after(link, name, &domain, &error)? {
            state @ DomainState::ShutOff => Err(wrong_state(name, "reset", state)),
            DomainState::Running
            | DomainState::Paused
            | DomainState::ShuttingDown
            | DomainState::Crashed
            | DomainState::PmSuspended
            | DomainState::Unknown => Err(link.fault(name, "reset", &error)),
        },
    }
}

/// Managed save: memory to disk, domain off, next start continues.
pub(super) fn save(link: &Link, name: &str) -> Done {
    let domain = link.domain(name)?;
    match domain.managed_save(0) {
        Ok(_) => Ok(Outcome::Done),
        Err(error) => match state_after(link, name, &domain, &error)? {
            DomainState::ShutOff if domain.has_managed_save(0).unwrap_or(false) => Ok(Outcome::Already),
            DomainState::ShutOff => Err(wrong_state(name, "save", DomainState::ShutOff)),
            DomainState::Running
            | DomainState::Paused
            | DomainState::ShuttingDown
            | DomainState::Crashed
            | DomainState::PmSuspended
            | DomainState::Unknown => Err(link.fault(name, "save", &error)),
        },
    }
}

/// Starts a domain from its saved image, and only from that.
pub(super) fn restore(link: &Link, name: &str, paused: bool) -> Done {
    let domain = link.domain(name)?;
    let active = domain.is_active().map_err(|error| link.fault(name, "restore", &error))?;
    let saved = domain.has_managed_save(0).map_err(|error| link.fault(name, "restore", &error))?;
    if !active && !saved {
        return Err(VmError::Refused {
            domain: name.to_owned(),
            action: "restore".to_owned(),
            reason: "it has no saved memory image; start it instead".to_owned(),
        });
    }
    start(link, name, paused)
}

/// Sets the guest's clock through its agent. Ok(Already): there is no agent that could.
pub(super) fn set_time(link: &Link, name: &str, unix: Duration) -> Done {
    let domain = link.domain(name)?;
    let seconds = i64::try_from(unix.as_secs()).unwrap_or(i64::MAX);
    let nanos = i32::try_from(unix.subsec_nanos()).unwrap_or(0);
    match domain.set_time(seconds, nanos, 0) {
        Ok(_) => Ok(Outcome::Done),
        Err(error) if NO_AGENT.contains(&error.code()) => {
            tracing::info!(domain = name, reason = error.message(), "guest clock not set: no guest agent");
            Ok(Outcome::Already)
        }
        Err(error) => Err(link.fault(name, "set the time of", &error)),
    }
}

/// How libvirt says that a guest has no agent, or none that answers or can do this.
const NO_AGENT: [ErrorNumber; 7] = [
    ErrorNumber::AgentUnresponsive,
    ErrorNumber::AgentUnsynced,
    ErrorNumber::AgentCommandFailed,
    ErrorNumber::AgentCommandTimeout,
    ErrorNumber::ArgumentUnsupported,
    ErrorNumber::OperationUnsupported,
    ErrorNumber::ConfigUnsupported,
];

/// Blocks until the domain runs on the other host, or not.
pub(super) fn migrate(link: &Link, name: &str, options: &MigrateOptions) -> Result<(), VmError> {
    const MIB: u64 = 1 << 20;
    let domain = link.domain(name)?;
    let failed = |error: Error| link.fault(name, "migrate", &error);
    if let Some(downtime) = options.max_downtime {
        let millis = u64::try_from(downtime.as_millis()).unwrap_or(u64::MAX).max(1);
        domain.migrate_set_max_downtime(millis, 0).map_err(failed)?;
    }
    let mut flags = ffi::VIR_MIGRATE_LIVE | ffi::VIR_MIGRATE_PEER2PEER | ffi::VIR_MIGRATE_ABORT_ON_ERROR;
    if options.persist {
        flags |= ffi::VIR_MIGRATE_PERSIST_DEST;
        if !options.keep {
            flags |= ffi::VIR_MIGRATE_UNDEFINE_SOURCE;
        }
    }
    if options.auto_converge {
        flags |= ffi::VIR_MIGRATE_AUTO_CONVERGE;
    }
    let parameters = MigrateParameters {
        // libvirt's own default is 32 MiB/s in old releases: no limit has to be said.
        bandwidth: Some(options.bandwidth_bytes_per_s.map_or(UNLIMITED_MIB, |bytes| bytes.div_ceil(MIB).max(1))),
        uri: options.data_uri.clone(),
        ..MigrateParameters::default()
    };
    domain.migrate_to_uri3(Some(&options.destination), parameters, flags).map_err(failed)
}

/// 1 TiB/s: beyond any network, and within what QEMU's signed 64-bit byte rate can hold.
const UNLIMITED_MIB: u64 = 1 << 20;

/// None while no job runs.
pub(super) fn job(link: &Link, name: &str) -> Result<Option<JobProgress>, VmError> {
    let domain = link.domain(name)?;
    let info = domain.get_job_info().map_err(|error| link.fault(name, "ask for the job of", &error))?;
    let running = [ffi::VIR_DOMAIN_JOB_BOUNDED, ffi::VIR_DOMAIN_JOB_UNBOUNDED]
        .iter()
        .any(|kind| i32::try_from(*kind) == Ok(info.r#type));
    Ok(running.then(|| JobProgress {
        total_bytes: info.data_total.unwrap_or(0),
        remaining_bytes: info.data_remaining.unwrap_or(0),
        elapsed: Duration::from_millis(info.time_elapsed.unwrap_or(0)),
    }))
}

pub(super) fn abort_job(link: &Link, name: &str) -> Result<(), VmError> {
    let domain = link.domain(name)?;
    sys::abort_job(&domain).map_err(|error| link.fault(name, "cancel the job of", &error))
}

/// What a definition says, and when it was read.
struct Definition {
    read: Instant,
    changes: u64,
    state: DomainState,
    nics: Vec<DomainNic>,
    persistent: bool,
    autostart: bool,
    managed_save: bool,
    fault: Option<String>,
}

/// Listing with definitions remembered, so that a sample costs one call however many domains there are.
#[derive(Default)]
pub(super) struct Lister {
    definitions: HashMap<String, Definition>,
}

impl Lister {
    /// `changes`: how many lifecycle events there have been; a new number makes everything be read anew.
    pub(super) fn list(&mut self, link: &Link, changes: u64) -> Result<Vec<DomainInfo>, VmError> {
        let all = sys::all_stats(link.connect()).map_err(|error| link.fault("*", "list", &error))?;
        let mut infos = Vec::with_capacity(all.len());
        let mut kept = HashMap::with_capacity(all.len());
        for stats in all {
            // A domain that vanished meanwhile is left out; any other error means the connection.
            let (Ok(name), Ok(uuid)) = (stats.domain.get_name(), stats.domain.get_uuid_string()) else { continue };
            let state = state_from(stats.number("state.state"));
            let known = self.definitions.remove(&uuid).filter(|known| {
                known.changes == changes && known.state == state && known.read.elapsed() < DEFINITION_AGE
            });
            let definition = match known {
                Some(known) => known,
                None => match read_definition(&stats.domain, state, changes) {
                    Ok(read) => read,
                    Err(error) if error.code() == ErrorNumber::NoDomain => continue,
                    Err(error) => return Err(link.fault(&name, "describe", &error)),
                },
            };
            infos.push(info(name, &uuid, state, &stats, &definition));
            kept.insert(uuid, definition);
        }
        self.definitions = kept;
        infos.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(infos)
    }
}

fn read_definition(domain: &Domain, state: DomainState, changes: u64) -> Result<Definition, Error> {
    let (nics, fault) = match xml::nics(&domain.get_xml_desc(0)?) {
        Ok(nics) => (nics, None),
        Err(fault) => (Vec::new(), Some(fault)),
    };
    let persistent = domain.is_persistent()?;
    Ok(Definition {
        read: Instant::now(),
        changes,
        state,
        nics,
        persistent,
        // Neither exists for a transient domain.
        autostart: persistent && domain.get_autostart()?,
        managed_save: persistent && domain.has_managed_save(0)?,
        fault,
    })
}

fn info(name: String, uuid: &str, state: DomainState, stats: &Stats, definition: &Definition) -> DomainInfo {
    const KIB: u64 = 1024;
    let kib = |key: &str| stats.number(key).map(|number| number.saturating_mul(KIB));
    let mut nics = definition.nics.clone();
    for index in 0..stats.number("net.count").unwrap_or(0) {
        let tap = stats.text(&format!("net.{index}.name"));
        if let Some(nic) = nics.iter_mut().find(|nic| nic.tap.is_some() && nic.tap.as_deref() == tap) {
            nic.rx_bytes = stats.number(&format!("net.{index}.rx.bytes")).unwrap_or(0);
            nic.tx_bytes = stats.number(&format!("net.{index}.tx.bytes")).unwrap_or(0);
        }
    }
    let active = !matches!(state, DomainState::ShutOff);
    DomainInfo {
        name,
        uuid: uuid.to_owned(),
        state,
        vcpus: stats.number("vcpu.current").and_then(|number| u32::try_from(number).ok()).unwrap_or(0),
        memory_max_bytes: kib("balloon.maximum").unwrap_or(0),
        memory_used_bytes: if active { kib("balloon.current").unwrap_or(0) } else { 0 },
        memory_resident_bytes: kib("balloon.rss"),
        cpu_time_ns: if active { cpu_time(stats) } else { 0 },
        nics,
        persistent: definition.persistent,
        autostart: definition.autostart,
        managed_save: definition.managed_save,
        fault: definition.fault.clone(),
    }
}

/// What its processors have worked: without what QEMU does besides, as a live migration's own work is no load of the guest.
/// All that QEMU did where libvirt knows no processors of their own (`virsh domstats --vcpu`).
fn cpu_time(stats: &Stats) -> u64 {
    let of_each = |index: u64| stats.number(&format!("vcpu.{index}.time"));
    let count = stats.number("vcpu.current").filter(|count| *count > 0);
    let sum = count.and_then(|count| (0..count).map(of_each).sum::<Option<u64>>());
    sum.or_else(|| stats.domain.get_info().ok().map(|info| info.cpu_time)).unwrap_or(0)
}

fn state_from(number: Option<u64>) -> DomainState {
    match number.and_then(|number| u32::try_from(number).ok()) {
        Some(ffi::VIR_DOMAIN_RUNNING | ffi::VIR_DOMAIN_BLOCKED) => DomainState::Running,
        Some(ffi::VIR_DOMAIN_PAUSED) => DomainState::Paused,
        Some(ffi::VIR_DOMAIN_SHUTDOWN) => DomainState::ShuttingDown,
        Some(ffi::VIR_DOMAIN_SHUTOFF) => DomainState::ShutOff,
        Some(ffi::VIR_DOMAIN_CRASHED) => DomainState::Crashed,
        Some(ffi::VIR_DOMAIN_PMSUSPENDED) => DomainState::PmSuspended,
        Some(_) | None => DomainState::Unknown,
    }
}

fn state(link: &Link, name: &str, domain: &Domain) -> Result<DomainState, VmError> {
    let (state, _reason) = domain.get_state().map_err(|error| link.fault(name, "ask for the state of", &error))?;
    Ok(state_from(Some(u64::from(state))))
}

/// The state that made libvirt refuse with OPERATION_INVALID; other errors are the caller's.
fn state_after(link: &Link, name: &str, domain: &Domain, error: &Error) -> Result<DomainState, VmError> {
    let fault = link.fault(name, "command", error);
    if matches!(fault, VmError::Refused { .. }) { state(link, name, domain) } else { Err(fault) }
}

fn wrong_state(name: &str, action: &str, state: DomainState) -> VmError {
    VmError::WrongState { domain: name.to_owned(), action: action.to_owned(), state }
}

fn done<T>(link: &Link, name: &str, action: &str, result: Result<T, Error>) -> Done {
    match result {
        Ok(_) => Ok(Outcome::Done),
        Err(error) => Err(link.fault(name, action, &error)),
    }
}
