//! Queries for agents, and the policies of choosing one.

use std::collections::HashSet;
use std::time::Duration;

use crate::query::{MetadataFilter, SearchQuery};

/// Which of the candidates gets a task.
///
/// The best matches come first, by the registry's score; among those that match equally well the policy decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Policy {
    /// Of two that are drawn at random, the one that would probably do the task sooner (the power of two choices:
    /// Mitzenmacher, 2001, <https://doi.org/10.1109/71.963420>): by the tasks that this orchestrator has in flight at the agent,
    /// their latency, and the load that the agent reported with its heartbeats. To ask the least loaded of all would send all
    /// orchestrators to the same agent until its next heartbeat.
    #[default]
    LeastLoaded,
    /// The registry's own order, also among equals: the agent with the latest heartbeat gets all tasks until the next heartbeat of
    /// another one.
    Rank,
    /// Each in turn, by id.
    RoundRobin,
    /// At random.
    Random,
    /// The one that got its last task the longest ago.
    LeastRecentlyUsed,
}

/// Who says whether an agent is healthy.
///
/// Each agent is asked once. If the registry's answer is old, because it or its database is away, the agents themselves are
/// asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum HealthSource {
    /// The search, which needs no further request. If a match does not say it (some registries do not), the registry is asked as
    /// with [`HealthSource::Registry`].
    #[default]
    Search,
    /// The registry's `GET /health/{id}`.
    Registry,
    /// The agent's own `GET {base_url}/health`: it is healthy if it answers with a success, and does not say in it that
    /// its `status` is `unhealthy`.
    Agent,
}

/// Which agents are looked for. The name of a capability can be used in its place.
///
/// ```
/// use registry_sdk::discovery::{Policy, TaskQuery};
/// let query = TaskQuery::new("code_review").fallback("code_generation").tag("rust").policy(Policy::RoundRobin);
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TaskQuery {
    /// The capability, in words that are searched for.
    pub capability: String,
    /// Capabilities that are used instead, in this order, if no agent can be given a task of those before.
    pub fallbacks: Vec<String>,
    /// Whether the capability and the fallbacks are exact names instead of words.
    pub is_exact: bool,
    /// Tags that the capability has to have, all of them.
    pub tags: Vec<String>,
    /// Values that the agent's metadata has to have, all of them.
    pub metadata: Vec<MetadataFilter>,
    /// Ids of agents that are not selected.
    pub exclude: HashSet<String>,
    /// Which of the candidates gets the task.
    pub policy: Policy,
    /// Who says whether an agent is healthy.
    pub health_source: HealthSource,
    /// Maximum number of health checks at once, if there are any. Default: 3.
    pub max_concurrent_checks: usize,
    /// Time limit of one health check. Default: 2 s.
    pub check_timeout: Duration,
}

impl TaskQuery {
    /// Looks for agents with a capability.
    #[must_use]
    pub fn new(capability: impl Into<String>) -> Self {
        Self {
            capability: capability.into(),
            fallbacks: Vec::new(),
            is_exact: false,
            tags: Vec::new(),
            metadata: Vec::new(),
            exclude: HashSet::new(),
            policy: Policy::default(),
            health_source: HealthSource::default(),
            max_concurrent_checks: 3,
            check_timeout: Duration::from_secs(2),
        }
    }

    /// Adds a capability that is used if no agent can be given a task of those before it.
    #[must_use]
    pub fn fallback(mut self, capability: impl Into<String>) -> Self {
        self.fallbacks.push(capability.into());
        self
    }

    /// Takes the capability and the fallbacks as exact names instead of words.
    #[must_use]
    pub fn exact(mut self) -> Self {
        self.is_exact = true;
        self
    }

    /// Adds a tag that the capability has to have. Agents whose capability lacks it are not searched for; an error names them.
    #[must_use]
    pub fn tag(mut self, tag: impl Into<String>) -> Self {
        self.tags.push(tag.into());
        self
    }

    /// Adds a text, number or boolean that the agent's metadata has to have at a path: see [`SearchQuery::metadata`].
    #[must_use]
    #[expect(clippy::needless_pass_by_value, reason = "numbers and booleans are written as they are")]
    pub fn metadata(mut self, path: impl Into<String>, value: impl ToString) -> Self {
        self.metadata.push(MetadataFilter { path: path.into(), value: value.to_string() });
        self
    }

    /// Excludes an agent.
    #[must_use]
    pub fn exclude(mut self, agent_id: impl Into<String>) -> Self {
        self.exclude.insert(agent_id.into());
        self
    }

    /// Sets which of the candidates gets the task. Default: [`Policy::LeastLoaded`].
    #[must_use]
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Sets who says whether an agent is healthy. Default: [`HealthSource::Search`].
    #[must_use]
    pub fn health_source(mut self, source: HealthSource) -> Self {
        self.health_source = source;
        self
    }

    /// Sets the maximum number of health checks at once; at least one. Each check beyond the first is wasted if the first agent is
    /// healthy. Default: 3.
    #[must_use]
    pub fn max_concurrent_checks(mut self, agents: usize) -> Self {
        self.max_concurrent_checks = agents.max(1);
        self
    }

    /// Sets the time limit of one health check. An agent that does not answer by then is skipped. Default: 2 s.
    #[must_use]
    pub fn check_timeout(mut self, timeout: Duration) -> Self {
        self.check_timeout = timeout;
        self
    }

    /// The search for one of the capabilities.
    pub(super) fn search(&self, capability: &str) -> SearchQuery {
        let mut search =
            if self.is_exact { SearchQuery::exact(capability) } else { SearchQuery::new(capability) };
        search.filter.tags.clone_from(&self.tags);
        search.filter.metadata.clone_from(&self.metadata);
        search
    }

    /// The capabilities in the order in which they are wanted.
    pub(super) fn capabilities(&self) -> impl Iterator<Item = &String> {
        std::iter::once(&self.capability).chain(&self.fallbacks)
    }
}

impl<T: Into<String>> From<T> for TaskQuery {
    fn from(capability: T) -> Self {
        Self::new(capability)
    }
}
