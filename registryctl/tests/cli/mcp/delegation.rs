//! The tool `delegate_task`, which is only offered with `--allow-delegation`.

use std::sync::mpsc::Receiver;

use serde_json::{Value, json};
use test_support::start_server;

use super::support::{Reply, Session, Task, agent, register, start_agent};

const ALLOWED: &[&str] = &["--allow-delegation"];

fn task(capability: &str) -> Value {
    json!({"capability": capability, "path": "/execute?mode=fast", "body": {"review": "fn main() {}"}})
}

#[tokio::test(flavor = "multi_thread")]
async fn delegation_is_only_offered_if_it_is_allowed() {
    let registry = start_server(|_| {}).await;
    let mut session = Session::start(&registry.url(), &[]);
    assert!(session.tools().iter().all(|tool| tool["name"] != "delegate_task"));
    let refused = session.call("delegate_task", &task("code_review"));
    assert_eq!(refused["error"]["code"], -32_602, "{refused}");
    assert!(refused["error"]["message"].as_str().unwrap().contains("--allow-delegation"), "{refused}");

    let tools = Session::start(&registry.url(), ALLOWED).tools();
    let tool = tools.iter().find(|tool| tool["name"] == "delegate_task").unwrap();
    let expected = json!({
        "title": "Delegate a task", "readOnlyHint": false, "destructiveHint": true, "idempotentHint": false,
        "openWorldHint": true,
    });
    assert_eq!(tool["annotations"], expected);
    registry.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn task_is_sent_to_an_agent() {
    let registry = start_server(|_| {}).await;
    for (id, body) in [("json", r#"{"mistakes": 0}"#), ("text", "no mistakes"), ("empty", "")] {
        let (url, tasks) = start_agent(Reply::Whole(200, body));
        let mut registration = agent(id, &format!("review_{id}"));
        registration.base_url = url;
        register(&registry.url(), &registration).await;
        let mut session = Session::start(&registry.url(), ALLOWED);
        let done = session.result("delegate_task", &task(&format!("review_{id}")));
        let response = match id {
            "json" => json!({"mistakes": 0}),
            "text" => json!("no mistakes"),
            _ => Value::Null,
        };
        let expected = json!({
            "agent_id": id, "agent_name": format!("Agent {id}"), "capability": format!("review_{id}"),
            "status": 200, "response": response,
        });
        assert_eq!(done, expected);
        let task = tasks.recv().unwrap();
        assert!(task.head.starts_with("POST /execute?mode=fast HTTP/1.1\r\n"), "{}", task.head);
        assert!(task.head.to_ascii_lowercase().contains("content-type: application/json"), "{}", task.head);
        assert_eq!(task.body, json!({"review": "fn main() {}"}));
    }
    registry.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn task_fails_over_to_the_next_agent() {
    let registry = start_server(|_| {}).await;
    // The better match gets the task first.
    let (broken, _first) = start_agent(Reply::Whole(500, "out of memory"));
    let (working, _second) = start_agent(Reply::Whole(200, "\"done\""));
    for (id, capability, url) in
        [("broken", "translate release notes", broken), ("working", "translate letters", working)]
    {
        let mut registration = agent(id, capability);
        registration.base_url = url;
        register(&registry.url(), &registration).await;
    }
    let mut session = Session::start(&registry.url(), ALLOWED);
    let task = json!({"task": "Translate our release notes", "path": "/execute", "body": null});
    let done = session.result("delegate_task", &task);
    assert_eq!((&done["agent_id"], &done["response"]), (&json!("working"), &json!("done")));
    let failed = done["failed_attempts"][0].as_str().unwrap();
    assert!(failed.starts_with("broken: status 500") && failed.contains("out of memory"), "{failed}");

    let mut once = task.clone();
    once["at_most_once"] = json!(true);
    let reason = session.failure("delegate_task", &once);
    assert!(reason.contains("at most once") && reason.contains("broken"), "{reason}");
    registry.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_task_says_why() {
    let registry = start_server(|_| {}).await;
    let mut session = Session::start(&registry.url(), ALLOWED);
    let reason = session.failure("delegate_task", &task("code_review"));
    assert!(reason.contains("no healthy one is registered") && reason.contains("search_agents"), "{reason}");

    let (url, _tasks) = start_agent(Reply::Whole(422, "`review` has to be a list"));
    let mut registration = agent("strict", "code_review");
    registration.base_url = url;
    register(&registry.url(), &registration).await;
    let reason = session.failure("delegate_task", &task("code_review"));
    assert!(reason.contains("strict") && reason.contains("has to be a list"), "{reason}");

    let (url, _tasks) = start_agent(Reply::Nothing);
    registration.base_url = url;
    register(&registry.url(), &registration).await;
    let mut late = task("code_review");
    late["deadline_seconds"] = json!(1);
    let reason = session.failure("delegate_task", &late);
    assert!(reason.contains("time_limit of 1s"), "{reason}");
    registry.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn long_and_stalled_responses_are_truncated() {
    let registry = start_server(|_| {}).await;
    let (long, _first) = start_agent(Reply::Whole(200, "語".repeat(10_000).leak()));
    let (stalled, _second) = start_agent(Reply::Part("the beginning"));
    for (id, url) in [("long", long), ("stalled", stalled)] {
        let mut registration = agent(id, id);
        registration.base_url = url;
        register(&registry.url(), &registration).await;
    }
    let mut session = Session::start(&registry.url(), ALLOWED);
    let done = session.result("delegate_task", &task("long"));
    // The 16 KiB end in the middle of a character.
    let expected = "語".repeat(16 * 1_024 / "語".len()) + "\u{fffd}";
    assert_eq!(done["response"], expected);
    assert!(done["incomplete"].as_str().unwrap().contains("16384 bytes"), "{done}");

    // Long enough for the head of the response, even on a busy machine.
    let mut task = task("stalled");
    task["deadline_seconds"] = json!(8);
    let done = session.result("delegate_task", &task);
    assert_eq!(done["response"], "the beginning");
    assert!(done["incomplete"].as_str().unwrap().contains("deadline"), "{done}");
    registry.shutdown().await;
}

/// Registers an agent that never responds. Returns the tasks that it receives.
async fn register_hanging_agent(registry_url: &str) -> Receiver<Task> {
    let (url, tasks) = start_agent(Reply::Nothing);
    let mut registration = agent("hanging", "code_review");
    registration.base_url = url;
    register(registry_url, &registration).await;
    tasks
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_task_is_dropped() {
    let registry = start_server(|_| {}).await;
    let tasks = register_hanging_agent(&registry.url()).await;
    let mut session = Session::start(&registry.url(), ALLOWED);
    let params = json!({"name": "delegate_task", "arguments": task("code_review")});
    let id = session.begin("tools/call", &params);
    let arrived = tasks.recv().unwrap();
    let cancelled = json!({"requestId": id, "reason": "the user does not want it any more"});
    session.send(&json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": cancelled}));
    arrived.wait_until_closed();
    // The cancelled call got no response.
    session.request("ping", &json!({}));
    let (status, errors) = session.close();
    assert_eq!((status.code(), &*errors), (Some(0), ""));
    registry.shutdown().await;
}

/// Without a client, the response of a task has no reader.
#[tokio::test(flavor = "multi_thread")]
async fn task_is_dropped_when_its_client_disconnects() {
    let registry = start_server(|_| {}).await;
    let tasks = register_hanging_agent(&registry.url()).await;
    let mut session = Session::start(&registry.url(), ALLOWED);
    session.begin("tools/call", &json!({"name": "delegate_task", "arguments": task("code_review")}));
    let arrived = tasks.recv().unwrap();
    let (status, errors) = session.close();
    assert_eq!((status.code(), &*errors), (Some(0), ""));
    arrived.wait_until_closed();
    registry.shutdown().await;
}
