//! Queries for agents, and the policies for choosing one.

use std::collections::HashSet;
use std::time::Duration;

use crate::query::{MetadataFilter, SearchQuery};

/// Which of the candidates gets a task.
///
/// The best matches come first, by the registry's score. The policy decides among those that match equally well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Policy {
    /// Draws two candidates at random and takes the one that would probably finish sooner, judging by the tasks that this
    /// orchestrator has in flight at the agent, their latency, and the load that the agent reported with its heartbeats.
    ///
    /// This is the power of two choices (Mitzenmacher, 2001, <https://doi.org/10.1109/71.963420>). Choosing the least loaded agent
    /// of all would send every orchestrator to the same agent until its next heartbeat.
    #[default]
    LeastLoaded,
    /// The registry's own order, also among equals: the agent with the latest heartbeat gets all tasks until the next heartbeat
    /// of another one.
    Rank,
    /// Each candidate in turn, by id.
    RoundRobin,
    /// At random.
    Random,
    /// The candidate that has gone longest without a task.
    LeastRecentlyUsed,
}

/// The source of an agent's health.
///
/// Each agent is checked once. If the registry's data is old, because it or its database is unavailable, the agents themselves are
/// asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum HealthSource {
    /// The search, which needs no further request. If a match does not have the health (some registries do not report it), the
    /// registry is asked as with [`HealthSource::Registry`].
    #[default]
    Search,
    /// The registry's `GET /health/{id}`.
    Registry,
    /// The agent's own `GET {base_url}{health_path}` (`/health` by default). The agent is healthy if it responds with a success
    /// that does not report the `status` `unhealthy`, or with 401 or 403. If it has no such path (404, 405, 501), or registered
    /// `probe: off` and so is not asked, the registry's data counts.
    Agent,
}

/// The form of the capability in a [`TaskQuery`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum CapabilityQuery {
    /// Words, all of which the capability has to have.
    #[default]
    Words,
    /// The exact name.
    Name,
    /// A sentence that describes the task. The best match gets the task.
    Sentence,
}

/// The agents that a task needs. The words for a capability can be used in place of a query.
///
/// ```
/// use registry_sdk::discovery::{Policy, TaskQuery};
/// let query = TaskQuery::new("code review").fallback("code generation").tag("rust").policy(Policy::RoundRobin);
/// let query = TaskQuery::exact("code_review");
/// let query = TaskQuery::describe("Look for mistakes in this pull request");
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TaskQuery {
    /// The capability.
    pub capability: String,
    /// Capabilities that are used instead, in this order, if no agent with one of the preceding capabilities can take the task.
    pub fallbacks: Vec<String>,
    /// The form of the capability and the fallbacks.
    pub given_by: CapabilityQuery,
    /// Minimum score of a candidate. Default: 0.1 for a sentence, and 0 otherwise.
    pub min_score: Option<f64>,
    /// Whether an agent is a candidate if only the description of its capability has words of the query. Default: `false`,
    /// because a description may also say what an agent does not do.
    pub description_only: bool,
    /// Tags that the capability has to have, all of them.
    pub tags: Vec<String>,
    /// Values that the agent's metadata has to have, all of them.
    pub metadata: Vec<MetadataFilter>,
    /// Ids of agents that are not selected.
    pub exclude: HashSet<String>,
    /// Which of the candidates gets the task.
    pub policy: Policy,
    /// The source of an agent's health.
    pub health_source: HealthSource,
    /// Maximum number of concurrent health checks, if there are any. Default: 3.
    pub max_concurrent_checks: usize,
    /// Time limit of a health check. Default: 2 s.
    pub check_timeout: Duration,
}

impl TaskQuery {
    /// Default minimum score of a match for a sentence.
    ///
    /// It excludes nearly all tasks that lie outside the field of every registered agent, as `benches/README.md` shows.
    pub const SENTENCE_MIN_SCORE: f64 = 0.1;

