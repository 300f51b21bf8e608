//! Agents are the same after an export and an import.

use std::time::Duration;

use registry_sdk::contract::{
    AgentStatus, Capability, MaintenanceRequest, ProbeMode, Registration, Timestamp,
};
use registry_sdk::internal::RequestBody;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::support::{Database, agents, client, export, import_well, serve};

/// More than three pages of an export, and more than one page of a list.
const AGENTS: u32 = 3_100;

/// Longer than a test takes.
const DAY: Duration = Duration::from_secs(86_400);

/// Returns a different agent for each number.
fn registration(number: u32) -> Registration {
    let mut agent = Registration::new(
        format!("agent-{number:04}"),
        format!("Agent „{number}“ 审查\n🦀"),
        "http://[::1]:8000/a",
    )
    .status(AgentStatus::ALL[number as usize % 3])
    .metadata("number", number)
    .metadata("ratio", f64::from(number) / 7.0)
    .metadata("large", 9_007_199_254_740_993_u64)
    .metadata("nested", json!({"a.b": [null, true, {"": "\u{2028}\t\"\\"}], "tiny": 1e-300}));
    for index in 0..number % 4 {
        let mut capability = Capability::new(format!("work-{index}"));
        if index > 0 {
            capability =
                capability.description("Does it").cost_estimate("~10 tokens").tag("rust").tag("fast");
        }
        if index > 1 {
            capability = capability.title("Work").example("Do this").example("Do „that“");
        }
        agent = agent.capability(capability);
    }
    if number.is_multiple_of(2) {
        agent = agent.health_path("/healthz").probe(if number.is_multiple_of(4) {
            ProbeMode::On
        } else {
            ProbeMode::Off
        });
    }
    if number.is_multiple_of(3) {
        agent = agent.heartbeat_interval(Duration::from_millis(u64::from(number) + 1));
    }
    if number.is_multiple_of(5) {
        agent = agent.instance_id(format!("process-{number}")).instance_age(Duration::from_secs(1));
    }
    agent
}

fn maintenance(number: u32) -> Option<MaintenanceRequest> {
    let request = MaintenanceRequest::new(format!("disk {number}\n\u{1b}[31m"));
    match number % 40 {
        0 => Some(request),
        1 => Some(request.duration(DAY)),
        _ => None,
    }
}

async fn fill(url: &str) {
    let (client, mut registering) = (client(url), JoinSet::new());
    for number in 0..AGENTS {
        let client = client.clone();
        registering.spawn(async move {
            let registered = client.register(&registration(number)).await.unwrap();
            if let Some(request) = maintenance(number) {
                client.set_maintenance(&registered.agent_id, &request).await.unwrap();
            }
        });
        if registering.len() == 32 {
            registering.join_next().await.unwrap().unwrap();
        }
    }
    while registering.join_next().await.transpose().unwrap().is_some() {}
}

/// Returns the lines without the end of a maintenance, which moves by the time that the import took.
fn comparable(lines: &[String]) -> Vec<String> {
    let mut agents = agents(lines);
    for agent in agents.values_mut() {
        if let Some(until) = agent.get_mut("maintenance").and_then(|maintenance| maintenance.get_mut("until"))
        {
            let time: Timestamp = serde_json::from_value(until.take()).unwrap();
            let left = time.since(Timestamp::from(std::time::SystemTime::now()));
            assert!(left > DAY / 2 && left <= DAY, "{left:?}");
        }
    }
    agents.into_values().map(|agent| agent.to_string()).collect()
}

async fn comes_back_the_same(from: Database, to: Database) {
    let (source, target) = (serve(&from).await, serve(&to).await);
    fill(&source.url()).await;
    let exported = export(&source.url());
    let count = AGENTS as usize;
    assert_eq!(exported.len(), count + 2);
    assert!(exported[0].starts_with("{\"agent_registry_export\":1,\"exported_at\":\""), "{}", exported[0]);
    assert_eq!(exported[count + 1], format!("{{\"agents_exported\":{count}}}"));
    assert!(exported[1].starts_with("{\"agent_id\":\"agent-0000\","), "{}", exported[1]);
    assert!(exported[1..=count].is_sorted(), "not ordered by id");
    for (line, number) in exported[1..=count].iter().zip(0..) {
        check(&serde_json::from_str(line).unwrap(), number);
    }
    let file = exported.join("\n");
    assert_eq!(import_well(&target.url(), &file, &[]), json!({"imported": count}));
    assert_eq!(comparable(&export(&target.url())), comparable(&exported));
    // A second import changes nothing.
    let revision = client(&target.url()).list_agents(registry_sdk::ListQuery::all()).await.unwrap();
    assert_eq!(import_well(&target.url(), &file, &[]), json!({"already_there": count}));
    assert_eq!(client(&target.url()).list_agents(registry_sdk::ListQuery::all()).await.unwrap(), revision);
    source.shutdown().await;
    target.shutdown().await;
}

/// Checks that a line has exactly what the agent registered.
fn check(line: &Value, number: u32) {
    let mut expected = registration(number);
    (expected.instance_id, expected.instance_age) = (None, None);
    let read = Registration::from_json(line.to_string().as_bytes()).unwrap().unwrap();
    assert_eq!(read, expected);
    let known = [
        "agent_id",
        "agent_name",
        "base_url",
        "health_path",
        "probe",
        "capabilities",
        "status",
        "metadata",
        "heartbeat_interval_seconds",
        "maintenance",
    ];
    let fields = line.as_object().unwrap();
    assert!(fields.keys().all(|name| known.contains(&&**name)), "{line}");
    let reason = maintenance(number).map(|request| json!(request.reason));
    assert_eq!(
        fields.get("maintenance").map(|maintenance| &maintenance["reason"]),
        reason.as_ref(),
        "{line}"
    );
    let until = fields.get("maintenance").and_then(|maintenance| maintenance.get("until"));
    assert_eq!(
        until.is_some(),
        maintenance(number).is_some_and(|request| request.duration.is_some()),
        "{line}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_come_back_the_same_from_sqlite_to_postgres() {
    comes_back_the_same(Database::sqlite(), Database::postgres().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_come_back_the_same_from_postgres_to_sqlite() {
    comes_back_the_same(Database::postgres().await, Database::sqlite()).await;
}
