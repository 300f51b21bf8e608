//! Responses whose JSON the registry has already encoded.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::HeaderValue;
use axum::http::header::{CONTENT_TYPE, LINK};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};

use crate::registry::{CHUNK_BYTES, Chunk, Error, Page, Registry};

pub(super) fn json(body: impl Into<Body>) -> Response {
    ([(CONTENT_TYPE, "application/json")], body.into()).into_response()
}

/// Sends a list or a search, with a link to the next page if there is one.
///
/// `query` turns the next page's cursor into its query.
pub(super) fn json_page(
    registry: Arc<Registry>,
    page: Page,
    query: impl FnOnce(String) -> String,
) -> Response {
    let Page { first, next } = page;
    let mut response = json_array(registry, first);
    // An encoded query is plain ASCII, so the conversion always succeeds. A reference with a query alone is
    // relative to the path that the client requested, which a proxy may have changed.
    let link = |cursor| HeaderValue::try_from(format!("<?{}>; rel=\"next\"", query(cursor))).ok();
    let link = next.and_then(link);
    response.headers_mut().extend(link.map(|link| (LINK, link)));
    response
}

/// Sends an array.
///
/// A long array is created chunk by chunk as the client reads it, so that it takes no more memory than a
/// short one, however slowly it is read.
fn json_array(registry: Arc<Registry>, first: Chunk) -> Response {
    let Chunk { mut objects, rest } = first;
    match objects.first_mut() {
        Some(comma) => *comma = b'[',
        None => objects.push(b'['),
    }
    if rest.is_none() {
        objects.push(b']');
        return json(objects);
    }
    let further = stream::try_unfold((registry, rest), async |(registry, rest)| {
        let Some(rest) = rest else { return Ok(None) };
        let Chunk { mut objects, rest } = registry.next_chunk(rest).await?;
        if rest.is_none() {
            objects.push(b']');
        }
        Ok(Some((Bytes::from(objects), (registry, rest))))
    });
    // Copies, since an allocation is only freed when all of it was sent.
    let begun: Vec<_> = objects.chunks(CHUNK_BYTES).map(Bytes::copy_from_slice).collect();
    let chunks = stream::iter(begun).map(Ok::<Bytes, Error>).chain(further);
    json(Body::from_stream(chunks))
}
