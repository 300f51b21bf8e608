//! Access to ARD: servers without a publisher, tokens, rate limits, and the manifest.

use std::num::NonZeroU32;

use futures_util::future::join_all;
use registry_sdk::contract::STALE_HEADER;
use registry_sdk::testing::Fault;
use reqwest::header::{CONTENT_TYPE, HOST, ORIGIN, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Client, Response};
use serde_json::{Value, json};

use super::{answer, get, post, search, start, start_with};
use crate::credentials::File;
use crate::support::{
    Database, agent, client, client_builder, eventually, impatient_client, on_both_databases, on_postgres,
    proxy_before,
};

on_both_databases!(
    server_without_a_publisher_has_no_ard_routes,
    everything_but_the_manifest_needs_a_token,
    client_with_too_many_requests_is_limited,
    requests_of_other_sites_are_rejected,
    manifest_links_to_the_registry,
);

mod outage {
    super::on_postgres!(reads_work_while_the_database_is_down);
    use super::reads_work_while_the_database_is_down;
}

const PATHS: [&str; 3] =
    ["/ard/agents", "/ard/agents/urn:air:agents.example:agent:a", "/.well-known/ard.json"];

async fn error_code(response: Response) -> Value {
    assert_eq!(response.headers()[CONTENT_TYPE], "application/json");
    response.json::<Value>().await.unwrap()["errorCode"].clone()
}

async fn server_without_a_publisher_has_no_ard_routes(database: Database) {
    let server = database.start().await;
    client(&server).register(&agent("a", "work")).await.unwrap();
    let query = json!({"query": {"text": "work"}});
    let mut requests = vec![post(&server, "/ard/search", &query), post(&server, "/ard/explore", &query)];
    requests.extend(PATHS.map(|path| get(&server, path)));
    for request in requests {
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 404);
        assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
        assert!(response.text().await.unwrap().contains("there is nothing at /"));
    }
    server.shutdown().await;
}

async fn everything_but_the_manifest_needs_a_token(database: Database) {
    let (file, tokens) = File::new(&["scope = \"read\"", "scope = \"admin\""]);
    let server = start_with(&database, |config| config.tokens_file = Some(file.path.clone())).await;
    let admin = client_builder(server.url()).token(tokens[1].clone()).build().unwrap();
    admin.register(&agent("a", "work")).await.unwrap();
    let requests = || {
        [
            search(&server, "work", &json!({})),
            post(&server, "/ard/explore", &json!({"resultType": {"facets": [{"field": "tags"}]}})),
            get(&server, PATHS[0]),
            get(&server, PATHS[1]),
        ]
    };
    for request in requests() {
        let denied = request.send().await.unwrap();
        assert_eq!(denied.status(), 401);
        assert_eq!(denied.headers()[WWW_AUTHENTICATE], "Bearer");
        assert_eq!(error_code(denied).await, "UNAUTHENTICATED");
    }
    for request in requests() {
        let denied = request.bearer_auth("agreg_guessed").send().await.unwrap();
        assert_eq!(denied.status(), 401);
        assert_eq!(error_code(denied).await, "UNAUTHENTICATED");
    }
    for request in requests() {
        answer(request.bearer_auth(&tokens[0])).await;
    }
    // The manifest names no agent.
    let manifest = answer(get(&server, PATHS[2])).await.to_string();
    assert!(!manifest.contains(":agent:"), "{manifest}");
    server.shutdown().await;
}

async fn client_with_too_many_requests_is_limited(database: Database) {
    let server = start_with(&database, |config| config.rate_limit = NonZeroU32::new(2)).await;
    // A busy machine may need several attempts to send more than two requests in a second.
    eventually("a client is limited", async || {
        let answers = join_all((0..20).map(|_| search(&server, "work", &json!({})).send())).await;
        let mut answers = answers.into_iter().map(Result::unwrap);
        let Some(limited) = answers.find(|answer| answer.status() == 429) else { return false };
        assert_eq!(limited.headers()[RETRY_AFTER], "1");
        error_code(limited).await == "RATE_LIMIT_EXCEEDED"
    })
    .await;
    server.shutdown().await;
}

async fn requests_of_other_sites_are_rejected(database: Database) {
    let server = start(&database).await;
    let rebound = get(&server, "/ard/agents").header(HOST, "evil.test").send().await.unwrap();
    assert_eq!(rebound.status(), 421);
    assert_eq!(error_code(rebound).await, "INVALID_ARGUMENT");
    let foreign =
        search(&server, "work", &json!({})).header(ORIGIN, "http://evil.test").send().await.unwrap();
    assert_eq!(foreign.status(), 403);
    assert_eq!(error_code(foreign).await, "UNAUTHENTICATED");
    server.shutdown().await;
}

async fn manifest_links_to_the_registry(database: Database) {
    let server = start(&database).await;
    client(&server).register(&agent("a", "work")).await.unwrap();
    let manifest = answer(get(&server, PATHS[2])).await;
    let entries = manifest["entries"].as_array().unwrap();
    assert_eq!(entries.len(), 1);
    let registry = &entries[0];
    assert_eq!(registry["identifier"], "urn:air:agents.example:registry:agents");
    assert_eq!(registry["type"], "application/ai-registry+json");
    assert_eq!(registry["representativeQueries"].as_array().unwrap().len(), 2);
    let url = format!("{}search", registry["url"].as_str().unwrap());
    let found = answer(Client::new().post(url).json(&json!({"query": {"text": "work"}}))).await;
    assert_eq!(found["results"][0]["identifier"], "urn:air:agents.example:agent:a");
    assert_eq!(found["results"][0]["source"], registry["url"]);
    server.shutdown().await;
}

async fn reads_work_while_the_database_is_down(database: Database) {
    let proxy = proxy_before(&database).await;
    let server = start(&database.through(&proxy)).await;
    let registry = impatient_client(&server);
    registry.register(&agent("a", "work")).await.unwrap();
    proxy.set(Fault::Refuse);
    eventually("the server is unhealthy", async || registry.get_server_health().await.is_err()).await;
    for request in [
        search(&server, "work", &json!({})),
        post(&server, "/ard/explore", &json!({"resultType": {"facets": [{"field": "tags"}]}})),
        get(&server, PATHS[0]),
        get(&server, PATHS[1]),
    ] {
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert!(response.headers().contains_key(STALE_HEADER), "{}", response.url());
    }
    server.shutdown().await;
}
