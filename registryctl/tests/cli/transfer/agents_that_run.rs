//! Moving a registry to another database, in both directions, while its agents are running.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use registry_sdk::contract::{AgentStatus, MaintenanceRequest};
use registry_sdk::{Agent, Error, RegistryClient, RetryPolicy, SearchQuery};
use registry_server::Server;
use serde_json::json;
use test_support::lasting_address;
use tokio::task::JoinHandle;

use super::support::{Database, agent, agents, client, eventually, export, import_well, serve, serve_at};

const INTERVAL: Duration = Duration::from_millis(200);

/// A registry that moves to another database and keeps its address.
struct Move {
    address: SocketAddr,
    old: Server,
    to: Database,
    _from: Database,
}

impl Move {
    async fn begin(from: Database, to: Database) -> Self {
        let address = lasting_address();
        let old = serve_at(&from, address).await;
        Self { address, old, to, _from: from }
    }

    fn client(&self) -> RegistryClient {
        client(&self.old.url())
    }

    /// Starts an agent of the SDK that sends heartbeats.
    async fn running(&self, agent_id: &str) -> Agent {
        let agent = Agent::new(self.client(), agent(agent_id));
        agent.register().await.unwrap();
        agent.start_heartbeat(INTERVAL).unwrap();
        agent
    }

    /// Moves the agents as the guide describes: the new server takes over the old one's address after the import. Returns the new
    /// server and the counts of the import.
    async fn finish(self) -> (Server, Database, serde_json::Value) {
        let Self { address, old, to, .. } = self;
        let file = export(&old.url()).join("\n");
        let server = serve(&to).await;
        let counts = import_well(&server.url(), &file, &[]);
        server.shutdown().await;
        old.shutdown().await;
        (serve_at(&to, address).await, to, counts)
    }
}

/// Searches at an address until stopped. Returns whether an agent was found.
fn search_for(agent_id: &'static str, url: String, stop: Arc<AtomicBool>) -> JoinHandle<bool> {
    tokio::spawn(async move {
        let client = client(&url).with_retry(RetryPolicy::none());
        let mut was_found = false;
        while !stop.load(Ordering::Relaxed) {
            // The registry may be down.
            let found = client.search_capabilities(SearchQuery::new("work").limit(1_000)).await;
            was_found |= found.unwrap_or_default().iter().any(|one| one.agent_id == agent_id);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        was_found
    })
}

/// Waits until the agent's own process has registered again.
async fn registered_by_itself(server: &Server, agent: &Agent) {
    let client = client(&server.url());
    eventually("the agent registers again", async || {
        let record = client.get_agent(agent.agent_id()).await;
        record.is_ok_and(|record| record.instance_id.as_deref() == Some(agent.instance_id()))
    })
    .await;
}

async fn running_agents_move(from: Database, to: Database) {
    let registry = Move::begin(from, to).await;
    let (client, url) = (registry.client(), registry.old.url());
    let (active, busy, drained) =
        (registry.running("active").await, registry.running("busy").await, registry.running("drained").await);
    busy.update_status(AgentStatus::Busy).await.unwrap();
    client.set_maintenance("drained", &MaintenanceRequest::new("disk")).await.unwrap();
    // No process runs this agent.
    client.register(&agent("silent").status(AgentStatus::Offline)).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let searching = search_for("drained", url, stop.clone());
    let before = agents(&export(&registry.old.url()));
    let (server, _database, counts) = registry.finish().await;
    assert_eq!(counts, json!({"imported": 4}));
    for agent in [&active, &busy, &drained] {
        registered_by_itself(&server, agent).await;
    }
    assert_eq!(agents(&export(&server.url())), before);
    stop.store(true, Ordering::Relaxed);
    assert!(!searching.await.unwrap(), "the drained agent was found");
    // Heartbeats count as before.
    let heartbeat = client.get_agent("active").await.unwrap().last_heartbeat;
    eventually("heartbeats arrive", async || {
        client.get_agent("active").await.unwrap().last_heartbeat > heartbeat
    })
    .await;
    for agent in [active, busy, drained] {
        agent.shutdown().await;
    }
    server.shutdown().await;
}

/// The exported process has ended, and another one starts, before or after the import.
async fn restarted_agents_move(from: Database, to: Database) {
    let registry = Move::begin(from, to).await;
    let killed = [registry.running("before").await, registry.running("after").await];
    eventually("both are registered", async || {
        registry.client().get_stats().await.unwrap().active_agents == 2
    })
    .await;
    let client = registry.client();
    // A killed process does not say goodbye.
    drop(killed);
    let successor = |agent_id| Agent::new(client.clone().with_retry(RetryPolicy::none()), agent(agent_id));
    let started_before = successor("before");
    let (server, _database, counts) = registry.finish().await;
    assert_eq!(counts, json!({"imported": 2}));
    for agent in [started_before, successor("after")] {
        let registered: Result<_, Error> = agent.register().await;
        assert!(registered.is_ok(), "{registered:?}");
        let record = client.get_agent(agent.agent_id()).await.unwrap();
        assert_eq!(record.instance_id.as_deref(), Some(agent.instance_id()));
        agent.shutdown().await;
    }
    server.shutdown().await;
}

/// The new registry gives no work to a draining agent, but to its successor.
async fn draining_agents_move(from: Database, to: Database) {
    let registry = Move::begin(from, to).await;
    let (client, url) = (registry.client(), registry.old.url());
    let (leaving, other) = (registry.running("leaving").await, registry.running("other").await);
    let task = leaving.tasks().begin();
    let draining = tokio::spawn({
        let leaving = leaving.clone();
        async move { leaving.drain().await }
    });
    eventually("the agent is in maintenance", async || {
        client.get_agent("leaving").await.unwrap().maintenance.is_some()
    })
    .await;
    let stop = Arc::new(AtomicBool::new(false));
    let searching = search_for("leaving", url, stop.clone());
    let (server, _database, counts) = registry.finish().await;
    assert_eq!(counts, json!({"imported": 1, "draining": 1}));
    registered_by_itself(&server, &other).await;
    // Heartbeats of the other agent show that time passes.
    for _ in 0..5 {
        let heartbeat = client.get_agent("other").await.unwrap().last_heartbeat;
        eventually("heartbeats arrive", async || {
            client.get_agent("other").await.unwrap().last_heartbeat > heartbeat
        })
        .await;
    }
    drop(task);
    draining.await.unwrap();
    stop.store(true, Ordering::Relaxed);
    assert!(!searching.await.unwrap(), "the draining agent was found");
    let successor = Agent::new(client.clone(), agent("leaving"));
    successor.register().await.unwrap();
    assert_eq!(client.search_capabilities("work").await.unwrap().len(), 2);
    for agent in [successor, other] {
        agent.shutdown().await;
    }
    server.shutdown().await;
}

/// Makes a test for both directions of every named `async fn(Database, Database)`.
macro_rules! in_both_directions {
    ($($name:ident),* $(,)?) => {
        mod sqlite_to_postgres {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name(test_support::Database::sqlite(), test_support::Database::postgres().await).await;
            })*
        }
        mod postgres_to_sqlite {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name(test_support::Database::postgres().await, test_support::Database::sqlite()).await;
            })*
        }
    };
}

in_both_directions!(running_agents_move, draining_agents_move, restarted_agents_move);
