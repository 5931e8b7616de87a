//! What the `virt` crate does not wrap: the event loop, lifecycle events, keep-alive, statistics of all domains.
//!
//! The one module with `unsafe` code about libvirt.

use super::types::{DomainEvent, DomainEventDetail, DomainEventKind, VmError};
use crate::host::clock;
use std::{
    collections::BTreeMap,
    ffi::{CStr, c_char, c_int, c_void},
    sync::OnceLock,
    thread,
    time::Duration,
};
use virt::{connect::Connect, domain::Domain, error::Error};
use virt_sys as ffi;

/// Keep-alive messages: one in so many seconds …
const KEEPALIVE_INTERVAL_S: c_int = 2;
/// … and this many unanswered close the connection: after 8 s, more than a loaded libvirtd's longest hiccup.
const KEEPALIVE_COUNT: u32 = 3;

/// Starts libvirt's event loop on a thread of its own, once per process; must precede every connection.
pub(super) fn start_event_loop() -> Result<(), VmError> {
    static STARTED: OnceLock<Result<(), String>> = OnceLock::new();
    STARTED
        .get_or_init(|| {
            // libvirt prints every error to stderr otherwise.
            virt::error::clear_error_callback();
            // SAFETY: takes no arguments; OnceLock calls it once, before any connection is opened.
            if unsafe { ffi::virEventRegisterDefaultImpl() } < 0 {
                return Err(Error::last_error().message().to_owned());
            }
            thread::Builder::new()
                .name("libvirt-events".to_owned())
                .spawn(|| {
                    loop {
                        // SAFETY: the default implementation is registered and only this thread runs it.
                        if unsafe { ffi::virEventRunDefaultImpl() } < 0 {
                            // Never seen; must not spin.
                            thread::sleep(Duration::from_millis(100));
                        }
                    }
                })
                .map(drop)
                .map_err(|error| error.to_string())
        })
        .clone()
        .map_err(VmError::Internal)
}

/// Lets a silent libvirtd be noticed. Not every driver can.
pub(super) fn keep_alive(connect: &Connect) {
    // SAFETY: the pointer is valid while `connect` lives.
    let result = unsafe { ffi::virConnectSetKeepAlive(connect.as_ptr(), KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT) };
    if result < 0 {
        tracing::warn!(error = %Error::last_error(), "no keep-alive to libvirt: its hangs will be noticed late");
    }
}

type Listener = Box<dyn Fn(DomainEvent) + Send + Sync>;

/// A subscription to lifecycle events; ends when dropped.
pub(super) struct Subscription<'link> {
    connect: &'link Connect,
    id: c_int,
}

impl<'link> Subscription<'link> {
    /// Calls `listener` on the event loop's thread, which it must not block, with every event of every domain.
    pub(super) fn new(connect: &'link Connect, listener: Listener) -> Result<Self, Error> {
        let opaque = Box::into_raw(Box::new(listener));
        let callback: unsafe extern "C" fn(ffi::virConnectPtr, ffi::virDomainPtr, c_int, c_int, *mut c_void) -> c_int =
            on_lifecycle;
        // SAFETY: libvirt's API takes every callback as a generic function pointer and calls it by its event's true
        // type, which for VIR_DOMAIN_EVENT_ID_LIFECYCLE is virConnectDomainEventCallback, the type of `callback`.
        let generic = unsafe {
            std::mem::transmute::<ffi::virConnectDomainEventCallback, ffi::virConnectDomainEventGenericCallback>(Some(
                callback,
            ))
        };
        // SAFETY: `connect` is valid; `opaque` stays so until libvirt calls `free_listener` with it.
        let id = unsafe {
            ffi::virConnectDomainEventRegisterAny(
                connect.as_ptr(),
                std::ptr::null_mut(),
                ffi::VIR_DOMAIN_EVENT_ID_LIFECYCLE as c_int,
                generic,
                opaque.cast(),
                Some(free_listener),
            )
        };
        if id < 0 {
            let error = Error::last_error();
            // SAFETY: after a failure libvirt neither keeps nor frees the pointer, which came from Box::into_raw.
            drop(unsafe { Box::from_raw(opaque) });
            return Err(error);
        }
        Ok(Self { connect, id })
    }
}

