//! Import of A2A agent cards from files and URLs, and errors for input that is not a card.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use registry_sdk::{Registration, RegistryClient, SearchQuery};
use registry_server::Server;
use serde_json::{Value, json};
use tempfile::TempDir;
use test_support::start_server;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::support::{Ended, registryctl};

struct Scene {
    server: Server,
    folder: TempDir,
}

impl Scene {
    async fn new() -> Self {
        Self { server: start_server(|_| {}).await, folder: tempfile::tempdir().unwrap() }
    }

    fn client(&self) -> RegistryClient {
        RegistryClient::new(self.server.url()).unwrap()
    }

    fn file(&self, text: &[u8]) -> PathBuf {
        let path = self.folder.path().join("file.json");
        std::fs::write(&path, text).unwrap();
        path
    }

    fn import(&self, file: impl AsRef<Path>, more: &[&str]) -> Ended {
        self.command(file.as_ref(), more).output().unwrap().into()
    }

    fn command(&self, file: &Path, more: &[&str]) -> Command {
        let mut command = registryctl(&self.server.url(), &["import"]);
        command.arg(file).args(more);
        command
    }

    async fn assert_empty(&self) {
        assert_eq!(self.client().get_stats().await.unwrap().total_agents, 0);
    }
}

fn card(url: &str) -> String {
    json!({
        "name": "Recipe Agent", "description": "Knows what to cook", "version": "1.0.0",
        "supportedInterfaces": [{"url": url, "protocolBinding": "JSONRPC", "protocolVersion": "1.0"}],
        "capabilities": {}, "defaultInputModes": ["text/plain"], "defaultOutputModes": ["text/plain"],
        "skills": [{"id": "find-recipe", "name": "Finds recipes", "description": "Finds recipes.", "tags": ["cooking"],
            "examples": ["What can I cook with leeks?"]}],
    })
    .to_string()
}

/// Starts a server that answers every request with this body.
async fn serve(body: impl FnOnce(&str) -> String) -> (String, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let body = body(&url);
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                if connection.read_buf(&mut request).await.unwrap() == 0 {
                    break;
                }
            }
            let head =
                format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
            let _ = connection.write_all(format!("{head}{body}").as_bytes()).await;
        }
    });
    (url, serving)
}

