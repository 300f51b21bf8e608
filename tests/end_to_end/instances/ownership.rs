//! The youngest living process owns an agent's id.

use std::time::{Duration, Instant};

use registry_sdk::contract::{AgentStatus, Capability, Heartbeat, Owner, StatusUpdate};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{
    accepts_requests_of, fields, is_accepted, owner_of, problem, process, register_many_at_once, visible,
};
use crate::support::{Database, agent, client, eventually, on_every_registry};

on_every_registry!(
    younger_process_owns_the_id_in_any_order,
    youngest_of_many_concurrent_processes_owns_the_id,
    start_of_a_process_is_recorded_once_and_never_moved,
    registration_without_an_age_is_always_accepted,
    owner_past_its_deadline_is_replaced,
    offline_owner_within_its_deadline_keeps_the_id,
    conflict_names_the_owner,
    delayed_registration_does_not_make_its_process_younger,
    age_needs_an_instance_id_and_has_limits,
);

async fn younger_process_owns_the_id_in_any_order(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    assert!(is_accepted(&client, &process("old", 60)).await);
    assert!(is_accepted(&client, &process("young", 10)).await);
    let before = visible(&client).await;
    assert!(!is_accepted(&client, &process("old", 60)).await);
    assert!(!accepts_requests_of(&client, "old").await);
    assert_eq!(visible(&client).await, before);
    assert!(accepts_requests_of(&client, "young").await);

    client.deregister("a").await.unwrap();
    assert!(is_accepted(&client, &process("young", 10)).await);
    assert!(!is_accepted(&client, &process("old", 60)).await);
    assert!(!accepts_requests_of(&client, "old").await);
    assert!(accepts_requests_of(&client, "young").await);
    server.shutdown().await;
}

async fn youngest_of_many_concurrent_processes_owns_the_id(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    for _ in 0..10 {
        register_many_at_once(std::slice::from_ref(&client)).await;
        assert_eq!(owner_of(&client, "a").await.as_deref(), Some("aged-1"));
        client.deregister("a").await.unwrap();
    }
    server.shutdown().await;
}

async fn start_of_a_process_is_recorded_once_and_never_moved(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    assert!(is_accepted(&client, &process("one", 5_000)).await);
    assert!(is_accepted(&client, &process("one", 0).capability(Capability::new("more"))).await);
    assert!(is_accepted(&client, &process("two", 3_000)).await, "one started before two");
    assert!(!is_accepted(&client, &process("refused", 4_000)).await);
    assert!(
        !is_accepted(&client, &process("refused", 0)).await,
        "its start was recorded with a different age"
    );
    assert_eq!(owner_of(&client, "a").await.as_deref(), Some("two"));
    server.shutdown().await;
}

async fn registration_without_an_age_is_always_accepted(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    assert!(is_accepted(&client, &process("young", 0)).await);
    assert!(is_accepted(&client, &agent("a", "work").instance_id("no-age")).await);
    assert!(
        !is_accepted(&client, &process("old", 60)).await,
        "a process without an age counts as started when first seen"
    );
    assert!(is_accepted(&client, &agent("a", "work")).await, "an instance id is not needed either");
    assert!(is_accepted(&client, &process("old", 60)).await, "an owner with an unknown start is replaced");
    server.shutdown().await;
}

async fn owner_past_its_deadline_is_replaced(database: Database) {
    const TIMEOUT: Duration = Duration::from_millis(500);
    let server = database.start_with(|config| config.heartbeat_timeout = TIMEOUT).await;
    let client = client(&server);
    let heard = Instant::now();
    client.register(&process("young", 10)).await.unwrap();
    eventually("the older process gets the id", async || is_accepted(&client, &process("old", 60)).await)
        .await;
    assert!(
        heard.elapsed() >= TIMEOUT,
        "the owner was alive: its last heartbeat was {:?} ago",
        heard.elapsed()
    );
    assert!(!accepts_requests_of(&client, "young").await);
    server.shutdown().await;
}

