//! The outcome of a change.

use std::sync::Arc;

use registry_sdk::contract::Owner;

use crate::store::StoredAgent;

/// The outcome of a change.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    /// The agent was changed. Contains the new state.
    Applied(Arc<StoredAgent>),
    /// At most the time of the last heartbeat was changed. Contains the new state.
    Unchanged(Arc<StoredAgent>),
    /// An edit of the row by another program was adopted, and there was nothing else to change.
    ///
    /// Contains the new state.
    Adopted(Arc<StoredAgent>),
    /// The agent was removed. Contains its last state.
    Removed(Arc<StoredAgent>),
    /// Another program had deleted the row, which was turned into a removal. Contains the agent's last state.
    FoundDeleted(Arc<StoredAgent>),
    /// The calling process does not own the agent's id. Nothing visible was changed.
    Superseded {
        owner: Owner,
        /// Whether the calling process was shut down rather than superseded.
        has_ended: bool,
    },
    /// The agent is not registered.
    NotFound,
    /// Another session has locked the agent's row. Nothing was changed.
    Locked,
}

impl Outcome {
    /// Returns the agent's new state, unless it is gone or the change was rejected.
    pub(crate) fn agent(&self) -> Option<&Arc<StoredAgent>> {
        match self {
            Self::Applied(agent) | Self::Unchanged(agent) | Self::Adopted(agent) => Some(agent),
            _ => None,
        }
    }
}