impl Drop for Subscription<'_> {
    fn drop(&mut self) {
        // SAFETY: `connect` is valid and `id` came from it. A failure (closed connection) leaves the freeing to
        // virConnectClose.
        unsafe { ffi::virConnectDomainEventDeregisterAny(self.connect.as_ptr(), self.id) };
    }
}

/// SAFETY: called by libvirt with the opaque pointer of [`Subscription::new`], exactly once.
unsafe extern "C" fn free_listener(opaque: *mut c_void) {
    // SAFETY: by this function's contract.
    drop(unsafe { Box::from_raw(opaque.cast::<Listener>()) });
}

/// SAFETY: called by libvirt with a valid domain and the opaque pointer of [`Subscription::new`].
unsafe extern "C" fn on_lifecycle(
    _connect: ffi::virConnectPtr,
    domain: ffi::virDomainPtr,
    event: c_int,
    detail: c_int,
    opaque: *mut c_void,
) -> c_int {
    let at = clock::now();
    // SAFETY: by this function's contract; the name lives as long as the domain.
    let name = unsafe { text(ffi::virDomainGetName(domain)) };
    let mut buffer = [0 as c_char; ffi::VIR_UUID_STRING_BUFLEN as usize];
    // SAFETY: the buffer has the length libvirt asks for, and is zero-terminated in any case.
    let uuid = unsafe {
        ffi::virDomainGetUUIDString(domain, buffer.as_mut_ptr());
        text(buffer.as_ptr())
    };
    if let Some(kind) = event_kind(event) {
        // SAFETY: by this function's contract; libvirt frees it only after the last call.
        let listener = unsafe { &*opaque.cast::<Listener>() };
        let event = DomainEvent { domain: name, uuid, kind, detail: event_detail(kind, detail), at };
        // Unwinding must not cross into C.
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| listener(event)));
    }
    0
}

fn event_kind(event: c_int) -> Option<DomainEventKind> {
    Some(match u32::try_from(event).ok()? {
        ffi::VIR_DOMAIN_EVENT_DEFINED => DomainEventKind::Defined,
        ffi::VIR_DOMAIN_EVENT_UNDEFINED => DomainEventKind::Undefined,
        ffi::VIR_DOMAIN_EVENT_STARTED => DomainEventKind::Started,
        ffi::VIR_DOMAIN_EVENT_SUSPENDED => DomainEventKind::Suspended,
        ffi::VIR_DOMAIN_EVENT_RESUMED => DomainEventKind::Resumed,
        ffi::VIR_DOMAIN_EVENT_STOPPED => DomainEventKind::Stopped,
        ffi::VIR_DOMAIN_EVENT_SHUTDOWN => DomainEventKind::Shutdown,
        ffi::VIR_DOMAIN_EVENT_PMSUSPENDED => DomainEventKind::PmSuspended,
        ffi::VIR_DOMAIN_EVENT_CRASHED => DomainEventKind::Crashed,
        _ => return None,
    })
}

/// libvirt's `virDomainEvent*DetailType` numbers, in their order.
fn event_detail(kind: DomainEventKind, detail: c_int) -> DomainEventDetail {
    use DomainEventDetail as D;
    let known: &[DomainEventDetail] = match kind {
        DomainEventKind::Started => &[D::Booted, D::Migrated, D::Restored, D::FromSnapshot, D::Wakeup],
        DomainEventKind::Suspended => &[
            D::Paused,
            D::Migrated,
            D::IoError,
            D::Watchdog,
            D::Restored,
            D::FromSnapshot,
            D::Failed,
            D::Postcopy,
            D::Postcopy,
        ],
        DomainEventKind::Resumed => &[D::Unpaused, D::Migrated, D::FromSnapshot, D::Postcopy, D::Postcopy],
        DomainEventKind::Stopped => {
            &[D::ShutDown, D::Destroyed, D::Crashed, D::Migrated, D::Saved, D::Failed, D::FromSnapshot]
        }
        DomainEventKind::Shutdown => &[D::ShutDown, D::ByGuest, D::ByHost],
        DomainEventKind::Crashed => &[D::Crashed, D::Crashed],
        DomainEventKind::Defined | DomainEventKind::Undefined | DomainEventKind::PmSuspended => &[],
    };
    usize::try_from(detail).ok().and_then(|index| known.get(index)).copied().unwrap_or(D::Other(detail))
}

