//! Messages to agents that do their tasks: the requests that the agents get, and the replies that the caller gets.

use std::time::Duration;

use registry_sdk::TaskQuery;
use registry_sdk::a2a::{CardDetails, Interface, Message, TaskState};
use registry_sdk::discovery::{EndReason, FailureKind};
use serde_json::json;

use crate::fakes::{Answer, BINDINGS, Binding, Scene, interface, reply_text, send};

#[tokio::test(start_paused = true)]
async fn message_is_sent_over_the_binding_in_the_card_and_the_reply_is_returned() {
    for binding in BINDINGS {
        let mut scene = Scene::new().await;
        let agent = scene.agent("a", 0, binding).await;
        let orchestrator = scene.orchestrator();
        let done = send(orchestrator.delegate("work").idempotency_key("key-1")).await.unwrap();
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
                let configuration = json!({"blocking": false, "acceptedOutputModes": []});
                (json!([{"kind": "text", "text": "Find a recipe with leeks"}]), configuration)
            }
            _ => (json!([{"text": "Find a recipe with leeks"}]), json!({"returnImmediately": true})),
        };
        assert_eq!(sent.params()["message"]["parts"], parts);
        assert_eq!(sent.params()["message"]["messageId"], "key-1");
        assert_eq!(sent.params()["configuration"], configuration);
        let (version, path) = match binding {
            Binding::JsonRpc => ("1.0", "/rpc"),
            Binding::HttpJson => ("1.0", "/rest/message:send"),
            Binding::OldJsonRpc => ("0.3", "/rpc"),
        };
        assert_eq!(
            (sent.header("a2a-version"), sent.header("content-type")),
            (Some(version), Some("application/json"))
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
async fn agent_may_reply_with_a_message_instead_of_a_task() {
    for binding in BINDINGS {
        let mut scene = Scene::new().await;
        let agent = scene.agent("a", 0, binding).await;
        agent.answers(Answer::Message("At once"), Answer::Hang);
        let done = send(scene.orchestrator().delegate("work")).await.unwrap().value;
        assert_eq!((done.text().as_str(), done.task_id()), ("At once", None), "{binding:?}");
        assert_eq!(done.state(), &TaskState::Completed);
        assert_eq!(agent.count("GetTask"), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn data_and_urls_are_parts_of_a_message() {
    let message = || {
        Message::text("Cook")
            .data(json!({"servings": 2}))
            .url("https://a.example/leek.png", "image/png")
            .metadata("m", 1)
    };
    for binding in BINDINGS {
        let mut scene = Scene::new().await;
        let agent = scene.agent("a", 0, binding).await;
        let answer = json!({"id": "t-1", "status": {"state": "TASK_STATE_COMPLETED"}, "kind": "task", "artifacts": [
            {"parts": [{"text": "one"}, {"data": {"n": 1}}]}, {"parts": [{"text": "two"}, {"raw": "AA=="}]},
        ]});
        let result = if binding == Binding::OldJsonRpc { answer.clone() } else { json!({"task": answer}) };
        agent.script(move |_, _| Answer::Result(result.clone()));
        let orchestrator = scene.orchestrator();
        let reply = orchestrator.delegate("work").send_message(message()).await.unwrap().value;
        let parts = match binding {
            Binding::OldJsonRpc => json!([
                {"kind": "text", "text": "Cook"}, {"kind": "data", "data": {"servings": 2}},
                {"kind": "file", "file": {"uri": "https://a.example/leek.png", "mimeType": "image/png"}},
            ]),
            _ => json!([
                {"text": "Cook"}, {"data": {"servings": 2}, "mediaType": "application/json"},
                {"url": "https://a.example/leek.png", "mediaType": "image/png"},
            ]),
        };
        let sent = agent.calls("SendMessage")[0].params()["message"].clone();
        assert_eq!((&sent["parts"], &sent["metadata"]), (&parts, &json!({"m": 1})), "{binding:?}");
        assert_eq!(
            (reply.text().as_str(), reply.data(), reply.parts().len()),
            ("one\ntwo", vec![&json!({"n": 1})], 4)
        );
        assert_eq!(reply.json(), &answer);
    }
}

#[tokio::test(start_paused = true)]
async fn message_that_cannot_be_sent_is_an_error() {
    let mut scene = Scene::new().await;
    let agent = scene.agent("a", 0, Binding::OldJsonRpc).await;
    let orchestrator = scene.orchestrator();
    let error = orchestrator.delegate("work").send_message(Message::default()).await.unwrap_err();
    assert_eq!(error.to_string(), "the task cannot be sent: a message needs at least one part");
    // In version 0.3, data has to be an object.
    let error = orchestrator.delegate("work").send_message(Message::default().data(1)).await.unwrap_err();
    assert!(error.to_string().contains("a: it speaks version 0.3 of A2A"), "{error}");
    assert_eq!(error.attempts[0].kind, FailureKind::Declined);
    assert_eq!(agent.count("SendMessage"), 0);
}

#[tokio::test(start_paused = true)]
async fn tenant_of_the_interface_is_sent_with_each_request() {
    for binding in BINDINGS {
        let mut scene = Scene::new().await;
        let agent = scene.unregistered(binding).await;
        agent.answers(Answer::Task("working", ""), Answer::Task("completed", "done"));
        let (url, version) = match binding {
            Binding::HttpJson => (format!("{}/rest", agent.url), "1.0"),
            Binding::JsonRpc => (format!("{}/rpc", agent.url), "1.0"),
            Binding::OldJsonRpc => (format!("{}/rpc", agent.url), "0.3"),
        };
        let name = if binding == Binding::HttpJson { "HTTP+JSON" } else { "JSONRPC" };
        let declared = json!([{"url": url, "protocolBinding": name, "protocolVersion": version, "tenant": "kitchen 1/2"}]);
        let details = CardDetails::new("Works", "1.0.0", Interface::json_rpc(&*agent.url));
        scene.register("a", 0, &agent, Some(details.field("supportedInterfaces", declared))).await;
        assert_eq!(
            reply_text(scene.orchestrator().delegate("work")).await.as_deref(),
            Ok("done"),
            "{binding:?}"
        );
        for operation in ["SendMessage", "GetTask"] {
            let call = &agent.calls(operation)[0];
            if binding == Binding::HttpJson {
                assert!(call.uri.path().starts_with("/rest/kitchen%201%2F2/"), "{}", call.uri);
            } else {
                assert_eq!(call.params()["tenant"], "kitchen 1/2");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn credentials_are_sent_only_to_the_agent_that_they_are_meant_for() {
    let mut scene = Scene::new().await;
    let agent = scene.agent("a", 0, Binding::JsonRpc).await;
    agent.answers(Answer::Task("working", ""), Answer::Task("completed", "done"));
    let elsewhere = scene.unregistered(Binding::JsonRpc).await;
    elsewhere.answers(Answer::Task("completed", "elsewhere"), Answer::Hang);
    let client = registry_sdk::RegistryClient::builder(scene.registry.url()).token("secret").build().unwrap();
    let own = format!("{}/", agent.url);
    let known = own.clone();
    let builder = || registry_sdk::Orchestrator::builder(client.clone());
    let orchestrator = builder()
        .token_provider(move |agent| agent.base_url.starts_with(&known).then(|| "own".to_owned()))
        .build();
    assert_eq!(reply_text(orchestrator.delegate("work").header("x-mine", "1")).await.as_deref(), Ok("done"));
    for operation in ["SendMessage", "GetTask"] {
        let call = &agent.calls(operation)[0];
        assert_eq!((call.header("authorization"), call.header("x-mine")), (Some("Bearer own"), Some("1")));
    }
    // The card now has the URL of another agent, for which the provider has no token.
    let details = CardDetails::new("Works", "1.0.0", interface(&elsewhere, Binding::JsonRpc));
    scene.register("a", 0, &agent, Some(details)).await;
    assert_eq!(reply_text(orchestrator.delegate("work")).await.as_deref(), Ok("elsewhere"));
    assert_eq!(elsewhere.calls("SendMessage")[0].header("authorization"), None);
    // Without a provider, the token for the registry is not sent either.
    assert_eq!(reply_text(builder().build().delegate("work")).await.as_deref(), Ok("elsewhere"));
    assert_eq!(elsewhere.calls("SendMessage")[1].header("authorization"), None);
}

#[tokio::test(start_paused = true)]
async fn task_that_waits_for_the_caller_is_returned() {
    for binding in BINDINGS {
        for (state, expected) in
            [("input-required", TaskState::InputRequired), ("auth-required", TaskState::AuthRequired)]
        {
            let mut scene = Scene::new().await;
            let agent = scene.agent("a", 0, binding).await;
            let other = scene.agent("b", 1, binding).await;
            agent.answers(Answer::Task("working", ""), Answer::Task(state, "For how many?"));
            let reply = send(scene.orchestrator().delegate("work")).await.unwrap().value;
            assert_eq!((reply.state(), reply.text().as_str()), (&expected, "For how many?"), "{binding:?}");
            assert_eq!((reply.is_completed(), reply.task_id()), (false, Some("t-1")));
            assert_eq!((agent.count("CancelTask"), other.count("SendMessage")), (0, 0));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn redirect_to_another_origin_is_not_followed() {
    let mut scene = Scene::new().await;
    let agent = scene.agent("a", 0, Binding::JsonRpc).await;
    let elsewhere = scene.agent("b", 1, Binding::JsonRpc).await;
    let location: &'static str = format!("{}/rpc", elsewhere.url).leak();
    agent.answers(Answer::Http(307, None, location), Answer::Hang);
    let error = send(scene.orchestrator().delegate(TaskQuery::new("work").exclude("b"))).await.unwrap_err();
    assert!(matches!(error.reason, EndReason::Misdeployed), "{error}");
    assert_eq!(elsewhere.count("SendMessage"), 0);
}

#[tokio::test(start_paused = true)]
async fn agent_may_respond_only_once_the_task_is_done() {
    let mut scene = Scene::new().await;
    let agent = scene.agent("a", 0, Binding::HttpJson).await;
    // This agent ignores the request to respond earlier.
    let late = Answer::Late(Duration::from_secs(50), Box::new(Answer::Task("completed", "at last")));
    agent.answers(late, Answer::Hang);
    let orchestrator = scene.orchestrator();
    // A delegation can be spawned, too, since its future is `Send`.
    let sent = tokio::spawn(async move { reply_text(orchestrator.delegate("work")).await });
    assert_eq!(sent.await.unwrap().as_deref(), Ok("at last"));
}

/// A provider may look up the token by the `base_url` exactly as it was registered.
#[tokio::test(start_paused = true)]
async fn token_provider_gets_the_registered_url_if_that_of_the_card_differs_only_in_spelling() {
    let mut scene = Scene::new().await;
    let agent = scene.unregistered(Binding::JsonRpc).await;
    agent.answers(Answer::Task("completed", "done"), Answer::Hang);
    let details = CardDetails::new("Works", "1.0.0", Interface::json_rpc(format!("{}/", agent.url)));
    scene.register("a", 0, &agent, Some(details)).await;
    let registered = agent.url.clone();
    let orchestrator = registry_sdk::Orchestrator::builder(scene.registry.client())
        .token_provider(move |agent| (agent.base_url == registered).then(|| "own".to_owned()))
        .build();
    assert_eq!(reply_text(orchestrator.delegate("work")).await.as_deref(), Ok("done"));
    assert_eq!(agent.calls("SendMessage")[0].header("authorization"), Some("Bearer own"));
}
