//! Request ids: the client's own, or a new one. Used in the response and in the log.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

use axum::http::{HeaderMap, HeaderName, HeaderValue};

pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Maximum length of a client's request id, in bytes.
const MAX_BYTES: usize = 128;

/// Generates ids for requests without a usable one: a random prefix per process, and a sequence number.
pub(super) struct RequestIds {
    process: String,
    next: AtomicU64,
}

impl Default for RequestIds {
    fn default() -> Self {
        Self { process: format!("{:016x}-", RandomState::new().hash_one(0)), next: AtomicU64::default() }
    }
}

impl RequestIds {
    /// Returns the id of a request: 1 to 128 visible ASCII characters from its header, or else a new id.
    pub(super) fn of(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let is_usable = |id: &&HeaderValue| {
            let id = id.as_bytes();
            (1..=MAX_BYTES).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
        };
        headers.get(REQUEST_ID).filter(is_usable).cloned().or_else(|| self.generate())
    }

    fn generate(&self) -> Option<HeaderValue> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        HeaderValue::try_from(format!("{}{number}", self.process)).ok()
    }
}
