//! The thread that writes the state directory: the driver never waits for a disk.

use crate::{
    driver::Input,
    state::{OwnerState, StateDir},
};
use kage_agent_core::{OwnerMemory, VoterStore, WriterMemory};
use std::{
    io,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
};
use tokio::sync::{mpsc, oneshot};

/// Writes that may wait. A voter answers nothing while one waits, so there are few.
const QUEUE: usize = 256;

/// One write.
#[derive(Debug)]
pub enum Write {
    /// Ends as [`Input::Stored`].
    Voter(u64, VoterStore),
    /// Ends as [`Input::Remembered`].
    Memory(u64, OwnerMemory),
    /// Best effort.
    Owner(OwnerState),
    /// Best effort.
    Writers(WriterMemory),
    /// Answered when all before it has been written, or tried.
    Flush(oneshot::Sender<()>),
}

/// Handle of the thread.
#[derive(Clone, Debug)]
pub struct Storage(SyncSender<Write>);

impl Storage {
    /// Starts the thread.
    ///
    /// # Errors
    /// No thread to be had.
    pub fn spawn(state: StateDir, inputs: mpsc::Sender<Input>) -> io::Result<Self> {
        let (writes, queue) = sync_channel(QUEUE);
        thread::Builder::new()
            .name("storage".into())
            .stack_size(256 << 10)
            .spawn(move || run(&state, &queue, &inputs))?;
        Ok(Self(writes))
    }

    /// Queues a write; false if it was not taken.
    #[must_use]
    pub fn write(&self, write: Write) -> bool {
        self.0.try_send(write).is_ok()
    }
}

fn run(state: &StateDir, queue: &Receiver<Write>, inputs: &mpsc::Sender<Input>) {
    while let Ok(first) = queue.recv() {
        // Each write is the whole: of several that wait only the last counts.
        let (mut voter, mut memory, mut owner, mut writers) = (None, None, None, None);
        let mut flushed = Vec::new();
        for write in std::iter::once(first).chain(queue.try_iter()) {
            match write {
                Write::Voter(version, store) => voter = Some((version, store)),
                Write::Memory(version, wanted) => memory = Some((version, wanted)),
                Write::Owner(state) => owner = Some(state),
                Write::Writers(state) => writers = Some(state),
                Write::Flush(done) => flushed.push(done),
            }
        }
        if let Some((version, store)) = voter {
            let written = state.write_voter(&store);
            if let Err(error) = &written {
                tracing::error!(%error, "this voter can't answer");
            }
            if inputs.blocking_send(Input::Stored { version, ok: written.is_ok() }).is_err() {
                return;
            }
        }
        if let Some((version, memory)) = memory {
            let written = state.write_memory(&memory);
            if let Err(error) = &written {
                tracing::error!(%error, "this agent can't acknowledge a release");
            }
            if inputs.blocking_send(Input::Remembered { version, ok: written.is_ok() }).is_err() {
                return;
            }
        }
        if let Some(writers) = writers
            && let Err(error) = state.write_writers(&writers)
        {
            tracing::error!(%error, "a restart would not know which services are held back by this agent");
        }
        if let Some(owner) = owner
            && let Err(error) = state.write_owner(&owner)
        {
            tracing::error!(%error, "a restart would not know what this agent holds");
        }
        for done in flushed {
            // Whoever asked may have gone.
            let _ = done.send(());
        }
    }
}
