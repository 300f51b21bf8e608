//! Errors of registry operations, as reported to clients.

use registry_sdk::contract::Owner;

use crate::store::StoreError;

/// Error of a registry operation.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The agent is not registered.
    #[error("no agent {0:?} is registered")]
    NotFound(String),
    /// The agent registered no card.
    #[error("agent {0:?} has registered no A2A agent card")]
    NoCard(String),
    /// Another process owns the agent's id.
    #[error(
        "agent {agent_id:?} is owned by another process ({}): if this is a different agent, give it its own id",
        describe_owner(owner)
    )]
    Superseded { agent_id: String, owner: Owner },
    /// The calling process has already reported its own shutdown.
    #[error(
        "this instance of agent {agent_id:?} was shut down: a process that started after that has to register first, \
         with its age"
    )]
    ShutDown { agent_id: String, owner: Owner },
    /// The database is unavailable.
    #[error("the registry's database does not answer, nothing was changed; try again")]
    Unavailable,
    /// The database did not say whether the change was made.
    #[error(
        "the registry's database does not answer, the change may have been made; read the agent, or try again"
    )]
    Unsettled,
    /// Another session has locked the agent's row in the database.
    #[error(
        "another program has locked the row of agent {0:?} in the database, nothing was changed; try again"
    )]
    Locked(String),
    /// A queue is full, or no permits are left.
    #[error("too many requests are waiting, nothing was changed; try again")]
    Overloaded,
    /// Event streams already use half of the connections.
    #[error("too many event streams are open, see --max-connections; ask another server, or try again")]
    TooManyStreams,
    /// The server is shutting down.
    #[error("the server is shutting down, nothing was changed; try again")]
    ShuttingDown,
    /// A bug, such as data that passed validation but is rejected by the database.
    #[error("the request failed because of an internal error")]
    Internal,
}

fn describe_owner(Owner { instance_id, base_url, .. }: &Owner) -> String {
    match instance_id {
        Some(instance_id) => format!("instance {instance_id} at {base_url}"),
        None => format!("at {base_url}"),
    }
}

impl From<&StoreError> for Error {
    fn from(error: &StoreError) -> Self {
        match error {
            StoreError::Unavailable(_) | StoreError::Locked(_) => Self::Unavailable,
            StoreError::Rejected(_) => Self::Internal,
        }
    }
}
