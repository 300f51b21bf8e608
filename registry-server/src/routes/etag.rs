//! Entity tags: whether a client already has a response.

use axum::http::HeaderMap;
use axum::http::header::IF_NONE_MATCH;
use registry_sdk::internal::is_known_entity_tag;

/// Whether the `If-None-Match` of a request contains this tag.
pub(super) fn is_known(headers: &HeaderMap, etag: &str) -> bool {
    let lists = headers.get_all(IF_NONE_MATCH).iter().filter_map(|list| list.to_str().ok());
    is_known_entity_tag(lists, etag)
}
