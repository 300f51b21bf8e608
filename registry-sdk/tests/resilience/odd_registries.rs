//! Registries that answer from memory, ask clients to slow down, hang on some requests, or send unreadable data.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use registry_sdk::discovery::{Directory, DiscoveryCache, Freshness, HealthSource};
use registry_sdk::{
    AlertRule, ListQuery, Orchestrator, RegistryClient, RetryPolicy, StatsMonitor, TaskQuery, WatchEvent,
};
use tokio::time::{Instant, sleep, timeout};

use crate::support::{ACK, HEARTBEAT, PROBLEM, Reply, Server, agent_of, until};

const AGENT: &str = r#"{"agent_id":"a","status":"active"}"#;
const LIST: &str = r#"[{"agent_id":"a","status":"active","capabilities":[{"name":"work"}]}]"#;
const TTL: Duration = Duration::from_secs(2);

#[tokio::test(start_paused = true)]
async fn registry_that_is_away_for_the_first_second_is_not_fresh() {
    let server = Server::start(|_, _| Reply::Answer(200, "registry-stale-seconds: 0\r\n", AGENT)).await;
    let cache = DiscoveryCache::new(RegistryClient::new(server.url()).unwrap());
    assert!(cache.get_agent("a").await.unwrap().freshness.is_stale());
}

