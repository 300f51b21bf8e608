//! What became of a change.

use std::sync::Arc;

use registry_sdk::contract::Owner;

use crate::store::StoredAgent;

/// The result of a change.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    /// The agent was changed. Contains the agent as it is now.
    Applied(Arc<StoredAgent>),
    /// There was nothing to change but the time of the last heartbeat. Contains the agent as it is now.
    Unchanged(Arc<StoredAgent>),
    /// Another program had written the agent's row, which became a change. There was nothing else to change. Contains the
    /// agent as it is now.
    Adopted(Arc<StoredAgent>),
    /// The agent was removed. Contains its last state.
    Removed(Arc<StoredAgent>),
    /// Another program had deleted the agent's row, which became a removal. Contains its last state.
    FoundDeleted(Arc<StoredAgent>),
    /// The calling process does not own the agent's id; nothing visible was changed.
    Superseded {
        owner: Owner,
        /// Whether the calling process was shut down rather than superseded.
        has_ended: bool,
    },
    /// The agent is not registered.
    NotFound,
    /// Somebody else has locked the agent's row; nothing was changed.
    Locked,
}

impl Outcome {
    /// Returns the agent as it is now, unless it is gone or the change was refused.
    pub(crate) fn agent(&self) -> Option<&Arc<StoredAgent>> {
        match self {
            Self::Applied(agent) | Self::Unchanged(agent) | Self::Adopted(agent) => Some(agent),
            _ => None,
        }
    }
}
