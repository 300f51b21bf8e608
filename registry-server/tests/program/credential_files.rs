//! Tokens and TLS files: reloads, and log lines and metrics about files that would lock clients out.

use std::path::PathBuf;

use rcgen::{CertificateParams, DnType, KeyPair, date_time_ymd};
use registry_sdk::RegistryClient;
use test_support::LONG;

use super::{Running, new_token, run, token_and_entry};

/// A folder with the files of one server.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    /// Starts a server with flags, each of which names one of the files.
    fn start(&self, flags: &[(&str, &str)]) -> Running {
        let flags: Vec<_> =
            flags.iter().flat_map(|(flag, file)| [(*flag).to_owned(), self.path(file)]).collect();
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        Running::start_with(&PathBuf::from(self.path("registry.db")), &flags)
    }
}

/// Creates a token with a name, and its entry for a tokens file.
fn entry(name: &str) -> (String, String) {
    token_and_entry(run(&["token", "new", "--name", name, "--scope", "read"]))
}

/// Returns the value of a metric, if it exists.
async fn metric(running: &Running, token: &str, name: &str) -> Option<String> {
    let http = reqwest::Client::builder().tls_danger_accept_invalid_certs(true).build().unwrap();
    let scheme =
        if running.start.iter().any(|line| line.contains("TLS certificate")) { "https" } else { "http" };
    let url = format!("{}/metrics", running.url.replacen("http", scheme, 1));
    let text = http.get(url).bearer_auth(token).send().await.unwrap().text().await.unwrap();
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned))
}

#[tokio::test]
async fn tokens_file_without_a_token_is_rejected() {
    const SUCCESSFUL: &str = "agent_registry_credentials_last_reload_successful";
    let files = Files::new();
    let (token, entry) = new_token();
    for text in ["", "# no entry\n"] {
        files.write("tokens.toml", text);
        let path = files.path("tokens.toml");
        let flags = ["--listen", "127.0.0.1:0", "--database-url", "sqlite::memory:", "--tokens-file", &path];
        // Limits the time of a server that starts nevertheless.
        let ended = std::process::Command::new("timeout")
            .arg("20")
            .arg(env!("CARGO_BIN_EXE_registry-server"))
            .args(flags)
            .output();
        let ended = ended.unwrap();
        let said = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(1), "{said}");
        assert!(said.contains(&path) && said.contains("registry-server token new"), "{said}");
    }
    files.write("tokens.toml", &entry);
    let running = files.start(&[("--tokens-file", "tokens.toml")]);
    assert_eq!(metric(&running, &token, SUCCESSFUL).await.as_deref(), Some("1"));
    files.write("tokens.toml", "");
    running.send_signal("HUP");
    let line = running.logged("ERROR");
    assert!(line.contains("no token") && line.contains("keeping"), "{line}");
    assert_eq!(metric(&running, &token, SUCCESSFUL).await.as_deref(), Some("0"));
    files.write("tokens.toml", &entry);
    running.send_signal("HUP");
    running.logged("loaded the tokens");
    assert_eq!(metric(&running, &token, SUCCESSFUL).await.as_deref(), Some("1"));
}

#[tokio::test]
async fn reload_names_added_and_removed_tokens() {
    let files = Files::new();
    let entries = ["one", "two", "three", "four"].map(|name| entry(name).1);
    files.write("tokens.toml", &entries[..3].concat());
    let running = files.start(&[("--tokens-file", "tokens.toml")]);
    let reload = |entries: &[String]| {
        files.write("tokens.toml", &entries.concat());
        running.send_signal("HUP");
        running.logged("loaded the tokens")
    };
    let line = reload(&entries);
    assert!(line.contains("INFO") && line.contains("added=\"four\"") && !line.contains("removed="), "{line}");
    let line = reload(&entries[1..]);
    assert!(line.contains("INFO") && line.contains("removed=\"one\"") && !line.contains("added="), "{line}");
    // More than half of the tokens, as in a file that was truncated between two entries.
    let line = reload(&entries[1..2]);
    assert!(line.contains("WARN") && line.contains("removed=\"three, four\""), "{line}");
}

