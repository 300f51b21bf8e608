//! Streams that end again and again, and the events of the watch.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use registry_sdk::RegistryClient;
use tokio::time::Instant;

use super::{
    AFTER_THE_LIST, BEFORE_SILENCE, client, closed_stream, event, events_within, list, next, record, stream,
    stream_in_two,
};
use crate::support::{Reply, Server};

/// All at once: two events, and the end for a slow reader.
#[tokio::test(start_paused = true)]
async fn events_before_an_overrun_are_reported_once() {
    let opened = AtomicUsize::new(0);
    let server = Server::start(move |what, _| match what {
        "GET /events" if opened.fetch_add(1, Ordering::SeqCst) == 0 => {
            let events = event(2, "registered", "b", "active") + &event(3, "registered", "c", "active");
            let overrun = "event: overrun\ndata: {\"revision\": 9}\n\n";
            stream_in_two(AFTER_THE_LIST, "id: 1-m\n\n", &(events + overrun))
        }
        "GET /events" => stream(&event(4, "registered", "d", "active")),
        _ => list(&[record("a", "active", 1)]),
    })
    .await;
    let mut watch = client(&server).watch();
    for expected in ["listed a active", "registered b", "registered c", "registered d"] {
        assert_eq!(next(&mut watch).await, expected);
    }
    let streams: Vec<_> = server.arrived().into_iter().filter(|one| one.what == "GET /events").collect();
    assert_eq!(streams[1].header("last-event-id"), Some("3-m"), "each event is acknowledged by its own id");
}

#[tokio::test(start_paused = true)]
async fn streams_that_end_before_their_first_id_are_an_interruption_and_list_nothing() {
    let server = Server::start(|what, _| match what {
        "GET /events" => closed_stream(": welcome\n\n"),
        _ => list(&[]),
    })
    .await;
    let mut watch = client(&server).watch();
    let told = events_within(&mut watch, Duration::from_secs(600)).await;
    let (streams, lists) = (server.times("GET /events").len(), server.times("GET /agents").len());
    assert!(
        told.iter().any(|told| told.starts_with("interrupted")),
        "{told:?}; {streams} streams, {lists} lists"
    );
    assert!(lists <= 5 && streams <= 400, "{streams} streams, {lists} lists in ten minutes");
}

/// Events without ids cannot be resumed, so changes between two streams are found in a list.
#[tokio::test(start_paused = true)]
async fn stream_without_ids_is_followed_by_a_list() {
    let opened = AtomicUsize::new(0);
    let server = Server::start(move |what, _| match what {
        "GET /events" if opened.fetch_add(1, Ordering::SeqCst) == 0 => {
            closed_stream("event: reset\ndata: {\"revision\": 1}\n\n")
        }
        "GET /events" => stream("id: 2-m\n\n"),
        _ => list(&[record("a", "active", 1)]),
    })
    .await;
    let mut watch = client(&server).watch();
    let told = events_within(&mut watch, BEFORE_SILENCE).await;
    assert!(told.iter().all(|told| told == "listed a active") && !told.is_empty(), "{told:?}");
    let lists = server.times("GET /agents").len();
    assert!(lists >= 3, "{lists} lists: one for each stream, and one to confirm the last");
}

