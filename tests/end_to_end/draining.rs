//! A server that is about to stop, as clients see it.

use std::time::Duration;

use futures_util::FutureExt;
use registry_sdk::contract::AgentStatus;
use registry_sdk::{RegistryClient, RetryPolicy, WatchEvent};
use reqwest::StatusCode;
use reqwest::header::CONNECTION;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Database, LONG, Registry, agent, client, on_both_databases, on_postgres};

on_both_databases!(
    draining_server_answers_every_request_and_closes_the_connection,
    drain_ends_after_its_delay,
    event_streams_end_when_a_drain_begins,
    event_streams_end_on_shutdown_without_a_drain,
);

/// Tests that need several servers.
mod several {
    use super::*;

    on_postgres!(watch_continues_at_another_server_at_once);
}

/// Begins to drain a server. The drain continues, although its future is dropped.
fn begin_drain(registry: &Registry) {
    let Registry::Server(server) = registry else { unreachable!("a database has a server") };
    assert!(server.drain().now_or_never().is_none(), "the delay is longer than the test");
}

async fn draining_server_answers_every_request_and_closes_the_connection(database: Database) {
    let server = database.start_with(|config| config.drain_delay = LONG).await;
    let sdk = client(&server);
    sdk.register(&agent("a", "work")).await.unwrap();
    let http = reqwest::Client::new();
    let get = async |path: &str| http.get(format!("{}{path}", server.url())).send().await.unwrap();
    for path in ["/livez", "/readyz", "/stats"] {
        let answer = get(path).await;
        assert!(answer.status().is_success() && !answer.headers().contains_key(CONNECTION), "{path}");
    }
    begin_drain(&server);
    // The first request uses the kept connection, the others use new ones.
    for (path, expected) in [
        ("/stats", StatusCode::OK),
        ("/readyz", StatusCode::SERVICE_UNAVAILABLE),
        ("/livez", StatusCode::OK),
        ("/health", StatusCode::OK),
        ("/agents/unknown", StatusCode::NOT_FOUND),
        ("/no/such/path", StatusCode::NOT_FOUND),
        ("/events", StatusCode::OK),
    ] {
        let answer = get(path).await;
        assert_eq!(answer.status(), expected, "{path}");
        assert_eq!(answer.headers()[CONNECTION], "close", "{path}");
    }
    // A new stream is accepted and ends at once: browsers do not reconnect after an error status.
    let stream = get("/events").await.text().await.unwrap();
    assert!(stream.starts_with("id: ") && stream.ends_with("\n\nevent: draining\ndata: {}\n\n"), "{stream}");
    // Connections of HTTP/1.0 are closed as well, even with keep-alive.
    let mut old = TcpStream::connect(server.local_addr()).await.unwrap();
    old.write_all(b"GET /stats HTTP/1.0\r\nconnection: keep-alive\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    old.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("\r\nconnection: close\r\n") && !answer.contains("keep-alive"), "{answer}");
    sdk.heartbeat("a").await.unwrap();
    sdk.update_status("a", AgentStatus::Busy).await.unwrap();
    server.shutdown().await;
}

async fn drain_ends_after_its_delay(database: Database) {
    let registry = database.start_with(|config| config.drain_delay = Duration::from_millis(50)).await;
    let Registry::Server(server) = &registry else { unreachable!("a database has a server") };
    tokio::time::timeout(LONG, server.drain()).await.expect("the drain ends");
    registry.shutdown().await;
}

async fn event_streams_end_when_a_drain_begins(database: Database) {
    let server = database.start_with(|config| config.drain_delay = LONG).await;
    let mut stream = reqwest::get(format!("{}/events", server.url())).await.unwrap();
    assert!(stream.chunk().await.unwrap().unwrap().starts_with(b"id: "));
    begin_drain(&server);
    let rest = tokio::time::timeout(LONG, stream.text()).await.expect("the drain ends").unwrap();
    assert_eq!(rest, "event: draining\ndata: {}\n\n");
    server.shutdown().await;
}

async fn event_streams_end_on_shutdown_without_a_drain(database: Database) {
    let server = database.start().await;
    let mut stream = reqwest::get(format!("{}/events", server.url())).await.unwrap();
    assert!(stream.chunk().await.unwrap().unwrap().starts_with(b"id: "));
    server.shutdown().await;
    assert_eq!(stream.text().await.unwrap(), "event: draining\ndata: {}\n\n");
}

async fn watch_continues_at_another_server_at_once(database: Database) {
    let (first, second) =
        (database.start_with(|config| config.drain_delay = LONG).await, database.start().await);
    let urls = format!("{},{}", first.url(), second.url());
    let both = RegistryClient::builder(urls).retry(RetryPolicy::none()).timeout(LONG).build().unwrap();
    let mut watch = both.watch();
    assert!(matches!(watch.next().await, Some(WatchEvent::Listed(_))));
    begin_drain(&first);
    for number in 0..20 {
        let id = format!("a{number}");
        client(&second).register(&agent(&id, "work")).await.unwrap();
        match watch.next().await {
            Some(WatchEvent::Registered(agent)) => assert_eq!(agent.agent_id, id),
            other => panic!("{other:?} instead of the next agent"),
        }
    }
    for server in [first, second] {
        server.shutdown().await;
    }
}
