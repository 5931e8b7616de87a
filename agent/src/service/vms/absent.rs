//! In the place of libvirt where it is not built in: a value that can't exist.

use crate::vm::{ConnectionState, DomainInfo, JobProgress, MigrateOptions, Outcome, VmError, VmEvent};
use std::{convert::Infallible, time::Duration};
use tokio::sync::{broadcast, watch};

/// No virtual machines.
#[derive(Clone)]
pub struct Vm(Infallible);

/// No migration.
pub struct Migration(Infallible);

impl Migration {
    /// Never.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<JobProgress> {
        match self.0 {}
    }

    /// Never.
    pub fn cancel(&self) {
        match self.0 {}
    }

    /// Never.
    pub fn wait(self) -> std::future::Ready<Result<(), VmError>> {
        match self.0 {}
    }
}

macro_rules! never {
    ($($name:ident($($argument:ident: $kind:ty),*) -> $result:ty;)*) => {
        impl Vm {
            $(
                /// Never.
                pub fn $name(&self, $($argument: $kind),*) -> $result {
                    $(let _ = $argument;)*
                    match self.0 {}
                }
            )*
        }
    };
}

type Later<T> = std::future::Ready<Result<T, VmError>>;

never! {
    events() -> broadcast::Receiver<VmEvent>;
    connection() -> watch::Receiver<ConnectionState>;
    list() -> Later<Vec<DomainInfo>>;
    start_domain(domain: &str, paused: bool, deadline: Duration) -> Later<Outcome>;
    resume(domain: &str) -> Later<Outcome>;
    pause(domain: &str) -> Later<Outcome>;
    set_time(domain: &str, deadline: Duration) -> Later<Outcome>;
    save(domain: &str, deadline: Duration) -> Later<Outcome>;
    shutdown(domain: &str, deadline: Duration) -> Later<Outcome>;
    destroy(domain: &str) -> Later<Outcome>;
    reboot(domain: &str) -> Later<Outcome>;
    reset(domain: &str) -> Later<Outcome>;
    migrate(domain: &str, options: MigrateOptions) -> Migration;
}
