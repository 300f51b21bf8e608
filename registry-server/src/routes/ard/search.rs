//! `POST /ard/search`: entries that match a text, best first.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::entry::EntryPage;
use super::query::{Query, prepare, read_body, read_page_size};
use super::site::Site;
use crate::registry::{Find, Registry};
use crate::routes::capabilities::SENTENCE;
use crate::routes::extract::JsonBody;
use crate::routes::problem::ApiError;

const DEFAULT_PAGE_SIZE: usize = 10;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SearchRequest {
    query: Query,
    /// Ignored, since there are no other registries to ask or to name.
    #[serde(rename = "federation")]
    _federation: Option<Federation>,
    page_size: Option<u64>,
    page_token: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Federation {
    Auto,
    Referrals,
    None,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SearchResponse {
    results: Vec<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    page_token: Option<String>,
}

/// Finds entries of healthy agents by a text.
pub(super) async fn search(
    State(registry): State<Arc<Registry>>,
    site: Site,
    body: JsonBody,
) -> Result<Json<SearchResponse>, ApiError> {
    let SearchRequest { query, page_size, page_token, .. } = read_body(&body)?;
    let limit = read_page_size(page_size, DEFAULT_PAGE_SIZE)?;
    let text = query.text.as_deref().ok_or_else(|| ApiError::bad_request("query.text is required"))?;
    let search = prepare(text, page_token.as_deref())?;
    let (filter, filtered_site) = (query.filter()?, site.clone());
    registry.metrics().record_search(SENTENCE);
    let accepts = move |agent: &_| filter.accepts(agent, &filtered_site);
    let finish = move |found| EntryPage::new(&found, &site);
    let page = registry.find_agents(Find::Matches(search), limit, accepts, finish).await?;
    Ok(Json(SearchResponse { results: page.entries, page_token: page.next }))
}
