//! Registries that respond with little or nothing: a success counts, whatever its body.

use std::time::Duration;

use registry_sdk::contract::{AgentStatus, Capability, Registration};
use registry_sdk::{Agent, RegistryClient, RetryPolicy};

use crate::support::{HEARTBEAT, REGISTER, Reply, Server, until};

const INTERVAL: Duration = Duration::from_secs(30);

const LITTLE: [(u16, &str); 12] = [
    (200, "{}"),
    (200, r#"{"status":"ok"}"#),
    (200, r#"{"message":"registered","status":17,"last_heartbeat":"yesterday"}"#),
    (200, r#"{"agent_id":7,"heartbeat_timeout_seconds":"long","registration_tag":{}}"#),
    (200, "null"),
    (200, "true"),
    (200, r#""OK""#),
    (200, "[]"),
    (201, ""),
    (201, "{}"),
    (202, ""),
    (204, ""),
];

fn registration() -> Registration {
    Registration::new("a", "Agent", "http://agent:8000")
        .capability(Capability::new("work"))
        .status(AgentStatus::Busy)
        .heartbeat_interval(INTERVAL)
}

#[tokio::test(start_paused = true)]
async fn agent_works_with_a_registry_that_responds_with_little() {
    for (status, body) in LITTLE {
        let server = Server::start(move |_, _| Reply::Answer(status, "", body)).await;
        let client = RegistryClient::builder(server.url()).retry(RetryPolicy::none()).build().unwrap();
        let agent = Agent::new(client, registration());
        let record = agent.register().await.unwrap();
        // Fields missing in the response are taken from the request.
        assert_eq!((&*record.agent_id, record.status), ("a", AgentStatus::Busy), "{body}");
        assert_eq!((&*record.base_url, record.capabilities.len()), ("http://agent:8000", 1), "{body}");
        assert_eq!(record.instance_id.as_deref(), Some(agent.instance_id()));
        agent.start_heartbeat(INTERVAL).unwrap();
        until("it beats", || server.times(HEARTBEAT).len() >= 5).await;
        agent.update_status(AgentStatus::Active).await.unwrap();
        agent.update_capabilities(vec![Capability::new("more")]).await.unwrap();
        assert!(agent.state().is_registered(), "{body}: {:?}", agent.state());
        assert_eq!(server.times(REGISTER).len(), 2, "{body}");
        agent.shutdown().await;
    }
}

#[tokio::test(start_paused = true)]
async fn client_reads_short_responses_like_the_agent() {
    for (status, body) in LITTLE {
        let server = Server::start(move |_, _| Reply::Answer(status, "", body)).await;
        let client = RegistryClient::builder(server.url()).retry(RetryPolicy::none()).build().unwrap();
        assert_eq!(client.register(&registration()).await.unwrap().agent_name, "Agent");
        assert_eq!(client.heartbeat("a").await.unwrap().agent_id, "a");
    }
}

#[tokio::test(start_paused = true)]
async fn valid_fields_are_read_next_to_invalid_ones() {
    let body = r#"{"status":"offline","last_heartbeat":"2026-11-24T09:30:00.123Z","heartbeat_timeout_seconds":90,
        "registration_tag":"t","revision":7,"registered_at":null,"capabilities":"many"}"#;
    let server = Server::start(move |_, _| Reply::Answer(200, "", body)).await;
    let client = RegistryClient::new(server.url()).unwrap();
    let record = client.register(&registration()).await.unwrap();
    assert_eq!((record.status, record.revision), (AgentStatus::Offline, Some(7)));
    assert_eq!(record.heartbeat_timeout, Some(Duration::from_secs(90)));
    assert_eq!(record.registration_tag.as_deref(), Some("t"));
    assert_eq!(record.last_heartbeat.unwrap().to_string(), "2026-11-24T09:30:00.123Z");
    let ack = client.heartbeat("a").await.unwrap();
    assert_eq!((ack.status, ack.heartbeat_timeout), (AgentStatus::Offline, Some(Duration::from_secs(90))));
    assert_eq!((ack.registration_tag.as_deref(), ack.last_heartbeat), (Some("t"), record.last_heartbeat));
}

/// Something in between responds with 409 once, as if another process owned the id.
#[tokio::test(start_paused = true)]
async fn conflict_without_an_owner_does_not_stop_the_heartbeats() {
    for body in ["<html>", r#"{"error":"conflict"}"#, ""] {
        let server = Server::start(move |what, number| match what {
            HEARTBEAT if number == 3 => Reply::Answer(409, "content-type: text/html\r\n", body),
            _ => Reply::Answer(200, "", "{}"),
        })
        .await;
        let agent = Agent::new(RegistryClient::new(server.url()).unwrap(), registration());
        agent.start_heartbeat(INTERVAL).unwrap();
        until("it beats on", || server.times(HEARTBEAT).len() >= 20).await;
        assert!(agent.state().is_registered(), "{:?}", agent.state());
    }
}

#[tokio::test(start_paused = true)]
async fn long_errors_are_truncated_for_the_log() {
    let long: &'static str =
        Box::leak(format!("{{\"detail\":\"{}\"}}", "ä".repeat(1_000_000)).into_boxed_str());
    for status in [500, 422, 418] {
        let server = Server::start(move |_, _| Reply::Answer(status, "", long)).await;
        let client = RegistryClient::builder(server.url()).retry(RetryPolicy::none()).build().unwrap();
        let error = client.heartbeat("a").await.unwrap_err();
        assert!(error.to_string().len() < 3_000, "{}", error.to_string().len());
    }
}

#[tokio::test(start_paused = true)]
async fn truncated_or_invalid_json_is_not_accepted() {
    for (status, body) in [(200, ""), (200, "OK"), (201, "<html>"), (200, "{\"agent_"), (204, "nul")] {
        let server = Server::start(move |_, _| Reply::Answer(status, "", body)).await;
        let client = RegistryClient::builder(server.url()).retry(RetryPolicy::none()).build().unwrap();
        if status != 204 {
            assert!(client.register(&registration()).await.is_err(), "{status} {body}");
            assert!(client.heartbeat("a").await.is_err(), "{status} {body}");
        }
    }
}
