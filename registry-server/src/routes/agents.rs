//! Agents: registration, heartbeats, status and records.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use registry_sdk::contract::{AgentRecord, Heartbeat, HeartbeatAck, Registration, StatusUpdate};
use registry_sdk::internal::{RequestBody, is_loopback};
use serde_json::Value;
use url::Url;

use super::auth::Caller;
use super::describe::{Always, BadBody, Busy, Refused, Superseded, Unknown};
use super::extract::{AgentId, JsonBody, malformed};
use super::json::json;
use super::problem::ApiError;
use crate::registry::Registry;

/// Returns the agent used in the API examples.
pub(super) fn example_record() -> Value {
    serde_json::json!({
        "agent_id": "feature-dev",
        "agent_name": "Feature Development Agent",
        "base_url": "http://feature-dev:8002",
        "capabilities": [{"name": "code_generation", "description": "Generates Python code",
            "cost_estimate": "~100 tokens", "tags": ["coding", "python"]}],
        "status": "active",
        "metadata": {"team": "platform"},
        "heartbeat_interval_seconds": 30,
        "instance_id": "0f8fad5bd9cb469fa16570867728950e",
        "registered_at": "2026-11-24T09:30:00.123Z",
        "last_heartbeat": "2026-11-24T09:31:00.456Z",
        "heartbeat_timeout_seconds": 60,
        "load": 0.25,
        "active_tasks": 2,
        "healthy": true,
        "changed_by": "team-a",
        "revision": 7,
        "registration_tag": "6f3bd1a20c94e857",
    })
}

/// Creates or updates an agent. Counts as a heartbeat.
///
/// If several running processes use the same `agent_id`, the youngest owns it: a registration with an
/// `instance_age_seconds` gets 409 while a younger process has the id. A registration without an age is
/// always accepted.
#[utoipa::path(
    post, path = "/register", tag = "agents",
    request_body(content = Registration, example = json!({"agent_id": "feature-dev", "agent_name": "Feature Development Agent", "base_url": "http://feature-dev:8002",
        "capabilities": [{"name": "code_generation", "description": "Generates Python code", "cost_estimate": "~100 tokens",
            "tags": ["coding", "python"]}],
        "metadata": {"team": "platform"}, "heartbeat_interval_seconds": 30,
        "instance_id": "0f8fad5bd9cb469fa16570867728950e", "instance_age_seconds": 12.5})),
    responses(
        (status = 200, description = "The agent's record.", body = AgentRecord, example = json!(example_record())),
        BadBody, Superseded, Refused, Always,
    ),
)]
pub(super) async fn register(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let registration = Registration::from_json(body.bytes()).map_err(|error| malformed(&error))??;
    let (agent_id, base_url) = (registration.agent_id.clone(), registration.base_url.clone());
    let elsewhere = caller.source.client.filter(|client| !client.is_loopback());
    let is_new_address = elsewhere.is_some() && !registry.is_registered_at(&agent_id, &base_url);
    caller.check_may_act_for(&agent_id, "register")?;
    let change = format!("register at {base_url}");
    let record =
        caller.change(&agent_id, &change, registry.register(registration, caller.changed_by())).await?;
    if is_new_address && Url::parse(&base_url).is_ok_and(|url| is_loopback(&url)) {
        tracing::warn!(
            agent_id,
            base_url,
            client = elsewhere.map(tracing::field::display),
            "an agent on another host registered a loopback address, with which callers only reach themselves; it should \
             register a name or an address of its own host"
        );
    }
    Ok(json(record))
}

