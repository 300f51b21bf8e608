//! What an orchestrator looks for, and how it chooses.

use std::collections::HashSet;
use std::time::Duration;

/// Who is asked first among the agents that can do a task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Policy {
    /// The best match: the registry's own order.
    #[default]
    Rank,
    /// Each in turn, by id.
    RoundRobin,
    /// Any, at random.
    Random,
    /// The one that was chosen the longest ago.
    LeastRecentlyUsed,
    /// Of two that are drawn at random, the one with the lower load, as agents tell it with their heartbeats (the
    /// power of two choices: Mitzenmacher, 2001, <https://doi.org/10.1109/71.963420>). Asking for the least loaded of
    /// all would send everybody to the same one until its next heartbeat.
    LeastLoaded,
}

/// Whose word on an agent's health counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum HealthSource {
    /// What the search said: no further request.
    Search,
    /// The registry's `GET /health/{id}`.
    #[default]
    Registry,
    /// The agent's own `GET {base_url}/health`: healthy where it answers with a success, and does not say in it that
    /// its `status` is `unhealthy`.
    Agent,
}

/// What to look for. A capability's name alone is one, too.
///
/// ```
/// use registry_sdk::discovery::{Policy, TaskQuery};
/// let query = TaskQuery::new("code_review").fallback("code_generation").tag("rust").policy(Policy::RoundRobin);
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TaskQuery {
    /// What the agent has to be able to do, in words that are searched for.
    pub capability: String,
    /// What will do as well, in this order, where no healthy agent can do that.
    pub fallbacks: Vec<String>,
    /// Tags that the capability has to have, all of them.
    pub tags: Vec<String>,
    /// Agents that are not wanted.
    pub exclude: HashSet<String>,
    /// Who is asked first.
    pub policy: Policy,
    /// Whose word on health counts.
    pub health_source: HealthSource,
    /// How many agents are asked for their health at once. Default: 32.
    pub max_concurrent_checks: usize,
    /// How long one health check may take. Default: 2 s.
    pub check_timeout: Duration,
}

impl TaskQuery {
    /// Looks for agents that can do something.
    #[must_use]
    pub fn new(capability: impl Into<String>) -> Self {
        Self {
            capability: capability.into(),
            fallbacks: Vec::new(),
            tags: Vec::new(),
            exclude: HashSet::new(),
            policy: Policy::Rank,
            health_source: HealthSource::Registry,
            max_concurrent_checks: 32,
            check_timeout: Duration::from_secs(2),
        }
    }

    /// Adds a capability that will do as well, where no healthy agent has those before it.
    #[must_use]
    pub fn fallback(mut self, capability: impl Into<String>) -> Self {
        self.fallbacks.push(capability.into());
        self
    }

    /// Adds a tag that the capability has to have.
    #[must_use]
    pub fn tag(mut self, tag: impl Into<String>) -> Self {
        self.tags.push(tag.into());
        self
    }

    /// Leaves an agent out.
    #[must_use]
    pub fn exclude(mut self, agent_id: impl Into<String>) -> Self {
        self.exclude.insert(agent_id.into());
        self
    }

    /// Sets who is asked first.
    #[must_use]
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Sets whose word on health counts.
    #[must_use]
    pub fn health_source(mut self, source: HealthSource) -> Self {
        self.health_source = source;
        self
    }

    /// Sets how many agents are asked for their health at once; at least one.
    #[must_use]
    pub fn max_concurrent_checks(mut self, agents: usize) -> Self {
        self.max_concurrent_checks = agents.max(1);
        self
    }

    /// Sets how long one health check may take. An agent that is not heard of by then is passed over.
    #[must_use]
    pub fn check_timeout(mut self, timeout: Duration) -> Self {
        self.check_timeout = timeout;
        self
    }
}

impl<T: Into<String>> From<T> for TaskQuery {
    fn from(capability: T) -> Self {
        Self::new(capability)
    }
}
