//! The state of a directory.

use std::time::SystemTime;

use crate::error::Error;

/// Whether a [`Directory`](super::Directory) follows its registry.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), registry_sdk::Error> {
/// use registry_sdk::discovery::DirectoryState;
/// use registry_sdk::{Directory, RegistryClient};
///
/// let directory = Directory::follow(&RegistryClient::new("http://127.0.0.1:8009")?);
/// match directory.state() {
///     DirectoryState::Connecting | DirectoryState::Following => {}
///     DirectoryState::Interrupted { since, error } => println!("unavailable since {since:?}: {error}"),
///     DirectoryState::Refused { error, .. } => println!("the registry refuses: {error}"),
///     other => println!("{other:?}"),
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum DirectoryState {
    /// Nothing was listed yet, and nothing has failed.
    Connecting,
    /// The snapshot is kept up to date.
    Following,
    /// The registry cannot be followed. The directory keeps trying.
    Interrupted {
        /// When the snapshot was last known to be up to date or, if there is none, when the first attempt failed.
        since: SystemTime,
        /// The error.
        error: Error,
    },
    /// The registry, or something in between, refuses the directory: it does not accept the credentials, for example, or has no
    /// `GET /events`. The directory keeps trying.
    Refused {
        /// As in [`Interrupted`](Self::Interrupted).
        since: SystemTime,
        /// The refusal.
        error: Error,
    },
    /// The client is configured wrongly, so that no attempt can succeed.
    Ended {
        /// The configuration error.
        error: Error,
    },
}

impl DirectoryState {
    pub(super) fn interrupted(since: SystemTime, error: Error) -> Self {
        if error.refuses_watch() {
            Self::Refused { since, error }
        } else {
            Self::Interrupted { since, error }
        }
    }

    /// Records that there will be no further attempt.
    pub(super) fn end(&mut self) {
        if let Self::Interrupted { error, .. } | Self::Refused { error, .. } = self {
            *self = Self::Ended { error: error.clone() };
        }
    }

    pub(super) fn is_ended(&self) -> bool {
        matches!(self, Self::Ended { .. })
    }
}
