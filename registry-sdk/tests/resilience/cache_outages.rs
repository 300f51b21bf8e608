//! The cache during less common failures of the registry.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use registry_sdk::discovery::DiscoveryCache;
use registry_sdk::{RegistryClient, RetryPolicy};
use tokio::time::sleep;

use crate::support::{Reply, Server};

const FOUND: &str = r#"[{"agent_id":"a","status":"active","capability":"work"}]"#;
const AGENT: &str = r#"{"agent_id":"a","status":"active"}"#;
const TTL: Duration = Duration::from_secs(2);

fn client(server: &Server) -> RegistryClient {
    RegistryClient::builder(server.url()).retry(RetryPolicy::none()).build().unwrap()
}

#[tokio::test(start_paused = true)]
async fn response_from_memory_is_requested_again_before_its_time_to_live_ends() {
    let server = Server::start(|_, before| {
        Reply::Answer(200, if before == 0 { "registry-stale-seconds: 900\r\n" } else { "" }, FOUND)
    })
    .await;
    let cache = DiscoveryCache::builder(client(&server)).ttl(Duration::from_secs(300)).build();
    assert!(cache.search_capabilities("work").await.unwrap().freshness.is_stale());
    sleep(Duration::from_secs(60)).await;
    let found = cache.search_capabilities("work").await.unwrap();
    assert!(!found.freshness.is_stale(), "the registry is well: {:?}", found.freshness);
}

#[tokio::test(start_paused = true)]
async fn fraction_of_a_second_does_not_make_a_stale_response_fresh() {
    let server = Server::start(|_, _| Reply::Answer(200, "registry-stale-seconds: 900.5\r\n", FOUND)).await;
    let cache = DiscoveryCache::new(client(&server));
    assert!(cache.search_capabilities("work").await.unwrap().freshness.is_stale());
}

#[tokio::test(start_paused = true)]
async fn queries_that_fail_do_not_displace_good_responses() {
    let is_away = Arc::new(AtomicBool::new(false));
    let away = is_away.clone();
    let script = move |_: &str, _| {
        if away.load(Ordering::SeqCst) { Reply::Close } else { Reply::Answer(200, "", AGENT) }
    };
    let server = Server::start(script).await;
    let cache = DiscoveryCache::builder(client(&server)).capacity(50).ttl(TTL).build();
    for _ in 0..2 {
        for number in 0..20 {
            cache.get_agent(&format!("good-{number}")).await.unwrap();
        }
    }
    is_away.store(true, Ordering::SeqCst);
    sleep(TTL).await;
    for number in 0..500 {
        assert!(cache.get_agent(&format!("never-asked-{number}")).await.is_err());
    }
    let mut lost = 0;
    for number in 0..20 {
        lost += usize::from(cache.get_agent(&format!("good-{number}")).await.is_err());
    }
    assert_eq!(lost, 0, "of 20 good responses");
}

#[tokio::test(start_paused = true)]
async fn briefly_invalid_token_does_not_empty_the_cache() {
    let server = Server::start(|_, _| Reply::Answer(200, "", FOUND)).await;
    let asked = AtomicUsize::new(0);
    let token =
        move || if asked.fetch_add(1, Ordering::SeqCst) == 1 { "token\n" } else { "token" }.to_owned();
    let client = RegistryClient::builder(server.url()).token_provider(token).build().unwrap();
    let cache = DiscoveryCache::builder(client).ttl(TTL).build();
    cache.search_capabilities("work").await.unwrap();
    sleep(TTL).await;
    let found = cache.search_capabilities("work").await;
    assert!(found.is_ok(), "{found:?}");
}
