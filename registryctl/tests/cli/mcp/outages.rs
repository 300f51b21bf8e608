//! Tool calls while the registry is down, slow, overloaded or rejects requests.

use registry_sdk::testing::{Fault, FaultProxy, MockRegistry};
use serde_json::{Value, json};

use super::support::{Session, agent, register};

/// More attempts than a call makes.
const EVERY: usize = 1_000;

const CALLS: [(&str, &str); 4] = [
    ("search_agents", r#"{"query": "review"}"#),
    ("list_agents", "{}"),
    ("get_agent", r#"{"agent_id": "a"}"#),
    ("check_health", r#"{"agent_id": "a"}"#),
];

#[tokio::test(flavor = "multi_thread")]
async fn tools_work_again_after_an_outage_of_the_registry() {
    let registry = MockRegistry::start().await;
    register(&registry.url(), &agent("a", "code_review")).await;
    let proxy = FaultProxy::start(registry.url().trim_start_matches("http://")).await;
    let url = format!("http://{}", proxy.address());
    proxy.set(Fault::Refuse);
    let mut session = Session::start(&url, &["--allow-delegation"]);
    assert_eq!(session.tools().len(), 5);
    // All calls at once: each has its own time limit.
    let mut pending: Vec<u64> = CALLS
        .iter()
        .map(|(tool, arguments)| {
            let arguments: Value = serde_json::from_str(arguments).unwrap();
            session.begin("tools/call", &json!({"name": tool, "arguments": arguments}))
        })
        .collect();
    let task = json!({"task": "review", "path": "/execute", "body": {}});
    pending.push(session.begin("tools/call", &json!({"name": "delegate_task", "arguments": task})));
    // A slow call does not delay other messages.
    let ping = session.begin("ping", &json!({}));
    assert_eq!(session.receive()["id"], ping);
    while !pending.is_empty() {
        let response = session.receive();
        pending.retain(|id| response["id"] != *id);
        let reason = response["result"]["content"][0]["text"].as_str().unwrap();
        assert_eq!(response["result"]["isError"], true, "{response}");
        assert!(reason.contains(&url) && reason.contains("try again later"), "{reason}");
    }
    proxy.set(Fault::None);
    for (tool, arguments) in CALLS {
        session.result(tool, &serde_json::from_str(arguments).unwrap());
    }
    let (status, errors) = session.close();
    assert_eq!((status.code(), &*errors), (Some(0), ""));
}

/// Returns the error of a search on a registry with faults.
async fn reason(fail: impl FnOnce(&MockRegistry)) -> String {
    let registry = MockRegistry::start().await;
    fail(&registry);
    Session::start(&registry.url(), &[]).failure("search_agents", &json!({"query": "review"}))
}

#[tokio::test(flavor = "multi_thread")]
async fn call_to_a_hanging_registry_times_out() {
    let reason = reason(|registry| registry.hang(EVERY)).await;
    assert!(reason.contains("did not answer within") && reason.contains("try again later"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn error_of_the_registry_is_quoted() {
    let reason = reason(|registry| registry.fail_next(EVERY, 500)).await;
    assert!(reason.contains("500") && reason.contains("try again later"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn overloaded_registry_says_when_to_retry() {
    let reason = reason(|registry| registry.fail_next(EVERY, 429)).await;
    assert!(reason.contains("429") && reason.contains("Try again in 1 s"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rejected_token_is_reported_to_the_user() {
    for status in [401, 403] {
        let reason = reason(|registry| registry.fail_next(EVERY, status)).await;
        assert!(reason.contains(&status.to_string()) && reason.contains("REGISTRY_TOKEN"), "{reason}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn server_that_is_not_a_registry_is_reported() {
    let reason = reason(|registry| registry.garbage_body(EVERY)).await;
    assert!(reason.contains("Tell the user to check the settings"), "{reason}");
}
