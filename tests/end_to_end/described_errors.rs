//! The errors in `GET /openapi.json`: each one listed can be provoked, and each one provoked is listed.

use std::collections::{BTreeMap, BTreeSet};
use std::num::{NonZeroU32, NonZeroUsize};

use futures_util::future::join_all;
use registry_sdk::contract::{Problem, ServerHealth, limits};
use registry_sdk::testing::Fault;
use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Method, RequestBuilder, Response};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::credentials::File;
use crate::support::{
    Database, Registry, agent, client, eventually, impatient_client, on_both_databases, on_postgres,
    proxy_before,
};

on_both_databases!(every_listed_error_can_be_provoked, invalid_http_is_rejected_without_a_body,);

/// Tests that need a proxy in front of the database.
mod away {
    use super::*;

    on_postgres!(writes_and_server_health_are_503_without_the_database);
}

const PROBLEM: &str = "application/problem+json";

/// An operation in the description.
struct Operation {
    id: String,
    method: Method,
    path: String,
    has_body: bool,
    /// Content types of each error.
    errors: BTreeMap<u16, BTreeSet<String>>,
}

impl Operation {
    /// Returns a request without a body, for the agent `a`.
    fn request(&self, server: &Registry) -> RequestBuilder {
        self.request_for(server, "a")
    }

    fn request_for(&self, server: &Registry, agent_id: &str) -> RequestBuilder {
        self.request_to(server, &self.path.replace("{id}", agent_id))
    }

    fn request_to(&self, server: &Registry, target: &str) -> RequestBuilder {
        reqwest::Client::new().request(self.method.clone(), format!("{}{target}", server.url()))
    }

    /// Returns a request with a body that is declared as JSON.
    fn request_with(&self, server: &Registry, body: impl Into<reqwest::Body>) -> RequestBuilder {
        self.request(server).header(CONTENT_TYPE, "application/json").body(body)
    }

    /// Returns whether this is a health check, which is always answered.
    fn is_health_check(&self) -> bool {
        matches!(&*self.path, "/health" | "/livez" | "/readyz")
    }

    fn is_for_an_agent(&self) -> bool {
        self.path.contains("{id}")
    }
}

/// The described operations, and the errors that were provoked so far.
struct Described {
    operations: Vec<Operation>,
    seen: BTreeSet<(String, u16)>,
}

impl Described {
    async fn read(server: &Registry) -> Self {
        let url = format!("{}/openapi.json", server.url());
        let description: Value = reqwest::get(url).await.unwrap().json().await.unwrap();
        let mut operations = Vec::new();
        for (path, methods) in description["paths"].as_object().unwrap() {
            for (method, operation) in methods.as_object().unwrap() {
                operations.push(Operation {
                    id: operation["operationId"].as_str().unwrap().to_owned(),
                    method: method.to_uppercase().parse().unwrap(),
                    path: path.clone(),
                    has_body: operation.get("requestBody").is_some(),
                    errors: errors(&operation["responses"]),
                });
            }
        }
        Self { operations, seen: BTreeSet::new() }
    }

    /// Sends a request to each operation for which `request` returns one, and checks the response.
    async fn provoke(&mut self, status: u16, request: impl Fn(&Operation) -> Option<RequestBuilder>) {
        for operation in &self.operations {
            if let Some(request) = request(operation) {
                check(operation, status, request.send().await.unwrap()).await;
                self.seen.insert((operation.id.clone(), status));
            }
        }
    }

    /// Fails if a listed error was not provoked. Status 500 is exempt: it only occurs after a defect.
    fn assert_all_seen(&self) {
        let listed = self
            .operations
            .iter()
            .flat_map(|operation| operation.errors.keys().map(|status| (operation.id.clone(), *status)));
        let unseen: Vec<_> = listed.filter(|listed| listed.1 != 500 && !self.seen.contains(listed)).collect();
        assert!(unseen.is_empty(), "listed, but not provoked: {unseen:?}");
    }
}

/// Returns the error statuses among an operation's responses, and the content types of each.
fn errors(responses: &Value) -> BTreeMap<u16, BTreeSet<String>> {
    let responses = responses.as_object().unwrap().iter();
    let errors = responses.filter_map(|(status, response)| {
        let status = status.parse().ok().filter(|status| *status >= 400)?;
        Some((status, response["content"].as_object()?.keys().cloned().collect()))
    });
    errors.collect()
}

