//! Several processes with one agent id: which of them owns it, and the tag of what it registered.

use std::time::{Duration, Instant};

use registry_sdk::contract::{
    AgentRecord, AgentStatus, Capability, Heartbeat, Owner, Problem, Registration, StatusUpdate,
};
use registry_sdk::{ListQuery, RegistryClient};
use reqwest::header::CONTENT_TYPE;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{
    Database, Registry, agent, client, eventually, on_both_databases, on_every_registry, on_postgres,
};

on_every_registry!(
    younger_process_owns_the_id_in_either_order,
    youngest_of_many_at_once_owns_the_id,
    start_of_a_process_is_noted_once_and_never_moved,
    registration_without_an_age_is_always_granted,
    owner_past_its_deadline_gives_way,
    offline_owner_that_is_heard_keeps_the_id,
    conflict_names_the_owner,
    instance_that_was_shut_down_changes_nothing_until_it_starts_again,
    instance_that_was_shut_down_is_not_heard_though_the_agent_is_back,
    instance_that_was_shut_down_comes_back_without_an_age,
    shut_down_instance_gives_way_to_an_older_one,
    end_of_an_offline_agent_is_recorded,
    end_of_a_process_that_does_not_own_the_id_is_recorded,
    late_registration_does_not_make_its_process_younger,
    repeated_end_is_granted_and_writes_nothing,
    late_registration_that_says_nothing_new_is_refused,
    final_status_needs_offline_and_an_instance,
    age_needs_an_instance_and_has_limits,
    tag_is_in_every_answer_and_changes_with_the_registration,
);

/// What takes a database, or a restart.
mod lasting {
    use super::*;

    on_both_databases!(
        ownership_survives_a_restart,
        tag_survives_a_restart,
        process_of_an_older_version_is_noted_when_it_registers_again,
    );
}

/// What takes several servers.
mod shared {
    use super::*;

    on_postgres!(
        ownership_decided_on_one_replica_is_obeyed_on_the_other,
        youngest_of_many_on_two_replicas_owns_the_id,
        end_on_one_replica_is_not_undone_by_a_late_request_on_the_other,
    );
}

/// A registration of agent "a", by a process that started so many minutes ago: so far apart that no request is late enough
/// to change the order.
fn process(instance_id: &str, age: u64) -> Registration {
    agent("a", "work").instance_id(instance_id).instance_age(Duration::from_secs(age * 60))
}

async fn owner_of(client: &RegistryClient, agent_id: &str) -> Option<String> {
    client.get_agent(agent_id).await.unwrap().instance_id
}

async fn is_granted(client: &RegistryClient, registration: &Registration) -> bool {
    match client.register(registration).await {
        Ok(record) => {
            assert_eq!(record.instance_id, registration.instance_id);
            true
        }
        Err(error) => {
            assert!(error.is_superseded(), "{error}");
            false
        }
    }
}

/// Whether heartbeats and statuses of an instance are taken.
async fn may_speak(client: &RegistryClient, instance_id: &str) -> bool {
    let beat = client.heartbeat_with("a", &Heartbeat::default().instance_id(instance_id)).await;
    let status = StatusUpdate::new(AgentStatus::Active).instance_id(instance_id);
    let status = client.update_status_with("a", &status).await;
    assert_eq!(beat.is_ok(), status.is_ok());
    let may_speak = beat.is_ok();
    for error in [beat.err(), status.err()].into_iter().flatten() {
        assert!(error.is_superseded(), "{error}");
    }
    may_speak
}

/// The agent as everybody sees it. A refused request changes nothing of it, its revision included.
async fn visible(client: &RegistryClient) -> AgentRecord {
    client.get_agent("a").await.unwrap()
}

/// A request of which the answer is a problem.
async fn problem(server: &Registry, method: Method, path: &str, body: &Value) -> Problem {
    let request = reqwest::Client::new().request(method, format!("{}{path}", server.url())).json(body);
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json", "{status}");
    let problem: Problem = response.json().await.unwrap();
    assert_eq!(problem.status, status);
    problem
}

fn fields(problem: &Problem) -> Vec<&str> {
    let mut fields: Vec<_> = problem.errors.iter().map(|error| error.field.as_str()).collect();
    fields.sort_unstable();
    fields
}

async fn younger_process_owns_the_id_in_either_order(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    assert!(is_granted(&client, &process("old", 60)).await);
    assert!(is_granted(&client, &process("young", 10)).await);
    let before = visible(&client).await;
    assert!(!is_granted(&client, &process("old", 60)).await);
    assert!(!may_speak(&client, "old").await);
    assert_eq!(visible(&client).await, before);
    assert!(may_speak(&client, "young").await);

    client.deregister("a").await.unwrap();
    assert!(is_granted(&client, &process("young", 10)).await);
    assert!(!is_granted(&client, &process("old", 60)).await);
    assert!(!may_speak(&client, "old").await);
    assert!(may_speak(&client, "young").await);
    server.shutdown().await;
}

