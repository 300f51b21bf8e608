//! Lists, pages and counts.

use registry_sdk::contract::{AgentRecord, AgentStatus, Capability};
use registry_sdk::{ListQuery, SearchQuery};

use crate::support::{Database, agent, client, on_every_registry};

on_every_registry!(
    list_has_all_agents_ordered_by_id,
    pages_of_a_list_are_complete,
    long_list_is_complete,
    cursor_remains_valid_when_its_agent_is_removed,
    stats_count_by_status,
);

async fn list_has_all_agents_ordered_by_id(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    for id in ["b", "a", "C", "a.1", "10"] {
        client.register(&agent(id, "work")).await.unwrap();
    }
    let page = client.list_agents(ListQuery::all()).await.unwrap();
    let ids: Vec<_> = page.agents.iter().map(|agent| agent.agent_id.as_str()).collect();
    assert_eq!((ids, page.next_cursor), (vec!["10", "C", "a", "a.1", "b"], None));
    server.shutdown().await;
}

async fn pages_of_a_list_are_complete(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    for number in 0..25 {
        let status = if number % 5 == 0 { AgentStatus::Busy } else { AgentStatus::Active };
        client.register(&agent(&format!("a{number:02}"), "work").status(status)).await.unwrap();
    }
    for (query, expected) in [(ListQuery::all(), 25), (ListQuery::all().status(AgentStatus::Active), 20)] {
        let whole = client.list_agents(query.clone()).await.unwrap().agents;
        assert_eq!(whole.len(), expected);
        // A page that ends exactly at the end of the list has no next page.
        for size in [1, 5, 7, 20, 25, 1_000] {
            let mut gathered = Vec::new();
            let mut next = None;
            loop {
                let query = ListQuery { cursor: next, ..query.clone().limit(size) };
                let page = client.list_agents(query).await.unwrap();
                assert!(page.agents.len() <= size && !page.agents.is_empty());
                gathered.extend(page.agents);
                next = page.next_cursor;
                if next.is_none() {
                    break;
                }
            }
            assert_eq!(gathered, whole, "pages of {size}");
        }
    }
    server.shutdown().await;
}

/// A list that is longer than one piece of a response.
async fn long_list_is_complete(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    let mut expected: Vec<String> = (0..300).map(|number| format!("a{number}")).collect();
    for id in &expected {
        let long = Capability::new("work").description("x".repeat(1_000));
        client.register(&agent(id, "more").capability(long)).await.unwrap();
    }
    expected.sort_unstable();
    let ids = |agents: Vec<AgentRecord>| agents.into_iter().map(|agent| agent.agent_id).collect::<Vec<_>>();
    assert_eq!(ids(client.list_agents(ListQuery::all()).await.unwrap().agents), expected);
    let page = client.list_agents(ListQuery::all().limit(299)).await.unwrap();
    assert_eq!(page.next_cursor.as_ref(), expected.get(298));
    assert_eq!(ids(page.agents), expected[..299]);
    let matches = client.search_capabilities(SearchQuery::new("work").limit(1_000)).await.unwrap();
    let mut found: Vec<_> = matches.into_iter().map(|found| found.agent_id).collect();
    found.sort_unstable();
    assert_eq!(found, expected);
    // The last pieces have no agents.
    let busy = expected.split_off(299);
    client.update_status(&busy[0], AgentStatus::Busy).await.unwrap();
    let active = client.list_agents(ListQuery::all().status(AgentStatus::Active)).await.unwrap();
    assert_eq!(ids(active.agents), expected);
    server.shutdown().await;
}

async fn cursor_remains_valid_when_its_agent_is_removed(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    for id in ["a", "b", "c", "d"] {
        client.register(&agent(id, "work")).await.unwrap();
    }
    let first = client.list_agents(ListQuery::all().limit(2)).await.unwrap();
    client.deregister("b").await.unwrap();
    let second =
        client.list_agents(ListQuery::all().limit(2).after(first.next_cursor.unwrap())).await.unwrap();
    let ids: Vec<_> = second.agents.iter().map(|agent| agent.agent_id.as_str()).collect();
    assert_eq!((ids, second.next_cursor), (vec!["c", "d"], None));
    server.shutdown().await;
}

async fn stats_count_by_status(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    client.register(&agent("a", "work")).await.unwrap();
    client.register(&agent("b", "work").status(AgentStatus::Busy)).await.unwrap();
    client.register(&agent("c", "rest").status(AgentStatus::Offline)).await.unwrap();
    let stats = client.get_stats().await.unwrap();
    assert_eq!(
        (stats.total_agents, stats.active_agents, stats.busy_agents, stats.offline_agents),
        (3, 1, 1, 1)
    );
    assert_eq!((stats.total_capabilities, stats.distinct_capabilities, stats.stale_agents), (3, 2, 0));
    server.shutdown().await;
}
