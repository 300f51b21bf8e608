//! `GET /agents`: all agents, or a page of them.

use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderValue;
use axum::http::header::LINK;
use axum::response::Response;
use registry_sdk::contract::{AgentRecord, AgentStatus, is_valid_agent_id};
use serde::Deserialize;
use utoipa::IntoParams;

use super::describe::{Always, BadParameter, Busy};
use super::extract::{Params, check_limit, check_status};
use super::json::json_array;
use super::problem::ApiError;
use crate::registry::{Filter, ListQuery, Page, Registry};

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ListParams {
    /// Only agents with this status.
    #[param(value_type = Option<AgentStatus>)]
    status: Option<String>,
    /// Maximum number of agents in a page.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// Start of the page, from a `Link` header.
    #[param(min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    cursor: Option<String>,
}

/// Lists all agents in the order of their ids, in pages if `limit` is given.
///
/// While more follow, the answer has `Link: <…>; rel="next"`. The cursor is the last id of the page before, and stays valid
/// whatever is registered or removed meanwhile.
#[utoipa::path(
    get, path = "/agents", tag = "agents", params(ListParams),
    responses(
        (status = 200, description = "The agents, or one page of them.", body = Vec<AgentRecord>,
            headers(("Link" = String, description = "The next page, while more agents follow: `<…>; rel=\"next\"`.")),
            example = json!([])),
        BadParameter, Busy, Always,
    ),
)]
pub(super) async fn list_agents(
    State(registry): State<Arc<Registry>>,
    Params(params): Params<ListParams>,
) -> Result<Response, ApiError> {
    let status = check_status(params.status.as_deref())?;
    let limit = check_limit(params.limit)?;
    if params.cursor.as_deref().is_some_and(|cursor| !is_valid_agent_id(cursor)) {
        return Err(ApiError::bad_request("cursor has to be one that a Link header gave"));
    }
    let query = ListQuery { filter: Filter { status, healthy: None }, after: params.cursor, limit };
    let Page { first, next } = registry.list_agents(query).await?;
    let mut response = json_array(registry, first);
    if let (Some(limit), Some(next)) = (limit, next) {
        let status = status.map_or_else(String::new, |status| format!("status={status}&"));
        let link = format!("</agents?{status}limit={limit}&cursor={next}>; rel=\"next\"");
        // Ids and statuses are plain ASCII, so there always is a value.
        response.headers_mut().extend(HeaderValue::try_from(link).map(|link| (LINK, link)));
    }
    Ok(response)
}
