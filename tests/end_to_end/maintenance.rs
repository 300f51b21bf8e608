//! Maintenance: an agent that is taken out stays out, whatever it sends.

use std::sync::Arc;
use std::time::Duration;

use registry_sdk::contract::{
    AgentRecord, AgentStatus, Heartbeat, Maintenance, MaintenanceRequest, Problem, StatusUpdate,
    UnhealthyReason,
};
use registry_sdk::discovery::SkipReason;
use registry_sdk::{
    Directory, Error, ListQuery, Orchestrator, RegistryClient, SearchQuery, Watch, WatchEvent,
};
use tokio::time::timeout;

use crate::credentials::File;
use crate::support::{
    Database, LONG, NEVER, Registry, agent, client, client_builder, eventually, impatient_client,
    on_both_databases, on_every_registry, on_postgres,
};

on_every_registry!(
    an_agent_in_maintenance_is_unhealthy_and_no_search_finds_it,
    nothing_that_the_agent_sends_ends_its_maintenance,
    maintenance_ends_by_itself_for_every_reader,
    maintenance_is_replaced_and_ended_and_told_each_time,
    maintenance_of_a_process_ends_with_it,
    only_the_owner_of_the_id_takes_its_own_process_out,
    a_process_does_not_shorten_the_maintenance_of_its_agent,
    a_removed_agent_comes_back_without_maintenance,
    bad_requests_are_refused_with_all_their_fields,
);

/// What takes a database, or several readers of one server.
mod lasting {
    use super::*;

    on_both_databases!(
        the_end_of_maintenance_is_written_down_and_told_once,
        maintenance_survives_a_restart,
        maintenance_counts_down_while_the_server_is_down,
        a_token_allows_maintenance_of_its_own_agents,
        an_edited_maintenance_is_adopted,
    );
}

mod replicas {
    use super::*;

    on_postgres!(replicas_agree_about_maintenance, an_older_servers_write_leaves_the_maintenance_in_the_row,);
}

fn request() -> MaintenanceRequest {
    MaintenanceRequest::new("disk upgrade")
}

