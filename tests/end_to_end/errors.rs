//! The errors in the contract, over a plain HTTP client.

use registry_sdk::Error;
use registry_sdk::contract::{Problem, Registration};
use reqwest::header::{ALLOW, CONTENT_TYPE};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::json;

use crate::support::{Database, agent, client, on_both_databases, on_every_registry};

on_every_registry!(all_invalid_fields_are_reported_together, rejected_registration_changes_nothing,);

/// Tests that need a database or a restart.
mod lasting {
    use super::*;

    on_both_databases!(
        errors_are_problems_with_their_status,
        body_of_maximum_length_is_accepted_and_a_longer_one_rejected,
        invalid_ids_are_unknown_agents,
        every_response_has_a_request_id,
    );
}

const JSON: &str = "application/json";

async fn problem(request: RequestBuilder) -> Problem {
    let response = request.send().await.unwrap();
    assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
    let status = response.status().as_u16();
    let problem: Problem = response.json().await.unwrap();
    assert_eq!(problem.status, status);
    assert!(!problem.detail.is_empty() && !problem.title.is_empty());
    problem
}

async fn errors_are_problems_with_their_status(database: Database) {
    let server = database.start().await;
    client(&server).register(&agent("a", "work")).await.unwrap();
    let http = reqwest::Client::new();
    let to = |method: &str, path: &str| {
        http.request(Method::from_bytes(method.as_bytes()).unwrap(), format!("{}{path}", server.url()))
    };
    let with = |method, path, body: &'static str| to(method, path).header(CONTENT_TYPE, JSON).body(body);
    let cases = [
        (to("GET", "/nothing"), 404),
        (to("GET", "/agents/unknown"), 404),
        (to("DELETE", "/agents/unknown"), 404),
        (to("POST", "/agents/unknown/heartbeat"), 404),
        (with("PUT", "/agents/unknown/status", r#"{"status":"busy"}"#), 404),
        (to("GET", "/health/unknown"), 404),
        (to("GET", "/capabilities/search"), 400),
        (to("GET", "/capabilities/search?q="), 400),
        (to("GET", "/capabilities/search?q=%20-_"), 400),
        (to("GET", "/capabilities/search?q=a&status=asleep"), 400),
        (to("GET", "/capabilities/search?q=a&healthy=maybe"), 400),
        (to("GET", "/capabilities/search?q=a&healthy=true&healthy=false"), 400),
        (to("GET", "/capabilities/search?q=a&limit=0"), 400),
        (to("GET", "/capabilities/search?q=a&limit=1001"), 400),
        (to("GET", "/capabilities/search?q=a&limit=-1"), 400),
        (to("GET", "/capabilities/search?q=a&q=b"), 400),
        (to("GET", "/agents?status=asleep"), 400),
        (to("GET", "/agents?limit=0"), 400),
        (to("GET", "/agents?limit=1001"), 400),
        (to("GET", "/agents?limit=many"), 400),
        (to("GET", "/agents?limit=1&cursor=%00"), 400),
        (with("POST", "/register", ""), 400),
        (with("POST", "/register", "{"), 400),
        (with("POST", "/register", "[]"), 400),
        (with("POST", "/register", "\u{fffd}"), 400),
        (with("POST", "/register", "{}"), 422),
        (to("POST", "/register").body("{}"), 415),
        (to("POST", "/register").header(CONTENT_TYPE, "text/plain").body("{}"), 415),
        (with("POST", "/register", "{}").header("content-encoding", "gzip"), 415),
        (with("POST", "/agents/a/heartbeat", "nonsense"), 400),
        (with("POST", "/agents/a/heartbeat", r#"{"status":"asleep"}"#), 422),
        (with("PUT", "/agents/a/status", "{}"), 422),
        (to("PUT", "/agents/a/status"), 422),
        (with("PUT", "/agents/a/status", r#"{"status":7}"#), 422),
        (to("PATCH", "/agents"), 405),
        (to("GET", "/register"), 405),
    ];
    for (request, expected) in cases {
        let said = format!("{request:?}");
        assert_eq!(problem(request).await.status, expected, "{said}");
    }
    let allowed = to("PATCH", "/agents/a").send().await.unwrap();
    assert_eq!(allowed.headers()[ALLOW], "GET,HEAD,DELETE");
    // The content type is matched in any letter case and with parameters, and a heartbeat needs no body.
    let json = to("POST", "/agents/a/heartbeat").header(CONTENT_TYPE, "Application/JSON; charset=utf-8");
    assert_eq!(json.body("{}").send().await.unwrap().status(), StatusCode::OK);
    assert_eq!(to("POST", "/agents/a/heartbeat").send().await.unwrap().status(), StatusCode::OK);
    server.shutdown().await;
}

async fn all_invalid_fields_are_reported_together(database: Database) {
    let server = database.start().await;
    let body =
        json!({"agent_id": "-", "agent_name": "a\0b", "base_url": "x", "capabilities": [{"name": ""}]});
    let url = format!("{}/register", server.url());
    let problem = problem(reqwest::Client::new().post(url).json(&body)).await;
    let fields: Vec<_> = problem.errors.iter().map(|error| error.field.as_str()).collect();
    assert_eq!(
        (problem.status, fields),
        (422, vec!["agent_id", "agent_name", "base_url", "capabilities[0].name"])
    );

    // The SDK does not send the registration, and reports the same fields.
    let registration = Registration::new("-", "", "x");
    let error = client(&server).register(&registration).await.unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }) && error.is_refused() && !error.is_retryable());
    assert_eq!(error.fields().len(), 3, "{error}");
    server.shutdown().await;
}

async fn rejected_registration_changes_nothing(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    let before = client.register(&agent("a", "work")).await.unwrap();
    let body = json!({"agent_id": "a", "agent_name": "", "base_url": "http://a", "capabilities": []});
    let url = format!("{}/register", server.url());
    assert_eq!(problem(reqwest::Client::new().post(url).json(&body)).await.status, 422);
    assert_eq!(client.get_agent("a").await.unwrap(), before);
    server.shutdown().await;
}

async fn body_of_maximum_length_is_accepted_and_a_longer_one_rejected(database: Database) {
    let server = database.start().await;
    let body = serde_json::to_string(&agent("a", "work")).unwrap();
    let post = |bytes: usize| {
        let padded = format!("{body}{}", " ".repeat(bytes - body.len()));
        let url = format!("{}/register", server.url());
        reqwest::Client::new().post(url).header(CONTENT_TYPE, JSON).body(padded)
    };
    assert_eq!(post(256 * 1_024).send().await.unwrap().status(), StatusCode::OK);
    assert_eq!(problem(post(256 * 1_024 + 1)).await.status, 413);
    server.shutdown().await;
}

async fn invalid_ids_are_unknown_agents(database: Database) {
    let server = database.start().await;
    let http = reqwest::Client::new();
    let long = "x".repeat(65);
    for id in ["%00", "a%00b", "a%20b", "%ff", "-a", "a%2Fb", "%F0%9F%A6%80", "'%3B--", &long] {
        for request in [
            http.get(format!("{}/agents/{id}", server.url())),
            http.post(format!("{}/agents/{id}/heartbeat", server.url())),
            http.get(format!("{}/health/{id}", server.url())),
        ] {
            assert_eq!(problem(request).await.status, 404, "{id}");
        }
    }
    for id in ["", ".", ".."] {
        assert!(client(&server).get_agent(id).await.unwrap_err().is_not_found());
    }
    server.shutdown().await;
}

async fn every_response_has_a_request_id(database: Database) {
    let server = database.start().await;
    let http = reqwest::Client::new();
    let get = |path: &str| http.get(format!("{}{path}", server.url()));
    let first = get("/stats").send().await.unwrap().headers()["x-request-id"].clone();
    let second = get("/nothing").send().await.unwrap().headers()["x-request-id"].clone();
    assert_ne!(first, second);
    let given = get("/stats").header("x-request-id", "mine").send().await.unwrap();
    assert_eq!(given.headers()["x-request-id"], "mine");
    server.shutdown().await;
}
