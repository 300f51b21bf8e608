//! Running an agent's work and its registration together.

use std::panic::{AssertUnwindSafe, resume_unwind};
use std::pin::pin;

use futures_util::FutureExt;
use futures_util::future::join;
use tokio::time::{Instant, sleep_until};

use super::handle::{Agent, SHUTDOWN_LIMIT};
use super::timer::DEFAULT_INTERVAL;
use crate::error::Error;

/// The output of the work of [`Agent::run_until`]: nothing, or a `Result`.
#[diagnostic::on_unimplemented(
    message = "the work of an agent ends with `()` or `Result<(), E>`, and not with `{Self}`",
    note = "end an `async` block that loops for ever with `Ok::<(), std::io::Error>(())`"
)]
pub trait WorkOutcome {
    /// Returns the work's error, if it failed.
    fn into_result(self) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;
}

impl WorkOutcome for () {
    fn into_result(self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(())
    }
}

impl<E: Into<Box<dyn std::error::Error + Send + Sync>>> WorkOutcome for Result<(), E> {
    fn into_result(self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.map_err(Into::into)
    }
}

impl Agent {
    /// Runs the agent's own work and keeps the agent registered, until the work ends or the process receives Ctrl-C or SIGTERM.
    /// Then shuts the agent down.
    ///
    /// The work starts at once. Meanwhile the agent registers, and sends heartbeats at the declared interval (default: 30 s).
    /// `work` is a future, or converts into one like `axum::serve(..)`. If the work is done elsewhere, pass
    /// [`shutdown_signal`].
    ///
    /// After a signal the work has five seconds to end by itself, as `axum::serve(..).with_graceful_shutdown(..)` does. Then,
    /// or at a second signal, it is dropped.
    ///
    /// Afterwards, Ctrl-C and SIGTERM no longer end the process by themselves: see [`shutdown_signal`].
    ///
    /// # Errors
    /// - [`Error::Work`] with the work's own error.
    /// - [`Error::Invalid`], [`Error::Denied`] or [`Error::Config`] at the start, if a field of the registration is out of its
    ///   limits, the registry refuses the agent in the contract's own form, or the client is configured wrongly, for example with
    ///   an invalid token. Then the agent is shut down, and the work is dropped.
    /// - [`Error::Config`] if the declared interval is shorter than a millisecond or longer than a day, and [`Error::ShutDown`] if
    ///   the agent was shut down before. Then the work does not start.
    ///
    /// # Panics
    /// If the work panics, after the agent was shut down.
    ///
    /// # Cancel safety
    /// Dropping the future drops the work. Heartbeats continue until the agent is dropped or shut down.
    ///
    /// ```no_run
    /// # #[cfg(feature = "axum")]
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use registry_sdk::contract::{Capability, Registration};
    /// use registry_sdk::{Agent, RegistryClient};
    ///
    /// let client = RegistryClient::new("http://127.0.0.1:8009")?;
    /// let registration = Registration::new("docs", "Documentation Writer", "http://docs:8004")
    ///     .capability(Capability::new("documentation"));
    /// let listener = tokio::net::TcpListener::bind("0.0.0.0:8004").await?;
    /// let app = axum::Router::new(/* … the agent's own routes … */);
    /// Agent::new(client, registration).run_until(axum::serve(listener, app)).await?;
    /// # Ok(())
    /// # }
    /// # #[cfg(not(feature = "axum"))]
    /// # fn main() {}
    /// ```
    pub async fn run_until<W>(&self, work: W) -> Result<(), Error>
    where
        W: IntoFuture,
        W::Output: WorkOutcome,
    {
        let signalled = shutdown_signal();
        self.start_heartbeat(self.registration().heartbeat_interval.unwrap_or(DEFAULT_INTERVAL))?;
        let mut work = pin!(AssertUnwindSafe(work.into_future()).catch_unwind());
        let refused = pin!(self.refused());
        let outcome = tokio::select! {
            outcome = &mut work => Some(outcome),
            () = signalled => {
                tracing::info!(agent_id = self.agent_id(), "asked to end: shutting down");
                let deadline = Instant::now() + SHUTDOWN_LIMIT;
                let last_of_work = async {
                    tokio::select! {
                        outcome = &mut work => Some(outcome),
                        () = sleep_until(deadline) => None,
                        () = shutdown_signal() => None,
                    }
                };
                join(self.shutdown(), last_of_work).await.1
            }
            error = refused => {
                self.shutdown().await;
                return Err(error);
            }
        };
        self.shutdown().await;
        let outcome = match outcome {
            Some(Err(panic)) => resume_unwind(panic),
            Some(Ok(outcome)) => outcome.into_result(),
            None => Ok(()),
        };
        outcome.map_err(|error| Error::Work { source: error.into() })
    }

    /// Completes with an error if the registry refuses the agent at the start. Otherwise never completes.
    async fn refused(&self) -> Error {
        match self.register_with_retry().await {
            // The agent was shut down, but the work may have something to finish.
            Ok(_) | Err(Error::ShutDown) => std::future::pending().await,
            Err(error) => error,
        }
    }
}

/// Waits for Ctrl-C or, on Unix, SIGTERM. Signals count from this call on, even before the future is first polled.
///
/// After the first call, these signals no longer end the process by themselves, even once the future has completed or was
/// dropped: Tokio never removes its signal handlers.
///
/// If neither signal can be waited for, logs an error and never completes.
///
/// # Panics
/// If called outside of a Tokio runtime.
pub fn shutdown_signal() -> impl Future<Output = ()> + Send + 'static {
    #[cfg(unix)]
    let signals = {
        use tokio::signal::unix::{SignalKind, signal};
        [("Ctrl-C", signal(SignalKind::interrupt())), ("SIGTERM", signal(SignalKind::terminate()))]
    };
    #[cfg(windows)]
    let signals = [("Ctrl-C", tokio::signal::windows::ctrl_c())];
    async move {
        let waiting = signals.map(|(name, signal)| {
            Box::pin(async move {
                match signal {
                    Ok(mut signal) => {
                        signal.recv().await;
                    }
                    Err(error) => {
                        tracing::error!(%error, "cannot wait for {name}");
                        std::future::pending::<()>().await;
                    }
                }
            })
        });
        futures_util::future::select_all(waiting).await;
    }
}
