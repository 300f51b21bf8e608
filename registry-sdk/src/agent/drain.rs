//! Draining: an agent that takes no new tasks, finishes those under way, and shuts down.

use std::time::Duration;

use tokio::time::timeout;

use super::handle::Agent;
use super::shared::Wants;
use crate::retry::RetryPolicy;

impl Agent {
    /// Drains the agent, however long its tasks take: see [`Agent::drain_within`].
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

    /// Takes the agent out of work, waits until its [`TaskCounter`](super::TaskCounter) counts no task, for up to a limit, and
    /// shuts it down as [`Agent::shutdown`] does, which takes up to five seconds more.
    ///
    /// The registry is asked for maintenance of this process, with the reason `draining`: searches and selections pass the agent
    /// over. Heartbeats go on meanwhile. If the registry is away, the agent drains without it, and the loop goes on asking. A
    /// registry that knows no maintenance is sent the status `offline`; one with the six basic operations alone is sent nothing.
    ///
    /// The SDK stops no task: one may arrive from a caller that chose the agent a moment ago. The agent's own server refuses it
    /// by [`Agent::is_draining`], and `HealthEndpoint` says that the agent is unhealthy. A task that
    /// begins all the same is waited for, too.
    ///
    /// # Cancel safety
    /// If the caller gives up, the agent stays out of work and keeps its heartbeats until it is shut down.
    pub async fn drain_within(&self, limit: Duration) {
        let shared = self.shared();
        shared.tasks.drain();
        let (agent_id, active_tasks) = (&shared.agent_id, shared.tasks.active());
        tracing::info!(agent_id, active_tasks, "draining");
        let drained = async {
            // Tasks that arrive until the registry has answered are waited for. The loop logs a failure, and tries again.
            let _ = shared.call(Wants::Maintenance, &RetryPolicy::none()).await;
            shared.tasks.idle().await;
        };
        if timeout(limit, drained).await.is_err() {
            let active_tasks = shared.tasks.active();
            tracing::warn!(agent_id, active_tasks, ?limit, "not drained in time: shutting down");
        }
        self.shutdown().await;
    }

    /// Whether the agent drains, so that its own server should refuse new tasks, with 503 and `Retry-After`.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.shared().tasks.is_draining()
    }
}
