//! The cache in front of a registry that fails and recovers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use registry_sdk::discovery::{DiscoveryCache, FallbackReason, Freshness, SafeSearch};
use registry_sdk::{RegistryClient, RetryPolicy};

use crate::support::{PROBLEM, Reply, Server};

const FRESH: Duration = Duration::from_secs(2);
const STALE: Duration = Duration::from_secs(60);
const FOUND: &str = r#"[{"agent_id":"a","status":"active","capability":"work"}]"#;
const AGENTS: &str = r#"[{"agent_id":"a","status":"active"},{"agent_id":"b","status":"active"}]"#;

/// The registry's behaviour: it responds, refuses, or is unavailable.
const ANSWERS: usize = 0;
const AWAY: usize = 1;
const UNKNOWN: usize = 2;

async fn registry() -> (Server, Arc<AtomicUsize>) {
    let mood = Arc::<AtomicUsize>::default();
    let shared = mood.clone();
    let script = move |what: &str, _| match (shared.load(Ordering::SeqCst), what) {
        (AWAY, _) => Reply::Close,
        (UNKNOWN, _) => Reply::Answer(404, "", r#"{"detail":"gone"}"#),
        (_, "GET /agents/a") => Reply::Answer(200, "", r#"{"agent_id":"a","status":"active"}"#),
        (_, what) if what.starts_with("GET /agents") => Reply::Answer(200, "", AGENTS),
        _ => Reply::Answer(200, "", FOUND),
    };
    (Server::start(script).await, mood)
}

fn cache(server: &Server) -> DiscoveryCache {
    let client = RegistryClient::builder(server.url()).retry(RetryPolicy::none()).build().unwrap();
    DiscoveryCache::builder(client).ttl(FRESH).stale_if_error(STALE).build()
}

#[tokio::test(start_paused = true)]
async fn fresh_response_is_not_requested_again() {
    let (server, _) = registry().await;
    let cache = cache(&server);
    for _ in 0..5 {
        assert_eq!(cache.search_capabilities("work").await.unwrap().freshness, Freshness::Fresh);
    }
    assert_eq!(server.arrived().len(), 1);
    cache.search_capabilities("other work").await.unwrap();
    assert_eq!(server.arrived().len(), 2, "another question");
    tokio::time::sleep(FRESH).await;
    cache.search_capabilities("work").await.unwrap();
    assert_eq!(server.arrived().len(), 3, "no longer fresh");
}

#[tokio::test(start_paused = true)]
async fn concurrent_callers_share_one_request() {
    for mood_then in [ANSWERS, AWAY] {
        let (server, mood) = registry().await;
        mood.store(mood_then, Ordering::SeqCst);
        let cache = cache(&server);
        let all = (0..100).map(|_| {
            let cache = cache.clone();
            tokio::spawn(async move { cache.get_agent("a").await })
        });
        for one in all.collect::<Vec<_>>() {
            assert_eq!(one.await.unwrap().is_ok(), mood_then == ANSWERS);
        }
        assert_eq!(server.arrived().len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn last_response_is_returned_with_its_age_during_an_outage() {
    let (server, mood) = registry().await;
    let cache = cache(&server);
    let first = cache.search_capabilities("work").await.unwrap();
    mood.store(AWAY, Ordering::SeqCst);
    tokio::time::sleep(FRESH).await;
    let stale = cache.search_capabilities("work").await.unwrap();
    assert_eq!(stale.value, first.value);
    let Freshness::Stale { age } = stale.freshness else { panic!("{stale:?}") };
    assert!(age >= FRESH && age < 2 * FRESH, "{age:?}");
    // The next callers do not wait for another failure.
    let asked = server.arrived().len();
    for _ in 0..5 {
        assert!(cache.search_capabilities("work").await.unwrap().freshness.is_stale());
    }
    assert_eq!(server.arrived().len(), asked);
    // There is no response to a query that was never sent.
    assert!(cache.search_capabilities("other work").await.unwrap_err().is_retryable());

    mood.store(ANSWERS, Ordering::SeqCst);
    tokio::time::sleep(FRESH).await;
    assert_eq!(cache.search_capabilities("work").await.unwrap().freshness, Freshness::Fresh);
}

#[tokio::test(start_paused = true)]
async fn response_that_is_too_old_is_not_returned() {
    let (server, mood) = registry().await;
    let cache = cache(&server);
    cache.get_agent("a").await.unwrap();
    mood.store(AWAY, Ordering::SeqCst);
    tokio::time::sleep(STALE / 2).await;
    assert!(cache.get_agent("a").await.unwrap().freshness.is_stale());
    tokio::time::sleep(STALE).await;
    assert!(cache.get_agent("a").await.unwrap_err().is_retryable());
}

#[tokio::test(start_paused = true)]
async fn refusal_of_the_registry_is_not_hidden_by_the_cache() {
    let (server, mood) = registry().await;
    let cache = cache(&server);
    cache.get_agent("a").await.unwrap();
    mood.store(UNKNOWN, Ordering::SeqCst);
    tokio::time::sleep(FRESH).await;
    assert!(cache.get_agent("a").await.unwrap_err().is_not_found());
    // Nor later: the registry has said that the agent is gone.
    mood.store(AWAY, Ordering::SeqCst);
    assert!(cache.get_agent("a").await.is_err());
}

#[tokio::test(start_paused = true)]
async fn request_continues_after_the_caller_that_began_it_gave_up() {
    let server = Server::start(|_, _| Reply::Late(Duration::from_secs(1), FOUND)).await;
    let cache = cache(&server);
    let first = tokio::spawn({
        let cache = cache.clone();
        async move { cache.search_capabilities("work").await }
    });
    crate::support::until("it asks", || server.arrived().len() == 1).await;
    let waiting = tokio::spawn(async move { cache.search_capabilities("work").await });
    first.abort();
    assert_eq!(waiting.await.unwrap().unwrap().len(), 1);
    assert_eq!(server.arrived().len(), 1);
}

/// The registry itself sends 429; the others come from a proxy in front of it.
#[tokio::test(start_paused = true)]
async fn responses_from_something_in_between_count_as_an_outage() {
    const HTML: &str = "content-type: text/html\r\n";
    for reply in [
        Reply::Answer(429, PROBLEM, r#"{"detail":"slow down"}"#),
        Reply::Answer(408, "", ""),
        Reply::Answer(404, HTML, "<html>"),
        Reply::Answer(401, HTML, "<html>"),
        Reply::Answer(403, HTML, "<html>"),
        Reply::Answer(301, "location: https://elsewhere/\r\n", ""),
        Reply::Answer(200, HTML, "<html>"),
        Reply::Answer(404, "", r#"{"message":"no route"}"#),
        Reply::Hang,
        Reply::Close,
    ] {
        let failing = reply.clone();
        let server = Server::start(move |_, before| match before {
            0 => Reply::Answer(200, "", FOUND),
            _ => failing.clone(),
        })
        .await;
        let cache = cache(&server);
        cache.search_capabilities("work").await.unwrap();
        tokio::time::sleep(FRESH).await;
        for _ in 0..20 {
            let stale = cache.search_capabilities("work").await;
            let stale = stale.unwrap_or_else(|error| panic!("{reply:?}: {error}"));
            assert!(stale.freshness.is_stale() && stale.len() == 1, "{reply:?}");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn page_in_place_of_a_record_does_not_mean_that_the_agent_is_gone() {
    let server = Server::start(move |_, before| match before {
        0 => Reply::Answer(200, "", r#"{"agent_id":"a","status":"active"}"#),
        _ => Reply::Answer(404, "content-type: text/html\r\n", "<html>"),
    })
    .await;
    let cache = cache(&server);
    cache.get_agent("a").await.unwrap();
    tokio::time::sleep(FRESH).await;
    assert!(cache.get_agent("a").await.unwrap().freshness.is_stale());
    let client = RegistryClient::builder(server.url()).retry(RetryPolicy::none()).build().unwrap();
    assert!(!client.get_agent("a").await.unwrap_err().is_not_found());
    assert!(!client.check_health("a").await.unwrap_err().is_not_found());
}

#[tokio::test(start_paused = true)]
async fn response_from_memory_is_as_old_as_the_registry_says() {
    let server = Server::start(move |_, before| {
        let header = if before == 0 { "registry-stale-seconds: 900\r\n" } else { "" };
        Reply::Answer(200, header, FOUND)
    })
    .await;
    let cache = cache(&server);
    for waited in [0, 1] {
        let found = cache.search_capabilities("work").await.unwrap();
        let Freshness::Stale { age } = found.freshness else { panic!("{found:?}") };
        assert_eq!(age.as_secs(), 900 + waited);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(cache.search_capabilities("work").await.unwrap().freshness, Freshness::Fresh);
}

#[tokio::test(start_paused = true)]
async fn registry_that_hangs_does_not_slow_down_cached_reads() {
    let server = Server::start(|_, before| match before {
        1..4 => Reply::Hang,
        _ => Reply::Answer(200, "", FOUND),
    })
    .await;
    let cache = cache(&server);
    cache.search_capabilities("work").await.unwrap();
    tokio::time::sleep(FRESH).await;
    let began = tokio::time::Instant::now();
    while server.arrived().len() < 5 || cache.search_capabilities("work").await.unwrap().freshness.is_stale()
    {
        let asked = tokio::time::Instant::now();
        cache.search_capabilities("work").await.unwrap();
        assert!(asked.elapsed() <= Duration::from_millis(101), "{:?}", asked.elapsed());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(began.elapsed() > Duration::from_secs(15), "three attempts hung");
}

#[tokio::test(start_paused = true)]
async fn zero_and_infinite_times_to_live_are_obeyed() {
    for (ttl, requests) in [(Duration::ZERO, 5), (Duration::MAX, 1)] {
        let (server, _) = registry().await;
        let client = RegistryClient::builder(server.url()).retry(RetryPolicy::none()).build().unwrap();
        let cache = DiscoveryCache::builder(client).ttl(ttl).stale_if_error(Duration::MAX).build();
        for _ in 0..5 {
            assert_eq!(cache.search_capabilities("work").await.unwrap().freshness, Freshness::Fresh);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(server.arrived().len(), requests);
    }
}

#[tokio::test(start_paused = true)]
async fn safe_search_finds_agents_or_says_why_it_returns_all() {
    let (server, mood) = registry().await;
    let cache = cache(&server);
    let found = cache.safe_search("work", 1).await.unwrap();
    assert!(matches!(found, SafeSearch::Found(found) if found.len() == 1));
    let everyone = cache.safe_search("work", 2).await.unwrap();
    let SafeSearch::AllActive { agents, reason } = everyone else { panic!("{everyone:?}") };
    assert_eq!(agents.agents.len(), 2);
    assert!(matches!(reason, FallbackReason::TooFew { found: 1, required: 2 }));
    mood.store(AWAY, Ordering::SeqCst);
    let everyone = cache.safe_search("never asked before", 1).await.unwrap();
    assert!(matches!(everyone, SafeSearch::AllActive { reason: FallbackReason::SearchFailed(_), .. }));
}
