//! A mock registry, and fake A2A agents whose responses a test sets.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, Uri};
use axum::response::Response;
use registry_sdk::a2a::{CardDetails, Interface};
use registry_sdk::discovery::{DelegateError, Delegated, Delegation, Directory, Orchestrator};
use registry_sdk::testing::MockRegistry;
use registry_sdk::{Capability, Registration, a2a};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;

/// Maximum time that a test waits for a delegation or a condition, on the paused clock.
const MAX_WAIT: Duration = Duration::from_secs(3_600);

/// The protocol binding of an agent: in version 1.0, except for `OldJsonRpc`, which is JSON-RPC of version 0.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Binding {
    JsonRpc,
    HttpJson,
    OldJsonRpc,
}

pub(crate) const BINDINGS: [Binding; 3] = [Binding::JsonRpc, Binding::HttpJson, Binding::OldJsonRpc];

/// A response of an agent.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// A task: its state, as version 0.3 names it, and a text. The text is in an artifact if the task is completed, and otherwise in the
    /// status message.
    Task(&'static str, &'static str),
    /// A message without a task.
    Message(&'static str),
    /// An error of the protocol: its code in JSON-RPC, and its reason and status in HTTP+JSON.
    Error(i64, &'static str, u16),
    /// An HTTP response: status, `Retry-After`, and body. The body of a redirect is its `Location`, too.
    Http(u16, Option<u32>, &'static str),
    /// A result that is sent unchanged.
    Result(Value),
    /// Another answer, after a pause.
    Late(Duration, Box<Answer>),
    /// No response at all.
    Hang,
    /// Headers, and a body that breaks off.
    Broken,
    /// Headers, and a body of which nothing ever arrives.
    Stalled,
    /// Another answer, whose body takes this number of seconds to arrive.
    Slow(u32, Box<Answer>),
}

/// A request that an agent received.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// Name of the operation in version 1.0.
    pub(crate) operation: &'static str,
    pub(crate) headers: HeaderMap,
    pub(crate) uri: Uri,
    pub(crate) json: Value,
    binding: Binding,
}

impl Call {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// Parameters of the operation: the whole body in HTTP+JSON, `params` in JSON-RPC.
    pub(crate) fn params(&self) -> &Value {
        if self.binding == Binding::HttpJson { &self.json } else { &self.json["params"] }
    }
}

/// Returns the answer to a request, given its index among the requests for the same operation.
type Script = Box<dyn FnMut(&Call, usize) -> Answer + Send>;

struct Shared {
    script: Mutex<Script>,
    calls: Mutex<Vec<Call>>,
}

/// A fake agent, and the requests that it has received.
#[derive(Clone)]
pub(crate) struct Agent {
    pub(crate) url: String,
    shared: Arc<Shared>,
    listener: AbortHandle,
}

impl Agent {
    /// Sets the function that answers the agent's requests.
    pub(crate) fn script(&self, script: impl FnMut(&Call, usize) -> Answer + Send + 'static) {
        *self.shared.script.lock().unwrap() = Box::new(script);
    }

    /// Sets the answer to messages, and the one to polls. A cancellation succeeds.
    pub(crate) fn answers(&self, to_message: Answer, to_poll: Answer) {
        self.script(move |call, _| match call.operation {
            "SendMessage" => to_message.clone(),
            "CancelTask" => Answer::Task("canceled", ""),
            _ => to_poll.clone(),
        });
    }

    /// Returns the requests that the agent has received for an operation.
    pub(crate) fn calls(&self, operation: &str) -> Vec<Call> {
        let calls = self.shared.calls.lock().unwrap();
        calls.iter().filter(|call| call.operation == operation).cloned().collect()
    }

    pub(crate) fn count(&self, operation: &str) -> usize {
        self.calls(operation).len()
    }

    /// Kills the agent: it accepts no more connections.
    pub(crate) fn kill(&self) {
        self.listener.abort();
    }
}

/// A registry with agents that can do `work`.
pub(crate) struct Scene {
    pub(crate) registry: MockRegistry,
    tasks: JoinSet<()>,
}

impl Scene {
    pub(crate) async fn new() -> Self {
        let mut tasks = JoinSet::new();
        tasks.spawn(let_the_kernel_deliver());
        Self { registry: MockRegistry::start().await, tasks }
    }

    /// Starts and registers an agent that completes every task at once. The greater its `rank`, the worse it matches `work`.
    pub(crate) async fn agent(&mut self, id: &'static str, rank: usize, binding: Binding) -> Agent {
        let agent = self.unregistered(binding).await;
        agent.answers(Answer::Task("completed", id), Answer::Error(-32_001, "TASK_NOT_FOUND", 404));
        let interface = interface(&agent, binding);
        self.register(id, rank, &agent, Some(CardDetails::new("Works", "1.0.0", interface))).await;
        agent
    }

    /// Starts and registers three agents with the same answers, the best match first.
    pub(crate) async fn three_agents(&mut self, to_message: Answer, to_poll: Answer) -> [Agent; 3] {
        let agents = [
            self.agent("first", 0, Binding::JsonRpc).await,
            self.agent("second", 1, Binding::JsonRpc).await,
            self.agent("third", 2, Binding::JsonRpc).await,
        ];
        for agent in &agents {
            agent.answers(to_message.clone(), to_poll.clone());
        }
        agents
    }

    pub(crate) async fn register(&self, id: &str, rank: usize, agent: &Agent, details: Option<CardDetails>) {
        let capability = match rank {
            0 => Capability::new("work"),
            1 => Capability::new("work_in_part"),
            2 => Capability::new("other").tag("work"),
            _ => Capability::new("other").example("may work"),
        };
        let mut registration = Registration::new(id, id, &*agent.url)
            .capability(capability)
            .heartbeat_interval(Duration::from_secs(86_400));
        if let Some(details) = details {
            let card = details.card_of(&registration).unwrap();
            registration = registration.card(card);
        }
        self.registry.client().register(&registration).await.unwrap();
    }

    /// Starts an agent without registering it. It does not respond until its answers are set.
    pub(crate) async fn unregistered(&mut self, binding: Binding) -> Agent {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let script: Script = Box::new(|_, _| Answer::Hang);
        let shared = Arc::new(Shared { script: Mutex::new(script), calls: Mutex::default() });
        let app = Router::new().fallback(answer).with_state((shared.clone(), binding));
        let listener = self.tasks.spawn(async move { axum::serve(listener, app).await.unwrap() });
        Agent { url, shared, listener }
    }

    /// Runs a future in the background until the end of the test.
    pub(crate) fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// Number of requests for a card that the registry has received.
    pub(crate) fn cards_read(&self) -> usize {
        self.registry.request_log().0.iter().filter(|request| request.path.ends_with("/card")).count()
    }

    pub(crate) fn orchestrator(&self) -> Orchestrator {
        Orchestrator::new(self.registry.client())
    }

    /// Returns an orchestrator that knows all agents, so that it only asks the registry for cards.
    pub(crate) async fn orchestrator_with_directory(&self) -> Orchestrator {
        let directory = Directory::follow(&self.registry.client());
        directory.ready().await.unwrap();
        Orchestrator::builder(self.registry.client()).directory(directory).build()
    }
}

/// Returns the interface that an agent's card lists.
pub(crate) fn interface(agent: &Agent, binding: Binding) -> Interface {
    match binding {
        Binding::JsonRpc => Interface::json_rpc(format!("{}/rpc", agent.url)),
        Binding::HttpJson => Interface::http_json(format!("{}/rest/", agent.url)),
        Binding::OldJsonRpc => Interface::json_rpc(format!("{}/rpc", agent.url)).protocol_version("0.3"),
    }
}

/// Delegates a message. Returns the text of the reply, or that of the error.
pub(crate) async fn reply_text(delegation: Delegation<'_>) -> Result<String, String> {
    send(delegation).await.map(|done| done.value.text()).map_err(|error| error.to_string())
}

/// Delegates a message. Panics if the delegation does not end.
pub(crate) async fn send(delegation: Delegation<'_>) -> Result<Delegated<a2a::Reply>, DelegateError> {
    let sent = delegation.send_message("Find a recipe with leeks");
    tokio::time::timeout(MAX_WAIT, sent).await.unwrap_or_else(|_| panic!("the delegation never ended"))
}

/// Waits until a condition holds. On a paused clock, this takes no real time.
pub(crate) async fn until(condition: &str, holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    let waited = tokio::time::timeout(MAX_WAIT, waiting).await;
    assert!(waited.is_ok(), "never became true: {condition}");
}

/// Keeps a paused clock from running ahead while bytes pass through the kernel.
async fn let_the_kernel_deliver() {
    for _ in 0..MAX_WAIT.as_secs() {
        sleep(Duration::from_secs(1)).await;
        std::thread::sleep(Duration::from_millis(1));
    }
}

async fn answer(
    State((shared, binding)): State<(Arc<Shared>, Binding)>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    if uri.path() == "/health" {
        return response(200, r#"{"status": "healthy"}"#);
    }
    let json: Value = serde_json::from_slice(&body).unwrap_or_default();
    let Some(operation) = operation(binding, &method, &uri, &json) else {
        return response(404, "nothing here");
    };
    let call = Call { operation, headers, uri, json, binding };
    let index = {
        let mut calls = shared.calls.lock().unwrap();
        calls.push(call.clone());
        calls.iter().filter(|earlier| earlier.operation == operation).count() - 1
    };
    let mut answer = (shared.script.lock().unwrap())(&call, index);
    while let Answer::Late(pause, later) = answer {
        sleep(pause).await;
        answer = *later;
    }
    encode(&call, answer).await
}

fn operation(binding: Binding, method: &Method, uri: &Uri, json: &Value) -> Option<&'static str> {
    if binding != Binding::HttpJson {
        return match (binding, json["method"].as_str()?) {
            (Binding::JsonRpc, "SendMessage") | (Binding::OldJsonRpc, "message/send") => Some("SendMessage"),
            (Binding::JsonRpc, "GetTask") | (Binding::OldJsonRpc, "tasks/get") => Some("GetTask"),
            (Binding::JsonRpc, "CancelTask") | (Binding::OldJsonRpc, "tasks/cancel") => Some("CancelTask"),
            _ => None,
        };
    }
    match (method.as_str(), uri.path()) {
        ("POST", path) if path.ends_with("/message:send") => Some("SendMessage"),
        ("GET", path) if path.ends_with("/tasks/t-1") => Some("GetTask"),
        ("POST", path) if path.ends_with("/tasks/t-1:cancel") => Some("CancelTask"),
        _ => None,
    }
}

async fn encode(call: &Call, answer: Answer) -> Response {
    let result = match answer {
        Answer::Slow(seconds, answer) => {
            let whole = Box::pin(encode(call, *answer)).await;
            return slowed(whole, seconds).await;
        }
        Answer::Task(state, text) => task(call, state, text),
        Answer::Message(text) => message(call, text),
        Answer::Result(result) => result,
        Answer::Error(code, reason, status) => return error(call, code, reason, status),
        Answer::Http(status, retry_after, body) => {
            let mut response = response(status, body);
            if (300..400).contains(&status) {
                response.headers_mut().insert("location", body.parse().unwrap());
            }
            if let Some(seconds) = retry_after {
                response.headers_mut().insert("retry-after", seconds.into());
            }
            return response;
        }
        Answer::Broken => {
            // The headers are sent during the pause.
            let broken = futures_util::stream::once(async {
                sleep(Duration::from_secs(1)).await;
                Err::<Bytes, _>(std::io::Error::other("broken"))
            });
            return Response::new(Body::from_stream(broken));
        }
        Answer::Stalled => {
            let stalled = futures_util::stream::pending::<std::io::Result<Bytes>>();
            return Response::new(Body::from_stream(stalled));
        }
        Answer::Hang | Answer::Late(..) => std::future::pending().await,
    };
    let json = match call.binding {
        Binding::HttpJson => result,
        _ => json!({"jsonrpc": "2.0", "id": call.json["id"], "result": result}),
    };
    response(200, &json.to_string())
}

/// Sends a body over a number of seconds: one byte in each, and the rest in the last.
async fn slowed(whole: Response, seconds: u32) -> Response {
    let body = axum::body::to_bytes(whole.into_body(), usize::MAX).await.unwrap();
    let chunks = futures_util::stream::unfold((body, seconds), |(mut body, left)| async move {
        if body.is_empty() {
            return None;
        }
        sleep(Duration::from_secs(1)).await;
        let chunk = body.split_to(if left > 1 { 1 } else { body.len() });
        Some((Ok::<_, std::io::Error>(chunk), (body, left.saturating_sub(1))))
    });
    Response::new(Body::from_stream(chunks))
}

fn text_part(binding: Binding, text: &str) -> Value {
    if binding == Binding::OldJsonRpc { json!({"kind": "text", "text": text}) } else { json!({"text": text}) }
}

fn task(call: &Call, state: &str, text: &str) -> Value {
    let is_old = call.binding == Binding::OldJsonRpc;
    let parts = json!([text_part(call.binding, text)]);
    let state_name = if is_old {
        state.to_owned()
    } else {
        format!("TASK_STATE_{}", state.to_uppercase().replace('-', "_"))
    };
    let mut task = json!({"id": "t-1", "contextId": "c-1", "status": {"state": state_name}});
    match state {
        "completed" => task["artifacts"] = json!([{"artifactId": "a", "parts": parts}]),
        _ => task["status"]["message"] = json!({"messageId": "m", "role": "ROLE_AGENT", "parts": parts}),
    }
    if is_old {
        task["kind"] = json!("task");
    }
    if call.operation == "SendMessage" && !is_old { json!({"task": task}) } else { task }
}

fn message(call: &Call, text: &str) -> Value {
    let parts = json!([text_part(call.binding, text)]);
    match call.binding {
        Binding::OldJsonRpc => json!({"kind": "message", "messageId": "m", "role": "agent", "parts": parts}),
        _ => json!({"message": {"messageId": "m", "role": "ROLE_AGENT", "parts": parts}}),
    }
}

fn error(call: &Call, code: i64, reason: &str, status: u16) -> Response {
    if call.binding == Binding::HttpJson {
        let info = json!({"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason, "domain": "a2a-protocol.org"});
        let error = json!({"error": {"code": status, "message": "the agent's reason", "details": [info]}});
        return response(status, &error.to_string());
    }
    let error = json!({"code": code, "message": "the agent's reason"});
    response(200, &json!({"jsonrpc": "2.0", "id": call.json["id"], "error": error}).to_string())
}

/// A response that closes its connection, so that no later request reaches a killed agent over it.
fn response(status: u16, body: &str) -> Response {
    let builder = Response::builder().status(status).header("connection", "close");
    builder.body(Body::from(body.to_owned())).unwrap()
}