/// Reports that an agent is alive, and optionally its status and load.
///
/// A heartbeat makes an `offline` agent `active`; `busy` stays `busy`. The body may be empty.
#[utoipa::path(
    post, path = "/agents/{id}/heartbeat", tag = "agents",
    params(("id" = String, Path, description = "The agent's id", example = "feature-dev")),
    request_body(content = ref("#/components/schemas/Heartbeat"), content_type = "application/json",
        description = "May be empty.", example = json!({"status": "busy", "load": 0.5, "active_tasks": 2})),
    responses(
        (status = 200, description = "The heartbeat was recorded.", body = HeartbeatAck, example = json!({"agent_id": "feature-dev", "status": "busy",
            "last_heartbeat": "2026-11-24T09:31:00.456Z", "heartbeat_timeout_seconds": 60,
            "registration_tag": "6f3bd1a20c94e857"})),
        BadBody, Unknown, Superseded, Refused, Always,
    ),
)]
pub(super) async fn heartbeat(
    State(registry): State<Arc<Registry>>,
    AgentId(id): AgentId,
    caller: Caller,
    body: JsonBody,
) -> Result<Json<HeartbeatAck>, ApiError> {
    caller.check_may_act_for(&id, "heartbeat")?;
    let beat = Heartbeat::from_json(body.bytes()).map_err(|error| malformed(&error))??;
    let began = Instant::now();
    let heard = registry.heartbeat(&id, beat, caller.changed_by()).await?;
    registry.record_heartbeat_latency(&id, began.elapsed());
    if let Some(agent) = heard.changed {
        let change = format!("set the status {} by a heartbeat", agent.status);
        caller.log_change(&id, &change, agent.revision, agent.changed_by.as_deref());
    }
    Ok(Json(heard.ack))
}

/// Sets an agent's status. Does not count as a heartbeat, so it does not revive an agent that missed its
/// deadline.
///
/// `"final": true` reports that the process was shut down. It requires the status `offline` and an
/// `instance_id`. From then on, requests of that instance get 409, until a process with the same
/// `instance_id` registers that started later or sends no age.
#[utoipa::path(
    put, path = "/agents/{id}/status", tag = "agents",
    params(("id" = String, Path, description = "The agent's id", example = "feature-dev")),
    request_body(content = StatusUpdate, example = json!({"status": "busy"})),
    responses(
        (status = 200, description = "The agent's record.", body = AgentRecord, example = json!(example_record())),
        BadBody, Unknown, Superseded, Refused, Always,
    ),
)]
pub(super) async fn update_status(
    State(registry): State<Arc<Registry>>,
    AgentId(id): AgentId,
    caller: Caller,
    body: JsonBody,
) -> Result<Response, ApiError> {
    caller.check_may_act_for(&id, "set the status")?;
    let update = StatusUpdate::from_json(body.bytes()).map_err(|error| malformed(&error))??;
    let ends = if update.is_final { ", for good" } else { "" };
    let change = format!("set the status {}{ends}", update.status);
    let updated = registry.update_status(&id, update, caller.changed_by());
    Ok(json(caller.change(&id, &change, updated).await?))
}

/// Returns one agent's record.
#[utoipa::path(
    get, path = "/agents/{id}", tag = "agents", params(("id" = String, Path, description = "The agent's id", example = "feature-dev")),
    responses(
        (status = 200, description = "The agent's record.", body = AgentRecord, example = json!(example_record())),
        Unknown, Busy, Always,
    ),
)]
pub(super) async fn get_agent(
    State(registry): State<Arc<Registry>>,
    AgentId(id): AgentId,
) -> Result<Response, ApiError> {
    Ok(json(registry.get_agent(&id).await?))
}

/// Removes an agent.
#[utoipa::path(
    delete, path = "/agents/{id}", tag = "agents", params(("id" = String, Path, description = "The agent's id", example = "feature-dev")),
    responses((status = 204, description = "The agent was removed."), Unknown, Refused, Always),
)]
pub(super) async fn deregister(
    State(registry): State<Arc<Registry>>,
    AgentId(id): AgentId,
    caller: Caller,
) -> Result<StatusCode, ApiError> {
    caller.check_may_act_for(&id, "remove")?;
    caller.change(&id, "remove", registry.deregister(&id, caller.changed_by())).await?;
    Ok(StatusCode::NO_CONTENT)
}
