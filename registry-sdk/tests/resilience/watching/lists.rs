//! Lists and streams that contradict each other.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use registry_sdk::WatchEvent;
use tokio::time::{Instant, timeout};

use super::{
    AFTER_THE_LIST, BEFORE_SILENCE, HOUR, client, event, events_within, list, next, record, stream,
    stream_in_two,
};
use crate::support::{Reply, Server};

/// Waits for a list of these agents.
async fn until_listed(watch: &mut registry_sdk::Watch, expected: &str) {
    let told = timeout(HOUR, async { while next(watch).await != expected {} }).await;
    assert!(told.is_ok(), "never told: {expected}");
}

/// The stream is at revision 100, and the replica that serves the list has not seen 97 to 99 yet.
#[tokio::test(start_paused = true)]
async fn list_that_lags_behind_the_stream_is_completed() {
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

/// Whether the stream reports the change before or after the list.
#[tokio::test(start_paused = true)]
async fn greater_revision_wins_between_a_list_and_the_stream() {
    let events = [
        event(101, "status_changed", "a", "busy"),
        event(102, "registered", "c", "active"),
        // The record is the last one.
        event(91, "deregistered", "d", "active").replace("id: 91", "id: 103"),
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
            // The first list already has a change that the stream reports later.
            _ if lists.fetch_add(1, Ordering::SeqCst) == 0 => {
                list(&[record("a", "active", 90), record("d", "active", 91), record("e", "busy", 105)])
            }
            // The second list is older than the stream.
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

/// Without revisions, a lagging list cannot be recognized.
#[tokio::test(start_paused = true)]
async fn list_without_revisions_that_lags_is_corrected() {
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

/// Waiting for a pause between changes could take forever.
#[tokio::test(start_paused = true)]
async fn list_that_lags_is_completed_while_changes_go_on() {
    let lists = AtomicUsize::new(0);
    let events: String = (201..240).map(|revision| event(revision, "status_changed", "a", "busy")).collect();
    let size = event(201, "status_changed", "a", "busy").len();
    let padding = " ".repeat(size - "id: 200-m\n\n:\n\n".len());
    let events: &str = format!("id: 200-m\n\n:{padding}\n\n{events}").leak();
    let server = Server::start(move |what, _| match what {
        // One change every second.
        "GET /events" => Reply::Slow(events, size, Duration::from_secs(1)),
        _ if lists.fetch_add(1, Ordering::SeqCst) == 0 => list(&[record("a", "active", 96)]),
        _ => list(&[record("a", "active", 96), record("b", "active", 97)]),
    })
    .await;
    let mut watch = client(&server).watch();
    let began = Instant::now();
    while next(&mut watch).await != "listed a busy, b active" {}
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn lists_are_repeated_after_a_few_seconds_and_not_all_at_once() {
    let server = Server::start(|what, _| match what {
        "GET /events" => stream("id: 1-m\n\n"),
        _ => list(&[record("a", "active", 1)]),
    })
    .await;
    let began = Instant::now();
    let _watches: Vec<_> = (0..40).map(|_| client(&server).watch()).collect();
    tokio::time::sleep(BEFORE_SILENCE).await;
    let times: Vec<_> = server.times("GET /agents").into_iter().map(|time| time - began).collect();
    let (first, second) = times.split_at(40);
    assert!(first[39] < Duration::from_secs(1) && second.len() == 40, "{times:?}");
    // The contract's second and a few more, and up to half as much again.
    assert!(second[0] >= Duration::from_secs(5) && second[39] <= Duration::from_secs(8), "{second:?}");
    assert!(second[39] >= second[0] + Duration::from_secs(1), "{second:?}");
}

#[tokio::test(start_paused = true)]
async fn complete_list_is_reported_once() {
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

/// The replica that serves the list is still in the old history, whose revisions are greater.
#[tokio::test(start_paused = true)]
async fn new_history_replaces_the_old_one_although_its_revisions_are_smaller() {
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

/// A registry without revisions reports every change.
#[tokio::test(start_paused = true)]
async fn changes_without_a_revision_are_reported() {
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
    // It is unknown whether the second list shows anything else.
    assert_eq!(told, ["listed a busy", "changed a busy", "removed a", "registered a", "listed a busy"]);
}

/// Pages are read while the stream continues.
#[tokio::test(start_paused = true)]
async fn list_is_read_by_pages_while_the_stream_goes_on() {
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

/// A failed page is requested again, and earlier ones are not.
#[tokio::test(start_paused = true)]
async fn pages_already_read_survive_an_interruption() {
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

/// Although the stream continues.
#[tokio::test(start_paused = true)]
async fn repeatedly_failing_second_list_is_one_interruption() {
    let lists = AtomicUsize::new(0);
    let alive: &str = format!("id: 1-m\n\n{}", ": alive\n\n".repeat(20)).leak();
    let server = Server::start(move |what, _| match what {
        "GET /events" => Reply::Slow(alive, 9, Duration::from_secs(1)),
        _ if (1..5).contains(&lists.fetch_add(1, Ordering::SeqCst)) => Reply::Answer(503, "", ""),
        _ => list(&[record("a", "active", 1)]),
    })
    .await;
    let mut watch = client(&server).watch();
    assert_eq!(next(&mut watch).await, "listed a active");
    assert!(next(&mut watch).await.starts_with("interrupted"));
    assert_eq!(next(&mut watch).await, "resumed");
    assert_eq!(server.times("GET /agents").len(), 6);
}

#[tokio::test(start_paused = true)]
async fn endless_pages_are_an_interruption() {
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

/// Under a load of changes a list is ahead of the stream, which reports the same a moment later.
#[tokio::test(start_paused = true)]
async fn list_ahead_of_the_stream_does_not_cause_a_restart() {
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

/// A stream that reconnects has a moment to report what a list already has.
#[tokio::test(start_paused = true)]
async fn list_is_not_judged_before_the_stream_is_back() {
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
