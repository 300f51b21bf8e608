//! What a watch reports.

use std::sync::Arc;

use crate::contract::AgentRecord;
use crate::error::Error;

/// One event of a [`Watch`](super::Watch).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum WatchEvent {
    /// Everyone there is: at the beginning, and again where changes were missed. It replaces whatever was known.
    Listed(Vec<Arc<AgentRecord>>),
    /// An agent registered, for the first time or with something new.
    Registered(Arc<AgentRecord>),
    /// An agent's status changed, or whether it is healthy.
    StatusChanged(Arc<AgentRecord>),
    /// An agent was removed. The record is as it was last.
    Deregistered(Arc<AgentRecord>),
    /// The registry cannot be followed now, and what is known may be out of date. Told once an outage: the watch goes
    /// on trying.
    Interrupted(Error),
    /// After an interruption: it goes on, and nothing was missed. Where something was, there is a
    /// [`WatchEvent::Listed`] instead.
    Resumed,
}
