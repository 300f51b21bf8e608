//! Errors in the format of ARD.

use registry_sdk::contract::limits;
use reqwest::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use reqwest::{Client, Method, RequestBuilder};
use serde_json::{Value, json};

use super::{get, get_with, identifier, post, register_three, start};
use crate::support::{Database, client, on_both_databases};

on_both_databases!(
    bad_requests_get_the_error_of_the_specification,
    errors_name_the_invalid_part,
    unknown_and_malformed_identifiers_get_different_errors,
    bodies_that_are_too_long_or_not_json_are_rejected,
);

/// Sends a request that must fail. Returns the status, the code and the message.
async fn error(request: RequestBuilder) -> (u16, String, String) {
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    assert_eq!(response.headers()[CONTENT_TYPE], "application/json");
    assert_eq!(response.headers()[CACHE_CONTROL], "no-store");
    let body: Value = response.json().await.unwrap();
    let names: Vec<_> = body.as_object().unwrap().keys().collect();
    assert_eq!(names, ["errorCode", "message"]);
    let [code, message] = ["errorCode", "message"].map(|name| body[name].as_str().unwrap().to_owned());
    assert!(!message.is_empty());
    (status, code, message)
}

async fn bad_requests_get_the_error_of_the_specification(database: Database) {
    let server = start(&database).await;
    register_three(&server).await;
    let text = json!({"text": "work"});
    let filter = |filter: Value| json!({"query": {"text": "work", "filter": filter}});
    let many: Vec<_> = (0..33).map(|number| number.to_string()).collect();
    let many_fields: Value = many.iter().map(|key| (format!("metadata.{key}"), json!("x"))).collect();
    for body in [
        json!({}),
        json!([]),
        json!({"query": {}}),
        json!({"query": "work"}),
        json!({"query": {"text": 7}}),
        json!({"query": {"text": ""}}),
        json!({"query": {"text": " -_!"}}),
        json!({"query": {"text": "work", "limit": 1}}),
        json!({"query": text, "limit": 1}),
        json!({"query": text, "federation": "all"}),
        json!({"query": text, "pageSize": 0}),
        json!({"query": text, "pageSize": 101}),
        json!({"query": text, "pageSize": -1}),
        json!({"query": text, "pageSize": "10"}),
        json!({"query": text, "pageToken": ""}),
        json!({"query": text, "pageToken": "eyJwYWdlIjogMn0="}),
        json!({"query": text, "pageToken": 2}),
        filter(json!("type")),
        filter(json!({"type": []})),
        filter(json!({"type": null})),
        filter(json!({"type": [["a"]]})),
        filter(json!({"type": {"a": "b"}})),
        filter(json!({"tags": many})),
        filter(many_fields),
        filter(json!({"colour": "blue"})),
        filter(json!({"okf:taxonomy": "us-gaap"})),
        filter(json!({"trustManifest.identity": "spiffe://agents.example/a"})),
        filter(json!({"metadata": "x"})),
        filter(json!({"metadata.": "x"})),
    ] {
        let (status, code, message) = error(post(&server, "/ard/search", &body)).await;
        assert_eq!((status, &*code), (400, "INVALID_ARGUMENT"), "{body}: {message}");
    }
    for body in [
        json!({}),
        json!({"query": text}),
        json!({"resultType": "facets"}),
        json!({"resultType": {"counts": []}}),
        json!({"resultType": {"facets": []}}),
        json!({"resultType": {"facets": ["type"]}}),
        json!({"resultType": {"facets": [{}]}}),
        json!({"resultType": {"facets": [{"field": "colour"}]}}),
        json!({"resultType": {"facets": [{"field": "type", "limit": 0}]}}),
        json!({"resultType": {"facets": [{"field": "type", "size": 1}]}}),
        json!({"resultType": {"facets": many.iter().map(|_| json!({"field": "type"})).collect::<Vec<_>>()}}),
        json!({"resultType": {"facets": [{"field": "type"}]}, "federation": "none"}),
        json!({"resultType": {"facets": [{"field": "type"}]}, "query": {"text": "?"}}),
    ] {
        let (status, code, message) = error(post(&server, "/ard/explore", &body)).await;
        assert_eq!((status, &*code), (400, "INVALID_ARGUMENT"), "{body}: {message}");
    }
    for (name, value) in [
        ("pageSize", "0"),
        ("pageSize", "101"),
        ("pageSize", "many"),
        ("pageToken", "no id"),
        ("orderBy", "displayName"),
        ("orderBy", "identifier DESC"),
        ("limit", "1"),
        ("filter", ""),
        ("filter", "type"),
        ("filter", "type ="),
        ("filter", "= 'a'"),
        ("filter", "type = 'a"),
        ("filter", "type = it's"),
        ("filter", "type = ''"),
        ("filter", "type > 'a'"),
        ("filter", "type = 'a' AND"),
        ("filter", "type = 'a' OR type = 'b'"),
        ("filter", "type = 'a' type = 'b'"),
        ("filter", "colour = 'blue'"),
        ("filter", "updatedAfter > '2026-01-01'"),
        ("filter", "createdAfter > 'yesterday'"),
    ] {
        let (status, code, message) = error(get_with(&server, "/ard/agents", name, value)).await;
        assert_eq!((status, &*code), (400, "INVALID_ARGUMENT"), "{name}={value}: {message}");
    }
    // The request has stored nothing.
    assert_eq!(client(&server).get_stats().await.unwrap().total_agents, 3);
    server.shutdown().await;
}

