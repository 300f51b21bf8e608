//! Imports that are denied, rejected or interrupted, and then run again.

use std::fmt::Write as _;
use std::process::Stdio;
use std::sync::mpsc;
use std::time::Duration;

use registry_sdk::RegistryClient;
use registry_sdk::contract::AgentStatus;
use registry_sdk::testing::{Fault, FaultProxy, MockRegistry};
use registry_server::NewToken;
use serde_json::{Value, json};
use test_support::start_server;

use super::support::{
    Database, Ended, agents, client, eventually, export, file_of, import, import_well, line, line_with, path,
    registryctl, run, scripted, serve,
};

#[tokio::test(flavor = "multi_thread")]
async fn token_without_permission_for_every_agent_gets_a_clear_error() {
    let folder = tempfile::tempdir().unwrap();
    let (tokens_file, _) = path(&folder, "tokens.toml");
    let mut file = String::new();
    let mut tokens = Vec::new();
    for scope in [
        "scope = \"read\"",
        "scope = \"agent\"\nagents = [\"a-*\"]",
        "scope = \"agent\"\nagents = [\"*\"]",
        "scope = \"admin\"",
    ] {
        let NewToken { token, sha256, .. } = NewToken::generate().unwrap();
        let name = tokens.len();
        writeln!(file, "[[token]]\nname = \"token-{name}\"\nsha256 = \"{sha256}\"\n{scope}").unwrap();
        tokens.push(token);
    }
    std::fs::write(&tokens_file, file).unwrap();
    let server = start_server(|config| config.tokens_file = Some(tokens_file)).await;
    let url = server.url();
    let reader = RegistryClient::builder(&url).token(&*tokens[0]).build().unwrap();
    let maintenance = |id: &str| line_with(id, json!({"maintenance": {"reason": "disk"}}));
    let agents = file_of(&[maintenance("a-1"), line("a-2"), line("b-1"), maintenance("b-2")]);
    let needed = "an import needs a token with scope \"admin\", or with scope \"agent\" and patterns that match every agent in the file";
    for (token, expected) in tokens.iter().zip([
        Some("stopped at line 2, agent \"a-1\": 0 imported, 0 already there; "),
        // Agents are sent concurrently.
        Some("agent \"b-"),
        None,
        None,
    ]) {
        let Ended { code, reasons, .. } = import(&url, &agents, &["--token", token]);
        let Some(expected) = expected else {
            assert_eq!(code, Some(0), "{reasons}");
            assert_eq!(import_well(&url, &agents, &["--replace", "--token", token]), json!({"replaced": 4}));
            continue;
        };
        assert_eq!(code, Some(1), "{reasons}");
        assert_eq!(reasons.lines().count(), 1, "{reasons}");
        let count = reader.get_stats().await.unwrap().total_agents;
        let imported = format!(": {count} imported, 0 already there; ");
        for part in
            ["registryctl: stopped at line ", expected, &imported, "(403): the token \"token-", needed]
        {
            assert!(reasons.contains(part), "{reasons}");
        }
    }
    let Ended { code, reasons, .. } = import(&url, &agents, &[]);
    assert!(code == Some(1) && reasons.contains("(401)") && reasons.contains(needed), "{reasons}");
    let Ended { code, reasons, .. } = run(&url, &["export"]);
    assert!(code == Some(1) && reasons.contains("(401)"), "{reasons}");
    // An export only needs a token that can read.
    assert_eq!(run(&url, &["export", "--token", &tokens[0]]).said.lines().count(), 6);
    server.shutdown().await;
}

/// Most denied imports have a token that cannot change anything.
#[test]
fn nothing_is_sent_after_a_denied_first_agent() {
    let (seen, requests) = mpsc::channel();
    let url = scripted(move |request, _| {
        seen.send(request.to_owned()).unwrap();
        let status = if request.starts_with("GET ") { "404 Not Found" } else { "403 Forbidden" };
        (status, json!({"detail": "no"}).to_string())
    });
    let lines: Vec<Value> = (0..200).map(|number| line(&format!("a{number:03}"))).collect();
    let Ended { code, reasons, .. } = import(&url, &file_of(&lines), &[]);
    assert!(code == Some(1) && reasons.contains("stopped at line 2, agent \"a000\": "), "{reasons}");
    assert_eq!(requests.try_iter().collect::<Vec<_>>(), ["GET /agents/a000", "POST /register"]);
}

/// Agents already being sent are finished and counted.
#[test]
fn no_agent_is_begun_after_one_is_denied() {
    let (seen, requests) = mpsc::channel();
    let mut is_denied = false;
    let url = scripted(move |request, body| {
        // An agent whose record is read after the denial was not registered before it.
        seen.send((request.to_owned(), is_denied)).unwrap();
        if request.starts_with("GET ") {
            return ("404 Not Found", json!({"detail": "no such agent"}).to_string());
        }
        is_denied |= body.contains("a100");
        if is_denied {
            return ("403 Forbidden", json!({"detail": "no"}).to_string());
        }
        ("200 OK", body.to_owned())
    });
    let lines: Vec<Value> = (0..400).map(|number| line(&format!("a{number:03}"))).collect();
    let Ended { code, reasons, .. } = import(&url, &file_of(&lines), &[]);
    assert_eq!(code, Some(1), "{reasons}");
    assert_eq!(reasons.lines().count(), 1, "{reasons}");
    let requests: Vec<_> = requests.try_iter().collect();
    let registered = requests.iter().filter(|(request, is_denied)| request == "POST /register" && !is_denied);
    // The agent that is denied first is among them.
    let count = registered.count() - 1;
    assert!(reasons.contains(&format!(": {count} imported, 0 already there; ")), "{count}: {reasons}");
}

