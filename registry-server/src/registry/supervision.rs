//! Supervision: a task that ends or panics before the shutdown ends the server.
//!
//! A server whose view is no longer updated would keep answering as if all were well, so it is better
//! restarted.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::drain::Drain;

/// Starts tasks, and detects tasks that end too early.
#[derive(Clone, Debug)]
pub(crate) struct Supervisor {
    tasks: TaskTracker,
    /// Precedes the shutdown.
    drain: Arc<Drain>,
    /// Cancelled to request the shutdown.
    shutdown: CancellationToken,
    /// Cancelled to end all tasks at once, even in the middle of their work.
    abort: CancellationToken,
    /// Name of the first task that ended too early.
    failed: watch::Sender<Option<&'static str>>,
}

impl Supervisor {
    pub(crate) fn new(shutdown: CancellationToken) -> Self {
        Self {
            tasks: TaskTracker::new(),
            drain: Arc::default(),
            shutdown,
            abort: CancellationToken::new(),
            failed: watch::Sender::default(),
        }
    }

    pub(crate) fn drain(&self) -> &Arc<Drain> {
        &self.drain
    }

    pub(crate) fn shutdown(&self) -> &CancellationToken {
        &self.shutdown
    }

    /// Starts a task that runs until the shutdown is requested, and is then dropped.
    pub(crate) fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let shutdown = self.shutdown.clone();
        let task = async move {
            // `None` means that the shutdown was requested.
            let _ = shutdown.run_until_cancelled(task).await;
        };
        self.spawn_until(name, self.shutdown.clone(), task);
    }

    /// Starts a task that ends on its own after `end` is cancelled.
    pub(crate) fn spawn_until(
        &self,
        name: &'static str,
        end: CancellationToken,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let (failed, abort) = (self.failed.clone(), self.abort.clone());
        self.tasks.spawn(abort.run_until_cancelled_owned(async move {
            let outcome = AssertUnwindSafe(task).catch_unwind().await;
            if outcome.is_err() || !end.is_cancelled() {
                tracing::error!(
                    task = name,
                    "a task of the server ended unexpectedly, shutting the server down"
                );
                failed.send_if_modified(|failed| failed.replace(name).is_none());
            }
        }));
    }

    /// Waits until a task ends too early, and returns its name. Never returns if none does.
    pub(crate) async fn failure(&self) -> &'static str {
        let mut failed = self.failed.subscribe();
        // The sender lives as long as `self`.
        let failed = failed.wait_for(Option::is_some).await.ok().and_then(|name| *name);
        match failed {
            Some(name) => name,
            None => std::future::pending().await,
        }
    }

    /// Whether a task ended too early.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.borrow().is_some()
    }

    /// Makes `wait` return once all tasks have ended.
    pub(crate) fn close(&self) {
        self.tasks.close();
    }

    /// Waits until all tasks have ended.
    pub(crate) async fn wait(&self) {
        self.tasks.wait().await;
    }

    /// Ends all tasks at once.
    pub(crate) fn abort(&self) {
        self.abort.cancel();
    }
}

#[cfg(test)]
#[allow(clippy::panic, reason = "a task fails by panicking")]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Starts a task, and returns whether it is reported as failed.
    async fn fails(task: impl Future<Output = ()> + Send + 'static) -> bool {
        let supervisor = Supervisor::new(CancellationToken::new());
        supervisor.spawn("test", task);
        let failure = tokio::time::timeout(Duration::from_secs(60), supervisor.failure()).await;
        assert_eq!(failure.is_ok(), supervisor.has_failed());
        failure == Ok("test")
    }

    #[tokio::test(start_paused = true)]
    async fn task_that_panics_or_ends_is_a_failure() {
        assert!(fails(async { panic!("on purpose") }).await);
        assert!(fails(async {}).await);
        assert!(!fails(std::future::pending()).await);
    }

    #[tokio::test(start_paused = true)]
    async fn task_that_ends_at_the_shutdown_is_no_failure() {
        let supervisor = Supervisor::new(CancellationToken::new());
        supervisor.spawn("follower", std::future::pending());
        let closing = CancellationToken::new();
        supervisor.spawn_until("writer", closing.clone(), closing.clone().cancelled_owned());
        supervisor.close();
        supervisor.shutdown().cancel();
        closing.cancel();
        supervisor.wait().await;
        assert!(!supervisor.has_failed());
    }

    #[tokio::test(start_paused = true)]
    async fn abort_ends_hanging_tasks() {
        let supervisor = Supervisor::new(CancellationToken::new());
        supervisor.spawn_until("writer", CancellationToken::new(), std::future::pending());
        supervisor.close();
        supervisor.abort();
        supervisor.wait().await;
        assert!(!supervisor.has_failed());
    }
}
