//! Entity tags: whether a client already has a response.

use axum::http::HeaderMap;
use axum::http::header::IF_NONE_MATCH;

/// Whether the `If-None-Match` of a request contains this tag.
///
/// Compares weakly, since compressing proxies turn the tag into a weak one (RFC 9110, section 13.1.2).
pub(super) fn is_known(headers: &HeaderMap, etag: &str) -> bool {
    let matches = |known: &str| known == "*" || known.strip_prefix("W/").unwrap_or(known) == etag;
    let mut lists = headers.get_all(IF_NONE_MATCH).iter().filter_map(|list| list.to_str().ok());
    lists.any(|list| list.split(',').any(|known| matches(known.trim())))
}
