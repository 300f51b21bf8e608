//! Health of an agent and of the server, and how many there are.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use registry_sdk::contract::{AgentHealth, HealthStatus, RegistryStats, ServerHealth};

use super::extract::AgentId;
use super::problem::ApiError;
use crate::registry::Registry;

pub(super) async fn agent(
    State(registry): State<Arc<Registry>>,
    AgentId(id): AgentId,
) -> Result<Json<AgentHealth>, ApiError> {
    Ok(Json(registry.health(&id).await?))
}

pub(super) async fn server(State(registry): State<Arc<Registry>>) -> (StatusCode, Json<ServerHealth>) {
    let health = registry.server_health();
    let status = match health.status {
        HealthStatus::Healthy => StatusCode::OK,
        HealthStatus::Unhealthy => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, Json(health))
}

pub(super) async fn stats(State(registry): State<Arc<Registry>>) -> Json<RegistryStats> {
    Json(registry.stats().await)
}