/// Checks that a response is a problem, and is described.
async fn check(operation: &Operation, status: u16, response: Response) {
    let id = &operation.id;
    assert_eq!(response.status().as_u16(), status, "{id}");
    let listed = operation.errors.get(&status);
    let content_types = listed.unwrap_or_else(|| panic!("{id} does not list {status}"));
    let headers = response.headers().clone();
    assert!(headers[CONTENT_TYPE] == PROBLEM && content_types.contains(PROBLEM), "{id}: {status}");
    assert_eq!(headers.contains_key(RETRY_AFTER), matches!(status, 429 | 503), "{id}: {status}");
    assert_eq!(headers.contains_key(WWW_AUTHENTICATE), status == 401, "{id}: {status}");
    let body: Value = response.json().await.unwrap();
    for field in ["type", "title", "status", "detail", "errors"] {
        assert!(!body[field].is_null(), "{id}: {status} without {field:?}: {body}");
    }
    let problem: Problem = serde_json::from_value(body).unwrap();
    assert_eq!(problem.status, status, "{id}");
    assert_eq!(problem.errors.is_empty(), status != 422, "{id}: {problem:?}");
    assert_eq!(problem.owner.is_some(), status == 409, "{id}: {problem:?}");
}

async fn every_listed_error_can_be_provoked(database: Database) {
    let server = database.start().await;
    let mut described = Described::read(&server).await;
    let described = &mut described;
    let young = json!({"agent_id": "a", "agent_name": "A", "base_url": "http://a", "capabilities": [],
        "instance_id": "young", "instance_age_seconds": 1});
    let url = format!("{}/register", server.url());
    assert!(reqwest::Client::new().post(url).json(&young).send().await.unwrap().status().is_success());
    bad_requests(&server, described).await;
    conflicts(&server, described, young).await;
    slow_bodies(&server, described).await;
    let elsewhere = |operation: &Operation| operation.request(&server).header(HOST, "elsewhere.example");
    described.provoke(421, |operation| (!operation.is_health_check()).then(|| elsewhere(operation))).await;
    server.shutdown().await;
    bad_credentials(&database, described).await;
    too_many_requests(&database, described).await;
    too_many_connections(&database, described).await;
    described.assert_all_seen();
}

async fn bad_requests(server: &Registry, described: &mut Described) {
    let with_body = |operation: &Operation, body: &'static str| {
        operation.has_body.then(|| operation.request_with(server, body))
    };
    described.provoke(400, |operation| with_body(operation, "[")).await;
    described
        .provoke(400, |operation| match &*operation.id {
            "list_agents" => Some(operation.request_to(server, "/agents?limit=0")),
            "search_capabilities" => Some(operation.request(server)),
            "watch_events" => Some(operation.request(server).header("Last-Event-ID", "x")),
            _ => None,
        })
        .await;
    described
        .provoke(404, |operation| {
            let unknown =
                || operation.request_for(server, "unknown").json(&json!({"status": "busy", "reason": "x"}));
            operation.is_for_an_agent().then(unknown)
        })
        .await;
    let long = vec![b' '; limits::BODY_BYTES + 1];
    let too_long = |operation: &Operation| operation.request_with(server, long.clone());
    described.provoke(413, |operation| operation.has_body.then(|| too_long(operation))).await;
    let text = |operation: &Operation| operation.request(server).body("{}");
    described.provoke(415, |operation| operation.has_body.then(|| text(operation))).await;
    described.provoke(422, |operation| with_body(operation, "{\"status\": 7}")).await;
}

/// Sends requests of a process that started before the owner of the agent's id.
async fn conflicts(server: &Registry, described: &mut Described, mut registration: Value) {
    registration["instance_id"] = json!("old");
    registration["instance_age_seconds"] = json!(1_000);
    let request = |operation: &Operation| {
        let body = match &*operation.id {
            "register" => registration.clone(),
            _ => json!({"instance_id": "old", "status": "busy", "reason": "x"}),
        };
        operation.request(server).json(&body)
    };
    described.provoke(409, |operation| operation.has_body.then(|| request(operation))).await;
}

/// Sends requests whose bodies never arrive. All at once, since each takes the server's whole time limit.
async fn slow_bodies(server: &Registry, described: &mut Described) {
    let with_body = || described.operations.iter().filter(|operation| operation.has_body);
    let answers = join_all(with_body().map(async |operation| {
        let (method, path) = (&operation.method, operation.path.replace("{id}", "a"));
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n"
        );
        let mut connection = TcpStream::connect(server.local_addr()).await.unwrap();
        connection.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await.unwrap();
        (operation.id.clone(), answer)
    }))
    .await;
    for (id, answer) in answers {
        let operation = described.operations.iter().find(|operation| operation.id == id).unwrap();
        assert!(operation.errors[&408].contains(PROBLEM), "{id}");
        assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains(PROBLEM), "{id}: {answer}");
        described.seen.insert((id, 408));
    }
}

