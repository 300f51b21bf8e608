//! Agents: registration, heartbeats, status, records and lists.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::State;
use axum::http::header::LINK;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use registry_sdk::contract::{
    AgentRecord, AgentStatus, Heartbeat, HeartbeatAck, Problem, Registration, StatusUpdate, is_agent_id,
};
use serde::Deserialize;
use utoipa::IntoParams;

use super::auth::Caller;
use super::describe::{Always, BadBody, BadQuery, Refused, Unknown};
use super::extract::{AgentId, JsonBody, Params, check_limit, check_status, malformed};
use super::problem::ApiError;
use crate::registry::{ListQuery, Registry};

type Answer<T> = Result<Json<T>, ApiError>;

/// Creates or updates an agent. Counts as a heartbeat.
#[utoipa::path(
    post, path = "/register", tag = "agents",
    request_body(content = Registration, example = json!({"agent_id": "feature-dev", "agent_name": "Feature Development Agent", "base_url": "http://feature-dev:8002",
        "capabilities": [{"name": "code_generation", "description": "Generates Python code", "cost_estimate": "~100 tokens",
            "tags": ["coding", "python"]}],
        "metadata": {"team": "platform"}, "heartbeat_interval_seconds": 30})),
    responses((status = 200, body = AgentRecord, example = json!({"agent_id": "feature-dev", "agent_name": "Feature Development Agent", "base_url": "http://feature-dev:8002",
        "capabilities": [{"name": "code_generation", "description": "Generates Python code", "cost_estimate": "~100 tokens",
            "tags": ["coding", "python"]}],
        "status": "active", "metadata": {"team": "platform"}, "heartbeat_interval_seconds": 30, "instance_id": null,
        "registered_at": "2026-11-24T09:30:00.123Z", "last_heartbeat": "2026-11-24T09:31:00.456Z",
        "heartbeat_timeout_seconds": 60, "load": 0.25, "active_tasks": 2, "healthy": true, "revision": 7})), BadBody, Refused, Always),
)]
pub(super) async fn register(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    body: JsonBody,
) -> Answer<AgentRecord> {
    let registration = Registration::from_json(body.bytes()).map_err(|error| malformed(&error))??;
    caller.speaks_for(&registration.agent_id)?;
    Ok(Json(registry.register(registration).await?))
}

/// Says that an agent is alive, and may say its status and its load.
///
/// A heartbeat makes an `offline` agent `active`; `busy` stays `busy`. The body may be empty.
#[utoipa::path(
    post, path = "/agents/{id}/heartbeat", tag = "agents",
    params(("id" = String, Path, description = "The agent's id", example = "feature-dev")),
    request_body(content = Option<Heartbeat>, example = json!({"status": "busy", "load": 0.5, "active_tasks": 2})),
    responses(
        (status = 200, body = HeartbeatAck, example = json!({"agent_id": "feature-dev", "status": "busy",
            "last_heartbeat": "2026-11-24T09:31:00.456Z", "heartbeat_timeout_seconds": 60})),
        (status = 409, body = Problem, content_type = "application/problem+json", description = "Another instance of the agent has registered since."),
        BadBody, Unknown, Refused, Always,
    ),
)]
pub(super) async fn heartbeat(
    State(registry): State<Arc<Registry>>,
    AgentId(id): AgentId,
    caller: Caller,
    body: JsonBody,
) -> Answer<HeartbeatAck> {
    caller.speaks_for(&id)?;
    let beat = Heartbeat::from_json(body.bytes()).map_err(|error| malformed(&error))??;
    let began = Instant::now();
    let heard = registry.heartbeat(&id, beat).await?;
    registry.metrics().heard(&id, began.elapsed());
    Ok(Json(heard))
}

