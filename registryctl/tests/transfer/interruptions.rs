//! Imports that are refused or interrupted, and finish when they are run again.

use std::fmt::Write as _;
use std::process::Stdio;
use std::time::Duration;

use registry_sdk::contract::{AgentStatus, MaintenanceRequest};
use registry_sdk::testing::{Fault, FaultProxy, MockRegistry};
use registry_server::{Config, NewToken, Server};
use serde_json::{Value, json};

use crate::support::{
    Database, Ended, agents, client, eventually, export, file_of, import, import_well, line, line_with, path,
    registryctl, run,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_may_not_change_every_agent_is_refused_clearly() {
    let folder = tempfile::tempdir().unwrap();
    let (tokens_file, _) = path(&folder, "tokens.toml");
    let mut file = String::new();
    let mut tokens = Vec::new();
    for scope in ["scope = \"read\"", "scope = \"agent\"\nagents = [\"a-*\"]", "scope = \"admin\""] {
        let NewToken { token, sha256, .. } = NewToken::generate().unwrap();
        let name = tokens.len();
        writeln!(file, "[[token]]\nname = \"token-{name}\"\nsha256 = \"{sha256}\"\n{scope}").unwrap();
        tokens.push(token);
    }
    std::fs::write(&tokens_file, file).unwrap();
    let config = Config {
        listen: ([127, 0, 0, 1], 0).into(),
        database_url: "sqlite::memory:".to_owned(),
        tokens_file: Some(tokens_file),
        ..Config::default()
    };
    let server = Server::bind(config).await.unwrap();
    let url = server.url();
    let agents = file_of(&[line("a-1"), line("a-2"), line("b-1"), line("b-2")]);
    for (token, denied) in tokens.iter().zip([Some("token-0"), Some("token-1"), None]) {
        let Ended { code, reasons, .. } = import(&url, &agents, &["--token", token]);
        let Some(name) = denied else {
            assert_eq!(code, Some(0), "{reasons}");
            continue;
        };
        assert_eq!(code, Some(1), "{reasons}");
        for part in [
            "registryctl: stopped in line ",
            "an import needs a token that may change every agent of the file: scope \"admin\"",
            &format!("(403): the token \"{name}\" does not allow to change the agent "),
        ] {
            assert!(reasons.contains(part), "{reasons}");
        }
    }
    let Ended { code, reasons, .. } = import(&url, &agents, &[]);
    assert!(code == Some(1) && reasons.contains("(401)"), "{reasons}");
    let Ended { code, reasons, .. } = run(&url, &["export"]);
    assert!(code == Some(1) && reasons.contains("(401)"), "{reasons}");
    // Whoever may read may export.
    assert_eq!(run(&url, &["export", "--token", &tokens[0]]).said.lines().count(), 6);
    server.shutdown().await;
}

/// An older registry may take less than the one of the export.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_registry_refuses_is_named_and_keeps_no_other_agent_out() {
    let registry = MockRegistry::start().await;
    registry.refuse_registrations("base_url", "must be reachable from outside");
    let file = file_of(&[line("a"), line("b")]);
    let Ended { code, said, reasons } = import(&registry.url(), &file, &[]);
    assert_eq!((code, &*said), (Some(1), ""));
    assert!(reasons.contains("0 imported, 0 already there, 2 refused; the registry refuses"), "{reasons}");
    assert!(
        reasons.contains("\n  line 2: ") && reasons.contains("must be reachable from outside"),
        "{reasons}"
    );
    registry.heal();
    assert_eq!(import_well(&registry.url(), &file, &[]), json!({"imported": 2}));
}

async fn finishes_when_it_is_run_again(database: Database) {
    let server = database.serve().await;
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
    // The second time, it is killed.
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
        for part in ["stopped in line ", "the same command goes on from there", "cannot be reached"] {
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
async fn an_interrupted_import_finishes_when_it_is_run_again_on_sqlite() {
    finishes_when_it_is_run_again(Database::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_import_finishes_when_it_is_run_again_on_postgres() {
    finishes_when_it_is_run_again(Database::postgres()).await;
}

/// However far an agent in maintenance got.
#[tokio::test(flavor = "multi_thread")]
async fn a_half_imported_agent_is_finished() {
    for status in ["active", "busy"] {
        for (steps, has_maintenance) in [(1, false), (2, true)] {
            let registry = MockRegistry::start().await;
            let more = json!({"status": status, "metadata": {"x": 1}, "maintenance": {"reason": "disk"}});
            let whole = line_with("a", more);
            let mut half = whole.clone();
            half["status"] = json!("offline");
            half.as_object_mut().unwrap().remove("maintenance");
            assert_eq!(import_well(&registry.url(), &file_of(&[half]), &[]), json!({"imported": 1}));
            if has_maintenance {
                registry.client().set_maintenance("a", &MaintenanceRequest::new("disk")).await.unwrap();
            }
            assert_eq!(
                import_well(&registry.url(), &file_of(&[whole]), &[]),
                json!({"imported": 1}),
                "{steps}"
            );
            let record = registry.agent("a").unwrap();
            assert_eq!(record.status.as_str(), status);
            assert_eq!(record.maintenance.unwrap().reason, "disk");
        }
    }
}

/// An agent that nobody runs falls silent after its import. It does not come to life again by another one.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_fell_silent_since_is_left_alone() {
    let registry = MockRegistry::builder().heartbeat_timeout(Duration::from_millis(100)).start().await;
    let file = file_of(&[line_with("a", json!({"maintenance": {"reason": "disk"}}))]);
    assert_eq!(import_well(&registry.url(), &file, &[]), json!({"imported": 1}));
    eventually("it is offline", async || registry.agent("a").unwrap().status == AgentStatus::Offline).await;
    assert_eq!(import_well(&registry.url(), &file, &[]), json!({"already_there": 1}));
    assert_eq!(registry.agent("a").unwrap().status, AgentStatus::Offline);
}

/// A registry that is restarted, or asks to be sent less, does not end an import.
#[tokio::test(flavor = "multi_thread")]
async fn an_import_outlives_a_short_outage() {
    let registry = MockRegistry::start().await;
    registry.outage(Duration::from_secs(1));
    assert_eq!(import_well(&registry.url(), &file_of(&[line("a")]), &[]), json!({"imported": 1}));
    registry.fail_next(40, 429);
    let lines: Vec<Value> = (0..20).map(|number| line(&format!("b{number}"))).collect();
    assert_eq!(import_well(&registry.url(), &file_of(&lines), &[]), json!({"imported": 20}));
}
