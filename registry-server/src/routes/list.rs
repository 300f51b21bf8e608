//! `GET /agents`: all agents, or a page of them.

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::response::Response;
use registry_sdk::ListQuery;
use registry_sdk::contract::AgentRecord;
use registry_sdk::internal::FromQueryString;
use utoipa::IntoParams;

use super::describe::{Always, BadParameter, Busy, FilterParams};
use super::json::json_page;
use super::problem::ApiError;
use crate::registry::Registry;

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes parameters that are parsed as a `ListQuery`")]
struct PageParams {
    /// Maximum number of agents in a page.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// Start of the page, from a `Link` header.
    #[param(min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    cursor: Option<String>,
}

/// Lists all agents ordered by id, in pages if `limit` is given.
///
/// The response has `Link: <?…>; rel="next"` if more agents follow. The cursor is the last id of the previous
/// page, and stays valid whatever is registered or removed meanwhile.
#[utoipa::path(
    get, path = "/agents", tag = "agents", params(FilterParams, PageParams),
    responses(
        (status = 200, description = "The agents, or one page of them.", body = Vec<AgentRecord>,
            headers(("Link" = String, description = "The next page, while more agents follow: `<?…>; rel=\"next\"`, relative to this request's URL.")),
            example = json!([])),
        BadParameter, Busy, Always,
    ),
)]
pub(super) async fn list_agents(
    State(registry): State<Arc<Registry>>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let query = ListQuery::from_query_string(&query.unwrap_or_default())?;
    let page = registry.list_agents(query.clone()).await?;
    Ok(json_page(registry, page, |cursor| query.after(cursor).to_query_string()))
}
