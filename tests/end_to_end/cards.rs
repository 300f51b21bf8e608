//! A2A agent cards are stored byte for byte, and served separately from records.

use registry_sdk::contract::{AgentCard, CARD_MEDIA_TYPE, limits};
use registry_sdk::{Error, ListQuery, RegistryClient};
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::{Database, Registry, agent, client, eventually, on_both_databases, on_every_registry};

on_every_registry!(
    card_is_returned_byte_for_byte,
    card_is_in_the_registration_but_not_in_records,
    invalid_card_is_rejected_and_changes_nothing,
    card_of_maximum_size_is_accepted_and_a_longer_one_rejected,
    unknown_agents_and_agents_without_a_card_get_different_errors,
);

/// Tests that need a database.
mod lasting {
    use super::*;

    on_both_databases!(
        card_survives_a_restart_and_is_removed_with_its_agent,
        unchanged_card_is_not_sent_again,
        card_deleted_by_another_program_is_not_found,
        card_of_a_deleted_row_is_not_inherited,
    );
}

/// Tests that need several servers.
mod shared {
    use super::*;

    crate::support::on_postgres!(card_is_seen_on_every_replica);
}

/// A signature covers white space, escapes and the order of fields.
const CARD: &str = "{\"name\":\t\"Recipe \\u0041gent\",\n  \"skills\" : [ {\"id\":\"a\",\"id\":\"b\"} ],\r\n \"version\": 1.0e1, \
                    \"nul\": \"\\u0000\", \"é\": \"\u{1f980}\"}";

fn card(text: &str) -> AgentCard {
    text.parse().unwrap()
}

/// Sends the raw body of a registration.
async fn post(server: &Registry, body: String) -> reqwest::Response {
    let request = reqwest::Client::new().post(format!("{}/register", server.url()));
    request.header("content-type", "application/json").body(body).send().await.unwrap()
}

fn body(agent_id: &str, card: &str) -> String {
    format!(
        r#"{{"agent_id": "{agent_id}", "agent_name": "A", "base_url": "http://a.example", "capabilities": [], "card":  {card} }}"#
    )
}

async fn card_of(server: &Registry, agent_id: &str) -> reqwest::Response {
    reqwest::get(format!("{}/agents/{agent_id}/card", server.url())).await.unwrap()
}

async fn card_is_returned_byte_for_byte(database: Database) {
    let server = database.start().await;
    assert_eq!(post(&server, body("raw", CARD)).await.status(), StatusCode::OK);
    let response = card_of(&server, "raw").await;
    assert_eq!(response.headers()["content-type"], CARD_MEDIA_TYPE);
    assert_eq!(response.text().await.unwrap(), CARD);

    let client = client(&server);
    client.register(&agent("sdk", "work").card(card(CARD))).await.unwrap();
    assert_eq!(client.get_card("sdk").await.unwrap().as_str(), CARD);
    server.shutdown().await;
}

async fn card_is_in_the_registration_but_not_in_records(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    let plain = client.register(&agent("a", "work")).await.unwrap();
    assert_eq!(plain.card_digest, None);
    let with_card = client.register(&agent("a", "work").card(card(CARD))).await.unwrap();
    assert_ne!(with_card.registration_tag, plain.registration_tag);
    assert!(with_card.revision > plain.revision, "a card alone is a change");
    let digest = with_card.card_digest.clone().unwrap();
    let tag = card_of(&server, "a").await.headers()["etag"].to_str().unwrap().to_owned();
    assert_eq!(tag, format!("\"{digest}\""));

    let same = client.register(&agent("a", "work").card(card(CARD))).await.unwrap();
    assert_eq!((same.revision, &same.registration_tag), (with_card.revision, &with_card.registration_tag));
    client.update_status("a", registry_sdk::AgentStatus::Busy).await.unwrap();
    assert_eq!(client.get_card("a").await.unwrap().as_str(), CARD, "only a registration changes it");

    // White space is part of the card.
    let other = client.register(&agent("a", "work").card(card("{}"))).await.unwrap();
    let another = client.register(&agent("a", "work").card(card("{ }"))).await.unwrap();
    assert_ne!(other.card_digest, another.card_digest);
    assert_eq!(client.get_card("a").await.unwrap().as_str(), "{ }");

    for url in ["agents", "agents/a", "capabilities/search?q=work", "health/a"] {
        let text = reqwest::get(format!("{}/{url}", server.url())).await.unwrap().text().await.unwrap();
        assert!(!text.contains("\"card\""), "{url}: {text}");
    }

    let without = client.register(&agent("a", "work")).await.unwrap();
    assert_eq!((&without.card_digest, &without.registration_tag), (&None, &plain.registration_tag));
    assert_not_found(&client, "a").await;
    server.shutdown().await;
}

