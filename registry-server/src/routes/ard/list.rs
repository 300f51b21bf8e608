//! `GET /ard/agents`: the entries of all registered agents, ordered by identifier.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use registry_sdk::ListQuery;
use registry_sdk::internal::is_valid_agent_id;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::entry::EntryPage;
use super::filter_expression::ListFilter;
use super::query::{read_page_size, wrong_page_token};
use super::site::Site;
use crate::registry::{Find, Registry};
use crate::routes::problem::ApiError;

const DEFAULT_PAGE_SIZE: usize = 20;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ListParams {
    filter: Option<String>,
    order_by: Option<String>,
    page_size: Option<u64>,
    page_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ListResponse {
    items: Vec<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    page_token: Option<String>,
}

/// Lists the entries of all registered agents, including unhealthy ones.
pub(super) async fn list_entries(
    State(registry): State<Arc<Registry>>,
    site: Site,
    params: Result<Query<ListParams>, QueryRejection>,
) -> Result<Json<ListResponse>, ApiError> {
    let Query(params) = params.map_err(|rejection| ApiError::bad_request(rejection.body_text()))?;
    let limit = read_page_size(params.page_size, DEFAULT_PAGE_SIZE)?;
    check_order(params.order_by.as_deref())?;
    let filter = params.filter.as_deref().map(ListFilter::read).transpose()?.unwrap_or_default();
    let mut list = ListQuery::all();
    if let Some(token) = params.page_token {
        // The cursor of a page of this list is an agent's id.
        list = Some(list.after(token)).filter(has_valid_cursor).ok_or_else(wrong_page_token)?;
    }
    let filtered_site = site.clone();
    let accepts = move |agent: &_| filter.accepts(agent, &filtered_site);
    let finish = move |found| EntryPage::new(&found, &site);
    let page = registry.find_agents(Find::All(list), limit, accepts, finish).await?;
    Ok(Json(ListResponse { items: page.entries, page_token: page.next }))
}

fn has_valid_cursor(list: &ListQuery) -> bool {
    list.cursor.as_deref().is_some_and(is_valid_agent_id)
}

fn check_order(order: Option<&str>) -> Result<(), ApiError> {
    match order.map(str::trim) {
        None | Some("identifier" | "identifier ASC") => Ok(()),
        Some(_) => Err(ApiError::bad_request("orderBy only supports identifier")),
    }
}
