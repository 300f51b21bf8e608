//! Maintenance: an agent in maintenance is given no work, whatever it sends.

mod replicas;
mod stored;

use std::sync::Arc;
use std::time::Duration;

use registry_sdk::contract::{
    AgentRecord, AgentStatus, Heartbeat, Maintenance, MaintenanceRequest, Problem, StatusUpdate,
    UnhealthyReason,
};
use registry_sdk::{Error, ListQuery, RegistryClient, SearchQuery, Watch, WatchEvent};
use tokio::time::timeout;

use crate::support::{Database, LONG, NEVER, agent, client, eventually, on_every_registry};

on_every_registry!(
    agent_in_maintenance_is_unhealthy_and_not_found,
    requests_of_the_agent_do_not_end_its_maintenance,
    maintenance_ends_at_its_time_for_every_reader,
    each_change_of_maintenance_is_announced,
    maintenance_of_a_process_ends_with_the_process,
    only_the_owner_of_the_id_can_begin_its_own_maintenance,
    drain_does_not_replace_an_operators_maintenance,
    removed_agent_registers_again_without_maintenance,
    invalid_requests_are_rejected_with_all_invalid_fields,
);

fn request() -> MaintenanceRequest {
    MaintenanceRequest::new("disk upgrade")
}

/// Long enough for a few requests, and short enough to wait for its end.
const SHORT: Duration = Duration::from_secs(2);

fn owned(instance_id: &str, age: Duration) -> registry_sdk::Registration {
    agent("a", "work").instance_id(instance_id).instance_age(age)
}

async fn maintenance_of(client: &RegistryClient) -> Option<Maintenance> {
    client.get_agent("a").await.unwrap().maintenance
}

async fn finds(client: &RegistryClient) -> usize {
    client.search_capabilities("work").await.unwrap().len()
}

