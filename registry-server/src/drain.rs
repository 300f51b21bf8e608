//! Draining: before a server stops, it tells its clients to go elsewhere.
//!
//! A drained server still answers everything. It says that it is not ready (`GET /readyz`), closes each connection after
//! its next response, and ends event streams. Load balancers notice within [`Config::drain_delay`](crate::Config), and only
//! then does the server stop accepting connections.

use tokio::sync::SetOnce;

/// Whether the server is being drained.
#[derive(Debug, Default)]
pub(crate) struct Drain(SetOnce<()>);

impl Drain {
    /// Begins to drain the server. There is no way back.
    pub(crate) fn begin(&self) {
        // An error says that it has begun already.
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
