//! Registries that fail partially: endpoints, streams, health checks.

use std::time::Duration;

use registry_sdk::discovery::{Directory, HealthSource};
use registry_sdk::{Error, ListQuery, Orchestrator, RegistryClient, RetryPolicy, TaskQuery, WatchEvent};
use tokio::time::{Instant, sleep, timeout};

use crate::support::{ACK, HEARTBEAT, Reply, Server, agent_of, until};

const STREAM: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\nid: 1\n\n";
const SILENT: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
const LIST: &str = r#"[{"agent_id":"a","status":"active","capabilities":[{"name":"work"}],"healthy":true}]"#;
const HTML: &str = "content-type: text/html\r\n";

async fn hanging() -> Server {
    Server::start(|_, _| Reply::Hang).await
}

fn urls(servers: &[&Server]) -> String {
    servers.iter().map(|server| server.url()).collect::<Vec<_>>().join(",")
}

#[tokio::test(start_paused = true)]
async fn agent_with_three_endpoints_of_which_two_hang_is_never_degraded() {
    let (first, second) = (hanging().await, hanging().await);
    let third = Server::start(|_, _| ACK).await;
    let interval = Duration::from_secs(30);
    let client = RegistryClient::new(urls(&[&first, &second, &third])).unwrap();
    // Both have failed before, and the client knows that.
    client.heartbeat("a").await.unwrap();
    let agent = agent_of(client, interval);
    let mut states = agent.watch();
    agent.start_heartbeat(interval).unwrap();
    let hour = sleep(Duration::from_secs(3_600));
    tokio::pin!(hour);
    let mut degraded = 0;
    loop {
        tokio::select! {
            changed = states.changed() => {
                changed.unwrap();
                degraded += usize::from(states.borrow_and_update().is_degraded());
            }
            () = &mut hour => break,
        }
    }
    assert_eq!(degraded, 0, "degraded {degraded} times an hour");
}

#[tokio::test(start_paused = true)]
async fn call_fails_over_from_a_failed_endpoint_to_an_available_one() {
    let (first, second) = (hanging().await, hanging().await);
    let third = Server::start(|_, _| ACK).await;
    let client = RegistryClient::builder(urls(&[&first, &second, &third]))
        .retry(RetryPolicy::discovery().time_limit(Duration::from_secs(4)))
        .build()
        .unwrap();
    while client.heartbeat("a").await.is_err() {}
    let mut failed = Vec::new();
    for _ in 0..5 {
        sleep(Duration::from_secs(31)).await;
        failed.extend(client.heartbeat("a").await.err().map(|error| error.to_string()));
    }
    assert!(failed.is_empty(), "the third is up all the time: {failed:?}");
}

