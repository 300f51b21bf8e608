//! The service that `scripts/trace-context` checks against other implementations of W3C Trace Context.
//!
//! `POST /test` sends the requests that its body lists, as the specification's own tests demand. `POST /delegate` delegates a task to
//! the agent whose URL is the body, and returns what the agent said. `GET /spans` lists the spans that have ended.
#![allow(clippy::unwrap_used, reason = "it ends if anything is wrong")]
#![allow(clippy::print_stdout, reason = "it says where it listens")]

use axum::extract::State;
use axum::middleware::from_fn;
use axum::routing::{get, post};
use axum::{Json, Router};
use opentelemetry::global;
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider};
use registry_sdk::testing::MockRegistry;
use registry_sdk::trace::{self, continue_trace};
use registry_sdk::{Capability, Orchestrator, Registration};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tracing::level_filters::LevelFilter;
use tracing::{Instrument, info_span};
use tracing_subscriber::layer::SubscriberExt;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    global::set_text_map_propagator(TraceContextPropagator::new());
    let exporter = InMemorySpanExporter::default();
    let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("trace_context"));
    let subscriber = tracing_subscriber::registry().with(LevelFilter::INFO).with(layer);
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let app = Router::new()
        .route("/test", post(call_all))
        .route("/delegate", post(delegate))
        .layer(from_fn(continue_trace))
        .route("/spans", get(list_spans))
        .with_state(exporter);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("{}", listener.local_addr().unwrap());
    axum::serve(listener, app).await.unwrap();
}

/// Makes each call in a span of its own, as the tests demand.
async fn call_all(Json(calls): Json<Vec<Value>>) {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    for call in calls {
        let sending = async {
            let request = http.post(call["url"].as_str().unwrap()).headers(trace::headers());
            let request = request.header("content-type", "application/json");
            request.body(call["arguments"].to_string()).send().await.unwrap();
        };
        sending.instrument(info_span!("call")).await;
    }
}

async fn delegate(url: String) -> Json<Value> {
    let registry = MockRegistry::start().await;
    let agent = Registration::new("agent", "Agent", url).capability(Capability::new("work"));
    registry.client().register(&agent).await.unwrap();
    let orchestrator = Orchestrator::new(registry.client());
    Json(orchestrator.delegate("work").post_json("/execute", &json!({})).await.unwrap().value)
}

async fn list_spans(State(exporter): State<InMemorySpanExporter>) -> Json<Value> {
    let spans = exporter.get_finished_spans().unwrap().into_iter().map(|span| {
        let trace_id = span.span_context.trace_id().to_string();
        let (id, parent) = (span.span_context.span_id().to_string(), span.parent_span_id.to_string());
        json!({"name": span.name, "trace_id": trace_id, "id": id, "parent": parent})
    });
    Json(spans.collect())
}
