//! A2A agent cards, sent as the agents registered them.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use registry_sdk::contract::{CARD_MEDIA_TYPE, Problem};

use super::describe::{Always, Busy};
use super::etag::is_known;
use super::extract::AgentId;
use super::problem::ApiError;
use crate::registry::Registry;
use crate::store::card_digest;

/// Time for which a client may use a card without asking again.
const CACHE: &str = "max-age=60";

/// Returns an agent's A2A agent card, byte for byte as the agent registered it.
///
/// Read from the database, so it is unavailable while the database does not respond.
#[utoipa::path(
    get, path = "/agents/{id}/card", tag = "agents",
    params(
        ("id" = String, Path, description = "The agent's id", example = "feature-dev"),
        ("If-None-Match" = Option<String>, Header, description = "`ETag` of a card that the client already has."),
    ),
    responses(
        (status = 200, description = "The card.", content_type = "application/a2a-agent-card+json", body = serde_json::Value,
            headers(
                ("ETag" = String, description = "The record's `card_digest`, in quotes."),
                ("Cache-Control" = String, description = "`max-age=60`"),
            ),
            example = json!({"name": "Recipe Agent", "description": "Finds recipes", "version": "1.0.0",
                "supportedInterfaces": [{"url": "http://recipes:8010/", "protocolBinding": "JSONRPC", "protocolVersion": "1.0"}],
                "capabilities": {}, "defaultInputModes": ["text/plain"], "defaultOutputModes": ["text/plain"],
                "skills": [{"id": "find_recipe", "name": "Find a recipe", "description": "Finds a recipe", "tags": ["cooking"]}]})),
        (status = 304, description = "The client already has this card."),
        (status = 404, description = "No such agent is registered, or it registered no card.", body = Problem,
            content_type = "application/problem+json"),
        Busy, Always,
    ),
)]
pub(super) async fn get_card(
    State(registry): State<Arc<Registry>>,
    AgentId(id): AgentId,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let card = registry.get_card(&id).await?;
    // Computed from this card, since the agent's record may still have the digest of an earlier one.
    let tag = format!("\"{}\"", card_digest(&card));
    let caching = [(ETAG, tag.as_str()), (CACHE_CONTROL, CACHE)];
    if is_known(&headers, &tag) {
        return Ok((StatusCode::NOT_MODIFIED, caching).into_response());
    }
    Ok((caching, [(CONTENT_TYPE, CARD_MEDIA_TYPE)], card).into_response())
}
