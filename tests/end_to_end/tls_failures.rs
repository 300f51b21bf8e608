//! Failed TLS connections get an error of their own, and are not retried in vain.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use registry_sdk::{Error, RegistryClientBuilder, RetryPolicy};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::encryption::Authority;
use crate::support::{Database, agent, client_builder, on_both_databases};

on_both_databases!(
    rejected_certificate_is_reported_with_its_cause,
    another_endpoint_is_used_if_a_certificate_is_rejected,
);

/// Returns the chain of an error's sources.
fn causes(error: &Error) -> Vec<String> {
    std::iter::successors(std::error::Error::source(error), |error| error.source())
        .map(ToString::to_string)
        .collect()
}

fn is_tls(error: &Error) -> bool {
    matches!(error, Error::Tls { .. }) && !error.is_retryable() && !error.is_refused()
}

async fn rejected_certificate_is_reported_with_its_cause(database: Database) {
    let authority = Authority::new();
    let server = database.start_with(|config| authority.configure(config)).await;
    let named = server.url().replace("127.0.0.1", "localhost");
    let trusting = |builder: RegistryClientBuilder| builder.root_certificate(authority.pem());
    for (client, told) in [
        (client_builder(server.url()).root_certificate(Authority::new().pem()), "invalid peer certificate"),
        (trusting(client_builder(named)), "not valid for name"),
    ] {
        let error = client.build().unwrap().get_stats().await.unwrap_err();
        assert!(is_tls(&error), "{error:?}");
        let causes = causes(&error);
        assert!(causes.len() > 1 && causes.iter().any(|cause| cause.contains(told)), "{causes:?}");
        assert!(!error.to_string().contains(told), "the cause is only in the chain: {error}");
        assert!(error.full_message().contains(told));
    }
    server.shutdown().await;
}

async fn another_endpoint_is_used_if_a_certificate_is_rejected(database: Database) {
    let authority = Authority::new();
    let server = database.start_with(|config| authority.configure(config)).await;
    let wrong = server.url().replace("127.0.0.1", "localhost");
    let urls = format!("{wrong},{}", server.url());
    let client = client_builder(urls).root_certificate(authority.pem()).build().unwrap();
    client.register(&agent("a", "work")).await.unwrap();
    client.heartbeat("a").await.unwrap();
    server.shutdown().await;
}

/// Starts a listener that answers every connection with some bytes, and counts the connections.
async fn answering(bytes: &'static [u8]) -> (String, Arc<AtomicUsize>, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (url, count) = (format!("https://{}", listener.local_addr().unwrap()), Arc::<AtomicUsize>::default());
    let (counted, mut tasks) = (count.clone(), JoinSet::new());
    tasks.spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            let _ = connection.write_all(bytes).await;
        }
    });
    (url, count, tasks)
}

#[tokio::test]
async fn server_without_tls_is_not_retried() {
    let (url, count, _tasks) = answering(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await;
    let client = client_builder(url).root_certificate(Authority::new().pem());
    let client = client.retry(RetryPolicy::discovery().time_limit(Duration::MAX)).build().unwrap();
    let error = client.get_stats().await.unwrap_err();
    assert!(is_tls(&error), "{error:?}");
    assert_eq!(count.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn interrupted_handshake_is_retried() {
    let (url, count, _tasks) = answering(b"").await;
    let client = client_builder(url).root_certificate(Authority::new().pem());
    let client = client.retry(RetryPolicy::discovery().time_limit(Duration::MAX)).build().unwrap();
    let error = client.get_stats().await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    assert_eq!(count.load(Ordering::SeqCst), 3);
}
