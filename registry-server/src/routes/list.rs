//! `GET /agents`: lists, in pages or as one stream.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderValue;
use axum::http::header::{CONTENT_TYPE, LINK};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use registry_sdk::contract::{AgentRecord, AgentStatus, is_valid_agent_id};
use serde::Deserialize;
use utoipa::IntoParams;

use super::describe::{Always, BadParameter, Busy};
use super::extract::{CHUNK_BYTES, Params, ReadPermit, check_limit, check_status, json, long_json};
use super::problem::ApiError;
use crate::registry::{ListQuery, Page, Registry};

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
    permit: ReadPermit,
    Params(params): Params<ListParams>,
) -> Result<Response, ApiError> {
    let status = check_status(params.status.as_deref())?;
    let limit = check_limit(params.limit)?;
    if params.cursor.as_deref().is_some_and(|cursor| !is_valid_agent_id(cursor)) {
        return Err(ApiError::bad_request("cursor has to be one that a Link header gave"));
    }
    let after = params.cursor;
    let Some(limit) = limit else {
        return list_all(
            registry,
            ListQuery { status, after, limit: usize::MAX, max_bytes: CHUNK_BYTES },
            permit,
        )
        .await;
    };
    let page = registry.list_agents(ListQuery { status, after, limit, max_bytes: usize::MAX }).await?;
    let next = page.last_id.as_ref().filter(|_| page.has_more).map(|last| {
        let status = status.map_or_else(String::new, |status| format!("status={status}&"));
        format!("</agents?{status}limit={limit}&cursor={last}>; rel=\"next\"")
    });
    let mut response = long_json(in_brackets(page.records), permit);
    // Ids and statuses are plain ASCII, so there always is a value.
    if let Some(link) = next.and_then(|next| HeaderValue::try_from(next).ok()) {
        response.headers_mut().insert(LINK, link);
    }
    Ok(response)
}

/// Streams a whole list in chunks, of which few are in memory, however long the list is and however slowly it is read. Each
/// agent is as it is when its chunk is made.
async fn list_all(
    registry: Arc<Registry>,
    query: ListQuery,
    permit: ReadPermit,
) -> Result<Response, ApiError> {
    let first = registry.list_agents(query.clone()).await?;
    if !first.has_more {
        return Ok(json(in_brackets(first.records)));
    }
    let chunks = stream::unfold(Some((registry, query, Some(first), permit)), async |state| {
        let (registry, mut query, first, permit) = state?;
        let before = if first.is_some() { b'[' } else { b',' };
        let Page { mut records, last_id, has_more } = match first {
            Some(page) => page,
            None => registry.list_next_page(&query).await,
        };
        if !records.is_empty() {
            records.insert(0, before);
        }
        if !has_more {
            records.push(b']');
        }
        query.after = last_id;
        Some((Ok::<_, Infallible>(records), has_more.then_some((registry, query, None, permit))))
    });
    Ok(([(CONTENT_TYPE, "application/json")], Body::from_stream(chunks)).into_response())
}

fn in_brackets(mut records: Vec<u8>) -> Vec<u8> {
    records.insert(0, b'[');
    records.push(b']');
    records
}
