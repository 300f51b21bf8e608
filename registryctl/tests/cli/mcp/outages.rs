//! A registry that is away, slow or refuses is a result that says so.

use registry_sdk::testing::{Fault, FaultProxy, MockRegistry};
use serde_json::{Value, json};

use super::support::{Session, agent, register};

/// More than a call tries.
const EVERY: usize = 1_000;

const CALLS: [(&str, &str); 4] = [
    ("search_agents", r#"{"query": "review"}"#),
    ("list_agents", "{}"),
    ("get_agent", r#"{"agent_id": "a"}"#),
    ("check_health", r#"{"agent_id": "a"}"#),
];

#[tokio::test(flavor = "multi_thread")]
async fn the_registry_may_be_away_and_come_back() {
    let registry = MockRegistry::start().await;
    register(&registry.url(), &agent("a", "code_review")).await;
    let proxy = FaultProxy::start(registry.url().trim_start_matches("http://")).await;
    let url = format!("http://{}", proxy.address());
    proxy.set(Fault::Refuse);
    let mut session = Session::start(&url, &["--allow-delegation"]);
    assert_eq!(session.tools().len(), 5);
    // All at once: each gives up by itself.
    let mut pending: Vec<u64> = CALLS
        .iter()
        .map(|(tool, arguments)| {
            let arguments: Value = serde_json::from_str(arguments).unwrap();
            session.begin("tools/call", &json!({"name": tool, "arguments": arguments}))
        })
        .collect();
    let task = json!({"task": "review", "path": "/execute", "body": {}});
    pending.push(session.begin("tools/call", &json!({"name": "delegate_task", "arguments": task})));
    // Whatever takes long keeps nothing else waiting.
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

/// Returns the reason that a search gives.
async fn reason(fail: impl FnOnce(&MockRegistry)) -> String {
    let registry = MockRegistry::start().await;
    fail(&registry);
    Session::start(&registry.url(), &[]).failure("search_agents", &json!({"query": "review"}))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_hangs_is_given_up() {
    let reason = reason(|registry| registry.hang(EVERY)).await;
    assert!(reason.contains("did not answer within") && reason.contains("try again later"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_fails_is_quoted() {
    let reason = reason(|registry| registry.fail_next(EVERY, 500)).await;
    assert!(reason.contains("500") && reason.contains("try again later"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_overloaded_says_when_to_come_back() {
    let reason = reason(|registry| registry.fail_next(EVERY, 429)).await;
    assert!(reason.contains("429") && reason.contains("Try again in 1 s"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_token_is_a_matter_for_the_user() {
    for status in [401, 403] {
        let reason = reason(|registry| registry.fail_next(EVERY, status)).await;
        assert!(reason.contains(&status.to_string()) && reason.contains("REGISTRY_TOKEN"), "{reason}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn something_else_in_place_of_the_registry_is_told() {
    let reason = reason(|registry| registry.garbage_body(EVERY)).await;
    assert!(reason.contains("Tell the user to check the settings"), "{reason}");
}
