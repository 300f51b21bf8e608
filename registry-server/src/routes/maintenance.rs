//! Maintenance: taking agents out of service for a while.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use registry_sdk::contract::{AgentRecord, MaintenanceRequest};
use registry_sdk::internal::RequestBody;
use serde_json::Value;

use super::agents::example_record;
use super::auth::Caller;
use super::describe::{Always, BadBody, Refused, Superseded, Unknown};
use super::extract::{AgentId, JsonBody, malformed};
use super::json::json;
use super::problem::ApiError;
use crate::registry::Registry;

fn example_in_maintenance() -> Value {
    let mut record = example_record();
    record["healthy"] = false.into();
    record["maintenance"] = serde_json::json!({
        "reason": "disk upgrade", "since": "2026-11-24T09:31:00.456Z", "until": "2026-11-24T10:31:00.456Z",
    });
    record
}

/// Takes an agent out of service for a while, replacing any earlier maintenance.
///
/// The agent is unhealthy whatever its status, and searches leave it out. Neither heartbeats nor
/// registrations end its maintenance. With an `instance_id`, the maintenance belongs to that process: it ends
/// when that process is shut down, or when another process registers.
#[utoipa::path(
    put, path = "/agents/{id}/maintenance", tag = "agents",
    params(("id" = String, Path, description = "The agent's id", example = "feature-dev")),
    request_body(content = MaintenanceRequest, example = json!({"reason": "disk upgrade", "duration_seconds": 3600})),
    responses(
        (status = 200, description = "The agent's record.", body = AgentRecord, example = json!(example_in_maintenance())),
        BadBody, Unknown, Superseded, Refused, Always,
    ),
)]
pub(super) async fn set_maintenance(
    State(registry): State<Arc<Registry>>,
    AgentId(id): AgentId,
    caller: Caller,
    body: JsonBody,
) -> Result<Response, ApiError> {
    caller.check_may_act_for(&id, "begin maintenance")?;
    let request = MaintenanceRequest::from_json(body.bytes()).map_err(|error| malformed(&error))??;
    let change = format!("begin maintenance: {}", request.reason);
    let set = registry.set_maintenance(&id, request, caller.changed_by());
    Ok(json(caller.change(&id, &change, set).await?))
}

/// Ends an agent's maintenance. Changes nothing if there is none.
#[utoipa::path(
    delete, path = "/agents/{id}/maintenance", tag = "agents",
    params(("id" = String, Path, description = "The agent's id", example = "feature-dev")),
    responses(
        (status = 200, description = "The agent's record.", body = AgentRecord, example = json!(example_record())),
        Unknown, Refused, Always,
    ),
)]
pub(super) async fn end_maintenance(
    State(registry): State<Arc<Registry>>,
    AgentId(id): AgentId,
    caller: Caller,
) -> Result<Response, ApiError> {
    caller.check_may_act_for(&id, "end maintenance")?;
    let ended = registry.end_maintenance(&id, caller.changed_by());
    Ok(json(caller.change(&id, "end maintenance", ended).await?))
}
