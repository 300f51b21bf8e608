//! Unusual HTTP responses, and limits of what is read and waited for.

use std::time::Duration;

use registry_sdk::DelegatedTask;
use registry_sdk::contract::Registration;
use registry_sdk::discovery::{EndReason, FailureKind, HealthSource, TaskQuery};
use registry_sdk::{Capability, Orchestrator};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{counts, send};
use crate::scene::Scene;
use crate::support::{ENDLESS, Reply};

/// Each status of the table, and those that are not in it.
#[tokio::test(start_paused = true)]
async fn every_status_is_in_the_table() {
    let mut wrong = Vec::new();
    for status in (300..=599).chain([600, 700, 999]) {
        let scene = Scene::ranked(&["first", "second"]).await;
        scene.set("first", Reply::Answer(status, "", ""));
        let orchestrator = scene.orchestrator();
        let outcome = orchestrator.delegate("work").post_json::<Value>("/execute", &json!({"n": 1})).await;
        let kind = match &outcome {
            Ok(done) => done.failed[0].kind,
            Err(error) => error.attempts[0].kind,
        };
        let expected = match status {
            300..=399 | 401 | 403 | 404 | 405 => FailureKind::Deployment,
            408 | 425 | 500.. => FailureKind::Agent,
            429 => FailureKind::Busy { retry_after: Duration::ZERO },
            _ => FailureKind::Task,
        };
        if kind != expected || outcome.is_ok() == (expected == FailureKind::Task) {
            wrong.push(format!("{status}: {kind:?}, {outcome:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Every form of success in HTTP.
#[tokio::test(start_paused = true)]
async fn every_form_of_success_is_read() {
    for reply in [
        Reply::Raw("HTTP/1.1 200 OK\r\n\r\n{}"),
        Reply::Raw("HTTP/1.0 200 OK\r\n\r\n{}"),
        Reply::Raw("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"),
        Reply::Raw(
            "HTTP/1.1 103 Early Hints\r\nlink: <a>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
        ),
        Reply::Raw(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2;a=b\r\n{}\r\n0\r\nx-end: 1\r\n\r\n",
        ),
        Reply::Raw(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n",
        ),
        Reply::Raw("HTTP/1.1 200\r\ncontent-length: 2\r\n\r\n{}"),
        Reply::Raw("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{} and more"),
        Reply::Raw("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n{}\n"),
        Reply::Raw("HTTP/1.1 299 \r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}"),
    ] {
        let scene = Scene::ranked(&["first", "second"]).await;
        scene.set("first", reply.clone());
        let outcome = send(scene.orchestrator().delegate("work")).await;
        assert_eq!(outcome.as_deref().ok(), Some("first"), "{reply:?}: {outcome:?}");
    }
}

/// Responses that are not a success.
#[tokio::test(start_paused = true)]
async fn invalid_responses_fail_over() {
    for reply in [
        Reply::Raw("SSH-2.0-OpenSSH_9.6\r\n"),
        Reply::Raw("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"),
        Reply::Raw("HTTP/2.0 200 OK\r\n\r\n{}"),
        Reply::Raw("HTTP/1.1 20 OK\r\n\r\n{}"),
        Reply::Raw("HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n{}"),
        Reply::Raw("\r\n\r\n\r\n"),
        Reply::Raw("\u{0}\u{1}"),
    ] {
        let scene = Scene::ranked(&["first", "second"]).await;
        scene.set("first", reply.clone());
        let outcome = send(scene.orchestrator().delegate("work")).await;
        assert_eq!(outcome.as_deref().ok(), Some("second"), "{reply:?}: {outcome:?}");
    }
}

/// One byte a second, anywhere.
#[tokio::test(start_paused = true)]
async fn dripping_response_ends_in_time() {
    let head: &'static str = format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(10_000)).leak();
    let scene = Scene::ranked(&["drips", "well"]).await;
    for reply in [Reply::Stall(head), Reply::Endless(500, 1, Duration::from_secs(1))] {
        scene.set("drips", reply);
        let began = Instant::now();
        send(scene.orchestrator().delegate("work").time_limit(Duration::from_secs(20))).await.unwrap();
        assert!(began.elapsed() <= Duration::from_secs(11), "{:?}", began.elapsed());
    }
    scene.set("drips", Reply::Endless(200, 1, Duration::from_secs(1)));
    let began = Instant::now();
    let query = TaskQuery::new("work").health_source(HealthSource::Agent);
    let selection = scene.orchestrator().select(&query).await.unwrap();
    assert_eq!(selection.agent.agent_id, "well");
    assert!(began.elapsed() <= Duration::from_secs(3), "{:?}", began.elapsed());
}

/// An endless head takes little memory.
#[tokio::test(start_paused = true)]
async fn endless_head_is_cut_off() {
    let head: &'static str =
        format!("HTTP/1.1 200 OK\r\n{}", "x-more: and more\r\n".repeat(ENDLESS / 16)).leak();
    let scene = Scene::ranked(&["endless", "well"]).await;
    scene.set("endless", Reply::Stall(head));
    let began = Instant::now();
    let outcome = send(scene.orchestrator().delegate("work")).await;
    assert_eq!(outcome.as_deref().ok(), Some("well"), "{outcome:?}");
    assert!(began.elapsed() < Duration::from_secs(5), "not by a time-out: {:?}", began.elapsed());
}

/// A silent stream is reported and charged.
#[tokio::test(start_paused = true)]
async fn silent_stream_ends_and_is_charged() {
    let scene = Scene::ranked(&["silent", "well"]).await;
    scene.set("silent", Reply::Stall("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n"));
    let orchestrator = scene.orchestrator();
    for _ in 0..3 {
        let delegation = orchestrator.delegate("work").chunk_timeout(Duration::from_secs(5));
        let mut done = delegation.send(Method::POST, "/execute", "{}").await.unwrap();
        assert_eq!(done.value.chunk().await.unwrap().as_deref(), Some(&b"ok"[..]));
        let began = Instant::now();
        let error = done.value.chunk().await.unwrap_err();
        assert!(error.to_string().contains("chunk_timeout"), "{error}");
        assert_eq!(began.elapsed().as_secs(), 5);
    }
    let done = orchestrator.delegate("work").send(Method::POST, "/execute", "{}").await.unwrap();
    assert_eq!(done.selection.agent.agent_id, "well");
}

/// An attempt whose response arrives at the moment when it is cut off, or a little earlier.
#[tokio::test(start_paused = true)]
async fn response_just_in_time_counts() {
    for before in [1, 5, 50] {
        let scene = Scene::ranked(&["slow", "well"]).await;
        scene.set("slow", Reply::Late(Duration::from_millis(10_000 - before), "{}"));
        let outcome = send(scene.orchestrator().delegate("work").time_limit(Duration::from_secs(20))).await;
        assert!(outcome.is_ok(), "{before} ms before: {outcome:?}");
    }
}

/// If a single attempt used all of the time, the time is up, and the reason has to say so.
#[tokio::test(start_paused = true)]
async fn reason_is_the_time_limit_once_it_is_used_up() {
    let scene = Scene::ranked(&["hung"]).await;
    scene.set("hung", Reply::Hang);
    let orchestrator = scene.orchestrator();
    for attempts in [1, 3] {
        let delegation = orchestrator.delegate("work").attempts(attempts).time_limit(Duration::from_secs(5));
        let error = send(delegation).await.unwrap_err();
        assert!(matches!(error.reason, EndReason::TimedOut { .. }), "attempts({attempts}): {error}");
    }
}

/// An agent on axum reads the headers of a delegation.
#[tokio::test]
async fn agent_on_axum_reads_the_headers() {
    let read = |task: DelegatedTask| async move {
        let left = task.time_left.unwrap().as_secs_f64();
        axum::Json(json!({"key": task.idempotency_key, "attempt": task.attempt, "left": left}))
    };
    let app = axum::Router::new().route("/execute", axum::routing::post(read));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    let registry = registry_sdk::testing::MockRegistry::start().await;
    let registration = Registration::new("one", "one", url).capability(Capability::new("work"));
    registry.client().register(&registration).await.unwrap();
    let orchestrator = Orchestrator::new(registry.client());
    for key in ["a b", r#"say "hi" \ there"#, "~", "a;b=c,d", " "] {
        let delegation = orchestrator.delegate("work").idempotency_key(key).time_limit(Duration::MAX);
        let done = delegation.post_json::<Value>("/execute", &json!({})).await.unwrap();
        assert_eq!((done.value["key"].as_str(), done.value["attempt"].as_u64()), (Some(key), Some(1)));
    }
}

/// Busy primaries are no reason to wait if there is a fallback.
#[tokio::test(start_paused = true)]
async fn fallback_does_the_task_of_a_busy_primary_at_once() {
    let scene = Scene::new(&["busy"]).await;
    scene.set("busy", Reply::Answer(429, "retry-after: 20\r\n", ""));
    scene.register("spare", Capability::new("translation")).await;
    let orchestrator = scene.orchestrator();
    for _ in 0..5 {
        let began = Instant::now();
        let query = TaskQuery::new("work").fallback("translation");
        assert_eq!(send(orchestrator.delegate(query)).await.as_deref().ok(), Some("spare"));
        assert!(began.elapsed() < Duration::from_secs(1));
    }
    assert_eq!(counts(&scene, ["busy"]), [1]);
    sleep(Duration::from_secs(21)).await;
    let _ = send(orchestrator.delegate("work").time_limit(Duration::from_secs(5))).await;
    assert_eq!(counts(&scene, ["busy"]), [2]);
}

/// A caller that polls something else now and then, as in `select!`, waits no longer for the next chunk.
#[tokio::test(start_paused = true)]
async fn silent_stream_ends_even_if_it_is_polled_again() {
    let scene = Scene::ranked(&["silent"]).await;
    scene.set("silent", Reply::Stall("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n"));
    let orchestrator = scene.orchestrator();
    let delegation = orchestrator.delegate("work").chunk_timeout(Duration::from_secs(5));
    let mut done = delegation.send(Method::POST, "/execute", "{}").await.unwrap();
    assert!(done.value.chunk().await.unwrap().is_some());
    for _ in 0..60 {
        match tokio::time::timeout(Duration::from_secs(1), done.value.chunk()).await {
            Ok(Err(error)) => return assert!(error.to_string().contains("chunk_timeout"), "{error}"),
            Ok(Ok(chunk)) => panic!("{chunk:?}"),
            Err(_) => {}
        }
    }
    panic!("silent for a minute, with a chunk_timeout of 5 s");
}
