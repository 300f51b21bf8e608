//! `GET /openapi.json` describes the API as it is.

use std::fs;

use serde_json::Value;

use crate::credentials::File;
use crate::support::{Database, on_both_databases};

on_both_databases!(
    every_operation_is_described_with_its_responses_and_an_example,
    every_referenced_schema_exists,
    description_needs_no_token,
);

/// The repository has a copy of the description, to be read, and to make changes visible in reviews.
#[tokio::test(flavor = "multi_thread")]
async fn description_equals_the_copy_in_the_repository() {
    Database::sqlite()
        .run(async |database| {
            let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.json");
            let server = database.start().await;
            let url = format!("{}/openapi.json", server.url());
            let description: Value = reqwest::get(url).await.unwrap().json().await.unwrap();
            let text = format!("{description:#}\n");
            if std::env::var_os("UPDATE_OPENAPI").is_some() {
                fs::write(path, &text).unwrap();
            }
            let is_the_same = fs::read_to_string(path).is_ok_and(|known| known == text);
            assert!(
                is_the_same,
                "docs/openapi.json is out of date. If the change is intended, run \
                 `UPDATE_OPENAPI=1 ./scripts/test --test end_to_end api_description` and commit the file"
            );
            server.shutdown().await;
        })
        .await;
}

async fn every_operation_is_described_with_its_responses_and_an_example(database: Database) {
    let server = database.start().await;
    let description: Value =
        reqwest::get(format!("{}/openapi.json", server.url())).await.unwrap().json().await.unwrap();
    assert_eq!(description["openapi"], "3.1.0");
    let mut found = Vec::new();
    for (path, operations) in description["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let name = format!("{method} {path}");
            let responses = operation["responses"].as_object().unwrap();
            assert!(operation["summary"].as_str().is_some_and(|text| !text.is_empty()), "{name}");
            assert!(
                responses
                    .values()
                    .all(|one| one["description"].as_str().is_some_and(|text| !text.is_empty())),
                "{name}"
            );
            let answer = responses.iter().find(|(status, _)| status.starts_with('2')).unwrap().1;
            let has_example =
                answer["content"].as_object().into_iter().flatten().all(|(_, one)| !one["example"].is_null());
            assert!(has_example, "{name} has no example");
            if let Some(body) = operation["requestBody"].as_object() {
                assert!(
                    !body["content"]["application/json"]["example"].is_null(),
                    "{name} has no example of a body"
                );
            }
            found.push(format!("{} {name}", operation["operationId"].as_str().unwrap()));
        }
    }
    found.sort();
    let expected = [
        "check_health get /health/{id}",
        "deregister delete /agents/{id}",
        "end_maintenance delete /agents/{id}/maintenance",
        "get_agent get /agents/{id}",
        "get_card get /agents/{id}/card",
        "get_liveness get /livez",
        "get_metrics get /metrics",
        "get_readiness get /readyz",
        "get_server_health get /health",
        "get_stats get /stats",
        "heartbeat post /agents/{id}/heartbeat",
        "list_agents get /agents",
        "register post /register",
        "search_capabilities get /capabilities/search",
        "set_maintenance put /agents/{id}/maintenance",
        "update_status put /agents/{id}/status",
        "watch_events get /events",
    ];
    assert_eq!(found, expected);
    server.shutdown().await;
}

/// Returns all values of `$ref`, at any depth.
fn references(value: &Value) -> Vec<&str> {
    match value {
        Value::Array(all) => all.iter().flat_map(references).collect(),
        Value::Object(fields) => {
            let own = fields.get("$ref").and_then(Value::as_str);
            own.into_iter().chain(fields.values().flat_map(references)).collect()
        }
        _ => Vec::new(),
    }
}

async fn every_referenced_schema_exists(database: Database) {
    let server = database.start().await;
    let description: Value =
        reqwest::get(format!("{}/openapi.json", server.url())).await.unwrap().json().await.unwrap();
    let references = references(&description);
    for name in ["AgentRecord", "Maintenance", "Problem", "Owner"] {
        let reference = format!("#/components/schemas/{name}");
        assert!(references.contains(&reference.as_str()), "nothing refers to {name}");
    }
    for reference in references {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(description.pointer(pointer).is_some(), "{reference} is not there");
    }
    server.shutdown().await;
}

async fn description_needs_no_token(database: Database) {
    let (file, _) = File::new(&["scope = \"read\""]);
    let server = database.start_with(|config| config.tokens_file = Some(file.path.clone())).await;
    for (path, expected) in [("openapi.json", 200), ("docs/", 200), ("", 200), ("agents", 401)] {
        let answer = reqwest::get(format!("{}/{path}", server.url())).await.unwrap();
        assert_eq!(answer.status().as_u16(), expected, "/{path}");
    }
    server.shutdown().await;
}
