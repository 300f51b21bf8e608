//! The program itself: its flags, its signals, and its state after being killed.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "program/credential_files.rs"]
mod credential_files;
#[path = "program/empty_variables.rs"]
mod empty_variables;
#[path = "program/logs.rs"]
mod logs;

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use registry_sdk::RegistryClient;
use registry_sdk::contract::{Capability, Registration};
use test_support::{LONG, Process};

/// Returns the program without any settings in the environment.
fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_registry-server"));
    command.env_clear().stderr(Stdio::piped()).stdout(Stdio::piped());
    command
}

fn run(arguments: &[&str]) -> Output {
    program().args(arguments).output().unwrap()
}

/// A running program, killed if the test fails.
struct Running {
    child: Process,
    /// The log lines up to its start.
    start: Vec<String>,
    /// The log lines after its start.
    log: mpsc::Receiver<String>,
    url: String,
    client: RegistryClient,
}

impl Running {
    /// Starts the program on a database file, and reads the listen address from its log.
    fn start(database: &Path) -> Self {
        Self::start_with(database, &[])
    }

    fn start_with(database: &Path, arguments: &[&str]) -> Self {
        let url = format!("sqlite://{}", database.display());
        let mut command = program();
        if !arguments.contains(&"--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        // No agent must go offline because the machine is busy.
        command.args(["--database-url", &url, "--heartbeat-timeout", "1h"]);
        command.args(arguments);
        Self::spawn(command)
    }

    fn spawn(mut command: Command) -> Self {
        let mut child = Process::spawn(&mut command);
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let mut start = Vec::new();
        let address = loop {
            let line = log.next().unwrap_or_else(|| panic!("it does not start: {start:?}"));
            // Works for both log formats.
            let address =
                line.split_once("local_addr").map(|(_, rest)| rest.trim_start_matches(['=', '"', ':']));
            let address = address.and_then(|rest| rest.split([' ', '"']).next()).map(str::to_owned);
            start.push(line);
            if let Some(address) = address {
                break address;
            }
        };
        // Drain the log, so that the program never blocks on a full pipe.
        let (lines, log_lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in log {
                let _ = lines.send(line);
            }
        });
        let url = format!("http://{address}");
        let client = RegistryClient::builder(&url).timeout(LONG).build().unwrap();
        Self { child, start, log: log_lines, url, client }
    }

    fn signal(&mut self, signal: &str) -> std::process::ExitStatus {
        self.send_signal(signal);
        self.child.wait().unwrap()
    }

    fn send_signal(&self, signal: &str) {
        self.child.signal(signal);
    }

    /// Waits for the next log line that contains a text.
    fn logged(&self, text: &str) -> String {
        std::iter::from_fn(|| self.log.recv_timeout(LONG).ok()).find(|line| line.contains(text)).unwrap()
    }

    async fn is_ready(&self) -> bool {
        reqwest::get(format!("{}/readyz", self.url)).await.unwrap().status().is_success()
    }
}

fn registration(number: usize) -> Registration {
    let id = format!("agent-{number}");
    Registration::new(&id, &id, "http://agent:8000").capability(Capability::new("work"))
}

#[tokio::test]
async fn acknowledged_changes_survive_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("registry.db");
    for round in 0..3 {
        let mut running = Running::start(&database);
        let stats = running.client.get_stats().await.unwrap();
        assert_eq!((stats.total_agents, stats.active_agents), (round * 20, round * 20));
        for number in 0..20 {
            let number = usize::try_from(round).unwrap() * 20 + number;
            running.client.register(&registration(number)).await.unwrap();
        }
        running.signal("KILL");
    }
}

#[tokio::test]
async fn sigterm_and_ctrl_c_shut_down_gracefully() {
    let folder = tempfile::tempdir().unwrap();
    for signal in ["TERM", "INT"] {
        let mut running = Running::start(&folder.path().join("registry.db"));
        running.client.register(&registration(1)).await.unwrap();
        assert_eq!(running.signal(signal).code(), Some(0), "{signal}");
    }
}

