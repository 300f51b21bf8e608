//! Draining: before a server stops, it sends its clients to other servers.
//!
//! A draining server still answers every request. It reports that it is not ready (`GET /readyz`), closes
//! each connection after the next response, and ends event streams. Load balancers notice this within
//! [`Config::drain_delay`](crate::Config), and only then does the server stop accepting connections.

use tokio::sync::SetOnce;

/// Whether the server is draining.
#[derive(Debug, Default)]
pub(crate) struct Drain(SetOnce<()>);

impl Drain {
    /// Begins to drain the server, which cannot be undone.
    pub(crate) fn begin(&self) {
        // Fails if the drain has already begun.
        let _ = self.0.set(());
    }

    pub(crate) fn has_begun(&self) -> bool {
        self.0.initialized()
    }

    /// Waits until the drain has begun. Cancel safe.
    pub(crate) async fn begun(&self) {
        self.0.wait().await;
    }
}
