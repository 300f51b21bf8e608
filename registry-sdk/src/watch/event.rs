//! The events of a watch.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::contract::AgentRecord;
use crate::error::Error;

/// An event of a [`Watch`](super::Watch).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum WatchEvent {
    /// All agents: at the start, and again if changes were missed. Replaces everything that was known.
    Listed(Vec<Arc<AgentRecord>>),
    /// An agent registered for the first time, or with a changed registration.
    Registered(Arc<AgentRecord>),
    /// An agent's status, maintenance or health changed.
    StatusChanged(Arc<AgentRecord>),
    /// An agent was removed. The record is its last one.
    Deregistered(Arc<AgentRecord>),
    /// The registry cannot be followed now, so known data may be out of date. Reported once per outage, and once more if the
    /// registry, or something in between, begins to refuse the watch. The watch keeps trying; [`Error::is_refused`] returns
    /// whether somebody may have to fix the credentials.
    Interrupted(Error),
    /// The interruption is over, and no change was missed. If changes were missed, there is a [`WatchEvent::Listed`] instead.
    Resumed,
}

/// An event, and the age of the data behind it.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) event: WatchEvent,
    pub(crate) known: Known,
}

/// The age of data at a moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    at: Instant,
    age: Duration,
}

impl Known {
    /// Creates the age of data that is this old now.
    pub(crate) fn with_age(age: Duration) -> Self {
        Self { at: Instant::now(), age }
    }

    pub(crate) fn age(&self) -> Duration {
        self.age.saturating_add(self.at.elapsed())
    }
}
