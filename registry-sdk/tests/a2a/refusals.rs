//! Unsuccessful HTTP responses: an error of the protocol in the body decides, unless the credentials were refused, the agent is busy, or the
//! message does not suit it.

use std::time::Duration;

use registry_sdk::a2a::A2aError;
use registry_sdk::discovery::FailureKind::{self, Agent, Busy, Declined, Deployment, Task};
use registry_sdk::discovery::HttpTaskError;
use serde_json::json;

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
            (500, r#"{"jsonrpc": "2.0", "id": 1, "error": {"code": -32602, "message": "no"}}"#, Deployment),
            (500, r#"{"jsonrpc": "2.0", "id": 1.0, "error": {"code": -32004.0, "message": null}}"#, Declined),
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
async fn status_decides_about_credentials_busy_agents_and_unsuitable_messages() {
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
            (503, None, Deployment),
            (500, Some(7), Deployment),
            // The size or the type of the message does not suit the agent.
            (413, None, Declined),
            (415, Some(7), Declined),
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

/// The agents of some SDKs do not say more about a request that they cannot read.
#[tokio::test(start_paused = true)]
async fn http_json_error_may_have_no_details() {
    for (error, expected) in [
        (
            r#"{"error": {"code": 400, "status": "INVALID_ARGUMENT", "message": "no", "details": []}}"#,
            Deployment,
        ),
        (r#"{"error": {"code": 400, "status": "INVALID_ARGUMENT", "message": null}}"#, Deployment),
        (r#"{"error": {"code": 400, "status": "FAILED_PRECONDITION", "details": []}}"#, Task),
        (
            r#"{"error": {"details": [{"domain": "a2a-protocol.org", "reason": "NEW"}], "status": "INVALID_ARGUMENT"}}"#,
            Task,
        ),
    ] {
        assert_eq!(kind(Binding::HttpJson, Answer::Http(400, None, error)).await, expected, "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn long_error_is_understood_and_the_beginning_of_its_message_is_kept() {
    for binding in BINDINGS {
        let mut scene = Scene::new().await;
        let agent = scene.agent("a", 0, binding).await;
        let message = "x".repeat(60_000);
        let body = match binding {
            Binding::HttpJson => json!({"error": {"message": message,
                "details": [{"domain": "a2a-protocol.org", "reason": "UNSUPPORTED_OPERATION"}]}}),
            _ => json!({"jsonrpc": "2.0", "id": 1, "error": {"message": message, "code": -32004}}),
        };
        agent.answers(Answer::Http(400, None, body.to_string().leak()), Answer::Hang);
        let error = send(scene.orchestrator().delegate("work")).await.unwrap_err();
        assert_eq!(error.attempts[0].kind, Declined, "{binding:?}");
        let cause = error.attempts[0].error.downcast_ref();
        let Some(HttpTaskError::A2a(A2aError::Refused { code, message })) = cause else { panic!("{error}") };
        assert_eq!((*code, message.len()), (-32_004, 4_096), "{binding:?}");
        // A body without an error of the protocol is no longer than that either.
        agent.answers(Answer::Http(400, None, "x".repeat(60_000).leak()), Answer::Hang);
        let error = send(scene.orchestrator().delegate("work")).await.unwrap_err();
        let cause = error.attempts[0].error.downcast_ref();
        let Some(HttpTaskError::Status { body, .. }) = cause else { panic!("{error}") };
        assert_eq!(body.len(), 4_096, "{binding:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn refusal_of_the_message_is_quoted() {
    let mut scene = Scene::new().await;
    let agent = scene.agent("a", 0, Binding::JsonRpc).await;
    agent.answers(Answer::Http(413, None, "at most 100 kB"), Answer::Hang);
    let error = send(scene.orchestrator().delegate("work")).await.unwrap_err();
    assert!(error.to_string().contains("a: status 413: at most 100 kB"), "{error}");
    let cause = error.attempts[0].error.downcast_ref();
    assert!(
        matches!(cause, Some(HttpTaskError::A2a(A2aError::NotAccepted { status: 413, .. }))),
        "{cause:?}"
    );
}