#[tokio::test]
async fn sigterm_drains_for_a_while_and_ctrl_c_or_a_second_sigterm_skips_the_delay() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("registry.db");
    for (delay, second) in [("1h", Some("TERM")), ("1h", Some("INT")), ("10ms", None)] {
        let mut running = Running::start_with(&database, &["--drain-delay", delay]);
        assert!(running.is_ready().await);
        running.send_signal("TERM");
        if let Some(second) = second {
            running.logged("received SIGTERM");
            while running.is_ready().await {}
            // All requests are still answered, even on new connections.
            running.client.register(&registration(1)).await.unwrap();
            assert_eq!(running.signal(second).code(), Some(0), "{second}");
        } else {
            assert_eq!(running.child.wait().unwrap().code(), Some(0));
        }
    }
    let mut running = Running::start_with(&database, &["--drain-delay", "1h"]);
    assert_eq!(running.signal("INT").code(), Some(0));
}

#[tokio::test]
async fn tokens_can_be_reloaded_during_the_drain() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokens.toml");
    std::fs::write(&file, new_token().1).unwrap();
    let flags = ["--drain-delay", "1h", "--tokens-file", &file.display().to_string()];
    let running = Running::start_with(&folder.path().join("registry.db"), &flags);
    running.send_signal("TERM");
    running.logged("received SIGTERM");
    running.send_signal("HUP");
    running.logged("loaded the tokens");
}

#[tokio::test]
async fn server_listens_on_names_and_prefers_ipv4() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("registry.db");
    for (listen, host) in [("localhost:0", "127.0.0.1:"), ("127.0.0.2:0", "127.0.0.2:")] {
        let mut running = Running::start_with(&database, &["--listen", listen]);
        assert!(running.url.starts_with(&format!("http://{host}")), "{}", running.url);
        running.client.get_stats().await.unwrap();
        running.signal("TERM");
    }
}

#[tokio::test]
async fn every_change_is_logged_with_its_request_token_and_outcome() {
    let folder = tempfile::tempdir().unwrap();
    let made = run(&["token", "new", "--name", "ci", "--scope", "agent", "--agent", "agent-*"]);
    let (token, text) = token_and_entry(made);
    let file = folder.path().join("tokens.toml");
    std::fs::write(&file, &text).unwrap();
    let flags = ["--tokens-file", &file.display().to_string(), "--access-log"];
    let running = Running::start_with(&folder.path().join("registry.db"), &flags);
    let send = async |method: reqwest::Method, path: &str, body: String| {
        let request = reqwest::Client::new().request(method, format!("{}{path}", running.url));
        let request = request.bearer_auth(&token).header("x-request-id", "the-request").body(body);
        let answer = request.header("content-type", "application/json").send().await.unwrap();
        assert_eq!(answer.headers()["x-request-id"], "the-request");
    };
    let registration = |number| serde_json::to_string(&registration(number)).unwrap();
    let other = serde_json::to_string(&Registration::new("other", "Other", "http://a:1")).unwrap();
    let mut revisions = Vec::new();
    for (method, path, body, agent_id, change, outcome) in [
        ("POST", "/register", registration(1), "agent-1", "register at http://agent:8000", "changed"),
        ("POST", "/register", other, "other", "change=\"register\"", "does not allow"),
        (
            "POST",
            "/agents/agent-1/heartbeat",
            r#"{"status":"offline"}"#.to_owned(),
            "agent-1",
            "set the status offline by a heartbeat",
            "changed",
        ),
        (
            "PUT",
            "/agents/agent-1/status",
            r#"{"status":"busy"}"#.to_owned(),
            "agent-1",
            "set the status busy",
            "changed",
        ),
        (
            "PUT",
            "/agents/agent-1/maintenance",
            r#"{"reason":"disk\n"}"#.to_owned(),
            "agent-1",
            "change=\"begin maintenance: disk\\n\"",
            "changed",
        ),
        ("DELETE", "/agents/agent-1/maintenance", String::new(), "agent-1", "end maintenance", "changed"),
        ("DELETE", "/agents/agent-1", String::new(), "agent-1", "remove", "changed"),
        ("DELETE", "/agents/agent-1", String::new(), "agent-1", "remove", "no agent"),
    ] {
        send(method.parse().unwrap(), path, body).await;
        let line = running.logged(" an agent");
        for expected in ["INFO", "the-request", "token=\"ci\"", "client=127.0.0.1", agent_id, change, outcome]
        {
            assert!(line.contains(expected), "{expected}: {line}");
        }
        if outcome == "changed" {
            assert!(line.contains("changed_by=\"ci\""), "{line}");
            let revision = line.split("revision=").nth(1).unwrap().split(' ').next().unwrap();
            revisions.push(revision.parse::<u64>().unwrap());
        }
        let line = running.logged("request finished");
        assert!(line.contains("INFO") && line.contains(path) && line.contains("the-request"), "{line}");
    }
    assert_eq!(revisions, [1, 2, 3, 4, 5, 6]);
}

