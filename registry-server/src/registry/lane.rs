//! A database session used by one task for one purpose.
//!
//! A session whose operation failed or timed out is dropped without awaiting anything, and the next operation
//! opens a new one. So a hanging connection delays nothing else.

use std::time::Duration;

use super::shared::Shared;
use crate::store::{Purpose, Result, Session, StoreError};

/// Timeout for opening a session.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// A task's idle session, if there is one.
pub(super) struct Lane {
    purpose: Purpose,
    idle: Option<LaneSession>,
}

/// A session in use. Dropped unless it is returned to its lane.
pub(super) struct LaneSession {
    pub(super) session: Box<dyn Session>,
    generation: u64,
    /// Whether the session was just opened.
    pub(super) is_new: bool,
}

impl Lane {
    pub(super) fn new(purpose: Purpose) -> Self {
        Self { purpose, idle: None }
    }

    /// Whether there is an idle session, which may have been lost unnoticed.
    pub(super) fn has_session(&self) -> bool {
        self.idle.is_some()
    }

    /// Takes the idle session, or opens a new one.
    pub(super) async fn take(&mut self, shared: &Shared) -> Result<LaneSession> {
        let generation = shared.generation();
        if let Some(session) = self.idle.take().filter(|session| session.generation == generation) {
            return Ok(LaneSession { is_new: false, ..session });
        }
        let session = timed(CONNECT_TIMEOUT, shared.database.connect(self.purpose)).await?;
        Ok(LaneSession { session, generation, is_new: true })
    }

    /// Returns a session whose last operation succeeded.
    pub(super) fn give_back(&mut self, session: LaneSession) {
        self.idle = Some(session);
    }
}

/// Runs a database operation with a timeout.
pub(super) async fn timed<T>(limit: Duration, operation: impl Future<Output = Result<T>>) -> Result<T> {
    let timed_out = |_| StoreError::Unavailable(format!("no response within {limit:?}").into());
    tokio::time::timeout(limit, operation).await.map_err(timed_out)?
}
