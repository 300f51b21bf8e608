//! Two servers over one PostgreSQL.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use registry_sdk::contract::{AgentStatus, Heartbeat};
use registry_sdk::testing::Fault;
use registry_sdk::{ListQuery, RegistryClient, SearchQuery};
use sqlx::Executor;
use tokio::time::Instant;

use crate::support::{
    Database, NEVER, Registry, agent, client, eventually, impatient_client, on_postgres, proxy_before,
    status_of,
};

on_postgres!(
    changes_on_one_replica_are_visible_on_the_other,
    heartbeats_to_one_replica_keep_the_agent_alive_on_the_other,
    healthy_search_finds_an_agent_with_heartbeats_to_another_replica,
    missed_deadline_is_announced_once,
    late_heartbeat_on_one_replica_is_visible_on_the_other,
    cut_listening_connection_loses_no_change,
    replica_that_fell_far_behind_reloads,
    heartbeats_of_the_same_agents_on_both_replicas_at_once,
    three_replicas_start_at_once,
    load_is_visible_on_every_replica,
);

async fn pair(database: &Database, timeout: Duration) -> (Registry, Registry) {
    let start = || database.start_with(|config| config.heartbeat_timeout = timeout);
    (start().await, start().await)
}

async fn changes_on_one_replica_are_visible_on_the_other(database: Database) {
    let (one, two) = pair(&database, NEVER).await;
    let (one_client, two_client) = (client(&one), client(&two));
    let shown = async |what: &str, expected: Option<AgentStatus>| {
        let seen = async || two_client.get_agent("a").await.ok().map(|agent| agent.status);
        eventually(what, async || seen().await == expected).await;
    };
    one_client.register(&agent("a", "work")).await.unwrap();
    shown("registered", Some(AgentStatus::Active)).await;
    assert_eq!(two_client.search_capabilities("work").await.unwrap().len(), 1);
    one_client.update_status("a", AgentStatus::Busy).await.unwrap();
    shown("busy", Some(AgentStatus::Busy)).await;
    one_client.deregister("a").await.unwrap();
    shown("deregistered", None).await;
    // The other way round, at once: a heartbeat reads the database.
    one_client.register(&agent("b", "work")).await.unwrap();
    two_client.heartbeat("b").await.unwrap();
    two_client.deregister("b").await.unwrap();
    assert!(one_client.heartbeat("b").await.unwrap_err().is_not_found());
    one.shutdown().await;
    two.shutdown().await;
}

