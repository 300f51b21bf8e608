//! Directories: large ones, and those whose registry is away.

use std::time::{Duration, Instant};

use registry_sdk::contract::{Capability, Registration};
use registry_sdk::discovery::{Directory, Orchestrator};
use registry_sdk::search::SearchIndex;
use registry_sdk::testing::{Fault, FaultProxy, MockRegistry};
use registry_sdk::{RegistryClient, RetryPolicy};
use tokio::time::timeout;

use crate::scene::Scene;
use crate::support::{let_the_kernel_deliver_for, until};

/// A registry in a thread of its own, with so many agents, and the channel that ends it.
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

/// 48 MB, through something that cuts every connection after 20 MB.
#[tokio::test]
async fn a_list_of_many_large_records_arrives_over_connections_that_break() {
    let registry = registry_with(3_000, |number| registration(number).metadata("note", "x".repeat(16_000)));
    let proxy = FaultProxy::start(registry.url.trim_start_matches("http://")).await;
    proxy.set(Fault::ResetAfter(20_000_000));
    let client = RegistryClient::new(format!("http://{}", proxy.address())).unwrap();
    let directory = Directory::follow(&client);
    timeout(Duration::from_secs(120), directory.ready()).await.expect("it is ready").unwrap();
    assert_eq!(directory.len(), 3_000);
}

/// While its content is replaced, the other tasks of the runtime go on. A busy machine has many chances to show it.
#[tokio::test]
async fn nothing_waits_for_a_directory_that_is_rebuilt() {
    const AGENTS: usize = 10_000;
    let registry = registry_with(AGENTS, registration);
    let client = RegistryClient::builder(&registry.url).retry(RetryPolicy::discovery()).build().unwrap();
    let directory = Directory::follow(&client);
    timeout(Duration::from_secs(300), directory.ready()).await.expect("it is ready").unwrap();
    let capabilities: Vec<_> = directory.agents().iter().map(|agent| agent.capabilities.clone()).collect();
    let mut longest = Duration::ZERO;
    for _ in 0..20 {
        let began = Instant::now();
        let mut index = SearchIndex::default();
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
                if now.is_some_and(|now| !std::sync::Arc::ptr_eq(&before, &now)) {
                    break;
                }
                tokio::task::yield_now().await;
            }
        });
        replaced.await.expect("it is replaced");
        if longest < build / 2 {
            return;
        }
        println!("waited for {longest:?}, a rebuild takes {build:?}");
    }
    panic!("each time it is rebuilt something waits, the last time for {longest:?}");
}

/// From the moment at which nothing passes any more, whatever the directory knows of that.
#[tokio::test(start_paused = true)]
async fn selections_from_a_directory_go_on_while_the_registry_is_black_holed() {
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