/// A client with a single URL works at this latency.
#[tokio::test(start_paused = true)]
async fn second_url_does_not_make_attempts_too_short() {
    let late = || {
        Server::start(|_, _| Reply::Late(Duration::from_millis(80), r#"{"agent_id":"a","status":"active"}"#))
    };
    let interval = Duration::from_millis(400);
    let (first, second) = (late().await, late().await);
    for servers in [vec![&first], vec![&first, &second]] {
        let agent = agent_of(RegistryClient::new(urls(&servers)).unwrap(), interval);
        agent.start_heartbeat(interval).unwrap();
        sleep(Duration::from_secs(60)).await;
        assert!(agent.state().is_registered(), "{} URLs: {:?}", servers.len(), agent.state());
    }
}

#[tokio::test(start_paused = true)]
async fn shutdown_reaches_the_second_endpoint_if_the_first_hangs() {
    let first = hanging().await;
    let second = Server::start(|_, _| ACK).await;
    let interval = Duration::from_secs(60);
    let agent = agent_of(RegistryClient::new(urls(&[&first, &second])).unwrap(), interval);
    agent.start_heartbeat(interval).unwrap();
    until("it beats", || second.times(HEARTBEAT).len() >= 2).await;
    sleep(Duration::from_secs(45)).await;
    agent.shutdown().await;
    assert_eq!(second.times("PUT /agents/a/status").len(), 1, "the registry never heard of the shutdown");
}

#[tokio::test(start_paused = true)]
async fn caller_with_its_own_limit_does_not_fail_every_half_minute() {
    let first = hanging().await;
    let second = Server::start(|_, _| ACK).await;
    let client = RegistryClient::new(urls(&[&first, &second])).unwrap();
    let mut failed = 0;
    for _ in 0..600 {
        failed += usize::from(timeout(Duration::from_secs(2), client.heartbeat("a")).await.is_err());
        sleep(Duration::from_secs(1)).await;
    }
    assert!(failed <= 5, "{failed} calls of 600 failed in ten minutes, although an endpoint was up");
}

#[tokio::test(start_paused = true)]
async fn long_response_that_its_caller_cancels_does_not_count_against_its_endpoint() {
    let list: &'static str = format!("[{}]", " ".repeat(12_000_000)).leak();
    let script = move |what: &str, _| match what {
        HEARTBEAT => ACK,
        _ => Reply::Parts(list, 100_000, Duration::from_millis(100)),
    };
    let first = Server::start(script).await;
    let second = Server::start(|_, _| ACK).await;
    let client = RegistryClient::new(urls(&[&first, &second])).unwrap();
    assert!(timeout(Duration::from_secs(3), client.list_agents(ListQuery::all())).await.is_err());
    client.heartbeat("a").await.unwrap();
    assert_eq!(second.arrived().len(), 0, "the first was answering all the time");
}

#[tokio::test(start_paused = true)]
async fn call_fails_over_after_a_request_timeout_of_one_endpoint() {
    let first = Server::start(|_, _| Reply::Answer(408, HTML, "<html>")).await;
    let second = Server::start(|_, _| ACK).await;
    let client = RegistryClient::new(urls(&[&first, &second])).unwrap();
    client.heartbeat("a").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn watch_is_not_interrupted_while_an_endpoint_is_up() {
    for reply in [Reply::Answer(503, "", ""), Reply::Hang] {
        let failing = reply.clone();
        let first = Server::start(move |_, _| failing.clone()).await;
        let second = Server::start(|what, _| match what {
            "GET /events" => Reply::Stall(STREAM),
            _ => Reply::Answer(200, "", LIST),
        })
        .await;
        let mut watch = RegistryClient::new(urls(&[&first, &second])).unwrap().watch();
        let event = watch.next().await.unwrap();
        assert!(matches!(event, WatchEvent::Listed(_)), "{reply:?}: {event:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn watch_leaves_an_endpoint_whose_stream_is_silent() {
    let script = |stream| {
        move |what: &str, _| match what {
            "GET /events" => Reply::Stall(stream),
            _ => Reply::Answer(200, "", LIST),
        }
    };
    let first = Server::start(script(SILENT)).await;
    let second = Server::start(script(STREAM)).await;
    let mut watch = RegistryClient::new(urls(&[&first, &second])).unwrap().watch();
    let mut seen = Vec::new();
    let _ = timeout(Duration::from_secs(3_600), async {
        while let Some(event) = watch.next().await {
            seen.push(format!("{event:?}").chars().take(12).collect::<String>());
        }
    })
    .await;
    let opened = first.times("GET /events").len();
    assert!(
        !second.times("GET /events").is_empty(),
        "opened {opened} times at the silent endpoint, never at the other; {} events, {:?}…",
        seen.len(),
        &seen[..seen.len().min(3)]
    );
}

#[tokio::test(start_paused = true)]
async fn directory_without_a_sign_of_life_for_an_hour_is_not_fresh() {
    // One sign of life after each connection, and then nothing.
    let server = Server::start(|what, before| match (what, before) {
        ("GET /events", 0) => Reply::Stall(STREAM),
        ("GET /events", _) => Reply::Stall(SILENT),
        _ => Reply::Answer(200, "", LIST),
    })
    .await;
    let directory = Directory::follow(&RegistryClient::new(server.url()).unwrap());
    directory.ready().await.unwrap();
    sleep(Duration::from_secs(3_600)).await;
    let freshness = directory.freshness().unwrap();
    assert!(freshness.is_stale(), "{freshness:?} after {} connections", server.times("GET /events").len());
}

#[tokio::test(start_paused = true)]
async fn streams_that_are_closed_at_once_are_an_outage_with_growing_delays() {
    let server = Server::start(|what, _| match what {
        "GET /events" => Reply::Raw(SILENT),
        _ => Reply::Answer(200, "", LIST),
    })
    .await;
    let mut watch = RegistryClient::new(server.url()).unwrap().watch();
    let (mut listed, mut interrupted) = (0, 0);
    let _ = timeout(Duration::from_secs(300), async {
        while let Some(event) = watch.next().await {
            listed += usize::from(matches!(event, WatchEvent::Listed(_)));
            interrupted += usize::from(matches!(event, WatchEvent::Interrupted(_)));
        }
    })
    .await;
    let opened = server.times("GET /events").len();
    assert!(
        opened <= 150 && interrupted > 0,
        "opened {opened} times, listed {listed} times, interrupted {interrupted} times"
    );
}

#[tokio::test(start_paused = true)]
async fn event_id_that_no_header_can_carry_does_not_stop_a_watch() {
    let server = Server::start(|what, before| match (what, before) {
        ("GET /events", 0) => {
            Reply::Raw("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\nid: 1\u{1}\n\n")
        }
        ("GET /events", _) => Reply::Stall(STREAM),
        _ => Reply::Answer(200, "", LIST),
    })
    .await;
    let mut watch = RegistryClient::new(server.url()).unwrap().watch();
    let mut last = String::new();
    let _ = timeout(Duration::from_secs(600), async {
        while let Some(event) = watch.next().await {
            last = format!("{event:?}");
        }
    })
    .await;
    assert!(server.times("GET /events").len() >= 2, "never connected again: {last}");
}

#[tokio::test(start_paused = true)]
async fn selection_survives_a_registry_that_answers_no_health_checks() {
    let mut failed = Vec::new();
    for reply in [
        Reply::Answer(429, "retry-after: 60\r\n", ""),
        Reply::Answer(503, "retry-after: 60\r\n", ""),
        Reply::Answer(404, HTML, "<html>"),
        Reply::Hang,
    ] {
        let failing = reply.clone();
        let server = Server::start(move |what, _| {
            if what.starts_with("GET /health") {
                return failing.clone();
            }
            Reply::Answer(
                200,
                "",
                r#"[{"agent_id":"a","status":"active","capability":"work","healthy":true}]"#,
            )
        })
        .await;
        let orchestrator = Orchestrator::new(RegistryClient::new(server.url()).unwrap());
        if let Err(error) = orchestrator.find_best_agent("work").await {
            failed.push(format!("{reply:?}: {error:?}"));
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

#[tokio::test(start_paused = true)]
async fn selection_has_time_to_fail_over() {
    let first = Server::start(|what, _| {
        if what.starts_with("GET /health") {
            return Reply::Hang;
        }
        Reply::Answer(200, "", r#"[{"agent_id":"a","status":"active","capability":"work","healthy":true}]"#)
    })
    .await;
    let second = Server::start(|_, _| Reply::Answer(200, "", r#"{"agent_id":"a","status":"healthy"}"#)).await;
    let orchestrator = Orchestrator::new(RegistryClient::new(urls(&[&first, &second])).unwrap());
    let query = TaskQuery::new("work").health_source(HealthSource::Registry);
    let selected = orchestrator.select(&query).await;
    assert!(selected.is_ok(), "{selected:?}; the second endpoint was asked {} times", second.arrived().len());
}

#[tokio::test(start_paused = true)]
async fn garbage_in_a_plain_response_is_not_a_tls_failure() {
    let server = Server::start(|_, _| {
        Reply::Raw("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nfffffffffffffffffff\r\n")
    })
    .await;
    let client = RegistryClient::builder(server.url()).retry(RetryPolicy::none()).build().unwrap();
    let error = client.heartbeat("a").await.unwrap_err();
    assert!(!matches!(error, Error::Tls { .. }), "{}", error.full_message());
}

#[tokio::test]
async fn timeout_of_a_custom_http_client_is_a_timeout() {
    let server = hanging().await;
    let own = reqwest::Client::builder().timeout(Duration::from_millis(200)).build().unwrap();
    let client =
        RegistryClient::builder(server.url()).http_client(own).retry(RetryPolicy::none()).build().unwrap();
    let error = client.heartbeat("a").await.unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }), "{}", error.full_message());
}

#[tokio::test(start_paused = true)]
async fn request_that_the_http_client_refuses_to_send_is_not_retried() {
    let server = Server::start(|_, _| ACK).await;
    let own = reqwest::Client::builder().https_only(true).build().unwrap();
    let client = RegistryClient::builder(server.url()).http_client(own).build().unwrap();
    let began = Instant::now();
    let error = client.heartbeat("a").await.unwrap_err();
    assert!(!error.is_retryable(), "after {:?}: {}", began.elapsed(), error.full_message());
}

#[test]
fn password_with_a_comma_is_never_shown() {
    for url in [
        "http://user:sec,ret@registry:8009",
        "https://user:a,secret@registry",
        "http://one:8009,http://user:sec,x@two",
    ] {
        let error = RegistryClient::new(url).unwrap_err();
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("sec") && !shown.contains("ret"), "{url}: {shown}");
    }
}

#[tokio::test]
async fn password_of_an_unreachable_proxy_is_never_shown() {
    let (_socket, url) = crate::support::without_listener();
    let proxy = url.replace("http://", "http://user:secret@");
    let builder =
        RegistryClient::builder("http://registry.invalid:8009").proxy(proxy).retry(RetryPolicy::none());
    let error = builder.build().unwrap().heartbeat("a").await.unwrap_err();
    let shown = format!("{error:?} {}", error.full_message());
    assert!(!shown.contains("secret"), "{shown}");
}

#[tokio::test]
async fn key_in_a_url_that_is_refused_is_not_shown() {
    for url in ["ftp://registry/?key=secret", "registry:8009/?key=secret", "http://[::1/?key=secret"] {
        let error = RegistryClient::new(url).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("secret"), "{error}");
    }
}

#[tokio::test]
async fn id_with_a_line_break_is_not_the_id_of_another_agent() {
    let server = Server::start(|_, _| Reply::Answer(204, "", "")).await;
    let client = RegistryClient::builder(server.url()).retry(RetryPolicy::none()).build().unwrap();
    let _ = client.deregister("a\n").await;
    let arrived = server.arrived();
    assert!(arrived.iter().all(|one| one.what != "DELETE /agents/a"), "{arrived:?}");
}
