//! Servers, databases, and the program.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::time::Duration;

use registry_sdk::contract::{Capability, Registration};
use registry_sdk::testing::MockRegistry;
use registry_sdk::{RegistryClient, RetryPolicy};
use registry_server::{Config, Server, StartError};
use serde_json::{Value, json};

/// Nobody is offline because the machine is busy.
pub(crate) const NEVER: Duration = Duration::from_secs(3_600);

/// Limit of everything that a test waits for.
const LONG: Duration = Duration::from_secs(300);

/// A database of the test's own, gone when it is dropped.
pub(crate) struct Database {
    url: String,
    kind: Kind,
}

enum Kind {
    Sqlite { _folder: tempfile::TempDir },
    Postgres { name: String },
}

impl Database {
    pub(crate) fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", folder.path().join("registry.db").display());
        Self { url, kind: Kind::Sqlite { _folder: folder } }
    }

    pub(crate) fn postgres() -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("registryctl_test_{}_{number}", std::process::id());
        execute(&format!("CREATE DATABASE {name}"));
        let server = postgres_url();
        let (server, _) = server.rsplit_once('/').unwrap();
        Self { url: format!("{server}/{name}"), kind: Kind::Postgres { name } }
    }

    /// The PostgreSQL server's host and port, and the same database's URL at another one.
    pub(crate) fn split(&self) -> (String, impl Fn(&str) -> String) {
        let (_, rest) = self.url.split_once('@').unwrap();
        let (address, _) = rest.split_once('/').unwrap();
        (address.to_owned(), move |other| self.url.replace(address, other))
    }

    /// A server on it, at any free port.
    pub(crate) async fn serve(&self) -> Server {
        self.serve_at(([127, 0, 0, 1], 0).into()).await
    }

    pub(crate) async fn serve_at(&self, address: SocketAddr) -> Server {
        let (listen, database_url) = (address.into(), self.url.clone());
        let config = Config { listen, database_url, heartbeat_timeout: NEVER, ..Config::default() };
        loop {
            match Server::bind(config.clone()).await {
                // A program that another test starts has this process's files, and their locks, until it runs.
                Err(StartError::DatabaseInUse(_)) => tokio::time::sleep(Duration::from_millis(5)).await,
                outcome => return outcome.unwrap(),
            }
        }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if let Kind::Postgres { name } = &self.kind {
            execute(&format!("DROP DATABASE {name} WITH (FORCE)"));
        }
    }
}

fn postgres_url() -> String {
    std::env::var("TEST_DATABASE_URL")
        .expect("TEST_DATABASE_URL names no PostgreSQL: run ./scripts/test, which starts one")
}

/// Runs a statement on the PostgreSQL server.
fn execute(statement: &str) {
    let psql = std::env::var_os("POSTGRES_BIN").map_or("psql".into(), |bin| Path::new(&bin).join("psql"));
    let status = Command::new(psql).args([&*postgres_url(), "-qc", statement]).status().unwrap();
    assert!(status.success(), "{statement}");
}

/// An address that a server can be started at again: the system gives such a port to nobody else meanwhile.
pub(crate) fn lasting_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Below the ports of outgoing connections. Other runs of the tests begin elsewhere.
    let first = 10_000 + u16::try_from(std::process::id() % 10_000).unwrap();
    std::iter::repeat_with(|| {
        SocketAddr::from(([127, 0, 0, 1], first + NEXT.fetch_add(1, Ordering::Relaxed)))
    })
    .find(|address| TcpListener::bind(address).is_ok())
    .unwrap()
}

/// A client that goes on while the server is busy.
pub(crate) fn client(url: &str) -> RegistryClient {
    let patient = RetryPolicy::discovery().attempts(1_000).time_limit(LONG);
    RegistryClient::builder(url).timeout(LONG).retry(patient).build().unwrap()
}

/// A plain agent that can do one thing.
pub(crate) fn agent(agent_id: &str) -> Registration {
    Registration::new(agent_id, format!("Agent {agent_id}"), "http://agents.example:8000")
        .capability(Capability::new("work"))
}

pub(crate) fn registryctl(url: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_registryctl"));
    command.env_clear().stdin(Stdio::null()).env("REGISTRY_URL", url).args(arguments);
    command
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// What a command printed and how it ended.
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) said: String,
    pub(crate) reasons: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let Output { status, stdout, stderr } = output;
        Self { code: status.code(), said: text(&stdout), reasons: text(&stderr) }
    }
}

