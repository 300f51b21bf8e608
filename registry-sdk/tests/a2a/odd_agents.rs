//! Agents that deviate from the protocol or its schema in ways that do not matter.

use std::time::Duration;

use registry_sdk::a2a::{CardDetails, Interface};
use registry_sdk::discovery::{EjectionState, FailureKind};
use registry_sdk::{Capability, Registration};
use serde_json::{Value, json};

use crate::fakes::{Answer, BINDINGS, Binding, Scene, reply_text, send};

/// Returns the text of the reply if an agent answers a message with this body.
async fn reply_to(binding: Binding, body: &'static str) -> Result<String, String> {
    let mut scene = Scene::new().await;
    let agent = scene.agent("a", 0, binding).await;
    agent.answers(Answer::Http(200, None, body), Answer::Hang);
    reply_text(scene.orchestrator().delegate("work")).await
}

/// The .NET SDK of version 0.3 requires this field.
#[tokio::test(start_paused = true)]
async fn agent_of_version_0_3_may_require_the_accepted_output_modes() {
    let mut scene = Scene::new().await;
    let agent = scene.agent("a", 0, Binding::OldJsonRpc).await;
    agent.script(|call, _| match &call.params()["configuration"]["acceptedOutputModes"] {
        Value::Array(_) => Answer::Task("completed", "done"),
        _ => Answer::Error(-32_602, "INVALID_PARAMS", 400),
    });
    assert_eq!(reply_text(scene.orchestrator().delegate("work")).await.as_deref(), Ok("done"));
}

