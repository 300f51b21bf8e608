//! A delegation over A2A is one trace, with all requests of its attempts.

use axum::middleware::from_fn;
use axum::routing::post;
use axum::{Json, Router};
use registry_sdk::a2a::{CardDetails, Interface};
use registry_sdk::trace::continue_trace;
use registry_sdk::{Capability, Registration};
use serde_json::{Value, json};

use crate::support::{Agents, Trace, check, id};

/// An agent whose tasks are completed at the first poll.
fn worker() -> Router {
    let rpc = async |Json(request): Json<Value>| {
        let task = |state: &str| json!({"id": "t-1", "status": {"state": state}});
        let result = match request["method"].as_str() {
            Some("SendMessage") => json!({"task": task("TASK_STATE_WORKING")}),
            _ => task("TASK_STATE_COMPLETED"),
        };
        Json(json!({"jsonrpc": "2.0", "id": request["id"], "result": result}))
    };
    Router::new().route("/rpc", post(rpc)).layer(from_fn(continue_trace))
}

#[tokio::test]
async fn attempts_have_outcomes_and_agents_continue_the_trace() {
    let mut agents = Agents::new().await;
    agents.register("first", "http://127.0.0.1:1").await;
    let url = agents.start("second", worker()).await;
    let registration =
        Registration::new("second", "second", &*url).capability(Capability::new("work_in_part"));
    let rpc = format!("{url}/rpc");
    let card = CardDetails::new("Works", "1.0.0", Interface::json_rpc(&*rpc)).card_of(&registration).unwrap();
    agents.registry.client().register(&registration.card(card)).await.unwrap();
    let trace = Trace::begin();
    let orchestrator = agents.orchestrator();
    trace.run(orchestrator.delegate("work").send_message("Find a recipe")).await.unwrap();
    let spans = trace.end();
    // The first agent registered no card.
    check(
        spans.attempt(1),
        &[("outcome", "declined"), ("error.type", "a2a_not_callable"), ("http.response.status_code", "")],
    );
    let attempt = spans.attempt(2);
    check(attempt, &[("outcome", "ok"), ("url.full", &rpc), ("http.response.status_code", "200")]);
    check(attempt, &[("http.request.method", "POST"), ("error.type", "")]);
    let requests = spans.named("POST /rpc");
    assert_eq!(requests.len(), 2, "{requests:#?}");
    assert!(requests.iter().all(|request| request.parent_span_id == id(attempt)), "{requests:#?}");
    let lookups = spans.named("registry_request");
    assert!(lookups.iter().any(|request| request.parent_span_id == id(attempt)), "{lookups:#?}");
}