async fn heartbeats_to_one_replica_keep_the_agent_alive_on_the_other(database: Database) {
    const TIMEOUT: Duration = Duration::from_secs(2);
    let (one, two) = pair(&database, TIMEOUT).await;
    let (one_client, two_client) = (client(&one), client(&two));
    one_client.register(&agent("a", "work")).await.unwrap();
    eventually("the other server has the agent", async || two_client.get_agent("a").await.is_ok()).await;
    let is_alive = async || {
        status_of(&two_client, "a").await == AgentStatus::Active
            && two_client.check_health("a").await.unwrap().is_healthy()
            && two_client.search_capabilities("work").await.unwrap()[0].healthy == Some(true)
            && two_client.get_stats().await.unwrap().offline_agents == 0
    };
    // The other server is asked repeatedly, for much longer than the timeout.
    let (began, mut heard) = (Instant::now(), Instant::now());
    one_client.heartbeat("a").await.unwrap();
    while began.elapsed() < 3 * TIMEOUT {
        let sent = Instant::now();
        one_client.heartbeat("a").await.unwrap();
        if !is_alive().await {
            assert!(
                heard.elapsed() > TIMEOUT,
                "the last heartbeat but one was sent {:?} ago",
                heard.elapsed()
            );
            // The machine was too busy for heartbeats in time.
            eventually("the agent is active again", async || {
                one_client.heartbeat("a").await.unwrap();
                is_alive().await
            })
            .await;
            continue;
        }
        heard = sent;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    one.shutdown().await;
    two.shutdown().await;
}

/// Heartbeats are not broadcast, so the deadline seems missed until the server reads the database. No sweep does that earlier.
async fn healthy_search_finds_an_agent_with_heartbeats_to_another_replica(database: Database) {
    const TIMEOUT: Duration = Duration::from_secs(2);
    let start =
        || database.start_with(|config| (config.heartbeat_timeout, config.sweep_interval) = (TIMEOUT, NEVER));
    let (one, two) = (start().await, start().await);
    let (one_client, two_client) = (client(&one), client(&two));
    one_client.register(&agent("a", "work")).await.unwrap();
    eventually("the other server has the agent", async || two_client.get_agent("a").await.is_ok()).await;
    // On a busy machine a heartbeat may be late, so this is repeated until all are in time.
    let is_found = async || {
        let began = Instant::now();
        while began.elapsed() < TIMEOUT {
            one_client.heartbeat("a").await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let healthy = SearchQuery::new("work").healthy(true);
        two_client.search_capabilities(healthy).await.unwrap().len() == 1
    };
    eventually("the other server finds the agent", is_found).await;
    one.shutdown().await;
    two.shutdown().await;
}

async fn missed_deadline_is_announced_once(database: Database) {
    let (one, two) = pair(&database, Duration::from_millis(500)).await;
    for number in 0..20 {
        client(&one).register(&agent(&format!("a{number}"), "work")).await.unwrap();
    }
    for server in [&one, &two] {
        let all_offline = async || client(server).get_stats().await.unwrap().stale_agents == 20;
        eventually("all are offline", all_offline).await;
    }
    for number in 0..20 {
        let written = async || database.has_missed_deadline(&format!("a{number}")).await;
        eventually("the missed deadline is stored", written).await;
    }
    let count = "SELECT count(*) FROM agent_registry_event WHERE kind = 'status_changed'";
    let announced: i64 = sqlx::query_scalar(count).fetch_one(&mut database.connect().await).await.unwrap();
    assert_eq!(announced, 20);
    one.shutdown().await;
    two.shutdown().await;
}

async fn late_heartbeat_on_one_replica_is_visible_on_the_other(database: Database) {
    let start = || {
        database.start_with(|config| {
            config.heartbeat_timeout = Duration::from_millis(800);
            // No sweep stores anything in the meantime.
            config.sweep_interval = Duration::from_secs(3_600);
        })
    };
    let (one, two) = (start().await, start().await);
    let (one_client, two_client) = (client(&one), client(&two));
    one_client.register(&agent("a", "work")).await.unwrap();
    let offline_there =
        async || two_client.get_agent("a").await.is_ok_and(|agent| agent.status == AgentStatus::Offline);
    eventually("the agent is offline on the other server", offline_there).await;
    let is_heard_there = async || {
        assert_eq!(one_client.heartbeat("a").await.unwrap().status, AgentStatus::Active);
        !offline_there().await
    };
    eventually("the agent is active again on the other server", is_heard_there).await;
    one.shutdown().await;
    two.shutdown().await;
}

async fn cut_listening_connection_loses_no_change(database: Database) {
    let (one, two) = pair(&database, NEVER).await;
    let mut connection = database.connect().await;
    for round in 0..5 {
        let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE datname = current_database() AND query LIKE 'LISTEN%' AND pid <> pg_backend_pid()";
        connection.execute(cut).await.unwrap();
        let id = format!("a{round}");
        client(&one).register(&agent(&id, "work")).await.unwrap();
        eventually("the other server has the agent", async || client(&two).get_agent(&id).await.is_ok())
            .await;
    }
    one.shutdown().await;
    two.shutdown().await;
}

async fn replica_that_fell_far_behind_reloads(database: Database) {
    let proxy = proxy_before(&database).await;
    let one = database.start().await;
    let two = database.through(&proxy).start().await;
    let (one_client, two_client) = (client(&one), client(&two));
    for id in ["kept", "removed", "changed"] {
        one_client.register(&agent(id, "work")).await.unwrap();
    }
    let everyone = async |client: &RegistryClient| client.list_agents(ListQuery::all()).await.unwrap().agents;
    eventually("the other server has all agents", async || everyone(&two_client).await.len() == 3).await;
    proxy.set(Fault::Refuse);
    eventually("the other server is cut off", async || {
        impatient_client(&two).get_server_health().await.is_err()
    })
    .await;
    one_client.deregister("removed").await.unwrap();
    one_client.register(&agent("changed", "rest")).await.unwrap();
    one_client.register(&agent("new", "work")).await.unwrap();
    // The events in between are deleted by then.
    database.connect().await.execute("DELETE FROM agent_registry_event").await.unwrap();
    proxy.set(Fault::None);
    let expected = everyone(&one_client).await;
    eventually("both servers are equal", async || everyone(&two_client).await == expected).await;
    assert_eq!(two_client.search_capabilities("rest").await.unwrap().len(), 1);
    one.shutdown().await;
    two.shutdown().await;
}

async fn heartbeats_of_the_same_agents_on_both_replicas_at_once(database: Database) {
    let (one, two) = pair(&database, NEVER).await;
    for number in 0..50 {
        client(&one).register(&agent(&format!("a{number:02}"), "work")).await.unwrap();
    }
    let clients = [client(&one), client(&two)];
    let known = async || clients[1].get_stats().await.unwrap().total_agents == 50;
    eventually("both servers have all agents", known).await;
    let beats = (0..2_000).map(|number: usize| {
        let client = clients[number % 2].clone();
        // Forwards on one replica and backwards on the other, with registrations in between.
        let place = if number.is_multiple_of(2) { number / 2 % 50 } else { 49 - number / 2 % 50 };
        async move {
            let id = format!("a{place:02}");
            if number.is_multiple_of(40) {
                client.register(&agent(&id, &format!("work-{number}"))).await.map(|_| ())
            } else {
                client.heartbeat(&id).await.map(|_| ())
            }
        }
    });
    // Enough concurrent heartbeats for several in each batch, without too many connections for a busy machine.
    let outcomes: Vec<_> = stream::iter(beats).buffer_unordered(64).collect().await;
    for outcome in outcomes {
        outcome.unwrap();
    }
    one.shutdown().await;
    two.shutdown().await;
}

async fn three_replicas_start_at_once(database: Database) {
    let (one, two, three) = tokio::join!(database.start(), database.start(), database.start());
    client(&one).register(&agent("a", "work")).await.unwrap();
    for server in [&two, &three] {
        eventually("the other servers have the agent", async || client(server).get_agent("a").await.is_ok())
            .await;
    }
    for server in [one, two, three] {
        server.shutdown().await;
    }
}

async fn load_is_visible_on_every_replica(database: Database) {
    let (one, two) = pair(&database, NEVER).await;
    let (one_client, two_client) = (client(&one), client(&two));
    one_client.register(&agent("a", "work")).await.unwrap();
    eventually("the other server has the agent", async || two_client.get_agent("a").await.is_ok()).await;
    for tasks in 1..=5_u32 {
        let beat = Heartbeat::default().load(f64::from(tasks) / 10.0).active_tasks(tasks);
        one_client.heartbeat_with("a", &beat).await.unwrap();
        let known = async || {
            let found = two_client.search_capabilities("work").await.unwrap();
            (found[0].load, found[0].active_tasks) == (beat.load, beat.active_tasks)
        };
        eventually("the other server has the load", known).await;
    }
    one.shutdown().await;
    two.shutdown().await;
}
