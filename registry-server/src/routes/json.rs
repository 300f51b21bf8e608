//! Answers whose JSON the registry has made already.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};

use crate::registry::{CHUNK_BYTES, Chunk, Registry};

pub(super) fn json(body: impl Into<Body>) -> Response {
    ([(CONTENT_TYPE, "application/json")], body.into()).into_response()
}

/// Sends an array. A long one is made chunk by chunk as the client reads it, so that it takes as little memory as a
/// short one, however slowly it is read.
pub(super) fn json_array(registry: Arc<Registry>, first: Chunk) -> Response {
    let Chunk { mut objects, rest } = first;
    match objects.first_mut() {
        Some(comma) => *comma = b'[',
        None => objects.push(b'['),
    }
    if rest.is_none() {
        objects.push(b']');
        return json(objects);
    }
    let further = stream::unfold((registry, rest), async |(registry, rest)| {
        let Chunk { mut objects, rest } = registry.next_chunk(&rest?).await;
        if rest.is_none() {
            objects.push(b']');
        }
        Some((objects.into(), (registry, rest)))
    });
    // Copies, since nothing of an allocation is freed before all of it is sent.
    let begun: Vec<_> = objects.chunks(CHUNK_BYTES).map(Bytes::copy_from_slice).collect();
    let chunks = stream::iter(begun).chain(further).map(Ok::<Bytes, Infallible>);
    json(Body::from_stream(chunks))
}
