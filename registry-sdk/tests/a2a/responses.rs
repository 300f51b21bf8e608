//! Responses that do not follow the protocol, and the deviations that are accepted.

use registry_sdk::discovery::{EjectionState, EndReason, FailureKind};
use serde_json::json;

use crate::fakes::{Answer, Binding, Scene, send};

/// Returns the error that an agent's answer to a message leads to, and checks that the task does not go to the next agent.
async fn failure(binding: Binding, answer: Answer) -> String {
    let mut scene = Scene::new().await;
    let first = scene.agent("first", 0, binding).await;
    let second = scene.agent("second", 1, binding).await;
    first.answers(answer.clone(), Answer::Hang);
    let orchestrator = scene.orchestrator();
    let error = send(orchestrator.delegate("work").max_response(10_000)).await.unwrap_err();
    assert!(matches!(error.reason, EndReason::UnusableResponse), "{answer:?}: {error}");
    assert_eq!((error.attempts[0].kind, second.count("SendMessage")), (FailureKind::Response, 0));
    assert_eq!(orchestrator.ejection("first"), EjectionState::Admitted);
    error.attempts[0].to_string()
}

#[tokio::test(start_paused = true)]
async fn error_says_how_a_json_rpc_response_is_invalid() {
    let raw = |json: &'static str| Answer::Http(200, None, json);
    for (answer, expected) in [
        (raw("<html>Sign in</html>"), "the response cannot be decoded (it is HTML or XML)"),
        (raw("so what"), "the response cannot be decoded (expected value"),
        (raw(""), "the response cannot be decoded (EOF"),
        (raw("[1]"), "the response is not a JSON object, as JSON-RPC requires"),
        (raw(r#"{"jsonrpc": "2.0", "id": 1}"#), "the response has neither `result` nor `error`"),
        (
            raw(r#"{"jsonrpc": "2.0", "id": 7, "result": {}}"#),
            "this is the response to another request: its id is 7 instead of 1",
        ),
        (raw(r#"{"jsonrpc": "2.0", "id": null, "result": {}}"#), "its id is null instead of 1"),
        (
            raw(r#"{"jsonrpc": "2.0", "id": 1, "error": "no"}"#),
            "the `error` of the response is invalid: its `code` is null",
        ),
        (Answer::Broken, "the response broke off"),
        (Answer::Result(json!({})), "the response has to have either a `task` or a `message`"),
        (
            Answer::Result(json!({"task": {"id": "t"}, "message": {"parts": []}})),
            "either a `task` or a `message`",
        ),
        (
            Answer::Result(json!({"task": {"status": {"state": "TASK_STATE_WORKING"}}})),
            "the task has no `id`",
        ),
        (Answer::Result(json!({"task": {"id": "t-1", "status": {}}})), "the task has no `status.state`"),
        (Answer::Result(json!({"message": {"messageId": "m"}})), "the message has no `parts`"),
        (Answer::Result(json!({"message": {"parts": ["x".repeat(20_000)]}})), "longer than 10000 bytes"),
    ] {
        let text = failure(Binding::JsonRpc, answer).await;
        assert!(text.contains(expected), "{text}");
        assert!(text.starts_with("first: status 200, but "), "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn error_says_how_a_response_of_another_binding_is_invalid() {
    let text = failure(Binding::OldJsonRpc, Answer::Result(json!({"id": "t-1"}))).await;
    assert!(text.contains("the `kind` of the result is neither `task` nor `message`"), "{text}");
    let text = failure(Binding::HttpJson, Answer::Http(200, None, "<html>")).await;
    assert!(text.contains("it is HTML or XML"), "{text}");
    let text = failure(Binding::HttpJson, Answer::Result(json!([]))).await;
    assert!(text.contains("either a `task` or a `message`"), "{text}");
}

/// An agent that could not parse the request does not know its id.
#[tokio::test(start_paused = true)]
async fn error_without_an_id_belongs_to_the_request() {
    let mut scene = Scene::new().await;
    let agent = scene.agent("a", 0, Binding::JsonRpc).await;
    let error = r#"{"jsonrpc": "2.0", "id": null, "error": {"code": -32700, "message": "no JSON"}}"#;
    agent.answers(Answer::Http(200, None, error), Answer::Hang);
    let error = send(scene.orchestrator().delegate("work")).await.unwrap_err();
    assert!(matches!(error.reason, EndReason::Misdeployed), "{error}");
    assert!(error.to_string().contains("A2A error -32700: no JSON"), "{error}");
}

/// The result of another agent would be too long, too.
#[tokio::test(start_paused = true)]
async fn result_that_is_too_long_ends_the_delegation() {
    let mut scene = Scene::new().await;
    let agent = scene.agent("a", 0, Binding::HttpJson).await;
    let other = scene.agent("b", 1, Binding::HttpJson).await;
    let long = Answer::Task("completed", "x".repeat(20_000).leak());
    agent.answers(Answer::Task("working", ""), long);
    let error = send(scene.orchestrator().delegate("work").max_response(10_000)).await.unwrap_err();
    assert!(matches!(error.reason, EndReason::UnusableResponse), "{error}");
    assert_eq!(other.count("SendMessage"), 0);
}

/// A state of a later version is no reason to give up the task.
#[tokio::test(start_paused = true)]
async fn task_in_an_unknown_state_counts_as_running() {
    let mut scene = Scene::new().await;
    let agent = scene.agent("a", 0, Binding::OldJsonRpc).await;
    agent.script(
        |_, index| if index < 3 { Answer::Task("unknown", "") } else { Answer::Task("completed", "done") },
    );
    let done = send(scene.orchestrator().delegate("work")).await.unwrap();
    assert_eq!(done.value.text(), "done");
}

/// Some servers turn the request's id into a string.
#[tokio::test(start_paused = true)]
async fn response_may_have_the_id_of_the_request_as_a_string() {
    let mut scene = Scene::new().await;
    let agent = scene.agent("a", 0, Binding::JsonRpc).await;
    let response = r#"{"jsonrpc": "2.0", "id": "1", "result": {"message": {"parts": [{"text": "done"}]}}}"#;
    agent.answers(Answer::Http(200, None, response), Answer::Hang);
    let done = send(scene.orchestrator().delegate("work")).await.unwrap();
    assert_eq!(done.value.text(), "done");
    let other = r#"{"jsonrpc": "2.0", "id": "7", "result": {"message": {"parts": []}}}"#;
    let text = failure(Binding::JsonRpc, Answer::Http(200, None, other)).await;
    assert!(text.contains("its id is \"7\" instead of 1"), "{text}");
}
