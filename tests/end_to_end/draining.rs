//! What clients see of a server that is about to stop.

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
    a_drained_server_answers_everything_and_closes_each_connection,
    a_drain_ends_when_its_time_is_over,
    event_streams_end_with_the_drain,
    event_streams_end_with_a_shutdown_without_a_drain,
);

/// What takes several servers.
mod several {
    use super::*;

    on_postgres!(a_watch_goes_on_at_another_server_at_once);
}

/// Begins to drain a server, which goes on although nobody waits for its end.
fn begin_drain(registry: &Registry) {
    let Registry::Server(server) = registry else { unreachable!("a database has a server") };
    assert!(server.drain().now_or_never().is_none(), "the delay is longer than the test");
}

async fn a_drained_server_answers_everything_and_closes_each_connection(database: Database) {
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
    // The first of them on the connection that was kept, the others on new ones.
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
    // A new stream ends at once: browsers never come back to one that was refused.
    let stream = get("/events").await.text().await.unwrap();
    assert!(stream.starts_with("id: ") && stream.ends_with("\n\nevent: draining\ndata: {}\n\n"), "{stream}");
    // Clients of HTTP/1.0 are told the same, whatever they ask for.
    let mut old = TcpStream::connect(server.local_addr()).await.unwrap();
    old.write_all(b"GET /stats HTTP/1.0\r\nconnection: keep-alive\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    old.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("\r\nconnection: close\r\n") && !answer.contains("keep-alive"), "{answer}");
    sdk.heartbeat("a").await.unwrap();
    sdk.update_status("a", AgentStatus::Busy).await.unwrap();
    server.shutdown().await;
}

async fn a_drain_ends_when_its_time_is_over(database: Database) {
    let registry = database.start_with(|config| config.drain_delay = Duration::from_millis(50)).await;
    let Registry::Server(server) = &registry else { unreachable!("a database has a server") };
    tokio::time::timeout(LONG, server.drain()).await.expect("it ends");
    registry.shutdown().await;
}

async fn event_streams_end_with_the_drain(database: Database) {
    let server = database.start_with(|config| config.drain_delay = LONG).await;
    let mut stream = reqwest::get(format!("{}/events", server.url())).await.unwrap();
    assert!(stream.chunk().await.unwrap().unwrap().starts_with(b"id: "));
    begin_drain(&server);
    let rest = tokio::time::timeout(LONG, stream.text()).await.expect("it ends").unwrap();
    assert_eq!(rest, "event: draining\ndata: {}\n\n");
    server.shutdown().await;
}

async fn event_streams_end_with_a_shutdown_without_a_drain(database: Database) {
    let server = database.start().await;
    let mut stream = reqwest::get(format!("{}/events", server.url())).await.unwrap();
    assert!(stream.chunk().await.unwrap().unwrap().starts_with(b"id: "));
    server.shutdown().await;
    assert_eq!(stream.text().await.unwrap(), "event: draining\ndata: {}\n\n");
}

async fn a_watch_goes_on_at_another_server_at_once(database: Database) {
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
