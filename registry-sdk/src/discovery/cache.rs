//! A cache in front of a client: discovery that outlives the registry.

use std::time::Duration;

use super::response_cache::{Cached, Lifetimes, ResponseCache};
use crate::client::RegistryClient;
use crate::contract::{AgentRecord, AgentStatus, CapabilityMatch};
use crate::error::Error;
use crate::query::{ListQuery, Page, SearchQuery};

/// A [`RegistryClient`] for discovery that caches responses.
///
/// A fresh response is used without asking again, and a query is sent once however many callers wait for it. While the
/// registry is away, hangs or asks to slow down, the last good response is used, marked with its age. So are responses that
/// the registry itself gives from memory, because its database is away.
///
/// Cheap to clone; clones share the cache. Its methods are cancel safe, and have to be called within a Tokio runtime.
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
///     println!("the registry does not answer; this is {age:?} old");
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

/// Sets up a [`DiscoveryCache`].
#[derive(Clone, Debug)]
pub struct DiscoveryCacheBuilder {
    client: RegistryClient,
    lifetimes: Lifetimes,
    capacity: usize,
}

impl DiscoveryCacheBuilder {
    /// Sets the time to live: how long a response is used without asking again. Default: 2 s.
    ///
    /// After that it is refreshed in the background; a caller waits for up to 100 ms and then gets the last good response.
    /// Refreshes that fail are repeated with growing delays, up to 30 s.
    #[must_use]
    pub fn ttl(mut self, time: Duration) -> Self {
        self.lifetimes.ttl = time;
        self
    }

    /// Sets how old a response may be that is used while the registry cannot be asked (as in RFC 5861, section 4). Default: 10
    /// minutes.
    #[must_use]
    pub fn stale_if_error(mut self, time: Duration) -> Self {
        self.lifetimes.stale_if_error = time;
        self
    }

    /// Sets how many responses of each kind are cached; those that are rarely asked for go first. Default: 1,000.
    #[must_use]
    pub fn capacity(mut self, answers: usize) -> Self {
        self.capacity = answers;
        self
    }

    /// Makes the cache.
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

/// What [`DiscoveryCache::safe_search`] found.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum SafeSearch {
    /// Enough agents that can do it, the best first.
    Found(Cached<Vec<CapabilityMatch>>),
    /// All active agents, because not enough were found.
    AllActive {
        /// The agents, by id.
        agents: Cached<Page>,
        /// Why it came to that.
        reason: FallbackReason,
    },
}

/// Why a search fell back to everyone.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum FallbackReason {
    /// Fewer agents can do it than were wanted.
    TooFew {
        /// How many can.
        found: usize,
        /// How many were wanted.
        required: usize,
    },
    /// The search failed, and no earlier answer is kept.
    SearchFailed(Error),
}

impl DiscoveryCache {
    /// A cache with the default settings in front of a client.
    #[must_use]
    pub fn new(client: RegistryClient) -> Self {
        Self::builder(client).build()
    }

    /// A cache in front of a client, with other settings.
    #[must_use]
    pub fn builder(client: RegistryClient) -> DiscoveryCacheBuilder {
        let lifetimes = Lifetimes { ttl: Duration::from_secs(2), stale_if_error: Duration::from_secs(600) };
        DiscoveryCacheBuilder { client, lifetimes, capacity: 1_000 }
    }

    /// The client behind it, for what must not come from a cache.
    #[must_use]
    pub fn client(&self) -> &RegistryClient {
        &self.client
    }

    /// As [`RegistryClient::search_capabilities`].
    ///
    /// # Errors
    /// If the registry cannot be asked and no cached response is young enough; and if the registry refuses.
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

    /// As [`RegistryClient::list_agents`].
    ///
    /// # Errors
    /// As [`DiscoveryCache::search_capabilities`].
    pub async fn list_agents(&self, query: ListQuery) -> Result<Cached<Page>, Error> {
        let (client, asked) = (self.client.clone(), query.clone());
        self.lists.get(&query, || async move { client.list_with_age(asked).await }).await
    }

    /// As [`RegistryClient::get_agent`].
    ///
    /// # Errors
    /// As [`DiscoveryCache::search_capabilities`]; [`Error::NotFound`] if the registry does not know the
    /// agent, whatever was cached.
    pub async fn get_agent(&self, agent_id: &str) -> Result<Cached<AgentRecord>, Error> {
        let (client, asked) = (self.client.clone(), agent_id.to_owned());
        self.agents.get(&agent_id.to_owned(), || async move { client.agent_with_age(&asked).await }).await
    }

    /// Searches for agents with a capability. If fewer than `min_agents` have it, or the search fails, returns all active
    /// agents, and why.
    ///
    /// # Errors
    /// If not even the list of agents can be read.
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
