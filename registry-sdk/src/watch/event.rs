//! What a watch reports.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::contract::AgentRecord;
use crate::error::Error;

/// One event of a [`Watch`](super::Watch).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum WatchEvent {
    /// All agents: at the beginning, and again if changes were missed. It replaces whatever was known.
    Listed(Vec<Arc<AgentRecord>>),
    /// An agent registered, for the first time or with something new.
    Registered(Arc<AgentRecord>),
    /// An agent's status changed, or whether it is healthy.
    StatusChanged(Arc<AgentRecord>),
    /// An agent was removed. The record is its last one.
    Deregistered(Arc<AgentRecord>),
    /// The registry cannot be followed now, and what is known may be out of date. Reported once an outage, and once more if the
    /// registry, or something in between, refuses the watch then. The watch goes on trying: see
    /// [`Error::is_refused`] for whether somebody has to mend the credentials.
    Interrupted(Error),
    /// The interruption is over, and nothing was missed. If something was, there is a [`WatchEvent::Listed`] instead.
    Resumed,
}

/// An event, and how old the knowledge behind it is.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) event: WatchEvent,
    pub(crate) known: Known,
}

/// How old something was at a moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    at: Instant,
    age: Duration,
}

impl Known {
    /// Known at this moment, although it was this old already.
    pub(crate) fn with_age(age: Duration) -> Self {
        Self { at: Instant::now(), age }
    }

    pub(crate) fn age(&self) -> Duration {
        self.age.saturating_add(self.at.elapsed())
    }
}
