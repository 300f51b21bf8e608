//! `GET /events`, through the SDK's watch.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use registry_sdk::contract::{AgentRecord, AgentStatus, Capability};
use registry_sdk::discovery::{Directory, Freshness};
use registry_sdk::testing::{Fault, FaultProxy};
use registry_sdk::{RetryPolicy, Watch, WatchEvent};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::support::{
    Database, LONG, Registry, agent, client, client_builder, eventually, impatient_client, lasting_address,
    on_both_databases, on_every_registry, on_postgres,
};

on_every_registry!(
    every_change_is_announced_once_and_in_order,
    silent_agent_is_announced_as_offline,
    list_and_later_changes_are_complete,
);

/// Tests in which a server stops.
mod restarts {
    use super::*;

    on_both_databases!(watch_resumes_after_a_restart, shutdown_does_not_wait_for_watchers);
}

/// Tests that need several servers.
mod replicas {
    use super::*;

    on_postgres!(
        watchers_on_two_replicas_see_every_change_in_order,
        replica_that_fell_far_behind_resets_its_watchers,
    );
}

/// Returns the kind and the agent of a change; `None` if the event is not a change.
fn change(event: &WatchEvent) -> Option<(&'static str, &Arc<AgentRecord>)> {
    match event {
        WatchEvent::Registered(agent) => Some(("registered", agent)),
        WatchEvent::StatusChanged(agent) => Some(("changed", agent)),
        WatchEvent::Deregistered(agent) => Some(("gone", agent)),
        _ => None,
    }
}

async fn next(watch: &mut Watch) -> WatchEvent {
    timeout(LONG, watch.next()).await.expect("an event").expect("the watch continues")
}

async fn next_change(watch: &mut Watch) -> (&'static str, Arc<AgentRecord>) {
    loop {
        let event = next(watch).await;
        if let Some((kind, agent)) = change(&event) {
            return (kind, agent.clone());
        }
    }
}

async fn listed(watch: &mut Watch) -> Vec<Arc<AgentRecord>> {
    loop {
        if let WatchEvent::Listed(agents) = next(watch).await {
            return agents;
        }
    }
}

async fn every_change_is_announced_once_and_in_order(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    client.register(&agent("a", "work")).await.unwrap();
    let mut watch = client.watch();
    let list = listed(&mut watch).await;
    assert_eq!(list.len(), 1);

    let other = agent("b", "rest").metadata("note", "a line\n\nevent: gone\ndata: {}\n\n");
    let registered = client.register(&other).await.unwrap();
    // None of these changes anything.
    client.register(&other).await.unwrap();
    client.heartbeat("a").await.unwrap();
    client.heartbeat("b").await.unwrap();
    let busy = client.update_status("a", AgentStatus::Busy).await.unwrap();
    client.update_status("a", AgentStatus::Busy).await.unwrap();
    let changed = client.register(&other.clone().capability(Capability::new("more"))).await.unwrap();
    client.deregister("b").await.unwrap();
    client.register(&agent("c", "work")).await.unwrap();

    let mut revision = list[0].revision;
    for (kind, expected) in [("registered", &registered), ("changed", &busy), ("registered", &changed)] {
        let (told, record) = next_change(&mut watch).await;
        assert_eq!((told, &record.agent_id), (kind, &expected.agent_id));
        assert_eq!((record.status, &record.capabilities), (expected.status, &expected.capabilities));
        assert_eq!((&record.metadata, record.healthy), (&expected.metadata, Some(true)));
        assert!(record.revision > revision, "{:?} after {revision:?}", record.revision);
        revision = record.revision;
    }
    let (told, record) = next_change(&mut watch).await;
    assert_eq!((told, record.agent_id.as_str(), record.capabilities.len()), ("gone", "b", 2));
    assert_eq!(next_change(&mut watch).await.1.agent_id, "c");
    server.shutdown().await;
}

async fn silent_agent_is_announced_as_offline(database: Database) {
    let server = database.start_with(|config| config.heartbeat_timeout = Duration::from_millis(300)).await;
    let client = client(&server);
    let mut watch = client.watch();
    assert!(listed(&mut watch).await.is_empty());
    client.register(&agent("a", "work")).await.unwrap();
    assert_eq!(next_change(&mut watch).await.0, "registered");
    let (told, record) = next_change(&mut watch).await;
    assert_eq!((told, record.status, record.healthy), ("changed", AgentStatus::Offline, Some(false)));
    client.heartbeat("a").await.unwrap();
    let (told, record) = next_change(&mut watch).await;
    assert_eq!((told, record.status, record.healthy), ("changed", AgentStatus::Active, Some(true)));
    server.shutdown().await;
}

/// Many watches begin while agents register and deregister. In the end, all of them have the same agents.
async fn list_and_later_changes_are_complete(database: Database) {
    let server = database.start().await;
    let mut directories = Vec::new();
    let client = client(&server);
    for round in 0..30_usize {
        for number in 0..10 {
            let id = format!("a{}", (round * 7 + number * 3) % 40);
            match (round + number) % 5 {
                0 => drop(client.deregister(&id).await),
                1 => drop(client.update_status(&id, AgentStatus::Busy).await),
                _ => drop(client.register(&agent(&id, &format!("work-{round}"))).await.unwrap()),
            }
            if number == 5 {
                directories.push(Directory::follow(&client));
            }
        }
    }
    let truth = client.list_agents(registry_sdk::ListQuery::all()).await.unwrap().agents;
    let revisions =
        |agents: Vec<Arc<AgentRecord>>| agents.iter().map(|agent| agent.revision).collect::<Vec<_>>();
    let expected = revisions(truth.into_iter().map(Arc::new).collect());
    for directory in &directories {
        eventually("the directory equals the registry", async || revisions(directory.agents()) == expected)
            .await;
        assert_eq!(directory.freshness(), Some(Freshness::Fresh));
    }
    drop(directories);
    server.shutdown().await;
}

