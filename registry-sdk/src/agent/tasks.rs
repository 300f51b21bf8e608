//! Counting the agent's tasks, so that its heartbeats report its load.

use std::sync::Arc;

use tokio::sync::watch;

use crate::contract::Heartbeat;

/// A counter of an agent's tasks.
///
/// From the first task on, or once a capacity or a load is set, heartbeats report the agent's load, so that orchestrators can
/// choose less busy agents.
///
/// A counter is cheap to clone, and all clones count together.
///
/// ```
/// # use registry_sdk::{Agent, RegistryClient, contract::Registration};
/// # let client = RegistryClient::new("http://127.0.0.1:8009")?;
/// # let agent = Agent::new(client, Registration::new("a", "Agent", "http://a:8000"));
/// let tasks = agent.tasks();
/// tasks.set_capacity(4);
/// let task = tasks.begin();
/// assert_eq!((tasks.active(), tasks.load()), (1, Some(0.25)));
/// drop(task);
/// assert_eq!(tasks.active(), 0);
/// # Ok::<(), registry_sdk::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct TaskCounter {
    counts: Arc<watch::Sender<Counts>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    active: u32,
    /// Whether any task was ever counted.
    is_used: bool,
    /// Maximum number of simultaneous tasks, if it was set.
    capacity: Option<u32>,
    /// The load that the agent set itself.
    load: Option<f64>,
    /// Whether the agent takes no new tasks.
    is_draining: bool,
}

/// A task in progress. It ends when the guard is dropped.
#[derive(Debug)]
#[must_use = "the task counts as ended as soon as this is dropped"]
pub struct TaskGuard {
    counter: TaskCounter,
}

impl TaskCounter {
    /// Counts a task until the guard is dropped.
    pub fn begin(&self) -> TaskGuard {
        self.counts.send_modify(|counts| {
            counts.active = counts.active.saturating_add(1);
            counts.is_used = true;
        });
        TaskGuard { counter: self.clone() }
    }

    /// Returns the number of tasks in progress.
    #[must_use]
    pub fn active(&self) -> u32 {
        self.counts().active
    }

    /// Sets how many tasks the agent can work on at once, at least one.
    ///
    /// The load is then the fraction of this capacity that is in use.
    pub fn set_capacity(&self, tasks: u32) {
        self.counts.send_modify(|counts| counts.capacity = Some(tasks.max(1)));
    }

    /// Sets the load by a measure of the agent's own, from 0 to 1. The number of tasks then has no influence on it.
    pub fn set_load(&self, load: f64) {
        self.counts.send_modify(|counts| counts.load = Some(load.clamp(0.0, 1.0)));
    }

    /// Returns the fraction of the agent's capacity that is in use, from 0 to 1; `None` if neither a capacity nor a load was
    /// set.
    #[must_use]
    pub fn load(&self) -> Option<f64> {
        let counts = self.counts();
        let of_capacity = |capacity: u32| (f64::from(counts.active) / f64::from(capacity)).min(1.0);
        counts.load.or_else(|| counts.capacity.map(of_capacity))
    }

    /// Adds the load and the number of tasks to a heartbeat, as far as they are known.
    pub(super) fn add_to(&self, mut beat: Heartbeat) -> Heartbeat {
        beat.load = self.load();
        let counts = self.counts();
        beat.active_tasks = (counts.is_used || counts.capacity.is_some()).then_some(counts.active);
        beat
    }

    /// Waits until no task is in progress. Another one may begin at once.
    ///
    /// Cancel safe.
    pub async fn idle(&self) {
        // Waiting fails only without a sender, and `self` is one.
        let _ = self.counts.subscribe().wait_for(|counts| counts.active == 0).await;
    }

    /// Returns whether the agent is draining: see [`Agent::drain`](super::Agent::drain).
    ///
    /// Its own server should then refuse new tasks with 503 and `Retry-After`, so that callers try another agent at once. A
    /// task that begins anyway is counted.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.counts().is_draining
    }

    pub(super) fn drain(&self) {
        self.counts.send_modify(|counts| counts.is_draining = true);
    }

    fn counts(&self) -> Counts {
        *self.counts.borrow()
    }
}

impl Drop for TaskGuard {
    fn drop(&mut self) {
        self.counter.counts.send_modify(|counts| counts.active = counts.active.saturating_sub(1));
    }
}
