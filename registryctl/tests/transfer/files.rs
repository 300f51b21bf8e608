//! Files: those that cannot be imported, of which nothing is sent, and those that an export leaves.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Stdio;

use registry_sdk::testing::MockRegistry;
use serde_json::{Value, json};

use crate::support::{
    Ended, agent, agents, export, file_of, import, import_well, line, line_with, path, registryctl, run,
    text, writes,
};

/// A file that is refused, and what is said of it.
struct Wrong {
    file: String,
    expected: &'static [&'static str],
}

fn wrong(file: impl Into<String>, expected: &'static [&'static str]) -> Wrong {
    Wrong { file: file.into(), expected }
}

fn wrong_files() -> Vec<Wrong> {
    let two = file_of(&[line("a"), line("b")]);
    let of = |line: Value| file_of(&[line]);
    vec![
        // Cut off: between lines, within one, and after nothing.
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
        wrong(two.replace("exported\":2", "exported\":3"), &["line 4: states 3 agents, but the file has 2"]),
        wrong(two.repeat(2), &["line 5: must not be there"]),
        // Something else.
        wrong("", &["line 1: expected {\"agent_registry_export\":1,"]),
        wrong("\n\n", &["line 1: expected {\"agent_registry_export\":1,"]),
        wrong("{\n  \"name\": \"A card\"\n}\n", &["line 1: expected {\"agent_registry_export\":1,"]),
        wrong(line("a").to_string(), &["line 1: expected", "`registryctl register`"]),
        wrong(json!([line("a")]).to_string(), &["line 1: expected"]),
        wrong("agent_id,agent_name\na,A\n", &["line 1: expected"]),
        wrong(two.replace("export\":1", "export\":2"), &["line 1: is of format 2", "use a newer one"]),
        // Lines that are no agent, or out of their limits.
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
            &["line 2: must be up to 262144 bytes"],
        ),
        wrong(
            of(line_with("a", json!({"more": "x".repeat(2_000_000)}))),
            &["line 2: is too long for an agent"],
        ),
        wrong(file_of(&[line("a"), line("b"), line("a")]), &["line 4: agent_id: \"a\" is in line 2 already"]),
        // Maintenances.
        wrong(
            of(line_with("a", json!({"maintenance": "disk"}))),
            &["line 2: maintenance: must be an object"],
        ),
        wrong(of(line_with("a", json!({"maintenance": {}}))), &["line 2: maintenance: ", "reason"]),
        wrong(of(line_with("a", json!({"maintenance": {"reason": ""}}))), &["line 2: maintenance.reason: "]),
        wrong(
            of(line_with("a", json!({"maintenance": {"reason": "x", "until": "soon"}}))),
            &["line 2: maintenance: must be an object"],
        ),
        wrong(
            of(line_with(
                "a",
                json!({"agent_name": "", "maintenance": {"reason": "x", "until": "2999-01-01T00:00:00Z"}}),
            )),
            &["line 2: agent_name: ", "line 2: maintenance.until: must be within the next 365 days"],
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_file_is_explained_and_nothing_is_sent() {
    let registry = MockRegistry::start().await;
    let folder = tempfile::tempdir().unwrap();
    let (file, name) = path(&folder, "agents.jsonl");
    for Wrong { file: content, expected } in wrong_files() {
        fs::write(&file, &content).unwrap();
        let start: String = content.chars().take(300).collect();
        for (Ended { code, said, reasons }, name) in [
            (import(&registry.url(), &content, &[]), "-"),
            (run(&registry.url(), &["import", &name]), &*name),
        ] {
            assert_eq!((code, &*said), (Some(1), ""), "{start}: {reasons}");
            assert!(
                reasons.starts_with(&format!(
                    "registryctl: {name} cannot be imported, and nothing was sent:\n  line "
                )),
                "{start}: {reasons}"
            );
            assert!(expected.iter().all(|part| reasons.contains(part)), "{start}: {reasons}");
        }
    }
    assert!(registry.request_log().0.is_empty(), "something was sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_errors_the_first_are_shown() {
    let registry = MockRegistry::start().await;
    let lines: Vec<Value> =
        (0..30).map(|number| line_with(&format!("a{number}"), json!({"status": 1}))).collect();
    let Ended { code, reasons, .. } = import(&registry.url(), &file_of(&lines), &[]);
    assert_eq!(code, Some(1));
    assert!(reasons.contains("line 21: status: ") && !reasons.contains("line 22"), "{reasons}");
    assert!(reasons.ends_with("\n  and 10 more\n"), "{reasons}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_cannot_be_read_is_named() {
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

/// Editors and other systems end lines in other ways.
#[tokio::test(flavor = "multi_thread")]
async fn other_ends_of_lines_and_empty_lines_are_taken() {
    let registry = MockRegistry::start().await;
    let file = format!("\n{}\n\n", file_of(&[line("a"), line("b")])).replace('\n', "\r\n");
    assert_eq!(import_well(&registry.url(), &file, &[]), json!({"imported": 2}));
    let without_last_break = file_of(&[line("c")]);
    assert_eq!(import_well(&registry.url(), without_last_break.trim_end(), &[]), json!({"imported": 1}));
}

#[tokio::test(flavor = "multi_thread")]
async fn people_are_told_how_many() {
    let registry = MockRegistry::start().await;
    let folder = tempfile::tempdir().unwrap();
    let (_, name) = path(&folder, "agents.jsonl");
    registry.client().register(&agent("a")).await.unwrap();
    let Ended { code, said, .. } = run(&registry.url(), &["export", &name, "--table"]);
    assert_eq!((code, said), (Some(0), format!("1 agents are exported to {name}\n")));
    assert_eq!(run(&registry.url(), &["import", &name, "--table"]).said, "0 imported, 1 already there\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_replaced_only_by_a_whole_export() {
    let registry = MockRegistry::start().await;
    let folder = tempfile::tempdir().unwrap();
    let (file, name) = path(&folder, "agents.jsonl");
    let (link, link_name) = path(&folder, "latest");
    let files = || {
        let mut names: Vec<_> =
            fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    for number in 0..450 {
        registry.client().register(&agent(&format!("a{number:03}"))).await.unwrap();
    }
    assert_eq!(run(&registry.url(), &["export", &name]).code, Some(0));
    let whole = fs::read_to_string(&file).unwrap();
    let lines = export(&registry.url());
    assert_eq!(agents(&whole.lines().map(str::to_owned).collect::<Vec<_>>()), agents(&lines));
    assert_eq!(lines.len(), 452);
    // The second page is not there: a client tries again, and then it gives up.
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    symlink("agents.jsonl", &link).unwrap();
    registry.client().register(&agent("b")).await.unwrap();
    for target in [&name, &link_name] {
        registry.fail_next(100, 503);
        let Ended { code, reasons, .. } = run(&registry.url(), &["export", target]);
        assert_eq!(code, Some(4), "{reasons}");
        assert_eq!(fs::read_to_string(&file).unwrap(), whole);
        assert_eq!(files(), ["agents.jsonl", "latest"]);
        registry.heal();
    }
    // Readers of the last one are those of the next one, and a link stays one.
    assert_eq!(run(&registry.url(), &["export", &link_name]).code, Some(0));
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::read_to_string(&file).unwrap().lines().count(), 453);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(files(), ["agents.jsonl", "latest"]);
    let (_, nowhere) = path(&folder, "missing/agents.jsonl");
    let Ended { code, reasons, .. } = run(&registry.url(), &["export", &nowhere]);
    assert!(code == Some(1) && reasons.contains(&format!("cannot write {nowhere}: ")), "{reasons}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_is_not_written_whole_fails() {
    let registry = MockRegistry::start().await;
    for number in 0..450 {
        registry.client().register(&agent(&format!("a{number:03}"))).await.unwrap();
    }
    // A device is written to, and not replaced.
    let Ended { code, reasons, .. } = run(&registry.url(), &["export", "/dev/full"]);
    assert!(code == Some(1) && reasons.contains("cannot write /dev/full: "), "{reasons}");
    assert_eq!(run(&registry.url(), &["export", "/dev/null"]).code, Some(0));
    assert!(!fs::metadata("/dev/null").unwrap().is_file());
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let output = registryctl(&registry.url(), &["export"]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    // A reader that ends, such as a compressor on a full disk.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = registryctl(&registry.url(), &["export", "-"]);
    let output = command.stdout(writer).stderr(Stdio::piped()).output().unwrap();
    let reasons = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{reasons}");
    assert!(reasons.contains("the export is not complete"), "{reasons}");
    assert!(writes(&registry).iter().all(|(request, _)| request == "POST /register"));
}
