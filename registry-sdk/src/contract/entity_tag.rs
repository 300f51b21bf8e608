//! Entity tags: whether a client already has a response.

/// Returns whether the `If-None-Match` fields of a request contain an entity tag.
///
/// Compares weakly, because compressing proxies turn the tag into a weak one (RFC 9110, section 13.1.2).
#[must_use]
pub fn is_known_entity_tag<'a>(if_none_match: impl IntoIterator<Item = &'a str>, etag: &str) -> bool {
    let matches = |known: &str| known == "*" || known.strip_prefix("W/").unwrap_or(known) == etag;
    if_none_match.into_iter().any(|list| list.split(',').any(|known| matches(known.trim())))
}