/// A deregistered agent is removed, although the event has little data.
#[tokio::test(start_paused = true)]
async fn directory_does_not_keep_what_an_unreadable_event_removed() {
    let server = Server::start(|what, _| match what {
        "GET /events" => Reply::Stall(
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\nid: 1\n\nid: 2\nevent: deregistered\ndata: {\"agent_id\":\"a\"}\n\n",
        ),
        what if what.starts_with("GET /agents?") => Reply::Answer(200, "", LIST),
        _ => Reply::Answer(404, PROBLEM, r#"{"detail":"gone"}"#),
    })
    .await;
    let directory = Directory::follow(&RegistryClient::new(server.url()).unwrap());
    directory.ready().await.unwrap();
    sleep(Duration::from_secs(20)).await;
    assert!(
        directory.is_empty() || directory.freshness().is_some_and(Freshness::is_stale),
        "{} agents, {:?}",
        directory.len(),
        directory.freshness()
    );
}

#[tokio::test(start_paused = true)]
async fn draining_or_offline_agent_does_not_count_as_healthy() {
    for status in ["draining", "offline"] {
        let body: &'static str =
            format!(r#"[{{"agent_id":"a","status":"{status}","capability":"work"}}]"#).leak();
        let server = Server::start(move |_, _| Reply::Answer(200, "", body)).await;
        let client = RegistryClient::builder(server.url()).retry(RetryPolicy::none()).build().unwrap();
        let rule = AlertRule::TooFew { capability: "work".to_owned(), at_least: 1 };
        let monitor = StatsMonitor::builder(client).interval(Duration::from_secs(1)).rules([rule]).start();
        let mut alerts = monitor.alerts();
        assert!(timeout(Duration::from_secs(60), alerts.recv()).await.is_ok(), "{status}: no alert");
    }
}

#[tokio::test(start_paused = true)]
async fn only_the_first_read_waits_for_a_registry_that_hangs() {
    let server =
        Server::start(|_, before| if before == 0 { Reply::Answer(200, "", AGENT) } else { Reply::Hang })
            .await;
    let cache = DiscoveryCache::builder(RegistryClient::new(server.url()).unwrap()).ttl(TTL).build();
    cache.get_agent("a").await.unwrap();
    sleep(TTL).await;
    cache.get_agent("a").await.unwrap();
    let began = Instant::now();
    for _ in 0..20 {
        assert!(cache.get_agent("a").await.unwrap().freshness.is_stale());
    }
    assert!(began.elapsed() < Duration::from_millis(500), "twenty cached reads took {:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn registry_that_asks_a_cache_to_slow_down_is_obeyed_from_the_beginning() {
    let server = Server::start(|_, _| {
        Reply::Answer(
            429,
            "retry-after: 30\r\ncontent-type: application/problem+json\r\n",
            r#"{"detail":"slow down"}"#,
        )
    })
    .await;
    let client = RegistryClient::builder(server.url()).retry(RetryPolicy::none()).build().unwrap();
    let cache = DiscoveryCache::builder(client).ttl(TTL).build();
    for _ in 0..60 {
        assert!(cache.get_agent("a").await.is_err());
        sleep(Duration::from_secs(1)).await;
    }
    let asked = server.arrived().len();
    assert!(asked <= 10, "asked {asked} times in a minute");
}

#[tokio::test(start_paused = true)]
async fn zero_time_to_live_has_growing_delays_as_well() {
    let server =
        Server::start(|_, before| if before == 0 { Reply::Answer(200, "", AGENT) } else { Reply::Close })
            .await;
    let client = RegistryClient::builder(server.url()).retry(RetryPolicy::none()).build().unwrap();
    let cache = DiscoveryCache::builder(client).ttl(Duration::ZERO).build();
    for _ in 0..600 {
        cache.get_agent("a").await.unwrap();
        sleep(Duration::from_millis(100)).await;
    }
    assert!(server.arrived().len() < 200, "asked {} times in a minute", server.arrived().len());
}

#[tokio::test]
async fn calls_succeed_if_the_server_closes_each_connection() {
    let server = Server::start(|_, _| {
        Reply::Raw("HTTP/1.1 200 OK\r\ncontent-length: 34\r\n\r\n{\"agent_id\":\"a\",\"status\":\"active\"}")
    })
    .await;
    let client = RegistryClient::builder(server.url()).retry(RetryPolicy::none()).build().unwrap();
    let mut failed = Vec::new();
    for _ in 0..300 {
        failed.extend(client.heartbeat("a").await.err().map(|error| error.full_message()));
    }
    assert!(failed.is_empty(), "{}: {}", failed.len(), failed[0]);
}

/// A single slow query is no reason to avoid an endpoint that responds to everything else.
#[tokio::test(start_paused = true)]
async fn timeout_of_one_request_does_not_count_while_others_are_answered() {
    let first = Server::start(|what, _| if what == HEARTBEAT { ACK } else { Reply::Hang }).await;
    let second = Server::start(|_, _| Reply::Answer(200, "", LIST)).await;
    let client = RegistryClient::new(format!("{},{}", first.url(), second.url())).unwrap();
    let (listed, ()) = tokio::join!(client.list_agents(ListQuery::all()), async {
        for _ in 0..40 {
            client.heartbeat("a").await.unwrap();
            sleep(Duration::from_millis(100)).await;
        }
    });
    listed.unwrap();
    client.heartbeat("a").await.unwrap();
    assert_eq!(second.times(HEARTBEAT).len(), 0);
}

/// Trials that are cancelled or panic do not keep their slots.
#[tokio::test(start_paused = true)]
async fn cancelled_trials_release_their_slots() {
    let is_hanging = Arc::new(AtomicBool::new(true));
    let hanging = is_hanging.clone();
    let first =
        Server::start(move |_, _| if hanging.load(Ordering::SeqCst) { Reply::Hang } else { ACK }).await;
    let second = Server::start(|_, _| ACK).await;
    let asked = AtomicUsize::new(0);
    let token = move || {
        assert!(asked.fetch_add(1, Ordering::SeqCst) % 17 != 16, "a token provider that panics");
        "token".to_owned()
    };
    let client = RegistryClient::builder(format!("{},{}", first.url(), second.url()))
        .token_provider(token)
        .build()
        .unwrap();
    for round in 0..200_u64 {
        let calls: Vec<_> = (0..20)
            .map(|_| {
                let client = client.clone();
                tokio::spawn(async move { client.heartbeat("a").await })
            })
            .collect();
        sleep(Duration::from_millis(round * 37 % 3_000)).await;
        for call in calls {
            call.abort();
        }
        sleep(Duration::from_secs(round % 40)).await;
    }
    is_hanging.store(false, Ordering::SeqCst);
    sleep(Duration::from_secs(301)).await;
    let before = second.arrived().len();
    for _ in 0..20 {
        let client = client.clone();
        let _ = tokio::spawn(async move { client.heartbeat("a").await }).await;
    }
    assert!(second.arrived().len() <= before + 1, "the first is used again");
}

/// The events of an endpoint do not show that it responds to other requests.
#[tokio::test(start_paused = true)]
async fn heads_of_event_streams_do_not_keep_an_endpoint_up_that_stalls() {
    const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n[";
    let first = Server::start(|what, _| match what {
        "GET /events" => Reply::Raw("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\nid: 1\n\n"),
        _ => Reply::Stall(HEAD),
    })
    .await;
    let second = Server::start(|what, _| match what {
        "GET /events" => Reply::Stall("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\nid: 1\n\n"),
        what if what.starts_with("GET /agents?") => Reply::Answer(200, "", LIST),
        _ => ACK,
    })
    .await;
    let client = RegistryClient::new(format!("{},{}", first.url(), second.url())).unwrap();
    let mut watch = client.watch();
    let watching = tokio::spawn(async move { while watch.next().await.is_some() {} });
    let mut slow = 0;
    for _ in 0..120 {
        let began = Instant::now();
        let _ = client.heartbeat("a").await;
        slow += usize::from(began.elapsed() > Duration::from_secs(1));
        sleep(Duration::from_secs(5)).await;
    }
    watching.abort();
    assert!(slow <= 25, "{slow} of 120 calls were slow");
}

#[tokio::test(start_paused = true)]
async fn refused_last_event_id_is_forgotten() {
    let server = Server::start(|what, before| match (what, before) {
        ("GET /events", 0) => {
            Reply::Raw("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\nid: seven\n\n")
        }
        ("GET /events", 2) => Reply::Answer(400, PROBLEM, r#"{"detail":"last-event-id is no number"}"#),
        ("GET /events", _) => {
            Reply::Stall("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\nid: 1\n\n")
        }
        _ => Reply::Answer(200, "", LIST),
    })
    .await;
    let mut watch = RegistryClient::new(server.url()).unwrap().watch();
    let mut last = None;
    let ended = timeout(Duration::from_secs(600), async {
        while let Some(event) = watch.next().await {
            last = Some(event);
        }
    })
    .await;
    assert!(ended.is_err(), "the watch has ended for good: {last:?}");
}

/// A selection with a directory needs no search, so its health check is the trial of an endpoint that hangs.
#[tokio::test(start_paused = true)]
async fn selection_with_a_directory_does_not_fail_every_half_minute() {
    let is_hanging = Arc::new(AtomicBool::new(false));
    let hanging = is_hanging.clone();
    let agent = Server::start(|_, _| Reply::Answer(200, "", "")).await;
    let list = format!(
        r#"[{{"agent_id":"a","base_url":"{}","status":"active","revision":1,"capabilities":[{{"name":"work"}}]}}]"#,
        agent.url()
    );
    let list: &str = list.leak();
    let script = move |what: &str| match what {
        "GET /events" => Reply::Stall("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\nid: 1\n\n"),
        what if what.starts_with("GET /agents?") => Reply::Answer(200, "", list),
        _ => Reply::Answer(200, "", r#"{"agent_id":"a","status":"healthy"}"#),
    };
    let first = Server::start(move |what, _| match what {
        "GET /events" => script(what),
        what if hanging.load(Ordering::SeqCst) && what.starts_with("GET /health") => Reply::Hang,
        what => script(what),
    })
    .await;
    let second = Server::start(move |what, _| script(what)).await;
    let client = RegistryClient::new(format!("{},{}", first.url(), second.url())).unwrap();
    let directory = Directory::follow(&client);
    directory.ready().await.unwrap();
    is_hanging.store(true, Ordering::SeqCst);
    let orchestrator = Orchestrator::builder(client).directory(directory).build();
    let query = TaskQuery::new("work").health_source(HealthSource::Registry);
    let mut failed = 0;
    for _ in 0..600 {
        failed += usize::from(orchestrator.select(&query).await.is_err());
        sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(failed, 0, "of 600 selections in ten minutes, with one endpoint up all the time");
}

/// An agent with two URLs of one registry whose database is unavailable for longer than an attempt.
#[tokio::test(start_paused = true)]
async fn update_is_sent_to_the_second_endpoint_if_the_first_hangs() {
    let first = Server::start(|_, _| Reply::Hang).await;
    let second = Server::start(|_, _| ACK).await;
    let client = RegistryClient::new(format!("{},{}", first.url(), second.url())).unwrap();
    let interval = Duration::from_secs(60);
    let agent = agent_of(client, interval);
    agent.start_heartbeat(interval).unwrap();
    until("it beats", || second.times(HEARTBEAT).len() >= 2).await;
    for _ in 0..5 {
        sleep(Duration::from_secs(47)).await;
        agent.update_status(registry_sdk::AgentStatus::Busy).await.unwrap();
    }
}

/// A field that is new to this version must not be hidden by what can be read.
#[tokio::test(start_paused = true)]
async fn watch_over_a_registry_that_lists_nothing_readable_says_so() {
    let server = Server::start(|what, _| match what {
        "GET /events" => Reply::Stall("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\nid: 1\n\n"),
        _ => Reply::Answer(200, "", r#"{"errors":[]}"#),
    })
    .await;
    let mut watch = RegistryClient::new(server.url()).unwrap().watch();
    let event = watch.next().await.unwrap();
    assert!(matches!(event, WatchEvent::Interrupted(_)), "{event:?}");
}

async fn first_from_memory() -> (Server, Server, RegistryClient) {
    let script = |headers: &'static str| {
        move |what: &str, _| match what {
            "GET /events" => {
                Reply::Stall("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\nid: 1\n\n")
            }
            what if what.starts_with("GET /agents?") => Reply::Answer(200, headers, LIST),
            _ => Reply::Answer(200, headers, AGENT),
        }
    };
    let first = Server::start(script("registry-stale-seconds: 900\r\n")).await;
    let second = Server::start(script("")).await;
    let client = RegistryClient::new(format!("{},{}", first.url(), second.url())).unwrap();
    (first, second, client)
}

/// The first replica has lost its database, the second has not.
#[tokio::test(start_paused = true)]
async fn replica_that_answers_from_memory_is_not_preferred_to_a_healthy_one() {
    let (_first, _second, client) = first_from_memory().await;
    let cache = DiscoveryCache::new(client);
    let mut last = None;
    for _ in 0..60 {
        last = Some(cache.get_agent("a").await.unwrap().freshness);
        sleep(Duration::from_secs(5)).await;
    }
    assert!(!last.unwrap().is_stale(), "{last:?} after five minutes");
}

#[tokio::test(start_paused = true)]
async fn watch_leaves_a_replica_that_answers_from_memory() {
    let (_first, second, client) = first_from_memory().await;
    let directory = Directory::follow(&client);
    directory.ready().await.unwrap();
    sleep(Duration::from_secs(300)).await;
    let asked = second.arrived().len();
    assert!(
        !directory.freshness().unwrap().is_stale(),
        "{:?}; the second was asked {asked} times",
        directory.freshness()
    );
}

/// A burst of requests whose caller gave up after 20 ms, at an endpoint that responds within 50 ms.
#[tokio::test(start_paused = true)]
async fn burst_of_quickly_cancelled_requests_does_not_count_against_its_endpoint() {
    let first = Server::start(|_, _| Reply::Late(Duration::from_millis(50), AGENT)).await;
    let second = Server::start(|_, _| ACK).await;
    let client = RegistryClient::new(format!("{},{}", first.url(), second.url())).unwrap();
    client.heartbeat("a").await.unwrap();
    sleep(Duration::from_secs(1)).await;
    let burst = futures_util::future::join_all((0..50).map(|_| client.heartbeat("a")));
    assert!(timeout(Duration::from_millis(20), burst).await.is_err());
    client.heartbeat("a").await.unwrap();
    assert_eq!(second.arrived().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn delegation_with_its_own_limit_does_not_fail_every_half_minute() {
    let first = Server::start(|_, _| Reply::Hang).await;
    let second = Server::start(|_, _| {
        Reply::Answer(200, "", r#"[{"agent_id":"a","status":"active","capability":"work","healthy":true}]"#)
    })
    .await;
    let client = RegistryClient::new(format!("{},{}", first.url(), second.url())).unwrap();
    let orchestrator = Orchestrator::new(client);
    let mut failed = 0;
    for _ in 0..600 {
        let query = TaskQuery::new("work").health_source(HealthSource::Search);
        let delegation = orchestrator.delegate(query).time_limit(Duration::from_secs(5));
        let done = delegation.run(|_| async { Ok(()) }).await;
        failed += usize::from(done.is_err());
        sleep(Duration::from_secs(1)).await;
    }
    // A failed endpoint is tried less and less often.
    assert!(failed <= 5, "{failed} of 600 tasks in ten minutes");
}

/// Four endpoints, three of which hang.
#[tokio::test(start_paused = true)]
async fn call_reaches_the_last_endpoint_that_is_up() {
    let hanging = [
        Server::start(|_, _| Reply::Hang).await,
        Server::start(|_, _| Reply::Hang).await,
        Server::start(|_, _| Reply::Hang).await,
    ];
    let last = Server::start(|_, _| ACK).await;
    let urls: Vec<_> = hanging.iter().chain([&last]).map(Server::url).collect();
    let client = RegistryClient::new(urls.join(",")).unwrap();
    let mut failed = 0;
    for _ in 0..20 {
        failed += usize::from(client.heartbeat("a").await.is_err());
        sleep(Duration::from_secs(31)).await;
    }
    assert!(failed <= 1, "{failed} of 20 calls failed; the last was asked {} times", last.arrived().len());
}
