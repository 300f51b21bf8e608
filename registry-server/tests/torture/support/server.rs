//! The server as a separate process, which can be killed.

use std::fs::File;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use registry_sdk::RegistryClient;
use test_support::{Process, lasting_address};

use super::{LONG, client, patient_client};

/// A server with a port that stays the same across restarts. Killed on drop.
pub(crate) struct Server {
    port: u16,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    process: Option<Process>,
    log: tempfile::NamedTempFile,
}

impl Server {
    /// Creates a server without starting it.
    ///
    /// Unless the arguments say otherwise, no agent goes offline within an hour, since a busy machine may
    /// make an agent late.
    pub(crate) fn new(database_url: &str, arguments: &[&str]) -> Self {
        let port = free_port();
        let listen = format!("127.0.0.1:{port}");
        let own = ["--listen", &listen, "--database-url", database_url];
        Self {
            port,
            arguments: own.iter().chain(arguments).map(|&argument| argument.to_owned()).collect(),
            environment: vec![("REGISTRY_HEARTBEAT_TIMEOUT".to_owned(), "1h".to_owned())],
            process: None,
            log: tempfile::NamedTempFile::new().unwrap(),
        }
    }

    pub(crate) async fn running(database_url: &str, arguments: &[&str]) -> Self {
        let mut server = Self::new(database_url, arguments);
        server.start().await;
        server
    }

    /// Sets an environment variable for the next start.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Sets the database for the next start.
    pub(crate) fn set_database(&mut self, database_url: &str) {
        let flag = self.arguments.iter().position(|argument| argument == "--database-url").unwrap();
        database_url.clone_into(&mut self.arguments[flag + 1]);
    }

    /// Starts the server, and waits until it responds.
    pub(crate) async fn start(&mut self) {
        self.spawn();
        self.started().await;
    }

    /// Starts the server without waiting.
    pub(crate) fn spawn(&mut self) {
        let log = || Stdio::from(File::options().append(true).open(self.log.path()).unwrap());
        let mut command = Command::new(env!("CARGO_BIN_EXE_registry-server"));
        command.args(&self.arguments).envs(self.environment.iter().map(|(name, value)| (name, value)));
        self.process = Some(Process::spawn(command.stdin(Stdio::null()).stdout(log()).stderr(log())));
    }

    /// Waits until the server responds.
    pub(crate) async fn started(&mut self) {
        let client = self.client();
        let ended = |server: &mut Self| server.process.as_mut().and_then(|child| child.try_wait().unwrap());
        let began = Instant::now();
        while client.get_server_health().await.is_err() {
            if let Some(status) = ended(self) {
                panic!("the server ended with {status}: {}", self.log());
            }
            assert!(began.elapsed() < LONG, "the server does not answer: {}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.log.path()).unwrap()
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Returns a client that never retries.
    pub(crate) fn client(&self) -> RegistryClient {
        client(&self.url())
    }

    /// Returns a client that retries temporary failures.
    pub(crate) fn patient_client(&self) -> RegistryClient {
        patient_client(&self.url())
    }

    /// Kills the process, as a crash would.
    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    /// Sends a signal. With `STOP`, the server accepts connections but never responds, until `CONT`.
    pub(crate) fn signal(&self, signal: &str) {
        self.process().signal(signal);
    }

    /// Shuts the server down as an operator would. Fails unless it exits successfully.
    pub(crate) async fn stop(&mut self) {
        if self.process.is_some() {
            self.signal("TERM");
            self.ended().await;
        }
    }

    /// Waits until the server has exited. Fails unless it exits successfully.
    pub(crate) async fn ended(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        let ended = tokio::task::spawn_blocking(move || process.wait().unwrap());
        let status = tokio::time::timeout(LONG, ended).await.expect("it does not end").unwrap();
        assert!(status.success(), "{}", self.log());
    }

    /// Like [`Server::stop`], but kills a server that exceeds the limit, and fails. Returns how long the
    /// shutdown took.
    pub(crate) async fn stop_within(&mut self, limit: Duration) -> Duration {
        let began = Instant::now();
        self.signal("TERM");
        let ended = |server: &mut Self| server.process.as_mut().and_then(|child| child.try_wait().unwrap());
        let status = loop {
            if let Some(status) = ended(self) {
                break status;
            }
            if began.elapsed() > limit {
                self.kill();
                panic!("still running {limit:?} after SIGTERM: {}", self.log());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        assert!(status.success(), "{status}: {}", self.log());
        self.process = None;
        began.elapsed()
    }

    fn process(&self) -> &Process {
        self.process.as_ref().unwrap()
    }

    /// Returns the resident memory in KiB.
    pub(crate) fn memory(&self) -> u64 {
        self.process().memory()
    }

    /// Returns the number of open files and connections.
    pub(crate) fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.process().id())).unwrap().count()
    }
}

/// Runs the program until it exits. Returns whether it succeeded, and its standard error.
pub(crate) async fn run_program(arguments: &[&str]) -> (bool, String) {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_registry-server"));
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output =
        tokio::time::timeout(LONG, command.output()).await.expect("the program does not end").unwrap();
    (output.status.success(), String::from_utf8(output.stderr).unwrap())
}

/// Starts a server that must exit with an error, and returns the error.
pub(crate) async fn start_error(database_url: &str, arguments: &[&str]) -> String {
    let own = ["--listen", "127.0.0.1:0", "--database-url", database_url];
    let (is_well, said) = run_program(&[&own, arguments].concat()).await;
    assert!(!is_well, "it ended well: {said}");
    said.lines().last().unwrap_or_default().to_owned()
}

/// Returns a port that stays free while its server is down.
pub(crate) fn free_port() -> u16 {
    lasting_address().port()
}