pub(crate) fn run(url: &str, arguments: &[&str]) -> Ended {
    registryctl(url, arguments).output().unwrap().into()
}

/// The lines of an export to standard output.
pub(crate) fn export(url: &str) -> Vec<String> {
    let Ended { code, said, reasons } = run(url, &["export"]);
    assert_eq!((code, &*reasons), (Some(0), ""));
    said.lines().map(str::to_owned).collect()
}

/// The agents of an export, by id.
pub(crate) fn agents(lines: &[String]) -> BTreeMap<String, Value> {
    let agents = lines[1..lines.len() - 1].iter().map(|line| serde_json::from_str::<Value>(line).unwrap());
    agents.map(|agent| (agent["agent_id"].as_str().unwrap().to_owned(), agent)).collect()
}

/// Imports what is given on standard input.
pub(crate) fn import(url: &str, file: &str, arguments: &[&str]) -> Ended {
    let mut command = registryctl(url, &[&["import", "-"], arguments].concat());
    let mut running =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    running.stdin.take().unwrap().write_all(file.as_bytes()).unwrap();
    running.wait_with_output().unwrap().into()
}

/// Imports, and reads the counts that are not zero.
pub(crate) fn import_well(url: &str, file: &str, arguments: &[&str]) -> Value {
    let Ended { code, said, reasons } = import(url, file, arguments);
    assert_eq!(code, Some(0), "{reasons}");
    let mut counts: Value = serde_json::from_str(&said).unwrap();
    counts.as_object_mut().unwrap().retain(|_, count| *count != 0);
    counts
}

/// An export of these agents.
pub(crate) fn file_of(agents: &[Value]) -> String {
    let lines: String = agents.iter().map(|agent| format!("{agent}\n")).collect();
    format!("{{\"agent_registry_export\":1}}\n{lines}{{\"agents_exported\":{}}}\n", agents.len())
}

/// An agent's line.
pub(crate) fn line(agent_id: &str) -> Value {
    json!({
        "agent_id": agent_id, "agent_name": "Agent", "base_url": "http://agents.example:8000",
        "capabilities": [{"name": "work"}], "status": "active",
    })
}

/// The same with more fields.
pub(crate) fn line_with(agent_id: &str, more: Value) -> Value {
    let (Value::Object(mut line), Value::Object(more)) = (line(agent_id), more) else { panic!("no fields") };
    line.extend(more);
    line.into()
}

/// The writes that a registry received, in their order.
pub(crate) fn writes(registry: &MockRegistry) -> Vec<(String, String)> {
    let log = registry.request_log().0.into_iter().filter(|request| request.method != "GET");
    log.map(|request| (format!("{} {}", request.method, request.path), request.body)).collect()
}

/// A path in a folder.
pub(crate) fn path(folder: &tempfile::TempDir, name: &str) -> (PathBuf, String) {
    let path = folder.path().join(name);
    (path.clone(), path.to_str().unwrap().to_owned())
}

/// Waits until something holds.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(LONG, waiting).await.is_ok(), "never happened: {what}");
}

/// A registry that answers one request after the other as a test says: to a method with a path and query, and a body, with a
/// status and a text. Returns its URL.
pub(crate) fn scripted(
    mut answer: impl FnMut(&str, &str) -> (&'static str, String) + Send + 'static,
) -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            let Some((request, body)) = read_request(&connection) else { continue };
            let (status, text) = answer(&request, &body);
            let kind = if status.starts_with('2') { "application/json" } else { "application/problem+json" };
            let length = text.len();
            let head = format!("content-type: {kind}\r\ncontent-length: {length}\r\nconnection: close");
            // A caller that was ended does not read it.
            let _ = connection.write_all(format!("HTTP/1.1 {status}\r\n{head}\r\n\r\n{text}").as_bytes());
        }
    });
    url
}

/// Reads the method and path of a request, and its body, unless the connection ends before.
fn read_request(connection: &TcpStream) -> Option<(String, String)> {
    let mut reader = BufReader::new(connection);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|length| *length > 0)?;
        if line == "\r\n" {
            break;
        }
        head.push(line);
    }
    let length = head.iter().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().unwrap())
    });
    let mut body = vec![0; length.unwrap_or_default()];
    reader.read_exact(&mut body).ok()?;
    let (request, _version) = head.first()?.rsplit_once(' ')?;
    Some((request.to_owned(), text(&body)))
}