/// Sets an agent's status. Does not count as a heartbeat, and so does not bring back who has fallen silent.
#[utoipa::path(
    put, path = "/agents/{id}/status", tag = "agents",
    params(("id" = String, Path, description = "The agent's id", example = "feature-dev")),
    request_body(content = StatusUpdate, example = json!({"status": "busy"})),
    responses(
        (status = 200, body = AgentRecord, example = json!({"agent_id": "feature-dev", "agent_name": "Feature Development Agent", "base_url": "http://feature-dev:8002",
        "capabilities": [{"name": "code_generation", "description": "Generates Python code", "cost_estimate": "~100 tokens",
            "tags": ["coding", "python"]}],
        "status": "active", "metadata": {"team": "platform"}, "heartbeat_interval_seconds": 30, "instance_id": null,
        "registered_at": "2026-11-24T09:30:00.123Z", "last_heartbeat": "2026-11-24T09:31:00.456Z",
        "heartbeat_timeout_seconds": 60, "load": 0.25, "active_tasks": 2, "healthy": true, "revision": 7})),
        (status = 409, body = Problem, content_type = "application/problem+json", description = "Another instance of the agent has registered since."),
        BadBody, Unknown, Refused, Always,
    ),
)]
pub(super) async fn set_status(
    State(registry): State<Arc<Registry>>,
    AgentId(id): AgentId,
    caller: Caller,
    body: JsonBody,
) -> Answer<AgentRecord> {
    caller.speaks_for(&id)?;
    let update = StatusUpdate::from_json(body.bytes()).map_err(|error| malformed(&error))??;
    Ok(Json(registry.set_status(&id, update).await?))
}

/// The record of one agent.
#[utoipa::path(
    get, path = "/agents/{id}", tag = "agents", params(("id" = String, Path, description = "The agent's id", example = "feature-dev")),
    responses((status = 200, body = AgentRecord, example = json!({"agent_id": "feature-dev", "agent_name": "Feature Development Agent", "base_url": "http://feature-dev:8002",
        "capabilities": [{"name": "code_generation", "description": "Generates Python code", "cost_estimate": "~100 tokens",
            "tags": ["coding", "python"]}],
        "status": "active", "metadata": {"team": "platform"}, "heartbeat_interval_seconds": 30, "instance_id": null,
        "registered_at": "2026-11-24T09:30:00.123Z", "last_heartbeat": "2026-11-24T09:31:00.456Z",
        "heartbeat_timeout_seconds": 60, "load": 0.25, "active_tasks": 2, "healthy": true, "revision": 7})), Unknown, Always),
)]
pub(super) async fn show(State(registry): State<Arc<Registry>>, AgentId(id): AgentId) -> Answer<AgentRecord> {
    Ok(Json(registry.get(&id).await?))
}

/// Removes an agent.
#[utoipa::path(
    delete, path = "/agents/{id}", tag = "agents", params(("id" = String, Path, description = "The agent's id", example = "feature-dev")),
    responses((status = 204, description = "It is removed."), Unknown, Refused, Always),
)]
pub(super) async fn remove(
    State(registry): State<Arc<Registry>>,
    AgentId(id): AgentId,
    caller: Caller,
) -> Result<StatusCode, ApiError> {
    caller.speaks_for(&id)?;
    registry.remove(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ListParams {
    /// Only agents of this status.
    #[param(value_type = Option<AgentStatus>)]
    status: Option<String>,
    /// How many agents a page has.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// Where the page begins: from a `Link` header.
    #[param(min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    cursor: Option<String>,
}

/// All agents, ordered by id; with `limit` in pages.
///
/// While more follows, the answer has `Link: <…>; rel="next"`. The cursor is the last id of the page before: it stays good
/// whatever is registered or removed meanwhile.
#[utoipa::path(
    get, path = "/agents", tag = "agents", params(ListParams),
    responses((status = 200, body = Vec<AgentRecord>, example = json!([])), BadQuery, Always),
)]
pub(super) async fn list(
    State(registry): State<Arc<Registry>>,
    Params(params): Params<ListParams>,
) -> Result<Response, ApiError> {
    let status = check_status(params.status.as_deref())?;
    let limit = check_limit(params.limit)?;
    if params.cursor.as_deref().is_some_and(|cursor| !is_agent_id(cursor)) {
        return Err(ApiError::bad_request("cursor has to be one that a Link header gave"));
    }
    let page = registry.list(&ListQuery { status, after: params.cursor, limit }).await;
    let next = page.agents.last().filter(|_| page.more).zip(limit).map(|(last, limit)| {
        let status = status.map_or_else(String::new, |status| format!("status={status}&"));
        format!("</agents?{status}limit={limit}&cursor={}>; rel=\"next\"", last.agent_id)
    });
    let mut response = Json(page.agents).into_response();
    // Ids and statuses are plain ASCII, so there always is a value.
    if let Some(link) = next.and_then(|next| HeaderValue::try_from(next).ok()) {
        response.headers_mut().insert(LINK, link);
    }
    Ok(response)
}
