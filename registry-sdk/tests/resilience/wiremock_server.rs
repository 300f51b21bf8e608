//! The client and the agent against `wiremock`, which many users' tests are based on. It responds from a runtime of its own, so
//! these tests run on the real clock.

use std::time::Duration;

use registry_sdk::contract::Heartbeat;
use registry_sdk::{
    Agent, AgentStatus, Capability, Error, ListQuery, Registration, RegistryClient, RetryPolicy,
};
use serde_json::{Value, json};
use wiremock::matchers::{body_partial_json, header, method, path, query_param};
use wiremock::{Mock, MockServer, ResponseTemplate};

use crate::support::until;

const PROBLEM: &str = "application/problem+json";

fn client(server: &MockServer) -> RegistryClient {
    let patient = RegistryClient::builder(server.uri()).timeout(Duration::from_secs(3_600));
    patient.retry(RetryPolicy::none()).build().unwrap()
}

fn record(agent_id: &str) -> Value {
    json!({"agent_id": agent_id, "agent_name": "Agent", "base_url": "http://agent:8000", "status": "active",
        "capabilities": [{"name": "work"}], "last_heartbeat": "2026-11-24T09:30:00.123Z"})
}

fn problem(status: u16, body: &Value) -> ResponseTemplate {
    ResponseTemplate::new(status).set_body_raw(body.to_string(), PROBLEM)
}

fn ok(body: impl serde::Serialize) -> ResponseTemplate {
    ResponseTemplate::new(200).set_body_json(body)
}

#[tokio::test]
async fn every_operation_works_against_wiremock() {
    let server = MockServer::start().await;
    let registration =
        Registration::new("a", "Agent", "http://agent:8000").capability(Capability::new("work").tag("rust"));
    Mock::given(method("POST"))
        .and(path("/register"))
        .and(header("content-type", "application/json"))
        .and(body_partial_json(
            json!({"agent_id": "a", "capabilities": [{"name": "work", "tags": ["rust"]}]}),
        ))
        .respond_with(ok(record("a")))
        .expect(1)
        .mount(&server)
        .await;
    Mock::given(method("POST"))
        .and(path("/agents/a/heartbeat"))
        .and(body_partial_json(json!({"status": "busy"})))
        .respond_with(ok(json!({"agent_id": "a", "status": "busy"})))
        .expect(1)
        .mount(&server)
        .await;
    let next = "</agents?limit=1&cursor=a>; rel=\"next\"";
    Mock::given(method("GET"))
        .and(path("/agents"))
        .and(query_param("limit", "1"))
        .respond_with(ok([record("a")]).insert_header("link", next))
        .expect(1)
        .mount(&server)
        .await;
    let found = json!([{"agent_id": "a", "status": "active", "capability": "work", "score": 0.9}]);
    Mock::given(method("GET"))
        .and(path("/capabilities/search"))
        .and(query_param("q", "some work"))
        .respond_with(ok(found))
        .expect(1)
        .mount(&server)
        .await;
    Mock::given(method("GET"))
        .and(path("/health/a"))
        .respond_with(ok(json!({"agent_id": "a", "status": "healthy"})))
        .expect(1)
        .mount(&server)
        .await;
    Mock::given(method("DELETE"))
        .and(path("/agents/a"))
        .respond_with(ResponseTemplate::new(204))
        .expect(1)
        .mount(&server)
        .await;

    let client = client(&server);
    assert_eq!(client.register(&registration).await.unwrap().capabilities[0].name, "work");
    let heartbeat = Heartbeat::default().status(AgentStatus::Busy);
    assert_eq!(client.heartbeat_with("a", &heartbeat).await.unwrap().status, AgentStatus::Busy);
    let page = client.list_agents(ListQuery::all().limit(1)).await.unwrap();
    assert_eq!((page.agents.len(), page.next_cursor.as_deref()), (1, Some("a")));
    assert_eq!(client.search_capabilities("some work").await.unwrap()[0].score, Some(0.9));
    assert!(client.check_health("a").await.unwrap().is_healthy());
    client.deregister("a").await.unwrap();
}