/// Each address causes one line. The registration of the next agent shows that there is no second one.
#[tokio::test]
async fn loopback_address_of_an_agent_on_another_host_is_logged_once() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("registry.db");
    let running = Running::start_with(&database, &["--trusted-proxy", "127.0.0.1"]);
    let register = async |id: &str, url: &str, client: &str| {
        let body = serde_json::to_vec(&Registration::new(id, id, url)).unwrap();
        let request = reqwest::Client::new().post(format!("{}/register", running.url)).body(body);
        let request = request.header("content-type", "application/json").header("x-forwarded-for", client);
        let answer = request.send().await.unwrap();
        assert!(answer.status().is_success());
    };
    let elsewhere = "192.0.2.7";
    register("here", "http://localhost:1", "127.0.0.1").await;
    register("well", "http://agent:8000", elsewhere).await;
    for (id, url) in [
        ("one", "http://127.0.0.1:8002"),
        ("two", "http://localhost"),
        ("three", "http://[::1]:1/x"),
        ("four", "http://a.localhost"),
        ("five", "http://localhost.:1"),
    ] {
        register(id, url, elsewhere).await;
        register(id, url, elsewhere).await;
        let line = running.logged("loopback");
        let names_all = [id, url, elsewhere].iter().all(|text| line.contains(text));
        assert!(line.contains("WARN") && names_all, "{line}");
    }
}

/// A signal that arrives before the server handles it would be lost if it is ignored (such as under `nohup`),
/// or would kill the server.
#[cfg(target_os = "linux")]
#[test]
fn signals_are_caught_before_the_server_listens() {
    let folder = tempfile::tempdir().unwrap();
    for round in 0..10 {
        let running = Running::start(&folder.path().join(format!("{round}.db")));
        let status = std::fs::read_to_string(format!("/proc/{}/status", running.child.id())).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
        let caught = u64::from_str_radix(caught.trim(), 16).unwrap();
        for (name, number) in [("HUP", 1), ("INT", 2), ("TERM", 15)] {
            assert!(caught & (1 << (number - 1)) != 0, "{name} is not caught yet");
        }
    }
}

#[tokio::test]
async fn database_file_serves_only_one_server() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("registry.db");
    let first = Running::start(&database);
    let url = format!("sqlite://{}", database.display());
    let second = run(&["--listen", "127.0.0.1:0", "--database-url", &url]);
    assert_eq!(second.status.code(), Some(1));
    let said = String::from_utf8(second.stderr).unwrap();
    assert!(said.contains("another registry-server") && said.contains("registry.db"), "{said}");
    first.client.register(&registration(1)).await.unwrap();
}