#[tokio::test(flavor = "multi_thread")]
async fn imported_agent_is_found_by_a_sentence() {
    let scene = Scene::new().await;
    let card = format!("\u{feff}{}\n", card("http://recipes.example/a2a").replace(',', " ,\n "));
    let output = scene.import(scene.file(card.as_bytes()), &[]);
    assert_eq!(output.code, Some(0), "{}", output.reasons);
    let record: Value = serde_json::from_str(&output.said).unwrap();
    assert_eq!(
        (&record["agent_id"], &record["heartbeat_interval_seconds"]),
        (&json!("recipe-agent"), &json!(86_400))
    );

    let client = scene.client();
    let found = client
        .search_capabilities(SearchQuery::sentence("Who can cook something with leeks?"))
        .await
        .unwrap();
    assert_eq!(found[0].base_url, "http://recipes.example/a2a");
    let kept = client.get_card("recipe-agent").await.unwrap();
    assert_eq!(kept.as_str(), card.trim_start_matches('\u{feff}').trim(), "byte for byte");
    scene.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn card_is_read_from_an_agent_and_from_standard_input() {
    let scene = Scene::new().await;
    let (url, _serving) = serve(|url| card(&format!("{url}/"))).await;
    let output = scene.import(&url, &["--id", "by-url", "--table"]);
    assert_eq!(output.code, Some(0), "{}", output.reasons);
    assert!(output.reasons.contains("goes offline in two days"), "{}", output.reasons);
    let record = scene.client().get_agent("by-url").await.unwrap();
    assert_eq!(record.health_path.as_deref(), Some("/.well-known/agent-card.json"));

    let mut command = scene.command(Path::new("-"), &["--id", "by-pipe"]);
    let mut running = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    running.stdin.take().unwrap().write_all(card("http://a.example").as_bytes()).unwrap();
    assert!(running.wait().unwrap().success());
    assert_eq!(scene.client().get_agent("by-pipe").await.unwrap().health_path, None);
    scene.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn registered_agents_are_unchanged_without_replace() {
    let scene = Scene::new().await;
    let first = scene.file(card("http://recipes.example/a2a").as_bytes());
    assert_eq!(scene.import(&first, &[]).code, Some(0));
    let before = scene.client().get_agent("recipe-agent").await.unwrap();
    let again = scene.import(&first, &[]);
    assert_eq!(again.code, Some(0));
    assert!(again.reasons.contains("use --replace to renew it"), "{}", again.reasons);

    let other = scene.file(card("http://other.example").as_bytes());
    let refused = scene.import(&other, &[]);
    assert_eq!(refused.code, Some(1));
    let said = refused.reasons;
    assert!(said.contains("the id of another agent") && said.contains("--id"), "{said}");
    let kept = scene.client().get_agent("recipe-agent").await.unwrap();
    assert_eq!((kept.revision, kept.last_heartbeat), (before.revision, before.last_heartbeat));

    assert_eq!(scene.import(&other, &["--replace"]).code, Some(0));
    let replaced = scene.client().get_agent("recipe-agent").await.unwrap();
    assert_eq!(replaced.base_url, "http://other.example");
    assert!(replaced.last_heartbeat > before.last_heartbeat, "an import counts as a heartbeat");
    scene.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exports_are_told_from_cards() {
    let scene = Scene::new().await;
    let agent = r#"{"agent_id":"a","agent_name":"A","base_url":"http://a.example","capabilities":[]}"#;
    let export = format!("{{\"agent_registry_export\":1}}\n{agent}\n{{\"agents_exported\":1}}\n");
    let named = scene.import(scene.file(export.as_bytes()), &["--id", "b"]);
    assert_eq!(named.code, Some(1));
    assert!(named.reasons.contains("--id requires an A2A agent card"), "{}", named.reasons);
    scene.assert_empty().await;
    let output = scene.import(scene.file(export.as_bytes()), &[]);
    assert_eq!(output.code, Some(0), "{}", output.reasons);
    assert_eq!(scene.client().get_agent("a").await.unwrap().agent_name, "A");

    // Files that are neither get the error for exports.
    for other in [agent, "[]", "", "<html>", "{\"agent_registry_export\": 1,\n"] {
        let output = scene.import(scene.file(other.as_bytes()), &[]);
        assert_eq!(output.code, Some(1), "{other}");
        assert!(output.reasons.contains("line 1: expected"), "{other}: {}", output.reasons);
    }
    scene.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_cards_register_nothing() {
    let scene = Scene::new().await;
    let long = format!("{{\"name\": \"A\", \"url\": \"http://a\", \"x\": \"{}\"}}", "x".repeat(70_000));
    for (card, more, said) in [
        ("{\"name\": \"A\",\n \"url\": ", &[][..], "it is not JSON"),
        ("{\"name\": \"A\", \"url\": \"http://a\"} {}", &[], "it is not JSON: trailing characters"),
        (&long, &[], "up to 65536 bytes"),
        (&long.repeat(3), &[], "up to 65536 bytes"),
        ("{\"name\": \"A\"}", &[], "it has no interface at all"),
        (
            "{\"name\": \"A\", \"url\": \"http://0.0.0.0:8000\"}",
            &[],
            "base_url: 0.0.0.0:8000 is an address to listen on",
        ),
        ("{\"name\": \"A\", \"url\": \"http://a\"}", &["--id", "a b"], "agent_id: must be 1 to 64"),
    ] {
        let output = scene.import(scene.file(card.as_bytes()), more);
        assert_eq!(output.code, Some(1), "{said}");
        assert!(output.reasons.contains(said), "{said}: {}", output.reasons);
        scene.assert_empty().await;
    }
    let (url, _serving) = serve(|_| "<!doctype html>".to_owned()).await;
    for (url, said) in [
        (&*url, "it is HTML or XML"),
        ("http://127.0.0.1:1/card.json", "no A2A agent card from http://127.0.0.1:1/card.json"),
        ("HTTP://", "an http or https URL is needed"),
    ] {
        let output = scene.import(url, &[]);
        assert_eq!(output.code, Some(1), "{url}");
        assert!(output.reasons.contains(said), "{url}: {}", output.reasons);
    }
    scene.assert_empty().await;
    scene.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replace_removes_fields_that_the_card_lacks() {
    let scene = Scene::new().await;
    let plain = Registration::new("recipe-agent", "Recipe Agent", "http://recipes.example/a2a")
        .metadata("team", "kitchen");
    scene.client().register(&plain).await.unwrap();
    let file = scene.file(card("http://recipes.example/a2a").as_bytes());
    assert_eq!(scene.import(&file, &["--replace"]).code, Some(0));
    let record = scene.client().get_agent("recipe-agent").await.unwrap();
    assert!(
        record.metadata.is_empty() && record.card_digest.is_some(),
        "the registration replaces the old one entirely"
    );
    scene.server.shutdown().await;
}
