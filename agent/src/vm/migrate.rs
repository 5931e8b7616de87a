//! A live migration under way.

use super::{
    handle::Vm,
    types::{JobProgress, MigrateOptions, VmError},
};
use std::{pin::pin, time::Duration};
use tokio::{
    sync::{oneshot, watch},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

/// How often progress is read: several times in the two seconds a small guest takes.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);
/// How long a cancelled migration may take to end.
const CANCEL_GRACE: Duration = Duration::from_secs(20);

/// A live migration under way. Dropping it neither cancels nor hurries it.
pub struct Migration {
    progress: watch::Receiver<JobProgress>,
    cancel: watch::Sender<bool>,
    result: oneshot::Receiver<Result<(), VmError>>,
}

impl Migration {
    pub(super) fn begin(vm: Vm, domain: String, options: MigrateOptions) -> Self {
        let (report, progress) = watch::channel(JobProgress::default());
        let (cancel, cancelled) = watch::channel(false);
        let (send, result) = oneshot::channel();
        tokio::spawn(async move {
            let _ = send.send(drive(&vm, &domain, options, &report, cancelled).await);
        });
        Self { progress, cancel, result }
    }

    /// How far it is; changes four times a second. All zero until QEMU has begun.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<JobProgress> {
        self.progress.clone()
    }

    /// Asks for it to be cancelled; [`Self::wait`] tells whether it was.
    pub fn cancel(&self) {
        self.cancel.send_replace(true);
    }

    /// Until it has ended. Ok: the domain runs on the destination and not here.
    ///
    /// # Errors
    /// [`VmError::Cancelled`]: by request or at the deadline, and the domain still runs here. [`VmError::Timeout`] or
    /// [`VmError::Lost`]: ask both hosts. Others: it still runs here.
    pub async fn wait(self) -> Result<(), VmError> {
        self.result.await.unwrap_or_else(|_| Err(VmError::Internal("the migration's task ended".to_owned())))
    }
}

async fn drive(
    vm: &Vm,
    domain: &str,
    options: MigrateOptions,
    report: &watch::Sender<JobProgress>,
    mut cancelled: watch::Receiver<bool>,
) -> Result<(), VmError> {
    let end = Instant::now() + options.deadline;
    let mut call = pin!(vm.migrate_call(domain, options.clone(), options.deadline + CANCEL_GRACE));
    let mut ticks = interval(PROGRESS_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut cancelling = false;
    loop {
        let cancel_now = async {
            tokio::select! {
                // A dropped handle is no wish to cancel.
                dropped = async { cancelled.wait_for(|wish| *wish).await.is_err() } => {
                    if dropped {
                        sleep_until(end).await;
                    }
                }
                () = sleep_until(end) => {}
            }
        };
        tokio::select! {
            result = &mut call => return match result {
                Err(VmError::Refused { .. }) if cancelling => Err(VmError::Cancelled { domain: domain.to_owned() }),
                result => result,
            },
            () = cancel_now, if !cancelling => {
                cancelling = true;
            }
            _ = ticks.tick() => {
                if cancelling {
                    // Again and again: a job that is only being prepared can't be cancelled yet.
                    if let Err(error) = vm.cancel_job(domain).await {
                        tracing::debug!(domain, %error, "cancelling a migration");
                    }
                } else if let Ok(Some(now)) = vm.job(domain).await {
                    report.send_replace(now);
                }
            }
        }
    }
}
