//! ARD entries of agents, one by one and in lists.

use registry_sdk::contract::{AgentRecord, AgentStatus, CARD_MEDIA_TYPE, Capability, Registration};
use reqwest::header::{CACHE_CONTROL, ETAG, IF_NONE_MATCH};
use serde_json::json;

use super::{answer, get, get_with, identifier, ids, register_three, search, start};
use crate::support::{Database, agent, client, on_both_databases};

on_both_databases!(
    entry_describes_the_registered_agent,
    entry_links_to_the_record_of_its_agent,
    agent_with_a_card_is_described_by_it,
    entry_is_revalidated_until_the_agent_registers_again,
    pages_have_every_registered_agent,
    list_is_filtered_by_expressions,
    long_entries_are_shortened_in_lists_only,
    rows_with_invalid_ids_are_left_out,
);

async fn entry_describes_the_registered_agent(database: Database) {
    let server = start(&database).await;
    register_three(&server).await;
    let entry = answer(get(&server, &format!("/ard/agents/{}", identifier("forecaster")))).await;
    let expected = json!({
        "identifier": "urn:air:agents.example:agent:forecaster",
        "displayName": "Weather forecaster",
        "type": "application/json",
        "url": format!("{}/agents/forecaster", server.url()),
        "description": "Forecasts the weather of a city; Snow report",
        "tags": ["weather", "maps"],
        "capabilities": ["weather_forecast", "snow_report"],
        // The first example of each capability comes first.
        "representativeQueries":
            ["Will it rain in Oslo tomorrow?", "How much snow is in the Alps?", "How windy is Chicago now?"],
        // The schema of ARD v0.9 has neither lists nor objects in metadata.
        "metadata": {"team": "climate", "cores": 8},
    });
    assert_eq!(entry, expected);
    // Empty fields are left out.
    client(&server).register(&Registration::new("bare", "Bare", "http://bare:8000")).await.unwrap();
    let bare = answer(get(&server, "/ard/agents/urn%3Aair%3Aagents.example%3Aagent%3Abare")).await;
    let names: Vec<_> = bare.as_object().unwrap().keys().collect();
    assert_eq!(names, ["displayName", "identifier", "type", "url"]);
    server.shutdown().await;
}

async fn entry_links_to_the_record_of_its_agent(database: Database) {
    let server = start(&database).await;
    register_three(&server).await;
    for entry in answer(get(&server, "/ard/agents")).await["items"].as_array().unwrap() {
        let record = reqwest::get(entry["url"].as_str().unwrap()).await.unwrap();
        assert_eq!(record.headers()["content-type"], entry["type"].as_str().unwrap());
        let record: AgentRecord = record.json().await.unwrap();
        assert_eq!(entry["displayName"], record.agent_name);
        // The entry can be read by its identifier.
        let path = format!("/ard/agents/{}", entry["identifier"].as_str().unwrap());
        assert_eq!(&answer(get(&server, &path)).await, entry);
    }
    server.shutdown().await;
}

