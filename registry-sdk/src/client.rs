//! The client: a method for each operation.

mod card;
mod maintenance;
#[cfg(feature = "__internal")]
pub(crate) mod raw;

use std::collections::HashSet;
use std::time::Duration;

use reqwest::Method;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::contract::{
    AgentHealth, AgentRecord, AgentStatus, CapabilityMatch, Heartbeat, HeartbeatAck, Registration,
    RegistryStats, ServerHealth, StatusUpdate,
};
use crate::decode;
use crate::error::Error;
use crate::http::HttpClients;
use crate::query::{ListQuery, MatchPage, Page, SearchQuery};
use crate::response::{ApiResponse, Kind};
use crate::retry::RetryPolicy;
use crate::transport::{Body, Request, Transport};

/// A client of a registry, with a method for each operation.
///
/// A client is cheap to clone, and all clones share a pool of connections. All methods are cancel safe: nothing keeps running,
/// although the registry may have received the request already. All requests are safe to repeat, and are retried as the
/// [`RetryPolicy`] says.
///
/// ```no_run
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), registry_sdk::Error> {
/// use registry_sdk::{RegistryClient, SearchQuery};
///
/// let client = RegistryClient::new("http://127.0.0.1:8009")?;
/// for found in client.search_capabilities(SearchQuery::new("security scan").healthy(true)).await? {
///     println!("{} at {}", found.agent_id, found.base_url);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct RegistryClient {
    pub(crate) transport: Transport,
    pub(crate) retry: RetryPolicy,
}

impl RegistryClient {
    /// Returns the same client, with the same connections but a different retry policy.
    #[must_use]
    pub fn with_retry(&self, policy: RetryPolicy) -> Self {
        Self { transport: self.transport.clone(), retry: policy }
    }

    /// Registers an agent, or updates its registration. Counts as a heartbeat.
    ///
    /// # Errors
    /// [`Error::Invalid`] with all fields that are out of their limits; nothing is sent then. [`Error::Superseded`] if the
    /// registration has an age, and a younger process owns the id or this process was shut down before.
    pub async fn register(&self, registration: &Registration) -> Result<AgentRecord, Error> {
        registration.validate()?;
        let request = Self::registration(Body::Fixed(encode(registration)?));
        self.transport
            .send(&request, &self.retry, |response| decode::registered(registration, response))
            .await
    }

    /// Sends a heartbeat.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the registry does not know the agent, which has to register (again).
    pub async fn heartbeat(&self, agent_id: &str) -> Result<HeartbeatAck, Error> {
        self.heartbeat_with(agent_id, &Heartbeat::default()).await
    }

    /// Sends a heartbeat that also reports a status, a load or the process.
    ///
    /// # Errors
    /// The same as those of [`RegistryClient::heartbeat`], [`Error::Superseded`] if another process owns the id, and
    /// [`Error::Invalid`] for [`AgentStatus::Unknown`].
    pub async fn heartbeat_with(&self, agent_id: &str, beat: &Heartbeat) -> Result<HeartbeatAck, Error> {
        let request = Self::heartbeat_of(agent_id, beat)?;
        let decode = |response: &ApiResponse| decode::heartbeat_ack(agent_id, beat.status, response);
        self.transport.send(&request, &self.retry, decode).await
    }

    /// Lists agents, ordered by id. Records that cannot be read are skipped and logged.
    ///
    /// # Errors
    /// [`Error::InvalidResponse`] if no record can be read, although there are some; [`Error::Invalid`] if the query has the
    /// status [`AgentStatus::Unknown`].
    pub async fn list_agents(&self, query: ListQuery) -> Result<Page, Error> {
        self.list_with_age(query).await.map(|aged| aged.value)
    }

    /// Returns the record of an agent.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the registry does not know the agent.
    pub async fn get_agent(&self, agent_id: &str) -> Result<AgentRecord, Error> {
        self.agent_with_age(agent_id).await.map(|aged| aged.value)
    }

