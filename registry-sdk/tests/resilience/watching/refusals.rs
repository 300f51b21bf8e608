//! Event streams that are refused by the registry, or by something in between.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use registry_sdk::discovery::{Directory, Freshness};
use tokio::time::timeout;

use super::{HOUR, client, closed_stream, event, events_within, list, next, record, stream};
use crate::support::{PROBLEM, Reply, Server, until};

const HTML: &str = "content-type: text/html\r\n";

/// Responses of registries and proxies that refuse event streams.
fn refusals() -> Vec<Reply> {
    let own = |status| Reply::Answer(status, PROBLEM, r#"{"detail":"not now"}"#);
    let page = |status| Reply::Answer(status, HTML, "<html>no such page</html>");
    let mut refusals: Vec<_> = [400, 401, 403, 404, 405].into_iter().map(own).collect();
    refusals.extend([400, 401, 403, 404, 405, 501].into_iter().map(page));
    refusals.push(Reply::Answer(404, "", r#"{"detail":"Not Found"}"#));
    refusals
}

#[tokio::test(start_paused = true)]
async fn refusal_at_the_beginning_ends_neither_a_watch_nor_a_directory() {
    for refusal in refusals() {
        let refused = refusal.clone();
        let opened = AtomicUsize::new(0);
        let server = Server::start(move |what, _| match what {
            // Once for the watch and once for the directory.
            "GET /events" if opened.fetch_add(1, Ordering::SeqCst) < 2 => refused.clone(),
            "GET /events" => stream("id: 1-m\n\n"),
            _ => list(&[record("a", "active", 1)]),
        })
        .await;
        let mut watch = client(&server).watch();
        let directory = Directory::follow(&client(&server));
        let event = next(&mut watch).await;
        assert!(event.starts_with("interrupted"), "{refusal:?}: {event}");
        assert_eq!(next(&mut watch).await, "listed a active", "{refusal:?}");
        let ready = timeout(HOUR, directory.ready()).await.expect("it is ready within an hour");
        assert!(ready.is_ok(), "{refusal:?}: {ready:?}");
        assert_eq!(directory.freshness(), Some(Freshness::Fresh), "{refusal:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn refused_reconnection_is_an_interruption_without_missed_changes() {
    for refusal in refusals().into_iter().skip(1) {
        let opened = AtomicUsize::new(0);
        let server = Server::start(move |what, _| match what {
            "GET /events" => match opened.fetch_add(1, Ordering::SeqCst) {
                0 => closed_stream("id: 1-m\n\n"),
                1..4 => refusal.clone(),
                _ => stream(&event(2, "registered", "b", "active")),
            },
            _ => list(&[record("a", "active", 1)]),
        })
        .await;
        let mut watch = client(&server).watch();
        assert_eq!(next(&mut watch).await, "listed a active");
        let interrupted = next(&mut watch).await;
        assert!(interrupted.starts_with("interrupted"), "{interrupted}");
        assert_eq!(next(&mut watch).await, "resumed", "after {interrupted}");
        assert_eq!(next(&mut watch).await, "registered b");
        let streams = server.arrived().into_iter().filter(|one| one.what == "GET /events");
        let ids: Vec<_> = streams.map(|one| one.header("last-event-id").map(str::to_owned)).collect();
        let after = Some("1-m".to_owned());
        assert_eq!(ids, [None, after.clone(), after.clone(), after.clone(), after], "{interrupted}");
    }
}

#[tokio::test(start_paused = true)]
async fn lasting_refusal_is_reported_once_and_retried_with_growing_delays_of_up_to_a_minute() {
    let server = Server::start(|_, _| Reply::Answer(403, PROBLEM, r#"{"detail":"not yours"}"#)).await;
    let mut watch = client(&server).watch();
    let told = events_within(&mut watch, 2 * HOUR).await;
    assert_eq!(told.len(), 1, "{told:?}");
    let times = server.times("GET /events");
    // In the end, delays are drawn between zero and a minute.
    assert!((120..480).contains(&times.len()), "{} attempts in two hours", times.len());
    let pauses: Vec<_> = times.windows(2).map(|two| two[1] - two[0]).collect();
    assert!(pauses.iter().all(|pause| *pause <= Duration::from_secs(61)), "{pauses:?}");
    assert!(pauses.iter().any(|pause| *pause > Duration::from_secs(30)), "{pauses:?}");
    assert!(pauses[0] <= Duration::from_secs(2), "{pauses:?}");
}

/// A token is renewed a second late.
#[tokio::test(start_paused = true)]
async fn token_provider_is_called_again_after_a_refusal() {
    let asked = Arc::new(AtomicUsize::new(0));
    let provided = asked.clone();
    let server = Server::start(|what, before| match what {
        "GET /events" if before < 3 => Reply::Answer(401, PROBLEM, r#"{"detail":"expired"}"#),
        "GET /events" => stream("id: 1-m\n\n"),
        _ => list(&[]),
    })
    .await;
    let client = registry_sdk::RegistryClient::builder(server.url())
        .token_provider(move || format!("token-{}", provided.fetch_add(1, Ordering::SeqCst)))
        .build()
        .unwrap();
    let directory = Directory::follow(&client);
    until("it is followed", || directory.freshness() == Some(Freshness::Fresh)).await;
    let tokens: Vec<_> =
        server.arrived().iter().map(|one| one.header("authorization").unwrap().to_owned()).collect();
    let expected: Vec<_> = (0..tokens.len()).map(|number| format!("Bearer token-{number}")).collect();
    assert_eq!(tokens, expected);
    assert!(asked.load(Ordering::SeqCst) >= 4);
}

#[tokio::test(start_paused = true)]
async fn briefly_unsendable_token_does_not_end_a_watch() {
    let asked = AtomicUsize::new(0);
    let server = Server::start(|what, before| match what {
        "GET /events" if before == 0 => closed_stream("id: 1-m\n\n"),
        "GET /events" => stream(&event(2, "registered", "b", "active")),
        _ => list(&[]),
    })
    .await;
    let client = registry_sdk::RegistryClient::builder(server.url())
        .token_provider(move || match asked.fetch_add(1, Ordering::SeqCst) {
            2 => "half-written\n".to_owned(),
            _ => "token".to_owned(),
        })
        .build()
        .unwrap();
    let mut watch = client.watch();
    assert_eq!(next(&mut watch).await, "listed");
    while !next(&mut watch).await.contains('b') {}
}
