//! Holding services back for want of a lease, and letting them go (docs/safety.md, "Never two writers").

use super::{Services, chain};
use crate::{
    config::Config,
    host::service::{Service, ServiceError, ServiceState},
};
use kage_agent_core::{Halt, HaltOutcome, WriterConfig};
use kage_types::ServiceName;
use std::{collections::BTreeMap, sync::PoisonError, time::Duration};

/// A service manager that does not say within so long whether the service runs is told to stop it all the same.
const ASK: Duration = Duration::from_millis(500);

/// The services that must not run without a lease. Only a machine's own VIPs bind its services.
#[must_use]
pub fn writers(config: &Config) -> BTreeMap<ServiceName, WriterConfig> {
    let writer = |(name, service): (&ServiceName, &crate::config::ServiceConfig)| {
        let halt = service.halt(name)?;
        Some((name.clone(), WriterConfig { vips: service.vips.clone(), halt }))
    };
    config.services.iter().filter_map(writer).collect()
}

impl Services {
    /// From now on the end of these is no failure, and nobody restarts them.
    pub fn set_held(&self, held: impl Fn(&ServiceName) -> bool) {
        let held = self.all.keys().filter(|name| held(name)).cloned().collect();
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = held;
    }

    pub(super) fn is_held(&self, name: &ServiceName) -> bool {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).contains(name)
    }

    /// Stops or freezes it, if it runs.
    pub async fn halt(&self, name: &ServiceName, halt: Halt) -> HaltOutcome {
        let Some(service) = self.get(name) else { return HaltOutcome::NotRunning };
        let status = tokio::time::timeout(ASK, service.status()).await;
        if status.is_ok_and(|status| matches!(status.state, ServiceState::Stopped | ServiceState::Failed)) {
            return HaltOutcome::NotRunning;
        }
        outcome(match halt {
            Halt::Stop => service.stop().await,
            Halt::Freeze => service.freeze().await,
        })
    }

    /// Starts or thaws it.
    pub async fn resume(&self, name: &ServiceName, halt: Halt) -> HaltOutcome {
        let Some(service) = self.get(name) else { return HaltOutcome::NotRunning };
        outcome(resume(service, halt).await)
    }
}

async fn resume(service: &Service, halt: Halt) -> Result<(), ServiceError> {
    match halt {
        Halt::Stop => service.start().await,
        Halt::Freeze => service.thaw().await,
    }
}

fn outcome(result: Result<(), ServiceError>) -> HaltOutcome {
    result.map_or_else(|error| HaltOutcome::Failed(chain(&error)), |()| HaltOutcome::Done)
}
