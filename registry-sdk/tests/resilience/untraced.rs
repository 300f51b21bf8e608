//! A program that has set no propagator sends no context. The same holds without the feature `opentelemetry`.

use opentelemetry::Context;
use opentelemetry::trace::{
    FutureExt, SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState,
};
use registry_sdk::testing::MockRegistry;
use registry_sdk::{Capability, Orchestrator, Registration, RegistryClient};
use serde_json::{Value, json};
use wiremock::matchers::any;
use wiremock::{Mock, MockServer, ResponseTemplate};

#[tokio::test]
async fn without_a_propagator_neither_agents_nor_the_registry_get_the_context() {
    let server = MockServer::start().await;
    Mock::given(any()).respond_with(ResponseTemplate::new(200).set_body_json(json!([]))).mount(&server).await;
    let registry = MockRegistry::start().await;
    let agent = Registration::new("a", "Agent", server.uri()).capability(Capability::new("work"));
    registry.client().register(&agent).await.unwrap();
    let calls = async {
        let orchestrator = Orchestrator::new(registry.client());
        orchestrator.delegate("work").post_json::<Value>("/execute", &1).await.unwrap();
        let client = RegistryClient::new(server.uri()).unwrap();
        client.search_capabilities("work").await.unwrap();
    };
    let (trace, span) = (TraceId::from(1), SpanId::from(7));
    let parent = SpanContext::new(trace, span, TraceFlags::SAMPLED, true, TraceState::default());
    calls.with_context(Context::new().with_remote_span_context(parent)).await;
    let requests = server.received_requests().await.unwrap();
    assert_eq!(requests.len(), 2, "{requests:?}");
    for request in requests {
        assert!(!request.headers.contains_key("traceparent"), "{request:?}");
    }
}
