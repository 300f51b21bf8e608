//! Agents that fail, reject a task or cannot be called: another agent gets the task, and some of them are ejected.

use std::time::Duration;

use registry_sdk::a2a::{A2aError, CardDetails, Interface, TaskState};
use registry_sdk::discovery::{EjectionState, EndReason, FailureKind, HttpTaskError, RetryBudget};
use tokio::time::{Instant, sleep};

use crate::fakes::{Answer, BINDINGS, Binding, Scene, reply_text, send};

/// Number of delegations by the end of which an agent has been ejected, if its failures count against it.
const DELEGATIONS: usize = 10;

#[tokio::test(start_paused = true)]
async fn task_goes_to_the_next_agent_and_only_failing_agents_are_ejected() {
    let answers = [
        (Answer::Task("failed", "no leeks"), FailureKind::Agent, true),
        (Answer::Task("rejected", "not today"), FailureKind::Declined, false),
        (Answer::Task("canceled", "by the cook"), FailureKind::Declined, false),
        (Answer::Error(-32_603, "INTERNAL_ERROR", 500), FailureKind::Agent, true),
        (Answer::Error(-32_006, "INVALID_AGENT_RESPONSE", 500), FailureKind::Agent, true),
        (Answer::Error(-32_001, "TASK_NOT_FOUND", 404), FailureKind::Agent, true),
        (Answer::Error(-32_004, "UNSUPPORTED_OPERATION", 400), FailureKind::Declined, false),
        (Answer::Error(-32_005, "CONTENT_TYPE_NOT_SUPPORTED", 400), FailureKind::Declined, false),
        (Answer::Error(-32_008, "EXTENSION_SUPPORT_REQUIRED", 400), FailureKind::Declined, false),
        (Answer::Error(-32_009, "VERSION_NOT_SUPPORTED", 400), FailureKind::Deployment, true),
        (Answer::Error(-32_601, "METHOD_NOT_FOUND", 404), FailureKind::Deployment, true),
        (Answer::Error(-32_602, "INVALID_PARAMS", 400), FailureKind::Deployment, true),
        (Answer::Error(-32_600, "INVALID_REQUEST", 400), FailureKind::Deployment, true),
        (Answer::Error(-32_700, "PARSE_ERROR", 400), FailureKind::Deployment, true),
        (Answer::Error(-32_700, "JSON_PARSE", 400), FailureKind::Deployment, true),
        (Answer::Http(413, None, "too large"), FailureKind::Declined, false),
        (Answer::Http(415, None, "no JSON, please"), FailureKind::Declined, false),
        (Answer::Http(503, None, "out of order"), FailureKind::Agent, true),
        (Answer::Http(404, None, "no such page"), FailureKind::Deployment, true),
        (Answer::Http(401, None, "who are you?"), FailureKind::Deployment, true),
    ];
    for binding in BINDINGS {
        for (answer, kind, is_ejected) in &answers {
            let mut scene = Scene::new().await;
            let first = scene.agent("first", 0, binding).await;
            scene.agent("second", 1, binding).await;
            first.answers(answer.clone(), Answer::Hang);
            let orchestrator = scene.orchestrator();
            for _ in 0..DELEGATIONS {
                let done = send(orchestrator.delegate("work")).await.unwrap();
                assert_eq!(done.value.text(), "second", "{binding:?} {answer:?}");
                assert!(done.failed.iter().all(|failed| failed.kind == *kind), "{:?}", done.failed);
                sleep(Duration::from_secs(1)).await;
            }
            let ejection = orchestrator.ejection("first");
            assert_eq!(ejection != EjectionState::Admitted, *is_ejected, "{binding:?} {answer:?}");
            let received = first.count("SendMessage");
            assert_eq!(received < DELEGATIONS, *is_ejected, "{binding:?} {answer:?}: {received}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn error_quotes_the_message_of_the_agent() {
    let mut scene = Scene::new().await;
    let agent = scene.agent("a", 0, Binding::JsonRpc).await;
    let orchestrator = scene.orchestrator();
    agent.answers(Answer::Task("working", ""), Answer::Task("failed", "no leeks"));
    let error = send(orchestrator.delegate("work")).await.unwrap_err();
    assert!(error.to_string().contains("a: the task is failed: no leeks"), "{error}");
    let cause = error.attempts[0].error.downcast_ref::<HttpTaskError>();
    let expected = A2aError::Ended { state: TaskState::Failed, message: "no leeks".to_owned() };
    assert!(matches!(cause, Some(HttpTaskError::A2a(error)) if *error == expected), "{cause:?}");
    agent.answers(Answer::Error(-32_603, "INTERNAL_ERROR", 500), Answer::Hang);
    let error = send(orchestrator.delegate("work")).await.unwrap_err();
    assert!(error.to_string().contains("a: A2A error -32603: the agent's reason"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn message_that_all_agents_refuse_counts_against_none_of_them() {
    for binding in BINDINGS {
        let mut scene = Scene::new().await;
        let refused = Answer::Error(-32_602, "INVALID_PARAMS", 400);
        let ids = ["first", "second"];
        for (rank, id) in ids.into_iter().enumerate() {
            scene.agent(id, rank, binding).await.answers(refused.clone(), Answer::Hang);
        }
        let orchestrator = scene.orchestrator();
        for _ in 0..DELEGATIONS {
            let error = send(orchestrator.delegate("work")).await.unwrap_err();
            assert!(matches!(error.reason, EndReason::Misdeployed), "{binding:?}: {error}");
            assert_eq!(error.attempts.iter().map(|attempt| &*attempt.agent_id).collect::<Vec<_>>(), ids);
            sleep(Duration::from_secs(1)).await;
        }
        for id in ids {
            assert_eq!(orchestrator.ejection(id), EjectionState::Admitted, "{binding:?} {id}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn busy_agent_gets_the_message_again_after_the_time_that_it_asked_for() {
    for binding in BINDINGS {
        let mut scene = Scene::new().await;
        let agent = scene.agent("a", 0, binding).await;
        agent.script(|_, index| match index {
            0 => Answer::Http(429, Some(7), ""),
            _ => Answer::Task("completed", "done"),
        });
        let began = Instant::now();
        assert_eq!(
            reply_text(scene.orchestrator().delegate("work")).await.as_deref(),
            Ok("done"),
            "{binding:?}"
        );
        assert_eq!(agent.count("SendMessage"), 2);
        assert!(began.elapsed() >= Duration::from_secs(7), "{:?}", began.elapsed());
    }
}

/// One agent has no card. The cards of the others have only gRPC, only a later version, or a URL that is not HTTP.
#[tokio::test(start_paused = true)]
async fn task_goes_to_the_next_agent_if_one_cannot_be_called() {
    let mut scene = Scene::new().await;
    let silent = scene.unregistered(Binding::JsonRpc).await;
    let details = |interface| CardDetails::new("Works", "1.0.0", interface);
    let grpc = details(Interface::new("GRPC", "http://127.0.0.1:1"));
    let newer = details(Interface::json_rpc(&*silent.url).protocol_version("2.0"));
    scene.register("bare", 0, &silent, None).await;
    scene.register("grpc", 0, &silent, Some(grpc)).await;
    scene.register("newer", 0, &silent, Some(newer)).await;
    scene.register("ftp", 0, &silent, Some(details(Interface::json_rpc("ftp://a.example")))).await;
    let orchestrator = scene.orchestrator();
    for _ in 0..DELEGATIONS {
        let error = send(orchestrator.delegate("work")).await.unwrap_err();
        assert!(matches!(error.reason, EndReason::NoAgent { .. }), "{error}");
        let text = error.to_string();
        for part in [
            "bare: it registered no A2A agent card",
            "grpc: its A2A agent card has no interface that this SDK supports, only GRPC of version 1.0",
            "newer: its A2A agent card has no interface that this SDK supports, only JSONRPC of version 2.0",
            "ftp: its A2A agent card has no interface",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }
    assert_eq!(silent.count("SendMessage"), 0);
    let agent = scene.agent("good", 1, Binding::JsonRpc).await;
    // The others do not count as attempts, since nothing was sent to them.
    let sent = orchestrator.delegate("work").attempts(1).at_most_once();
    assert_eq!(reply_text(sent).await.as_deref(), Ok("good"));
    assert_eq!(agent.count("SendMessage"), 1);
    for id in ["bare", "grpc", "newer", "ftp"] {
        assert_eq!(orchestrator.ejection(id), EjectionState::Admitted, "{id}");
    }
}

#[tokio::test(start_paused = true)]
async fn rejections_use_up_the_attempts_and_the_retry_budget() {
    let mut scene = Scene::new().await;
    let agents = scene.three_agents(Answer::Task("rejected", "not today"), Answer::Hang).await;
    let orchestrator = scene.orchestrator();
    let error = send(orchestrator.delegate("work").attempts(2)).await.unwrap_err();
    assert!(matches!(error.reason, EndReason::AttemptsExhausted), "{error}");
    let error = send(orchestrator.delegate("work").at_most_once()).await.unwrap_err();
    assert!(matches!(error.reason, EndReason::MayHaveArrived), "{error}");
    let budget = RetryBudget::default().ratio(0.0).min_per_second(0);
    let frugal = registry_sdk::Orchestrator::builder(scene.registry.client()).retry_budget(budget).build();
    let error = send(frugal.delegate("work")).await.unwrap_err();
    assert!(matches!(error.reason, EndReason::RetryBudgetExhausted), "{error}");
    assert_eq!([3, 1, 0], agents.map(|agent| agent.count("SendMessage")));
}

#[tokio::test(start_paused = true)]
async fn classifier_decides_about_a2a_errors_too() {
    let mut scene = Scene::new().await;
    let first = scene.agent("first", 0, Binding::HttpJson).await;
    let second = scene.agent("second", 1, Binding::HttpJson).await;
    first.answers(Answer::Task("rejected", "never"), Answer::Hang);
    let builder = registry_sdk::Orchestrator::builder(scene.registry.client());
    let orchestrator = builder.classifier(|error| match error {
        HttpTaskError::A2a(A2aError::Ended { state: TaskState::Rejected, .. }) => FailureKind::Task,
        error => error.kind(),
    });
    let error = send(orchestrator.build().delegate("work")).await.unwrap_err();
    assert!(matches!(error.reason, EndReason::Rejected), "{error}");
    assert_eq!(second.count("SendMessage"), 0);
}
