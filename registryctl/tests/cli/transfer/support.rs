//! Servers, agents, and files of agents.

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

/// A server on a database, at any free port.
pub(crate) async fn serve(database: &Database) -> Server {
    serve_at(database, ([127, 0, 0, 1], 0).into()).await
}

pub(crate) async fn serve_at(database: &Database, address: SocketAddr) -> Server {
    let (listen, database_url) = (address.into(), database.url.clone());
    let config = Config { listen, database_url, heartbeat_timeout: NEVER, ..Config::default() };
    loop {
        match Server::bind(config.clone()).await {
            // A program that another test starts has this process's files, and their locks, until it runs.
            Err(StartError::DatabaseInUse(_)) => tokio::time::sleep(Duration::from_millis(5)).await,
            outcome => return outcome.unwrap(),
        }
    }
}

/// A plain agent that can do one thing.
pub(crate) fn agent(agent_id: &str) -> Registration {
    test_support::agent(agent_id, "work")
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