/// JavaScript writes half of a character like that if it cuts a text there.
#[tokio::test(start_paused = true)]
async fn half_of_a_character_in_a_reply_is_replaced() {
    for (binding, body) in [
        (
            Binding::JsonRpc,
            r#"{"jsonrpc": "2.0", "id": 1, "result": {"message": {"parts": [{"text": "cut \ud83d"}]}}}"#,
        ),
        (Binding::HttpJson, r#"{"message": {"parts": [{"text": "cut \uD83D"}]}}"#),
        (
            Binding::OldJsonRpc,
            r#"{"jsonrpc": "2.0", "id": 1, "result": {"kind": "message", "parts": [{"kind": "text", "text": "cut \ude00"}]}}"#,
        ),
    ] {
        assert_eq!(reply_to(binding, body).await.as_deref(), Ok("cut \u{fffd}"), "{binding:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn half_of_a_character_in_the_response_to_a_poll_is_replaced() {
    let mut scene = Scene::new().await;
    let agent = scene.agent("a", 0, Binding::HttpJson).await;
    let done = r#"{"id": "t-1", "status": {"state": "TASK_STATE_COMPLETED"}, "artifacts": [{"parts": [{"text": "cut \ud83d"}]}]}"#;
    agent.answers(Answer::Task("working", ""), Answer::Http(200, None, done));
    assert_eq!(reply_text(scene.orchestrator().delegate("work")).await.as_deref(), Ok("cut \u{fffd}"));
}

#[tokio::test(start_paused = true)]
async fn byte_order_mark_before_a_response_is_ignored() {
    for (binding, body) in [
        (
            Binding::JsonRpc,
            "\u{feff}{\"jsonrpc\": \"2.0\", \"id\": 1, \"result\": {\"message\": {\"parts\": [{\"text\": \"done\"}]}}}",
        ),
        (Binding::HttpJson, "\u{feff}{\"message\": {\"parts\": [{\"text\": \"done\"}]}}"),
    ] {
        assert_eq!(reply_to(binding, body).await.as_deref(), Ok("done"), "{binding:?}");
    }
}

/// Servers whose language has no whole numbers write 1.0 in place of 1.
#[tokio::test(start_paused = true)]
async fn id_may_be_a_float() {
    let body = r#"{"jsonrpc": "2.0", "id": 1.0, "result": {"message": {"parts": [{"text": "done"}]}}}"#;
    assert_eq!(reply_to(Binding::JsonRpc, body).await.as_deref(), Ok("done"));
}

#[tokio::test(start_paused = true)]
async fn error_with_odd_fields_is_an_error_of_the_protocol() {
    for binding in [Binding::JsonRpc, Binding::OldJsonRpc] {
        for (error, kind) in [
            (
                r#"{"jsonrpc": "2.0", "id": 1, "error": {"code": -32603, "message": null}}"#,
                FailureKind::Agent,
            ),
            (r#"{"jsonrpc": "2.0", "id": 1, "error": {"code": -32603, "message": {}}}"#, FailureKind::Agent),
            (
                r#"{"jsonrpc": "2.0", "id": 1, "error": {"code": -32004.0, "message": ""}}"#,
                FailureKind::Declined,
            ),
            (r#"{"jsonrpc": "2.0", "id": 1, "error": {"code": -3.2004e4}}"#, FailureKind::Declined),
        ] {
            let mut scene = Scene::new().await;
            let first = scene.agent("first", 0, binding).await;
            scene.agent("second", 1, binding).await;
            first.answers(Answer::Http(200, None, error), Answer::Hang);
            let done = send(scene.orchestrator().delegate("work")).await.unwrap();
            assert_eq!((done.value.text().as_str(), done.failed[0].kind), ("second", kind), "{error}");
        }
    }
}

/// An agent has its own limit, so a message that is too large for one may suit the next.
#[tokio::test(start_paused = true)]
async fn message_that_is_too_large_for_an_agent_goes_to_the_next() {
    for binding in BINDINGS {
        for answer in [Answer::Http(413, None, "too large"), Answer::Error(-32_600, "INVALID_REQUEST", 400)] {
            let mut scene = Scene::new().await;
            let first = scene.agent("first", 0, binding).await;
            scene.agent("second", 1, binding).await;
            first.answers(answer.clone(), Answer::Hang);
            let orchestrator = scene.orchestrator();
            let reply = reply_text(orchestrator.delegate("work")).await;
            assert_eq!(reply.as_deref(), Ok("second"), "{binding:?} {answer:?}");
            assert_eq!(orchestrator.ejection("first"), EjectionState::Admitted);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn agent_is_called_whatever_else_its_card_has() {
    let mut scene = Scene::new().await;
    let agent = scene.unregistered(Binding::JsonRpc).await;
    agent.answers(Answer::Task("completed", "done"), Answer::Hang);
    let interface = json!({"url": agent.url, "protocolBinding": "JSONRPC", "protocolVersion": 1.0});
    for (name, value) in [
        ("skills", json!([{"id": "work", "tags": [null]}, 7])),
        ("url", json!(["http://a.example"])),
        ("protocolVersion", json!(0.3)),
        ("supportedInterfaces", json!([null, {"url": 7}, "http://a.example", interface])),
    ] {
        let details = CardDetails::new("Works", "1.0.0", Interface::json_rpc(&*agent.url));
        scene.register("a", 0, &agent, Some(details.field(name, value))).await;
        let reply = reply_text(scene.orchestrator().delegate("work")).await;
        assert_eq!(reply.as_deref(), Ok("done"), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn agent_whose_card_has_half_of_a_character_is_called() {
    let mut scene = Scene::new().await;
    let agent = scene.unregistered(Binding::OldJsonRpc).await;
    agent.answers(Answer::Task("completed", "done"), Answer::Hang);
    let card = format!(
        r#"{{"name": "a", "description": "cut \ud83d", "protocolVersion": 0.3, "url": "{}"}}"#,
        agent.url
    );
    let registration = Registration::new("a", "a", &*agent.url)
        .capability(Capability::new("work"))
        .heartbeat_interval(Duration::from_secs(86_400))
        .card(card.parse().unwrap());
    scene.registry.client().register(&registration).await.unwrap();
    let orchestrator = scene.orchestrator();
    assert_eq!(reply_text(orchestrator.delegate("work")).await.as_deref(), Ok("done"));
    assert_eq!(scene.registry.client().get_card("a").await.unwrap().as_str(), card);
}
