//! Heartbeats and statuses.

use registry_sdk::contract::{AgentStatus, Capability, HealthStatus, Heartbeat, Problem, UnhealthyReason};

use crate::support::{Database, agent, client, on_every_registry, status_of};

on_every_registry!(
    heartbeat_updates_last_heartbeat,
    heartbeat_keeps_busy_and_makes_offline_active,
    heartbeat_can_set_the_status,
    status_update_does_not_count_as_a_heartbeat,
    health_has_the_reason,
    concurrent_heartbeats_are_all_recorded,
    heartbeats_report_the_load,
);

async fn heartbeat_updates_last_heartbeat(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    let registered = client.register(&agent("a", "work")).await.unwrap();
    let heard = client.heartbeat("a").await.unwrap();
    assert_eq!(heard.agent_id, "a");
    assert!(heard.last_heartbeat >= registered.last_heartbeat);
    assert_eq!(heard.heartbeat_timeout, registered.heartbeat_timeout);
    assert_eq!(client.get_agent("a").await.unwrap().last_heartbeat, heard.last_heartbeat);
    server.shutdown().await;
}

async fn heartbeat_keeps_busy_and_makes_offline_active(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    client.register(&agent("a", "work")).await.unwrap();
    let busy = client.update_status("a", AgentStatus::Busy).await.unwrap();
    assert_eq!(busy.status, AgentStatus::Busy);
    assert_eq!(client.heartbeat("a").await.unwrap().status, AgentStatus::Busy);
    client.update_status("a", AgentStatus::Offline).await.unwrap();
    assert_eq!(status_of(&client, "a").await, AgentStatus::Offline);
    assert_eq!(client.heartbeat("a").await.unwrap().status, AgentStatus::Active);
    assert_eq!(status_of(&client, "a").await, AgentStatus::Active);
    server.shutdown().await;
}

async fn heartbeat_can_set_the_status(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    client.register(&agent("a", "work")).await.unwrap();
    for status in [AgentStatus::Busy, AgentStatus::Busy, AgentStatus::Active, AgentStatus::Offline] {
        assert_eq!(
            client.heartbeat_with("a", &Heartbeat::default().status(status)).await.unwrap().status,
            status
        );
        assert_eq!(status_of(&client, "a").await, status);
    }
    server.shutdown().await;
}

async fn status_update_does_not_count_as_a_heartbeat(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    let registered = client.register(&agent("a", "work")).await.unwrap();
    let busy = client.update_status("a", AgentStatus::Busy).await.unwrap();
    assert_eq!(busy.last_heartbeat, registered.last_heartbeat);
    server.shutdown().await;
}

async fn health_has_the_reason(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    client.register(&agent("a", "work")).await.unwrap();
    let health = client.check_health("a").await.unwrap();
    assert_eq!((health.status, health.reason), (HealthStatus::Healthy, None));
    assert_eq!(health.agent_status, Some(AgentStatus::Active));
    assert!(health.since_heartbeat.unwrap() < health.heartbeat_timeout.unwrap());
    client.update_status("a", AgentStatus::Offline).await.unwrap();
    let health = client.check_health("a").await.unwrap();
    assert_eq!((health.status, health.reason), (HealthStatus::Unhealthy, Some(UnhealthyReason::Offline)));
    assert_eq!(health.agent_status, Some(AgentStatus::Offline));
    server.shutdown().await;
}

async fn concurrent_heartbeats_are_all_recorded(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    for number in 0..20 {
        client.register(&agent(&format!("a{number}"), "work")).await.unwrap();
    }
    let beats: Vec<_> = (0..400)
        .map(|number| {
            let client = client.clone();
            tokio::spawn(async move { client.heartbeat(&format!("a{}", number % 25)).await })
        })
        .collect();
    for (number, beat) in beats.into_iter().enumerate() {
        let heard = beat.await.unwrap();
        // Every fifth id is unknown, which must not affect the others in the batch.
        assert_eq!(heard.is_ok(), number % 25 < 20, "{heard:?}");
    }
    server.shutdown().await;
}

async fn heartbeats_report_the_load(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    client.register(&agent("a", "work").instance_id("one")).await.unwrap();
    let known = async || {
        let record = client.get_agent("a").await.unwrap();
        let found = client.search_capabilities("work").await.unwrap();
        assert_eq!((found[0].load, found[0].active_tasks), (record.load, record.active_tasks));
        (record.load, record.active_tasks)
    };
    assert_eq!(known().await, (None, None));
    client.heartbeat_with("a", &Heartbeat::default().load(0.25)).await.unwrap();
    assert_eq!(known().await, (Some(0.25), None));
    client.heartbeat_with("a", &Heartbeat::default().active_tasks(3)).await.unwrap();
    assert_eq!(known().await, (Some(0.25), Some(3)), "missing fields keep their values");
    let busy = Heartbeat::default().status(AgentStatus::Busy).load(1.0).active_tasks(12);
    client.heartbeat_with("a", &busy).await.unwrap();
    client.heartbeat("a").await.unwrap();
    assert_eq!(known().await, (Some(1.0), Some(12)));
    let again = agent("a", "work").instance_id("one").capability(Capability::new("more"));
    let record = client.register(&again).await.unwrap();
    assert_eq!((record.load, record.active_tasks), (Some(1.0), Some(12)), "the same process");
    let record = client.register(&agent("a", "work").instance_id("two")).await.unwrap();
    assert_eq!((record.load, record.active_tasks), (None, None), "another process");

    for load in ["-0.1", "1.1", "\"much\"", "[]"] {
        let body = format!(r#"{{"load": {load}, "active_tasks": -1, "instance_id": "two"}}"#);
        let request = reqwest::Client::new().post(format!("{}/agents/a/heartbeat", server.url()));
        let answer = request.header("content-type", "application/json").body(body).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 422, "{load}");
        let problem: Problem = answer.json().await.unwrap();
        let fields: Vec<_> = problem.errors.iter().map(|error| error.field.as_str()).collect();
        assert_eq!(fields, ["load", "active_tasks"]);
    }
    assert_eq!(known().await, (None, None));
    server.shutdown().await;
}
