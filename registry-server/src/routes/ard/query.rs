//! The query that search and facets share: a text and a filter.

use std::sync::Arc;

use registry_sdk::SearchQuery;
use registry_sdk::contract::limits;
use registry_sdk::internal::{FromQueryString, PreparedSearch, is_valid_agent_id};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::{Map, Value};

use super::field::Field;
use super::site::Site;
use crate::registry::FoundAgent;
use crate::routes::extract::JsonBody;
use crate::routes::problem::ApiError;

/// Maximum number of fields in a filter, and of values per field.
const MAX_CONSTRAINTS: usize = limits::TAGS;

/// Page token of the first page of a search.
const FIRST_PAGE: &str = "*";

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Query {
    /// Binds prefixes of fields. Ignored, since no field with a prefix is supported.
    #[serde(rename = "@context", default)]
    _context: IgnoredAny,
    pub(super) text: Option<String>,
    #[serde(default)]
    filter: Map<String, Value>,
}

impl Query {
    /// Parses the filter.
    pub(super) fn filter(&self) -> Result<Filter, ApiError> {
        if self.filter.len() > MAX_CONSTRAINTS {
            let detail = format!("query.filter may have up to {MAX_CONSTRAINTS} fields");
            return Err(ApiError::bad_request(detail));
        }
        let constraints = self.filter.iter();
        let read = constraints.map(|(path, value)| Ok((Field::read(path)?, read_values(path, value)?)));
        Ok(Filter { constraints: read.collect::<Result<_, ApiError>>()? })
    }
}

/// Constraints on the fields of entries, all of which must be met.
#[derive(Clone, Debug, Default)]
pub(super) struct Filter {
    constraints: Vec<(Field, Vec<String>)>,
}

impl Filter {
    /// Adds a field, which must have one of the values.
    pub(super) fn add(&mut self, field: Field, values: Vec<String>) {
        self.constraints.push((field, values));
    }

    /// Whether an agent has an entry that meets the constraints.
    pub(super) fn accepts(&self, agent: &FoundAgent, site: &Site) -> bool {
        // Another program may have written an id that cannot be part of an identifier.
        is_valid_agent_id(agent.agent_id())
            && self.constraints.iter().all(|(field, values)| field.has_any(values, agent, site))
    }
}

/// Parses a single value or a list of values.
fn read_values(path: &str, value: &Value) -> Result<Vec<String>, ApiError> {
    let values = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
    let texts: Option<Vec<_>> = values
        .iter()
        .map(|value| match value {
            Value::String(text) => Some(text.clone()),
            Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
            Value::Null | Value::Array(_) | Value::Object(_) => None,
        })
        .collect();
    texts.filter(|texts| (1..=MAX_CONSTRAINTS).contains(&texts.len())).ok_or_else(|| {
        ApiError::bad_request(format!(
            "the filter {path:?} must be a text or a list of 1 to {MAX_CONSTRAINTS} texts"
        ))
    })
}

/// Prepares a search for a text among healthy agents, starting at a page token.
pub(super) fn prepare(text: &str, page_token: Option<&str>) -> Result<Arc<PreparedSearch>, ApiError> {
    let query = SearchQuery::sentence(text).healthy(true);
    let read = |token: &str| PreparedSearch::from_query_string(&query.clone().after(token).to_query_string());
    if let Ok(search) = read(page_token.unwrap_or(FIRST_PAGE)) {
        return Ok(search.into());
    }
    Err(match read(FIRST_PAGE) {
        Ok(_) => wrong_page_token(),
        Err(_) => ApiError::bad_request("query.text must contain at least one letter or digit"),
    })
}

pub(super) fn wrong_page_token() -> ApiError {
    ApiError::bad_request("pageToken must be the token returned with the previous page")
}

/// Parses the size of a page.
pub(super) fn read_page_size(size: Option<u64>, default: usize) -> Result<usize, ApiError> {
    const MAX: usize = 100;
    let Some(size) = size else { return Ok(default) };
    let size = usize::try_from(size).ok().filter(|size| (1..=MAX).contains(size));
    size.ok_or_else(|| ApiError::bad_request(format!("pageSize has to be 1 to {MAX}")))
}

/// Parses a body. Unknown fields are errors.
pub(super) fn read_body<T: DeserializeOwned>(body: &JsonBody) -> Result<T, ApiError> {
    let read = serde_json::from_slice(body.bytes());
    read.map_err(|error| ApiError::bad_request(format!("the body does not match this operation: {error}")))
}
