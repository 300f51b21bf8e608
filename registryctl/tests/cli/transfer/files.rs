//! Invalid files, of which nothing is sent, and valid files with unusual formatting.

use std::fs;

use registry_sdk::testing::MockRegistry;
use serde_json::{Value, json};

use super::support::{Ended, agent, file_of, import, import_well, line, line_with, path, run};

/// An invalid file and its expected errors.
struct Wrong {
    file: String,
    expected: &'static [&'static str],
}

fn wrong(file: impl Into<String>, expected: &'static [&'static str]) -> Wrong {
    Wrong { file: file.into(), expected }
}

/// Files that are truncated, or have an invalid first or last line.
fn wrong_files() -> Vec<Wrong> {
    let two = file_of(&[line("a"), line("b")]);
    vec![
        // Truncated: between lines, within a line, and empty.
        wrong(
            two.replace("{\"agents_exported\":2}\n", ""),
            &["line 4: expected {\"agents_exported\"", "export again"],
        ),
        wrong(
            &two[..two.len() - 80],
            &["line 3: must be a JSON object", "line 4: expected {\"agents_exported\""],
        ),
        wrong(two.replace("_exported\":2}\n", ""), &["line 4: must be a JSON object", "line 5: expected"]),
        wrong(two.lines().next().unwrap(), &["line 2: expected {\"agents_exported\""]),
        wrong(
            two.replace("exported\":2", "exported\":3"),
            &["line 4: agents_exported is 3, but the file has 2 agents"],
        ),
        wrong(two.repeat(2), &["line 5: unexpected line"]),
        // Not an export.
        wrong("", &["line 1: expected {\"agent_registry_export\":1,"]),
        wrong("\n\n", &["line 1: expected {\"agent_registry_export\":1,"]),
        wrong("{\n  \"title\": \"A book\"\n}\n", &["line 1: expected {\"agent_registry_export\":1,"]),
        wrong(line("a").to_string(), &["line 1: expected", "`registryctl register`"]),
        wrong(json!([line("a")]).to_string(), &["line 1: expected"]),
        wrong("agent_id,agent_name\na,A\n", &["line 1: expected"]),
        // Arrays are not lines, even if they have as many elements as a line has fields.
        wrong(
            two.replace("{\"agent_registry_export\":1}", "[1,\"2026-11-24T09:30:00Z\"]"),
            &["line 1: expected"],
        ),
        wrong(
            two.replace("{\"agents_exported\":2}", "[2]"),
            &["line 4: must be a JSON object", "line 5: expected"],
        ),
        // Slightly wrong first and last lines.
        wrong(
            two.replace("export\":1", "export\":2,\"exported_at\":{}"),
            &["line 1: the file has format 2", "use the newer version"],
        ),
        wrong(two.replace("export\":1", "export\":0"), &["line 1: agent_registry_export: must be 1"]),
        wrong(two.replace("export\":1", "export\":\"1\""), &["line 1: agent_registry_export: must be 1"]),
        wrong(
            two.replace("export\":1", "export\":1,\"exported_at\":\"yesterday\""),
            &["line 1: exported_at: must be a time"],
        ),
        wrong(
            two.replace("exported\":2", "exported\":\"2\""),
            &["line 4: agents_exported: must be the number"],
        ),
    ]
}

