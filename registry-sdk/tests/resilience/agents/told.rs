//! Errors that name the agents that were tried, their messages, and why others were skipped.

use std::time::Duration;

use registry_sdk::contract::{AgentStatus, Capability};
use registry_sdk::discovery::{Directory, TaskError, TaskQuery};

use super::{delegate, send, with_causes};
use crate::scene::Scene;
use crate::support::Reply;

const IDS: [&str; 3] = ["alpha", "beta", "gamma"];

#[tokio::test(start_paused = true)]
async fn offline_agent_that_could_do_it_is_named() {
    let scene = Scene::new(&["pod-7"]).await;
    scene.registry.client().update_status("pod-7", AgentStatus::Offline).await.unwrap();
    let orchestrator = scene.orchestrator();
    let selected = with_causes(&orchestrator.find_best_agent("work").await.unwrap_err());
    let delegated = delegate(&orchestrator).await.unwrap_err();
    let fallback = TaskQuery::new("missing").fallback("work");
    let fallen_back = with_causes(&orchestrator.select(&fallback).await.unwrap_err());
    for error in [selected, delegated, fallen_back] {
        assert!(error.contains("pod-7") && error.contains("offline"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn offline_agent_of_a_directory_is_named() {
    let scene = Scene::new(&["pod-7"]).await;
    let client = scene.registry.client();
    client.update_status("pod-7", AgentStatus::Offline).await.unwrap();
    let directory = Directory::follow(&client);
    directory.ready().await.unwrap();
    let orchestrator = scene.orchestrator_builder().directory(directory).build();
    let error = delegate(&orchestrator).await.unwrap_err();
    assert!(error.contains("pod-7") && error.contains("offline"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn error_names_and_quotes_each_agent_that_was_tried() {
    let scene = Scene::ranked(&IDS).await;
    let said = ["out of disk", "no such model", "queue full"];
    for (id, text) in IDS.iter().zip(said) {
        scene.set(id, Reply::Answer(500, "", text));
    }
    let error = delegate(&scene.orchestrator()).await.unwrap_err();
    assert!(IDS.iter().chain(&said).all(|part| error.contains(part)), "{error}");
    assert!(error.contains("500"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn failures_of_several_kinds_are_all_reported() {
    let scene = Scene::ranked(&IDS).await;
    scene.set("alpha", Reply::Answer(500, "", "out of disk"));
    scene.set("beta", Reply::Close);
    scene.set("gamma", Reply::Answer(404, "", "no such path"));
    let error = delegate(&scene.orchestrator()).await.unwrap_err();
    assert!(IDS.iter().all(|id| error.contains(id)), "{error}");
    assert!(error.contains("out of disk") && error.contains("no such path"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn error_quotes_earlier_agents_if_no_agent_is_left() {
    let scene = Scene::ranked(&["alpha"]).await;
    scene.set("alpha", Reply::Answer(500, "", "out of disk"));
    scene.register("pod-7", Capability::new("work")).await;
    scene.registry.client().update_status("pod-7", AgentStatus::Offline).await.unwrap();
    let error = delegate(&scene.orchestrator()).await.unwrap_err();
    for part in ["alpha", "out of disk", "pod-7", "offline"] {
        assert!(error.contains(part), "{part} is missing: {error}");
    }
}

#[tokio::test(start_paused = true)]
async fn error_quotes_earlier_agents_if_time_is_up() {
    let scene = Scene::ranked(&["alpha", "beta"]).await;
    scene.set("alpha", Reply::Answer(500, "", "out of disk"));
    scene.set("beta", Reply::Hang);
    let orchestrator = scene.orchestrator();
    let error = send(orchestrator.delegate("work").time_limit(Duration::from_secs(9))).await.unwrap_err();
    assert!(error.contains("alpha") && error.contains("out of disk") && error.contains("beta"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn agent_that_refuses_a_task_is_named_with_its_reason() {
    let scene = Scene::ranked(&["alpha", "beta"]).await;
    scene.set("alpha", Reply::Answer(422, "", "the field n is too small"));
    let error = delegate(&scene.orchestrator()).await.unwrap_err();
    for part in ["alpha", "422", "the field n is too small"] {
        assert!(error.contains(part), "{part} is missing: {error}");
    }
}

#[tokio::test(start_paused = true)]
async fn errors_of_a_custom_task_are_reported() {
    let scene = Scene::ranked(&["alpha", "beta"]).await;
    let orchestrator = scene.orchestrator();
    let failing = |_| async { Err::<(), _>(TaskError::transient(std::io::Error::other("out of disk"))) };
    let error = with_causes(&orchestrator.delegate("work").run(failing).await.unwrap_err());
    assert!(error.contains("out of disk"), "{error}");
    assert!(error.contains("alpha") && error.contains("beta"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn error_says_why_others_were_skipped() {
    let scene = Scene::new(&["beta", "gamma"]).await;
    scene.register("alpha", Capability::new("work").tag("rust")).await;
    scene.set("alpha", Reply::Answer(500, "", "out of disk"));
    let orchestrator = scene.orchestrator();
    let query = TaskQuery::new("work").tag("rust").exclude("gamma");
    let error = send(orchestrator.delegate(query)).await.unwrap_err();
    for part in ["alpha", "out of disk", "beta", "gamma"] {
        assert!(error.contains(part), "{part} is missing: {error}");
    }
}

/// Long errors of many agents do not make the line unreadable.
#[tokio::test(start_paused = true)]
async fn error_fits_a_log_line() {
    let scene = Scene::new(&[]).await;
    let page: &str = "<p>out of disk</p>".repeat(1_000).leak();
    for number in 0..20 {
        let id = format!("agent{number}");
        scene.register(&id, Capability::new("work")).await;
        scene.set(&id, Reply::Answer(500, "", page));
    }
    let orchestrator = scene.orchestrator();
    let error = send(orchestrator.delegate("work").attempts(20)).await.unwrap_err();
    assert!(error.contains("out of disk") && error.len() < 20 * 400, "{} bytes: {error}", error.len());
}

#[tokio::test(start_paused = true)]
async fn custom_task_may_use_the_question_mark_operator() {
    let scene = Scene::ranked(&["alpha", "beta"]).await;
    let orchestrator = scene.orchestrator();
    let task = |_| async {
        let read = std::fs::read_to_string("/no/such/file")?;
        Ok(read.len())
    };
    let error = with_causes(&orchestrator.delegate("work").run(task).await.unwrap_err());
    assert!(error.contains("No such file") && error.contains("alpha") && error.contains("beta"), "{error}");
}