/// Long enough for a few requests, and short enough to wait for.
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
        match timeout(LONG, watch.next()).await.expect("an event").expect("the watch goes on") {
            WatchEvent::StatusChanged(agent) => return agent,
            WatchEvent::Listed(_) | WatchEvent::Resumed | WatchEvent::Interrupted(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// A watch that has begun.
async fn watch(client: &RegistryClient) -> Watch {
    let mut watch = client.watch();
    while !matches!(timeout(LONG, watch.next()).await.unwrap(), Some(WatchEvent::Listed(_))) {}
    watch
}

async fn an_agent_in_maintenance_is_unhealthy_and_no_search_finds_it(database: Database) {
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

    // A silent agent is no less offline for it.
    client.update_status("a", AgentStatus::Offline).await.unwrap();
    assert_eq!(client.check_health("a").await.unwrap().reason, Some(UnhealthyReason::Offline));
    assert!(maintenance_of(&client).await.is_some());
    server.shutdown().await;
}

async fn nothing_that_the_agent_sends_ends_its_maintenance(database: Database) {
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
    // The same registration, another one, that of a younger process, and one without an instance.
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

async fn maintenance_ends_by_itself_for_every_reader(database: Database) {
    // Nothing writes the end down.
    let server = database.start_with(|config| config.sweep_interval = NEVER).await;
    let client = client(&server);
    client.register(&agent("a", "work")).await.unwrap();
    client.set_maintenance("a", &request().duration(SHORT)).await.unwrap();
    eventually("it is over", async || client.check_health("a").await.unwrap().is_healthy()).await;
    let record = client.get_agent("a").await.unwrap();
    assert_eq!((record.maintenance, record.healthy), (None, Some(true)));
    assert_eq!(finds(&client).await, 1);
    let listed = client.list_agents(ListQuery::all().healthy(true)).await.unwrap().agents;
    assert_eq!((listed.len(), &listed[0].maintenance), (1, &None));
    assert_eq!(client.get_stats().await.unwrap().maintenance_agents, 0);
    server.shutdown().await;
}

async fn maintenance_is_replaced_and_ended_and_told_each_time(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    client.register(&agent("a", "work")).await.unwrap();
    let mut watch = watch(&client).await;
    let first = client.set_maintenance("a", &request().duration(NEVER)).await.unwrap();
    let second = client.set_maintenance("a", &MaintenanceRequest::new("more")).await.unwrap();
    assert_eq!(second.maintenance.as_ref().map(|one| (&*one.reason, one.until)), Some(("more", None)));
    let ended = client.end_maintenance("a").await.unwrap();
    assert_eq!((&ended.maintenance, ended.healthy), (&None, Some(true)));
    // There is none any more: that changes nothing.
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

async fn maintenance_of_a_process_ends_with_it(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    let drain = async |instance_id: &str, lived| {
        client.register(&owned(instance_id, lived)).await.unwrap();
        let request = MaintenanceRequest::new("draining").instance_id(instance_id);
        let set = client.set_maintenance("a", &request).await.unwrap().maintenance.unwrap();
        assert_eq!(set.instance_id.as_deref(), Some(instance_id));
        // The process itself may register as often as it likes.
        client.register(&owned(instance_id, lived)).await.unwrap();
        let again = client.register(&owned(instance_id, lived).metadata("new", true)).await.unwrap();
        assert_eq!(again.maintenance, Some(set));
    };
    let mut watch = watch(&client).await;
    // It is shut down.
    drain("one", Duration::from_secs(50)).await;
    let gone = client.update_status_with("a", &StatusUpdate::shut_down("one")).await.unwrap();
    assert_eq!(gone.maintenance, None);
    // Another one takes over.
    drain("two", Duration::from_secs(40)).await;
    let next = client.register(&owned("three", Duration::from_secs(1))).await.unwrap();
    assert_eq!((next.maintenance, next.healthy), (None, Some(true)));
    // It was killed, and started again under its name.
    drain("four", Duration::from_millis(500)).await;
    let restarted = client.register(&owned("four", Duration::ZERO).metadata("new", true)).await.unwrap();
    assert_eq!((restarted.maintenance, restarted.healthy), (None, Some(true)));
    assert_eq!(finds(&client).await, 1);
    // The same without any other change of the registration.
    let request = MaintenanceRequest::new("draining").instance_id("four");
    client.set_maintenance("a", &request).await.unwrap();
    let restarted = client.register(&owned("four", Duration::ZERO).metadata("new", true)).await.unwrap();
    assert_eq!(restarted.maintenance, None);
    // One that no instance names has another process behind it, too.
    client.set_maintenance("a", &request).await.unwrap();
    assert_eq!(client.register(&agent("a", "work")).await.unwrap().maintenance, None);
    // The last change was told.
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

async fn only_the_owner_of_the_id_takes_its_own_process_out(database: Database) {
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

/// An operator takes the agent out; then its process is restarted, and drains itself before.
async fn a_process_does_not_shorten_the_maintenance_of_its_agent(database: Database) {
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

async fn a_removed_agent_comes_back_without_maintenance(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    client.register(&agent("a", "work")).await.unwrap();
    client.set_maintenance("a", &request()).await.unwrap();
    client.deregister("a").await.unwrap();
    assert_eq!(client.register(&agent("a", "work")).await.unwrap().maintenance, None);
    assert_eq!(finds(&client).await, 1);
    server.shutdown().await;
}

async fn bad_requests_are_refused_with_all_their_fields(database: Database) {
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

async fn stored(database: &Database) -> Option<String> {
    const QUERY: &str = "SELECT CAST(maintenance AS text) FROM agent_registry WHERE agent_id = 'a'";
    database.value::<Option<String>>(QUERY).await
}

async fn the_end_of_maintenance_is_written_down_and_told_once(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    client.register(&agent("a", "work")).await.unwrap();
    let mut watch = watch(&client).await;
    let set = client.set_maintenance("a", &request().duration(SHORT)).await.unwrap();
    assert!(stored(&database).await.is_some());
    eventually("the end is written down", async || stored(&database).await.is_none()).await;
    let busy = client.update_status("a", AgentStatus::Busy).await.unwrap();
    assert!(next_change(&mut watch).await.maintenance.is_some());
    let over = next_change(&mut watch).await;
    assert_eq!((&over.maintenance, over.healthy), (&None, Some(true)));
    assert_eq!(over.revision, set.revision.map(|revision| revision + 1));
    assert_eq!(next_change(&mut watch).await.revision, busy.revision, "nothing in between");
    server.shutdown().await;
}

async fn maintenance_survives_a_restart(database: Database) {
    let server = database.start().await;
    client(&server).register(&agent("a", "work")).await.unwrap();
    let set = client(&server).set_maintenance("a", &request().duration(NEVER)).await.unwrap();
    server.shutdown().await;
    let server = database.start().await;
    let client = client(&server);
    assert_eq!(client.get_agent("a").await.unwrap(), set);
    assert_eq!(finds(&client).await, 0);
    assert_eq!(client.end_maintenance("a").await.unwrap().maintenance, None);
    server.shutdown().await;
}

async fn maintenance_counts_down_while_the_server_is_down(database: Database) {
    let server = database.start().await;
    client(&server).register(&agent("a", "work")).await.unwrap();
    client(&server).set_maintenance("a", &request().duration(Duration::from_millis(1))).await.unwrap();
    client(&server).set_maintenance("a", &request().duration(SHORT)).await.unwrap();
    server.shutdown().await;
    tokio::time::sleep(SHORT).await;
    let server = database.start_with(|config| config.sweep_interval = NEVER).await;
    assert!(client(&server).check_health("a").await.unwrap().is_healthy());
    assert_eq!(finds(&client(&server)).await, 1);
    server.shutdown().await;
}

async fn a_token_allows_maintenance_of_its_own_agents(database: Database) {
    let (file, tokens) =
        File::new(&["scope = \"read\"", "scope = \"agent\"\nagents = [\"a\"]", "scope = \"admin\""]);
    let server = database.start_with(|config| config.tokens_file = Some(file.path.clone())).await;
    let [reader, own, admin] =
        [0, 1, 2].map(|number: usize| client_builder(server.url()).token(&*tokens[number]).build().unwrap());
    admin.register(&agent("a", "work")).await.unwrap();
    admin.register(&agent("b", "work")).await.unwrap();
    for (client, id) in [(&reader, "a"), (&own, "b")] {
        let denied =
            [client.set_maintenance(id, &request()).await.err(), client.end_maintenance(id).await.err()];
        for error in denied {
            assert!(matches!(error, Some(Error::Denied { status: 403, .. })), "{error:?}");
        }
    }
    assert_eq!(admin.get_stats().await.unwrap().maintenance_agents, 0);
    for (client, id) in [(&own, "a"), (&admin, "b")] {
        assert!(client.set_maintenance(id, &request()).await.unwrap().maintenance.is_some());
    }
    assert!(admin.end_maintenance("a").await.unwrap().maintenance.is_none());
    server.shutdown().await;
}

/// Another program writes the column.
async fn an_edited_maintenance_is_adopted(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    client.register(&agent("a", "work")).await.unwrap();
    client.register(&agent("b", "work")).await.unwrap();
    let mut watch = watch(&client).await;
    database
        .execute(
            r#"UPDATE agent_registry SET maintenance = '{"reason": "by hand", "since": "2026-11-24T09:31:00.456Z"}'
               WHERE agent_id = 'a'"#,
        )
        .await;
    // Every change of an agent looks at its row.
    client.update_status("a", AgentStatus::Active).await.unwrap();
    let told = next_change(&mut watch).await;
    assert_eq!(told.maintenance.as_ref().map(|maintenance| &*maintenance.reason), Some("by hand"));
    assert_eq!(client.get_agent("a").await.unwrap(), *told);
    server.shutdown().await;

    database.execute(r#"UPDATE agent_registry SET maintenance = '{"reason": 7}' WHERE agent_id = 'a'"#).await;
    let server = database.start().await;
    let client = impatient_client(&server);
    assert!(matches!(client.get_agent("a").await, Err(Error::NotFound { .. })));
    assert_eq!(client.get_agent("b").await.unwrap().maintenance, None);
    // It registers again, without what nobody can read.
    assert_eq!(client.register(&agent("a", "work")).await.unwrap().maintenance, None);
    server.shutdown().await;
}

async fn pair(database: &Database) -> (Registry, Registry) {
    (database.start().await, database.start().await)
}

async fn replicas_agree_about_maintenance(database: Database) {
    let (one, two) = pair(&database).await;
    let (first, second) = (client(&one), client(&two));
    first.register(&owned("one", Duration::from_secs(10))).await.unwrap();
    eventually("the other knows it", async || second.get_agent("a").await.is_ok()).await;
    let mut watch = watch(&second).await;
    let directory = Directory::follow(&second);
    directory.ready().await.unwrap();
    let set = first.set_maintenance("a", &request().duration(SHORT)).await.unwrap();
    let told = next_change(&mut watch).await;
    assert_eq!((&told.maintenance, told.healthy), (&set.maintenance, Some(false)));
    let is_out = async || second.get_agent("a").await.unwrap().maintenance == set.maintenance;
    eventually("the other shows it", is_out).await;
    let is_told = async || directory.get("a").is_some_and(|agent| agent.maintenance.is_some());
    eventually("the directory knows it", is_told).await;
    assert_eq!((finds(&second).await, directory.search("work").len()), (0, 0));
    let orchestrator = Orchestrator::builder(second.clone()).directory(directory.clone()).build();
    let error = orchestrator.find_best_agent("work").await.unwrap_err();
    assert_eq!(error.skipped()[0].reason, SkipReason::Maintenance);
    // Heartbeats through the other one leave it.
    second.heartbeat_with("a", &Heartbeat::default().instance_id("one")).await.unwrap();

    let over = next_change(&mut watch).await;
    assert_eq!((&over.maintenance, over.healthy), (&None, Some(true)));
    let is_back = async || directory.get("a").is_some_and(|agent| agent.maintenance.is_none());
    eventually("the directory has it back", is_back).await;
    orchestrator.find_best_agent("work").await.unwrap();
    let busy = first.update_status("a", AgentStatus::Busy).await.unwrap();
    assert_eq!(over.revision, set.revision.map(|revision| revision + 1));
    assert_eq!(next_change(&mut watch).await.revision, busy.revision, "the end was told once");
    one.shutdown().await;
    two.shutdown().await;
}

/// A rolling upgrade.
async fn an_older_servers_write_leaves_the_maintenance_in_the_row(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    client.register(&agent("a", "work")).await.unwrap();
    let set = client.set_maintenance("a", &request()).await.unwrap();
    database.make_busy_as_an_older_server().await;
    let is_busy = async || client.get_agent("a").await.unwrap().status == AgentStatus::Busy;
    eventually("the change is followed", is_busy).await;
    // The next change of the agent shows what its row says; without one, the comparison of all rows does within a minute.
    client.register(&agent("a", "work")).await.unwrap();
    assert_eq!(maintenance_of(&client).await, set.maintenance);
    server.shutdown().await;
}
