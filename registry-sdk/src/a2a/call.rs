//! Encoding of the protocol's requests, and decoding of its responses.

use std::str::FromStr;
use std::sync::Arc;

use reqwest::Method;
use reqwest::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use serde_json::{Value, json};
use url::Url;

use super::a2a_error::A2aError;
use super::json;
use super::message::{Form, Message};
use super::reply::Reply;
use super::target::{Dialect, Target};

/// The header with the version of the protocol.
const VERSION_HEADER: HeaderName = HeaderName::from_static("a2a-version");

/// The beginning of the `type` of a problem (RFC 9457) that is an error of the protocol.
const PROBLEM_TYPE: &str = "https://a2a-protocol.org/errors/";

/// A request to an agent.
#[derive(Debug)]
pub(crate) struct Call {
    target: Arc<Target>,
    operation: Operation,
    /// JSON-RPC id of the request.
    id: u64,
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) body: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    SendMessage,
    GetTask,
    CancelTask,
}

/// A response without a task or a message.
#[derive(Debug)]
pub(crate) enum Unusable {
    /// The agent responded with an error of the protocol.
    Refused(A2aError),
    /// The response does not follow the protocol.
    Invalid(String),
}

impl Call {
    /// The request that begins a task. It asks the agent to respond before the task is done.
    ///
    /// # Errors
    /// [`A2aError::NotCallable`] if the agent's version of the protocol does not allow one of the parts.
    pub(crate) fn send(target: Arc<Target>, message: &Message, message_id: &str) -> Result<Self, A2aError> {
        let (form, configuration) = match target.dialect {
            Dialect::JsonRpc | Dialect::HttpJson => (Form::V1, json!({"returnImmediately": true})),
            // Some agents of version 0.3 require the modes. An empty list means all.
            Dialect::OldJsonRpc => (Form::V03, json!({"blocking": false, "acceptedOutputModes": []})),
        };
        let message =
            message.encode(form, message_id).map_err(|why| A2aError::NotCallable(why.to_owned()))?;
        let mut call = Self::new(target, Operation::SendMessage, 1, &["message:send"]);
        call.set_body(json!({"message": message, "configuration": configuration}));
        Ok(call)
    }

    /// The request for the state of a task.
    pub(crate) fn get_task(target: Arc<Target>, task_id: &str, number: u64) -> Self {
        let mut call = Self::new(target, Operation::GetTask, number, &["tasks", task_id]);
        if call.target.dialect == Dialect::HttpJson {
            call.method = Method::GET;
        } else {
            call.set_body(json!({"id": task_id}));
        }
        call
    }

    /// The request that cancels a task.
    pub(crate) fn cancel_task(target: Arc<Target>, task_id: &str) -> Self {
        let mut call = Self::new(target, Operation::CancelTask, 0, &["tasks", &format!("{task_id}:cancel")]);
        call.set_body(json!({"id": task_id}));
        call
    }

    /// A request without a body. The path is relative to the URL, and only used by HTTP+JSON.
    fn new(target: Arc<Target>, operation: Operation, id: u64, path: &[&str]) -> Self {
        let mut url = target.url.clone();
        if target.dialect == Dialect::HttpJson
            && let Ok(mut segments) = url.path_segments_mut()
        {
            segments.pop_if_empty().extend(target.tenant.as_deref()).extend(path);
        }
        Self { target, operation, id, method: Method::POST, url, body: Vec::new() }
    }

    fn set_body(&mut self, mut params: Value) {
        if let Some(tenant) = &self.target.tenant {
            params["tenant"] = json!(tenant);
        }
        let method = match (self.target.dialect, self.operation) {
            (Dialect::HttpJson, _) => {
                self.body = params.to_string().into_bytes();
                return;
            }
            (Dialect::JsonRpc, Operation::SendMessage) => "SendMessage",
            (Dialect::JsonRpc, Operation::GetTask) => "GetTask",
            (Dialect::JsonRpc, Operation::CancelTask) => "CancelTask",
            (Dialect::OldJsonRpc, Operation::SendMessage) => "message/send",
            (Dialect::OldJsonRpc, Operation::GetTask) => "tasks/get",
            (Dialect::OldJsonRpc, Operation::CancelTask) => "tasks/cancel",
        };
        let request = json!({"jsonrpc": "2.0", "id": self.id, "method": method, "params": params});
        self.body = request.to_string().into_bytes();
    }