/// More processes than an agent's row remembers register at once, each with one of the clients in turn, and send heartbeats.
async fn register_many_at_once(clients: &[RegistryClient]) {
    // The youngest is neither the first nor the last.
    let ages = [9, 4, 7, 12, 2, 10, 5, 1, 8, 3, 11, 6];
    let all: Vec<_> = ages
        .iter()
        .zip(clients.iter().cycle())
        .map(|(age, client)| {
            let (client, age) = (client.clone(), *age);
            tokio::spawn(async move {
                let name = format!("aged-{age}");
                is_granted(&client, &process(&name, age * 1_000)).await;
                // Whether it is taken depends on who has the id by then.
                let beat = client.heartbeat_with("a", &Heartbeat::default().instance_id(&name)).await;
                assert!(
                    beat.is_ok() || beat.is_err_and(|error| error.is_superseded() || error.is_not_found())
                );
            })
        })
        .collect();
    for one in all {
        one.await.unwrap();
    }
}

async fn youngest_of_many_at_once_owns_the_id(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    for _ in 0..10 {
        register_many_at_once(std::slice::from_ref(&client)).await;
        assert_eq!(owner_of(&client, "a").await.as_deref(), Some("aged-1"));
        client.deregister("a").await.unwrap();
    }
    server.shutdown().await;
}

async fn start_of_a_process_is_noted_once_and_never_moved(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    assert!(is_granted(&client, &process("one", 5_000)).await);
    assert!(is_granted(&client, &process("one", 0).capability(Capability::new("more"))).await);
    assert!(is_granted(&client, &process("two", 3_000)).await, "one started before two");
    assert!(!is_granted(&client, &process("refused", 4_000)).await);
    assert!(!is_granted(&client, &process("refused", 0)).await, "it was seen with another age");
    assert_eq!(owner_of(&client, "a").await.as_deref(), Some("two"));
    server.shutdown().await;
}

async fn registration_without_an_age_is_always_granted(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    assert!(is_granted(&client, &process("young", 0)).await);
    assert!(is_granted(&client, &agent("a", "work").instance_id("no-age")).await);
    assert!(!is_granted(&client, &process("old", 60)).await, "it counts as started when it was first seen");
    assert!(is_granted(&client, &agent("a", "work")).await, "nor does it need an instance");
    assert!(is_granted(&client, &process("old", 60)).await, "an owner whose start is not known gives way");
    server.shutdown().await;
}

async fn owner_past_its_deadline_gives_way(database: Database) {
    const TIMEOUT: Duration = Duration::from_millis(500);
    let server = database.start_with(|config| config.heartbeat_timeout = TIMEOUT).await;
    let client = client(&server);
    let heard = Instant::now();
    client.register(&process("young", 10)).await.unwrap();
    eventually("the older one gets the id", async || is_granted(&client, &process("old", 60)).await).await;
    assert!(heard.elapsed() >= TIMEOUT, "the owner lived: it was heard {:?} ago", heard.elapsed());
    assert!(!may_speak(&client, "young").await);
    server.shutdown().await;
}

async fn offline_owner_that_is_heard_keeps_the_id(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    client.register(&process("young", 10)).await.unwrap();
    let offline = Heartbeat::default().status(AgentStatus::Offline).instance_id("young");
    client.heartbeat_with("a", &offline).await.unwrap();
    assert!(!is_granted(&client, &process("old", 60)).await);
    client.update_status_with("a", &StatusUpdate::new(AgentStatus::Offline)).await.unwrap();
    assert!(!is_granted(&client, &process("old", 60)).await);
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
    // One that was shut down is told so, and not that another has the id.
    client.update_status_with("a", &StatusUpdate::shut_down("young")).await.unwrap();
    let late = json!({"instance_id": "young"});
    let problem = problem(&server, Method::POST, "/agents/a/heartbeat", &late).await;
    assert_eq!((problem.status, &problem.owner), (409, &owner));
    assert!(problem.detail.contains("shut down"), "{}", problem.detail);
    server.shutdown().await;
}

