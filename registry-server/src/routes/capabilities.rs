//! Finding agents by capability.

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::response::Response;
use registry_sdk::MatchMode;
use registry_sdk::contract::CapabilityMatch;
use registry_sdk::internal::{FromQueryString, PreparedSearch};
use utoipa::IntoParams;
use utoipa::openapi::schema::{Object, ObjectBuilder, Type};

use super::describe::{Always, BadParameter, Busy, FilterParams};
use super::json::json_page;
use super::problem::ApiError;
use crate::registry::Registry;

/// Metrics label for all searches by sentence, since each sentence would be a new label value.
pub(super) const SENTENCE: &str = "(sentence)";

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes parameters that are parsed as a `PreparedSearch`")]
struct WordsParam {
    /// Words or a sentence, with at least one letter or digit. Optional if `capability` is given.
    #[param(example = "code gen")]
    q: Option<String>,
    /// `all`, the default: a capability must contain every word, in any English form, or as the beginning of
    /// a word. `best`: any word of a sentence may match, and the score tells how well.
    #[param(rename = "match", schema_with = match_mode)]
    match_mode: Option<String>,
    /// Only matches with at least this score.
    #[param(minimum = 0, maximum = 1, default = 0)]
    min_score: Option<f64>,
    /// Whether to find capabilities that contain words of the query in their description only.
    #[param(default = true)]
    description_only: Option<bool>,
}

fn match_mode() -> Object {
    let modes = [MatchMode::All, MatchMode::Best].map(|mode| mode.to_string());
    ObjectBuilder::new()
        .schema_type(Type::String)
        .enum_values(Some(modes))
        .default(Some(MatchMode::default().to_string().into()))
        .build()
}

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes parameters that are parsed as a `PreparedSearch`")]
struct PageParams {
    /// Maximum number of matches, 100 by default. Applied after the filters.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// Start of the page: `*` for the first page, or a cursor from a `Link` header. Matches are then ordered
    /// by score and id.
    #[param(
        min_length = 1,
        max_length = 96,
        pattern = r"^(\*|[0-9a-f]{1,16}\.[A-Za-z0-9][A-Za-z0-9._-]{0,63})$"
    )]
    cursor: Option<String>,
}

/// Finds agents by capability, best match first, with one match per agent.
///
/// With `cursor`, the response has `Link: <?…>; rel="next"` if more matches follow.
#[utoipa::path(
    get, path = "/capabilities/search", tag = "discovery", params(WordsParam, FilterParams, PageParams),
    responses((status = 200, description = "The matches, best first.", body = Vec<CapabilityMatch>,
        headers(("Link" = String, description = "The next page, if `cursor` was given and more follow: `<?…>; rel=\"next\"`, relative to this request's URL.")),
        example = json!([{
        "agent_id": "feature-dev", "agent_name": "Feature Development Agent", "base_url": "http://feature-dev:8002",
        "status": "active", "last_heartbeat": "2026-11-24T09:31:00.456Z", "capability": "code_generation",
        "description": "Generates Python code", "cost_estimate": "~100 tokens", "tags": ["coding", "python"],
        "score": 0.95, "healthy": true, "load": 0.25, "active_tasks": 2,
    }])), BadParameter, Busy, Always),
)]
pub(super) async fn search_capabilities(
    State(registry): State<Arc<Registry>>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let search = Arc::new(PreparedSearch::from_query_string(&query.unwrap_or_default())?);
    let query = search.query();
    let is_sentence = query.match_mode == MatchMode::Best;
    let name = query.filter.capability.as_deref().filter(|_| query.q.is_empty());
    registry.metrics().record_search(if is_sentence { SENTENCE } else { name.unwrap_or(&query.q) });
    let page = registry.search_capabilities(search.clone()).await?;
    Ok(json_page(registry, page, |cursor| query.clone().after(cursor).to_query_string()))
}
