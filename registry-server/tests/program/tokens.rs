//! `registry-server token new`, and tokens files.

use std::time::Duration;

use registry_sdk::RegistryClient;

use super::{Running, new_token, registration, run, token_and_entry};

#[tokio::test]
async fn new_token_is_accepted_after_a_hangup_signal() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokens.toml");
    std::fs::write(&file, new_token().1).unwrap();
    let database = folder.path().join("registry.db");
    let server = Running::start_with(&database, &["--tokens-file", &file.display().to_string()]);
    let address = server.client.clone();
    assert!(matches!(address.get_stats().await, Err(registry_sdk::Error::Denied { status: 401, .. })));

    let made = run(&["token", "new", "--name", "ci", "--scope", "agent", "--agent", "agent-*"]);
    assert!(made.status.success());
    let (token, text) = token_and_entry(made);
    assert!(text.contains("agents = [\"agent-*\"]") && !text.contains(&token), "{text}");
    std::fs::write(&file, &text).unwrap();
    server.send_signal("HUP");

    let client = RegistryClient::builder(server.url.clone()).token(token).build().unwrap();
    while client.get_stats().await.is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    client.register(&registration(1)).await.unwrap();

    let refused = run(&["token", "new", "--scope", "agent"]);
    assert!(!refused.status.success(), "an agent token needs agents");
}

#[test]
fn entries_of_new_tokens_form_a_valid_file() {
    let mut file = String::new();
    let long = "ä".repeat(128);
    let scopes = [
        &["--scope", "read"][..],
        &["--scope", "agent", "--agent", "a-*", "--agent", "*.x_y"],
        &["--scope", "admin"],
    ];
    // Without a name, and with names that must be quoted.
    for name in [None, None, Some("team \"a\" \\ é 🦀 \u{200b}"), Some(&long), Some("'''")] {
        let name = name.map_or(vec![], |name| vec!["--name", name]);
        for scope in scopes {
            let made = run(&[&["token", "new"], &name[..], scope].concat());
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
            let (token, entry) = token_and_entry(made);
            assert!(token.starts_with("agreg_"), "{token}");
            reads_tokens_file(&entry).unwrap();
            if name.is_empty() {
                file.push_str(&entry);
            }
        }
    }
    // Tokens without a given name get distinct names.
    reads_tokens_file(&file).unwrap();
    assert!(reads_tokens_file(&file.repeat(2)).is_err());
}

/// Everything that the tokens file rejects is rejected with the same message, before the token is printed.
#[test]
fn token_with_an_invalid_entry_is_not_created() {
    let long = "x".repeat(129);
    let long_id = format!("{}*", "x".repeat(65));
    let agent = |pattern| vec!["--scope", "agent", "--agent", pattern];
    for (arguments, expected) in [
        (vec!["--name", "(registry)"], "stands for the registry itself"),
        (vec!["--name", ""], "1 to 128 characters"),
        (vec!["--name", &long], "1 to 128 characters"),
        (vec!["--name", "a\nb"], "1 to 128 characters"),
        (vec!["--name", "a\u{7f}"], "1 to 128 characters"),
        (vec!["--agent", "a-*"], "only scope \"agent\" takes agents"),
        (vec!["--scope", "admin", "--agent", "*"], "only scope \"agent\" takes agents"),
        (agent(""), "matches no agent id"),
        (agent("team a-*"), "matches no agent id"),
        // `--agent -*` would be parsed as another flag.
        (vec!["--scope", "agent", "--agent=-*"], "matches no agent id"),
        (agent("ä*"), "matches no agent id"),
        (agent(&long_id), "matches no agent id"),
        (agent("a\"]\nscope = \"admin"), "matches no agent id"),
    ] {
        let refused = run(&[&["token", "new"], &arguments[..]].concat());
        let said = String::from_utf8(refused.stderr).unwrap();
        assert!(!refused.status.success() && said.contains(expected), "{arguments:?}: {said}");
        assert!(!said.contains("agreg_") && refused.stdout.is_empty(), "{arguments:?}: {said}");
    }
    let entry = format!("[[token]]\nname = \"a\"\nsha256 = \"{}\"\nscope = \"agent\"\n", "0".repeat(64));
    for pattern in ["*", "a", "*-x", "a*b*c", &format!("*{}*", "x".repeat(64))] {
        reads_tokens_file(&format!("{entry}agents = [\"{pattern}\"]\n")).unwrap();
    }
    for pattern in ["", "a b", "_*", &*long_id] {
        let error = reads_tokens_file(&format!("{entry}agents = [\"{pattern}\"]\n")).unwrap_err();
        assert!(error.contains("matches no agent id"), "{error}");
    }
}

#[test]
fn unusable_tokens_file_prevents_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokens.toml").display().to_string();
    let start =
        || run(&["--listen", "127.0.0.1:0", "--database-url", "sqlite::memory:", "--tokens-file", &file]);
    for (text, expected) in [(None, "cannot read the tokens file"), (Some("[[token]]"), "missing field")] {
        if let Some(text) = text {
            std::fs::write(&file, text).unwrap();
        }
        let ended = start();
        let said = String::from_utf8(ended.stderr).unwrap();
        assert!(!ended.status.success() && said.contains(expected), "{said}");
    }
}

/// Whether a server accepts a tokens file. The server does not start, since its database cannot be opened.
fn reads_tokens_file(text: &str) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokens.toml").display().to_string();
    std::fs::write(&file, text).unwrap();
    let nowhere = "sqlite:///nowhere/registry.db";
    let ended = run(&["--listen", "127.0.0.1:0", "--database-url", nowhere, "--tokens-file", &file]);
    let said = String::from_utf8(ended.stderr).unwrap();
    if said.contains("is invalid") { Err(said) } else { Ok(()) }
}
