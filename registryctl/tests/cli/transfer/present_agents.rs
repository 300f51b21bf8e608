//! Import of agents that are already registered, and of maintenance.

use std::time::{Duration, SystemTime};

use registry_sdk::contract::{AgentStatus, MaintenanceRequest, Timestamp};
use registry_sdk::testing::MockRegistry;
use serde_json::{Value, json};

use super::support::{Ended, agent, file_of, import, import_well, line, line_with, writes};

fn in_an_hour() -> Timestamp {
    Timestamp::from(SystemTime::now()).saturating_add(Duration::from_secs(3_600))
}

fn in_maintenance(agent_id: &str) -> Value {
    line_with(agent_id, json!({"maintenance": {"reason": "disk"}}))
}

#[tokio::test(flavor = "multi_thread")]
async fn registered_agents_are_unchanged() {
    let registry = MockRegistry::start().await;
    registry.client().register(&agent("a").status(AgentStatus::Busy)).await.unwrap();
    let before = registry.agent("a");
    let file = file_of(&[line("a"), line("b")]);
    assert_eq!(import_well(&registry.url(), &file, &[]), json!({"imported": 1, "already_there": 1}));
    assert_eq!(registry.agent("a"), before);
    assert_eq!(registry.agent("b").unwrap().agent_name, "Agent");
}

#[tokio::test(flavor = "multi_thread")]
async fn replace_updates_registered_agents() {
    let registry = MockRegistry::start().await;
    let client = registry.client();
    for agent_id in ["a", "b", "c"] {
        client.register(&agent(agent_id).instance_id("process").status(AgentStatus::Busy)).await.unwrap();
    }
    for agent_id in ["b", "c"] {
        client.set_maintenance(agent_id, &MaintenanceRequest::new("network")).await.unwrap();
    }
    let file = file_of(&[in_maintenance("a"), in_maintenance("b"), line("c"), line("d")]);
    let counts = import_well(&registry.url(), &file, &["--replace"]);
    assert_eq!(counts, json!({"imported": 1, "replaced": 3}));
    for (agent_id, reason) in [("a", Some("disk")), ("b", Some("disk")), ("c", None), ("d", None)] {
        let record = registry.agent(agent_id).unwrap();
        assert_eq!(
            (&*record.agent_name, record.status, record.instance_id),
            ("Agent", AgentStatus::Active, None)
        );
        assert_eq!(record.maintenance.map(|maintenance| maintenance.reason).as_deref(), reason, "{agent_id}");
    }
}

/// The operator has to decide: the agent may have been resumed, or have registered itself before the import.
#[tokio::test(flavor = "multi_thread")]
async fn registered_agents_without_their_maintenance_are_named() {
    let registry = MockRegistry::start().await;
    let client = registry.client();
    for agent_id in ["a", "b", "c"] {
        client.register(&agent(agent_id)).await.unwrap();
    }
    client.set_maintenance("b", &MaintenanceRequest::new("network")).await.unwrap();
    let file = file_of(&[in_maintenance("a"), in_maintenance("b"), line("c")]);
    let Ended { code, reasons, .. } = import(&registry.url(), &file, &[]);
    assert_eq!(code, Some(0));
    assert!(
        reasons.contains("1 agent already registered, so the maintenance in the file was not begun"),
        "{reasons}"
    );
    assert!(reasons.ends_with(": a\n"), "{reasons}");
    assert_eq!(registry.agent("a").unwrap().maintenance, None);
    assert_eq!(registry.agent("b").unwrap().maintenance.unwrap().reason, "network");
}