async fn bad_credentials(database: &Database, described: &mut Described) {
    let (file, tokens) = File::new(&["scope = \"agent\"\nagents = [\"other\"]"]);
    let server = database.start_with(|config| config.tokens_file = Some(file.path.clone())).await;
    described
        .provoke(401, |operation| (!operation.is_health_check()).then(|| operation.request(&server)))
        .await;
    let authorization = format!("Bearer {}", tokens[0]);
    let body = serde_json::to_value(agent("a", "work")).unwrap();
    let write = |operation: &Operation| operation.request(&server).header(AUTHORIZATION, &authorization);
    described
        .provoke(403, |operation| (operation.method != Method::GET).then(|| write(operation).json(&body)))
        .await;
    server.shutdown().await;
}

async fn too_many_requests(database: &Database, described: &mut Described) {
    let server = database.start_with(|config| config.rate_limit = NonZeroU32::new(1)).await;
    for operation in described.operations.iter().filter(|operation| !operation.is_health_check()) {
        let refused = loop {
            // Concurrently, so that a slow machine does not spread them over as many seconds.
            let answers = join_all((0..4).map(|_| operation.request(&server).send())).await;
            let mut answers = answers.into_iter().map(Result::unwrap);
            if let Some(refused) = answers.find(|answer| answer.status() == 429) {
                break refused;
            }
        };
        check(operation, 429, refused).await;
        described.seen.insert((operation.id.clone(), 429));
    }
    server.shutdown().await;
}

async fn too_many_connections(database: &Database, described: &mut Described) {
    let server = database.start_with(|config| config.max_connections = NonZeroUsize::MIN).await;
    // This connection uses up the limit and stays open.
    let mut connection = TcpStream::connect(server.local_addr()).await.unwrap();
    connection.write_all(b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    assert!(connection.read(&mut [0; 1_024]).await.unwrap() > 0);
    // An overloaded server stays alive for its supervisor.
    let is_rejected = |operation: &&Operation| operation.id != "get_liveness";
    described
        .provoke(503, |operation| {
            Some(operation).filter(is_rejected).map(|operation| operation.request(&server))
        })
        .await;
    let liveness = reqwest::get(format!("{}/livez", server.url())).await.unwrap();
    assert_eq!(liveness.text().await.unwrap(), "alive");
    drop(connection);
    server.shutdown().await;
}

async fn writes_and_server_health_are_503_without_the_database(database: Database) {
    let proxy = proxy_before(&database).await;
    let server = database.through(&proxy).start().await;
    let sdk = client(&server);
    sdk.register(&agent("a", "work")).await.unwrap();
    let mut described = Described::read(&server).await;
    proxy.set(Fault::Refuse);
    let impatient = impatient_client(&server);
    eventually("the server is unhealthy", async || impatient.get_server_health().await.is_err()).await;
    let mut body = serde_json::to_value(agent("a", "rest")).unwrap();
    body["reason"] = json!("disk upgrade");
    described
        .provoke(503, |operation| {
            (operation.method != Method::GET).then(|| operation.request(&server).json(&body))
        })
        .await;

    let response = reqwest::get(format!("{}/health", server.url())).await.unwrap();
    assert_eq!(response.status(), 503);
    let content_type = response.headers()[CONTENT_TYPE].to_str().unwrap().to_owned();
    let health = described.operations.iter().find(|operation| operation.id == "get_server_health");
    assert!(health.unwrap().errors[&503].contains(&content_type), "{content_type}");
    response.json::<ServerHealth>().await.unwrap();
    server.shutdown().await;
}

/// The introduction of the description says so: these requests never reach an operation.
async fn invalid_http_is_rejected_without_a_body(database: Database) {
    let server = database.start().await;
    let many_fields = format!("GET /stats HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(65));
    let long_head = format!("GET /stats HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(40_000));
    for (request, expected) in [("nonsense\r\n\r\n", 400), (&*many_fields, 431), (&long_head, 431)] {
        let mut connection = TcpStream::connect(server.local_addr()).await.unwrap();
        connection.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected} ")), "{answer}");
        let length = format!("{CONTENT_LENGTH}: 0\r\n");
        assert!(answer.ends_with("\r\n\r\n") && answer.contains(&length), "{answer}");
    }
    server.shutdown().await;
}
