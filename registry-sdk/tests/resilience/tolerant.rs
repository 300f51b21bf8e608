//! Newer registries with unknown fields and values, and minimal ones with few.

use std::time::Duration;

use registry_sdk::contract::{HealthStatus, Heartbeat, ProbeMode, Registration, UnhealthyReason};
use registry_sdk::discovery::{HealthSource, SkipReason};
use registry_sdk::{
    AgentStatus, Error, ListQuery, Orchestrator, RegistryClient, RetryPolicy, TaskQuery, WatchEvent,
};

use crate::logs::Logs;
use crate::support::{HEARTBEAT, REGISTER, Reply, Server, agent, until};

const DRAINING: &str =
    r#"{"agent_id":"a","status":"draining","probe":"by_tcp","capabilities":[],"a_new_field":{"x":1}}"#;
const FOUND: &str = r#"[{"agent_id":"a","status":"draining","capability":"work","healthy":true},
    {"agent_id":"b","status":"active","capability":"work","healthy":true}]"#;
const HEALTH: &str =
    r#"{"agent_id":"a","status":"degraded","agent_status":"draining","reason":"new_reason"}"#;

async fn newer() -> (Server, RegistryClient) {
    let server = Server::start(|what, _| {
        Reply::Answer(
            200,
            "",
            match what {
                "GET /agents" => {
                    r#"[{"agent_id":"a","status":"draining"},{"agent_id":"b","status":"active"}]"#
                }
                "GET /agents/a" | REGISTER => DRAINING,
                HEARTBEAT => r#"{"agent_id":"a","status":"draining","heartbeat_timeout_seconds":60}"#,
                "GET /health/a" => HEALTH,
                "GET /health/b" => r#"{"agent_id":"b","status":"healthy"}"#,
                _ => FOUND,
            },
        )
    })
    .await;
    let client = RegistryClient::builder(server.url()).retry(RetryPolicy::none()).build().unwrap();
    (server, client)
}

#[tokio::test]
async fn unknown_word_keeps_its_text_and_causes_no_error() {
    let (_server, client) = newer().await;
    let status = |status: AgentStatus| {
        assert!(matches!(status, AgentStatus::Unknown(_)), "{status:?}");
        assert_eq!(status.to_string(), "draining");
    };
    let page = client.list_agents(ListQuery::all()).await.unwrap();
    status(page.agents[0].status);
    assert_eq!(page.agents[1].status, AgentStatus::Active);
    let record = client.get_agent("a").await.unwrap();
    status(record.status);
    assert_eq!(serde_json::to_value(&record).unwrap()["status"], "draining", "and is written as it was read");
    assert!(matches!(record.probe, Some(ProbeMode::Unknown(word)) if word.as_str() == "by_tcp"));
    assert_eq!(serde_json::to_value(&record).unwrap()["probe"], "by_tcp");
    status(client.search_capabilities("work").await.unwrap()[0].status);
    status(client.heartbeat("a").await.unwrap().status);
    let registration = Registration::new("a", "Agent", "http://agent:8000");
    status(client.register(&registration).await.unwrap().status);
    let health = client.check_health("a").await.unwrap();
    assert!(!health.is_healthy());
    assert!(matches!(health.status, HealthStatus::Unknown(word) if word.as_str() == "degraded"));
    assert!(matches!(health.reason, Some(UnhealthyReason::Unknown(word)) if word.as_str() == "new_reason"));
    // But it is not sent on, because the registry would refuse it.
    let mut changed = registration.clone();
    changed.status = record.status;
    let error = client.register(&changed).await.unwrap_err();
    assert!(error.is_refused() && error.fields()[0].field == "status", "{error}");
    let error = client.register(&registration.clone().probe(record.probe.unwrap())).await.unwrap_err();
    assert!(error.is_refused() && error.fields()[0].field == "probe", "{error}");
    let status = record.status;
    for refused in [
        client.heartbeat_with("a", &Heartbeat::default().status(status)).await.map(|_| ()),
        client.update_status("a", status).await.map(|_| ()),
    ] {
        assert!(refused.unwrap_err().is_refused());
    }
    // The agent continues as well.
    let server = newer().await.0;
    let agent = agent(&server, Duration::from_millis(20));
    agent.start_heartbeat(Duration::from_millis(20)).unwrap();
    until("it beats", || server.times(HEARTBEAT).len() >= 3).await;
    assert!(agent.state().is_registered());
    assert!(agent.update_status(status).await.unwrap_err().is_refused());
    agent.set_status(status);
    let beats = server.times(HEARTBEAT).len();
    until("it beats on", || server.times(HEARTBEAT).len() >= beats + 3).await;
    assert!(server.arrived().iter().all(|one| !one.body.contains("draining")));
}

