//! Calls to the registry and their attempts are spans, and each request carries the context of its attempt.

use std::time::Duration;

use opentelemetry::trace::{SpanKind, Status};
use registry_sdk::contract::Registration;
use registry_sdk::{Agent, Error, RegistryClient, RetryPolicy};
use serde_json::json;
use wiremock::matchers::{any, method};
use wiremock::{Mock, MockServer, Request, ResponseTemplate};

use crate::support::{Trace, attribute, check, id};

fn traceparent(request: &Request) -> Option<&str> {
    request.headers.get("traceparent").and_then(|value| value.to_str().ok())
}

fn client(server: &MockServer) -> RegistryClient {
    let policy = RetryPolicy::discovery().min_delay(Duration::ZERO);
    RegistryClient::builder(server.uri()).retry(policy).build().unwrap()
}

#[tokio::test]
async fn each_attempt_is_a_span_whose_context_is_sent_to_the_registry() {
    let server = MockServer::start().await;
    let unavailable = Mock::given(any()).respond_with(ResponseTemplate::new(503));
    unavailable.up_to_n_times(1).mount(&server).await;
    Mock::given(any()).respond_with(ResponseTemplate::new(200).set_body_json(json!([]))).mount(&server).await;
    let trace = Trace::begin();
    trace.run(client(&server).search_capabilities("secret words")).await.unwrap();
    let (trace_id, spans) = (trace.id, trace.end());
    let operation = spans.one("registry_request");
    assert_eq!(operation.parent_span_id, id(spans.one("test")));
    check(operation, &[("method", "GET"), ("path", "capabilities/search"), ("error.type", "")]);
    let attempts = spans.named("GET");
    let url = format!("{}/capabilities/search", server.uri());
    let port = server.address().port().to_string();
    for attempt in &attempts {
        assert_eq!(attempt.parent_span_id, id(operation));
        assert_eq!(attempt.span_kind, SpanKind::Client);
        // The URL is without its query, which may have texts that no collector should see.
        check(attempt, &[("url.full", &url), ("server.port", &port), ("http.request.method", "GET")]);
    }
    check(attempts[0], &[("http.response.status_code", "503"), ("error.type", "unavailable")]);
    check(attempts[0], &[("http.request.resend_count", "")]);
    assert!(matches!(attempts[0].status, Status::Error { .. }), "{:?}", attempts[0]);
    check(attempts[1], &[("http.response.status_code", "200"), ("http.request.resend_count", "1")]);
    let received = server.received_requests().await.unwrap();
    let sent: Vec<_> = received.iter().map(|request| traceparent(request).unwrap().to_owned()).collect();
    let expected = attempts.iter().map(|span| format!("00-{trace_id}-{}-01", id(span)));
    assert_eq!(sent, expected.collect::<Vec<_>>());
}

#[tokio::test]
async fn spans_of_a_failed_call_have_the_error() {
    let server = MockServer::start().await;
    let problem = json!({"type": "about:blank", "title": "Not Found", "status": 404, "detail": "no agent a"});
    let response = ResponseTemplate::new(404).set_body_raw(problem.to_string(), "application/problem+json");
    Mock::given(any()).respond_with(response).mount(&server).await;
    let trace = Trace::begin();
    let error = trace.run(client(&server).get_agent("a")).await.unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error:?}");
    let spans = trace.end();
    for span in [spans.one("registry_request"), spans.one("GET")] {
        check(span, &[("error.type", "not_found")]);
        assert!(matches!(span.status, Status::Error { .. }), "{span:?}");
    }
}

#[tokio::test]
async fn call_outside_any_span_sends_no_context() {
    let server = MockServer::start().await;
    Mock::given(any()).respond_with(ResponseTemplate::new(200).set_body_json(json!([]))).mount(&server).await;
    // Installs the exporter.
    drop(Trace::begin());
    client(&server).search_capabilities("work").await.unwrap();
    assert_eq!(traceparent(&server.received_requests().await.unwrap()[0]), None);
}

#[tokio::test]
async fn heartbeats_make_no_spans_at_info_and_belong_to_no_trace() {
    let server = MockServer::start().await;
    let ack = ResponseTemplate::new(200).set_body_json(json!({"agent_id": "a", "status": "active"}));
    Mock::given(method("POST")).respond_with(ack.clone()).mount(&server).await;
    Mock::given(method("PUT")).respond_with(ack).mount(&server).await;
    let trace = Trace::begin();
    let agent = Agent::new(client(&server), Registration::new("a", "Agent", "http://agent:8000"));
    let heartbeats = async {
        agent.start_heartbeat(Duration::from_millis(20)).unwrap();
        while server.received_requests().await.unwrap().len() < 4 {
            tokio::task::yield_now().await;
        }
        agent.shutdown().await;
    };
    trace.run(heartbeats).await;
    let spans = trace.end();
    assert_eq!(spans.0.len(), 1, "{spans:#?}");
    for request in server.received_requests().await.unwrap() {
        assert_eq!(traceparent(&request), None, "{request:?}");
    }
    let port = server.address().port().to_string();
    let to_server = spans.0.iter().filter(|span| attribute(span, "server.port") == Some(port.clone()));
    assert_eq!(to_server.count(), 0);
}
