//! Draining: the agent takes no new tasks, finishes its current tasks, and shuts down.

use std::time::Duration;

use tokio::time::timeout;

use super::handle::Agent;
use super::shared::Wants;
use crate::retry::RetryPolicy;

impl Agent {
    /// Drains the agent without a time limit, then shuts it down for good: see [`Agent::drain_within`].
    ///
    /// ```no_run
    /// # async fn example(agent: registry_sdk::Agent) {
    /// let task = agent.tasks().begin();
    /// tokio::spawn(async move {
    ///     // … the work …
    ///     drop(task);
    /// });
    /// // Returns when the task is done and the agent is shut down.
    /// agent.drain().await;
    /// # }
    /// ```
    pub async fn drain(&self) {
        self.drain_within(Duration::MAX).await;
    }

    /// Takes the agent out of service, waits up to a limit until its [`TaskCounter`](super::TaskCounter) counts no tasks, and
    /// shuts it down for good like [`Agent::shutdown`], which takes up to five seconds more.
    ///
    /// The SDK asks the registry for maintenance of this process, with the reason `draining`, so that searches and
    /// selections skip the agent. Heartbeats continue. If the registry is unavailable, the agent drains anyway, and, while
    /// heartbeats are on, the SDK retries the request. On a registry without maintenance, it sets the status `offline`. A
    /// registry with only the six basic operations offers no way to report a drain.
    ///
    /// The SDK stops no tasks. A caller that has just chosen the agent may still send one, so the agent's own server should
    /// check [`Agent::is_draining`] and refuse it; `HealthEndpoint` reports the agent as unhealthy. A task that begins anyway
    /// is waited for as well.
    ///
    /// # Cancel safety
    /// If the caller gives up, the agent stays out of service and continues its heartbeats until it is shut down.
    pub async fn drain_within(&self, limit: Duration) {
        let shared = self.shared();
        shared.tasks.drain();
        let (agent_id, active_tasks) = (&shared.agent_id, shared.tasks.active());
        tracing::info!(agent_id, active_tasks, "draining");
        let drained = async {
            // Tasks that arrive before the registry has responded are waited for. The loop logs a failure and retries.
            let _ = shared.call(Wants::Maintenance, &RetryPolicy::none()).await;
            shared.tasks.idle().await;
        };
        if timeout(limit, drained).await.is_err() {
            let active_tasks = shared.tasks.active();
            tracing::warn!(agent_id, active_tasks, ?limit, "not drained in time: shutting down");
        }
        self.shutdown().await;
    }

    /// Returns whether the agent is draining. Its own server should then refuse new tasks with 503 and `Retry-After`.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.shared().tasks.is_draining()
    }
}
