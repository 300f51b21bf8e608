//! Directories: large ones, and those whose registry is unavailable or refuses.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use registry_sdk::contract::{Capability, Registration};
use registry_sdk::discovery::{Directory, DirectoryState, Freshness, Orchestrator};
use registry_sdk::testing::{Fault, FaultProxy, MockRegistry};
use registry_sdk::{Error, RegistryClient, RetryPolicy, WatchEvent};
use tokio::time::timeout;

use super::{client, list, record, stream};
use crate::scene::Scene;
use crate::support::{Reply, Server, let_the_kernel_deliver_for, until};

/// A registry with this many agents in its own thread, and the channel that ends it.
fn registry_with(agents: usize, registration: impl Fn(usize) -> Registration + Send + 'static) -> Registry {
    let (ready, is_ready) = std::sync::mpsc::channel();
    let (end, mut ends) = tokio::sync::mpsc::channel::<bool>(1);
    let thread = std::thread::spawn(move || {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            let registry = MockRegistry::start().await;
            let client = registry.client();
            for number in 0..agents {
                client.register(&registration(number)).await.unwrap();
            }
            ready.send(registry.url()).unwrap();
            while ends.recv().await.is_some() {
                registry.forget_events();
            }
        });
    });
    Registry { url: is_ready.recv().unwrap(), thread: Some(thread), end: Some(end) }
}

struct Registry {
    url: String,
    end: Option<tokio::sync::mpsc::Sender<bool>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.end.take();
        let _ = self.thread.take().unwrap().join();
    }
}

fn registration(number: usize) -> Registration {
    Registration::new(format!("agent-{number:05}"), "Agent", "http://agent:8000")
        .capability(Capability::new(format!("work_{number}")).tag("tag").description("does some work"))
}

/// 24 MB, through a proxy that closes every connection after 9 MB.
#[tokio::test]
async fn list_of_many_large_records_arrives_over_connections_that_break() {
    let registry = registry_with(1_500, |number| registration(number).metadata("note", "x".repeat(16_000)));
    let proxy = FaultProxy::start(registry.url.trim_start_matches("http://")).await;
    proxy.set(Fault::ResetAfter(9_000_000));
    let client = RegistryClient::new(format!("http://{}", proxy.address())).unwrap();
    let directory = Directory::follow(&client);
    timeout(Duration::from_secs(120), directory.ready()).await.expect("it is ready").unwrap();
    assert_eq!(directory.len(), 1_500);
}

