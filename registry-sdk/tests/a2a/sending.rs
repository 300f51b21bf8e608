//! Messages to agents that do their tasks: what is sent, and what comes back.

use std::time::Duration;

use registry_sdk::TaskQuery;
use registry_sdk::a2a::{CardDetails, Interface, Message, TaskState};
use registry_sdk::discovery::{EndReason, FailureKind};
use serde_json::json;

use crate::fakes::{Answer, BINDINGS, Binding, Scene, interface, send, send_for};

#[tokio::test(start_paused = true)]
async fn message_is_sent_by_the_binding_of_the_card_and_the_answer_is_read() {
    for binding in BINDINGS {
        let mut scene = Scene::new().await;
        let agent = scene.agent("a", 0, binding).await;
        let delegation = scene.orchestrator();
        let done = send_for(delegation.delegate("work").idempotency_key("key-1")).await.unwrap();
        assert_eq!(
            (done.selection.agent.agent_id.as_str(), done.value.text().as_str()),
            ("a", "a"),
            "{binding:?}"
        );
        assert_eq!((done.value.task_id(), done.value.context_id()), (Some("t-1"), Some("c-1")));
        assert!(done.value.is_completed());

        let sent = &agent.calls("SendMessage")[0];
        let (parts, configuration) = match binding {
            Binding::OldJsonRpc => {
                (json!([{"kind": "text", "text": "Find a recipe with leeks"}]), json!({"blocking": false}))
            }
            _ => (json!([{"text": "Find a recipe with leeks"}]), json!({"returnImmediately": true})),
        };
        assert_eq!(sent.params()["message"]["parts"], parts);
        assert_eq!(sent.params()["message"]["messageId"], "key-1");
        assert_eq!(sent.params()["configuration"], configuration);
        let (version, media_type, path) = match binding {
            Binding::JsonRpc => ("1.0", "application/json", "/rpc"),
            Binding::HttpJson => ("1.0", "application/a2a+json", "/rest/message:send"),
            Binding::OldJsonRpc => ("0.3", "application/json", "/rpc"),
        };
        assert_eq!(
            (sent.header("a2a-version"), sent.header("content-type")),
            (Some(version), Some(media_type))
        );
        assert_eq!(sent.uri.path(), path);
        assert_eq!(
            (sent.header("idempotency-key"), sent.header("delegation-attempt")),
            (Some("\"key-1\""), Some("1"))
        );
        assert_eq!(sent.header("delegation-time-left-seconds").map(|left| &left[..2]), Some("60"));
    }
}

#[tokio::test(start_paused = true)]
async fn agent_may_answer_with_a_message_in_place_of_a_task() {
    for binding in BINDINGS {
        let mut scene = Scene::new().await;
        let agent = scene.agent("a", 0, binding).await;
        agent.answers(Answer::Message("At once"), Answer::Hang);
        let done = send_for(scene.orchestrator().delegate("work")).await.unwrap().value;
        assert_eq!((done.text().as_str(), done.task_id()), ("At once", None), "{binding:?}");
        assert_eq!(done.state(), &TaskState::Completed);
        assert_eq!(agent.count("GetTask"), 0);
    }
}