/// Creates a certificate and its key.
fn certificate(name: &str, years: std::ops::Range<i32>) -> (String, String) {
    let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(years.start, 1, 1);
    params.not_after = date_time_ymd(years.end, 1, 1);
    let key = KeyPair::generate().unwrap();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

#[tokio::test]
async fn certificate_outside_its_validity_is_named_and_its_expiration_is_a_metric() {
    const EXPIRES: &str = "agent_registry_certificate_expiration_timestamp_seconds";
    let files = Files::new();
    let write = |(certificate, key): (String, String)| {
        files.write("cert.pem", &certificate);
        files.write("key.pem", &key);
    };
    write(certificate("old.example", 2019..2020));
    let running = files.start(&[("--tls-cert", "cert.pem"), ("--tls-key", "key.pem")]);
    let line = running.start.iter().find(|line| line.contains("WARN")).expect("a warning");
    for expected in ["cert.pem", "old.example", "2020-01-01T00:00:00.000Z", "has expired"] {
        assert!(line.contains(expected), "{expected}: {line}");
    }
    assert_eq!(metric(&running, "", EXPIRES).await.as_deref(), Some("1577836800"));

    write(certificate("early.example", 2090..2091));
    running.send_signal("HUP");
    let line = running.logged("WARN");
    for expected in ["cert.pem", "early.example", "2090-01-01T00:00:00.000Z", "not valid yet"] {
        assert!(line.contains(expected), "{expected}: {line}");
    }
    assert_eq!(metric(&running, "", EXPIRES).await.as_deref(), Some("3818448000"));

    write(certificate("new.example", 2019..2090));
    running.send_signal("HUP");
    let line = running.logged("TLS certificate");
    assert!(line.contains("INFO") && line.contains("2090-01-01T00:00:00.000Z"), "{line}");
    running.send_signal("TERM");
    assert!(!running.logged("received SIGTERM").contains("WARN"));
}

#[test]
fn certificate_and_key_that_do_not_match_are_both_named() {
    let files = Files::new();
    files.write("cert.pem", &certificate("one", 2019..2090).0);
    files.write("key.pem", &certificate("two", 2019..2090).1);
    let (cert, key) = (files.path("cert.pem"), files.path("key.pem"));
    let flags = [
        "--listen",
        "127.0.0.1:0",
        "--database-url",
        "sqlite::memory:",
        "--tls-cert",
        &cert,
        "--tls-key",
        &key,
    ];
    let ended = run(&flags);
    let said = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(1));
    assert!(said.contains(&cert) && said.contains(&key), "{said}");
}

#[tokio::test]
async fn changed_files_are_reloaded_without_a_signal_and_apply_together() {
    let folder = tempfile::tempdir().unwrap();
    let current = folder.path().join("current");
    let path = |file: &str| current.join(file).display().to_string();
    // Replacing the link to the files replaces all of them at once.
    let publish = |version: &str, files: &[(&str, &str)]| {
        let (target, link) = (folder.path().join(version), folder.path().join("next"));
        std::fs::create_dir(&target).unwrap();
        for (file, text) in files {
            std::fs::write(target.join(file), text).unwrap();
        }
        std::os::unix::fs::symlink(&target, &link).unwrap();
        std::fs::rename(&link, &current).unwrap();
    };
    let certified = || {
        let rcgen::CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        (cert.pem(), signing_key.serialize_pem())
    };
    let ((old_cert, old_key), (new_cert, new_key)) = (certified(), certified());
    let ((old_token, old_tokens), (new_token, new_tokens)) = (new_token(), new_token());
    publish("old", &[("tokens.toml", &old_tokens), ("cert.pem", &old_cert), ("key.pem", &old_key)]);
    let (tokens, cert, key) = (path("tokens.toml"), path("cert.pem"), path("key.pem"));
    let flags = ["--tokens-file", &tokens, "--tls-cert", &cert, "--tls-key", &key];
    let running = Running::start_with(&folder.path().join("registry.db"), &flags);
    let client = |token: &str, root: &str| {
        let builder = RegistryClient::builder(running.url.replace("http:", "https:")).timeout(LONG);
        builder.token(token).root_certificate(root).build().unwrap()
    };

    publish("mixed", &[("tokens.toml", &new_tokens), ("cert.pem", &new_cert), ("key.pem", &old_key)]);
    let error = running.logged("ERROR");
    assert!(error.contains("key.pem") && error.contains("keeping"), "{error}");
    client(&old_token, &old_cert).get_stats().await.unwrap();
    let outcome = client(&new_token, &old_cert).get_stats().await;
    assert!(matches!(outcome, Err(registry_sdk::Error::Denied { status: 401, .. })), "{outcome:?}");

    publish("new", &[("tokens.toml", &new_tokens), ("cert.pem", &new_cert), ("key.pem", &new_key)]);
    let next = running.logged("tokens");
    assert!(next.contains("can be used again"), "the error was logged once: {next}");
    running.logged("loaded the TLS certificate");
    client(&new_token, &new_cert).get_stats().await.unwrap();

    publish("incomplete", &[("cert.pem", &new_cert), ("key.pem", &new_key)]);
    let error = running.logged("ERROR");
    assert!(error.contains("tokens.toml: No such file"), "{error}");
    client(&new_token, &new_cert).get_stats().await.unwrap();
}
