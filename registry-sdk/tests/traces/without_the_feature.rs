//! Without the feature nothing is sent, however the program traces.

use axum::http::HeaderMap;
use axum::routing::post;
use axum::{Json, Router};
use serde_json::{Value, json};
use wiremock::matchers::any;
use wiremock::{Mock, MockServer, ResponseTemplate};

use crate::support::{Agents, Trace, check, id};

#[tokio::test]
async fn spans_are_made_but_neither_agents_nor_the_registry_get_their_context() {
    let mut agents = Agents::new().await;
    let execute = async |headers: HeaderMap| Json(headers.contains_key("traceparent"));
    agents.start("first", Router::new().route("/execute", post(execute))).await;
    let server = MockServer::start().await;
    Mock::given(any()).respond_with(ResponseTemplate::new(200).set_body_json(json!([]))).mount(&server).await;
    let trace = Trace::begin();
    let orchestrator = agents.orchestrator();
    let done = trace.run(orchestrator.delegate("work").post_json::<Value>("/execute", &1)).await.unwrap();
    assert_eq!(done.value, json!(false));
    let client = registry_sdk::RegistryClient::new(server.uri()).unwrap();
    trace.run(client.search_capabilities("work")).await.unwrap();
    assert!(!server.received_requests().await.unwrap()[0].headers.contains_key("traceparent"));
    let spans = trace.end();
    assert_eq!(spans.attempt(1).parent_span_id, id(spans.one("delegation")));
    check(spans.attempt(1), &[("outcome", "ok")]);
}