    /// Searches for agents by their capabilities, best match first. Matches that cannot be read are skipped and logged.
    ///
    /// Offline and unhealthy agents are found as well, unless they are in maintenance: [`SearchQuery::healthy`] excludes them.
    ///
    /// A registry that does not know a filter ignores it. The client then drops the matches that do not pass. It cannot
    /// check metadata, since matches have none.
    ///
    /// # Errors
    /// The same as those of [`RegistryClient::list_agents`].
    pub async fn search_capabilities(
        &self,
        query: impl Into<SearchQuery>,
    ) -> Result<Vec<CapabilityMatch>, Error> {
        self.search_with_age(query.into()).await.map(|aged| aged.value)
    }

    /// Searches for one page of agents: the first page, or the one after the query's cursor.
    ///
    /// Pages are ordered by score and id, because status and last heartbeat change while pages are read. An agent whose
    /// score changes meanwhile, because it registers other capabilities, may be missed or returned twice.
    ///
    /// # Errors
    /// The same as those of [`RegistryClient::list_agents`].
    pub async fn search_page(&self, query: impl Into<SearchQuery>) -> Result<MatchPage, Error> {
        let query = query.into().paged();
        let request = Self::search_request(&query)?;
        let page = |response: &ApiResponse| {
            let matches = decode_matches(response, &query)?;
            Ok(MatchPage { matches, next_cursor: response.next_cursor() })
        };
        self.transport.send(&request, &self.retry, page).await
    }

    /// Searches for all agents, page by page, and returns each agent once. The query's limit is that of a page.
    ///
    /// A registry without paged searches returns as many agents as its limit allows.
    ///
    /// # Errors
    /// The same as those of [`RegistryClient::list_agents`], for any page.
    pub async fn search_all(&self, query: impl Into<SearchQuery>) -> Result<Vec<CapabilityMatch>, Error> {
        let mut query = query.into().paged();
        let mut found = HashSet::new();
        let mut all = Vec::new();
        loop {
            let MatchPage { matches, next_cursor } = self.search_page(query.clone()).await?;
            let is_empty = matches.is_empty();
            all.extend(matches.into_iter().filter(|one| found.insert(one.agent_id.clone())));
            if next_cursor.is_none() {
                return Ok(all);
            }
            if is_empty || next_cursor == query.cursor {
                let detail = "the pages of the search do not end".to_owned();
                return Err(Error::InvalidResponse { status: 200, detail });
            }
            query.cursor = next_cursor;
        }
    }

    /// Returns the health of an agent, which says whether it can be given work. An unhealthy agent is not an error.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the registry does not know the agent.
    pub async fn check_health(&self, agent_id: &str) -> Result<AgentHealth, Error> {
        let request = get(Kind::OfAgent, ["health", path_segment(agent_id)?]);
        self.transport.send(&request, &self.retry, |response| decode::health(agent_id, response)).await
    }

    /// Sets an agent's status. Does not count as a heartbeat, and so does not bring back an agent that missed its deadline.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the registry does not know the agent; [`Error::Unsupported`] if the registry has only the six
    /// basic operations; [`Error::Invalid`] for [`AgentStatus::Unknown`], which no request can set.
    pub async fn update_status(&self, agent_id: &str, status: AgentStatus) -> Result<AgentRecord, Error> {
        self.update_status_with(agent_id, &StatusUpdate::new(status)).await
    }

    /// Sets an agent's status as one of several processes.
    ///
    /// # Errors
    /// The same as those of [`RegistryClient::update_status`], and [`Error::Superseded`] if another process owns the id.
    pub async fn update_status_with(
        &self,
        agent_id: &str,
        update: &StatusUpdate,
    ) -> Result<AgentRecord, Error> {
        self.ask(Self::status_update(agent_id, update)?).await
    }

    /// Removes an agent from the registry. A running agent registers again.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the registry does not know the agent; [`Error::Unsupported`] if the registry has only the six
    /// basic operations.
    pub async fn deregister(&self, agent_id: &str) -> Result<(), Error> {
        let mut request = get(Kind::OfAgent, ["agents", path_segment(agent_id)?]);
        request.method = Method::DELETE;
        request.kind = Kind::Optional("DELETE /agents/{id}");
        self.transport.send(&request, &self.retry, |_| Ok(())).await
    }

    /// Returns the numbers of agents and capabilities.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the registry has only the six basic operations.
    pub async fn get_stats(&self) -> Result<RegistryStats, Error> {
        let mut request = get(Kind::Record, ["stats"]);
        request.kind = Kind::Optional("GET /stats");
        self.ask(request).await
    }

