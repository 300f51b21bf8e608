//! The protocol itself: versions, malformed messages, and the end of the program.

use serde_json::{Value, json};

use super::support::{Session, VERSION};
use crate::support::program;

/// No registry listens there.
const NOWHERE: &str = "http://127.0.0.1:1";

#[test]
fn every_known_version_is_accepted() {
    for version in ["2024-11-05", "2025-03-26", "2025-06-18", VERSION] {
        let mut session = Session::spawn(NOWHERE, &[]);
        let server = session.initialize(version);
        assert_eq!(server["protocolVersion"], version);
        assert_eq!(server["serverInfo"]["name"], "registryctl");
        assert!(server["instructions"].as_str().unwrap().contains("search_agents"), "{server}");
        assert!(server["capabilities"]["tools"].is_object(), "{server}");
        assert_eq!(session.tools().len(), 4);
        session.close();
    }
}

#[test]
fn unknown_version_is_answered_with_a_known_one() {
    for version in ["1999-01-01", "2099-01-01"] {
        let server = Session::spawn(NOWHERE, &[]).initialize(version);
        assert!(server["protocolVersion"].as_str().unwrap().starts_with("202"), "{server}");
        assert_ne!(server["protocolVersion"], version);
    }
}

#[test]
fn client_of_2026_needs_no_initialize() {
    let mut session = Session::spawn(NOWHERE, &[]);
    let meta = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    let found = session.request("server/discover", &json!({"_meta": meta}));
    let versions = found["result"]["supportedVersions"].as_array().unwrap();
    assert!(versions.contains(&json!("2026-07-28")), "{found}");
    let listed = session.request("tools/list", &json!({"_meta": meta}));
    assert_eq!(listed["result"]["tools"].as_array().unwrap().len(), 4, "{listed}");
}

#[test]
fn malformed_messages_do_not_end_the_session() {
    let mut session = Session::start(NOWHERE, &[]);
    for line in ["", "hello", "{", "[]", "42", "\u{1b}[31m", "{\"jsonrpc\": \"2.0\"}"] {
        session.send_line(line);
    }
    let id = session.begin("ping", &json!({}));
    // Every line on standard output is a message.
    while session.receive()["id"] != id {}
    let unknown = session.request("resources/list", &json!({}));
    assert_eq!(unknown["error"]["code"], -32_601, "{unknown}");
    let unknown = session.call("drop_tables", &json!({}));
    assert_eq!(unknown["error"]["code"], -32_602, "{unknown}");
    assert!(unknown["error"]["message"].as_str().unwrap().contains("drop_tables"), "{unknown}");
    let (status, errors) = session.close();
    assert_eq!((status.code(), &*errors), (Some(0), ""));
}

#[test]
fn program_ends_when_its_input_is_closed() {
    for session in [Session::spawn(NOWHERE, &[]), Session::start(NOWHERE, &["--allow-delegation"])] {
        let (status, errors) = session.close();
        assert_eq!((status.code(), &*errors), (Some(0), ""));
    }
}

#[test]
#[cfg(unix)]
fn signal_ends_the_program_at_once() {
    use std::os::unix::process::ExitStatusExt;

    let session = Session::start(NOWHERE, &[]);
    session.signal("TERM");
    // Standard input is still open.
    let (status, errors) = session.wait();
    assert_eq!((status.signal(), &*errors), (Some(15), ""));
}

#[test]
fn client_that_does_not_initialize_first_gets_an_error() {
    let mut session = Session::spawn(NOWHERE, &[]);
    session.send(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"}));
    let (status, errors) = session.wait();
    assert_eq!(status.code(), Some(1));
    assert!(errors.starts_with("registryctl: the MCP client did not send `initialize` first"), "{errors}");
}

#[test]
fn invalid_settings_are_reported_on_standard_error() {
    for options in [&["mcp", "--registry-url", "127.0.0.1:8009"][..], &["mcp", "--allow"], &["mcp", "now"]] {
        let output = program().args(options).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{options:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{options:?}");
    }
}

#[test]
fn every_tool_is_described() {
    let mut session = Session::start(NOWHERE, &[]);
    let tools = session.tools();
    let names: Vec<&str> = tools.iter().map(|tool| tool["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["search_agents", "list_agents", "get_agent", "check_health"]);
    for tool in &tools {
        let is_text = |value: &Value| value.as_str().is_some_and(|text| !text.is_empty());
        assert!(is_text(&tool["title"]) && is_text(&tool["description"]), "{tool}");
        assert_eq!(tool["annotations"]["readOnlyHint"], true, "{tool}");
        assert_eq!(tool["annotations"]["openWorldHint"], false, "{tool}");
        assert_eq!(tool["outputSchema"]["type"], "object", "{tool}");
        // JSON Schema does not define formats such as `uint32`, and some clients print a warning for each.
        assert!(!tool.to_string().contains(r#""format":""#), "{tool}");
        let arguments = tool["inputSchema"]["properties"].as_object().unwrap();
        assert!(arguments.values().all(|argument| is_text(&argument["description"])), "{tool}");
    }
}
