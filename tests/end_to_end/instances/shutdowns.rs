//! Shutdown of a process, with the field `final` of a status.

use registry_sdk::contract::{AgentStatus, Capability, Heartbeat, StatusUpdate};
use reqwest::{Method, StatusCode};
use serde_json::json;

use super::{accepts_requests_of, fields, is_accepted, problem, process, visible};
use crate::support::{Database, agent, client, eventually, on_every_registry};

on_every_registry!(
    requests_after_a_shutdown_are_rejected_until_a_new_start,
    requests_after_a_shutdown_are_rejected_although_the_agent_is_active,
    registration_without_an_age_reopens_a_shut_down_instance,
    shut_down_owner_is_replaced_by_an_older_process,
    shutdown_of_an_offline_agent_is_recorded,
    shutdown_of_a_process_that_does_not_own_the_id_is_recorded,
    repeated_shutdown_is_accepted_and_writes_nothing,
    identical_registration_after_a_shutdown_is_rejected,
    final_needs_the_status_offline_and_an_instance_id,
);

async fn requests_after_a_shutdown_are_rejected_until_a_new_start(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    client.register(&process("one", 10)).await.unwrap();
    let ended = client.update_status_with("a", &StatusUpdate::shut_down("one")).await.unwrap();
    assert_eq!(ended.status, AgentStatus::Offline);
    assert!(!is_accepted(&client, &process("one", 10)).await);
    assert!(!is_accepted(&client, &process("one", 10).capability(Capability::new("more"))).await);
    let beat = Heartbeat::default().instance_id("one");
    for beat in [beat.clone(), beat.clone().status(AgentStatus::Busy), beat.load(0.5)] {
        assert!(client.heartbeat_with("a", &beat).await.unwrap_err().is_superseded());
    }
    for status in [AgentStatus::Active, AgentStatus::Busy, AgentStatus::Offline] {
        let update = StatusUpdate::new(status).instance_id("one");
        assert!(client.update_status_with("a", &update).await.unwrap_err().is_superseded());
    }
    assert_eq!(visible(&client).await, ended);

    // A start after the shutdown: a millisecond later is enough.
    eventually("a later start", async || is_accepted(&client, &process("one", 0)).await).await;
    assert!(accepts_requests_of(&client, "one").await);
    assert_eq!(visible(&client).await.status, AgentStatus::Active);
    server.shutdown().await;
}

async fn requests_after_a_shutdown_are_rejected_although_the_agent_is_active(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    client.register(&process("one", 10)).await.unwrap();
    client.update_status_with("a", &StatusUpdate::shut_down("one")).await.unwrap();
    // Requests without an instance id are accepted as usual.
    assert_eq!(client.heartbeat("a").await.unwrap().status, AgentStatus::Active);
    let back = visible(&client).await;
    assert!(!accepts_requests_of(&client, "one").await);
    assert!(!is_accepted(&client, &process("one", 10)).await);
    assert_eq!(visible(&client).await, back);
    server.shutdown().await;
}

async fn registration_without_an_age_reopens_a_shut_down_instance(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    client.register(&process("one", 10)).await.unwrap();
    client.update_status_with("a", &StatusUpdate::shut_down("one")).await.unwrap();
    assert!(is_accepted(&client, &agent("a", "work").instance_id("one")).await);
    assert!(accepts_requests_of(&client, "one").await);
    server.shutdown().await;
}

async fn shut_down_owner_is_replaced_by_an_older_process(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    client.register(&process("young", 10)).await.unwrap();
    assert!(!is_accepted(&client, &process("old", 60)).await);
    client.update_status_with("a", &StatusUpdate::shut_down("young")).await.unwrap();
    assert!(is_accepted(&client, &process("old", 60)).await);
    assert!(!is_accepted(&client, &process("young", 10)).await, "a late request");
    assert!(accepts_requests_of(&client, "old").await);
    server.shutdown().await;
}

async fn shutdown_of_an_offline_agent_is_recorded(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    client.register(&process("one", 10)).await.unwrap();
    client.update_status("a", AgentStatus::Offline).await.unwrap();
    let ended = client.update_status_with("a", &StatusUpdate::shut_down("one")).await.unwrap();
    assert!(!is_accepted(&client, &process("one", 10)).await);
    assert!(!accepts_requests_of(&client, "one").await);
    assert_eq!(visible(&client).await, ended);
    server.shutdown().await;
}

async fn shutdown_of_a_process_that_does_not_own_the_id_is_recorded(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    client.register(&process("old", 60)).await.unwrap();
    client.register(&process("young", 10)).await.unwrap();
    let before = client.get_agent("a").await.unwrap();
    let end = client.update_status_with("a", &StatusUpdate::shut_down("old")).await;
    assert!(end.unwrap_err().is_superseded());
    let after = client.get_agent("a").await.unwrap();
    assert_eq!((after.status, after.last_heartbeat), (before.status, before.last_heartbeat));
    client.update_status_with("a", &StatusUpdate::shut_down("young")).await.unwrap();
    // The id has no owner now, and a delayed registration arrives.
    assert!(!is_accepted(&client, &process("old", 61)).await);
    assert_eq!(client.get_agent("a").await.unwrap().status, AgentStatus::Offline);
    server.shutdown().await;
}

async fn repeated_shutdown_is_accepted_and_writes_nothing(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    client.register(&process("one", 10)).await.unwrap();
    let end = StatusUpdate::shut_down("one");
    let ended = client.update_status_with("a", &end).await.unwrap();
    assert_eq!(
        client.update_status_with("a", &end).await.unwrap(),
        ended,
        "the same record, including the revision"
    );
    client.register(&process("two", 60)).await.unwrap();
    assert!(client.update_status_with("a", &end).await.unwrap_err().is_superseded(), "two owns the id");
    assert_eq!(visible(&client).await.status, AgentStatus::Active);
    server.shutdown().await;
}

async fn identical_registration_after_a_shutdown_is_rejected(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    // The registration already has the status that a shutdown sets, so it equals the stored one.
    let same = process("one", 10).status(AgentStatus::Offline);
    client.register(&same).await.unwrap();
    let ended = client.update_status_with("a", &StatusUpdate::shut_down("one")).await.unwrap();
    assert!(!is_accepted(&client, &same).await);
    assert_eq!(visible(&client).await, ended);
    server.shutdown().await;
}

async fn final_needs_the_status_offline_and_an_instance_id(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    client.register(&process("one", 10)).await.unwrap();
    let before = visible(&client).await;
    for (body, expected) in [
        (json!({"status": "busy", "instance_id": "one", "final": true}), vec!["final"]),
        (json!({"status": "offline", "final": true}), vec!["final"]),
        (json!({"status": "offline", "instance_id": "one", "final": "yes"}), vec!["final"]),
        (json!({"instance_id": "one", "final": true}), vec!["final", "status"]),
        (json!({"status": "asleep", "instance_id": "-", "final": 1}), vec!["final", "instance_id", "status"]),
    ] {
        let problem = problem(&server, Method::PUT, "/agents/a/status", &body).await;
        assert_eq!((problem.status, fields(&problem)), (422, expected), "{body}");
    }
    assert_eq!(visible(&client).await, before);
    // `false` and `null` are the same as a missing field.
    let url = format!("{}/agents/a/status", server.url());
    for body in [json!({"status": "busy", "final": false}), json!({"status": "busy", "final": null})] {
        let answer = reqwest::Client::new().put(&url).json(&body).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{body}");
    }
    assert!(accepts_requests_of(&client, "one").await);
    server.shutdown().await;
}
