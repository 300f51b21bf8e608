//! Three servers over one PostgreSQL, which are killed repeatedly under living agents, and then upgraded one
//! after another.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use registry_sdk::contract::AgentStatus;
use registry_sdk::{Agent, ListQuery, RegistryClient};
use sqlx::Executor;

use crate::support::{Callers, LONG, Seen, Server, Store, agent, eventually, length};

/// Agents only come close to their deadlines at full length: otherwise, a busy machine might make one late.
fn flags() -> [&'static str; 4] {
    ["--heartbeat-timeout", length("6s", "1h"), "--sweep-interval", "500ms"]
}
const INTERVAL: Duration = Duration::from_secs(2);

/// Changes that a future version might make to the tables.
const NEXT_VERSION: [&str; 3] = [
    "ALTER TABLE agent_registry ADD COLUMN of_the_next_version text NOT NULL DEFAULT ''",
    "ALTER TABLE agent_registry_event ADD COLUMN of_the_next_version text",
    "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
     VALUES (9999, 'of the next version', true, '', 0)",
];

#[tokio::test(flavor = "multi_thread")]
async fn replicas_survive_kills_and_an_upgrade() {
    let store = Store::postgres().await;
    let mut servers = Vec::new();
    for _ in 0..3 {
        servers.push(Server::running(&store.url, &flags()).await);
    }
    let urls = servers.iter().map(Server::url).collect::<Vec<_>>().join(",");
    let client =
        RegistryClient::builder(&urls).timeout(length(Duration::from_secs(10), LONG)).build().unwrap();

    let number: usize = length(2_000, 100);
    let agents: Vec<Agent> = (0..number)
        .map(|number| {
            Agent::new(
                client.clone(),
                agent(&format!("agent-{number}"), "endure").heartbeat_interval(INTERVAL),
            )
        })
        .collect();
    for some in agents.chunks(100) {
        for registered in join_all(some.iter().map(Agent::register)).await {
            registered.unwrap();
        }
    }
    for agent in &agents {
        agent.start_heartbeat(INTERVAL).unwrap();
    }
    let watchers: Vec<_> = servers.iter().map(|server| Seen::by(&server.client())).collect();
    let everywhere = Seen::by(&client);
    for seen in watchers.iter().chain([&everywhere]) {
        eventually("the watchers have begun", async || seen.began.load(Ordering::Relaxed)).await;
    }
    let callers = Callers::start(&client).await;

    let kills = length(36, 3);
    for _ in 0..kills {
        callers.go_on_for(Duration::from_secs_f64(length(4.5, 0.0))).await;
        let victim = fastrand::usize(..servers.len());
        servers[victim].kill();
        callers.go_on_for(Duration::from_millis(length(500, 0))).await;
        servers[victim].start().await;
    }
    println!("{kills} kills of one of three servers under {number} agents");
    callers.report("killed");

    let mut connection = store.connect().await;
    for statement in NEXT_VERSION {
        connection.execute(statement).await.unwrap();
    }
    for server in &mut servers {
        server.stop().await;
        server.start().await;
        callers.go_on_for(Duration::from_secs(length(1, 0))).await;
    }
    callers.report("upgraded one after another");
    let done = callers.end().await;

    // Every change that was answered with 200 is in the database, and on each stream.
    for (place, seen) in watchers.iter().chain([&everywhere]).enumerate() {
        let complete = || done.keys().all(|revision| seen.lists() > 1 || seen.revisions().contains(revision));
        eventually("each change is told on each stream", async || complete()).await;
        let (twice, lists) = (seen.twice.load(Ordering::Relaxed), seen.lists());
        println!("stream {place}: {} changes, {twice} told twice, {lists} lists", seen.revisions().len());
        assert_eq!(twice, 0, "told twice");
        let offline = seen.offline.lock().clone();
        assert!(offline.is_empty(), "called offline, and alive: {offline:?}");
    }
    for server in &servers {
        let all = server.client().list_agents(ListQuery::all()).await.unwrap().agents;
        assert_eq!(all.iter().filter(|record| record.status == AgentStatus::Offline).count(), 0);
        assert_eq!(all.len(), number + 20);
        let last: HashMap<_, _> =
            done.iter().map(|(revision, (id, status))| (id, (*revision, *status))).collect();
        for (id, (revision, status)) in last {
            let record = all.iter().find(|record| record.agent_id == *id).unwrap();
            assert!(
                record.revision.unwrap() > revision || record.status == status,
                "{record:?}: {revision} {status}"
            );
        }
    }
    println!("{} status changes were answered 200, none lost; 0 agents called offline", done.len());
    for some in agents.chunks(200) {
        join_all(some.iter().map(|agent| agent.shutdown_within(Duration::from_secs(1)))).await;
    }
}
