//! The client settings in `docs/mcp.md` are valid.

use serde_json::Value;

use crate::support::program;

const PAGE: &str = include_str!("../../../../docs/mcp.md");

#[test]
fn documented_client_settings_start_the_program() {
    let mut checked = 0;
    for block in PAGE.split("```json\n").skip(1) {
        let block = block.split("```").next().unwrap();
        let settings: Value = serde_json::from_str(block).unwrap_or_else(|error| panic!("{error}: {block}"));
        let servers = settings.get("mcpServers").or(settings.get("servers"));
        for server in servers.and_then(Value::as_object).into_iter().flat_map(|servers| servers.values()) {
            assert!(server["command"].as_str().unwrap().ends_with("registryctl"), "{block}");
            let arguments = server["args"].as_array().unwrap().iter().map(|one| one.as_str().unwrap());
            let output = program().args(arguments).arg("--help").output().unwrap();
            assert!(output.status.success(), "{block}");
            checked += 1;
        }
    }
    assert!(checked >= 4, "{checked}");
}