async fn agent_with_a_card_is_described_by_it(database: Database) {
    let server = start(&database).await;
    register_three(&server).await;
    let (text, registry) = (r#"{"name":  "A", "url": "http://a.example"}"#, client(&server));
    registry.register(&agent("a", "work").card(text.parse().unwrap())).await.unwrap();
    let path = format!("/ard/agents/{}", identifier("a"));
    let entry = answer(get(&server, &path)).await;
    assert_eq!(entry["type"], CARD_MEDIA_TYPE);
    let card = reqwest::get(entry["url"].as_str().unwrap()).await.unwrap();
    assert_eq!(card.headers()["content-type"], CARD_MEDIA_TYPE);
    assert_eq!(card.text().await.unwrap(), text);
    let found = answer(search(&server, "work", &json!({"type": [CARD_MEDIA_TYPE]}))).await;
    assert_eq!(ids(&found["results"]), ["a"]);

    registry.register(&agent("a", "work")).await.unwrap();
    assert_eq!(answer(get(&server, &path)).await["type"], "application/json");
    server.shutdown().await;
}

async fn entry_is_revalidated_until_the_agent_registers_again(database: Database) {
    let server = start(&database).await;
    let registry = client(&server);
    registry.register(&agent("a", "work")).await.unwrap();
    let path = format!("/ard/agents/{}", identifier("a"));
    let first = get(&server, &path).send().await.unwrap();
    assert_eq!(first.headers()[CACHE_CONTROL], "private, no-cache");
    let tag = first.headers()[ETAG].to_str().unwrap().to_owned();
    registry.heartbeat("a").await.unwrap();
    for known in [tag.clone(), format!("W/{tag}"), format!("\"other\", {tag}"), "*".to_owned()] {
        let again = get(&server, &path).header(IF_NONE_MATCH, &known).send().await.unwrap();
        assert_eq!(
            (again.status().as_u16(), again.headers()[ETAG].to_str().unwrap()),
            (304, &*tag),
            "{known}"
        );
        assert_eq!(again.text().await.unwrap(), "");
    }
    registry.register(&agent("a", "other_work")).await.unwrap();
    let changed = get(&server, &path).header(IF_NONE_MATCH, &tag).send().await.unwrap();
    assert_eq!(changed.status(), 200);
    assert_ne!(changed.headers()[ETAG].to_str().unwrap(), tag);
    server.shutdown().await;
}

async fn pages_have_every_registered_agent(database: Database) {
    let server = start(&database).await;
    let registry = client(&server);
    for number in 0..25 {
        registry.register(&agent(&format!("a{number:02}"), "work")).await.unwrap();
    }
    registry.update_status("a03", AgentStatus::Offline).await.unwrap();
    assert_eq!(answer(get(&server, "/ard/agents")).await["items"].as_array().unwrap().len(), 20);
    let (mut listed, mut path) = (Vec::new(), "/ard/agents?pageSize=10&orderBy=identifier".to_owned());
    loop {
        let page = answer(get(&server, &path)).await;
        listed.extend(ids(&page["items"]));
        let Some(token) = page["pageToken"].as_str() else { break };
        path = format!("/ard/agents?pageSize=10&pageToken={token}");
    }
    assert_eq!(listed, (0..25).map(|number| format!("a{number:02}")).collect::<Vec<_>>());
    server.shutdown().await;
}

async fn list_is_filtered_by_expressions(database: Database) {
    let server = start(&database).await;
    register_three(&server).await;
    let all = &["Traveller_2.0", "forecaster", "scanner"][..];
    for (filter, expected) in [
        ("type = 'application/json'", all),
        ("type = \"application/a2a-agent-card+json\"", &[]),
        ("type=application/a2a-agent-card+json,application/json", all),
        ("publisherId = 'agents.example' AND displayName = 'SCANNER'", &["scanner"]),
        ("displayName='weather forecaster' and type = 'application/json'", &["forecaster"]),
        ("publisherId = 'other.example, agents.example'", all),
        ("publisherId = other.example", &[]),
        ("createdAfter > '2020-01-01'", all),
        ("createdAfter = 2020-01-01T00:00:00+02:00", all),
        ("createdAfter > '2220-01-01T00:00:00Z'", &[]),
    ] {
        let list = get_with(&server, "/ard/agents", "filter", filter);
        assert_eq!(ids(&answer(list).await["items"]), expected, "{filter}");
    }
    server.shutdown().await;
}

async fn long_entries_are_shortened_in_lists_only(database: Database) {
    let server = start(&database).await;
    let registry = client(&server);
    let long = |id: &str| {
        let capability = |number| Capability::new(format!("work_{number}_{}", "x".repeat(100))).tag("long");
        (0..100).map(capability).fold(Registration::new(id, id, "http://a:8000"), Registration::capability)
    };
    for number in 0..20 {
        registry.register(&long(&format!("a{number:02}"))).await.unwrap();
    }
    let list = get(&server, "/ard/agents?pageSize=100").send().await.unwrap().text().await.unwrap();
    let found = search(&server, "work", &json!({"tags": "long"})).send().await.unwrap().text().await.unwrap();
    for (text, name) in [(list, "items"), (found, "results")] {
        assert!(text.len() < 100_000, "{}", text.len());
        let page: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(ids(&page[name]), (0..20).map(|number| format!("a{number:02}")).collect::<Vec<_>>());
        assert_eq!(page[name][0]["capabilities"].as_array().unwrap().len(), 100);
        assert!(page[name][19].get("capabilities").is_none() && page[name][19]["url"].is_string());
    }
    let alone = answer(get(&server, &format!("/ard/agents/{}", identifier("a19")))).await;
    assert_eq!(alone["capabilities"].as_array().unwrap().len(), 100);
    server.shutdown().await;
}

async fn rows_with_invalid_ids_are_left_out(database: Database) {
    let server = start(&database).await;
    for id in ["a", "b"] {
        client(&server).register(&agent(id, "work")).await.unwrap();
    }
    server.shutdown().await;
    database.execute("UPDATE agent_registry SET agent_id = 'no id' WHERE agent_id = 'a'").await;
    let server = start(&database).await;
    assert_eq!(ids(&answer(get(&server, "/ard/agents")).await["items"]), ["b"]);
    let odd = get(&server, "/ard/agents/urn:air:agents.example:agent:no%20id").send().await.unwrap();
    assert_eq!(odd.status(), 400);
    server.shutdown().await;
}