    /// Returns the health of the registry itself.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the registry is unhealthy; [`Error::Unsupported`] if it has only the six basic operations.
    pub async fn get_server_health(&self) -> Result<ServerHealth, Error> {
        let mut request = get(Kind::Record, ["health"]);
        request.kind = Kind::Optional("GET /health");
        self.ask(request).await
    }

    pub(crate) async fn list_with_age(&self, query: ListQuery) -> Result<Aged<Page>, Error> {
        query.filter.status.unwrap_or_default().check_known()?;
        let mut request = get(Kind::List, ["agents"]);
        request.query = query.pairs();
        let decode = |response: &ApiResponse| {
            let mut agents = decode::list(response)?;
            // The registry may not know the filters.
            agents.retain(|agent| query.filter.accepts_record(agent));
            let value = Page { agents, next_cursor: response.next_cursor() };
            Ok(Aged { value, age: response.age() })
        };
        self.transport.send(&request, &self.retry, decode).await
    }

    pub(crate) async fn agent_with_age(&self, agent_id: &str) -> Result<Aged<AgentRecord>, Error> {
        let request = get(Kind::OfAgent, ["agents", path_segment(agent_id)?]);
        self.transport
            .send(&request, &self.retry, |response| {
                Ok(Aged { value: response.decode()?, age: response.age() })
            })
            .await
    }

    pub(crate) async fn search_with_age(
        &self,
        query: SearchQuery,
    ) -> Result<Aged<Vec<CapabilityMatch>>, Error> {
        let request = Self::search_request(&query)?;
        self.transport.send(&request, &self.retry, |response| matches_of(response, &query)).await
    }

    /// The same within a time limit.
    pub(crate) async fn search_within(
        &self,
        query: SearchQuery,
        limit: Duration,
    ) -> Result<Aged<Vec<CapabilityMatch>>, Error> {
        let request = Self::search_request(&query)?;
        self.transport.send_within(&request, limit, |response| matches_of(response, &query)).await
    }

    fn search_request(query: &SearchQuery) -> Result<Request, Error> {
        query.filter.status.unwrap_or_default().check_known()?;
        let mut request = get(Kind::List, ["capabilities", "search"]);
        request.query = query.pairs();
        Ok(request)
    }

    /// Opens the stream of changes, from now on or after an event. Also returns its endpoint.
    pub(crate) async fn open_events(&self, after: Option<&str>) -> Result<(reqwest::Response, usize), Error> {
        let mut request = get(Kind::Record, ["events"]);
        request.last_event_id = after.map(str::to_owned);
        request.kind = Kind::Optional("GET /events");
        self.transport.open_events(&request).await
    }

    /// Records that a stream was silent or broke off before its first event.
    pub(crate) fn stream_failed(&self, endpoint: usize) {
        self.transport.stream_failed(endpoint);
    }

    /// Returns the HTTP clients, which requests to agents use as well.
    pub(crate) fn http(&self) -> &HttpClients {
        &self.transport.http
    }

    /// Returns the time limit of an attempt.
    pub(crate) fn attempt_timeout(&self) -> Duration {
        self.transport.attempt_timeout
    }

    /// Registers a process that started at a given time, in one attempt with a time limit.
    pub(crate) async fn register_once(
        &self,
        registration: &Registration,
        started: Instant,
        limit: Duration,
    ) -> Result<AgentRecord, Error> {
        registration.validate()?;
        let sent = registration.clone();
        // After a failed attempt at the first URL, the process is older.
        let body = Body::Fresh(Box::new(move || encode(&sent.clone().instance_age(started.elapsed()))));
        let decode = |response: &ApiResponse| decode::registered(registration, response);
        self.transport.send_within(&Self::registration(body), limit, decode).await
    }

    /// Sends a heartbeat in one attempt with a time limit.
    pub(crate) async fn heartbeat_once(
        &self,
        agent_id: &str,
        beat: &Heartbeat,
        limit: Duration,
    ) -> Result<HeartbeatAck, Error> {
        let decode = |response: &ApiResponse| decode::heartbeat_ack(agent_id, beat.status, response);
        self.transport.send_within(&Self::heartbeat_of(agent_id, beat)?, limit, decode).await
    }