/// Invalid lines of agents.
fn wrong_lines() -> Vec<Wrong> {
    let two = file_of(&[line("a"), line("b")]);
    let of = |line: Value| file_of(&[line]);
    vec![
        // Duplicate fields: JSON parsers differ in which value they use.
        wrong(
            two.replace("{\"agent_id\":\"b\"", "{\"agent_id\":\"c\",\"agent_id\":\"b\""),
            &["line 3: agent_id: duplicate field"],
        ),
        wrong(
            two.replace("{\"agent_id\":\"b\"", "{\"healthy\":1,\"healthy\":1,\"agent_id\":\"b\""),
            &["line 3: healthy: duplicate field"],
        ),
        wrong(
            of(line_with("a", json!({"maintenance": {"reason": "x"}})))
                .replace("{\"reason\":\"x\"}", "{\"reason\":\"x\",\"reason\":\"y\"}"),
            &["line 2: maintenance.reason: duplicate field"],
        ),
        // Lines that are not an agent, or exceed a limit.
        wrong(of(json!([])), &["line 2: must be a JSON object"]),
        wrong(
            of(json!({})),
            &["line 2: agent_id: ", "agent_name: ", "line 2: base_url: ", "line 2: capabilities: "],
        ),
        wrong(of(line_with("a", json!({"base_url": "http://0.0.0.0"}))), &["line 2: base_url: "]),
        wrong(of(line_with("a", json!({"status": "asleep"}))), &["line 2: status: must be one of"]),
        wrong(
            of(line_with("a", json!({"capabilities": [{"name": "x"}, {"name": "x", "tags": [""]}]}))),
            &["line 2: capabilities[1].name: ", "line 2: capabilities[1].tags[0]: "],
        ),
        wrong(
            of(line_with("a", json!({"more": "x".repeat(262_144)}))),
            &["line 2: the registration must have up to 262144 bytes"],
        ),
        wrong(
            of(line_with("a", json!({"more": "x".repeat(2_000_000)}))),
            &["line 2: is too long for an agent"],
        ),
        wrong(file_of(&[line("a"), line("b"), line("a")]), &["line 4: agent_id: \"a\" is already in line 2"]),
        // Invalid maintenance.
        wrong(
            of(line_with("a", json!({"maintenance": "disk"}))),
            &["line 2: maintenance: must be an object"],
        ),
        wrong(
            of(line_with("a", json!({"maintenance": [1, 2]}))),
            &["line 2: maintenance: must be an object"],
        ),
        wrong(of(line_with("a", json!({"maintenance": {}}))), &["line 2: maintenance.reason: is required"]),
        wrong(
            of(line_with("a", json!({"maintenance": {"reason": 1, "instance_id": 5}}))),
            &[
                "line 2: maintenance.reason: must be a text",
                "line 2: maintenance.instance_id: must be a string",
            ],
        ),
        wrong(of(line_with("a", json!({"maintenance": {"reason": ""}}))), &["line 2: maintenance.reason: "]),
        wrong(
            of(line_with("a", json!({"maintenance": {"reason": "x", "until": "soon"}}))),
            &["line 2: maintenance.until: must be a time"],
        ),
        wrong(
            of(line_with(
                "a",
                json!({"agent_name": "", "maintenance": {"reason": "x", "until": "2999-01-01T00:00:00Z"}}),
            )),
            &["line 2: agent_name: ", "line 2: maintenance.until: must be within the next 365 days"],
        ),
        // Invalid cards.
        wrong(of(line_with("a", json!({"card": {"name": "A"}}))), &["line 2: card: must be a string"]),
        wrong(
            of(line_with("a", json!({"card": "{\"name\": "}))),
            &["line 2: card: must be the text of a JSON object"],
        ),
        wrong(of(line_with("a", json!({"card": "[]"}))), &["line 2: card: must be a JSON object"]),
        wrong(
            of(line_with("a", json!({"card": format!("{{\"x\":\"{}\"}}", "x".repeat(65_536))}))),
            &["line 2: card: must have up to 65536 bytes"],
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_file_is_explained_and_nothing_is_sent() {
    let registry = MockRegistry::start().await;
    let folder = tempfile::tempdir().unwrap();
    let (file, name) = path(&folder, "agents.jsonl");
    for Wrong { file: content, expected } in wrong_files().into_iter().chain(wrong_lines()) {
        fs::write(&file, &content).unwrap();
        let start: String = content.chars().take(300).collect();
        for (Ended { code, said, reasons }, name) in [
            (import(&registry.url(), &content, &[]), "-"),
            (run(&registry.url(), &["import", &name]), &*name),
        ] {
            assert_eq!((code, &*said), (Some(1), ""), "{start}: {reasons}");
            assert!(
                reasons.starts_with(&format!(
                    "registryctl: {name} cannot be imported, nothing was sent:\n  line "
                )),
                "{start}: {reasons}"
            );
            assert!(expected.iter().all(|part| reasons.contains(part)), "{start}: {reasons}");
            // Positions refer to the lines of the file, and the messages contain no names of internal types.
            for word in ["struct", "line 1 column", "MaintenanceLine", "u32", "RawValue"] {
                assert!(!reasons.contains(word), "{start}: {reasons}");
            }
        }
    }
    assert!(registry.request_log().0.is_empty(), "something was sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_first_of_many_errors_are_shown() {
    let registry = MockRegistry::start().await;
    let lines: Vec<Value> =
        (0..30).map(|number| line_with(&format!("a{number}"), json!({"status": 1}))).collect();
    let Ended { code, reasons, .. } = import(&registry.url(), &file_of(&lines), &[]);
    assert_eq!(code, Some(1));
    assert!(reasons.contains("line 21: status: ") && !reasons.contains("line 22"), "{reasons}");
    assert!(reasons.ends_with("\n  and 10 more\n"), "{reasons}");
}

#[tokio::test(flavor = "multi_thread")]
async fn unreadable_file_is_named() {
    let registry = MockRegistry::start().await;
    let folder = tempfile::tempdir().unwrap();
    let (_, missing) = path(&folder, "missing");
    for name in [&*missing, folder.path().to_str().unwrap()] {
        let Ended { code, reasons, .. } = run(&registry.url(), &["import", name]);
        assert_eq!(code, Some(1), "{reasons}");
        assert!(reasons.starts_with(&format!("registryctl: cannot read {name}: ")), "{reasons}");
    }
    assert_eq!(run(&registry.url(), &["import"]).code, Some(2));
    assert!(registry.request_log().0.is_empty());
}

/// Some editors and systems use other line breaks.
#[tokio::test(flavor = "multi_thread")]
async fn other_line_breaks_and_empty_lines_are_accepted() {
    let registry = MockRegistry::start().await;
    let file = format!("\n{}\n\n", file_of(&[line("a"), line("b")])).replace('\n', "\r\n");
    assert_eq!(import_well(&registry.url(), &file, &[]), json!({"imported": 2}));
    let without_last_break = file_of(&[line("c")]);
    assert_eq!(import_well(&registry.url(), without_last_break.trim_end(), &[]), json!({"imported": 1}));
}

/// Some editors write a byte order mark.
#[tokio::test(flavor = "multi_thread")]
async fn byte_order_mark_is_skipped() {
    let registry = MockRegistry::start().await;
    let file = format!("\u{feff}{}", file_of(&[line("a")]));
    assert_eq!(import_well(&registry.url(), &file, &[]), json!({"imported": 1}));
}

#[tokio::test(flavor = "multi_thread")]
async fn table_output_has_the_counts() {
    let registry = MockRegistry::start().await;
    let folder = tempfile::tempdir().unwrap();
    let (_, name) = path(&folder, "agents.jsonl");
    registry.client().register(&agent("a")).await.unwrap();
    let Ended { code, said, .. } = run(&registry.url(), &["export", &name, "--table"]);
    assert_eq!((code, said), (Some(0), format!("exported 1 agent to {name}\n")));
    assert_eq!(run(&registry.url(), &["import", &name, "--table"]).said, "0 imported, 1 already there\n");
}
