//! Agents: registration, heartbeats, status, records and lists.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::State;
use axum::http::header::LINK;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use registry_sdk::contract::{AgentRecord, Heartbeat, HeartbeatAck, Registration, StatusUpdate, is_agent_id};
use serde::Deserialize;

use super::auth::Caller;
use super::extract::{AgentId, JsonBody, Params, check_limit, check_status, malformed};
use super::problem::ApiError;
use crate::registry::{ListQuery, Registry};

type Answer<T> = Result<Json<T>, ApiError>;

pub(super) async fn register(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    body: JsonBody,
) -> Answer<AgentRecord> {
    let registration = Registration::from_json(body.bytes()).map_err(|error| malformed(&error))??;
    caller.speaks_for(&registration.agent_id)?;
    Ok(Json(registry.register(registration).await?))
}

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

pub(super) async fn show(State(registry): State<Arc<Registry>>, AgentId(id): AgentId) -> Answer<AgentRecord> {
    Ok(Json(registry.get(&id).await?))
}

pub(super) async fn remove(
    State(registry): State<Arc<Registry>>,
    AgentId(id): AgentId,
    caller: Caller,
) -> Result<StatusCode, ApiError> {
    caller.speaks_for(&id)?;
    registry.remove(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
pub(super) struct ListParams {
    status: Option<String>,
    limit: Option<usize>,
    cursor: Option<String>,
}

/// The cursor is the last id of the page before: it stays good whatever is registered or removed meanwhile.
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
