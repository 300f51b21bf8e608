//! A delegation is one trace, from the orchestrator to the agent's handler.

use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderMap, StatusCode};
use axum::middleware::from_fn;
use axum::routing::post;
use axum::{Json, Router};
use opentelemetry::Context;
use opentelemetry::trace::{
    SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId, TraceState,
};
use registry_sdk::trace::{self, continue_trace};
use serde_json::{Value, json};
use tokio::net::TcpSocket;
use tokio::sync::Notify;
use tracing::info_span;

use crate::support::{Agents, Trace, attribute, check, id};

/// An agent that does its tasks in a span of its own, and returns the trace headers that it received.
fn worker() -> Router {
    let execute = async |headers: HeaderMap| {
        let _span = info_span!("handler").entered();
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        Json(json!({"traceparent": header("traceparent"), "tracestate": header("tracestate")}))
    };
    Router::new().route("/execute", post(execute)).layer(from_fn(continue_trace))
}

/// An agent that responds to every task with this status.
fn failing(status: u16) -> Router {
    let execute = async move || StatusCode::from_u16(status).unwrap();
    Router::new().route("/execute", post(execute)).layer(from_fn(continue_trace))
}

/// Returns an agent that never responds, and a handle that is notified when the agent has received a task.
fn hanging() -> (Router, Arc<Notify>) {
    let has_task = Arc::<Notify>::default();
    let shared = has_task.clone();
    let execute = async move || {
        shared.notify_one();
        std::future::pending::<()>().await;
    };
    (Router::new().route("/execute", post(execute)), has_task)
}

#[tokio::test]
async fn failover_is_one_trace_from_the_orchestrator_to_the_handler() {
    let mut agents = Agents::new().await;
    agents.start("first", failing(500)).await;
    let second = agents.start("second", worker()).await;
    let orchestrator = agents.orchestrator();
    let trace = Trace::begin();
    let work = orchestrator.delegate("work").post_json::<Value>("/execute", &1);
    let done = trace.run(work).await.unwrap();
    assert_eq!(done.selection.agent.agent_id, "second");
    let (trace_id, spans) = (trace.id, trace.end());

    let delegation = spans.one("delegation");
    assert_eq!(delegation.parent_span_id, id(spans.one("test")));
    assert_eq!(delegation.status, Status::Unset);
    let (failed, succeeded) = (spans.attempt(1), spans.attempt(2));
    for attempt in [failed, succeeded] {
        assert_eq!(attempt.parent_span_id, id(delegation));
        assert_eq!(attempt.span_kind, SpanKind::Client);
        check(
            attempt,
            &[("hedge", "false"), ("http.request.method", "POST"), ("server.address", "127.0.0.1")],
        );
    }
    let outcome = [("agent_id", "first"), ("outcome", "agent"), ("error.type", "500")];
    check(failed, &outcome);
    check(failed, &[("http.response.status_code", "500")]);
    assert!(matches!(failed.status, Status::Error { .. }), "{failed:?}");
    check(succeeded, &[("agent_id", "second"), ("outcome", "ok"), ("http.response.status_code", "200")]);
    check(succeeded, &[("error.type", ""), ("url.full", &format!("{second}/execute"))]);
    assert_eq!(succeeded.status, Status::Unset);

    // The agents' side of the same trace.
    let requests = spans.named("POST /execute");
    let parents: Vec<_> = requests.iter().map(|request| request.parent_span_id).collect();
    assert_eq!(parents, [id(failed), id(succeeded)]);
    assert!(
        requests.iter().all(|request| request.span_kind == SpanKind::Server && request.parent_span_is_remote)
    );
    check(requests[0], &[("http.response.status_code", "500"), ("error.type", "500")]);
    check(
        requests[1],
        &[("http.response.status_code", "200"), ("http.route", "/execute"), ("error.type", "")],
    );
    assert_eq!(spans.one("handler").parent_span_id, id(requests[1]));
    let sent = format!("00-{trace_id}-{}-01", id(succeeded));
    assert_eq!(done.value, json!({"traceparent": sent, "tracestate": null}));

    // The search in the registry is part of the trace, too.
    assert_eq!(spans.named("registry_request")[0].parent_span_id, id(delegation));
}

#[tokio::test]
async fn agent_that_cannot_be_reached_is_a_failed_attempt_in_the_trace() {
    let mut agents = Agents::new().await;
    // As long as the socket is bound, no other program can listen on its port.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    agents.register("first", &format!("http://{}", socket.local_addr().unwrap())).await;
    agents.start("second", worker()).await;
    let trace = Trace::begin();
    let orchestrator = agents.orchestrator();
    trace.run(orchestrator.delegate("work").post_json::<Value>("/execute", &1)).await.unwrap();
    let spans = trace.end();
    check(
        spans.attempt(1),
        &[("outcome", "agent"), ("error.type", "unreachable"), ("http.response.status_code", "")],
    );
    assert_eq!(spans.one("POST /execute").parent_span_id, id(spans.attempt(2)));
}

