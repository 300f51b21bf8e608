//! Errors of the caller's own requests in `run`, which `?` classifies.

use std::time::Duration;

use registry_sdk::discovery::{
    DelegateError, Delegation, EjectionSettings, EjectionState, EndReason, FailureKind, HttpTaskError,
    RetryBudget, TaskError,
};

use super::{counts, delegate};
use crate::scene::Scene;
use crate::support::{Reply, without_listener};

const IDS: [&str; 2] = ["first", "second"];

/// Sends a task with a custom client, to a different URL for one of the agents.
async fn run(delegation: Delegation<'_>, moved: &str, url: &str) -> Result<String, DelegateError> {
    let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build().unwrap();
    let done = delegation
        .run(|agent| {
            let base_url = if agent.agent_id == moved { url.to_owned() } else { agent.base_url };
            let request = http.post(format!("{base_url}/execute"));
            async move {
                let body = request.send().await?.error_for_status()?.bytes().await?;
                let value: serde_json::Value = serde_json::from_slice(&body)?;
                Ok(value["by"].as_str().unwrap_or("nobody").to_owned())
            }
        })
        .await?;
    Ok(done.value)
}

#[tokio::test(start_paused = true)]
async fn failed_connection_is_free_and_sends_nothing() {
    let scene = Scene::ranked(&IDS).await;
    let (_socket, url) = without_listener();
    let budget = RetryBudget::default().ratio(0.0).min_per_second(0);
    let orchestrator = scene.orchestrator_builder().retry_budget(budget).build();
    let delegation = orchestrator.delegate("work").at_most_once();
    assert_eq!(run(delegation, "first", &url).await.unwrap(), "second");
    let delegation = orchestrator.delegate("work").attempts(1);
    assert_eq!(run(delegation, "first", &url).await.unwrap(), "second", "it does not count for the attempts");
}

#[tokio::test(start_paused = true)]
async fn statuses_and_timeouts_draw_from_the_budget_and_broken_connections_do_not() {
    let scene = Scene::ranked(&IDS).await;
    let budget = RetryBudget::default().ratio(0.0).min_per_second(0);
    for (reply, is_free) in
        [(Reply::Answer(500, "", "no"), false), (Reply::Hang, false), (Reply::Close, true)]
    {
        scene.set("first", reply.clone());
        let orchestrator = scene.orchestrator_builder().retry_budget(budget).build();
        let outcome = run(orchestrator.delegate("work"), "", "").await;
        match outcome {
            Ok(by) => assert!(is_free && by == "second", "{reply:?}"),
            Err(error) => {
                assert!(!is_free, "{reply:?}");
                assert!(matches!(error.reason, EndReason::RetryBudgetExhausted), "{error}");
            }
        }
        // The SDK's own requests do the same.
        assert_eq!(delegate(&orchestrator).await.is_ok(), is_free, "{reply:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn response_that_cannot_be_read_or_decoded_is_not_charged() {
    for reply in [Reply::Answer(200, "", "<html>"), Reply::Truncated] {
        let scene = Scene::ranked(&IDS).await;
        scene.set("first", reply.clone());
        let settings = EjectionSettings::default().consecutive_failures(1);
        let orchestrator = scene.orchestrator_builder().ejection(settings).build();
        let error = run(orchestrator.delegate("work"), "", "").await.unwrap_err();
        assert!(matches!(error.reason, EndReason::UnusableResponse), "{reply:?}: {error}");
        assert_eq!(counts(&scene, IDS), [1, 0], "{reply:?}");
        assert_eq!(orchestrator.ejection("first"), EjectionState::Admitted, "{reply:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn custom_failures_are_treated_as_the_table_says() {
    let scene = Scene::ranked(&IDS).await;
    let budget = RetryBudget::default().ratio(0.0).min_per_second(0);
    for (kind, goes_on) in [
        (FailureKind::Agent, false),
        (FailureKind::Deployment, true),
        (FailureKind::Busy { retry_after: Duration::from_secs(9) }, true),
        (FailureKind::Task, false),
        (FailureKind::Response, false),
    ] {
        let orchestrator = scene.orchestrator_builder().retry_budget(budget).build();
        let outcome = orchestrator
            .delegate("work")
            .run(|agent| async move {
                if agent.agent_id == "first" { Err(TaskError::new(kind, "no")) } else { Ok(()) }
            })
            .await;
        assert_eq!(outcome.is_ok(), goes_on, "{kind:?}");
        let failed = outcome.map_or_else(|error| error.attempts, |done| done.failed);
        assert_eq!((failed.len(), failed[0].kind), (1, kind));
    }
}

#[test]
fn errors_quote_the_agent_on_one_line() {
    let status = |body: &str| HttpTaskError::Status {
        status: 500,
        retry_after: None,
        location: None,
        body: body.to_owned(),
    };
    assert_eq!(status("").to_string(), "status 500");
    assert_eq!(status("out of disk\n").to_string(), "status 500: out of disk");
    assert_eq!(status("out\n\tof\u{1b}[2J disk").to_string(), "status 500: out of [2J disk");
    let long = status(&"x".repeat(301)).to_string();
    assert_eq!(long, format!("status 500: {}…", "x".repeat(300)));
    assert_eq!(status(&"x".repeat(300)).to_string(), format!("status 500: {}", "x".repeat(300)));
    let redirect = HttpTaskError::Status {
        status: 302,
        retry_after: None,
        location: Some("http://sso/login".to_owned()),
        body: String::new(),
    };
    assert_eq!(redirect.to_string(), "status 302 to http://sso/login");
    let unusable = HttpTaskError::InvalidResponse {
        status: 200,
        detail: "it is odd".to_owned(),
        body: b"<html>".into(),
    };
    assert_eq!(unusable.to_string(), "status 200, but it is odd: <html>");
    assert_eq!(format!("{unusable:?}"), "HttpTaskError(\"status 200, but it is odd: <html>\")");
}