#[test]
fn invalid_setting_is_named() {
    let listen = ["--listen", "127.0.0.1:0"];
    for (arguments, expected) in [
        (&["--heartbeat-timeout", "soon"][..], "30s"),
        (&["--sweep-interval", "0s"], "--sweep-interval"),
        (&["--listen", "here"], "localhost:8009"),
        (&["--listen", ":8009"], "localhost:8009"),
        (&["--listen", "127.0.0.1:65536"], "localhost:8009"),
        (&["--listen", "*:8009"], "localhost:8009"),
        (&["--listen", "http://127.0.0.1:8009"], "localhost:8009"),
        (&["--allowed-host", "*.example.com"], "write each name"),
        (&["--drain-delay", "soon"], "30s"),
        (&["--allowed-host", "http://a.example"], "registry.example.com"),
        (&["--allowed-host", "a.example:80"], "registry.example.com"),
        (&["--allowed-host", "10.0.0.1"], "addresses are always allowed"),
        (&["--trusted-proxy", "proxy"], "10.0.0.0/8"),
        (&["--probe-allow", "10.0.0.0/99"], "10.0.0.0/8"),
        (&["--ard-publisher", "localhost"], "fully qualified domain name"),
        (&["--ard-publisher", "https://agents.example.com"], "fully qualified domain name"),
        (&["--ard-publisher", "agents.example.com:80"], "fully qualified domain name"),
        (&["--ard-publisher", "10.0.0.1"], "fully qualified domain name"),
        (&["--ard-publisher", "*.example.com"], "fully qualified domain name"),
        (&["--ard-publisher", "agents_a.example.com"], "fully qualified domain name"),
        (&["--ard-publisher", "agents-.example.com"], "fully qualified domain name"),
        (&["--ard-publisher", ""], "fully qualified domain name"),
        (&["--public-url", "agents.example.com"], "https://agents.example.com/registry"),
        (&["--public-url", "ftp://agents.example.com"], "https://agents.example.com/registry"),
        (&["--public-url", "https://u@agents.example.com"], "https://agents.example.com/registry"),
        (&["--public-url", "https://agents.example.com/?a"], "https://agents.example.com/registry"),
        (&["--database-url", "mysql://x"], "sqlite: or postgres:"),
        (&["--database-url", "postgres://u:secret@127.0.0.1:1/x"], "127.0.0.1:1"),
        (&["--database-url", "sqlite:///no/such/folder/registry.db"], "/no/such/folder"),
        (&["--log", "a=b=c"], "registry-server:"),
    ] {
        let given: Vec<_> =
            if arguments[0] == "--listen" { arguments.to_vec() } else { [&listen, arguments].concat() };
        let output = run(&given);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && said.contains(expected), "{arguments:?}: {said}");
        assert!(!said.contains("secret"), "{said}");
    }
}

/// A name may become resolvable later, so supervisors must be able to tell this from an invalid setting,
/// which exits with 2.
#[test]
fn unresolved_name_is_not_an_invalid_setting() {
    let ended = run(&["--listen", "no.such.host.invalid:8009", "--database-url", "sqlite::memory:"]);
    let said = String::from_utf8(ended.stderr).unwrap();
    assert!(said.contains("cannot listen on no.such.host.invalid:8009"), "{said}");
    assert_eq!((ended.status.code(), run(&["--listen", "here"]).status.code()), (Some(1), Some(2)));
}

#[test]
fn help_lists_every_flag_with_its_variable_and_default() {
    let mut help = String::new();
    program().arg("--help").spawn().unwrap().stdout.unwrap().read_to_string(&mut help).unwrap();
    for (flag, variable, default) in [
        ("--listen <ADDR>", "REGISTRY_LISTEN", "127.0.0.1:8009"),
        ("--database-url <URL>", "REGISTRY_DATABASE_URL", "sqlite://agent-registry.db"),
        ("--migrate <WHEN>", "REGISTRY_MIGRATE", "default: auto"),
        ("--heartbeat-timeout <DUR>", "REGISTRY_HEARTBEAT_TIMEOUT", "60s"),
        ("--sweep-interval <DUR>", "REGISTRY_SWEEP_INTERVAL", "5s"),
        ("--remove-after <DUR>", "REGISTRY_REMOVE_AFTER", "default: never"),
        ("--drain-delay <DUR>", "REGISTRY_DRAIN_DELAY", "0s"),
        ("--allowed-host <NAME>", "REGISTRY_ALLOWED_HOST", "repeatable"),
        ("--trusted-proxy <CIDR>", "REGISTRY_TRUSTED_PROXY", "repeatable"),
        ("--ard-publisher <DOMAIN>", "REGISTRY_ARD_PUBLISHER", "default: off"),
        ("--public-url <URL>", "REGISTRY_PUBLIC_URL", "default: the request's Host"),
        ("--log-format <FORMAT>", "REGISTRY_LOG_FORMAT", "text"),
        ("--log <FILTER>", "REGISTRY_LOG", "info"),
    ] {
        let (_, after) = help.split_once(flag).unwrap();
        let section = after.split("\n      --").next().unwrap();
        assert!(section.contains(variable) && section.contains(default), "{flag}: {section}");
    }
}

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

/// Creates a token, and a tokens file that contains only this token.
fn new_token() -> (String, String) {
    token_and_entry(run(&["token", "new", "--scope", "admin"]))
}

/// Returns the output of `token new`: the token, which is only displayed, and the entry for the file.
fn token_and_entry(made: Output) -> (String, String) {
    let [shown, entry] = [made.stderr, made.stdout].map(|text| String::from_utf8(text).unwrap());
    (shown.trim_end().rsplit(' ').next().unwrap().to_owned(), entry)
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