async fn instance_that_was_shut_down_changes_nothing_until_it_starts_again(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    client.register(&process("one", 10)).await.unwrap();
    let ended = client.update_status_with("a", &StatusUpdate::shut_down("one")).await.unwrap();
    assert_eq!(ended.status, AgentStatus::Offline);
    assert!(!is_granted(&client, &process("one", 10)).await);
    assert!(!is_granted(&client, &process("one", 10).capability(Capability::new("more"))).await);
    let beat = Heartbeat::default().instance_id("one");
    for beat in [beat.clone(), beat.clone().status(AgentStatus::Busy), beat.load(0.5)] {
        assert!(client.heartbeat_with("a", &beat).await.unwrap_err().is_superseded());
    }
    for status in [AgentStatus::Active, AgentStatus::Busy, AgentStatus::Offline] {
        let update = StatusUpdate::new(status).instance_id("one");
        assert!(client.update_status_with("a", &update).await.unwrap_err().is_superseded());
    }
    assert_eq!(visible(&client).await, ended);

    // It started when the clock was past the end: a millisecond is enough.
    eventually("a later start", async || is_granted(&client, &process("one", 0)).await).await;
    assert!(may_speak(&client, "one").await);
    assert_eq!(visible(&client).await.status, AgentStatus::Active);
    server.shutdown().await;
}

async fn instance_that_was_shut_down_is_not_heard_though_the_agent_is_back(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    client.register(&process("one", 10)).await.unwrap();
    client.update_status_with("a", &StatusUpdate::shut_down("one")).await.unwrap();
    // Whoever says no instance is taken as ever.
    assert_eq!(client.heartbeat("a").await.unwrap().status, AgentStatus::Active);
    let back = visible(&client).await;
    assert!(!may_speak(&client, "one").await);
    assert!(!is_granted(&client, &process("one", 10)).await);
    assert_eq!(visible(&client).await, back);
    server.shutdown().await;
}

async fn instance_that_was_shut_down_comes_back_without_an_age(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    client.register(&process("one", 10)).await.unwrap();
    client.update_status_with("a", &StatusUpdate::shut_down("one")).await.unwrap();
    assert!(is_granted(&client, &agent("a", "work").instance_id("one")).await);
    assert!(may_speak(&client, "one").await);
    server.shutdown().await;
}

async fn shut_down_instance_gives_way_to_an_older_one(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    client.register(&process("young", 10)).await.unwrap();
    assert!(!is_granted(&client, &process("old", 60)).await);
    client.update_status_with("a", &StatusUpdate::shut_down("young")).await.unwrap();
    assert!(is_granted(&client, &process("old", 60)).await);
    assert!(!is_granted(&client, &process("young", 10)).await, "a late request");
    assert!(may_speak(&client, "old").await);
    server.shutdown().await;
}

async fn end_of_a_process_that_does_not_own_the_id_is_recorded(database: Database) {
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
    // Nobody owns the id now, and a registration arrives late.
    assert!(!is_granted(&client, &process("old", 61)).await);
    assert_eq!(client.get_agent("a").await.unwrap().status, AgentStatus::Offline);
    server.shutdown().await;
}

async fn late_registration_does_not_make_its_process_younger(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    // It was on its way for a while, so its age is too low. The next one is in time.
    client.register(&process("old", 10)).await.unwrap();
    client.register(&process("old", 60)).await.unwrap();
    client.register(&process("young", 30)).await.unwrap();
    assert!(!is_granted(&client, &process("old", 10)).await);
    assert_eq!(client.get_agent("a").await.unwrap().instance_id.as_deref(), Some("young"));
    server.shutdown().await;
}

async fn end_of_an_offline_agent_is_recorded(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    client.register(&process("one", 10)).await.unwrap();
    client.update_status("a", AgentStatus::Offline).await.unwrap();
    let ended = client.update_status_with("a", &StatusUpdate::shut_down("one")).await.unwrap();
    assert!(!is_granted(&client, &process("one", 10)).await);
    assert!(!may_speak(&client, "one").await);
    assert_eq!(visible(&client).await, ended);
    server.shutdown().await;
}

async fn repeated_end_is_granted_and_writes_nothing(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    client.register(&process("one", 10)).await.unwrap();
    let end = StatusUpdate::shut_down("one");
    let ended = client.update_status_with("a", &end).await.unwrap();
    assert_eq!(client.update_status_with("a", &end).await.unwrap(), ended, "the revision is in it");
    client.register(&process("two", 60)).await.unwrap();
    assert!(client.update_status_with("a", &end).await.unwrap_err().is_superseded(), "two owns the id");
    assert_eq!(visible(&client).await.status, AgentStatus::Active);
    server.shutdown().await;
}

