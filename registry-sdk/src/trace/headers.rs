//! The headers that carry the context of the current span to other processes.

use opentelemetry::propagation::Injector;
use opentelemetry::{Context, global};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

/// Returns the headers that carry the context of the current span, for requests that the SDK does not send.
///
/// In [`Delegation::run`](crate::discovery::Delegation::run) the current span is that of the attempt:
///
/// ```no_run
/// use registry_sdk::{Orchestrator, trace};
///
/// # async fn example(orchestrator: Orchestrator) -> Result<(), Box<dyn std::error::Error>> {
/// let http = reqwest::Client::new();
/// let done = orchestrator
///     .delegate("code_review")
///     .run(|agent| {
///         let request = http.post(format!("{}/review", agent.base_url)).headers(trace::headers());
///         async move { Ok(request.send().await?.error_for_status()?.text().await?) }
///     })
///     .await?;
/// println!("{}", done.value);
/// # Ok(())
/// # }
/// ```
#[must_use]
pub fn headers() -> HeaderMap {
    let mut headers = Headers(HeaderMap::new());
    global::get_text_map_propagator(|propagator| {
        propagator.inject_context(&Context::current(), &mut headers);
    });
    headers.0
}

struct Headers(HeaderMap);

impl Injector for Headers {
    /// Leaves out invalid headers, and an empty `tracestate`, which the specification advises against.
    fn set(&mut self, key: &str, value: String) {
        let value = Some(value).filter(|value| !value.is_empty());
        let value = value.and_then(|value| HeaderValue::try_from(value).ok());
        if let Some((name, value)) = HeaderName::try_from(key).ok().zip(value) {
            self.0.insert(name, value);
        }
    }
}
