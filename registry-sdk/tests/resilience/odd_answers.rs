//! Responses and statuses in uncommon forms.

use std::time::Duration;

use registry_sdk::contract::{Heartbeat, Registration};
use registry_sdk::{AgentStatus, Error, ListQuery, RegistryClient, RetryPolicy, SearchQuery};

use crate::support::{ACK, HEARTBEAT, PROBLEM, Reply, Server, agent_of, until};

fn client(server: &Server) -> RegistryClient {
    RegistryClient::builder(server.url()).retry(RetryPolicy::none()).build().unwrap()
}

async fn draining() -> AgentStatus {
    let server =
        Server::start(|_, _| Reply::Answer(200, "", r#"{"agent_id":"b","status":"draining"}"#)).await;
    client(&server).get_agent("b").await.unwrap().status
}

#[tokio::test]
async fn unknown_status_is_never_sent() {
    let status = draining().await;
    let server = Server::start(|what, _| match what {
        HEARTBEAT | "PUT /agents/a/status" => ACK,
        _ => Reply::Answer(200, "", "[]"),
    })
    .await;
    let client = client(&server);
    let _ = client.heartbeat_with("a", &Heartbeat::default().status(status)).await;
    let _ = client.update_status("a", status).await;
    let _ = client.list_agents(ListQuery::all().status(status)).await;
    let _ = client.search_capabilities(SearchQuery::new("work").status(status)).await;
    let sent: Vec<_> = server
        .arrived()
        .into_iter()
        .map(|one| format!("{} {}", one.what, one.body))
        .filter(|one| one.contains("draining"))
        .collect();
    assert!(sent.is_empty(), "{sent:#?}");
}

#[tokio::test(start_paused = true)]
async fn setting_an_unknown_status_does_not_stop_the_heartbeats() {
    let status = draining().await;
    // Like the registry, which refuses unknown values.
    let registry = registry_sdk::testing::MockRegistry::start().await;
    let interval = Duration::from_secs(30);
    let agent = agent_of(registry.client(), interval);
    agent.start_heartbeat(interval).unwrap();
    agent.register().await.unwrap();
    agent.set_status(status);
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert!(agent.state().is_registered(), "{:?}", agent.state());
}

#[tokio::test(start_paused = true)]
async fn problem_with_unreadable_members_still_comes_from_the_registry() {
    let registration = Registration::new("a", "Agent", "http://agent:8000");
    let mut wrong = Vec::new();
    for (status, body) in [
        (422, r#"{"title":"t","detail":"d","errors":null}"#),
        (422, r##"{"title":"t","detail":"d","errors":[{"pointer":"#/x","detail":"too long"}]}"##),
        (422, r#"{"title":"t","detail":"d","errors":["x is too long"]}"#),
        (401, r#"{"title":"t","detail":{"why":"expired"}}"#),
        (409, r#"{"title":"t","detail":"d","owner":{"instance_id":"x","base_url":null}}"#),
        (409, r#"{"title":"t","detail":"d","owner":"x"}"#),
    ] {
        let server = Server::start(move |_, _| Reply::Answer(status, PROBLEM, body)).await;
        let error = client(&server).register(&registration).await.unwrap_err();
        if !(error.is_refused() || error.is_superseded()) {
            wrong.push(format!("{status} {body}: {error:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn another_list_in_the_response_does_not_hide_the_agents() {
    let server = Server::start(|_, _| {
        Reply::Answer(200, "", r#"{"agents":[{"agent_id":"a","status":"active"}],"warnings":[]}"#)
    })
    .await;
    client(&server).list_agents(ListQuery::all()).await.unwrap();
}

#[tokio::test]
async fn error_with_an_empty_list_is_not_an_empty_list_of_agents() {
    for body in [r#"{"error":"upstream timed out","trace":[]}"#, r#"{"errors":[]}"#] {
        let server = Server::start(move |_, _| Reply::Answer(200, "", body)).await;
        let listed = client(&server).list_agents(ListQuery::all()).await;
        assert!(matches!(listed, Err(Error::InvalidResponse { .. })), "{body}: {listed:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn registry_with_absurd_numbers_does_not_stop_an_agent() {
    for body in [
        r#"{"agent_id":"a","status":"active","heartbeat_timeout_seconds":1e19}"#,
        r#"{"agent_id":"a","status":"active","heartbeat_timeout_seconds":0}"#,
        r#"{"agent_id":"a","status":"active","heartbeat_timeout_seconds":1e308}"#,
        r#"{"agent_id":"a","status":"active","last_heartbeat":"9999-12-31T23:59:59Z"}"#,
    ] {
        let server = Server::start(move |_, _| Reply::Answer(200, "", body)).await;
        let interval = Duration::from_secs(30);
        let agent = agent_of(RegistryClient::new(server.url()).unwrap(), interval);
        agent.start_heartbeat(interval).unwrap();
        until("it beats", || server.times(HEARTBEAT).len() >= 5).await;
        assert!(agent.state().is_registered());
    }
}