async fn assert_not_found(client: &RegistryClient, agent_id: &str) {
    let error = client.get_card(agent_id).await.unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error:?}");
}

async fn invalid_card_is_rejected_and_changes_nothing(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    client.register(&agent("a", "work").card(card(CARD))).await.unwrap();
    let deep = format!("{{\"a\": {}1{}}}", "[".repeat(60_000 / 2), "]".repeat(60_000 / 2));
    for (wrong, said) in [
        ("\"text\"", "must be a JSON object"),
        ("[]", "must be a JSON object"),
        ("7", "must be a JSON object"),
        (deep.as_str(), "nested up to 64 levels"),
    ] {
        let response = post(&server, body("a", wrong)).await;
        assert_eq!(response.status(), StatusCode::UNPROCESSABLE_ENTITY);
        let problem: Value = response.json().await.unwrap();
        assert_eq!(problem["errors"][0]["field"], "card");
        let message = problem["errors"][0]["message"].as_str().unwrap();
        assert!(message.contains(said), "{message}");
    }
    // The error is listed among others.
    let both =
        r#"{"agent_id": "-", "agent_name": 7, "base_url": "http://a", "capabilities": [], "card": "text"}"#;
    let problem: Value = post(&server, both.to_owned()).await.json().await.unwrap();
    let fields: Vec<_> = problem["errors"].as_array().unwrap().iter().map(|error| &error["field"]).collect();
    assert!(
        ["agent_id", "agent_name", "card"].iter().all(|name| fields.contains(&&json!(name))),
        "{problem}"
    );
    assert_eq!(post(&server, body("a", "{\"broken\": }")).await.status(), StatusCode::BAD_REQUEST);
    assert_eq!(client.get_card("a").await.unwrap().as_str(), CARD);

    assert_eq!(post(&server, body("b", "null")).await.status(), StatusCode::OK, "null means no card");
    assert_not_found(&client, "b").await;
    server.shutdown().await;
}

async fn card_of_maximum_size_is_accepted_and_a_longer_one_rejected(database: Database) {
    let server = database.start().await;
    let of_size = |bytes: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(bytes - 8));
    let most = of_size(limits::CARD_BYTES);
    assert_eq!(most.len(), 65_536);
    assert_eq!(post(&server, body("a", &most)).await.status(), StatusCode::OK);
    assert_eq!(card_of(&server, "a").await.text().await.unwrap(), most);
    let response = post(&server, body("a", &of_size(limits::CARD_BYTES + 1))).await;
    assert_eq!(response.status(), StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(card_of(&server, "a").await.text().await.unwrap(), most);
    server.shutdown().await;
}

async fn unknown_agents_and_agents_without_a_card_get_different_errors(database: Database) {
    let server = database.start().await;
    client(&server).register(&agent("plain", "work")).await.unwrap();
    let mut details = Vec::new();
    for agent_id in ["plain", "nobody"] {
        let response = card_of(&server, agent_id).await;
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        details.push(response.json::<Value>().await.unwrap()["detail"].as_str().unwrap().to_owned());
    }
    assert!(details[0].contains("no A2A agent card"), "{details:?}");
    assert_ne!(details[0], details[1]);
    server.shutdown().await;
}