#[tokio::test]
async fn hedge_is_marked_and_the_attempt_that_it_overtook_is_cancelled() {
    let mut agents = Agents::new().await;
    agents.start("first", hanging().0).await;
    agents.start("second", worker()).await;
    let trace = Trace::begin();
    let orchestrator = agents.orchestrator();
    let delegation = orchestrator.delegate("work").hedge_after(Duration::from_millis(5));
    trace.run(delegation.post_json::<Value>("/execute", &1)).await.unwrap();
    let spans = trace.end();
    let (overtaken, hedge) = (spans.attempt(1), spans.attempt(2));
    check(
        overtaken,
        &[("agent_id", "first"), ("hedge", "false"), ("outcome", "cancelled"), ("error.type", "")],
    );
    assert_eq!(overtaken.status, Status::Unset);
    check(hedge, &[("agent_id", "second"), ("hedge", "true"), ("outcome", "ok")]);
    assert_eq!(spans.one("POST /execute").parent_span_id, id(hedge));
}

#[tokio::test]
async fn attempt_is_cancelled_if_its_delegation_is_dropped() {
    let mut agents = Agents::new().await;
    let (app, has_task) = hanging();
    agents.start("first", app).await;
    let trace = Trace::begin();
    let orchestrator = agents.orchestrator();
    let delegation = trace.run(orchestrator.delegate("work").post_json::<Value>("/execute", &1));
    tokio::select! {
        _ = delegation => panic!("the delegation ended without a response"),
        () = has_task.notified() => {}
    }
    check(trace.end().attempt(1), &[("outcome", "cancelled"), ("error.type", "")]);
}

#[tokio::test]
async fn delegation_that_runs_out_of_time_has_failed() {
    let mut agents = Agents::new().await;
    agents.start("first", hanging().0).await;
    let trace = Trace::begin();
    let orchestrator = agents.orchestrator();
    let delegation = orchestrator.delegate("work").time_limit(Duration::from_millis(500));
    trace.run(delegation.post_json::<Value>("/execute", &1)).await.unwrap_err();
    let spans = trace.end();
    let delegation = spans.one("delegation");
    check(delegation, &[("error.type", "timeout")]);
    assert!(matches!(delegation.status, Status::Error { .. }), "{delegation:?}");
    check(spans.attempt(1), &[("outcome", "agent"), ("error.type", "timeout")]);
}

#[tokio::test]
async fn callers_closure_runs_in_the_span_of_its_attempt() {
    let mut agents = Agents::new().await;
    agents.start("first", failing(503)).await;
    agents.start("second", worker()).await;
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let trace = Trace::begin();
    let orchestrator = agents.orchestrator();
    let done = orchestrator.delegate("work").run(|agent| {
        // Both the closure and the future that it returns run in the span.
        let in_closure = trace::headers()["traceparent"].clone();
        let request = http.post(format!("{}/execute", agent.base_url));
        async move {
            let headers = trace::headers();
            assert_eq!(headers["traceparent"], in_closure);
            Ok(request.headers(headers).send().await?.error_for_status()?.text().await?)
        }
    });
    trace.run(done).await.unwrap();
    let spans = trace.end();
    let parents: Vec<_> = spans.named("POST /execute").iter().map(|request| request.parent_span_id).collect();
    assert_eq!(parents, [id(spans.attempt(1)), id(spans.attempt(2))]);
    check(spans.attempt(2), &[("outcome", "ok"), ("http.request.method", "")]);
}

#[tokio::test]
async fn tracestate_is_sent_on_and_a_header_of_the_caller_replaces_that_of_the_sdk() {
    let mut agents = Agents::new().await;
    agents.start("first", worker()).await;
    let trace_id = TraceId::from(0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c);
    let state = TraceState::from_key_value([("congo", "t61rcWkgMzE")]).unwrap();
    let parent = SpanContext::new(trace_id, SpanId::from(7), TraceFlags::SAMPLED, true, state);
    let trace = Trace::begin_in(Context::new().with_remote_span_context(parent));
    assert_eq!(trace.id, trace_id);
    let orchestrator = agents.orchestrator();
    let work = orchestrator.delegate("work").post_json::<Value>("/execute", &1);
    let sent = trace.run(work).await.unwrap().value;
    assert_eq!(sent["tracestate"], "congo=t61rcWkgMzE");
    let own = "00-11111111111111111111111111111111-2222222222222222-01";
    let work = orchestrator.delegate("work").header("traceparent", own);
    let sent = trace.run(work.post_json::<Value>("/execute", &1)).await.unwrap().value;
    assert_eq!(sent["traceparent"], own);
    assert_eq!(attribute(trace.end().one("test"), "error.type"), None);
}