async fn next_change(watch: &mut Watch) -> Arc<AgentRecord> {
    loop {
        match timeout(LONG, watch.next()).await.expect("an event").expect("the watch continues") {
            WatchEvent::StatusChanged(agent) => return agent,
            WatchEvent::Listed(_) | WatchEvent::Resumed | WatchEvent::Interrupted(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Starts a watch, and waits for its list.
async fn watch(client: &RegistryClient) -> Watch {
    let mut watch = client.watch();
    while !matches!(timeout(LONG, watch.next()).await.unwrap(), Some(WatchEvent::Listed(_))) {}
    watch
}

async fn agent_in_maintenance_is_unhealthy_and_not_found(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    client.register(&agent("a", "work").status(AgentStatus::Busy)).await.unwrap();
    let before = client.register(&agent("b", "work")).await.unwrap();
    let record = client.set_maintenance("a", &request().duration(NEVER)).await.unwrap();
    let maintenance = record.maintenance.clone().unwrap();
    assert_eq!(maintenance.reason, "disk upgrade");
    assert_eq!(maintenance.until.unwrap().since(maintenance.since), NEVER);
    assert_eq!(maintenance.instance_id, None);
    assert_eq!((record.status, record.healthy), (AgentStatus::Busy, Some(false)));
    assert_eq!(client.get_agent("a").await.unwrap(), record);
    assert!(record.revision > before.revision);

    let health = client.check_health("a").await.unwrap();
    assert_eq!((health.is_healthy(), health.reason), (false, Some(UnhealthyReason::Maintenance)));
    assert_eq!(health.agent_status, Some(AgentStatus::Busy));
    for search in [
        SearchQuery::new("work"),
        SearchQuery::new("work").healthy(false),
        SearchQuery::new("work").status(AgentStatus::Busy),
        SearchQuery::exact("work"),
    ] {
        let found = client.search_capabilities(search.clone()).await.unwrap();
        assert!(found.iter().all(|found| found.agent_id == "b"), "{search:?}");
    }
    let list = async |query| client.list_agents(query).await.unwrap().agents.len();
    assert_eq!(list(ListQuery::all()).await, 2);
    assert_eq!(list(ListQuery::all().healthy(false)).await, 1);
    let stats = client.get_stats().await.unwrap();
    assert_eq!((stats.busy_agents, stats.maintenance_agents), (1, 1));
    assert_eq!(client.get_agent("b").await.unwrap().maintenance, None);

    // A silent agent in maintenance is offline nevertheless.
    client.update_status("a", AgentStatus::Offline).await.unwrap();
    assert_eq!(client.check_health("a").await.unwrap().reason, Some(UnhealthyReason::Offline));
    assert!(maintenance_of(&client).await.is_some());
    server.shutdown().await;
}

async fn requests_of_the_agent_do_not_end_its_maintenance(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    let tag = client.register(&owned("one", Duration::from_secs(60))).await.unwrap().registration_tag;
    let set = client.set_maintenance("a", &request()).await.unwrap().maintenance;
    assert!(set.is_some());
    let beat = Heartbeat::default().instance_id("one");
    assert_eq!(client.heartbeat_with("a", &beat).await.unwrap().registration_tag, tag);
    client.heartbeat_with("a", &beat.clone().status(AgentStatus::Busy)).await.unwrap();
    client.update_status("a", AgentStatus::Offline).await.unwrap();
    client.heartbeat("a").await.unwrap();
    // The same registration, a different one, one of a younger process, and one without an instance id.
    let again = client.register(&owned("one", Duration::from_secs(60))).await.unwrap();
    assert_eq!((again.registration_tag, &again.maintenance), (tag, &set));
    let registrations = [
        owned("one", Duration::from_secs(60)).metadata("new", true),
        owned("two", Duration::from_secs(1)),
        agent("a", "work"),
    ];
    for registration in registrations {
        let record = client.register(&registration).await.unwrap();
        assert_eq!((&record.maintenance, record.healthy), (&set, Some(false)), "{registration:?}");
    }
    client.register(&owned("three", Duration::ZERO)).await.unwrap();
    client.update_status_with("a", &StatusUpdate::shut_down("three")).await.unwrap();
    assert_eq!(maintenance_of(&client).await, set);
    assert_eq!(finds(&client).await, 0);
    server.shutdown().await;
}

async fn maintenance_ends_at_its_time_for_every_reader(database: Database) {
    // No sweep stores the end.
    let server = database.start_with(|config| config.sweep_interval = NEVER).await;
    let client = client(&server);
    client.register(&agent("a", "work")).await.unwrap();
    client.set_maintenance("a", &request().duration(SHORT)).await.unwrap();
    eventually("the maintenance is over", async || client.check_health("a").await.unwrap().is_healthy())
        .await;
    let record = client.get_agent("a").await.unwrap();
    assert_eq!((record.maintenance, record.healthy), (None, Some(true)));
    assert_eq!(finds(&client).await, 1);
    let listed = client.list_agents(ListQuery::all().healthy(true)).await.unwrap().agents;
    assert_eq!((listed.len(), &listed[0].maintenance), (1, &None));
    assert_eq!(client.get_stats().await.unwrap().maintenance_agents, 0);
    server.shutdown().await;
}

async fn each_change_of_maintenance_is_announced(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    client.register(&agent("a", "work")).await.unwrap();
    let mut watch = watch(&client).await;
    let first = client.set_maintenance("a", &request().duration(NEVER)).await.unwrap();
    let second = client.set_maintenance("a", &MaintenanceRequest::new("more")).await.unwrap();
    assert_eq!(second.maintenance.as_ref().map(|one| (&*one.reason, one.until)), Some(("more", None)));
    let ended = client.end_maintenance("a").await.unwrap();
    assert_eq!((&ended.maintenance, ended.healthy), (&None, Some(true)));
    // Ending it again changes nothing.
    assert_eq!(client.end_maintenance("a").await.unwrap(), ended);
    assert_eq!(finds(&client).await, 1);
    let busy = client.update_status("a", AgentStatus::Busy).await.unwrap();
    for expected in [first, second, ended, busy] {
        let told = next_change(&mut watch).await;
        assert_eq!((told.revision, &told.maintenance), (expected.revision, &expected.maintenance));
        assert_eq!(told.healthy, expected.healthy);
    }
    let unknown = client.set_maintenance("unknown", &request()).await;
    assert!(matches!(unknown, Err(Error::NotFound { .. })), "{unknown:?}");
    let unknown = client.end_maintenance("unknown").await;
    assert!(matches!(unknown, Err(Error::NotFound { .. })), "{unknown:?}");
    server.shutdown().await;
}

async fn maintenance_of_a_process_ends_with_the_process(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    let drain = async |instance_id: &str, lived| {
        client.register(&owned(instance_id, lived)).await.unwrap();
        let request = MaintenanceRequest::new("draining").instance_id(instance_id);
        let set = client.set_maintenance("a", &request).await.unwrap().maintenance.unwrap();
        assert_eq!(set.instance_id.as_deref(), Some(instance_id));
        // Further registrations of the same process do not end it.
        client.register(&owned(instance_id, lived)).await.unwrap();
        let again = client.register(&owned(instance_id, lived).metadata("new", true)).await.unwrap();
        assert_eq!(again.maintenance, Some(set));
    };
    let mut watch = watch(&client).await;
    // The process is shut down.
    drain("one", Duration::from_secs(50)).await;
    let gone = client.update_status_with("a", &StatusUpdate::shut_down("one")).await.unwrap();
    assert_eq!(gone.maintenance, None);
    // Another process takes over.
    drain("two", Duration::from_secs(40)).await;
    let next = client.register(&owned("three", Duration::from_secs(1))).await.unwrap();
    assert_eq!((next.maintenance, next.healthy), (None, Some(true)));
    // The process is killed and started again with the same instance id.
    drain("four", Duration::from_millis(500)).await;
    let restarted = client.register(&owned("four", Duration::ZERO).metadata("new", true)).await.unwrap();
    assert_eq!((restarted.maintenance, restarted.healthy), (None, Some(true)));
    assert_eq!(finds(&client).await, 1);
    // The same, without any other change of the registration.
    let request = MaintenanceRequest::new("draining").instance_id("four");
    client.set_maintenance("a", &request).await.unwrap();
    let restarted = client.register(&owned("four", Duration::ZERO).metadata("new", true)).await.unwrap();
    assert_eq!(restarted.maintenance, None);
    // A registration without an instance id is from another process, too.
    client.set_maintenance("a", &request).await.unwrap();
    assert_eq!(client.register(&agent("a", "work")).await.unwrap().maintenance, None);
    // The last change was announced.
    let last = client.get_agent("a").await.unwrap().revision;
    loop {
        let event = timeout(LONG, watch.next()).await.unwrap().unwrap();
        if let WatchEvent::Registered(agent) | WatchEvent::StatusChanged(agent) = event
            && agent.revision == last
        {
            break assert_eq!(agent.maintenance, None);
        }
    }
    server.shutdown().await;
}

async fn only_the_owner_of_the_id_can_begin_its_own_maintenance(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    client.register(&owned("one", Duration::from_secs(10))).await.unwrap();
    let refused = client.set_maintenance("a", &request().instance_id("other")).await;
    assert!(matches!(&refused, Err(Error::Superseded { owner: Some(owner), .. })
        if owner.instance_id.as_deref() == Some("one")));
    client.update_status_with("a", &StatusUpdate::shut_down("one")).await.unwrap();
    let refused = client.set_maintenance("a", &request().instance_id("one")).await;
    assert!(matches!(refused, Err(Error::Superseded { .. })), "{refused:?}");
    client.register(&agent("a", "work")).await.unwrap();
    let refused = client.set_maintenance("a", &request().instance_id("one")).await;
    assert!(matches!(refused, Err(Error::Superseded { .. })), "{refused:?}");
    assert_eq!(maintenance_of(&client).await, None);
    server.shutdown().await;
}

/// An operator puts the agent into maintenance. Then its process drains and restarts.
async fn drain_does_not_replace_an_operators_maintenance(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    client.register(&owned("one", Duration::from_secs(10))).await.unwrap();
    let set = client.set_maintenance("a", &request().duration(NEVER)).await.unwrap();
    let drained = client.set_maintenance("a", &MaintenanceRequest::new("draining").instance_id("one")).await;
    assert_eq!(drained.unwrap(), set);
    client.update_status_with("a", &StatusUpdate::shut_down("one")).await.unwrap();
    let restarted = client.register(&owned("two", Duration::ZERO)).await.unwrap();
    assert_eq!(restarted.maintenance, set.maintenance);
    server.shutdown().await;
}

async fn removed_agent_registers_again_without_maintenance(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    client.register(&agent("a", "work")).await.unwrap();
    client.set_maintenance("a", &request()).await.unwrap();
    client.deregister("a").await.unwrap();
    assert_eq!(client.register(&agent("a", "work")).await.unwrap().maintenance, None);
    assert_eq!(finds(&client).await, 1);
    server.shutdown().await;
}

async fn invalid_requests_are_rejected_with_all_invalid_fields(database: Database) {
    let server = database.start().await;
    client(&server).register(&agent("a", "work")).await.unwrap();
    let put = async |body: String| {
        let request = reqwest::Client::new().put(format!("{}/agents/a/maintenance", server.url()));
        request.header("content-type", "application/json").body(body).send().await.unwrap()
    };
    let long = "ä".repeat(257);
    for (body, expected) in [
        ("{}".to_owned(), &["reason"][..]),
        (String::new(), &["reason"]),
        (
            r#"{"reason": "", "duration_seconds": 0, "instance_id": "-"}"#.to_owned(),
            &["reason", "duration_seconds", "instance_id"],
        ),
        (r#"{"reason": 7, "duration_seconds": "1h"}"#.to_owned(), &["reason", "duration_seconds"]),
        (format!(r#"{{"reason": "{long}", "duration_seconds": 31536001}}"#), &["reason", "duration_seconds"]),
        (r#"{"reason": "a\u0000", "duration_seconds": -1}"#.to_owned(), &["reason", "duration_seconds"]),
        (r#"{"reason": null, "duration_seconds": 1e999}"#.to_owned(), &[]),
    ] {
        let answer = put(body.clone()).await;
        if expected.is_empty() {
            assert_eq!(answer.status().as_u16(), 400, "{body}");
            continue;
        }
        assert_eq!(answer.status().as_u16(), 422, "{body}");
        let problem: Problem = answer.json().await.unwrap();
        let fields: Vec<_> = problem.errors.iter().map(|error| error.field.as_str()).collect();
        assert_eq!(fields, expected, "{body}");
    }
    for body in [
        format!(r#"{{"reason": "{}", "duration_seconds": 31536000}}"#, &long["ä".len()..]),
        r#"{"reason": "x", "duration_seconds": 1e-9}"#.to_owned(),
        r#"{"reason": "x", "duration_seconds": null, "instance_id": null, "more": []}"#.to_owned(),
    ] {
        assert_eq!(put(body.clone()).await.status().as_u16(), 200, "{body}");
    }
    server.shutdown().await;
}