async fn card_survives_a_restart_and_is_removed_with_its_agent(database: Database) {
    let server = database.start().await;
    let registered = client(&server).register(&agent("a", "work").card(card(CARD))).await.unwrap();
    server.shutdown().await;

    let server = database.start().await;
    let client = client(&server);
    assert_eq!(client.get_card("a").await.unwrap().as_str(), CARD);
    let again = client.get_agent("a").await.unwrap();
    assert_eq!(again.registration_tag, registered.registration_tag);
    client.deregister("a").await.unwrap();
    assert_not_found(&client, "a").await;
    assert_eq!(
        database.value::<Option<String>>("SELECT max(card) FROM agent_registry_card").await,
        None,
        "none is left"
    );
    client.register(&agent("a", "work")).await.unwrap();
    assert_not_found(&client, "a").await;
    server.shutdown().await;
}

async fn unchanged_card_is_not_sent_again(database: Database) {
    let server = database.start().await;
    client(&server).register(&agent("a", "work").card(card(CARD))).await.unwrap();
    let first = card_of(&server, "a").await;
    assert_eq!(first.headers()["cache-control"], "max-age=60");
    let tag = first.headers()["etag"].to_str().unwrap().to_owned();
    let ask = async |known: String| {
        let request = reqwest::Client::new().get(format!("{}/agents/a/card", server.url()));
        request.header("if-none-match", known).send().await.unwrap()
    };
    for known in [tag.clone(), format!("W/{tag}"), format!("\"other\", {tag}"), "*".to_owned()] {
        let response = ask(known).await;
        assert_eq!(response.status(), StatusCode::NOT_MODIFIED);
        assert_eq!(response.headers()["etag"], tag.as_str());
        assert_eq!(response.text().await.unwrap(), "");
    }
    assert_eq!(ask("\"other\"".to_owned()).await.text().await.unwrap(), CARD);
    server.shutdown().await;
}

async fn card_deleted_by_another_program_is_not_found(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    client.register(&agent("a", "work").card(card(CARD))).await.unwrap();
    database.execute("DELETE FROM agent_registry_card").await;
    assert_not_found(&client, "a").await;
    client.register(&agent("a", "work").card(card("{}"))).await.unwrap();
    assert_eq!(client.get_card("a").await.unwrap().as_str(), "{}");
    server.shutdown().await;
}

async fn card_of_a_deleted_row_is_not_inherited(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    client.register(&agent("a", "work").card(card(CARD))).await.unwrap();
    database.execute("DELETE FROM agent_registry").await;
    client.register(&agent("a", "other")).await.unwrap();
    assert_not_found(&client, "a").await;
    assert_eq!(database.value::<Option<String>>("SELECT max(card) FROM agent_registry_card").await, None);
    server.shutdown().await;
}

async fn card_is_seen_on_every_replica(database: Database) {
    let servers = [database.start().await, database.start().await];
    let clients: Vec<_> = servers.iter().map(client).collect();
    let registered = clients[0].register(&agent("a", "work").card(card(CARD))).await.unwrap();
    eventually("the other server has the card", async || clients[1].get_card("a").await.is_ok()).await;
    assert_eq!(clients[1].get_card("a").await.unwrap().as_str(), CARD);
    let listed = clients[1].list_agents(ListQuery::all()).await.unwrap().agents;
    assert_eq!(listed[0].registration_tag, registered.registration_tag);
    // The other server removes the card: it is gone from the first server, too.
    clients[1].register(&agent("a", "work")).await.unwrap();
    eventually("the card is gone", async || {
        matches!(clients[0].get_card("a").await, Err(Error::NotFound { .. }))
    })
    .await;
    for server in servers {
        server.shutdown().await;
    }
}
