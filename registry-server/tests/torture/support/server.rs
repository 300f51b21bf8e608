//! The server as a process of its own, which can be killed.

use std::fs::File;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use registry_sdk::RegistryClient;
use test_support::{Process, lasting_address};

use super::{LONG, client, patient_client};

/// A server at a port that stays its own over restarts. Ends with this.
pub(crate) struct Server {
    port: u16,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    process: Option<Process>,
    log: tempfile::NamedTempFile,
}

impl Server {
    /// One that does not run yet. Unless the arguments say otherwise, nobody is offline for an hour: an agent may be late
    /// because the machine is busy.
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

    /// Sets a variable for its next start.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Sets the database for its next start.
    pub(crate) fn set_database(&mut self, database_url: &str) {
        let flag = self.arguments.iter().position(|argument| argument == "--database-url").unwrap();
        database_url.clone_into(&mut self.arguments[flag + 1]);
    }

    /// Starts it, and waits until it answers.
    pub(crate) async fn start(&mut self) {
        self.spawn();
        self.started().await;
    }

    /// Starts it, and waits for nothing.
    pub(crate) fn spawn(&mut self) {
        let log = || Stdio::from(File::options().append(true).open(self.log.path()).unwrap());
        let mut command = Command::new(env!("CARGO_BIN_EXE_registry-server"));
        command.args(&self.arguments).envs(self.environment.iter().map(|(name, value)| (name, value)));
        self.process = Some(Process::spawn(command.stdin(Stdio::null()).stdout(log()).stderr(log())));
    }

    /// Waits until it answers.
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

    /// A client that gives its errors at once.
    pub(crate) fn client(&self) -> RegistryClient {
        client(&self.url())
    }

    /// A client that outlasts whatever is temporary.
    pub(crate) fn patient_client(&self) -> RegistryClient {
        patient_client(&self.url())
    }

    /// Ends it as a crash would.
    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    /// Sends it a signal. After `STOP` it accepts connections and answers nothing, until it gets `CONT`.
    pub(crate) fn signal(&self, signal: &str) {
        self.process().signal(signal);
    }

    /// As an operator would end it. Fails where it does not end well.
    pub(crate) async fn stop(&mut self) {
        if self.process.is_some() {
            self.signal("TERM");
            self.ended().await;
        }
    }

    /// Waits until it has ended. Fails where it does not end well.
    pub(crate) async fn ended(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        let ended = tokio::task::spawn_blocking(move || process.wait().unwrap());
        let status = tokio::time::timeout(LONG, ended).await.expect("it does not end").unwrap();
        assert!(status.success(), "{}", self.log());
    }

    /// The same, within a limit. One that is slower is killed.
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

    /// Its resident memory, in KiB.
    pub(crate) fn memory(&self) -> u64 {
        self.process().memory()
    }

    /// How many files and connections it has open.
    pub(crate) fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.process().id())).unwrap().count()
    }
}

/// Runs the program until it ends by itself, and returns whether it ended well, and what it said.
pub(crate) async fn run_program(arguments: &[&str]) -> (bool, String) {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_registry-server"));
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output =
        tokio::time::timeout(LONG, command.output()).await.expect("the program does not end").unwrap();
    (output.status.success(), String::from_utf8(output.stderr).unwrap())
}

/// Starts a server that has to end with an error, and returns the error.
pub(crate) async fn start_error(database_url: &str, arguments: &[&str]) -> String {
    let own = ["--listen", "127.0.0.1:0", "--database-url", database_url];
    let (is_well, said) = run_program(&[&own, arguments].concat()).await;
    assert!(!is_well, "it ended well: {said}");
    said.lines().last().unwrap_or_default().to_owned()
}

/// A port that stays free while its server is down.
pub(crate) fn free_port() -> u16 {
    lasting_address().port()
}