    /// Sets an agent's status in one attempt with a time limit. Any success counts, whatever its body.
    pub(crate) async fn update_status_once(
        &self,
        agent_id: &str,
        update: &StatusUpdate,
        limit: Duration,
    ) -> Result<(), Error> {
        self.transport.send_within(&Self::status_update(agent_id, update)?, limit, |_| Ok(())).await
    }

    /// Sets an agent's status within a time limit. Any success counts, whatever its body.
    pub(crate) async fn send_status(
        &self,
        agent_id: &str,
        update: &StatusUpdate,
        limit: Duration,
    ) -> Result<(), Error> {
        let request = Self::status_update(agent_id, update)?;
        self.transport.send(&request, &self.retry.within(limit), |_| Ok(())).await
    }

    /// Returns the health of an agent, within a time limit.
    pub(crate) async fn check_health_within(
        &self,
        agent_id: &str,
        limit: Duration,
    ) -> Result<AgentHealth, Error> {
        let request = get(Kind::OfAgent, ["health", path_segment(agent_id)?]);
        self.transport.send_within(&request, limit, |response| decode::health(agent_id, response)).await
    }

    /// Returns the record of an agent, in one attempt with a time limit.
    pub(crate) async fn get_agent_once(&self, agent_id: &str, limit: Duration) -> Result<AgentRecord, Error> {
        let request = get(Kind::OfAgent, ["agents", path_segment(agent_id)?]);
        self.transport.send_within(&request, limit, ApiResponse::decode).await
    }

    fn registration(body: Body) -> Request {
        let mut request = get(Kind::Record, ["register"]);
        request.method = Method::POST;
        request.body = Some(body);
        request
    }

    fn status_update(agent_id: &str, update: &StatusUpdate) -> Result<Request, Error> {
        update.status.check_known()?;
        let mut request = get(Kind::Record, ["agents", path_segment(agent_id)?, "status"]);
        request.method = Method::PUT;
        request.body = Some(Body::Fixed(encode(update)?));
        request.kind = Kind::Optional("PUT /agents/{id}/status");
        Ok(request)
    }

    fn heartbeat_of(agent_id: &str, beat: &Heartbeat) -> Result<Request, Error> {
        beat.status.unwrap_or_default().check_known()?;
        let mut request = get(Kind::Heartbeat, ["agents", path_segment(agent_id)?, "heartbeat"]);
        request.method = Method::POST;
        if *beat != Heartbeat::default() {
            request.body = Some(Body::Fixed(encode(beat)?));
        }
        Ok(request)
    }

    async fn ask<T: DeserializeOwned>(&self, request: Request) -> Result<T, Error> {
        self.transport.send(&request, &self.retry, ApiResponse::decode).await
    }
}

/// A response and its age: while a registry's database is unavailable, it answers from memory.
#[derive(Debug)]
pub(crate) struct Aged<T> {
    pub(crate) value: T,
    pub(crate) age: Duration,
}

fn matches_of(response: &ApiResponse, query: &SearchQuery) -> Result<Aged<Vec<CapabilityMatch>>, Error> {
    Ok(Aged { value: decode_matches(response, query)?, age: response.age() })
}

fn decode_matches(response: &ApiResponse, query: &SearchQuery) -> Result<Vec<CapabilityMatch>, Error> {
    let mut matches = decode::list(response)?;
    query.check(&mut matches);
    Ok(matches)
}

/// Creates a `GET` of a path.
fn get<const N: usize>(kind: Kind, path: [&str; N]) -> Request {
    let path = path.map(str::to_owned).into();
    Request { method: Method::GET, path, query: Vec::new(), body: None, last_event_id: None, kind }
}

/// Checks that an id can be a segment of a path. Other texts would change the path.
fn path_segment(agent_id: &str) -> Result<&str, Error> {
    match agent_id {
        "" | "." | ".." => Err(Error::NotFound { detail: format!("no agent has the id {agent_id:?}") }),
        // URL parsers remove these characters, so the path would name another agent.
        id if id.contains(['\t', '\n', '\r']) => {
            Err(Error::NotFound { detail: format!("no agent has the id {agent_id:?}") })
        }
        _ => Ok(agent_id),
    }
}

fn encode(body: &impl serde::Serialize) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(body).map_err(|error| Error::Config(format!("the request cannot be written: {error}")))
}