/// A value of a typed parameter.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Number(u64),
    Text(String),
}

/// Statistics of one domain by libvirt's names (`man virConnectGetAllDomainStats`).
pub(super) struct Stats {
    pub(super) domain: Domain,
    pub(super) values: BTreeMap<String, Value>,
}

impl Stats {
    pub(super) fn number(&self, name: &str) -> Option<u64> {
        match self.values.get(name) {
            Some(Value::Number(number)) => Some(*number),
            Some(Value::Text(_)) | None => None,
        }
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        match self.values.get(name) {
            Some(Value::Text(text)) => Some(text),
            Some(Value::Number(_)) | None => None,
        }
    }
}

/// Of every domain, active or not, in one call. A domain that is busy or whose QEMU hangs is not waited for: what
/// its QEMU would have to tell is missing then. CPU time is not asked for: for that, libvirtd first examines all
/// emulators of the host, which takes seconds after its start.
pub(super) fn all_stats(connect: &Connect) -> Result<Vec<Stats>, Error> {
    let wanted = ffi::VIR_DOMAIN_STATS_STATE
        | ffi::VIR_DOMAIN_STATS_BALLOON
        | ffi::VIR_DOMAIN_STATS_VCPU
        | ffi::VIR_DOMAIN_STATS_INTERFACE;
    let mut list: *mut ffi::virDomainStatsRecordPtr = std::ptr::null_mut();
    // SAFETY: `connect` is valid and `list` receives an array that is freed below.
    let count = unsafe {
        ffi::virConnectGetAllDomainStats(
            connect.as_ptr(),
            wanted,
            &mut list,
            ffi::VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT,
        )
    };
    let Ok(count) = usize::try_from(count) else { return Err(Error::last_error()) };
    let mut all = Vec::with_capacity(count);
    for index in 0..count {
        // SAFETY: libvirt returned `count` valid records, each with `nparams` parameters; the domain is referenced
        // anew because freeing the list drops the list's reference.
        all.push(unsafe {
            let record = &**list.add(index);
            ffi::virDomainRef(record.dom);
            let length = usize::try_from(record.nparams).unwrap_or(0);
            let params = if record.params.is_null() { &[] } else { std::slice::from_raw_parts(record.params, length) };
            let values = params.iter().filter_map(|param| Some((text(param.field.as_ptr()), value(param)?))).collect();
            Stats { domain: Domain::from_ptr(record.dom), values }
        });
    }
    if !list.is_null() {
        // SAFETY: allocated by the call above and not used afterwards.
        unsafe { ffi::virDomainStatsRecordListFree(list) };
    }
    Ok(all)
}

/// SAFETY: `param` was filled in by libvirt.
unsafe fn value(param: &ffi::virTypedParameter) -> Option<Value> {
    // SAFETY: the field read is the one `type_` names.
    unsafe {
        Some(match u32::try_from(param.type_).ok()? {
            ffi::VIR_TYPED_PARAM_INT => Value::Number(u64::try_from(param.value.i).ok()?),
            ffi::VIR_TYPED_PARAM_UINT => Value::Number(u64::from(param.value.ui)),
            ffi::VIR_TYPED_PARAM_LLONG => Value::Number(u64::try_from(param.value.l).ok()?),
            ffi::VIR_TYPED_PARAM_ULLONG => Value::Number(param.value.ul),
            ffi::VIR_TYPED_PARAM_BOOLEAN => Value::Number(u64::from(param.value.b != 0)),
            ffi::VIR_TYPED_PARAM_STRING => Value::Text(text(param.value.s)),
            _ => return None,
        })
    }
}

/// SAFETY: `pointer` is null or a zero-terminated string.
unsafe fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: by this function's contract.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}

/// Cancels the migration or save of a domain.
pub(super) fn abort_job(domain: &Domain) -> Result<(), Error> {
    // SAFETY: the pointer is valid while `domain` lives.
    if unsafe { ffi::virDomainAbortJob(domain.as_ptr()) } < 0 { Err(Error::last_error()) } else { Ok(()) }
}
