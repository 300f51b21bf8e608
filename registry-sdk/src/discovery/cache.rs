//! A cache in front of a client, for discovery that survives an outage of the registry.

use std::time::Duration;

use super::response_cache::{Cached, Lifetimes, ResponseCache};
use crate::client::RegistryClient;
use crate::contract::{AgentRecord, AgentStatus, CapabilityMatch};
use crate::error::Error;
use crate::query::{ListQuery, Page, SearchQuery};

/// A [`RegistryClient`] for discovery that caches responses.
///
/// A fresh response is returned without a request, and concurrent callers with the same query share one request. While the
/// registry is unavailable, hangs or asks to slow down, the cache returns the last good response with its age. It treats responses
/// that the registry itself gives from memory, because its database is unavailable, in the same way.
///
/// A cache is cheap to clone, and all clones share it. Its methods are cancel safe, and have to be called within a Tokio
/// runtime.
///
/// ```no_run
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), registry_sdk::Error> {
/// use registry_sdk::RegistryClient;
/// use registry_sdk::discovery::{DiscoveryCache, Freshness};
///
/// let cache = DiscoveryCache::new(RegistryClient::new("http://127.0.0.1:8009")?);
/// let found = cache.search_capabilities("security scan").await?;
/// if let Freshness::Stale { age } = found.freshness {
///     println!("the registry or its database is unavailable; this is {age:?} old");
/// }
/// for agent in found.iter() {
///     println!("{} at {}", agent.agent_id, agent.base_url);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct DiscoveryCache {
    client: RegistryClient,
    searches: ResponseCache<String, Vec<CapabilityMatch>>,
    lists: ResponseCache<ListQuery, Page>,
    agents: ResponseCache<String, AgentRecord>,
}

/// A builder of a [`DiscoveryCache`].
#[derive(Clone, Debug)]
pub struct DiscoveryCacheBuilder {
    client: RegistryClient,
    lifetimes: Lifetimes,
    capacity: usize,
}

impl DiscoveryCacheBuilder {
    /// Sets the time to live: how long a response is returned without a request. Default: 2 s.
    ///
    /// After that, the next caller starts a refresh in the background. Callers wait up to 100 ms for it, and then get the last
    /// good response. After failed refreshes, the next one is started only after a growing delay of up to 30 s.
    #[must_use]
    pub fn ttl(mut self, time: Duration) -> Self {
        self.lifetimes.ttl = time;
        self
    }

    /// Sets how long a response may be used while the registry is unavailable (as in RFC 5861, section 4). Default: 10 minutes.
    ///
    /// The time counts from the response's arrival. The age that a registry reports if it answers from memory is not added.
    #[must_use]
    pub fn stale_if_error(mut self, time: Duration) -> Self {
        self.lifetimes.stale_if_error = time;
        self
    }

    /// Sets the maximum number of cached responses of each kind. Rarely used ones are dropped first. Default: 1,000.
    #[must_use]
    pub fn capacity(mut self, answers: usize) -> Self {
        self.capacity = answers;
        self
    }

    /// Creates the cache.
    #[must_use]
    pub fn build(self) -> DiscoveryCache {
        let Self { client, lifetimes, capacity } = self;
        DiscoveryCache {
            client,
            searches: ResponseCache::new(capacity, lifetimes),
            lists: ResponseCache::new(capacity, lifetimes),
            agents: ResponseCache::new(capacity, lifetimes),
        }
    }
}

/// The result of [`DiscoveryCache::safe_search`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum SafeSearch {
    /// Enough matches, best first. They include offline and unhealthy agents unless the query excludes them.
    Found(Cached<Vec<CapabilityMatch>>),
    /// All agents with the status `active`, because not enough were found. They include unhealthy agents, such as those in
    /// maintenance, but no busy ones.
    AllActive {
        /// The agents, ordered by id.
        agents: Cached<Page>,
        /// Why all agents were returned.
        reason: FallbackReason,
    },
}

/// Why a search fell back to all active agents.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum FallbackReason {
    /// Too few agents have the capability.
    TooFew {
        /// Number of agents that have it.
        found: usize,
        /// Number of agents that were required.
        required: usize,
    },
    /// The search failed, and there is no cached response.
    SearchFailed(Error),
}

impl DiscoveryCache {
    /// Creates a cache with default settings in front of a client.
    #[must_use]
    pub fn new(client: RegistryClient) -> Self {
        Self::builder(client).build()
    }

    /// Returns a builder of a cache in front of a client.
    #[must_use]
    pub fn builder(client: RegistryClient) -> DiscoveryCacheBuilder {
        let lifetimes = Lifetimes { ttl: Duration::from_secs(2), stale_if_error: Duration::from_secs(600) };
        DiscoveryCacheBuilder { client, lifetimes, capacity: 1_000 }
    }

    /// Returns the client behind the cache, for requests that must not use it.
    #[must_use]
    pub fn client(&self) -> &RegistryClient {
        &self.client
    }

    /// Searches like [`RegistryClient::search_capabilities`].
    ///
    /// # Errors
    /// If the registry is unavailable and no cached response is recent enough, or if the registry refuses.
    pub async fn search_capabilities(
        &self,
        query: impl Into<SearchQuery>,
    ) -> Result<Cached<Vec<CapabilityMatch>>, Error> {
        let query = query.into();
        let client = self.client.clone();
        self.searches
            .get(&query.to_query_string(), || async move { client.search_with_age(query).await })
            .await
    }

    /// Lists agents like [`RegistryClient::list_agents`].
    ///
    /// # Errors
    /// The same as those of [`DiscoveryCache::search_capabilities`].
    pub async fn list_agents(&self, query: ListQuery) -> Result<Cached<Page>, Error> {
        let (client, asked) = (self.client.clone(), query.clone());
        self.lists.get(&query, || async move { client.list_with_age(asked).await }).await
    }

    /// Returns an agent's record like [`RegistryClient::get_agent`].
    ///
    /// # Errors
    /// The same as those of [`DiscoveryCache::search_capabilities`], and [`Error::NotFound`] if the registry does not know the
    /// agent, whatever was cached.
    pub async fn get_agent(&self, agent_id: &str) -> Result<Cached<AgentRecord>, Error> {
        let (client, asked) = (self.client.clone(), agent_id.to_owned());
        self.agents.get(&agent_id.to_owned(), || async move { client.agent_with_age(&asked).await }).await
    }

    /// Searches for agents with a capability.
    ///
    /// If fewer than `min_agents` match, or if the search fails, returns all active agents and the reason. Offline and unhealthy
    /// agents count as matches unless the query excludes them with [`SearchQuery::healthy`]. A search returns up to 100 matches, so
    /// for a greater `min_agents`, set the query's [`limit`](SearchQuery::limit).
    ///
    /// # Errors
    /// If the list of agents cannot be read either.
    pub async fn safe_search(
        &self,
        capability: impl Into<SearchQuery>,
        min_agents: usize,
    ) -> Result<SafeSearch, Error> {
        let reason = match self.search_capabilities(capability).await {
            Ok(found) if found.len() >= min_agents => return Ok(SafeSearch::Found(found)),
            Ok(found) => FallbackReason::TooFew { found: found.len(), required: min_agents },
            Err(error) => FallbackReason::SearchFailed(error),
        };
        let agents = self.list_agents(ListQuery::all().status(AgentStatus::Active)).await?;
        Ok(SafeSearch::AllActive { agents, reason })
    }
}
