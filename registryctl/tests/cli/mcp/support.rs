//! An MCP client that checks every line, and agents that receive tasks.

use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{ChildStdin, ChildStdout, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};

use registry_sdk::RegistryClient;
use registry_sdk::contract::Registration;
use serde_json::{Value, json};
use test_support::Process;
pub(crate) use test_support::agent;

use crate::support::registryctl;

/// Newest version of the protocol in which a session begins with `initialize`.
pub(crate) const VERSION: &str = "2025-11-25";

pub(crate) async fn register(url: &str, registration: &Registration) {
    RegistryClient::new(url).unwrap().register(registration).await.unwrap();
}

/// A running `registryctl mcp` and its client.
pub(crate) struct Session {
    child: Process,
    input: Option<ChildStdin>,
    output: Lines<BufReader<ChildStdout>>,
    last_id: u64,
}

impl Session {
    /// Starts the program without sending a message.
    pub(crate) fn spawn(url: &str, options: &[&str]) -> Self {
        let mut command = registryctl(url, &[&["mcp"], options].concat());
        let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = Process::spawn(pipes);
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, input, output, last_id: 0 }
    }

    pub(crate) fn start(url: &str, options: &[&str]) -> Self {
        let mut session = Self::spawn(url, options);
        session.initialize(VERSION);
        session
    }

    /// Sends `initialize`, and returns the result.
    pub(crate) fn initialize(&mut self, version: &str) -> Value {
        let client = json!({"name": "test", "version": "1"});
        let params = json!({"protocolVersion": version, "capabilities": {}, "clientInfo": client});
        let result = self.request("initialize", &params)["result"].take();
        self.send(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"}));
        result
    }

    pub(crate) fn send(&mut self, message: &Value) {
        self.send_line(&message.to_string());
    }

    pub(crate) fn send_line(&mut self, line: &str) {
        writeln!(self.input.as_mut().unwrap(), "{line}").unwrap();
    }

    /// Sends a request, and returns its id.
    pub(crate) fn begin(&mut self, method: &str, params: &Value) -> u64 {
        self.last_id += 1;
        self.send(&json!({"jsonrpc": "2.0", "id": self.last_id, "method": method, "params": params}));
        self.last_id
    }

    /// Reads one line, which must be a message.
    pub(crate) fn receive(&mut self) -> Value {
        let line = self.output.next().unwrap().unwrap();
        let message: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(message["jsonrpc"], "2.0", "{line}");
        message
    }

    pub(crate) fn request(&mut self, method: &str, params: &Value) -> Value {
        let id = self.begin(method, params);
        let response = self.receive();
        assert_eq!(response["id"], id, "{response}");
        response
    }

    pub(crate) fn tools(&mut self) -> Vec<Value> {
        self.request("tools/list", &json!({}))["result"]["tools"].as_array().unwrap().clone()
    }

    pub(crate) fn call(&mut self, tool: &str, arguments: &Value) -> Value {
        self.request("tools/call", &json!({"name": tool, "arguments": arguments}))
    }

    /// Calls a tool, and returns its structured result, which must equal its text.
    pub(crate) fn result(&mut self, tool: &str, arguments: &Value) -> Value {
        let response = self.call(tool, arguments);
        let result = &response["result"];
        assert_eq!(result["isError"], false, "{tool} {arguments}: {response}");
        let text = result["content"][0]["text"].as_str().unwrap();
        assert_eq!(serde_json::from_str::<Value>(text).unwrap(), result["structuredContent"]);
        result["structuredContent"].clone()
    }

    /// Calls a tool that must fail, and returns the error.
    pub(crate) fn failure(&mut self, tool: &str, arguments: &Value) -> String {
        let response = self.call(tool, arguments);
        assert_eq!(response["result"]["isError"], true, "{tool} {arguments}: {response}");
        response["result"]["content"][0]["text"].as_str().unwrap().to_owned()
    }

    pub(crate) fn signal(&self, name: &str) {
        self.child.signal(name);
    }

    /// Waits until the program ends. Returns its exit status and standard error.
    pub(crate) fn wait(mut self) -> (ExitStatus, String) {
        for line in self.output.by_ref() {
            let line = line.unwrap();
            assert!(serde_json::from_str::<Value>(&line).is_ok(), "{line}");
        }
        let mut errors = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        (self.child.wait().unwrap(), errors)
    }

    /// Closes standard input, and waits until the program ends.
    pub(crate) fn close(mut self) -> (ExitStatus, String) {
        drop(self.input.take());
        self.wait()
    }
}

/// Response of an agent to a task.
pub(crate) enum Reply {
    /// A status and a complete body.
    Whole(u16, &'static str),
    /// The beginning of a body, then nothing.
    Part(&'static str),
    /// No response.
    Nothing,
}

/// A task that an agent received.
pub(crate) struct Task {
    pub(crate) head: String,
    pub(crate) body: Value,
    /// Disconnected when the connection is closed.
    closed: Receiver<()>,
}

impl Task {
    /// Waits until the sender has closed the connection.
    pub(crate) fn wait_until_closed(&self) {
        assert!(self.closed.recv().is_err());
    }
}

/// Starts an agent that answers every task with the same response. Returns its URL and the tasks.
pub(crate) fn start_agent(reply: Reply) -> (String, Receiver<Task>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (sender, tasks) = mpsc::channel();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            answer(connection.unwrap(), &reply, &sender);
        }
    });
    (url, tasks)
}

fn answer(mut connection: TcpStream, reply: &Reply, tasks: &Sender<Task>) {
    let mut reader = BufReader::new(connection.try_clone().unwrap());
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).unwrap() == 0 {
            return;
        }
    }
    let length = head
        .lines()
        .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or_default()];
    reader.read_exact(&mut body).unwrap();
    let (open, closed) = mpsc::channel();
    let _ = tasks.send(Task { head, body: serde_json::from_slice(&body).unwrap(), closed });
    let text = match reply {
        Reply::Whole(status, body) => {
            format!(
                "HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )
        }
        Reply::Part(body) => format!("HTTP/1.1 200 X\r\nContent-Length: 1000000\r\n\r\n{body}"),
        Reply::Nothing => String::new(),
    };
    // The client may have closed the connection.
    let _ = connection.write_all(text.as_bytes());
    if !matches!(reply, Reply::Whole(..)) {
        let _ = reader.read(&mut [0]);
    }
    drop(open);
}