#[tokio::test]
async fn errors_of_wiremock_are_distinguished() {
    let server = MockServer::start().await;
    let fields = json!([{"field": "agent_id", "message": "is taken"}]);
    let answers = [
        ("unknown", problem(404, &json!({"status": 404, "detail": "no such agent"}))),
        ("invalid", problem(422, &json!({"status": 422, "detail": "wrong", "errors": fields}))),
        ("denied", problem(403, &json!({"status": 403, "detail": "not yours"}))),
        ("busy", problem(503, &json!({"status": 503, "detail": "later"})).insert_header("retry-after", "7")),
        ("proxy", ResponseTemplate::new(403).set_body_raw("<html>", "text/html")),
    ];
    for (agent_id, answer) in answers {
        Mock::given(path(format!("/agents/{agent_id}"))).respond_with(answer).mount(&server).await;
    }
    let client = client(&server);
    assert!(client.get_agent("unknown").await.unwrap_err().is_not_found());
    let invalid = client.get_agent("invalid").await.unwrap_err();
    assert_eq!((invalid.is_refused(), &*invalid.fields()[0].field), (true, "agent_id"));
    let denied = client.get_agent("denied").await.unwrap_err();
    assert!(matches!(denied, Error::Denied { status: 403, .. }), "{denied:?}");
    let busy = client.get_agent("busy").await.unwrap_err();
    assert_eq!((busy.is_retryable(), busy.retry_after()), (true, Some(Duration::from_secs(7))));
    let proxy = client.get_agent("proxy").await.unwrap_err();
    assert!(matches!(proxy, Error::InvalidResponse { status: 403, .. }), "{proxy:?}");
}

#[tokio::test]
async fn call_is_retried_until_wiremock_succeeds() {
    let server = MockServer::start().await;
    Mock::given(path("/agents/a"))
        .respond_with(ResponseTemplate::new(503))
        .up_to_n_times(2)
        .expect(2)
        .mount(&server)
        .await;
    Mock::given(path("/agents/a")).respond_with(ok(record("a"))).expect(1).mount(&server).await;
    let policy = RetryPolicy::discovery()
        .min_delay(Duration::from_millis(1))
        .max_delay(Duration::from_millis(1))
        .time_limit(Duration::MAX);
    assert_eq!(client(&server).with_retry(policy).get_agent("a").await.unwrap().agent_id, "a");
}

#[tokio::test]
async fn slow_wiremock_times_out() {
    let server = MockServer::start().await;
    let late = ok(record("a")).set_delay(Duration::from_secs(3_600));
    Mock::given(path("/agents/a")).respond_with(late).mount(&server).await;
    let client = RegistryClient::builder(server.uri()).timeout(Duration::from_millis(20));
    let client = client.retry(RetryPolicy::none()).build().unwrap();
    let error = client.get_agent("a").await.unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }), "{error:?}");
}

/// The registry forgets the agent once, and knows it afterwards.
#[tokio::test]
async fn agent_works_with_wiremock() {
    let server = MockServer::start().await;
    // On a busy machine, requests that time out are repeated, so these are minima.
    Mock::given(path("/register")).respond_with(ok(record("a"))).expect(2..).mount(&server).await;
    Mock::given(path("/agents/a/heartbeat"))
        .respond_with(problem(404, &json!({"status": 404, "detail": "no such agent"})))
        .up_to_n_times(1)
        .expect(1)
        .mount(&server)
        .await;
    let heartbeats = Mock::given(path("/agents/a/heartbeat"))
        .respond_with(ok(json!({"agent_id": "a", "status": "active"})))
        .expect(3..)
        .mount_as_scoped(&server)
        .await;
    Mock::given(method("PUT"))
        .and(path("/agents/a/status"))
        .and(body_partial_json(json!({"status": "offline", "final": true})))
        .respond_with(ok(record("a")))
        .expect(1)
        .mount(&server)
        .await;
    let agent = Agent::new(client(&server), Registration::new("a", "Agent", "http://agent:8000"));
    agent.start_heartbeat(Duration::from_millis(10)).unwrap();
    heartbeats.wait_until_satisfied().await;
    until("it is registered", || agent.state().is_registered()).await;
    agent.shutdown_within(Duration::from_secs(3_600)).await;
}
