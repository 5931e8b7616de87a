//! A changed configuration: read, checked, and given to the core; or nothing is changed, and it is said why.

use crate::driver::{Handle, Input};
use kage_coordinator_core::{
    Event,
    config::{Cluster, reload::Changes},
};
use kage_proto::coordinator::v1::ReloadReply;
use std::path::PathBuf;
use tokio::sync::oneshot;
use tonic::Status;

/// Reads the file again, on SIGHUP or for an operator.
#[derive(Clone)]
pub struct Reloader {
    handle: Handle,
    file: PathBuf,
}

impl Reloader {
    /// Of this file.
    pub fn new(handle: Handle, file: PathBuf) -> Self {
        Self { handle, file }
    }

    /// Apply what changed, or only say what would.
    ///
    /// # Errors
    /// A file that can't be read or has faults; a change that is refused. Nothing was changed then.
    pub async fn reload(&self, dry_run: bool, force: bool) -> Result<ReloadReply, Status> {
        let file = self.file.display();
        let text = tokio::fs::read_to_string(&self.file).await.map_err(|error| {
            Status::failed_precondition(format!("nothing was changed: {file} can't be read: {error}"))
        })?;
        let cluster = Cluster::parse_file(&self.file, &text)
            .map_err(|error| Status::invalid_argument(format!("nothing was changed: {file} has faults:\n{error}")))?;
        let asked = cluster.clone();
        let (changes, refused) = self.handle.query(move |core, _| core.plan_reload(&asked, force)).await?;
        let Changes { applied, needs_restart, .. } = changes;
        let reply = ReloadReply { changes: applied, needs_restart, refused };
        if dry_run {
            return Ok(reply);
        }
        let (done, ended) = oneshot::channel();
        let event = Box::new(move |command| Event::Reload { command, cluster: Box::new(cluster), force });
        self.handle.send(Input::Command(event, done)).await;
        ended
            .await
            .map_err(|_| Status::unavailable("the coordinator is stopping"))?
            .map_err(|why| Status::failed_precondition(format!("nothing was changed: {why}")))?;
        Ok(reply)
    }

    /// On SIGHUP: what came of it goes to the log.
    pub async fn on_signal(&self) {
        match self.reload(false, false).await {
            Ok(reply) if reply.changes.is_empty() && reply.needs_restart.is_empty() => {
                tracing::info!(file = %self.file.display(), "read again: nothing has changed");
            }
            // Each change is noted by the core.
            Ok(_) => tracing::info!(file = %self.file.display(), "read again and applied"),
            Err(status) => status.message().lines().for_each(|line| tracing::error!("{line}")),
        }
    }
}
