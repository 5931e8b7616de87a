//! Explanations from this coordinator's own journal, for operators.

use crate::journal::Reader;
use anyhow::Context as _;
use jiff::{civil, tz::TimeZone};
use kage_coordinator_core::{
    replay::{Moment, inputs},
    why::{Explanation, Question, explain},
};
use kage_proto::coordinator::v1::{ExplainReply, ExplainRequest};
use std::{
    io::{self, BufReader, Seek as _, SeekFrom},
    sync::Arc,
    thread,
};
use tokio::sync::{Mutex, oneshot};
use tonic::Status;

/// Makes one explanation at a time: each replays a part of the journal.
#[derive(Clone)]
pub struct Why {
    journal: Reader,
    busy: Arc<Mutex<()>>,
}

impl Why {
    /// From this journal.
    pub fn new(journal: Reader) -> Self {
        Self { journal, busy: Arc::default() }
    }

    /// Explains.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED while another is made; FAILED_PRECONDITION with the reason.
    pub async fn explain(&self, request: ExplainRequest) -> Result<ExplainReply, Status> {
        let ExplainRequest { name, at } = request;
        // A client says it in UTC, and with a date.
        let at = (!at.is_empty()).then(|| Moment::parse(&at, &TimeZone::UTC, civil::date(1970, 1, 1)));
        let at = at.transpose().map_err(Status::invalid_argument)?;
        let Ok(turn) = self.busy.clone().try_lock_owned() else {
            return Err(Status::resource_exhausted("another explanation is being made: ask again in a few seconds"));
        };
        let (answer, answered) = oneshot::channel();
        let journal = self.journal.clone();
        thread::Builder::new()
            .name("why".into())
            .spawn(move || {
                let _turn = turn;
                // Of this thread only (Linux): decisions and leases come first.
                let _ = rustix::process::nice(10).is_ok();
                let _ = answer.send(read(&journal, &Question { name, at })).is_err();
            })
            .map_err(|error| Status::resource_exhausted(format!("no thread for it: {error}")))?;
        let explanation = answered.await.map_err(|_| Status::internal("the explanation broke off: see the log"))?;
        let explanation = explanation.map_err(|error| Status::failed_precondition(format!("{error:#}")))?;
        let explanation_json =
            serde_json::to_string(&explanation).map_err(|error| Status::internal(error.to_string()))?;
        Ok(ExplainReply { explanation_json })
    }
}

fn read(journal: &Reader, question: &Question) -> anyhow::Result<Explanation> {
    let files = journal.files()?;
    let open = || {
        let mut lines: Vec<_> = Vec::new();
        for (name, file) in &files {
            let mut file = file;
            file.seek(SeekFrom::Start(0))?;
            lines.push(inputs(name, BufReader::new(file)));
        }
        Ok::<_, io::Error>(lines.into_iter().flatten())
    };
    explain(open, question, env!("CARGO_PKG_VERSION"), None).map_err(anyhow::Error::msg).context("no explanation")
}
