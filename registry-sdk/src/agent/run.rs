//! An agent's whole life in one call.

use std::time::Duration;

use super::Agent;
use crate::error::Error;

/// How often heartbeats come where the registration declares nothing.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(30);

impl Agent {
    /// Registers, sends heartbeats at the declared interval (30 s where none is declared) while `work` runs,
    /// and shuts down in order when it ends. Answers with what `work` gave.
    ///
    /// `work` may be the agent's server, or [`shutdown_signal`] where that runs in a task of its own.
    ///
    /// # Errors
    /// As [`Agent::register_with_retry`]: only what no further attempt would mend. Then `work` has not begun.
    ///
    /// # Cancel safety
    /// Where it is dropped, so are `work` and the heartbeat loop, without a word to the registry.
    ///
    /// ```no_run
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), registry_sdk::Error> {
    /// use registry_sdk::contract::{Capability, Registration};
    /// use registry_sdk::{Agent, RegistryClient, shutdown_signal};
    ///
    /// let client = RegistryClient::new("http://127.0.0.1:8009")?;
    /// let registration = Registration::new("docs", "Documentation Writer", "http://docs:8004")
    ///     .capability(Capability::new("documentation"));
    /// Agent::new(client, registration).run_until(shutdown_signal()).await
    /// # }
    /// ```
    pub async fn run_until<T>(&self, work: impl Future<Output = T>) -> Result<T, Error> {
        self.register_with_retry().await?;
        self.start_heartbeat(self.registration().heartbeat_interval.unwrap_or(DEFAULT_INTERVAL))?;
        let outcome = work.await;
        self.shutdown().await;
        Ok(outcome)
    }
}

/// Waits for Ctrl-C or, on Unix, SIGTERM. Where neither can be waited for it never ends, which is logged.
pub async fn shutdown_signal() {
    let interrupted = async {
        if let Err(error) = tokio::signal::ctrl_c().await {
            tracing::error!(%error, "cannot wait for Ctrl-C");
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = interrupted => {}
        () = terminated() => {}
    }
}

#[cfg(unix)]
async fn terminated() {
    match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        Ok(mut signal) => {
            signal.recv().await;
        }
        Err(error) => {
            tracing::error!(%error, "cannot wait for SIGTERM");
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(not(unix))]
async fn terminated() {
    std::future::pending::<()>().await;
}