async fn offline_owner_within_its_deadline_keeps_the_id(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    client.register(&process("young", 10)).await.unwrap();
    let offline = Heartbeat::default().status(AgentStatus::Offline).instance_id("young");
    client.heartbeat_with("a", &offline).await.unwrap();
    assert!(!is_accepted(&client, &process("old", 60)).await);
    client.update_status_with("a", &StatusUpdate::new(AgentStatus::Offline)).await.unwrap();
    assert!(!is_accepted(&client, &process("old", 60)).await);
    assert_eq!(visible(&client).await.status, AgentStatus::Offline);
    assert_eq!(owner_of(&client, "a").await.as_deref(), Some("young"));
    server.shutdown().await;
}

async fn conflict_names_the_owner(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    let young = client.register(&process("young", 10)).await.unwrap();
    let owner = Some(Owner::new(Some("young".to_owned()), young.base_url.clone()));
    let late = serde_json::to_value(process("old", 60)).unwrap();
    let cases = [
        (Method::POST, "/register", late),
        (Method::POST, "/agents/a/heartbeat", json!({"instance_id": "old"})),
        (Method::PUT, "/agents/a/status", json!({"status": "busy", "instance_id": "old"})),
        (Method::PUT, "/agents/a/status", json!({"status": "offline", "instance_id": "old", "final": true})),
    ];
    for (method, path, body) in cases {
        let problem = problem(&server, method, path, &body).await;
        assert_eq!((problem.status, &problem.owner), (409, &owner), "{path}");
        for part in ["young", &young.base_url, "its own id"] {
            assert!(problem.detail.contains(part), "{}", problem.detail);
        }
    }
    // After a shutdown, the error says so instead of naming another owner.
    client.update_status_with("a", &StatusUpdate::shut_down("young")).await.unwrap();
    let late = json!({"instance_id": "young"});
    let problem = problem(&server, Method::POST, "/agents/a/heartbeat", &late).await;
    assert_eq!((problem.status, &problem.owner), (409, &owner));
    assert!(problem.detail.contains("shut down"), "{}", problem.detail);
    server.shutdown().await;
}

async fn delayed_registration_does_not_make_its_process_younger(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    // The first registration was delayed, so its age is too low. The second one is in time.
    client.register(&process("old", 10)).await.unwrap();
    client.register(&process("old", 60)).await.unwrap();
    client.register(&process("young", 30)).await.unwrap();
    assert!(!is_accepted(&client, &process("old", 10)).await);
    assert_eq!(client.get_agent("a").await.unwrap().instance_id.as_deref(), Some("young"));
    server.shutdown().await;
}

async fn age_needs_an_instance_id_and_has_limits(database: Database) {
    let server = database.start().await;
    let body = |instance_id: Value, age: Value| {
        json!({"agent_id": "a", "agent_name": "A", "base_url": "http://a", "capabilities": [],
               "instance_id": instance_id, "instance_age_seconds": age})
    };
    for (body, expected) in [
        (body(Value::Null, json!(1)), vec!["instance_age_seconds"]),
        (body(json!("one"), json!(-0.001)), vec!["instance_age_seconds"]),
        (body(json!("one"), json!(1_000_000_000.001)), vec!["instance_age_seconds"]),
        (body(json!("one"), json!("1")), vec!["instance_age_seconds"]),
        (body(json!("-"), json!(-1)), vec!["instance_age_seconds", "instance_id"]),
    ] {
        let problem = problem(&server, Method::POST, "/register", &body).await;
        assert_eq!((problem.status, fields(&problem)), (422, expected), "{body}");
    }
    assert!(client(&server).get_agent("a").await.unwrap_err().is_not_found());
    let url = format!("{}/register", server.url());
    for age in [json!(1_000_000_000), json!(0), Value::Null] {
        let answer = reqwest::Client::new().post(&url).json(&body(json!("one"), age.clone())).send().await;
        assert_eq!(answer.unwrap().status(), StatusCode::OK, "{age}");
    }
    server.shutdown().await;
}
