//! Unsuccessful HTTP responses: an error of the protocol in the body decides, unless the credentials were refused or the agent is busy.

use std::time::Duration;

use registry_sdk::discovery::FailureKind::{self, Agent, Busy, Declined, Deployment, Task};

use crate::fakes::{Answer, BINDINGS, Binding, Scene, send};

/// Returns the kind of failure that an agent's answer to a message leads to.
async fn kind(binding: Binding, answer: Answer) -> FailureKind {
    let mut scene = Scene::new().await;
    let first = scene.agent("first", 0, binding).await;
    scene.agent("second", 1, binding).await;
    first.answers(answer, Answer::Hang);
    match send(scene.orchestrator().delegate("work")).await {
        Ok(done) => done.failed[0].kind,
        Err(error) => error.attempts[0].kind,
    }
}

#[tokio::test(start_paused = true)]
async fn json_rpc_error_is_read_whatever_the_status() {
    for binding in [Binding::JsonRpc, Binding::OldJsonRpc] {
        for (status, body, expected) in [
            (500, r#"{"jsonrpc": "2.0", "id": 1, "error": {"code": -32602, "message": "no"}}"#, Task),
            (400, r#"{"jsonrpc": "2.0", "id": 1, "error": {"code": -32603}}"#, Agent),
            (400, r#"{"jsonrpc": "2.0", "id": null, "error": {"code": -32004}}"#, Declined),
            (400, r#"{"jsonrpc": "2.0", "error": {"code": -32601}}"#, Deployment),
            // These are not JSON-RPC errors of this request, so the status decides.
            (404, r#"{"jsonrpc": "2.0", "id": 7, "error": {"code": -32602}}"#, Deployment),
            (404, r#"{"jsonrpc": "2.0", "id": 1, "error": {"code": "-32602"}}"#, Deployment),
            (404, r#"{"jsonrpc": "2.0", "id": 1, "result": {}}"#, Deployment),
            (404, r#"{"error": {"code": 404, "message": "a gateway's"}}"#, Deployment),
        ] {
            assert_eq!(kind(binding, Answer::Http(status, None, body)).await, expected, "{status} {body}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn status_decides_if_the_credentials_are_refused_or_the_agent_is_busy() {
    let rpc = r#"{"jsonrpc": "2.0", "id": 1, "error": {"code": -32600}}"#;
    let http = r#"{"error": {"details": [{"domain": "a2a-protocol.org", "reason": "INVALID_REQUEST"}]}}"#;
    let busy = |seconds| Busy { retry_after: Duration::from_secs(seconds) };
    for binding in BINDINGS {
        let body = if binding == Binding::HttpJson { http } else { rpc };
        for (status, retry_after, expected) in [
            (401, None, Deployment),
            (403, None, Deployment),
            (429, None, busy(0)),
            (429, Some(7), busy(7)),
            (409, Some(7), busy(7)),
            (503, Some(7), busy(7)),
            // Otherwise the error in the body decides.
            (503, None, Task),
            (500, Some(7), Task),
        ] {
            let answer = Answer::Http(status, retry_after, body);
            assert_eq!(kind(binding, answer).await, expected, "{binding:?} {status} {retry_after:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn http_json_error_may_be_problem_details() {
    for (problem, expected) in [
        (r#"{"type": "https://a2a-protocol.org/errors/version-not-supported", "status": 400}"#, Deployment),
        (r#"{"type": "https://a2a-protocol.org/errors/content-type-not-supported"}"#, Declined),
        (r#"{"type": "https://a2a-protocol.org/errors/something-new"}"#, Task),
        (r#"{"type": "about:blank"}"#, Task),
    ] {
        assert_eq!(kind(Binding::HttpJson, Answer::Http(400, None, problem)).await, expected, "{problem}");
    }
}

#[tokio::test(start_paused = true)]
async fn error_quotes_the_problem_details() {
    let mut scene = Scene::new().await;
    let agent = scene.agent("a", 0, Binding::HttpJson).await;
    let problem = r#"{"type": "https://a2a-protocol.org/errors/version-not-supported", "title": "Version not supported", "detail": "only 2.0"}"#;
    agent.answers(Answer::Http(400, None, problem), Answer::Hang);
    let error = send(scene.orchestrator().delegate("work")).await.unwrap_err();
    assert!(error.to_string().contains("a: A2A error -32009: only 2.0"), "{error}");
}