#[tokio::test]
async fn agent_with_an_unknown_status_is_never_selected() {
    for source in [HealthSource::Search, HealthSource::Registry, HealthSource::Agent] {
        let (_server, client) = newer().await;
        let orchestrator = Orchestrator::new(client);
        let query = TaskQuery::new("work").health_source(source).exclude("b");
        let error = orchestrator.select(&query).await.unwrap_err();
        assert!(!format!("{error:?}").contains("draining"), "{error:?}");
    }
    let (_server, client) = newer().await;
    let query = TaskQuery::new("work").health_source(HealthSource::Search);
    let selection = Orchestrator::new(client).select(&query).await.unwrap();
    assert_eq!(selection.agent.agent_id, "b");
    assert!(selection.skipped.iter().all(|skipped| skipped.reason != SkipReason::NoAnswer));
}

#[tokio::test]
async fn unreadable_record_is_skipped_and_logged() {
    let logs = Logs::record();
    let server = Server::start(|what, _| {
        Reply::Answer(
            200,
            "",
            match what {
                "GET /agents" => {
                    r#"[{"agent_id":"bad","status":["active"]},7,{"agent_id":"b","status":"active"},
                        {"agent_id":"worse","status":"active","capabilities":"many"}]"#
                }
                _ => r#"[{"agent_id":"bad","status":"active"},{"agent_id":"b","status":"active","capability":"work"}]"#,
            },
        )
    })
    .await;
    let client = RegistryClient::new(server.url()).unwrap();
    let page = client.list_agents(ListQuery::all()).await.unwrap();
    assert_eq!(page.agents.iter().map(|agent| &*agent.agent_id).collect::<Vec<_>>(), ["b"]);
    assert_eq!(logs.with("skipped a record").len(), 3);
    assert!(logs.with("skipped a record").iter().any(|line| line.contains("worse")));
    let found = client.search_capabilities("work").await.unwrap();
    assert_eq!(found.iter().map(|agent| &*agent.agent_id).collect::<Vec<_>>(), ["b"]);
}

#[tokio::test]
async fn list_of_unreadable_records_is_not_an_empty_list() {
    for body in
        [r#"[{"id":"a"},{"id":"b"}]"#, r#"{"error":"no"}"#, r#"{"a":[],"b":[]}"#, "null", "7", r#""[]""#]
    {
        let server = Server::start(move |_, _| Reply::Answer(200, "", body)).await;
        let client = RegistryClient::builder(server.url()).retry(RetryPolicy::none()).build().unwrap();
        let error = client.list_agents(ListQuery::all()).await.unwrap_err();
        assert!(matches!(error, Error::InvalidResponse { .. }), "{body}: {error}");
    }
}

#[tokio::test]
async fn responses_of_a_minimal_registry_are_enough() {
    let server = Server::start(|what, _| {
        Reply::Answer(
            200,
            "",
            match what {
                "GET /agents" => r#"{"agents":[{"agent_id":"a","status":"active"}],"count":1}"#,
                "GET /health/a" => r#"{"status":"healthy"}"#,
                _ => r#"{"results":[{"agent_id":"a","status":"active","capability":"work"}]}"#,
            },
        )
    })
    .await;
    let client = RegistryClient::builder(server.url()).retry(RetryPolicy::none()).build().unwrap();
    assert_eq!(client.list_agents(ListQuery::all()).await.unwrap().agents[0].agent_id, "a");
    let health = client.check_health("a").await.unwrap();
    assert_eq!((&*health.agent_id, health.is_healthy()), ("a", true));
    let selection = Orchestrator::new(client).find_best_agent("work").await.unwrap();
    assert_eq!(selection.agent.agent_id, "a");
}

#[tokio::test(start_paused = true)]
async fn watch_continues_after_unreadable_events() {
    let events = "id: 1\n\nid: 2\nevent: registered\ndata: {\"agent_id\":7}\n\n\
        id: 3\nevent: something_new\ndata: {}\n\n\
        id: 4\nevent: registered\ndata: {\"agent_id\":\"a\",\"status\":\"draining\"}\n\n";
    let server = Server::start(move |what, _| match what {
        "GET /events" => Reply::Answer(200, "content-type: text/event-stream\r\n", events),
        _ => Reply::Answer(200, "", r#"[{"agent_id":"b","status":"new","revision":1}]"#),
    })
    .await;
    let mut watch = RegistryClient::new(server.url()).unwrap().watch();
    let Some(WatchEvent::Listed(agents)) = watch.next().await else { panic!() };
    let statuses: Vec<_> = agents.iter().map(|agent| agent.status.as_str()).collect();
    assert_eq!(statuses, ["draining", "new"]);
    let Some(WatchEvent::Registered(agent)) = watch.next().await else { panic!() };
    assert_eq!(agent.status.as_str(), "draining");
}
