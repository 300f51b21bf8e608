//! Sends arbitrary requests to the router, which must respond without failing.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::http::{HeaderValue, Request, StatusCode, Uri};
use bolero::check;
use tokio_util::sync::CancellationToken;
use tower_service::Service;

use super::{Authenticator, Origins, router};
use crate::config::{Config, MigrateMode};
use crate::metrics::Metrics;
use crate::registry::{Registry, Supervisor};
use crate::store::SqliteDatabase;

const METHODS: [&str; 6] = ["GET", "POST", "PUT", "DELETE", "HEAD", "PATCH"];

/// The pieces of request targets, so that many targets are nearly valid.
const PIECES: [&str; 54] = [
    "/",
    "/agents",
    "/agents/",
    "/register",
    "/health",
    "/health/",
    "/capabilities/search",
    "/stats",
    "/status",
    "/heartbeat",
    "/maintenance",
    "/metrics",
    "/events",
    "/docs",
    "/ard/",
    "/ard/search",
    "/ard/explore",
    "/ard/agents",
    "/.well-known/ard.json",
    "urn:air:example.com:agent:",
    "filter=",
    "type='",
    "%20AND%20",
    "pageSize=",
    "?",
    "&",
    "=",
    "q=",
    "status=",
    "healthy=",
    "limit=",
    "cursor=",
    "last=",
    "a",
    "busy",
    "true",
    "0",
    "1",
    "1000",
    "-1",
    "99999999999999999999",
    "%",
    "%00",
    "%2F",
    "%2e%2e",
    "..",
    "%ff",
    "%F0%9F%A6%80",
    "+",
    ";",
    "//",
    "'",
    "*",
    "~",
];

const BODIES: [&str; 18] = [
    "",
    "{}",
    "{\"status\":\"busy\"}",
    "{\"status\":\"offline\",\"instance_id\":\"x\"}",
    "[",
    "{\"agent_id\":\"a\",\"agent_name\":\"A\",\"base_url\":\"http://a\",\"capabilities\":[{\"name\":\"work\"}]}",
    "{\"agent_id\":\"b\",\"agent_name\":\"\\u0007\",\"base_url\":\"http://b\",\"capabilities\":[],\"metadata\":{\"a\":[[1]]}}",
    "{\"load\":1e300}",
    "{\"query\":{\"text\":\"work\"}}",
    "{\"query\":{\"text\":\"work\",\"filter\":{\"metadata.a\":[1,true]}},\"pageSize\":1,\"pageToken\":\"*\"}",
    "{\"query\":{\"text\":\"\"}}",
    "{\"resultType\":{\"facets\":[{\"field\":\"tags\",\"limit\":1},{\"field\":\"metadata.a\"}]}}",
    "{\"query\":{\"text\":\"work\",\"filter\":{\"\":[[]]}},\"resultType\":{\"facets\":[]}}",
    "{\"reason\":\"x\",\"duration_seconds\":1e-300}",
    "{\"reason\":\"x\",\"instance_id\":\"x\"}",
    "{\"status\":\"offline\",\"instance_id\":\"x\",\"final\":true}",
    "{\"agent_id\":\"a\",\"agent_name\":\"A\",\"base_url\":\"http://a\",\"capabilities\":[],\"instance_id\":\"x\",\"instance_age_seconds\":9}",
    "{\"agent_id\":\"a\",\"agent_name\":\"A\",\"base_url\":\"http://a\",\"capabilities\":[],\"instance_id\":\"y\",\"instance_age_seconds\":1e9}",
];

/// A method, the pieces of a target, a body, and the values of headers.
type Input = (u8, Vec<u8>, u8, Vec<u8>, Vec<u8>);

#[test]
fn no_request_causes_an_internal_error() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let stop = CancellationToken::new();
    let router = runtime.block_on(async {
        let database = Arc::new(SqliteDatabase::open("sqlite::memory:", MigrateMode::Auto).await.unwrap());
        let config = Config { ard_publisher: Some("example.com".to_owned()), ..Config::default() };
        let metrics = Metrics::new().unwrap();
        let supervisor = Supervisor::new(stop.clone());
        let registry = Registry::start(database, config, metrics, &supervisor);
        let registry = registry.await.unwrap();
        let origins = Some(Origins::new(Vec::new(), true));
        router(registry, Arc::new(Authenticator::new(None)), origins)
    });
    // A panic ends the test, so the state is not used after one.
    let shared = AssertUnwindSafe((&router, &runtime));
    check!().with_type::<Input>().for_each(move |(method, target, body, event_id, request_id)| {
        let (router, runtime) = *shared;
        let target: String = target.iter().map(|byte| PIECES[usize::from(*byte) % PIECES.len()]).collect();
        let Ok(uri) = format!("/{target}").parse::<Uri>() else { return };
        let mut request = Request::new(Body::from(BODIES[usize::from(*body) % BODIES.len()]));
        *request.uri_mut() = uri;
        *request.method_mut() = METHODS[usize::from(*method) % METHODS.len()].parse().unwrap();
        let headers = request.headers_mut();
        headers.insert("content-type", HeaderValue::from_static("application/json"));
        for (name, value) in [("last-event-id", event_id), ("x-request-id", request_id)] {
            if let Ok(value) = HeaderValue::from_bytes(value) {
                headers.insert(name, value);
            }
        }
        runtime.block_on(async {
            let response = router.clone().call(request).await.unwrap();
            assert_ne!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
            let endless =
                response.headers().get("content-type").is_some_and(|kind| kind == "text/event-stream");
            if !endless && !response.status().is_success() {
                let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
                let problem: Result<serde_json::Value, _> = serde_json::from_slice(&body);
                assert!(body.is_empty() || problem.is_ok(), "{body:?}");
            }
        });
    });
    stop.cancel();
}
