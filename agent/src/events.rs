//! What happens on this machine, to whoever watches.

use crate::guard::now;
use kage_proto::agent::v1::{AgentEvent, agent_event::Event};
use tokio::sync::broadcast;

/// A subscriber that is further behind misses the oldest events, and is told how many. The coordinator's, while there is
/// no stream to it: some minutes of a service that keeps failing.
const BACKLOG: usize = 256;

/// Where events are published. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Events(broadcast::Sender<AgentEvent>);

impl Default for Events {
    fn default() -> Self {
        Self(broadcast::channel(BACKLOG).0)
    }
}

impl Events {
    /// Publishes; never blocks.
    pub fn publish(&self, event: Event) {
        // No subscriber is no error.
        let _ = self.0.send(AgentEvent { at_ns: now().as_nanos(), age_ms: 0, event: Some(event) });
    }

    /// From now on.
    #[must_use]
    pub fn subscribe(&self) -> Subscription {
        Subscription(self.0.subscribe())
    }
}

/// A subscriber's end.
#[derive(Debug)]
pub struct Subscription(broadcast::Receiver<AgentEvent>);

impl Subscription {
    /// The next event; `missed` where the subscriber lagged. None: the agent ends.
    pub async fn next(&mut self) -> Option<AgentEvent> {
        match self.0.recv().await {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Lagged(missed)) => {
                Some(AgentEvent { at_ns: now().as_nanos(), age_ms: 0, event: Some(Event::Missed(missed)) })
            }
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

impl Subscription {
    /// An event that waits already.
    pub fn waiting(&mut self) -> Option<AgentEvent> {
        self.0.try_recv().ok()
    }
}
