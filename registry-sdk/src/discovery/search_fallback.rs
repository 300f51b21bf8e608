//! Searches of the registry while a directory is out of date.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long the registry is avoided after a search without a response.
const PAUSE: Duration = Duration::from_secs(10);

/// Decides whether selections search the registry instead of a directory. After a failed search, one selection at a time tries
/// again every few seconds, and the others do not wait for it. Clones share the state.
#[derive(Clone, Debug, Default)]
pub(super) struct SearchFallback {
    /// When the last search failed, or when the trial after it began.
    failed_at: Arc<Mutex<Option<Instant>>>,
}

impl SearchFallback {
    /// Returns whether a selection searches the registry.
    pub(super) fn is_wanted(&self) -> bool {
        let mut failed_at = self.failed_at.lock().unwrap_or_else(PoisonError::into_inner);
        let is_wanted = failed_at.is_none_or(|at| at.elapsed() >= PAUSE);
        if is_wanted && failed_at.is_some() {
            *failed_at = Some(Instant::now());
        }
        is_wanted
    }

    /// Records whether the registry responded.
    pub(super) fn record(&self, has_answered: bool) {
        let failed_at = (!has_answered).then(Instant::now);
        *self.failed_at.lock().unwrap_or_else(PoisonError::into_inner) = failed_at;
    }
}