/// Streams that are closed again and again, for example by a proxy, are opened less and less often.
#[tokio::test(start_paused = true)]
async fn short_streams_are_opened_with_growing_delays_and_lists_are_still_read() {
    let server = Server::start(|what, _| match what {
        "GET /events" => closed_stream("id: 1-m\n\n"),
        _ => Reply::Late(Duration::from_secs(1), r#"[{"agent_id":"a","status":"active","revision":1}]"#),
    })
    .await;
    let mut watch = client(&server).watch();
    assert_eq!(events_within(&mut watch, Duration::from_secs(600)).await, ["listed a active"]);
    let streams = server.times("GET /events").len();
    assert!((120..400).contains(&streams), "{streams} streams in ten minutes");
    assert_eq!(server.times("GET /agents").len(), 2);
}

/// A stream that reported a change was useful, however soon it ended, and so was one that lasted for a while.
#[tokio::test(start_paused = true)]
async fn useful_streams_are_reopened_soon() {
    let alive = ": alive\n\n".repeat(14);
    let lasting: &str = format!("{alive}event: overrun\ndata: {{}}\n\n").leak();
    let first: &str = format!("id: 1-m\n\n{lasting}").leak();
    let lasting_for = Duration::from_secs(17);
    let opened = AtomicUsize::new(0);
    let server = Server::start(move |what, _| match what {
        "GET /events" => match opened.fetch_add(1, Ordering::SeqCst) {
            0 => Reply::Slow(first, 9, Duration::from_secs(1)),
            before @ 1..15 => closed_stream(&event(before as u64 + 1, "status_changed", "a", "busy")),
            _ => Reply::Slow(lasting, 9, Duration::from_secs(1)),
        },
        _ => list(&[record("a", "busy", 1)]),
    })
    .await;
    let mut watch = client(&server).watch();
    let told = events_within(&mut watch, 20 * lasting_for).await;
    assert!(told.iter().skip(1).all(|told| told == "changed a busy"), "{told:?}");
    let times = server.times("GET /events");
    let pauses: Vec<_> = times.windows(2).map(|two| two[1] - two[0]).collect();
    let soon = Duration::from_millis(600);
    assert!(pauses[1..15].iter().all(|pause| *pause <= soon), "{pauses:?}");
    assert!(pauses[15..].iter().all(|pause| *pause <= lasting_for + soon), "{pauses:?}");
    assert!(pauses.len() > 25, "{pauses:?}");
}

/// Of two registries the first is about to stop.
#[tokio::test(start_paused = true)]
async fn watch_leaves_a_draining_registry_at_once() {
    let draining = format!("{}event: draining\ndata: {{}}\n\n", event(2, "status_changed", "a", "busy"));
    let draining: &str = draining.leak();
    let first = Server::start(move |what, _| match what {
        "GET /events" => stream_in_two(AFTER_THE_LIST, "id: 1-m\n\n", draining),
        _ => list(&[record("a", "active", 1)]),
    })
    .await;
    let second = Server::start(|what, _| match what {
        "GET /events" => stream(&event(3, "status_changed", "a", "active")),
        _ => list(&[record("a", "active", 3)]),
    })
    .await;
    let client = RegistryClient::builder(format!("{},{}", first.url(), second.url())).build().unwrap();
    let mut watch = client.watch();
    for expected in ["listed a active", "changed a busy"] {
        assert_eq!(next(&mut watch).await, expected);
    }
    let told_at = Instant::now();
    assert_eq!(next(&mut watch).await, "changed a active");
    assert_eq!(told_at.elapsed(), Duration::ZERO);
    let streams: Vec<_> = second.arrived().into_iter().filter(|one| one.what == "GET /events").collect();
    assert_eq!(streams[0].header("last-event-id"), Some("2-m"));
    // Other calls use another registry, too.
    let before = first.arrived().len();
    client.get_agent("a").await.ok();
    assert_eq!(first.arrived().len(), before);
}

/// All registries say that they are about to stop, or one does so repeatedly.
#[tokio::test(start_paused = true)]
async fn registries_that_drain_forever_are_contacted_less_and_less_often() {
    let server = Server::start(|what, _| match what {
        "GET /events" => closed_stream("id: 1-m\n\nevent: draining\ndata: {}\n\n"),
        _ => list(&[record("a", "active", 1)]),
    })
    .await;
    let mut watch = client(&server).watch();
    assert_eq!(events_within(&mut watch, Duration::from_secs(600)).await, ["listed a active"]);
    let streams = server.times("GET /events").len();
    assert!((120..400).contains(&streams), "{streams} streams in ten minutes");
}
