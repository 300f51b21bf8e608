//! Finding agents by what they can do.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use registry_sdk::contract::{CapabilityMatch, limits, terms};
use serde::Deserialize;

use super::extract::{Params, check_limit, check_status};
use super::problem::ApiError;
use crate::registry::{Registry, SearchQuery};

#[derive(Deserialize)]
pub(super) struct SearchParams {
    #[serde(default)]
    q: String,
    status: Option<String>,
    limit: Option<usize>,
}

pub(super) async fn search(
    State(registry): State<Arc<Registry>>,
    Params(params): Params<SearchParams>,
) -> Result<Json<Vec<CapabilityMatch>>, ApiError> {
    if terms(&params.q).next().is_none() {
        return Err(ApiError::bad_request("q has to have at least one letter or digit to search for"));
    }
    let status = check_status(params.status.as_deref())?;
    let limit = check_limit(params.limit)?.unwrap_or(limits::DEFAULT_MATCHES);
    registry.metrics().searched(&params.q);
    Ok(Json(registry.search(&SearchQuery { q: params.q, status, limit }).await))
}
