//! Finding agents by what they can do.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use registry_sdk::contract::{AgentStatus, CapabilityMatch, limits, terms};
use serde::Deserialize;
use utoipa::IntoParams;

use super::describe::{Always, BadQuery, Busy};
use super::extract::{Costly, Params, check_limit, check_status, long_json};
use super::problem::ApiError;
use crate::registry::{Registry, SearchQuery};

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct SearchParams {
    /// Words that a capability has to have, each at the beginning of one of its own: at least one letter or digit.
    #[serde(default)]
    #[param(required, min_length = 1, example = "code gen")]
    q: String,
    /// Only agents of this status.
    #[param(value_type = Option<AgentStatus>)]
    status: Option<String>,
    /// How many matches at most; 100 where it is left out.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
}

/// Agents by what they can do, the best match first, one match an agent.
#[utoipa::path(
    get, path = "/capabilities/search", tag = "discovery", params(SearchParams),
    responses((status = 200, body = Vec<CapabilityMatch>, example = json!([{
        "agent_id": "feature-dev", "agent_name": "Feature Development Agent", "base_url": "http://feature-dev:8002",
        "status": "active", "last_heartbeat": "2026-11-24T09:31:00.456Z", "capability": "code_generation",
        "description": "Generates Python code", "cost_estimate": "~100 tokens", "tags": ["coding", "python"],
        "score": 0.95, "healthy": true, "load": 0.25, "active_tasks": 2,
    }])), BadQuery, Busy, Always),
)]
pub(super) async fn search(
    State(registry): State<Arc<Registry>>,
    place: Costly,
    Params(params): Params<SearchParams>,
) -> Result<Response, ApiError> {
    if terms(&params.q).next().is_none() {
        return Err(ApiError::bad_request("q has to have at least one letter or digit to search for"));
    }
    let status = check_status(params.status.as_deref())?;
    let limit = check_limit(params.limit)?.unwrap_or(limits::DEFAULT_MATCHES);
    registry.metrics().record_search(&params.q);
    Ok(long_json(registry.search_capabilities(SearchQuery { q: params.q, status, limit }).await?, place))
}