    /// Sets the headers that the protocol needs.
    pub(crate) fn set_headers(&self, headers: &mut HeaderMap) {
        headers.insert(VERSION_HEADER, HeaderValue::from_static(self.target.dialect.version()));
        if self.operation == Operation::GetTask {
            // Otherwise a proxy might repeat an earlier state.
            headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache"));
        }
        headers.remove(CONTENT_TYPE);
        if !self.body.is_empty() {
            // Also for HTTP+JSON, because some servers do not accept `application/a2a+json`.
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
    }

    /// Reads a successful response.
    pub(crate) fn read(&self, body: &[u8]) -> Result<Reply, Unusable> {
        let json = json::parse(body).map_err(|error| {
            let is_markup = body.trim_ascii_start().starts_with(b"<");
            let why = if is_markup { "it is HTML or XML".to_owned() } else { error.to_string() };
            Unusable::Invalid(format!("the response cannot be decoded ({why})"))
        })?;
        let result = match self.target.dialect {
            Dialect::HttpJson => json,
            Dialect::JsonRpc | Dialect::OldJsonRpc => self.result_of(json)?,
        };
        self.reply_of(result).map_err(Unusable::Invalid)
    }

    /// Reads the result of JSON-RPC.
    fn result_of(&self, json: Value) -> Result<Value, Unusable> {
        let Value::Object(mut response) = json else {
            return Err(Unusable::Invalid(
                "the response is not a JSON object, as JSON-RPC requires".to_owned(),
            ));
        };
        let id = response.get("id").cloned().unwrap_or_default();
        let (result, error) = (response.remove("result"), response.remove("error"));
        // Some servers convert ids to texts. The id is null if the agent could not read the request.
        let is_own = whole_number(&id) == Some(self.id)
            || id == json!(self.id.to_string())
            || id.is_null() && error.is_some();
        match (result, error) {
            _ if !is_own => Err(Unusable::Invalid(format!(
                "this is the response to another request: its id is {id} instead of {}",
                self.id
            ))),
            (_, Some(error)) if !error.is_null() => Err(match whole_number(&error["code"]) {
                Some(code) => Unusable::Refused(refused(code, &error["message"])),
                None => Unusable::Invalid(format!(
                    "the `error` of the response is invalid: its `code` is {}, not a whole number",
                    error["code"]
                )),
            }),
            (Some(result), _) => Ok(result),
            (None, _) => Err(Unusable::Invalid("the response has neither `result` nor `error`".to_owned())),
        }
    }

    fn reply_of(&self, mut result: Value) -> Result<Reply, String> {
        if self.operation != Operation::SendMessage {
            return Reply::task(result);
        }
        if self.target.dialect == Dialect::OldJsonRpc {
            return match result["kind"].as_str() {
                Some("message") => Reply::message(result),
                Some("task") => Reply::task(result),
                _ => Err("the `kind` of the result is neither `task` nor `message`".to_owned()),
            };
        }
        let mut field = |name| result.get_mut(name).map(Value::take).filter(|value| !value.is_null());
        match (field("task"), field("message")) {
            (Some(task), None) => Reply::task(task),
            (None, Some(message)) => Reply::message(message),
            _ => Err("the response has to have either a `task` or a `message`".to_owned()),
        }
    }

    /// Reads the error of the protocol in an unsuccessful response, if it has one. Several errors have the same status.
    pub(crate) fn refusal(&self, status: u16, body: &str) -> Option<A2aError> {
        if matches!(status, 413 | 415) {
            return Some(A2aError::NotAccepted { status, message: body.trim().to_owned() });
        }
        let json = json::parse(body.as_bytes()).ok()?;
        if self.target.dialect == Dialect::HttpJson {
            return http_refusal(&json);
        }
        // A gateway's response may have an `error` with a `code`, too.
        json.get("jsonrpc")?;
        match self.result_of(json) {
            Err(Unusable::Refused(error)) => Some(error),
            Ok(_) | Err(Unusable::Invalid(_)) => None,
        }
    }
}

/// Reads the error of HTTP+JSON: an `error` with details, or a problem (RFC 9457).
fn http_refusal(json: &Value) -> Option<A2aError> {
    if let Some(kind) = json["type"].as_str().and_then(|kind| kind.strip_prefix(PROBLEM_TYPE)) {
        let code = code_of(&kind.to_uppercase().replace('-', "_"))?;
        let message = if json["detail"].is_string() { &json["detail"] } else { &json["title"] };
        return Some(refused(code, message));
    }
    let error = &json["error"];
    let mut details = error["details"].as_array().into_iter().flatten();
    let code = match details.find(|detail| detail["domain"] == "a2a-protocol.org") {
        Some(info) => code_of(info["reason"].as_str()?)?,
        // Some agents do not say more about a request that they cannot read.
        None if error["status"] == "INVALID_ARGUMENT" => -32602,
        None => return None,
    };
    Some(refused(code, &error["message"]))
}

fn refused(code: i64, message: &Value) -> A2aError {
    A2aError::Refused { code, message: message.as_str().unwrap_or_default().to_owned() }
}

/// Reads a whole number, which some servers write as a float, such as -32603.0.
fn whole_number<T: FromStr>(number: &Value) -> Option<T> {
    let text = number.to_string();
    text.strip_suffix(".0").unwrap_or(&text).parse().ok()
}

/// The JSON-RPC code for a reason of HTTP+JSON.
fn code_of(reason: &str) -> Option<i64> {
    Some(match reason {
        "PARSE_ERROR" | "JSON_PARSE" => -32700,
        "INVALID_REQUEST" => -32600,
        "METHOD_NOT_FOUND" => -32601,
        "INVALID_PARAMS" => -32602,
        "INTERNAL_ERROR" => -32603,
        "TASK_NOT_FOUND" => -32001,
        "TASK_NOT_CANCELABLE" => -32002,
        "PUSH_NOTIFICATION_NOT_SUPPORTED" => -32003,
        "UNSUPPORTED_OPERATION" => -32004,
        "CONTENT_TYPE_NOT_SUPPORTED" => -32005,
        "INVALID_AGENT_RESPONSE" => -32006,
        "EXTENDED_AGENT_CARD_NOT_CONFIGURED" => -32007,
        "EXTENSION_SUPPORT_REQUIRED" => -32008,
        "VERSION_NOT_SUPPORTED" => -32009,
        _ => return None,
    })
}
