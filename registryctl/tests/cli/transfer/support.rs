//! Servers, agents, and exports.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use registry_sdk::contract::Registration;
use registry_sdk::testing::MockRegistry;
use registry_server::{Config, Server, StartError};
use serde_json::{Value, json};
use test_support::NEVER;
pub(crate) use test_support::{Database, eventually, patient_client as client};

pub(crate) use crate::support::{Ended, registryctl, run, text};

/// Starts a server on a database, at any free port.
pub(crate) async fn serve(database: &Database) -> Server {
    serve_at(database, ([127, 0, 0, 1], 0).into()).await
}

pub(crate) async fn serve_at(database: &Database, address: SocketAddr) -> Server {
    let (listen, database_url) = (address.into(), database.url.clone());
    let config = Config { listen, database_url, heartbeat_timeout: NEVER, ..Config::default() };
    loop {
        match Server::bind(config.clone()).await {
            // A child process that another test starts inherits this process's file locks until it executes its program.
            Err(StartError::DatabaseInUse(_)) => tokio::time::sleep(Duration::from_millis(5)).await,
            outcome => return outcome.unwrap(),
        }
    }
}

/// Returns an agent with one capability.
pub(crate) fn agent(agent_id: &str) -> Registration {
    test_support::agent(agent_id, "work")
}

/// Exports to standard output, and returns the lines.
pub(crate) fn export(url: &str) -> Vec<String> {
    let Ended { code, said, reasons } = run(url, &["export"]);
    assert_eq!((code, &*reasons), (Some(0), ""));
    said.lines().map(str::to_owned).collect()
}

/// Returns the agents in an export, by id.
pub(crate) fn agents(lines: &[String]) -> BTreeMap<String, Value> {
    let agents = lines[1..lines.len() - 1].iter().map(|line| serde_json::from_str::<Value>(line).unwrap());
    agents.map(|agent| (agent["agent_id"].as_str().unwrap().to_owned(), agent)).collect()
}

/// Imports a text from standard input.
pub(crate) fn import(url: &str, file: &str, arguments: &[&str]) -> Ended {
    let mut command = registryctl(url, &[&["import", "-"], arguments].concat());
    let mut running =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    running.stdin.take().unwrap().write_all(file.as_bytes()).unwrap();
    running.wait_with_output().unwrap().into()
}

/// Runs an import that must succeed, and returns the counts that are not zero.
pub(crate) fn import_well(url: &str, file: &str, arguments: &[&str]) -> Value {
    let Ended { code, said, reasons } = import(url, file, arguments);
    assert_eq!(code, Some(0), "{reasons}");
    let mut counts: Value = serde_json::from_str(&said).unwrap();
    counts.as_object_mut().unwrap().retain(|_, count| *count != 0);
    counts
}

/// Returns an export of some agents.
pub(crate) fn file_of(agents: &[Value]) -> String {
    let lines: String = agents.iter().map(|agent| format!("{agent}\n")).collect();
    format!("{{\"agent_registry_export\":1}}\n{lines}{{\"agents_exported\":{}}}\n", agents.len())
}

/// Returns the line of an agent.
pub(crate) fn line(agent_id: &str) -> Value {
    json!({
        "agent_id": agent_id, "agent_name": "Agent", "base_url": "http://agents.example:8000",
        "capabilities": [{"name": "work"}], "status": "active",
    })
}

/// Returns the line of an agent with more fields.
pub(crate) fn line_with(agent_id: &str, more: Value) -> Value {
    let (Value::Object(mut line), Value::Object(more)) = (line(agent_id), more) else { panic!("no fields") };
    line.extend(more);
    line.into()
}

/// Returns the writes that a registry received, in order.
pub(crate) fn writes(registry: &MockRegistry) -> Vec<(String, String)> {
    let log = registry.request_log().0.into_iter().filter(|request| request.method != "GET");
    log.map(|request| (format!("{} {}", request.method, request.path), request.body)).collect()
}

/// Returns a path in a folder.
pub(crate) fn path(folder: &tempfile::TempDir, name: &str) -> (PathBuf, String) {
    let path = folder.path().join(name);
    (path.clone(), path.to_str().unwrap().to_owned())
}

/// Starts a registry that answers requests one by one: `answer` gets the method and target of a request and its body, and returns
/// the status and the body of the response. Returns the registry's URL.
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
            // The caller may have been killed.
            let _ = connection.write_all(format!("HTTP/1.1 {status}\r\n{head}\r\n\r\n{text}").as_bytes());
        }
    });
    url
}

/// Reads the method and target of a request, and its body. Returns `None` if the connection is closed early.
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