async fn late_registration_that_says_nothing_new_is_refused(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    // Its status is the one that the end sets as well: word for word what the registry has.
    let same = process("one", 10).status(AgentStatus::Offline);
    client.register(&same).await.unwrap();
    let ended = client.update_status_with("a", &StatusUpdate::shut_down("one")).await.unwrap();
    assert!(!is_granted(&client, &same).await);
    assert_eq!(visible(&client).await, ended);
    server.shutdown().await;
}

async fn final_status_needs_offline_and_an_instance(database: Database) {
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
    // Said to be false it is as if it were not there.
    let url = format!("{}/agents/a/status", server.url());
    for body in [json!({"status": "busy", "final": false}), json!({"status": "busy", "final": null})] {
        let answer = reqwest::Client::new().put(&url).json(&body).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{body}");
    }
    assert!(may_speak(&client, "one").await);
    server.shutdown().await;
}

async fn age_needs_an_instance_and_has_limits(database: Database) {
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

async fn tag_is_in_every_answer_and_changes_with_the_registration(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    let registered = client.register(&process("one", 10)).await.unwrap();
    let tag = registered.registration_tag.clone();
    assert!(tag.as_ref().is_some_and(|tag| (1..=64).contains(&tag.len())), "{tag:?}");
    let everywhere = async || {
        let beat = Heartbeat::default().instance_id("one");
        let mut seen = vec![
            client.get_agent("a").await.unwrap().registration_tag,
            client.list_agents(ListQuery::all()).await.unwrap().agents[0].registration_tag.clone(),
            client.update_status("a", AgentStatus::Busy).await.unwrap().registration_tag,
            // One that changes nothing else, and one that does.
            client.heartbeat_with("a", &beat).await.unwrap().registration_tag,
            client.heartbeat_with("a", &beat.status(AgentStatus::Active)).await.unwrap().registration_tag,
        ];
        seen.dedup();
        assert_eq!(seen.len(), 1, "{seen:?}");
        seen.remove(0)
    };
    assert_eq!(everywhere().await, tag);
    let again = client.register(&process("one", 11)).await.unwrap();
    assert_eq!(again.registration_tag, tag, "it says nothing new");
    let changed = client.register(&process("one", 12).capability(Capability::new("more"))).await.unwrap();
    assert_ne!(changed.registration_tag, tag);
    assert_eq!(everywhere().await, changed.registration_tag);
    let back = client.register(&process("one", 13)).await.unwrap();
    assert_eq!(back.registration_tag, tag);
    server.shutdown().await;
}

async fn ownership_survives_a_restart(database: Database) {
    let server = database.start().await;
    let before = client(&server);
    before.register(&process("ended", 90)).await.unwrap();
    before.update_status_with("a", &StatusUpdate::shut_down("ended")).await.unwrap();
    before.register(&process("young", 5_000)).await.unwrap();
    assert!(!is_granted(&before, &process("refused", 7_000)).await);
    server.shutdown().await;

    let server = database.start().await;
    let after = client(&server);
    assert!(!is_granted(&after, &process("refused", 0)).await, "it was seen with another age");
    assert!(!is_granted(&after, &process("old", 9_000)).await);
    assert!(!is_granted(&after, &process("ended", 90)).await, "it was shut down");
    assert!(may_speak(&after, "young").await);
    after.update_status_with("a", &StatusUpdate::shut_down("young")).await.unwrap();
    server.shutdown().await;

    let server = database.start().await;
    let after = client(&server);
    assert!(!may_speak(&after, "young").await);
    assert!(!is_granted(&after, &process("young", 5_000)).await);
    assert!(is_granted(&after, &process("refused", 7_000)).await);
    server.shutdown().await;
}

async fn tag_survives_a_restart(database: Database) {
    // Floats that an inexact parser reads one step off, and text that databases may write otherwise.
    let metadata = json!({
        "z": [2.003_039_774_426_776_2e-253, 7.101_215_824_554_616e260, 51.248_178_375_505_404, -0.0, 1e21],
        "a": {"ünïcödé 🦀": "\u{7f}é\n\"\\/", "deep": {"b": null, "a": [true, {"": 18_446_744_073_709_551_615_u64}]}},
    });
    let full = process("one", 10)
        .capability(Capability::new("two").description("ünïcödé 🦀 \\ \"\n").tag("b").tag("a"))
        .metadata("nested", metadata)
        .heartbeat_interval(Duration::from_nanos(33_333_333_333));
    let server = database.start().await;
    let before = client(&server).register(&full).await.unwrap();
    assert!(before.registration_tag.is_some());
    server.shutdown().await;

    let server = database.start().await;
    let after = client(&server);
    assert_eq!(after.get_agent("a").await.unwrap().registration_tag, before.registration_tag);
    assert_eq!(after.heartbeat("a").await.unwrap().registration_tag, before.registration_tag);
    let again = after.register(&full).await.unwrap();
    assert_eq!(again.registration_tag, before.registration_tag);
    assert_eq!(again.revision, before.revision, "it says nothing new");
    server.shutdown().await;
}

async fn process_of_an_older_version_is_noted_when_it_registers_again(database: Database) {
    let server = database.start().await;
    client(&server).register(&process("young", 10)).await.unwrap();
    server.shutdown().await;
    database.execute("UPDATE agent_registry SET instances = '[]'").await;

    let server = database.start().await;
    let client = client(&server);
    assert!(may_speak(&client, "young").await);
    // What it says is known, but not when it started.
    assert!(is_granted(&client, &process("young", 10)).await);
    assert!(!is_granted(&client, &process("old", 60)).await);
    server.shutdown().await;
}

async fn ownership_decided_on_one_replica_is_obeyed_on_the_other(database: Database) {
    let (one, two) = (database.start().await, database.start().await);
    let (one_client, two_client) = (client(&one), client(&two));
    assert!(is_granted(&one_client, &process("young", 10)).await);
    // At once, whether the other has heard of it or not.
    assert!(!is_granted(&two_client, &process("old", 60)).await);
    assert!(!is_granted(&one_client, &process("old", 0)).await, "the other saw it with another age");
    let known =
        async || two_client.get_agent("a").await.is_ok_and(|agent| agent.status == AgentStatus::Active);
    eventually("the other knows the owner", known).await;
    assert!(may_speak(&two_client, "young").await);

    let ended = one_client.update_status_with("a", &StatusUpdate::shut_down("young")).await.unwrap();
    assert!(!is_granted(&two_client, &process("young", 10)).await);
    let beat = Heartbeat::default().instance_id("young");
    assert!(two_client.heartbeat_with("a", &beat).await.unwrap_err().is_superseded());
    let same = async || visible(&two_client).await == ended;
    eventually("both know the end, and nothing else", same).await;
    assert!(is_granted(&two_client, &process("old", 60)).await);
    assert!(!is_granted(&one_client, &process("young", 10)).await);
    let taken = async || owner_of(&one_client, "a").await.as_deref() == Some("old");
    eventually("the first knows the new owner", taken).await;
    one.shutdown().await;
    two.shutdown().await;
}

async fn youngest_of_many_on_two_replicas_owns_the_id(database: Database) {
    let (one, two) = (database.start().await, database.start().await);
    let clients = [client(&one), client(&two)];
    for _ in 0..10 {
        register_many_at_once(&clients).await;
        for client in &clients {
            let owned = async || {
                client.get_agent("a").await.is_ok_and(|a| a.instance_id.as_deref() == Some("aged-1"))
            };
            eventually("the youngest owns it", owned).await;
        }
        clients[0].deregister("a").await.unwrap();
        let gone = async || clients[1].get_agent("a").await.is_err_and(|error| error.is_not_found());
        eventually("the other knows that it is gone", gone).await;
    }
    one.shutdown().await;
    two.shutdown().await;
}

async fn end_on_one_replica_is_not_undone_by_a_late_request_on_the_other(database: Database) {
    let (one, two) = (database.start().await, database.start().await);
    let (one_client, two_client) = (client(&one), client(&two));
    // Changes on both, so that transactions wait for each other.
    let busy: Vec<_> = [&one_client, &two_client, &one_client, &two_client, &one_client, &two_client]
        .into_iter()
        .zip(0..)
        .map(|(client, number)| {
            let client = client.clone();
            tokio::spawn(async move {
                for round in 0_u64.. {
                    let other = agent(&format!("busy-{number}"), &format!("work-{round}"));
                    if client.register(&other).await.is_err() {
                        break;
                    }
                }
            })
        })
        .collect();
    for round in 0..100 {
        let instance_id = format!("i{round}");
        // Longer than a round takes: what is sent after the end is no later start.
        let process = process(&instance_id, 1_000);
        one_client.deregister("a").await.ok();
        one_client.register(&process).await.unwrap();
        let late = process.clone().capability(Capability::new("more"));
        let end = StatusUpdate::shut_down(&instance_id);
        let (_, ended) =
            tokio::join!(is_granted(&one_client, &late), two_client.update_status_with("a", &end));
        ended.unwrap();
        assert!(!is_granted(&one_client, &process).await, "round {round}");
        // The one that wrote it knows it at once.
        assert_eq!(visible(&two_client).await.status, AgentStatus::Offline, "round {round}");
    }
    for task in busy {
        task.abort();
    }
    one.shutdown().await;
    two.shutdown().await;
}
