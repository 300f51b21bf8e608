//! Work that runs beside the runtime.

use tokio::task::spawn_blocking;

/// Runs slow work on a thread of its own, so that the runtime's tasks continue. Returns `None` if the runtime ends.
///
/// # Panics
/// If the work panics.
pub(crate) async fn beside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    match spawn_blocking(work).await {
        Ok(done) => Some(done),
        Err(failed) => match failed.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => None,
        },
    }
}
