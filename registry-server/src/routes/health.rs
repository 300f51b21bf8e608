//! Health of an agent and of the server, and statistics.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use registry_sdk::contract::{AgentHealth, HealthStatus, Problem, RegistryStats, ServerHealth};

use super::describe::{Always, Busy, Unknown};
use super::extract::AgentId;
use super::problem::ApiError;
use crate::registry::{Error, Registry};

/// Checks whether an agent can be given work.
#[utoipa::path(
    get, path = "/health/{id}", tag = "discovery", params(("id" = String, Path, description = "The agent's id", example = "feature-dev")),
    responses((status = 200, description = "The agent's health, even if it is unhealthy.", body = AgentHealth, example = json!({
        "agent_id": "feature-dev", "status": "healthy", "agent_status": "active",
        "last_heartbeat": "2026-11-24T09:31:00.456Z", "seconds_since_heartbeat": 3.2, "heartbeat_timeout_seconds": 60,
        "reason": null, "probe": null,
    })), Unknown, Busy, Always),
)]
pub(super) async fn check_health(
    State(registry): State<Arc<Registry>>,
    AgentId(id): AgentId,
) -> Result<Json<AgentHealth>, ApiError> {
    Ok(Json(registry.check_health(&id).await?))
}

/// Returns the server's own health, without requiring a token.
#[utoipa::path(
    get, path = "/health", tag = "server", security(()),
    responses(
        (status = 200, description = "The server is healthy.", body = ServerHealth, example = json!({"status": "healthy", "version": "0.1.0",
            "store": "sqlite", "uptime_seconds": 12.3})),
        (status = 500, description = "The server has a bug. See its log for details.",
            body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "The database does not respond, the sweeper has stopped, or a task of the server \
            has failed; or the server has too many connections, and the body is then a problem document.",
            content((ServerHealth = "application/json"), (Problem = "application/problem+json"))),
    ),
)]
pub(super) async fn get_server_health(
    State(registry): State<Arc<Registry>>,
) -> (StatusCode, Json<ServerHealth>) {
    let health = registry.server_health();
    let status = match health.status {
        HealthStatus::Healthy => StatusCode::OK,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, Json(health))
}

/// Reports that the process is running, without requiring a token.
///
/// For supervisors that restart a process that does not respond.
#[utoipa::path(
    get, path = "/livez", tag = "server", security(()),
    responses((status = 200, description = "The process is running.", body = String, content_type = "text/plain", example = "alive")),
)]
pub(super) async fn get_liveness() -> &'static str {
    "alive"
}

/// Reports whether the server accepts requests, without requiring a token.
///
/// For load balancers. Does not depend on the database, since reads are answered from memory without it.
#[utoipa::path(
    get, path = "/readyz", tag = "server", security(()),
    responses(
        (status = 200, description = "The server accepts requests.", body = String, content_type = "text/plain", example = "ready"),
        (status = 503, description = "The server is about to stop, or has too many connections: send requests to another server.",
            body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn get_readiness(State(registry): State<Arc<Registry>>) -> Result<&'static str, ApiError> {
    if registry.drain().has_begun() { Err(Error::ShuttingDown.into()) } else { Ok("ready") }
}

/// Counts agents and capabilities.
#[utoipa::path(
    get, path = "/stats", tag = "discovery",
    responses((status = 200, description = "The counts.", body = RegistryStats, example = json!({"total_agents": 3, "active_agents": 2,
        "busy_agents": 0, "offline_agents": 1, "stale_agents": 1, "maintenance_agents": 0, "total_capabilities": 5,
        "distinct_capabilities": 4})), Busy, Always),
)]
pub(super) async fn get_stats(
    State(registry): State<Arc<Registry>>,
) -> Result<Json<RegistryStats>, ApiError> {
    Ok(Json(registry.get_stats().await?))
}
