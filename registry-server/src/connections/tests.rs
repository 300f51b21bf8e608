//! Clients that dawdle, on a paused clock.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::future::pending;

use axum::routing::get;
use tokio::io::{DuplexStream, duplex};
use tokio::time::Instant;

use super::*;

/// More than any buffer on the way.
const LONG: usize = 4 * 1_024 * 1_024;

/// A client's end of a connection.
fn connect() -> DuplexStream {
    let router = Router::new()
        .route("/short", get(|| async { "well" }))
        .route("/long", get(|| async { vec![b'x'; LONG] }))
        .route("/never", get(|| async { pending::<()>().await }));
    let (client, server) = duplex(1_024);
    let place = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
    let peer = SocketAddr::from(([127, 0, 0, 1], 1));
    tokio::spawn(converse(server, peer, false, router, CancellationToken::new(), place));
    client
}

/// After how many seconds the server closes the connection.
async fn closed_after(client: &mut DuplexStream) -> u64 {
    let began = Instant::now();
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).await.unwrap();
    began.elapsed().as_secs()
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_is_closed() {
    assert_eq!(closed_after(&mut connect()).await, 10);
}

#[tokio::test(start_paused = true)]
async fn a_head_that_comes_byte_by_byte_is_closed() {
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
async fn a_connection_waits_for_its_next_request_but_not_for_ever() {
    let mut client = connect();
    let mut answer = [0; 1_024];
    for _ in 0..3 {
        client.write_all(b"GET /short HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let read = client.read(&mut answer).await.unwrap();
        assert!(answer[..read].starts_with(b"HTTP/1.1 200"));
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    assert!((10..=25).contains(&closed_after(&mut client).await));
}

#[tokio::test(start_paused = true)]
async fn who_does_not_read_the_answer_is_closed() {
    let mut client = connect();
    client.write_all(b"GET /long HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    tokio::time::sleep(Duration::from_secs(45)).await;
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).await.unwrap();
    assert!(rest.len() < LONG, "{}", rest.len());
}

#[tokio::test(start_paused = true)]
async fn who_reads_slowly_gets_all_of_it() {
    let mut client = connect();
    client.write_all(b"GET /long HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let (mut piece, mut read) = (vec![0; 64 * 1_024], 0);
    while read < LONG {
        tokio::time::sleep(Duration::from_millis(50)).await;
        read += client.read(&mut piece).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_may_take_its_time() {
    let mut client = connect();
    client.write_all(b"GET /never HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let silent = timeout(Duration::from_secs(3_600), closed_after(&mut client)).await;
    assert!(silent.is_err(), "how long a request may be worked on is not the connection's matter");
}

#[tokio::test(start_paused = true)]
async fn long_heads_are_refused() {
    for head in ["x: y\r\n".repeat(HEAD_FIELDS + 1), format!("x: {}\r\n", "y".repeat(HEAD_BYTES))] {
        let mut client = connect();
        let request = format!("GET /short HTTP/1.1\r\n{head}\r\n");
        // It may be refused before all of it is sent.
        let _ = client.write_all(request.as_bytes()).await;
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 431"), "{}", String::from_utf8_lossy(&answer));
    }
}

#[test]
fn the_refusal_is_as_long_as_it_says() {
    let text = std::str::from_utf8(REFUSED).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.ends_with(&format!("content-length: {}", body.len())), "{}", body.len());
    let _: registry_sdk::contract::Problem = serde_json::from_str(body).unwrap();
}
