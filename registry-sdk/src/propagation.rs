//! The context of the current span, in the SDK's own requests.

use reqwest::header::HeaderMap;

/// Returns the headers that carry the context of the current span: none without the feature `opentelemetry`.
pub(crate) fn headers() -> HeaderMap {
    #[cfg(feature = "opentelemetry")]
    {
        crate::trace::headers()
    }
    #[cfg(not(feature = "opentelemetry"))]
    {
        HeaderMap::new()
    }
}
