//! Finding agents by what they can do.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use registry_sdk::contract::{AgentStatus, CapabilityMatch, limits};
use registry_sdk::search::Query;
use serde::Deserialize;
use utoipa::IntoParams;

use super::describe::{Always, BadParameter, Busy};
use super::extract::{Params, check_healthy, check_limit, check_status};
use super::json::json_array;
use super::problem::ApiError;
use crate::registry::{Filter, Registry, SearchQuery};

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct SearchParams {
    /// Terms that a capability must contain, each as the prefix of a word: at least one letter or digit.
    #[serde(default)]
    #[param(required, min_length = 1, example = "code gen")]
    q: String,
    /// Only agents with this status.
    #[param(value_type = Option<AgentStatus>)]
    status: Option<String>,
    /// Only matches whose `healthy` has this value.
    #[param(value_type = Option<bool>)]
    healthy: Option<String>,
    /// Maximum number of matches, 100 by default. Applied after the filters.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
}

/// Finds agents by what they can do: the best match first, one match for each agent.
#[utoipa::path(
    get, path = "/capabilities/search", tag = "discovery", params(SearchParams),
    responses((status = 200, description = "The matches, best first.", body = Vec<CapabilityMatch>, example = json!([{
        "agent_id": "feature-dev", "agent_name": "Feature Development Agent", "base_url": "http://feature-dev:8002",
        "status": "active", "last_heartbeat": "2026-11-24T09:31:00.456Z", "capability": "code_generation",
        "description": "Generates Python code", "cost_estimate": "~100 tokens", "tags": ["coding", "python"],
        "score": 0.95, "healthy": true, "load": 0.25, "active_tasks": 2,
    }])), BadParameter, Busy, Always),
)]
pub(super) async fn search_capabilities(
    State(registry): State<Arc<Registry>>,
    Params(params): Params<SearchParams>,
) -> Result<Response, ApiError> {
    let words = Query::all(&params.q);
    if words.is_empty() {
        return Err(ApiError::bad_request("q has to have at least one letter or digit to search for"));
    }
    let status = check_status(params.status.as_deref())?;
    let healthy = check_healthy(params.healthy.as_deref())?;
    let limit = check_limit(params.limit)?.unwrap_or(limits::DEFAULT_MATCHES);
    registry.metrics().record_search(&params.q);
    let query = SearchQuery { words, filter: Filter { status, healthy }, limit };
    let first = registry.search_capabilities(query).await?;
    Ok(json_array(registry, first))
}
