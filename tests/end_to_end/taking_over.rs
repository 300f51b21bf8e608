//! Taking over the table of a Python service.

use registry_sdk::ListQuery;
use registry_sdk::contract::AgentStatus;
use sqlx::Executor;

use crate::support::{Database, agent, client, on_postgres};

on_postgres!(
    table_of_a_python_service_is_taken_over_without_loss,
    table_with_other_column_types_is_taken_over,
);

async fn table_of_a_python_service_is_taken_over_without_loss(database: Database) {
    let mut connection = database.connect().await;
    connection
        .execute(
            r#"CREATE TABLE agent_registry (
                 agent_id VARCHAR(64) PRIMARY KEY,
                 agent_name VARCHAR(128) NOT NULL,
                 base_url VARCHAR(256) NOT NULL,
                 status VARCHAR(16) NOT NULL DEFAULT 'active',
                 capabilities JSONB NOT NULL,
                 last_heartbeat TIMESTAMPTZ NOT NULL DEFAULT now()
               );
               CREATE INDEX idx_agent_status ON agent_registry (status);
               CREATE INDEX idx_agent_capabilities ON agent_registry USING GIN (capabilities);
               INSERT INTO agent_registry VALUES
                 ('feature-dev', 'Feature Development Agent', 'http://feature-dev:8002', 'active',
                  '[{"name": "code_generation", "description": "Generates Python code",
                     "cost_estimate": "~100 tokens", "tags": ["coding", "python"]}]', now()),
                 ('docs', 'Documentation Writer', 'http://docs:8004', 'offline', '[]', now() - interval '1 day');"#,
        )
        .await
        .unwrap();
    let server = database.start().await;
    let client = client(&server);
    let agents = client.list_agents(ListQuery::all()).await.unwrap().agents;
    assert_eq!(
        agents.iter().map(|agent| agent.agent_id.as_str()).collect::<Vec<_>>(),
        ["docs", "feature-dev"]
    );
    let found = &client.search_capabilities("code generation").await.unwrap()[0];
    assert_eq!((found.agent_id.as_str(), found.healthy), ("feature-dev", Some(true)));
    assert_eq!((found.cost_estimate.as_deref(), found.tags.len()), (Some("~100 tokens"), 2));
    assert_eq!((agents[0].status, agents[1].status), (AgentStatus::Offline, AgentStatus::Active));
    assert_eq!(client.heartbeat("docs").await.unwrap().status, AgentStatus::Active);
    client.register(&agent("docs", "documentation")).await.unwrap();
    client.deregister("feature-dev").await.unwrap();
    server.shutdown().await;
    // The tables are valid for the next start.
    let server = database.start().await;
    assert_eq!(crate::support::client(&server).list_agents(ListQuery::all()).await.unwrap().agents.len(), 1);
    server.shutdown().await;
}

async fn table_with_other_column_types_is_taken_over(database: Database) {
    let mut connection = database.connect().await;
    connection
        .execute(
            r#"CREATE TYPE mood AS ENUM ('active', 'asleep');
               CREATE TABLE agent_registry (
                 id SERIAL PRIMARY KEY,
                 agent_id TEXT UNIQUE NOT NULL,
                 agent_name TEXT,
                 base_url TEXT,
                 status mood DEFAULT 'active',
                 capabilities TEXT,
                 metadata JSONB,
                 last_heartbeat TIMESTAMP,
                 created_at TIMESTAMP DEFAULT now()
               );
               INSERT INTO agent_registry (agent_id, agent_name, base_url, status, capabilities, metadata, last_heartbeat)
               VALUES
                 ('full', 'Full', 'http://full:1', 'active', '["review", {"name": "work"}]', '{"team": "a"}', now() AT TIME ZONE 'UTC'),
                 ('asleep', 'Asleep', 'http://asleep:1', 'asleep', '[]', '{}', now()),
                 ('empty', NULL, NULL, NULL, NULL, NULL, NULL),
                 ('odd', 'Odd', 'http://odd:1', 'active', '[{"description": "without a name"}]', '[1]', now());"#,
        )
        .await
        .unwrap();
    let server = database.start().await;
    let client = client(&server);
    let full = client.get_agent("full").await.unwrap();
    let names: Vec<_> = full.capabilities.iter().map(|capability| capability.name.as_str()).collect();
    assert_eq!((full.status, names.as_slice()), (AgentStatus::Active, ["review", "work"].as_slice()));
    assert_eq!(full.metadata["team"], "a");
    assert_eq!(client.get_agent("asleep").await.unwrap().status, AgentStatus::Offline);
    let empty = client.get_agent("empty").await.unwrap();
    assert_eq!((empty.agent_name.as_str(), empty.capabilities.len()), ("empty", 0));
    // An unreadable row is not shown, but kept: the agent repairs it when it registers.
    assert!(client.get_agent("odd").await.unwrap_err().is_not_found());
    let rows: i64 =
        sqlx::query_scalar("SELECT count(*) FROM agent_registry").fetch_one(&mut connection).await.unwrap();
    assert_eq!(rows, 4);
    assert!(client.heartbeat("odd").await.unwrap_err().is_not_found());
    client.register(&agent("odd", "work")).await.unwrap();
    client.register(&agent("new", "work")).await.unwrap();
    assert_eq!(client.list_agents(ListQuery::all()).await.unwrap().agents.len(), 5);
    server.shutdown().await;
}
