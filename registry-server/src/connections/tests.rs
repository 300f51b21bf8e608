//! Slow clients, with a paused clock.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::future::pending;

use axum::routing::get;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::Instant;

use super::*;

/// Larger than all buffers between client and server.
const LONG: usize = 4 * 1_024 * 1_024;

/// Opens a connection and returns the client side.
fn connect() -> DuplexStream {
    let router = Router::new()
        .route("/short", get(|| async { "well" }))
        .route("/long", get(|| async { vec![b'x'; LONG] }))
        .route("/never", get(|| async { pending::<()>().await }));
    let (client, server) = duplex(1_024);
    let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
    let peer = SocketAddr::from(([127, 0, 0, 1], 1));
    tokio::spawn(serve_connection(server, peer, router, None, CancellationToken::new(), permit));
    client
}

/// Returns the number of seconds until the server closes the connection.
async fn closed_after(client: &mut DuplexStream) -> u64 {
    let began = Instant::now();
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).await.unwrap();
    began.elapsed().as_secs()
}

#[tokio::test(start_paused = true)]
async fn silent_connection_is_closed() {
    assert_eq!(closed_after(&mut connect()).await, 10);
}

#[tokio::test(start_paused = true)]
async fn connection_with_a_trickling_head_is_closed() {
    let mut client = connect();
    let began = Instant::now();
    let head = b"GET /short HTTP/1.1\r\nx: ".iter().chain(std::iter::repeat(&b'x'));
    for byte in head {
        tokio::time::sleep(Duration::from_secs(1)).await;
        if client.write_all(&[*byte]).await.is_err() {
            break;
        }
    }
    assert!((10..=21).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn idle_connection_is_kept_for_a_while_and_then_closed() {
    let mut client = connect();
    let mut response = [0; 1_024];
    for _ in 0..3 {
        client.write_all(b"GET /short HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let read = client.read(&mut response).await.unwrap();
        assert!(response[..read].starts_with(b"HTTP/1.1 200"));
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    assert!((10..=25).contains(&closed_after(&mut client).await));
}

#[tokio::test(start_paused = true)]
async fn connection_of_a_client_that_does_not_read_is_closed() {
    let mut client = connect();
    client.write_all(b"GET /long HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    tokio::time::sleep(Duration::from_secs(45)).await;
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).await.unwrap();
    assert!(rest.len() < LONG, "{}", rest.len());
}

#[tokio::test(start_paused = true)]
async fn slow_reader_gets_the_whole_response() {
    let mut client = connect();
    client.write_all(b"GET /long HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let (mut piece, mut read) = (vec![0; 64 * 1_024], 0);
    while read < LONG {
        tokio::time::sleep(Duration::from_millis(50)).await;
        read += client.read(&mut piece).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn handling_a_request_has_no_timeout() {
    let mut client = connect();
    client.write_all(b"GET /never HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let silent = timeout(Duration::from_secs(3_600), closed_after(&mut client)).await;
    assert!(silent.is_err(), "the connection was closed");
}

#[tokio::test(start_paused = true)]
async fn oversized_heads_are_rejected() {
    for head in ["x: y\r\n".repeat(MAX_HEADERS + 1), format!("x: {}\r\n", "y".repeat(MAX_HEADER_BYTES))] {
        let mut client = connect();
        let request = format!("GET /short HTTP/1.1\r\n{head}\r\n");
        // The server may reject the head before it was sent completely.
        let _ = client.write_all(request.as_bytes()).await;
        let mut response = Vec::new();
        client.read_to_end(&mut response).await.unwrap();
        assert!(response.starts_with(b"HTTP/1.1 431"), "{}", String::from_utf8_lossy(&response));
    }
}