/// An older registry may have stricter limits than the exported one.
#[tokio::test(flavor = "multi_thread")]
async fn rejected_agents_are_named_and_do_not_stop_the_import() {
    let registry = MockRegistry::start().await;
    registry.refuse_registrations("base_url", "must be reachable from outside");
    let file = file_of(&[line("a"), line("b")]);
    let Ended { code, said, reasons } = import(&registry.url(), &file, &[]);
    assert_eq!((code, &*said), (Some(1), ""));
    assert!(
        reasons.contains("0 imported, 0 already there, 2 rejected; the registry rejected these agents"),
        "{reasons}"
    );
    assert!(
        reasons.contains("\n  line 2: ") && reasons.contains("must be reachable from outside"),
        "{reasons}"
    );
    registry.heal();
    assert_eq!(import_well(&registry.url(), &file, &[]), json!({"imported": 2}));
}

async fn finishes_when_it_is_run_again(database: Database) {
    let server = serve(&database).await;
    let proxy = FaultProxy::start(server.local_addr().to_string()).await;
    let url = format!("http://{}", proxy.address());
    let lines: Vec<Value> = (0..1_200)
        .map(|number| {
            let id = format!("a{number:04}");
            let status = AgentStatus::ALL[number % 3];
            let maintenance = (number % 2 == 0).then(|| json!({"reason": "disk"}));
            line_with(&id, json!({"status": status, "maintenance": maintenance}))
        })
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let (file, name) = path(&folder, "agents.jsonl");
    std::fs::write(&file, file_of(&lines)).unwrap();
    let direct = client(&server.url());
    let present = async || usize::try_from(direct.get_stats().await.unwrap().total_agents).unwrap();
    // The first import is cut off from the registry, the second one is killed.
    for (enough, is_killed) in [(200, false), (500, true)] {
        proxy.set(Fault::None);
        let mut command = registryctl(&url, &["import", &name]);
        let mut running = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        eventually("a part is imported", async || present().await >= enough).await;
        if is_killed {
            running.kill().unwrap();
            running.wait().unwrap();
            continue;
        }
        proxy.set(Fault::Refuse);
        let Ended { code, reasons, .. } = running.wait_with_output().unwrap().into();
        assert_eq!(code, Some(4), "{reasons}");
        for part in ["stopped at line ", "run the same command again to continue", "cannot be reached"] {
            assert!(reasons.contains(part), "{reasons}");
        }
        assert!(present().await < lines.len(), "the fault came too late");
    }
    let Ended { code, reasons, .. } = run(&server.url(), &["import", &name]);
    assert_eq!((code, &*reasons), (Some(0), ""));
    let imported = agents(&export(&server.url()));
    for line in &lines {
        let id = line["agent_id"].as_str().unwrap();
        assert_eq!(imported[id]["status"], line["status"], "{id}");
        assert_eq!(
            imported[id].get("maintenance"),
            line.get("maintenance").filter(|one| !one.is_null()),
            "{id}"
        );
    }
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupted_import_finishes_when_it_is_run_again_on_sqlite() {
    finishes_when_it_is_run_again(Database::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupted_import_finishes_when_it_is_run_again_on_postgres() {
    finishes_when_it_is_run_again(Database::postgres().await).await;
}

/// An import survives a restart of the registry and its rate limit.
#[tokio::test(flavor = "multi_thread")]
async fn import_survives_a_short_outage() {
    let registry = MockRegistry::start().await;
    registry.outage(Duration::from_secs(1));
    assert_eq!(import_well(&registry.url(), &file_of(&[line("a")]), &[]), json!({"imported": 1}));
    let lines: Vec<Value> = (0..200).map(|number| line(&format!("b{number}"))).collect();
    let (url, file) = (registry.url(), file_of(&lines));
    let importing = tokio::task::spawn_blocking(move || import_well(&url, &file, &[]));
    // The first agent is sent alone, and the rejections are spread over the others.
    registry.wait_until(|log| log.registrations("b0") > 0).await;
    registry.fail_next(40, 429);
    assert_eq!(importing.await.unwrap(), json!({"imported": 200}));
}

async fn concurrent_imports_count_their_own(database: Database) {
    let server = serve(&database).await;
    let lines: Vec<Value> = (0..300)
        .map(|number| {
            let maintenance = (number % 2 == 0).then(|| json!({"reason": "disk"}));
            line_with(&format!("a{number:03}"), json!({"maintenance": maintenance}))
        })
        .collect();
    let (url, file) = (server.url(), file_of(&lines));
    let imports: Vec<_> = [(); 2]
        .map(|()| {
            let (url, file) = (url.clone(), file.clone());
            std::thread::spawn(move || import_well(&url, &file, &[]))
        })
        .into();
    for counts in imports.into_iter().map(|import| import.join().unwrap()) {
        let sum: u64 = counts.as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum();
        assert_eq!(sum, 300, "{counts}");
    }
    let imported = agents(&export(&url));
    for line in &lines {
        let (id, maintenance) = (line["agent_id"].as_str().unwrap(), line.get("maintenance"));
        assert_eq!(imported[id]["status"], "active", "{id}");
        assert_eq!(imported[id].get("maintenance"), maintenance.filter(|one| !one.is_null()), "{id}");
    }
    assert_eq!(import_well(&url, &file, &[]), json!({"already_there": 300}));
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_imports_count_their_own_agents_on_sqlite() {
    concurrent_imports_count_their_own(Database::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_imports_count_their_own_agents_on_postgres() {
    concurrent_imports_count_their_own(Database::postgres().await).await;
}