/// Each page takes 3 s, and all together take longer than any call may.
#[tokio::test(start_paused = true)]
async fn directory_is_ready_over_a_slow_link() {
    const PAGES: usize = 20;
    let note = "x".repeat(16_000);
    let page = |page: usize| {
        let records: Vec<_> = (0..100)
            .map(|number| {
                format!(r#"{{"agent_id":"a-{page}-{number}","status":"active","metadata":{{"note":"{note}"}},"revision":1}}"#)
            })
            .collect();
        &*format!("[{}]", records.join(",")).leak()
    };
    let pages: Vec<&'static str> = (0..PAGES).map(page).collect();
    let answer = move |page: usize| {
        let next = format!("link: </agents?limit=500&cursor={}>; rel=\"next\"\r\n", page + 1).leak();
        let link = if page + 1 < PAGES { next } else { "" };
        Reply::PartsWith(link, pages[page], 100_000, Duration::from_millis(200))
    };
    let server = Server::start(move |what, _| match what {
        "GET /events" => stream("id: 1-m\n\n"),
        _ => answer(what.split_once("cursor=").map_or(0, |(_, page)| page.parse().unwrap())),
    })
    .await;
    let began = tokio::time::Instant::now();
    let directory = Directory::follow(&RegistryClient::new(server.url()).unwrap());
    timeout(Duration::from_secs(120), directory.ready()).await.expect("it is ready").unwrap();
    assert!(began.elapsed() > Duration::from_secs(60), "{:?}", began.elapsed());
    assert_eq!(directory.len(), 100 * PAGES);
}

/// While the content is replaced, the other tasks of the runtime continue. A busy machine has many chances to show it.
#[cfg(feature = "__internal")]
#[tokio::test]
async fn no_task_waits_while_a_directory_is_rebuilt() {
    const AGENTS: usize = 3_000;
    let registry = registry_with(AGENTS, registration);
    let client = RegistryClient::builder(&registry.url).retry(RetryPolicy::discovery()).build().unwrap();
    let directory = Directory::follow(&client);
    timeout(Duration::from_secs(300), directory.ready()).await.expect("it is ready").unwrap();
    let capabilities: Vec<_> = directory.agents().iter().map(|agent| agent.capabilities.clone()).collect();
    let mut longest = Duration::ZERO;
    for _ in 0..20 {
        let began = Instant::now();
        let mut index = registry_sdk::internal::SearchIndex::default();
        for capabilities in &capabilities {
            index.insert(capabilities);
        }
        let build = began.elapsed();
        let before = directory.get("agent-00000").unwrap();
        registry.end.as_ref().unwrap().send(true).await.unwrap();
        let mut last = Instant::now();
        longest = Duration::ZERO;
        let replaced = timeout(Duration::from_secs(300), async {
            loop {
                let now = directory.get("agent-00000");
                longest = longest.max(last.elapsed());
                last = Instant::now();
                if now.is_some_and(|now| !Arc::ptr_eq(&before, &now)) {
                    break;
                }
                tokio::task::yield_now().await;
            }
        });
        replaced.await.expect("it is replaced");
        if longest < build / 2 {
            return;
        }
    }
    panic!("each time it is rebuilt something waits, the last time for {longest:?}");
}

/// Counted from the moment when nothing passes any more, whether or not the directory knows that.
#[tokio::test(start_paused = true)]
async fn selections_from_a_directory_continue_while_the_registry_is_black_holed() {
    tokio::spawn(let_the_kernel_deliver_for(3_600));
    let scene = Scene::new(&["a", "b"]).await;
    let proxy = FaultProxy::start(scene.registry.url().trim_start_matches("http://")).await;
    let client = RegistryClient::new(format!("http://{}", proxy.address())).unwrap();
    let directory = Directory::follow(&client);
    directory.ready().await.unwrap();
    let orchestrator = Orchestrator::builder(client).directory(directory.clone()).build();
    proxy.set(Fault::Hang);
    let mut slow = 0;
    for second in 0..120 {
        let began = tokio::time::Instant::now();
        let selected = orchestrator.find_best_agent("work").await;
        assert!(selected.is_ok(), "after {second} s: {selected:?}");
        slow += u32::from(began.elapsed() >= Duration::from_millis(400));
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(slow <= 15, "{slow} of 120 selections waited for a registry that hangs");
    proxy.set(Fault::None);
    until("it is followed again", || !directory.freshness().unwrap().is_stale()).await;
}

/// The age of a directory in whole seconds. Fails if it is up to date.
fn age(directory: &Directory) -> u64 {
    match directory.freshness() {
        Some(Freshness::Stale { age }) => age.as_secs(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn age_of_a_directory_counts_from_the_last_sign_of_life() {
    // A sign of life every 8 s, six of them.
    let server = Server::start(|what, before| match what {
        "GET /events" if before == 0 => Reply::Slow(
            "id: 1-m\n\n: alive\n\n: alive\n\n: alive\n\n: alive\n\n: alive\n\n",
            9,
            Duration::from_secs(8),
        ),
        "GET /events" => Reply::Answer(503, "", ""),
        _ => list(&[record("a", "active", 1)]),
    })
    .await;
    let directory = Directory::follow(&client(&server));
    assert!(matches!(directory.state(), DirectoryState::Connecting), "{:?}", directory.state());
    assert_eq!(directory.freshness(), None);
    timeout(super::HOUR, directory.ready()).await.expect("it is ready").unwrap();
    assert!(matches!(directory.state(), DirectoryState::Following), "{:?}", directory.state());
    let began = SystemTime::now();
    until("it is out of date", || directory.freshness() != Some(Freshness::Fresh)).await;
    // It had been silent for 35 s.
    let at_first = age(&directory);
    assert!((35..=37).contains(&at_first), "{at_first} s");
    let DirectoryState::Interrupted { since, error } = directory.state() else { panic!() };
    assert!(error.to_string().contains("silent"), "{error}");
    // The wall clock is not paused.
    let since = began.duration_since(since).unwrap().as_secs();
    assert!((30..=37).contains(&since), "{since} s before now");
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(age(&directory), at_first + 100);
    assert_eq!(directory.len(), 1, "what was known is kept");
}

#[tokio::test(start_paused = true)]
async fn directory_that_was_filled_from_memory_is_as_old_as_that() {
    let is_away = Arc::new(AtomicBool::new(true));
    let away = is_away.clone();
    let server = Server::start(move |what, _| match what {
        "GET /events" => stream("id: 1-m\n\n"),
        _ if away.load(Ordering::SeqCst) => Reply::Answer(
            200,
            "registry-stale-seconds: 900\r\n",
            r#"[{"agent_id":"a","status":"active","revision":1}]"#,
        ),
        _ => list(&[record("a", "active", 1)]),
    })
    .await;
    let directory = Directory::follow(&client(&server));
    directory.ready().await.unwrap();
    until("it is out of date", || directory.freshness().is_some_and(Freshness::is_stale)).await;
    assert!((900..=905).contains(&age(&directory)), "{} s", age(&directory));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!((960..=965).contains(&age(&directory)), "{} s", age(&directory));
    is_away.store(false, Ordering::SeqCst);
    until("it is up to date", || directory.freshness() == Some(Freshness::Fresh)).await;
    assert!(matches!(directory.state(), DirectoryState::Following), "{:?}", directory.state());
}

#[tokio::test(start_paused = true)]
async fn refusal_is_distinguished_from_an_outage() {
    let registry = MockRegistry::start().await;
    let directory = Directory::follow(&registry.client());
    directory.ready().await.unwrap();
    registry.outage(Duration::from_secs(60));
    until("it is interrupted", || matches!(directory.state(), DirectoryState::Interrupted { .. })).await;
    // It is a refusal when the registry has recovered.
    registry.refuse_event_streams(401);
    until("it is refused", || matches!(directory.state(), DirectoryState::Refused { .. })).await;
    let DirectoryState::Refused { error, .. } = directory.state() else { panic!() };
    assert!(matches!(error, Error::Denied { status: 401, .. }), "{error}");
    assert!(directory.freshness().is_some_and(Freshness::is_stale));
    registry.heal();
    until("it is followed", || matches!(directory.state(), DirectoryState::Following)).await;
    assert_eq!(directory.freshness(), Some(Freshness::Fresh));
}

/// A refused stream says nothing about searches.
#[tokio::test(start_paused = true)]
async fn selections_ask_the_registry_while_only_the_stream_is_refused() {
    let scene = Scene::new(&["a"]).await;
    let directory = Directory::follow(&scene.registry.client());
    directory.ready().await.unwrap();
    let orchestrator = scene.orchestrator_builder().directory(directory.clone()).build();
    scene.registry.refuse_event_streams(403);
    until("it is refused", || matches!(directory.state(), DirectoryState::Refused { .. })).await;
    scene.register("b", Capability::new("rest")).await;
    for _ in 0..5 {
        let selected = orchestrator.find_best_agent("rest").await.unwrap();
        assert_eq!((selected.agent.agent_id.as_str(), selected.freshness), ("b", Freshness::Fresh));
    }
    // After an outage, it is retried every ten seconds.
    scene.registry.outage(Duration::from_secs(25));
    let mut fresh = Vec::new();
    for _ in 0..40 {
        let selected = orchestrator.find_best_agent("work").await.unwrap();
        fresh.push(!selected.freshness.is_stale());
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(fresh[..25].iter().all(|fresh| !fresh) && fresh[36..].iter().all(|fresh| *fresh), "{fresh:?}");
}

#[tokio::test(start_paused = true)]
async fn misconfigured_client_ends_a_watch_and_a_directory() {
    let builder = RegistryClient::builder("http://127.0.0.1:8009").token("two\nlines");
    let client = builder.build().unwrap();
    let mut watch = client.watch();
    assert!(matches!(watch.next().await, Some(WatchEvent::Interrupted(Error::Config(_)))));
    assert!(watch.next().await.is_none());
    let directory = Directory::follow(&client);
    let ready = timeout(super::HOUR, directory.ready()).await.expect("it ends");
    let DirectoryState::Ended { error } = directory.state() else { panic!("{:?}", directory.state()) };
    assert!(matches!(error, Error::Config(_)), "{error:?}");
    assert_eq!(ready.unwrap_err().to_string(), error.to_string(), "the cause is told");
}
