//! Live migration. The VIPs stay open, and are renewed, while memory is copied (safety rule 8); see [`super::follow`] for
//! the switch-over.

use super::{Vms, status};
use crate::{
    guard::now,
    service::{Many, Shared, invalid, limit},
    vm::{MigrateOptions, VmError},
    wire,
};
use kage_proto::agent::v1;
use kage_types::DomainName;
use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status};

/// A migration that takes longer is cancelled, if the caller does not say.
const MIGRATE: Duration = Duration::from_secs(600);
/// A slow reader of progress misses none: there are four a second.
const BACKLOG: usize = 16;

impl Vms {
    /// Domains under way, and where to.
    pub(super) fn moving(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.moving.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    pub(in crate::service) async fn migrate_vm(
        self: &Arc<Self>,
        request: Request<v1::MigrateVmRequest>,
    ) -> Result<Many<v1::MigrateProgress>, Status> {
        self.admit(&request, request.get_ref().authority.as_ref()).await?;
        let request = request.into_inner();
        if request.destination_uri.is_empty() {
            return Err(invalid("destination_uri is empty: give one like qemu+tls://HOST/system"));
        }
        let to = host(&request.destination_uri).unwrap_or_else(|| request.destination_uri.clone());
        let vm = self.vms.vm()?;
        let info = self.vms.find(&request.domain).await?;
        let options = MigrateOptions {
            destination: request.destination_uri.clone(),
            data_uri: Some(request.data_uri.clone()).filter(|uri| !uri.is_empty()).or_else(|| data_uri(&to)),
            bandwidth_bytes_per_s: (request.bandwidth_mib_s > 0)
                .then(|| request.bandwidth_mib_s.saturating_mul(1 << 20)),
            max_downtime: (request.max_downtime_ms > 0).then(|| Duration::from_millis(request.max_downtime_ms.into())),
            persist: info.persistent,
            keep: request.keep_defined,
            auto_converge: true,
            deadline: limit(request.timeout_ms, MIGRATE),
        };
        if self.vms.moving().insert(request.domain.clone(), to.clone()).is_some() {
            return Err(Status::failed_precondition(format!("domain {} is being moved already", request.domain)));
        }
        let begun = now();
        let migration = vm.migrate(&request.domain, options);
        let (send, stream) = mpsc::channel(BACKLOG);
        let shared = Arc::clone(self);
        tokio::spawn(async move {
            let mut progress = migration.progress();
            let report = |last: crate::vm::JobProgress, done| v1::MigrateProgress {
                total_bytes: last.total_bytes,
                remaining_bytes: if done { 0 } else { last.remaining_bytes },
                elapsed_ms: wire::to_millis(now().since(begun)),
                done,
            };
            // Ends when the migration does. A caller that gives up cancels it: nobody would know what it does.
            loop {
                tokio::select! {
                    changed = progress.changed() => if changed.is_err() { break },
                    () = send.closed() => {
                        migration.cancel();
                        while progress.changed().await.is_ok() {}
                        break;
                    }
                }
                let last = *progress.borrow_and_update();
                let _ = send.try_send(Ok(report(last, false)));
            }
            let last = *progress.borrow();
            let ended = migration.wait().await;
            let name = DomainName::new(&request.domain).ok();
            // The event may be late, or lost.
            match (&ended, name) {
                (Ok(()), Some(name)) => shared.vms.switched_over(&shared.handle, name, to).await,
                (Err(_), Some(name)) => shared.release_unless_it_runs(&name).await,
                // A domain whose name is none of ours can't hold anything.
                (_, None) => {}
            }
            shared.vms.moving().remove(&request.domain);
            let ended = ended.map(|()| report(last, true)).map_err(|error| {
                let status = explain(&error, &request.destination_uri);
                tracing::warn!(domain = request.domain, to = request.destination_uri, %status, "not moved");
                status
            });
            let _ = send.send(ended).await;
        });
        Ok(Box::pin(ReceiverStream::new(stream)))
    }
}

/// `qemu+ssh://root@rs2:22/system` → `rs2`.
fn host(uri: &str) -> Option<String> {
    let authority = uri.split_once("://")?.1.split('/').next()?;
    let host = authority.rsplit('@').next()?;
    let host = match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next()?,
        None => host.split(':').next()?,
    };
    (!host.is_empty()).then(|| host.to_owned())
}

/// Where memory is sent, unless that is told: libvirt would ask the destination for its host name, and have this host
/// resolve it.
fn data_uri(host: &str) -> Option<String> {
    Some(match host.parse().ok()? {
        IpAddr::V4(address) => format!("tcp://{address}"),
        IpAddr::V6(address) => format!("tcp://[{address}]"),
    })
}

