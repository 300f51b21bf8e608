//! Several processes with one agent id: which process owns the id, and the tag of its registration.

mod ownership;
mod replicas;
mod restarts;
mod shutdowns;
mod tags;

use std::time::Duration;

use registry_sdk::RegistryClient;
use registry_sdk::contract::{AgentRecord, AgentStatus, Heartbeat, Problem, Registration, StatusUpdate};
use reqwest::Method;
use reqwest::header::CONTENT_TYPE;
use serde_json::Value;

use crate::support::{Registry, agent};

/// Returns a registration of the agent `a` by a process with an age in minutes. Ages differ so much that delayed requests do not
/// change the order of the processes.
fn process(instance_id: &str, age: u64) -> Registration {
    agent("a", "work").instance_id(instance_id).instance_age(Duration::from_secs(age * 60))
}

async fn owner_of(client: &RegistryClient, agent_id: &str) -> Option<String> {
    client.get_agent(agent_id).await.unwrap().instance_id
}

async fn is_accepted(client: &RegistryClient, registration: &Registration) -> bool {
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

/// Returns whether heartbeats and statuses of an instance are accepted.
async fn accepts_requests_of(client: &RegistryClient, instance_id: &str) -> bool {
    let beat = client.heartbeat_with("a", &Heartbeat::default().instance_id(instance_id)).await;
    let status = StatusUpdate::new(AgentStatus::Active).instance_id(instance_id);
    let status = client.update_status_with("a", &status).await;
    assert_eq!(beat.is_ok(), status.is_ok());
    let is_accepted = beat.is_ok();
    for error in [beat.err(), status.err()].into_iter().flatten() {
        assert!(error.is_superseded(), "{error}");
    }
    is_accepted
}

/// Returns the record of the agent. A rejected request changes nothing in it, including the revision.
async fn visible(client: &RegistryClient) -> AgentRecord {
    client.get_agent("a").await.unwrap()
}

/// Sends a request whose response must be a problem.
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

/// Registers more processes than an agent's row remembers, concurrently and with alternating clients, and sends their heartbeats.
async fn register_many_at_once(clients: &[RegistryClient]) {
    // The youngest process is neither the first nor the last.
    let ages = [9, 4, 7, 12, 2, 10, 5, 1, 8, 3, 11, 6];
    let all: Vec<_> = ages
        .iter()
        .zip(clients.iter().cycle())
        .map(|(age, client)| {
            let (client, age) = (client.clone(), *age);
            tokio::spawn(async move {
                let name = format!("aged-{age}");
                is_accepted(&client, &process(&name, age * 1_000)).await;
                // The result depends on the owner at that time.
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
