//! Unreadable events.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::{
    AFTER_THE_LIST, BEFORE_SILENCE, client, event, events_within, list, next, record, stream, stream_in_two,
};
use crate::logs::Logs;
use crate::support::{Reply, Server};

/// While the first list is being read, before the second one, and long after it.
#[tokio::test(start_paused = true)]
async fn unreadable_event_is_skipped_and_followed_by_a_list() {
    let unreadable = "id: 2-m\nevent: registered\ndata: {\"agent_id\":\"b\",\"status\":7}\n\n";
    let events = format!("{unreadable}{}", event(3, "registered", "c", "active"));
    let while_it_is_read = stream(&format!("id: 1-m\n\n{events}"));
    let afterwards = stream_in_two(AFTER_THE_LIST, "id: 1-m\n\n", &events);
    // In parts of nine bytes, one a second.
    let much_later = format!("id: 1-m\n\n{}{events}", ": alive\n\n".repeat(20)).leak();
    let much_later = Reply::Slow(much_later, 9, Duration::from_secs(1));
    let last = "listed a active, b active, c active";
    let scenes = [
        (while_it_is_read, vec!["listed a active, c active", last], 1),
        (afterwards, vec!["listed a active", "registered c", last], 1),
        (much_later, vec!["listed a active", last], 2),
    ];
    for (reply, expected, lists_before) in scenes {
        let logs = Logs::record();
        let lists = AtomicUsize::new(0);
        let server = Server::start(move |what, _| match what {
            "GET /events" => reply.clone(),
            _ if lists.fetch_add(1, Ordering::SeqCst) < lists_before => list(&[record("a", "active", 1)]),
            _ => list(&[record("a", "active", 1), record("b", "active", 2), record("c", "active", 3)]),
        })
        .await;
        let mut watch = client(&server).watch();
        for expected in expected {
            assert_eq!(next(&mut watch).await, expected);
        }
        assert_eq!(server.times("GET /events").len(), 1);
        assert_eq!(server.times("GET /agents").len(), lists_before + 1);
        let logged = logs.with("skipped an event");
        assert!(logged.len() == 1 && logged[0].contains("2-m"), "{logged:?}");
    }
}

/// A watch that resumes after the preceding event gets it again.
#[tokio::test(start_paused = true)]
async fn oversized_event_is_skipped_and_followed_by_a_list() {
    let opened = AtomicUsize::new(0);
    let too_long = format!("id: 2-m\nevent: registered\ndata: \"{}\"\n\n", "x".repeat(5 * 1_024 * 1_024));
    let begin: &str = format!("id: 1-m\n\n{too_long}").leak();
    let server = Server::start(move |what, _| match what {
        "GET /events" if opened.fetch_add(1, Ordering::SeqCst) == 0 => stream(begin),
        "GET /events" => stream("id: 3-m\n\n"),
        _ => list(&[record("a", "active", 1), record("b", "active", 2)]),
    })
    .await;
    let mut watch = client(&server).watch();
    let told = events_within(&mut watch, BEFORE_SILENCE).await;
    assert!(told.iter().all(|told| told == "listed a active, b active") && !told.is_empty(), "{told:?}");
    let streams: Vec<_> = server.arrived().into_iter().filter(|one| one.what == "GET /events").collect();
    let ids: Vec<_> = streams.iter().map(|stream| stream.header("last-event-id")).collect();
    assert_eq!(ids, [None, None], "it does not come back to it");
}

/// The removal of an agent that the stream reported before.
#[tokio::test(start_paused = true)]
async fn agent_is_removed_although_the_event_cannot_be_read() {
    let server = Server::start(move |what, _| match what {
        "GET /events" => {
            let registered = format!("id: 1-m\n\n{}", event(2, "registered", "a", "active"));
            stream_in_two(AFTER_THE_LIST, &registered, "id: 3-m\nevent: deregistered\ndata: {}\n\n")
        }
        _ => list(&[]),
    })
    .await;
    let mut watch = client(&server).watch();
    assert_eq!(events_within(&mut watch, BEFORE_SILENCE).await, ["listed a active", "listed"]);
}

/// From a newer registry, again and again.
#[tokio::test(start_paused = true)]
async fn many_unreadable_events_cause_few_lists() {
    let events: String = (2..200)
        .map(|number| format!("id: {number}-m\nevent: registered\ndata: {{\"agent_id\":{number}}}\n\n"))
        .collect();
    let parts: &str = format!("id: 1-m\n\n{events}").leak();
    let server = Server::start(move |what, _| match what {
        // One every 100 ms.
        "GET /events" => Reply::Slow(parts, 52, Duration::from_millis(100)),
        _ => list(&[record("a", "active", 1)]),
    })
    .await;
    let mut watch = client(&server).watch();
    let told = events_within(&mut watch, BEFORE_SILENCE).await;
    assert!(told.iter().all(|told| told == "listed a active"), "{told:?}");
    let lists = server.times("GET /agents").len();
    assert!((3..=10).contains(&lists), "{lists} lists in half a minute");
}