async fn errors_name_the_invalid_part(database: Database) {
    let server = start(&database).await;
    let query = json!({"text": "work"});
    for (request, expected) in [
        (post(&server, "/ard/search", &json!({"query": query, "limit": 1})), "`limit`"),
        (post(&server, "/ard/search", &json!({"query": {}})), "query.text"),
        (post(&server, "/ard/search", &json!({"query": {"text": "?"}})), "query.text"),
        (post(&server, "/ard/search", &json!({"query": query, "pageToken": "2"})), "pageToken"),
        (
            post(&server, "/ard/search", &json!({"query": query, "pageSize": 101})),
            "pageSize has to be 1 to 100",
        ),
        (
            post(&server, "/ard/search", &json!({"query": {"text": "work", "filter": {"colour": "blue"}}})),
            "\"colour\" is not supported; use identifier, displayName, type,",
        ),
        (post(&server, "/ard/explore", &json!({"query": query})), "`resultType`"),
        (get(&server, "/ard/agents?filter=type"), "type = 'application/json'"),
        (get(&server, "/ard/agents?sort=name"), "`sort`"),
        (get(&server, "/ard/agents?pageSize=x"), "pageSize"),
        (get(&server, "/ard/agents/a"), "urn:air:agents.example:agent:AGENT_ID"),
    ] {
        let (_, _, message) = error(request).await;
        assert!(message.contains(expected), "{expected}: {message}");
    }
    server.shutdown().await;
}

async fn unknown_and_malformed_identifiers_get_different_errors(database: Database) {
    let server = start(&database).await;
    register_three(&server).await;
    for (path, expected) in [
        ("urn:air:agents.example:agent:unknown", (404, "NOT_FOUND")),
        ("urn%3Aair%3Aagents.example%3Aagent%3Aunknown", (404, "NOT_FOUND")),
        ("urn:air:agents.example:agent:Scanner", (404, "NOT_FOUND")),
        ("urn:air:agents.example:scanner", (404, "NOT_FOUND")),
        ("urn:air:agents.example:agent:a:scanner", (404, "NOT_FOUND")),
        ("urn:air:agents.example:registry:agents", (404, "NOT_FOUND")),
        ("urn:air:other.example:agent:scanner", (404, "NOT_FOUND")),
        ("urn:air:agents.example.com:agent:scanner", (404, "NOT_FOUND")),
        ("scanner", (400, "INVALID_ARGUMENT")),
        ("urn:air:agents.example", (400, "INVALID_ARGUMENT")),
        ("urn:air::agent:scanner", (400, "INVALID_ARGUMENT")),
        ("urn:air:agents.example:agent:", (400, "INVALID_ARGUMENT")),
        ("urn:ai:agents.example:agent:scanner", (400, "INVALID_ARGUMENT")),
        ("urn:air:agents.example:agent:scan%20ner", (400, "INVALID_ARGUMENT")),
        ("urn:air:agents.example:agent:scan%2Fner", (400, "INVALID_ARGUMENT")),
        ("urn:air:agents.example:agent:%F0%9F%A6%80", (400, "INVALID_ARGUMENT")),
        // Invalid UTF-8, an invalid percent-encoding, and one encoded twice.
        ("urn:air:agents.example:agent:%FF", (400, "INVALID_ARGUMENT")),
        ("urn:air:agents.example:agent:%zz", (400, "INVALID_ARGUMENT")),
        ("urn%253Aair%253Aagents.example%253Aagent%253Ascanner", (400, "INVALID_ARGUMENT")),
    ] {
        let (status, code, message) = error(get(&server, &format!("/ard/agents/{path}"))).await;
        assert_eq!((status, &*code), expected, "{path}: {message}");
    }
    let known = get(&server, &format!("/ard/agents/{}", identifier("scanner"))).send().await.unwrap();
    assert_eq!(known.status(), 200);
    for path in ["/ard/nothing", "/ard/agents/a/b", "/ard/agents/"] {
        let (status, code, _) = error(get(&server, path)).await;
        assert_eq!((status, &*code), (404, "NOT_FOUND"), "{path}");
    }
    server.shutdown().await;
}

async fn bodies_that_are_too_long_or_not_json_are_rejected(database: Database) {
    let server = start(&database).await;
    let http = Client::new();
    let send = |path: &str, kind: &str, body: String| {
        http.post(format!("{}{path}", server.url())).header(CONTENT_TYPE, kind).body(body)
    };
    let json = "application/json";
    for path in ["/ard/search", "/ard/explore"] {
        for (kind, body, expected) in [
            (json, String::new(), 400),
            (json, "{".to_owned(), 400),
            (json, "\u{fffd}".to_owned(), 400),
            (json, format!("{}{}", "[".repeat(1_000), "]".repeat(1_000)), 400),
            (json, " ".repeat(limits::BODY_BYTES + 1), 413),
            ("text/plain", "{}".to_owned(), 415),
        ] {
            let (status, code, message) = error(send(path, kind, body)).await;
            assert_eq!((status, &*code), (expected, "INVALID_ARGUMENT"), "{path}: {message}");
        }
        let request = http.request(Method::GET, format!("{}{path}", server.url()));
        let allowed = request.try_clone().unwrap().send().await.unwrap().headers()[ALLOW].clone();
        assert_eq!(allowed, "POST");
        assert_eq!(error(request).await.0, 405);
    }
    server.shutdown().await;
}
