//! The log of changes and the access log, as operators read them.

use std::collections::HashSet;
use std::time::Instant;

use registry_sdk::contract::Registration;
use reqwest::Method;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Running, registration, run, token_and_entry};

/// A server with a tokens file.
struct Scene {
    folder: tempfile::TempDir,
    running: Running,
    token: String,
}

/// An attempt to change an agent.
struct Attempt<'a> {
    method: Method,
    path: &'a str,
    token: Option<&'a str>,
    content_type: &'a str,
    body: String,
}

impl Scene {
    fn new(flags: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let made = run(&["token", "new", "--name", "ci", "--scope", "admin"]);
        let (token, entry) = token_and_entry(made);
        let file = folder.path().join("tokens.toml");
        std::fs::write(&file, entry).unwrap();
        let file = file.display().to_string();
        let flags = [&["--tokens-file", &file], flags].concat();
        let running = Running::start_with(&folder.path().join("registry.db"), &flags);
        Self { folder, running, token }
    }

    fn request(&self, attempt: &Attempt<'_>) -> reqwest::RequestBuilder {
        let url = format!("{}{}", self.running.url, attempt.path);
        let request = reqwest::Client::new().request(attempt.method.clone(), url).body(attempt.body.clone());
        let request = request.header("content-type", attempt.content_type);
        match attempt.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    async fn status(&self, attempt: &Attempt<'_>, id: &str) -> u16 {
        self.request(attempt).header("x-request-id", id).send().await.unwrap().status().as_u16()
    }
}

impl<'a> Attempt<'a> {
    fn new(method: Method, path: &'a str, token: Option<&'a str>, body: &str) -> Self {
        Self { method, path, token, content_type: "application/json", body: body.to_owned() }
    }
}

#[tokio::test]
async fn attempt_rejected_before_its_handler_is_one_line() {
    let scene = Scene::new(&[]);
    let (valid, wrong) = (Some(&*scene.token), Some("agreg_wrong"));
    let put = |path, token, body| Attempt::new(Method::PUT, path, token, body);
    let register = |body: &str| Attempt::new(Method::POST, "/register", valid, body);
    let plain = Attempt { content_type: "text/plain", ..register("x") };
    for (number, (attempt, status, expected)) in [
        (
            Attempt::new(Method::DELETE, "/agents/agent-1", None, ""),
            401,
            r#"agent_id="agent-1" change="remove""#,
        ),
        (put("/agents/%61gent-1/status", wrong, "{}"), 401, r#"agent_id="agent-1" change="set the status""#),
        (Attempt::new(Method::POST, "/register", None, "{}"), 401, r#"change="register""#),
        (
            Attempt::new(Method::POST, "/agents/a/heartbeat", None, ""),
            401,
            r#"agent_id="a" change="heartbeat""#,
        ),
        (register("{"), 400, r#"token="ci""#),
        (plain, 415, "application/json"),
        (register(&" ".repeat(300_000)), 413, "262144 bytes"),
        (register("{}"), 422, "agent_name"),
        (put("/agents/a/status", valid, "{"), 400, r#"agent_id="a""#),
        (put("/agents/a/maintenance", valid, r#"{"reason":""}"#), 422, r#"change="begin maintenance""#),
    ]
    .into_iter()
    .enumerate()
    {
        // Neither rejected reads nor unknown paths are changes, so they are not logged.
        let read = Attempt::new(Method::GET, "/agents/agent-1", None, "");
        assert_eq!(scene.status(&read, "a-read").await, 401);
        let id = format!("request-{number}");
        assert_eq!(scene.status(&attempt, &id).await, status, "{id}");
        let line = scene.running.logged(" an agent");
        let status = format!("status={status}");
        for expected in
            ["INFO", "did not change an agent", &id, &status, "client=127.0.0.1", "error=", expected]
        {
            assert!(line.contains(expected), "{expected}: {line}");
        }
    }
}

#[tokio::test]
async fn flood_of_attempts_causes_few_lines_that_count_the_others() {
    let scene = Scene::new(&[]);
    let (attempt, began) = (Attempt::new(Method::DELETE, "/agents/a", None, ""), Instant::now());
    for _ in 0..300 {
        assert_eq!(scene.status(&attempt, "flood").await, 401);
    }
    // Ten lines at once for an address, and one per second.
    let most = 11 + usize::try_from(began.elapsed().as_secs()).unwrap();
    // Rejections by the registry itself are not limited, so this line marks the end.
    let last = Attempt { token: Some(&scene.token), ..attempt };
    assert_eq!(scene.status(&last, "the-end").await, 404);
    let mut lines = Vec::new();
    loop {
        let line = scene.running.logged(" an agent");
        if line.contains("the-end") {
            break;
        }
        lines.push(line);
    }
    assert!((10..=most).contains(&lines.len()), "{}", lines.len());
    let left_out = |line: &String| line.split_once("left_out=")?.1.split(' ').next()?.parse::<usize>().ok();
    assert!(lines.len() + lines.iter().filter_map(left_out).sum::<usize>() <= 300);
}

#[tokio::test]
async fn request_id_is_the_same_in_the_response_and_the_log() {
    let scene = Scene::new(&["--access-log"]);
    let remove = Attempt::new(Method::DELETE, "/agents/a", Some(&scene.token), "");
    let longest = "~".repeat(128);
    let (taken, replaced) = (["!", &longest], ["\u{fc}", "a b", "a\tb", "", &"x".repeat(129)]);
    for (given, is_taken) in taken.iter().map(|id| (*id, true)).chain(replaced.iter().map(|id| (*id, false)))
    {
        let given = reqwest::header::HeaderValue::from_bytes(given.as_bytes()).unwrap();
        let answer = scene.request(&remove).header("x-request-id", given.clone()).send().await.unwrap();
        let id = &answer.headers()["x-request-id"];
        assert_eq!(*id == given, is_taken, "{given:?}: {id:?}");
        let expected = format!("request_id=\"{}\"", id.to_str().unwrap());
        for message in ["did not change an agent", "request finished"] {
            let line = scene.running.logged(message);
            assert!(line.contains(&expected), "{expected}: {line}");
        }
    }
}

/// Returns the names of the fields in a log line.
fn fields(line: &str) -> Vec<String> {
    let (mut names, mut is_quoted, mut word) = (Vec::new(), false, String::new());
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' if is_quoted => drop(characters.next()),
            '"' => is_quoted = !is_quoted,
            ' ' if !is_quoted => word.clear(),
            '=' if !is_quoted => names.push(std::mem::take(&mut word)),
            _ => word.push(character),
        }
    }
    names
}

#[tokio::test]
async fn line_has_each_field_once_and_quotes_values_with_blanks() {
    let scene = Scene::new(&["--access-log"]);
    let token = Some(&*scene.token);
    let body = serde_json::to_string(&registration(1)).unwrap();
    let attempts = [
        Attempt::new(Method::POST, "/register", token, &body),
        Attempt::new(Method::POST, "/register", token, "{"),
        Attempt::new(Method::DELETE, "/agents/nobody", token, ""),
    ];
    for attempt in attempts {
        scene.status(&attempt, "the-request").await;
        for message in [" an agent", "request finished"] {
            let line = scene.running.logged(message);
            let names = fields(&line);
            assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len(), "{line}");
            assert!(
                names.contains(&"request_id".to_owned()) && names.contains(&"token".to_owned()),
                "{line}"
            );
            // Only fields follow the message.
            let rest = line.split_once(message).unwrap().1;
            assert_eq!(fields(rest).len(), words(rest), "{line}");
        }
    }
    std::fs::write(scene.folder.path().join("tokens.toml"), "[[token]]\nname = 1").unwrap();
    scene.running.send_signal("HUP");
    let line = scene.running.logged("ERROR");
    assert!(line.contains("error=\"") && line.contains("tokens.toml"), "{line}");
}

/// Returns the number of words, where quoted text counts as one word.
fn words(text: &str) -> usize {
    let (mut is_quoted, mut is_escaped) = (false, false);
    let outside = |character: char| {
        let ends = character == ' ' && !is_quoted;
        is_quoted ^= character == '"' && !is_escaped;
        is_escaped = character == '\\' && !is_escaped;
        ends
    };
    text.trim().split(outside).filter(|word| !word.is_empty()).count()
}

#[tokio::test]
async fn json_line_has_its_fields_in_one_object() {
    let scene = Scene::new(&["--access-log", "--log-format", "json"]);
    let attempt = Attempt::new(
        Method::PUT,
        "/agents/a/maintenance",
        Some(&scene.token),
        r#"{"reason":"the \"disk\""}"#,
    );
    assert_eq!(scene.status(&attempt, "the-request").await, 404);
    for (message, name, expected) in [
        ("did not change an agent", "change", "begin maintenance: the \"disk\""),
        ("request finished", "path", "/agents/a/maintenance"),
    ] {
        let line: Value = serde_json::from_str(&scene.running.logged(message)).unwrap();
        assert_eq!(line["fields"][name], expected, "{line}");
        assert_eq!(line["fields"]["request_id"], "the-request", "{line}");
        assert!(line.get("span").is_none() && line.get("spans").is_none(), "{line}");
    }
}

#[tokio::test]
async fn repeatedly_reached_connection_limit_is_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start_with(&folder.path().join("registry.db"), &["--max-connections", "8"]);
    let address = running.url.strip_prefix("http://").unwrap();
    let connect = async || {
        let mut connection = TcpStream::connect(address).await.unwrap();
        connection.write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        let mut response = [0; 1_024];
        let read = connection.read(&mut response).await.unwrap();
        let is_last = String::from_utf8_lossy(&response[..read]).contains("connection: close");
        (connection, is_last)
    };
    let mut open = Vec::new();
    for _ in 0..20 {
        // Whenever a connection ends, another one replaces it, and a further one exceeds the limit.
        open.pop();
        loop {
            let (connection, is_rejected) = connect().await;
            if is_rejected && open.len() == 8 {
                break;
            }
            if !is_rejected {
                open.push(connection);
            }
        }
    }
    assert!(running.logged("WARN").contains("connection limit reached"));
    running.send_signal("TERM");
    assert!(running.logged("registry_server").contains("received SIGTERM"));
}

#[tokio::test]
async fn every_change_is_logged_with_its_request_token_and_outcome() {
    let folder = tempfile::tempdir().unwrap();
    let made = run(&["token", "new", "--name", "ci", "--scope", "agent", "--agent", "agent-*"]);
    let (token, text) = token_and_entry(made);
    let file = folder.path().join("tokens.toml");
    std::fs::write(&file, &text).unwrap();
    let flags = ["--tokens-file", &file.display().to_string(), "--access-log"];
    let running = Running::start_with(&folder.path().join("registry.db"), &flags);
    let send = async |method: reqwest::Method, path: &str, body: String| {
        let request = reqwest::Client::new().request(method, format!("{}{path}", running.url));
        let request = request.bearer_auth(&token).header("x-request-id", "the-request").body(body);
        let answer = request.header("content-type", "application/json").send().await.unwrap();
        assert_eq!(answer.headers()["x-request-id"], "the-request");
    };
    let registration = |number| serde_json::to_string(&registration(number)).unwrap();
    let other = serde_json::to_string(&Registration::new("other", "Other", "http://a:1")).unwrap();
    let mut revisions = Vec::new();
    for (method, path, body, agent_id, change, outcome) in [
        ("POST", "/register", registration(1), "agent-1", "register at http://agent:8000", "changed"),
        ("POST", "/register", other, "other", "change=\"register\"", "does not allow"),
        (
            "POST",
            "/agents/agent-1/heartbeat",
            r#"{"status":"offline"}"#.to_owned(),
            "agent-1",
            "set the status offline by a heartbeat",
            "changed",
        ),
        (
            "PUT",
            "/agents/agent-1/status",
            r#"{"status":"busy"}"#.to_owned(),
            "agent-1",
            "set the status busy",
            "changed",
        ),
        (
            "PUT",
            "/agents/agent-1/maintenance",
            r#"{"reason":"disk\n"}"#.to_owned(),
            "agent-1",
            "change=\"begin maintenance: disk\\n\"",
            "changed",
        ),
        ("DELETE", "/agents/agent-1/maintenance", String::new(), "agent-1", "end maintenance", "changed"),
        ("DELETE", "/agents/agent-1", String::new(), "agent-1", "remove", "changed"),
        ("DELETE", "/agents/agent-1", String::new(), "agent-1", "remove", "no agent"),
    ] {
        send(method.parse().unwrap(), path, body).await;
        let line = running.logged(" an agent");
        for expected in ["INFO", "the-request", "token=\"ci\"", "client=127.0.0.1", agent_id, change, outcome]
        {
            assert!(line.contains(expected), "{expected}: {line}");
        }
        if outcome == "changed" {
            assert!(line.contains("changed_by=\"ci\""), "{line}");
            let revision = line.split("revision=").nth(1).unwrap().split(' ').next().unwrap();
            revisions.push(revision.parse::<u64>().unwrap());
        }
        let line = running.logged("request finished");
        assert!(line.contains("INFO") && line.contains(path) && line.contains("the-request"), "{line}");
    }
    assert_eq!(revisions, [1, 2, 3, 4, 5, 6]);
}

/// Each address causes one line. The registration of the next agent shows that there is no second one.
#[tokio::test]
async fn loopback_address_of_an_agent_on_another_host_is_logged_once() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("registry.db");
    let running = Running::start_with(&database, &["--trusted-proxy", "127.0.0.1"]);
    let register = async |id: &str, url: &str, client: &str| {
        let body = serde_json::to_vec(&Registration::new(id, id, url)).unwrap();
        let request = reqwest::Client::new().post(format!("{}/register", running.url)).body(body);
        let request = request.header("content-type", "application/json").header("x-forwarded-for", client);
        let answer = request.send().await.unwrap();
        assert!(answer.status().is_success());
    };
    let elsewhere = "192.0.2.7";
    register("here", "http://localhost:1", "127.0.0.1").await;
    register("well", "http://agent:8000", elsewhere).await;
    for (id, url) in [
        ("one", "http://127.0.0.1:8002"),
        ("two", "http://localhost"),
        ("three", "http://[::1]:1/x"),
        ("four", "http://a.localhost"),
        ("five", "http://localhost.:1"),
    ] {
        register(id, url, elsewhere).await;
        register(id, url, elsewhere).await;
        let line = running.logged("loopback");
        let names_all = [id, url, elsewhere].iter().all(|text| line.contains(text));
        assert!(line.contains("WARN") && names_all, "{line}");
    }
}
