//! What a watch tells of lists and streams that do not fit together.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use registry_sdk::WatchEvent;
use tokio::time::{Instant, timeout};

use super::{HOUR, client, closed_stream, event, events_within, list, next, record, stream, stream_in_two};
use crate::logs::Logs;
use crate::support::{Reply, Server};

/// These servers send no signs of life, so their streams count as lost after a while.
const BEFORE_SILENCE: Duration = Duration::from_secs(30);

/// What a stream tells after so long comes when the list was read, and before it is read once more.
const AFTER_THE_LIST: Duration = Duration::from_secs(1);

/// Waits for a list of these agents.
async fn until_listed(watch: &mut registry_sdk::Watch, expected: &str) {
    let told = timeout(HOUR, async { while next(watch).await != expected {} }).await;
    assert!(told.is_ok(), "never told: {expected}");
}

/// The stream is at 100 already, the replica that is asked for the list has not seen 97 to 99 yet.
#[tokio::test(start_paused = true)]
async fn a_list_that_lags_behind_the_stream_is_completed() {
    let lists = AtomicUsize::new(0);
    let server = Server::start(move |what, _| match what {
        "GET /events" => stream("id: 100-m\n\n"),
        _ if lists.fetch_add(1, Ordering::SeqCst) == 0 => {
            list(&[record("a", "active", 96), record("removed", "active", 95)])
        }
        _ => list(&[record("a", "busy", 98), record("b", "active", 97)]),
    })
    .await;
    let mut watch = client(&server).watch();
    assert_eq!(next(&mut watch).await, "listed a active, removed active");
    until_listed(&mut watch, "listed a busy, b active").await;
}

/// Whether the stream tells it before the list is there or afterwards.
#[tokio::test(start_paused = true)]
async fn the_greater_revision_wins_between_a_list_and_the_stream() {
    let events = [
        event(101, "status_changed", "a", "busy"),
        event(102, "registered", "c", "active"),
        event(103, "deregistered", "d", "active"),
        event(104, "status_changed", "e", "offline"),
    ];
    let events = events.concat();
    let before = stream(&format!("id: 100-m\n\n{events}"));
    let afterwards = stream_in_two(AFTER_THE_LIST, "id: 100-m\n\n", &events);
    let one_by_one = ["listed a active, d active, e busy", "changed a busy", "registered c", "removed d"];
    for (reply, told_first) in [(before, &["listed a busy, c active, e busy"][..]), (afterwards, &one_by_one)]
    {
        let lists = AtomicUsize::new(0);
        let server = Server::start(move |what, _| match what {
            "GET /events" => reply.clone(),
            // The first list has a change already that the stream tells later.
            _ if lists.fetch_add(1, Ordering::SeqCst) == 0 => {
                list(&[record("a", "active", 90), record("d", "active", 91), record("e", "busy", 105)])
            }
            // And the second one is older than the stream.
            _ => list(&[
                record("a", "active", 90),
                record("b", "active", 97),
                record("d", "active", 91),
                record("e", "busy", 105),
            ]),
        })
        .await;
        let mut watch = client(&server).watch();
        let told = events_within(&mut watch, BEFORE_SILENCE).await;
        let (last, first) = told.split_last().unwrap();
        assert_eq!(first, told_first);
        assert_eq!(last, "listed a busy, b active, c active, e busy");
    }
}

