//! `POST /ard/explore`: the number of entries per value of a field.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use registry_sdk::ListQuery;
use serde::{Deserialize, Serialize};

use super::field::Field;
use super::query::{Query, prepare, read_body};
use super::site::Site;
use crate::registry::{Find, FoundAgent, Registry};
use crate::routes::extract::JsonBody;
use crate::routes::problem::ApiError;

/// Maximum number of facets in a request.
const MAX_FACETS: usize = 32;

const DEFAULT_BUCKETS: usize = 20;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ExploreRequest {
    #[serde(default)]
    query: Query,
    result_type: ResultType,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ResultType {
    facets: Vec<FacetRequest>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FacetRequest {
    field: String,
    limit: Option<usize>,
    min_count: Option<u64>,
}

/// A request to count the values of a field.
struct Facet {
    name: String,
    field: Field,
    /// Maximum number of buckets.
    limit: usize,
    min_count: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ExploreResponse {
    result_type: &'static str,
    facets: BTreeMap<String, FacetResult>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FacetResult {
    buckets: Vec<Bucket>,
    /// Sum of the counts beyond the limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    other_count: Option<u64>,
}

#[derive(Serialize)]
struct Bucket {
    value: String,
    count: u64,
}

/// Counts the entries of healthy agents that a search with the same query finds. Without a text, counts all
/// of them.
pub(super) async fn explore(
    State(registry): State<Arc<Registry>>,
    site: Site,
    body: JsonBody,
) -> Result<Json<ExploreResponse>, ApiError> {
    let ExploreRequest { query, result_type } = read_body(&body)?;
    let facets = result_type.facets;
    if !(1..=MAX_FACETS).contains(&facets.len()) {
        let detail = format!("resultType.facets must have 1 to {MAX_FACETS} fields");
        return Err(ApiError::bad_request(detail));
    }
    let facets = facets.into_iter().map(Facet::read).collect::<Result<Vec<_>, _>>()?;
    let (filter, filtered_site) = (query.filter()?, site.clone());
    let which = match query.text {
        Some(text) => Find::Matches(prepare(&text, None)?),
        None => Find::All(ListQuery::all().healthy(true)),
    };
    let accepts = move |agent: &_| filter.accepts(agent, &filtered_site);
    let count = move |agents: &[FoundAgent]| {
        let results = facets.iter().map(|facet| (facet.name.clone(), facet.count(agents, &site)));
        results.collect::<BTreeMap<_, _>>()
    };
    let facets = registry.find_agents(which, usize::MAX, accepts, move |found| count(&found.agents)).await?;
    Ok(Json(ExploreResponse { result_type: "facets", facets }))
}

impl Facet {
    fn read(request: FacetRequest) -> Result<Self, ApiError> {
        let field = Field::read(&request.field)?;
        let limit = request.limit.unwrap_or(DEFAULT_BUCKETS);
        if limit == 0 {
            return Err(ApiError::bad_request("the limit of a facet must be at least 1"));
        }
        Ok(Self { name: request.field, field, limit, min_count: request.min_count.unwrap_or(1) })
    }

    /// Counts the agents for each value, the most frequent values first.
    fn count(&self, agents: &[FoundAgent], site: &Site) -> FacetResult {
        let mut counts = HashMap::<String, u64>::new();
        for value in agents.iter().flat_map(|agent| self.field.values(agent, site)) {
            *counts.entry(value).or_default() += 1;
        }
        let buckets = counts.into_iter().map(|(value, count)| Bucket { value, count });
        let mut buckets: Vec<_> = buckets.filter(|bucket| bucket.count >= self.min_count).collect();
        buckets.sort_unstable_by(|one, other| {
            Reverse(one.count).cmp(&Reverse(other.count)).then_with(|| one.value.cmp(&other.value))
        });
        let others = buckets.split_off(self.limit.min(buckets.len()));
        let other_count = Some(others.iter().map(|bucket| bucket.count).sum()).filter(|count| *count > 0);
        FacetResult { buckets, other_count }
    }
}
