//! Interrupted imports of agents in maintenance, which take several requests: a second import finishes exactly those.

use std::slice;
use std::time::Duration;

use registry_sdk::RegistryClient;
use registry_sdk::contract::{AgentStatus, MaintenanceRequest};
use registry_sdk::testing::MockRegistry;
use serde_json::value::to_raw_value;
use serde_json::{Value, json};

use super::support::{agent, client, eventually, file_of, import_well, line_with, scripted, writes};

/// Returns an agent in maintenance for each status.
fn lines() -> Vec<Value> {
    AgentStatus::ALL
        .iter()
        .map(|status| {
            let more = json!({
                "status": status, "metadata": {"x": 1}, "maintenance": {"reason": "disk"}, "card": "{\"name\":  \"A\"}",
            });
            line_with(status.as_str(), more)
        })
        .collect()
}

/// Returns the writes that import one agent.
async fn steps(line: &Value) -> Vec<(String, String)> {
    let registry = MockRegistry::start().await;
    assert_eq!(import_well(&registry.url(), &file_of(slice::from_ref(line)), &[]), json!({"imported": 1}));
    writes(&registry)
}

/// Repeats writes at another registry.
async fn repeat(client: &RegistryClient, steps: &[(String, String)]) {
    for (request, body) in steps {
        let body: Value = serde_json::from_str(body).unwrap();
        match request.split('/').collect::<Vec<_>>()[..] {
            ["POST ", "register"] => {
                client.register_raw(&to_raw_value(&body).unwrap()).await.unwrap();
            }
            ["PUT ", "agents", id, "maintenance"] => {
                let request = MaintenanceRequest::new(body["reason"].as_str().unwrap());
                client.set_maintenance(id, &request).await.unwrap();
            }
            _ => panic!("{request} is no step of an import"),
        }
    }
}

/// Interrupted after any number of writes.
async fn finished(url: &str) {
    let client = client(url);
    for line in lines() {
        let (id, file, steps) =
            (line["agent_id"].as_str().unwrap(), file_of(slice::from_ref(&line)), steps(&line).await);
        for count in 0..steps.len() {
            repeat(&client, &steps[..count]).await;
            assert_eq!(import_well(url, &file, &[]), json!({"imported": 1}), "{id} after {count}");
            let record = client.get_agent(id).await.unwrap();
            assert_eq!((record.status.as_str(), record.instance_id), (id, None), "after {count}");
            assert_eq!(record.maintenance.unwrap().reason, "disk", "{id} after {count}");
            assert_eq!(client.get_card(id).await.unwrap().as_str(), r#"{"name":  "A"}"#);
            assert_eq!(import_well(url, &file, &[]), json!({"already_there": 1}), "{id} after {count}");
            client.deregister(id).await.unwrap();
        }
    }
}

/// Since then, an operator has resumed the agent or set it offline.
async fn left_alone_after_an_operators_change(url: &str) {
    let (client, file) = (client(url), file_of(&lines()));
    assert_eq!(import_well(url, &file, &[]), json!({"imported": 3}));
    for status in AgentStatus::ALL {
        client.end_maintenance(status.as_str()).await.unwrap();
    }
    client.update_status("busy", AgentStatus::Offline).await.unwrap();
    assert_eq!(import_well(url, &file, &[]), json!({"already_there": 3}));
    for (id, status) in
        [("active", AgentStatus::Active), ("busy", AgentStatus::Offline), ("offline", AgentStatus::Offline)]
    {
        let record = client.get_agent(id).await.unwrap();
        assert_eq!((record.status, record.maintenance), (status, None), "{id}");
    }
}

/// The agent's own process, of any age, registers after the interruption.
async fn owned_by_its_process(url: &str) {
    let client = client(url);
    let line = &lines()[0];
    let (id, file, steps) =
        (line["agent_id"].as_str().unwrap(), file_of(slice::from_ref(line)), steps(line).await);
    let year = Duration::from_secs(365 * 86_400);
    for age in [None, Some(Duration::ZERO), Some(year), Some(30 * year)] {
        for count in 1..steps.len() {
            repeat(&client, &steps[..count]).await;
            let mut process = agent(id).instance_id("process");
            process.instance_age = age;
            let registered = client.register(&process).await.unwrap();
            assert_eq!(registered.instance_id.as_deref(), Some("process"), "{age:?} after {count}");
            // The maintenance that the interrupted import has set remains.
            assert_eq!(registered.maintenance.is_some(), count > 1, "{age:?} after {count}");
            assert_eq!(import_well(url, &file, &[]), json!({"already_there": 1}), "{age:?} after {count}");
            let record = client.get_agent(id).await.unwrap();
            assert_eq!(record.instance_id.as_deref(), Some("process"));
            assert_eq!(record.maintenance.is_some(), count > 1, "{age:?} after {count}");
            client.deregister(id).await.unwrap();
        }
    }
}

/// Makes a test on both databases and on the mock of every named `async fn(&str)`, which takes the registry's URL.
macro_rules! on_every_registry {
    ($($name:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                let database = test_support::Database::sqlite();
                let server = super::super::support::serve(&database).await;
                super::$name(&server.url()).await;
                server.shutdown().await;
            })*
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                let database = test_support::Database::postgres().await;
                let server = super::super::support::serve(&database).await;
                super::$name(&server.url()).await;
                server.shutdown().await;
            })*
        }
        mod mock {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name(&registry_sdk::testing::MockRegistry::start().await.url()).await;
            })*
        }
    };
}

on_every_registry!(finished, left_alone_after_an_operators_change, owned_by_its_process);

/// The agent's own process registers between two requests of an import.
#[test]
fn agent_that_registers_during_its_import_is_unchanged() {
    let mut is_there = false;
    let url = scripted(move |request, body| {
        let record = line_with("a", json!({"instance_id": "process"})).to_string();
        match request.split(' ').next().unwrap() {
            "GET" if is_there => ("200 OK", record),
            "GET" => ("404 Not Found", json!({"detail": "no such agent"}).to_string()),
            "POST" if body.contains("instance_age_seconds") => {
                is_there = true;
                ("409 Conflict", json!({"detail": "owned by another process"}).to_string())
            }
            _ => ("500 Internal Server Error", json!({"detail": "never asked for"}).to_string()),
        }
    });
    let file = file_of(&[line_with("a", json!({"maintenance": {"reason": "disk"}}))]);
    assert_eq!(import_well(&url, &file, &[]), json!({"already_there": 1}));
}

/// An imported agent without a process goes offline. A second import does not make it active again.
#[tokio::test(flavor = "multi_thread")]
async fn agent_that_went_offline_is_unchanged() {
    let registry = MockRegistry::builder().heartbeat_timeout(Duration::from_millis(100)).start().await;
    let file = file_of(&[line_with("a", json!({"maintenance": {"reason": "disk"}}))]);
    assert_eq!(import_well(&registry.url(), &file, &[]), json!({"imported": 1}));
    eventually("it is offline", async || registry.agent("a").unwrap().status == AgentStatus::Offline).await;
    assert_eq!(import_well(&registry.url(), &file, &[]), json!({"already_there": 1}));
    assert_eq!(registry.agent("a").unwrap().status, AgentStatus::Offline);
}