/// Without revisions it cannot be seen whether a list lags.
#[tokio::test(start_paused = true)]
async fn a_list_without_revisions_that_lags_is_corrected() {
    let lists = AtomicUsize::new(0);
    let server = Server::start(move |what, _| match what {
        "GET /events" => stream("id: 1-m\n\n"),
        _ if lists.fetch_add(1, Ordering::SeqCst) == 0 => {
            Reply::Answer(200, "", r#"[{"agent_id":"a","status":"active"}]"#)
        }
        _ => Reply::Answer(200, "", r#"[{"agent_id":"a","status":"busy"}]"#),
    })
    .await;
    let mut watch = client(&server).watch();
    assert_eq!(events_within(&mut watch, BEFORE_SILENCE).await, ["listed a active", "listed a busy"]);
}

#[tokio::test(start_paused = true)]
async fn a_list_that_is_complete_is_told_once() {
    let server = Server::start(move |what, _| match what {
        "GET /events" => {
            stream_in_two(AFTER_THE_LIST, "id: 100-m\n\n", &event(101, "status_changed", "a", "busy"))
        }
        _ => list(&[record("a", "active", 100)]),
    })
    .await;
    let mut watch = client(&server).watch();
    assert_eq!(events_within(&mut watch, BEFORE_SILENCE).await, ["listed a active", "changed a busy"]);
}

/// All at once: two events, and the end for a reader that was too slow.
#[tokio::test(start_paused = true)]
async fn events_before_an_overrun_are_told_once() {
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

/// While the first list is read, before it is read once more, and when that is long ago.
#[tokio::test(start_paused = true)]
async fn an_event_that_cannot_be_read_is_skipped_and_answered_by_a_list() {
    let unreadable = "id: 2-m\nevent: registered\ndata: {\"agent_id\":7}\n\n";
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

/// The one who comes back to the event before it is sent it again.
#[tokio::test(start_paused = true)]
async fn an_event_that_is_too_long_to_be_read_is_skipped_and_answered_by_a_list() {
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

/// Of an agent that the stream told before.
#[tokio::test(start_paused = true)]
async fn an_agent_is_gone_whose_removal_cannot_be_read() {
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
async fn many_events_that_cannot_be_read_are_answered_by_few_lists() {
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

/// The replica that is asked for the list is still in the old history, whose revisions are greater.
#[tokio::test(start_paused = true)]
async fn a_new_history_replaces_the_old_one_although_its_revisions_are_smaller() {
    let began = Instant::now();
    let server = Server::start(move |what, _| match what {
        "GET /events" => stream(&format!(
            "id: 100-m\n\nid: 50-n\nevent: reset\ndata: {{\"revision\": 50}}\n\n{}",
            event(51, "status_changed", "a", "busy")
        )),
        _ if began.elapsed() < Duration::from_secs(2) => {
            list(&[record("a", "active", 100), record("lost", "active", 99)])
        }
        _ => list(&[record("a", "busy", 51)]),
    })
    .await;
    let mut watch = client(&server).watch();
    let mut known = Vec::new();
    let _ = timeout(BEFORE_SILENCE, async {
        while let Some(event) = watch.next().await {
            match event {
                WatchEvent::Listed(agents) => known = agents,
                WatchEvent::StatusChanged(agent) => {
                    known.retain(|known| known.agent_id != agent.agent_id);
                    known.push(agent);
                }
                _ => {}
            }
        }
    })
    .await;
    let known: Vec<_> = known.iter().map(|agent| (agent.agent_id.as_str(), agent.revision)).collect();
    assert_eq!(known, [("a", Some(51))]);
}

/// Nothing that has no id can be resumed, so what happens between two streams is found in a list.
#[tokio::test(start_paused = true)]
async fn a_stream_without_ids_is_followed_by_a_list() {
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

/// A registry that knows no revisions tells every change.
#[tokio::test(start_paused = true)]
async fn changes_without_a_revision_are_told() {
    let change = |id: u64, kind: &str| {
        format!("id: {id}-m\nevent: {kind}\ndata: {{\"agent_id\":\"a\",\"status\":\"busy\"}}\n\n")
    };
    let events = change(2, "status_changed") + &change(3, "deregistered") + &change(4, "registered");
    let server = Server::start(move |what, _| match what {
        "GET /events" => stream_in_two(AFTER_THE_LIST, "id: 1-m\n\n", &events),
        _ => Reply::Answer(200, "", r#"[{"agent_id":"a","status":"busy"}]"#),
    })
    .await;
    let mut watch = client(&server).watch();
    let told = events_within(&mut watch, BEFORE_SILENCE).await;
    // Whether the second list shows anything else cannot be seen.
    assert_eq!(told, ["listed a busy", "changed a busy", "removed a", "registered a", "listed a busy"]);
}

/// Pages are read while the stream goes on.
#[tokio::test(start_paused = true)]
async fn a_list_is_read_by_pages_while_the_stream_goes_on() {
    let server = Server::start(|what, _| match what {
        "GET /events" => {
            stream_in_two(AFTER_THE_LIST, "id: 1-m\n\n", &event(2, "status_changed", "a", "busy"))
        }
        "GET /agents?limit=500" => {
            let body: &str = format!("[{}]", record("a", "active", 1)).leak();
            Reply::Answer(200, "link: </agents?limit=500&cursor=a>; rel=\"next\"\r\n", body)
        }
        "GET /agents?limit=500&cursor=a" => list(&[record("b", "active", 1)]),
        other => panic!("{other}"),
    })
    .await;
    let mut watch = client(&server).watch();
    assert_eq!(next(&mut watch).await, "listed a active, b active");
    assert_eq!(next(&mut watch).await, "changed a busy");
}

/// A page that fails is requested again, and those before it are not.
#[tokio::test(start_paused = true)]
async fn pages_that_were_read_are_kept_over_an_interruption() {
    let failures = AtomicUsize::new(0);
    let server = Server::start(move |what, _| match what {
        "GET /events" => stream("id: 1-m\n\n"),
        "GET /agents?limit=500" => {
            let body: &str = format!("[{}]", record("a", "active", 1)).leak();
            Reply::Answer(200, "link: </agents?limit=500&cursor=a>; rel=\"next\"\r\n", body)
        }
        _ if failures.fetch_add(1, Ordering::SeqCst) < 3 => Reply::Answer(503, "", ""),
        _ => list(&[record("b", "active", 1)]),
    })
    .await;
    let mut watch = client(&server).watch();
    assert!(next(&mut watch).await.starts_with("interrupted"));
    assert_eq!(next(&mut watch).await, "listed a active, b active");
    assert_eq!(server.times("GET /agents?limit=500").len(), 1 + 4);
}

#[tokio::test(start_paused = true)]
async fn pages_that_lead_nowhere_are_an_interruption() {
    for (cursor, body) in [("a", r#"[{"agent_id":"a","status":"active"}]"#), ("b", "[]")] {
        let link = format!("</agents?limit=500&cursor={cursor}>; rel=\"next\"");
        let server = Server::start(move |what, _| match what {
            "GET /events" => stream("id: 1-m\n\n"),
            _ => Reply::with(200, &[("link", &link)], body),
        })
        .await;
        let mut watch = client(&server).watch();
        let told = events_within(&mut watch, BEFORE_SILENCE).await;
        assert!(told.len() == 1 && told[0].starts_with("interrupted"), "{told:?}");
        let lists = server.times("GET /agents").len();
        assert!(lists < 60, "{lists} lists in half a minute");
    }
}

/// Streams that are closed again and again, as behind a proxy that allows none, are opened ever more rarely.
#[tokio::test(start_paused = true)]
async fn short_streams_are_opened_after_growing_pauses_and_lists_are_read_all_the_same() {
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

/// Under a load of changes a list is ahead of the stream, which tells the same a moment later.
#[tokio::test(start_paused = true)]
async fn a_list_that_is_ahead_of_the_stream_is_no_reason_to_begin_anew() {
    let registry = registry_sdk::testing::MockRegistry::start().await;
    let changing = registry.client();
    let agent = |number: u64| {
        let id = format!("a{}", number % 10);
        registry_sdk::Registration::new(&id, &id, "http://agent:8000")
            .metadata("number", number)
            .heartbeat_interval(HOUR)
    };
    let proxy = registry_sdk::testing::FaultProxy::start(registry.url().trim_start_matches("http://")).await;
    let mut watch = registry_sdk::RegistryClient::new(format!("http://{}", proxy.address())).unwrap().watch();
    assert_eq!(next(&mut watch).await, "listed");
    // Slow enough for the stream to be seconds behind.
    proxy.set(registry_sdk::testing::Fault::Slow(Duration::from_millis(15)));
    let changes = tokio::spawn(async move {
        for number in 0..200 {
            changing.register(&agent(number)).await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    for number in 0..200 {
        assert_eq!(next(&mut watch).await, format!("registered a{}", number % 10));
    }
    changes.await.unwrap();
    assert_eq!(events_within(&mut watch, Duration::from_secs(30)).await, [""; 0]);
}

/// A stream that comes back has a moment to tell what a list has already.
#[tokio::test(start_paused = true)]
async fn a_list_is_not_judged_before_the_stream_is_back() {
    let (opened, lists) = (AtomicUsize::new(0), AtomicUsize::new(0));
    // In parts of nine bytes, one a second: it ends after the second list was read.
    let first: &str = format!("id: 1-m\n\n{}event: overrun\ndata: {{}}\n\n", ": alive\n\n".repeat(6)).leak();
    let second: &str = format!(": alive\n\n{}", event(2, "registered", "b", "active")).leak();
    let server = Server::start(move |what, _| match what {
        "GET /events" if opened.fetch_add(1, Ordering::SeqCst) == 0 => {
            Reply::Slow(first, 9, Duration::from_secs(1))
        }
        "GET /events" => Reply::Slow(second, 9, Duration::from_millis(300)),
        _ if lists.fetch_add(1, Ordering::SeqCst) == 0 => list(&[record("a", "active", 1)]),
        _ => list(&[record("a", "active", 1), record("b", "active", 2)]),
    })
    .await;
    let mut watch = client(&server).watch();
    let told = events_within(&mut watch, BEFORE_SILENCE).await;
    assert_eq!(told, ["listed a active", "registered b"]);
}
