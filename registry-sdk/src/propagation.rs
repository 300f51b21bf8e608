//! The context of the current span in the SDK's requests.

use reqwest::header::HeaderMap;

/// Returns the headers that carry the context of the current span. Without the feature `opentelemetry`, there are none.
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
