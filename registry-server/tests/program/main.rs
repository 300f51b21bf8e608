//! The program itself: its flags, its signals, and its state after being killed.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod credential_files;
mod empty_variables;
mod logs;
mod settings;
mod shutdown;
mod tokens;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;

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

/// Creates a token, and a tokens file that contains only this token.
fn new_token() -> (String, String) {
    token_and_entry(run(&["token", "new", "--scope", "admin"]))
}

/// Returns the output of `token new`: the token, which is only displayed, and the entry for the file.
fn token_and_entry(made: Output) -> (String, String) {
    let [shown, entry] = [made.stderr, made.stdout].map(|text| String::from_utf8(text).unwrap());
    (shown.trim_end().rsplit(' ').next().unwrap().to_owned(), entry)
}