async fn watch_resumes_after_a_restart(database: Database) {
    let address = lasting_address();
    let server = database.start_with(|config| config.listen = address.into()).await;
    let client = client(&server);
    let mut watch = client.watch();
    listed(&mut watch).await;
    client.register(&agent("before", "work")).await.unwrap();
    assert_eq!(next_change(&mut watch).await.1.agent_id, "before");
    server.shutdown().await;

    let server = database.start_with(|config| config.listen = address.into()).await;
    let patient = client.with_retry(RetryPolicy::discovery());
    patient.register(&agent("after", "work")).await.unwrap();
    loop {
        let event = next(&mut watch).await;
        assert!(!matches!(event, WatchEvent::Listed(_)), "nothing was missed: {event:?}");
        if let Some((kind, agent)) = change(&event) {
            assert_eq!((kind, agent.agent_id.as_str()), ("registered", "after"));
            break;
        }
    }
    server.shutdown().await;
}

async fn shutdown_does_not_wait_for_watchers(database: Database) {
    let stops_soon = async || {
        let server = database.start().await;
        let client = client(&server);
        let mut watches: Vec<_> = (0..10).map(|_| client.watch()).collect();
        for watch in &mut watches {
            listed(watch).await;
        }
        let began = Instant::now();
        server.shutdown().await;
        // Waiting for them would take 10 s each time.
        began.elapsed() < Duration::from_secs(5)
    };
    eventually("the server stops without waiting for watchers", stops_soon).await;
}

/// Follows a watch up to the last change. Returns the revisions of each agent in the order received, and the number of lists.
async fn follow(mut watch: Watch, ends: impl Fn(&AgentRecord) -> bool) -> (HashMap<String, Vec<u64>>, usize) {
    let (mut told, mut lists) = (HashMap::<String, Vec<u64>>::new(), 0);
    loop {
        let event = next(&mut watch).await;
        if let WatchEvent::Listed(_) = event {
            lists += 1;
        }
        if let Some((_, agent)) = change(&event) {
            told.entry(agent.agent_id.clone()).or_default().push(agent.revision.unwrap());
            if ends(agent) {
                return (told, lists);
            }
        }
    }
}

/// Fifty watchers on each of two replicas while both change the same agents. Some of the watchers' connections are cut repeatedly.
async fn watchers_on_two_replicas_see_every_change_in_order(database: Database) {
    const ROUNDS: usize = 60;
    let (one, two) = (database.start().await, database.start().await);
    let servers = [&one, &two];
    let mut watchers = JoinSet::new();
    let mut proxies = Vec::new();
    for server in servers {
        let proxy = FaultProxy::start(server.local_addr().to_string()).await;
        let through = client_builder(format!("http://{}", proxy.address())).build().unwrap();
        for number in 0..50 {
            let client = if number % 5 == 0 { through.clone() } else { client(server) };
            let mut watch = client.watch();
            listed(&mut watch).await;
            watchers.spawn(follow(watch, |agent| agent.agent_id == "last"));
        }
        proxies.push(proxy);
    }
    let mut changes = JoinSet::new();
    for worker in 0..8 {
        let client = client(servers[worker % 2]);
        changes.spawn(async move {
            for round in 0..ROUNDS {
                let id = format!("a{}", (worker + round) % 10);
                client.register(&agent(&id, &format!("work-{worker}-{round}"))).await.unwrap();
            }
        });
    }
    for round in 0..6 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        proxies[round % 2].set(Fault::Refuse);
        tokio::time::sleep(Duration::from_millis(20)).await;
        proxies[round % 2].set(Fault::None);
    }
    changes.join_all().await;
    // The last changes go through both replicas, so that no watcher ends before it has seen the other replica's changes.
    client(&one).register(&agent("last", "work")).await.unwrap();

    let all = watchers.join_all().await;
    let (expected, _) = &all[1];
    assert_eq!(expected.values().map(Vec::len).sum::<usize>(), 8 * ROUNDS + 1);
    for (told, lists) in &all {
        assert!(told.values().all(|revisions| revisions.is_sorted()), "{told:?}");
        assert_eq!((told == expected, *lists), (true, 0), "{told:?}\n{expected:?}");
    }
    one.shutdown().await;
    two.shutdown().await;
}

async fn replica_that_fell_far_behind_resets_its_watchers(database: Database) {
    use sqlx::Executor;
    let proxy = crate::support::proxy_before(&database).await;
    let one = database.start().await;
    let two: Registry = database.through(&proxy).start().await;
    let mut watch = client(&two).watch();
    assert!(listed(&mut watch).await.is_empty());
    proxy.set(Fault::Refuse);
    eventually("the other server is cut off", async || {
        impatient_client(&two).get_server_health().await.is_err()
    })
    .await;
    client(&one).register(&agent("a", "work")).await.unwrap();
    database.connect().await.execute("DELETE FROM agent_registry_event").await.unwrap();
    proxy.set(Fault::None);
    let agents = listed(&mut watch).await;
    assert_eq!(agents.iter().map(|agent| agent.agent_id.as_str()).collect::<Vec<_>>(), ["a"]);
    // The event at the replica's position was deleted, so the replica cannot tell whether it has missed changes.
    client(&one).register(&agent("b", "work")).await.unwrap();
    assert_eq!(listed(&mut watch).await.len(), 2);
    client(&one).register(&agent("c", "work")).await.unwrap();
    assert_eq!(next_change(&mut watch).await.1.agent_id, "c");
    one.shutdown().await;
    two.shutdown().await;
}