/// What libvirt says of a destination, and what to do about it. Its messages have no numbers of their own: found by words
/// that have not changed between libvirt 3 and 11.
fn explain(error: &VmError, destination: &str) -> Status {
    const UNREACHABLE: (Code, &str) = (
        Code::Unavailable,
        "the destination is not reached: is libvirtd (virtproxyd) up and listening there, does its name resolve on this \
         host? Try `virsh -c DESTINATION list` here",
    );
    const MEMORY: (Code, &str) =
        (Code::ResourceExhausted, "the destination lacks memory: move or stop something there, or choose another");
    const STORAGE: (Code, &str) = (
        Code::FailedPrecondition,
        "its disks are not on storage that both hosts see under the same path: share it (NFS, iSCSI, Ceph), with \
         cache='none' or 'directsync' on each disk",
    );
    const THERE: (Code, &str) = (
        Code::FailedPrecondition,
        "the destination has a domain of this name or UUID: it runs there already, or another definition is in the way \
         (`virsh -c DESTINATION list --all`)",
    );
    const NETWORK: (Code, &str) =
        (Code::FailedPrecondition, "the destination has no such bridge or network: give it the same as this host");
    const MACHINE: (Code, &str) = (
        Code::FailedPrecondition,
        "the destination's CPU or QEMU can't run it: give it a CPU model that both have \
         (`virsh hypervisor-cpu-baseline`), and a machine type known to both",
    );
    // In lower case; the first that fits.
    const KNOWN: [(&str, (Code, &str)); 28] = [
        ("cannot allocate memory", MEMORY),
        ("cannot set up guest memory", MEMORY),
        ("insufficient memory", MEMORY),
        ("not enough free memory", MEMORY),
        ("without shared storage", STORAGE),
        ("migration may lead to data corruption", STORAGE),
        ("unsafe migration", STORAGE),
        ("cannot access storage", STORAGE),
        ("could not open '", STORAGE),
        ("storage source", STORAGE),
        ("unable to stat", STORAGE),
        ("error reading initrd", STORAGE),
        ("could not open kernel", STORAGE),
        ("already exists", THERE),
        ("already active", THERE),
        ("already defined", THERE),
        ("network not found", NETWORK),
        ("no such device", NETWORK),
        ("cannot get interface", NETWORK),
        ("guest cpu", MACHINE),
        ("cpu is incompatible", MACHINE),
        ("unsupported machine type", MACHINE),
        ("emulator does not support", MACHINE),
        ("unable to connect", UNREACHABLE),
        ("connection refused", UNREACHABLE),
        ("no route to host", UNREACHABLE),
        ("unable to resolve", UNREACHABLE),
        ("failed to connect", UNREACHABLE),
    ];
    let usual = status(error);
    let VmError::Refused { reason, .. } = error else { return usual };
    let reason = reason.to_lowercase();
    match KNOWN.iter().find(|(words, _)| reason.contains(words)) {
        Some((_, (code, next))) => {
            let next = next.replace("DESTINATION", destination);
            Status::new(*code, format!("{} (destination {destination}): {next}", usual.message()))
        }
        None => Status::new(usual.code(), format!("{} (destination {destination})", usual.message())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_destinations_host_is_found() {
        for (uri, wanted) in [
            ("qemu+tcp://10.0.0.3/system", Some("10.0.0.3")),
            ("qemu+ssh://root@rs2:2222/system?keyfile=x", Some("rs2")),
            ("qemu+tls://[2001:db8::3]:16514/system", Some("2001:db8::3")),
            ("qemu:///system", None),
            ("rs2", None),
        ] {
            assert_eq!(host(uri).as_deref(), wanted, "{uri}");
        }
        assert_eq!(data_uri("10.0.0.3").as_deref(), Some("tcp://10.0.0.3"));
        assert_eq!(data_uri("2001:db8::3").as_deref(), Some("tcp://[2001:db8::3]"));
        assert_eq!(data_uri("rs2"), None);
    }

    #[test]
    fn what_libvirt_refuses_is_told_with_the_next_step() {
        let to = "qemu+tcp://rs2/system";
        for (reason, code, next) in [
            (
                "internal error: process exited while connecting to monitor: qemu-system-x86_64: cannot set up guest memory \
                 'pc.ram': Cannot allocate memory",
                Code::ResourceExhausted,
                "lacks memory",
            ),
            ("Unsafe migration: Migration without shared storage is unsafe", Code::FailedPrecondition, "same path"),
            (
                "unable to connect to server at 'rs2:16509': Connection refused",
                Code::Unavailable,
                "virsh -c qemu+tcp://rs2/system list",
            ),
            ("Cannot access storage file '/srv/a.img': No such file or directory", Code::FailedPrecondition, "NFS"),
            ("unable to stat: /srv/mail1/initramfs: No such file or directory", Code::FailedPrecondition, "same path"),
            ("Cannot get interface MTU on 'br0': No such device", Code::FailedPrecondition, "bridge"),
            ("operation failed: domain 'a' already exists with uuid 1", Code::FailedPrecondition, "runs there already"),
            ("something new", Code::FailedPrecondition, "(destination qemu+tcp://rs2/system)"),
        ] {
            let (domain, action) = ("mail1".to_owned(), "migrate".to_owned());
            let status = explain(&VmError::Refused { domain, action, reason: reason.to_owned() }, to);
            assert_eq!(status.code(), code, "{status}");
            assert!(status.message().contains(next) && status.message().contains("mail1"), "{status}");
        }
    }
}