    /// Queries for agents with a capability that has all these words.
    #[must_use]
    pub fn new(capability: impl Into<String>) -> Self {
        Self {
            capability: capability.into(),
            fallbacks: Vec::new(),
            given_by: CapabilityQuery::Words,
            min_score: None,
            description_only: false,
            tags: Vec::new(),
            metadata: Vec::new(),
            exclude: HashSet::new(),
            policy: Policy::default(),
            health_source: HealthSource::default(),
            max_concurrent_checks: 3,
            check_timeout: Duration::from_secs(2),
        }
    }

    /// Queries for agents with a capability of exactly this name. Fallbacks are exact names, too.
    #[must_use]
    pub fn exact(capability: impl Into<String>) -> Self {
        Self { given_by: CapabilityQuery::Name, ..Self::new(capability) }
    }

    /// Queries for agents that can do the task that a sentence describes. Fallbacks are sentences, too.
    ///
    /// The best match with at least [`TaskQuery::min_score`] gets the task. Words alone express little of what people mean, so give
    /// capabilities titles and examples. See [`SearchQuery::sentence`] for registries that do not know sentences.
    #[must_use]
    pub fn describe(task: impl Into<String>) -> Self {
        Self { given_by: CapabilityQuery::Sentence, ..Self::new(task) }
    }

    /// Adds a capability that is used if no agent with one of the preceding capabilities can take the task.
    #[must_use]
    pub fn fallback(mut self, capability: impl Into<String>) -> Self {
        self.fallbacks.push(capability.into());
        self
    }

    /// Sets the minimum score of a candidate, between 0 and 1.
    ///
    /// Default: [`TaskQuery::SENTENCE_MIN_SCORE`] for a sentence, and 0 otherwise.
    #[must_use]
    pub fn min_score(mut self, min_score: f64) -> Self {
        self.min_score = Some(min_score);
        self
    }

    /// Sets whether an agent is a candidate if only the description of its capability has words of the query. Default: `false`.
    #[must_use]
    pub fn description_only(mut self, is_candidate: bool) -> Self {
        self.description_only = is_candidate;
        self
    }

    /// Adds a tag that the capability has to have. Agents without it are not searched for, but errors name them.
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

    /// Sets the source of an agent's health. Default: [`HealthSource::Search`].
    #[must_use]
    pub fn health_source(mut self, source: HealthSource) -> Self {
        self.health_source = source;
        self
    }

    /// Sets the maximum number of concurrent health checks, at least one.
    ///
    /// Each check beyond the first is wasted if the first agent is healthy. Default: 3.
    #[must_use]
    pub fn max_concurrent_checks(mut self, agents: usize) -> Self {
        self.max_concurrent_checks = agents.max(1);
        self
    }

    /// Sets the time limit of a health check. An agent that does not respond in time is skipped. Default: 2 s.
    #[must_use]
    pub fn check_timeout(mut self, timeout: Duration) -> Self {
        self.check_timeout = timeout;
        self
    }

    /// Returns the search for one of the capabilities.
    pub(super) fn search(&self, capability: &str) -> SearchQuery {
        let (search, min_score) = match self.given_by {
            CapabilityQuery::Words => (SearchQuery::new(capability), 0.0),
            CapabilityQuery::Name => (SearchQuery::exact(capability), 0.0),
            CapabilityQuery::Sentence => (SearchQuery::sentence(capability), Self::SENTENCE_MIN_SCORE),
        };
        let mut search =
            search.min_score(self.min_score.unwrap_or(min_score)).description_only(self.description_only);
        search.filter.tags.clone_from(&self.tags);
        search.filter.metadata.clone_from(&self.metadata);
        search
    }

    /// Returns the capabilities in order of preference.
    pub(super) fn capabilities(&self) -> impl Iterator<Item = &String> {
        std::iter::once(&self.capability).chain(&self.fallbacks)
    }
}

impl<T: Into<String>> From<T> for TaskQuery {
    fn from(capability: T) -> Self {
        Self::new(capability)
    }
}
