//! Registries of a later version: unknown fields survive an export and an import.

use std::sync::mpsc;

use registry_sdk::testing::MockRegistry;
use serde_json::{Value, json};

use super::support::{Ended, agents, export, file_of, import, import_well, line_with, run, scripted};

/// Starts a registry that answers `GET /agents` with a fixed text and `GET` of one agent with 404. Returns its URL and the bodies of
/// registrations.
fn newer_registry(list: String) -> (String, mpsc::Receiver<Value>) {
    let (registered, registrations) = mpsc::channel();
    let url = scripted(move |request, body| {
        if request == "POST /register" {
            registered.send(serde_json::from_str(body).unwrap()).unwrap();
            ("200 OK", body.to_owned())
        } else if request.starts_with("GET /agents?") {
            ("200 OK", list.clone())
        } else {
            ("404 Not Found", json!({"detail": "no such agent"}).to_string())
        }
    });
    (url, registrations)
}

#[test]
fn unknown_fields_and_digits_survive_an_export_and_an_import() {
    let records = r#"[{"agent_id": "a", "agent_name": "A", "base_url": "http://a:80", "status": "active",
        "capabilities": [{"name": "work", "price": {"euro": 0.10}}], "revision": 3, "healthy": true,
        "metadata": {"exact": 0.1000000000000000055511151231257827, "large": 123456789012345678901234567890},
        "region": "eu", "limits": [1.50, null]}]"#;
    let (url, registrations) = newer_registry(records.to_owned());
    let lines = export(&url);
    let expected = concat!(
        r#"{"agent_id":"a","agent_name":"A","base_url":"http://a:80","capabilities":[{"name": "work", "price": {"euro": 0.10}}],"#,
        r#""limits":[1.50, null],"#,
        r#""metadata":{"exact": 0.1000000000000000055511151231257827, "large": 123456789012345678901234567890},"#,
        r#""region":"eu","status":"active"}"#,
    );
    assert_eq!(lines[1], expected);
    assert_eq!(import_well(&url, &lines.join("\n"), &[]), json!({"imported": 1}));
    let sent = registrations.recv().unwrap();
    assert_eq!((&sent["region"], &sent["limits"]), (&json!("eu"), &json!([1.5, null])));
    assert_eq!(sent["capabilities"][0]["price"], json!({"euro": 0.1}));
}

/// A registry may format its responses over several lines.
#[test]
fn agent_is_exported_on_one_line() {
    let record = json!({"agent_id": "a", "agent_name": "A\nB", "base_url": "http://a:80", "status": "busy", "capabilities": []});
    let pretty = serde_json::to_string_pretty(&json!([record])).unwrap().replace('\n', "\r\n");
    let (url, _) = newer_registry(pretty);
    let lines = export(&url);
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert_eq!(agents(&lines)["a"], record);
}

#[test]
fn export_fails_if_the_response_is_not_a_list_of_agents() {
    for list in
        ["<html></html>", "[{}]", "[1]", r#"[{"agent_id": 1}]"#, r#"[{"agent_id": "a", "maintenance": 1}]"#]
    {
        let (url, _) = newer_registry(list.to_owned());
        let Ended { code, said, reasons } = run(&url, &["export"]);
        assert_eq!(code, Some(4), "{list}: {reasons}");
        assert!(!said.contains("agents_exported"), "{said}");
    }
}

/// The request that sets a maintenance has other fields than the maintenance in a record.
#[tokio::test(flavor = "multi_thread")]
async fn unknown_fields_of_a_maintenance_are_exported_and_named_on_import() {
    let maintenance = json!({"reason": "disk", "since": "2026-01-01T00:00:00Z", "ticket": "OPS-1"});
    let record = line_with("a", json!({"maintenance": maintenance, "healthy": false}));
    let (url, _) = newer_registry(json!([record]).to_string());
    let exported = agents(&export(&url))["a"].clone();
    assert_eq!(exported["maintenance"], json!({"reason": "disk", "ticket": "OPS-1"}));
    let registry = MockRegistry::start().await;
    let Ended { code, reasons, .. } = import(&registry.url(), &file_of(&[exported]), &[]);
    assert_eq!(code, Some(0), "{reasons}");
    assert!(reasons.contains("line 2: ignoring the unknown field maintenance.ticket"), "{reasons}");
    assert_eq!(registry.agent("a").unwrap().maintenance.unwrap().reason, "disk");
}