#[tokio::test(flavor = "multi_thread")]
async fn agent_in_maintenance_is_never_given_work() {
    let registry = MockRegistry::start().await;
    let until = in_an_hour();
    let statuses = ["active", "busy", "offline"];
    for status in statuses {
        let maintenance = json!({"reason": "disk", "until": until});
        let file = file_of(&[line_with(status, json!({"status": status, "maintenance": maintenance}))]);
        let before = writes(&registry).len();
        assert_eq!(import_well(&registry.url(), &file, &[]), json!({"imported": 1}));
        let sent = writes(&registry).split_off(before);
        let requests: Vec<_> = sent.iter().map(|(request, _)| &**request).collect();
        assert_eq!(
            requests,
            ["POST /register", &format!("PUT /agents/{status}/maintenance"), "POST /register"]
        );
        let [first, last] = [0, 2].map(|step| serde_json::from_str::<Value>(&sent[step].1).unwrap());
        assert_eq!((&first["status"], first.get("maintenance")), (&json!("offline"), None));
        assert_eq!(last, line_with(status, json!({"status": status})));
        let record = registry.agent(status).unwrap();
        assert_eq!(record.status.as_str(), status);
        let maintenance = record.maintenance.unwrap();
        let late = maintenance.until.unwrap().since(until).max(until.since(maintenance.until.unwrap()));
        assert!(maintenance.reason == "disk" && late < Duration::from_secs(300), "{late:?}");
    }
}

/// The operator has to look after them.
#[tokio::test(flavor = "multi_thread")]
async fn draining_agents_are_skipped_and_named() {
    let registry = MockRegistry::start().await;
    let own = json!({"maintenance": {"reason": "draining", "instance_id": "process"}});
    let lines: Vec<Value> = (0..25).map(|number| line_with(&format!("a{number:02}"), own.clone())).collect();
    let few = file_of(&[lines[0].clone(), line("b"), lines[1].clone()]);
    let Ended { code, reasons, .. } = import(&registry.url(), &few, &[]);
    assert_eq!(code, Some(0));
    assert!(
        reasons.contains(
            "skipped 2 agents whose process was draining before a shutdown when the file was exported: "
        ) && reasons.ends_with(": a00, a01\n"),
        "{reasons}"
    );
    let Ended { code, said, reasons } = import(&registry.url(), &file_of(&lines), &[]);
    assert_eq!(code, Some(0));
    assert_eq!(serde_json::from_str::<Value>(&said).unwrap()["draining"], 25);
    assert!(reasons.contains(": a00, a01, ") && reasons.ends_with(", a19 and 5 more\n"), "{reasons}");
}

#[tokio::test(flavor = "multi_thread")]
async fn maintenance_that_is_over_is_not_imported() {
    let registry = MockRegistry::start().await;
    let over = json!({"reason": "disk", "until": "2026-01-01T00:00:00Z"});
    // It may have been the agent's own: its process has drained, or was restarted.
    let own = json!({"reason": "draining", "until": "2026-01-01T00:00:00Z", "instance_id": "process"});
    let file =
        file_of(&[line_with("a", json!({"maintenance": over})), line_with("b", json!({"maintenance": own}))]);
    assert_eq!(import_well(&registry.url(), &file, &[]), json!({"imported": 2}));
    for agent_id in ["a", "b"] {
        let record = registry.agent(agent_id).unwrap();
        assert_eq!((record.status, record.maintenance), (AgentStatus::Active, None));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_of_another_registry_are_not_sent() {
    let registry = MockRegistry::start().await;
    let own = json!({
        "registered_at": "2026-01-01T00:00:00Z", "last_heartbeat": "2026-01-01T00:00:00Z", "revision": 7, "load": 0.5,
        "healthy": true, "registration_tag": "x", "changed_by": "team-a", "instance_id": "process", "instance_age_seconds": 5, "active_tasks": 1,
        "heartbeat_timeout_seconds": 60,
    });
    assert_eq!(import_well(&registry.url(), &file_of(&[line_with("a", own)]), &[]), json!({"imported": 1}));
    let sent: Value = serde_json::from_str(&writes(&registry)[0].1).unwrap();
    assert_eq!(sent, line("a"));
}
