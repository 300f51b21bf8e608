//! Rolling restarts of two servers over one PostgreSQL under load. No client may lose a request.

mod balancer;
mod nginx;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use registry_sdk::RegistryClient;
use tokio::task::JoinSet;

use crate::support::{Callers, Connection, LONG, Seen, Server, Store, agent, eventually, is_long, length};
use balancer::Balancer;
use nginx::Nginx;

/// In the short run, a second signal ends the drain once every client has noticed it, however busy the
/// machine is.
fn flags() -> [&'static str; 2] {
    ["--drain-delay", length("5s", "1h")]
}

fn rounds() -> usize {
    length(5, 1)
}

async fn two_servers(store: &Store) -> [Server; 2] {
    [Server::running(&store.url, &flags()).await, Server::running(&store.url, &flags()).await]
}

/// Restarts a server as an operator would. `noticed` waits until its clients have noticed that it is about to
/// stop.
async fn restart(server: &mut Server, noticed: impl AsyncFnOnce()) {
    server.signal("TERM");
    if !is_long() {
        noticed().await;
        server.signal("TERM");
    }
    server.ended().await;
    server.start().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sdk_with_two_urls_loses_no_call_and_no_event() {
    let store = Store::postgres().await;
    let mut servers = two_servers(&store).await;
    let urls = servers.iter().map(Server::url).collect::<Vec<_>>().join(",");
    let client =
        RegistryClient::builder(&urls).timeout(length(Duration::from_secs(10), LONG)).build().unwrap();
    client.register(&agent("agent-7", "endure")).await.unwrap();
    let watches: Vec<_> = (0..4).map(|_| Seen::by(&client)).collect();
    for seen in &watches {
        eventually("the watches have begun", async || seen.began.load(Ordering::Relaxed)).await;
    }
    // Earlier changes are in the lists of the watches.
    let callers = Callers::start(&client).await;
    for _ in 0..rounds() {
        for server in &mut servers {
            restart(server, async || callers.go_on_for(Duration::ZERO).await).await;
            callers.go_on_for(length(Duration::from_secs(2), Duration::ZERO)).await;
        }
    }
    callers.report("restarted one after the other");
    let done = callers.end().await;
    for seen in &watches {
        // A server that lags more than a second behind causes a new list, which also contains the changes.
        let complete = || seen.lists() > 1 || done.keys().all(|revision| seen.revisions().contains(revision));
        eventually("each change is told on each watch", async || complete()).await;
        assert_eq!(seen.twice.load(Ordering::Relaxed), 0, "told twice");
        assert_eq!(seen.interruptions.load(Ordering::Relaxed), 0, "interruptions");
    }
    let lists: Vec<_> = watches.iter().map(|seen| seen.lists()).collect();
    println!("{} changes, none told twice or missed on 4 watches; lists read by each: {lists:?}", done.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_clients_behind_a_load_balancer_lose_no_request() {
    let store = Store::postgres().await;
    let mut servers = two_servers(&store).await;
    let addresses: Vec<_> = servers.iter().map(Server::address).collect();
    let check_interval = length(Duration::from_secs(1), Duration::from_millis(20));
    let balancer = Balancer::start(&addresses, check_interval).await;
    let clients = PlainClients::start(&servers[0], &balancer.address, true).await;
    for _ in 0..rounds() {
        for (index, server) in servers.iter_mut().enumerate() {
            clients.go_on().await;
            restart(server, async || balancer.noticed(index, false).await).await;
            balancer.noticed(index, true).await;
        }
    }
    clients.end("kept-alive connections behind a load balancer").await;
}

/// Only at full length, since nginx learns once a second which servers are ready.
#[tokio::test(flavor = "multi_thread")]
async fn plain_clients_behind_nginx_lose_no_request() {
    if !is_long() {
        return;
    }
    let store = Store::postgres().await;
    let mut servers = two_servers(&store).await;
    let addresses: Vec<_> = servers.iter().map(Server::address).collect();
    if let Some(nginx) = Nginx::start(&addresses).await {
        // nginx closes the clients' idle connections whenever its configuration changes.
        let clients = PlainClients::start(&servers[0], &nginx.address, false).await;
        let restarts = async {
            for _ in 0..rounds() {
                for server in &mut servers {
                    clients.go_on().await;
                    restart(server, async || {}).await;
                    // Until nginx knows that the server is back.
                    tokio::time::sleep(Duration::from_secs(3)).await;
                }
            }
        };
        tokio::select! {
            () = restarts => {}
            () = nginx.follow() => {}
        }
        clients.end("nginx").await;
    }
}

/// Clients without any knowledge of the registry, which never retry.
struct PlainClients {
    answered: Arc<AtomicU64>,
    lost: Arc<Mutex<Vec<String>>>,
    tasks: JoinSet<()>,
}

impl PlainClients {
    async fn start(server: &Server, address: &str, keeps_connections: bool) -> Self {
        for number in 0..16 {
            server.client().register(&agent(&format!("a{number}"), "endure")).await.unwrap();
        }
        let (answered, lost) = (Arc::<AtomicU64>::default(), Arc::<Mutex<Vec<String>>>::default());
        let mut tasks = JoinSet::new();
        for number in 0..16 {
            let (address, answered, lost) = (address.to_owned(), answered.clone(), lost.clone());
            tasks.spawn(async move {
                let mut connection = Connection::to(&address);
                loop {
                    for (method, target, body) in [
                        ("POST", format!("/agents/a{number}/heartbeat"), ""),
                        ("PUT", format!("/agents/a{number}/status"), "{\"status\": \"busy\"}"),
                        ("GET", "/capabilities/search?q=endure".to_owned(), ""),
                        ("PUT", format!("/agents/a{number}/status"), "{\"status\": \"active\"}"),
                    ] {
                        match connection.send(method, &target, body).await {
                            Ok(200) => drop(answered.fetch_add(1, Ordering::Relaxed)),
                            outcome => lost.lock().push(format!("{method} {target}: {outcome:?}")),
                        }
                        if !keeps_connections {
                            connection = Connection::to(&address);
                        }
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                }
            });
        }
        Self { answered, lost, tasks }
    }

    /// Waits until some more requests were answered.
    async fn go_on(&self) {
        let enough = self.answered.load(Ordering::Relaxed) + 200;
        eventually("the clients go on", async || self.answered.load(Ordering::Relaxed) >= enough).await;
    }

    async fn end(mut self, what: &str) {
        self.tasks.shutdown().await;
        let lost = std::mem::take(&mut *self.lost.lock());
        println!(
            "{what}: {} requests answered over {} restarts, {} lost",
            self.answered.load(Ordering::Relaxed),
            2 * rounds(),
            lost.len()
        );
        assert!(lost.is_empty(), "{:?}", &lost[..lost.len().min(20)]);
    }
}
