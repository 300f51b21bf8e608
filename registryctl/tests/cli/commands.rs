//! The short commands against a real server: output, errors and exit codes.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use registry_sdk::testing::{Fault, FaultProxy};
use registry_server::Server;
use serde_json::{Value, json};
use test_support::start_server;

use crate::support::{program, registryctl, text};

struct Registry {
    server: Server,
}

impl Registry {
    async fn start() -> Self {
        Self { server: start_server(|_| {}).await }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        registryctl(&self.server.url(), arguments)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs a command that must succeed, and returns its output as JSON.
    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn register(&self, id: &str) {
        let registration = json!({
            "agent_id": id, "agent_name": format!("Agent {id}"), "base_url": "http://agent:8000",
            "health_path": "/healthz", "probe": "off",
            "capabilities": [{"name": "code_review", "tags": ["rust"], "cost_estimate": "~10 tokens"}],
            "metadata": {"evil": "\u{1b}[31mred"},
        });
        let mut running = self
            .command(&["register", "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        running.stdin.take().unwrap().write_all(registration.to_string().as_bytes()).unwrap();
        assert!(running.wait().unwrap().success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_variable_counts_as_unset() {
    let registry = Registry::start().await;
    for variable in ["REGISTRY_TOKEN", "REGISTRY_CA_CERT", "REGISTRY_CLIENT_CERT"] {
        let output = registry.command(&["agents"]).env(variable, "").output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{variable}: {}", text(&output.stderr));
    }
    // Whether a registry listens at the default URL or not, that is no invalid URL.
    let output = program().env("REGISTRY_URL", "").arg("agents").output().unwrap();
    assert_ne!(output.status.code(), Some(2), "{}", text(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_get_json_and_exit_codes() {
    let registry = Registry::start().await;
    registry.register("a");
    registry.register("b");
    assert_eq!(registry.json(&["agents"]).as_array().unwrap().len(), 2);
    assert_eq!(registry.json(&["agents", "--status", "busy"]), json!([]));
    assert_eq!(registry.json(&["show", "a"])["agent_name"], "Agent a");
    assert_eq!(registry.json(&["search", "code", "review"])[0]["capability"], "code_review");
    assert_eq!(registry.json(&["health", "a"])["status"], "healthy");
    assert_eq!(registry.json(&["stats"])["active_agents"], 2);
    assert_eq!(registry.json(&["ping"])["store"], "sqlite");
    assert_eq!(registry.json(&["offline", "a"])["status"], "offline");
    let healthy = registry.json(&["search", "code", "review", "--healthy"]);
    assert_eq!((healthy.as_array().unwrap().len(), &healthy[0]["agent_id"]), (1, &json!("b")));
    let code = |arguments: &[&str]| registry.run(arguments).status.code();
    assert_eq!(code(&["health", "a"]), Some(3));
    assert_eq!(code(&["remove", "a"]), Some(0));
    for no in
        [&["show", "a"][..], &["health", "a"], &["remove", "a"], &["offline", "a"], &["search", "nothing"]]
    {
        let output = registry.run(no);
        assert_eq!(output.status.code(), Some(3), "{no:?}");
        assert!(text(&output.stderr).contains("registryctl: no agent"), "{no:?}: {}", text(&output.stderr));
    }
    assert_eq!(code(&["agents", "--status", "asleep"]), Some(2));
    let malformed = registry.run(&["agents", "--registry-url", "127.0.0.1:8009"]);
    assert_eq!(malformed.status.code(), Some(2));
    assert!(text(&malformed.stderr).contains("begin with http://"), "{}", text(&malformed.stderr));
    for wrong in [
        &["search", "code", "--limit", "0"][..],
        &["search", "code", "--limit", "1001"],
        &["search", "code", "--min-score", "2"],
        &["drain", "b", "--reason", "x", "--for", "0s"],
        &["drain", "b", "--reason", "x", "--for", "366d"],
    ] {
        assert_eq!(code(wrong), Some(2), "{wrong:?}");
    }
    // A server that does not know the paths of a registry says nothing about agents.
    let elsewhere = format!("{}/elsewhere", registry.server.url());
    let run_elsewhere = |command: &[&str]| registry.run(&[command, &["--registry-url", &elsewhere]].concat());
    for command in [&["show", "b"][..], &["health", "b"], &["agents"], &["search", "code"]] {
        let output = run_elsewhere(command);
        assert_eq!(output.status.code(), Some(4), "{command:?}");
        assert!(text(&output.stderr).contains("nothing at /elsewhere/"), "{}", text(&output.stderr));
    }
    // Minimal registries do not have these operations.
    for command in [&["remove", "b"][..], &["offline", "b"], &["ping"], &["stats"]] {
        let output = run_elsewhere(command);
        assert_eq!(output.status.code(), Some(1), "{command:?}");
        assert!(text(&output.stderr).contains("this registry does not support "), "{}", text(&output.stderr));
    }
    let unreachable = registry.run(&["stats", "--registry-url", "http://127.0.0.1:1"]);
    assert_eq!(unreachable.status.code(), Some(4));
    assert!(text(&unreachable.stderr).contains("http://127.0.0.1:1"), "{}", text(&unreachable.stderr));
    registry.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_have_no_control_characters() {
    let registry = Registry::start().await;
    registry.register("a");
    let table = text(&registry.run(&["agents", "--table"]).stdout);
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].contains("STATUS") && lines[1].contains("code_review"), "{table}");
    let shown = text(&registry.run(&["show", "a", "--table"]).stdout);
    assert!(["rust", "red", "/healthz", "off"].iter().all(|part| shown.contains(part)), "{shown}");
    // No colours without a terminal, and no escape sequences from agents at all.
    assert!(!table.contains('\u{1b}') && !shown.contains('\u{1b}'), "{shown}");
    for command in ["stats", "search code", "health a"] {
        let arguments: Vec<&str> = command.split(' ').chain(["--table"]).collect();
        assert!(!text(&registry.run(&arguments).stdout).contains('{'), "{command}");
    }
    registry.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_prints_its_verdict_first() {
    let registry = Registry::start().await;
    registry.register("a");
    for (verdict, status, code) in [("healthy", "active", 0), ("unhealthy", "offline", 3)] {
        let output = registry.run(&["health", "a", "--table"]);
        let shown = text(&output.stdout);
        let words: Vec<&str> = shown.split_whitespace().collect();
        assert_eq!(words[..4], [verdict, "a", "status", status], "{shown}");
        assert_eq!(output.status.code(), Some(code));
        registry.run(&["offline", "a"]);
    }
    registry.server.shutdown().await;
}

/// A reader such as `head` may close the pipe early.
#[tokio::test(flavor = "multi_thread")]
async fn closed_pipe_does_not_change_the_exit_code() {
    let registry = Registry::start().await;
    registry.register("a");
    registry.run(&["offline", "a"]);
    for (arguments, code, reason) in [
        (&["completions", "bash"][..], 0, ""),
        (&["agents"], 0, ""),
        (&["health", "a", "--table"], 3, "registryctl: a is not healthy: offline\n"),
        (&["watch"], 0, ""),
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = registry.command(arguments).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        let ended = (output.status.code(), text(&output.stderr));
        assert_eq!(ended, (Some(code), reason.to_owned()), "{arguments:?}");
    }
    registry.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn name_of_the_last_changer_is_shown() {
    let registry = Registry::start().await;
    registry.register("a");
    let table = || text(&registry.run(&["show", "a", "--table"]).stdout);
    assert!(!table().contains("changed by"), "no names without tokens");
    // The registry itself ends the maintenance.
    registry.json(&["drain", "a", "--reason", "upgrade", "--for", "1ms"]);
    while registry.json(&["show", "a"]).get("changed_by").is_none() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let shown = table();
    let line = shown.lines().find(|line| line.trim_start().starts_with("changed by")).unwrap();
    assert!(line.ends_with(" (registry)"), "{shown}");
    registry.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn drained_agent_stays_out_until_it_is_resumed() {
    let registry = Registry::start().await;
    registry.register("a");
    let drained = registry.json(&["drain", "a", "--reason", "disk\u{1b} upgrade", "--for", "1h"]);
    assert_eq!(drained["maintenance"]["reason"], "disk\u{1b} upgrade");
    assert!(drained["maintenance"]["until"].is_string(), "{drained}");
    let code = |arguments: &[&str]| registry.run(arguments).status.code();
    let table = |command: &[&str]| text(&registry.run(&[command, &["--table"]].concat()).stdout);
    assert_eq!(code(&["search", "code", "review"]), Some(3));
    assert_eq!(code(&["health", "a"]), Some(3));
    assert_eq!(registry.json(&["agents", "--unhealthy"])[0]["agent_id"], "a");
    assert_eq!(registry.json(&["stats"])["maintenance_agents"], 1);
    assert!(table(&["health", "a"]).contains("maintenance"));
    assert!(table(&["agents"]).contains("active, maintenance"));
    let shown = table(&["show", "a"]);
    assert!(
        shown.contains("upgrade (since ") && shown.contains(", until ") && !shown.contains('\u{1b}'),
        "{shown}"
    );

    // Neither the agent's own requests nor the other commands end the maintenance.
    registry.register("a");
    assert_eq!(registry.json(&["offline", "a"])["maintenance"], drained["maintenance"]);
    registry.register("a");
    assert_eq!(code(&["search", "code", "review"]), Some(3));
    let forever = registry.json(&["drain", "a", "--reason", "more"]);
    assert_eq!(forever["maintenance"].get("until"), None);
    assert!(table(&["show", "a"]).contains("until it is resumed"));
    assert_eq!(registry.json(&["resume", "a"]).get("maintenance"), None);
    assert_eq!(registry.json(&["resume", "a"])["healthy"], true);
    assert_eq!(code(&["search", "code", "review"]), Some(0));

    assert_eq!(code(&["drain", "a"]), Some(2), "without a reason");
    assert_eq!(code(&["drain", "a", "--reason", "x", "--for", "soon"]), Some(2));
    assert_eq!(code(&["drain", "a", "--reason", ""]), Some(1));
    assert_eq!(code(&["drain", "nobody", "--reason", "x"]), Some(3));
    assert_eq!(code(&["resume", "nobody"]), Some(3));
    registry.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn removing_a_living_agent_warns_that_it_registers_again() {
    let registry = Registry::start().await;
    registry.register("a");
    let removed = registry.run(&["remove", "a", "--table"]);
    assert!(text(&removed.stderr).contains("registryctl drain"), "{}", text(&removed.stderr));
    registry.register("a");
    registry.run(&["offline", "a"]);
    let removed = registry.run(&["remove", "a", "--table"]);
    assert_eq!((removed.status.code(), text(&removed.stderr)), (Some(0), String::new()));
    for command in ["offline", "remove"] {
        let help = text(&registry.run(&[command, "--help"]).stdout);
        assert!(help.contains("use `drain`"), "{help}");
    }
    registry.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_registration_file_is_explained_field_by_field() {
    let registry = Registry::start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("agent.json");
    let path = file.to_str().unwrap();
    let failed = |expected: &[&str]| {
        let output = registry.run(&["register", "-f", path]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1));
        assert!(expected.iter().all(|part| said.contains(part)), "{said}");
    };
    failed(&["cannot read", path]);
    std::fs::write(&file, "[").unwrap();
    failed(&["is not a registration in JSON"]);
    std::fs::write(&file, r#"{"agent_id": "-", "agent_name": "", "capabilities": []}"#).unwrap();
    failed(&["agent_id", "agent_name", "base_url"]);
    assert_eq!(registry.json(&["agents"]), json!([]));
    registry.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wait_ends_when_an_agent_registers() {
    let registry = Registry::start().await;
    let waiting = registry
        .command(&["wait", "code", "review", "--timeout", "1m"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    registry.register("a");
    let output = waiting.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found[0]["agent_id"], "a");
    registry.server.shutdown().await;
}

/// Runs a `wait` for a capability that no agent has, with longer timeouts if no search completes in time on a busy machine.
fn wait_in_vain(arguments: &[&str], expected: &str) -> Output {
    let run = |timeout| {
        let wait = ["wait", "anything", "--timeout", timeout];
        program().args(wait).args(arguments).output().unwrap()
    };
    let is_expected = |output: &Output| text(&output.stderr).contains(&format!("registryctl: {expected}"));
    ["700ms", "5s", "1m"].into_iter().map(run).find(is_expected).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn wait_that_times_out_says_whether_the_registry_answered() {
    let registry = Registry::start().await;
    let hanging = FaultProxy::start(registry.server.local_addr().to_string()).await;
    hanging.set(Fault::Hang);
    let hanging = format!("http://{}", hanging.address());
    for (url, expected, code) in [
        (registry.server.url(), "no healthy agent with this capability within".to_owned(), 3),
        (hanging.clone(), format!("the registry at {hanging} did not answer within"), 4),
        (
            "http://127.0.0.1:1".to_owned(),
            "the registry at http://127.0.0.1:1/ cannot be reached".to_owned(),
            4,
        ),
    ] {
        for format in ["--table", "--json"] {
            let output = wait_in_vain(&["--registry-url", &url, format], &expected);
            assert_eq!(output.status.code(), Some(code), "{url} {format}: {}", text(&output.stderr));
            assert!(output.stdout.is_empty(), "{url} {format}");
        }
    }
    registry.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_reports_lost_connections() {
    let registry = Registry::start().await;
    let proxy = FaultProxy::start(registry.server.local_addr().to_string()).await;
    proxy.set(Fault::Refuse);
    let url = format!("http://{}", proxy.address());
    for (format, interruptions) in [("--json", &["interrupted", "resumed"][..]), ("--table", &[])] {
        proxy.set(Fault::Refuse);
        let mut watching = program()
            .args(["watch", format, "--registry-url", &url])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut reasons = BufReader::new(watching.stderr.take().unwrap()).lines();
        for _ in 0..2 {
            // Once at the start, and once when the stream breaks.
            let said = reasons.next().unwrap().unwrap();
            assert!(
                said.starts_with("registryctl: disconnected, reconnecting: ") && said.contains(&url),
                "{said}"
            );
            proxy.set(Fault::None);
            assert_eq!(reasons.next().unwrap().unwrap(), "registryctl: reconnected");
            proxy.set(Fault::Refuse);
        }
        watching.kill().unwrap();
        let printed = text(&watching.wait_with_output().unwrap().stdout);
        let printed: Vec<&str> = printed.lines().collect();
        assert_eq!(printed.iter().filter(|line| line.contains("listed")).count(), 1, "{printed:?}");
        for kind in ["interrupted", "resumed"] {
            let is_printed = printed.iter().any(|line| line.contains(kind));
            assert_eq!(is_printed, interruptions.contains(&kind), "{kind}: {printed:?}");
        }
        if format == "--json" {
            assert!(printed.iter().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{printed:?}");
        }
    }
    registry.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_prints_a_line_for_every_change() {
    let registry = Registry::start().await;
    let mut watching = registry.command(&["watch"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    let mut next = || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(next()["event"], "listed");
    registry.register("a");
    let event = next();
    assert_eq!((&event["event"], &event["agent"]["agent_id"]), (&json!("registered"), &json!("a")));
    registry.run(&["remove", "a"]);
    assert_eq!(next()["event"], "deregistered");
    watching.kill().unwrap();
    watching.wait().unwrap();
    registry.server.shutdown().await;
}

#[test]
fn completions_are_generated_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = program().args(["completions", shell]).output().unwrap();
        assert!(output.status.success() && text(&output.stdout).contains("search"), "{shell}");
    }
}
