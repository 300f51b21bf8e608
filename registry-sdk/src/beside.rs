//! Work beside the runtime.

use tokio::task::spawn_blocking;

/// Does work that may take a while for many agents on a thread of its own, while the runtime's tasks go on. `None` if the
/// runtime ends.
///
/// # Panics
/// If the work does.
pub(crate) async fn beside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    match spawn_blocking(work).await {
        Ok(done) => Some(done),
        Err(failed) => match failed.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => None,
        },
    }
}
