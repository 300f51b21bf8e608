//! Each example that users copy builds as a separate crate, with exactly the dependencies in its head comment.

use std::fs;
use std::path::Path;
use std::process::Command;

const EXAMPLES: [&str; 5] = ["agent", "orchestrator", "testing_an_agent", "a2a_agent", "delegate_to_a2a"];

#[test]
fn each_example_builds_as_a_separate_crate() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let workspace = scratch.join("copied_examples");
    for name in EXAMPLES {
        let source = fs::read_to_string(root.join("examples").join(name).with_extension("rs")).unwrap();
        let folder = workspace.join(name);
        fs::create_dir_all(folder.join("src")).unwrap();
        fs::write(folder.join("Cargo.toml"), manifest(name, &source)).unwrap();
        fs::write(folder.join("src/main.rs"), source).unwrap();
    }
    // The SDK comes from this repository, because it may not be published yet.
    let sdk = root.join("registry-sdk");
    let shared =
        format!("members = {EXAMPLES:?}\nresolver = \"3\"\n\n[patch.crates-io.registry-sdk]\npath = {sdk:?}");
    // With the same profiles, versions and target folder, Cargo reuses what it has built for the other tests.
    let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let (_, profiles) = manifest.split_once("[profile.").unwrap();
    fs::write(workspace.join("Cargo.toml"), format!("[workspace]\n{shared}\n\n[profile.{profiles}")).unwrap();
    fs::copy(root.join("Cargo.lock"), workspace.join("Cargo.lock")).unwrap();
    // One at a time, because Cargo would unify their features otherwise.
    for name in EXAMPLES {
        let mut check = Command::new(env!("CARGO"));
        check.args(["check", "--offline", "--all-targets", "--package", name]).current_dir(&workspace);
        let output = check.env("CARGO_TARGET_DIR", scratch.parent().unwrap()).output().unwrap();
        assert!(output.status.success(), "{name}:\n{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Returns the `Cargo.toml` of an example, with the lines from its head comment.
fn manifest(name: &str, source: &str) -> String {
    let head = source.lines().map_while(|line| line.strip_prefix("//!")).map(str::trim);
    let block = head.skip_while(|line| *line != "```toml").skip(1).take_while(|line| *line != "```");
    let dependencies: String = block.map(|line| format!("{line}\n")).collect();
    format!(
        "[package]\nname = {name:?}\nversion = \"0.1.0\"\nedition = \"2024\"\n\n\
         [lints.rust]\nunused_crate_dependencies = \"deny\"\n\n{dependencies}"
    )
}
