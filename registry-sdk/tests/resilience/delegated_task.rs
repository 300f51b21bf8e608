//! The extractor of a delegated task's headers.

use axum::routing::post;
use axum::{Json, Router};
use registry_sdk::contract::{Capability, Registration};
use registry_sdk::testing::MockRegistry;
use registry_sdk::{DelegatedTask, Orchestrator};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// An agent that responds with the headers that it read.
async fn start(serving: &mut JoinSet<()>) -> String {
    let execute = async |task: DelegatedTask| {
        let seconds = task.time_left.map(|left| left.as_secs_f64());
        Json(json!({"key": task.idempotency_key, "attempt": task.attempt, "seconds": seconds}))
    };
    let app: Router = Router::new().route("/execute", post(execute));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    serving.spawn(async move { axum::serve(listener, app).await.unwrap() });
    url
}

#[tokio::test]
async fn agent_reads_the_headers_of_a_delegation() {
    let mut serving = JoinSet::new();
    let url = start(&mut serving).await;
    let registry = MockRegistry::start().await;
    let registration = Registration::new("a", "a", url).capability(Capability::new("work"));
    registry.client().register(&registration).await.unwrap();
    let orchestrator = Orchestrator::new(registry.client());
    let delegation = orchestrator.delegate("work").idempotency_key(r#"a "b" \c"#);
    let read = delegation.post_json::<Value>("/execute", &1).await.unwrap().value;
    assert_eq!((&read["key"], &read["attempt"]), (&json!(r#"a "b" \c"#), &json!(1)));
    // It is the only agent, so it has the whole minute.
    assert!(read["seconds"].as_f64().is_some_and(|seconds| seconds > 30.0 && seconds <= 60.0), "{read}");
}

#[tokio::test]
async fn missing_headers_are_none_and_invalid_ones_are_refused_by_name() {
    let mut serving = JoinSet::new();
    let url = format!("{}/execute", start(&mut serving).await);
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let send = async |headers: &[(&'static str, &'static str)]| {
        let mut request = client.post(&url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    };
    let nothing = json!({"key": null, "attempt": 1, "seconds": null}).to_string();
    assert_eq!(send(&[]).await, (200, nothing));
    let plain = json!({"key": "order-17", "attempt": 3, "seconds": 0.25}).to_string();
    let headers = [
        ("idempotency-key", "order-17"),
        ("delegation-attempt", "3"),
        ("delegation-time-left-seconds", "0.25"),
    ];
    assert_eq!(send(&headers).await, (200, plain));
    for (name, value) in [
        ("idempotency-key", "\"open"),
        ("delegation-attempt", "0"),
        ("delegation-attempt", "first"),
        ("delegation-time-left-seconds", "-1"),
        ("delegation-time-left-seconds", "NaN"),
    ] {
        let (status, text) = send(&[(name, value)]).await;
        assert!(status == 400 && text.contains(name), "{name}: {value}: {status} {text}");
    }
}
