//! The HTTP endpoint that serves an agent's card (features `a2a` and `axum`).

use std::fmt;
use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::read::CARD_PATH;
use crate::agent::Agent;
use crate::contract::entity_tag::is_known_entity_tag;
use crate::contract::{AgentCard, CARD_MEDIA_TYPE};

/// How long a client may use a card before it revalidates it.
const CACHE: &str = "max-age=60";

/// Serves the card of an agent at [`CARD_PATH`], where A2A clients look for it.
///
/// It is the document that the agent registers, also after [`Agent::update_card`]. The response is 404 while the agent has no card.
///
/// Merge its router with that of [`HealthEndpoint`](crate::HealthEndpoint). [`CardDetails`](super::CardDetails) has an example.
pub struct CardEndpoint {
    read: Box<dyn Fn() -> Option<AgentCard> + Send + Sync>,
}

impl fmt::Debug for CardEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CardEndpoint").finish_non_exhaustive()
    }
}

impl CardEndpoint {
    /// Creates the endpoint of an agent. It does not keep the agent's heartbeat loop alive.
    #[must_use]
    pub fn new(agent: &Agent) -> Self {
        Self { read: Box::new(agent.card_reader()) }
    }

    /// Returns a router with the endpoint, to merge into the agent's own router.
    pub fn router<S: Clone + Send + Sync + 'static>(self) -> Router<S> {
        Router::new().route(CARD_PATH, get(answer)).with_state(Arc::new(self))
    }
}

async fn answer(State(endpoint): State<Arc<CardEndpoint>>, headers: HeaderMap) -> Response {
    let Some(card) = (endpoint.read)() else { return StatusCode::NOT_FOUND.into_response() };
    let mut hasher = DefaultHasher::new();
    hasher.write(card.as_str().as_bytes());
    let tag = format!("\"{:016x}\"", hasher.finish());
    let known = headers.get_all(IF_NONE_MATCH).iter().filter_map(|list| list.to_str().ok());
    let caching = [(ETAG, &*tag), (CACHE_CONTROL, CACHE)];
    if is_known_entity_tag(known, &tag) {
        return (StatusCode::NOT_MODIFIED, caching).into_response();
    }
    (caching, [(CONTENT_TYPE, CARD_MEDIA_TYPE)], card.as_str().to_owned()).into_response()
}
