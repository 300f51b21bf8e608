//! How an agent on axum continues the trace in the headers of a request, or begins one.

use std::collections::HashSet;

use axum::Router;
use axum::middleware::from_fn;
use axum::routing::post;
use opentelemetry::Context;
use opentelemetry::trace::{SpanId, TraceContextExt, TraceId};
use registry_sdk::trace::{self, continue_trace};
use tokio::task::JoinSet;

use crate::support::{Spans, Trace, serve};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

/// Sends a request with these headers to an agent. Returns the trace in which its handler ran, and the `tracestate` that the handler would
/// send on.
async fn send(headers: &[(&'static str, &str)]) -> (TraceId, Option<String>) {
    // Installs the exporter.
    drop(Trace::begin());
    let execute = async || {
        let sent = trace::headers().get("tracestate").map(|state| state.to_str().unwrap().to_owned());
        let trace_id = Context::current().span().span_context().trace_id();
        format!("{trace_id} {}", sent.unwrap_or_default())
    };
    let app = Router::new().route("/execute", post(execute)).layer(from_fn(continue_trace));
    let (url, serving) = serve(app).await;
    let mut tasks = JoinSet::new();
    tasks.spawn(serving);
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut request = client.post(format!("{url}/execute"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 200);
    let text = response.text().await.unwrap();
    let (trace_id, state) = text.split_once(' ').unwrap();
    (TraceId::from_hex(trace_id).unwrap(), Some(state.to_owned()).filter(|state| !state.is_empty()))
}

#[tokio::test]
async fn trace_is_continued_from_a_valid_traceparent() {
    let (trace, span) = ("4bf92f3577b34da6a3ce929d0e0e4736", "b7ad6b7169203331");
    let parent = format!("00-{trace}-{span}-01");
    let state = ("tracestate", "congo=t61rcWkgMzE");
    let (trace_id, sent) =
        send(&[("traceparent", &parent), state, ("tracestate", "rojo=00f067aa0ba902b7")]).await;
    assert_eq!(trace_id.to_string(), trace);
    // Several header fields are one list, in the order of the fields.
    assert_eq!(sent.as_deref(), Some("congo=t61rcWkgMzE,rojo=00f067aa0ba902b7"));
    let spans = Spans::of(trace_id);
    let request = spans.one("POST /execute");
    assert_eq!(
        (request.parent_span_id, request.parent_span_is_remote),
        (SpanId::from_hex(span).unwrap(), true)
    );
}

#[tokio::test]
async fn trace_is_continued_from_a_traceparent_of_a_later_version() {
    let (trace_id, _) =
        send(&[("traceparent", &format!("cc-{TRACE}-00f067aa0ba902b7-01-later-field"))]).await;
    assert_eq!(trace_id.to_string(), TRACE);
}

#[tokio::test]
async fn missing_or_invalid_traceparent_begins_a_new_trace() {
    let parent = |trace: &str, span: &str| format!("00-{trace}-{span}-01");
    let valid = parent(TRACE, "00f067aa0ba902b7");
    let mut traces =
        vec![send(&[]).await.0, send(&[("traceparent", &valid), ("traceparent", &valid)]).await.0];
    for value in [
        String::new(),
        "nonsense".to_owned(),
        format!("ff-{TRACE}-00f067aa0ba902b7-01"),
        format!("00-{TRACE}-00f067aa0ba902b7"),
        format!("00-{TRACE}-00f067aa0ba902b7-01-more"),
        parent(&"0".repeat(32), "00f067aa0ba902b7"),
        parent(TRACE, "0000000000000000"),
        parent(&TRACE.to_uppercase(), "00f067aa0ba902b7"),
        parent(&TRACE[1..], "00f067aa0ba902b7"),
    ] {
        traces.push(send(&[("traceparent", &value), ("tracestate", "congo=1")]).await.0);
    }
    assert!(
        traces.iter().all(|trace| *trace != TraceId::INVALID && trace.to_string() != TRACE),
        "{traces:?}"
    );
    let count = traces.len();
    assert_eq!(HashSet::<_>::from_iter(traces).len(), count);
}
