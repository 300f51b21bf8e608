//! A single bad agent, or bad caller, that misleads the table of outcomes.

use std::time::Duration;

use registry_sdk::RegistryClient;
use registry_sdk::discovery::{DelegateError, Orchestrator, TaskError, TaskQuery};
use serde_json::{Value, json};

use super::{counts, send, with_causes};
use crate::scene::Scene;
use crate::support::{Reply, Server};

/// A registry whose best match has this base URL, and whose second one is healthy.
async fn registry_with(base_url: &str) -> (Server, Server) {
    let agents = Server::start(|_, _| Reply::Answer(200, "", "{}")).await;
    let found = json!([
        {"agent_id": "odd", "status": "active", "capability": "work", "base_url": base_url, "score": 2.0, "healthy": true},
        {"agent_id": "well", "status": "active", "capability": "work", "base_url": agents.url(), "score": 1.0, "healthy": true},
    ]);
    let found: &'static str = found.to_string().leak();
    (Server::start(move |_, _| Reply::Answer(200, "", found)).await, agents)
}

/// An agent registered without a scheme, at a registry that accepts that. It is the agent's fault, not the task's.
#[tokio::test(start_paused = true)]
async fn agent_with_an_invalid_base_url_loses_no_task() {
    let mut wrong = Vec::new();
    for base_url in
        ["", "/", "agent-7:8000", "localhost:8000", "grpc://agent-7:50051", "http://", "unix:/run/a.sock"]
    {
        let (registry, _agents) = registry_with(base_url).await;
        let orchestrator = Orchestrator::new(RegistryClient::new(registry.url()).unwrap());
        let outcome = send(orchestrator.delegate("work")).await;
        if outcome.as_deref().ok() != Some("well") {
            wrong.push(format!("{base_url:?}: {outcome:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// No other agent may be tried, so the tasks are lost until the agent is ejected.
#[tokio::test(start_paused = true)]
async fn misdeployed_agent_loses_few_at_most_once_tasks() {
    for status in [401, 403, 404, 405] {
        let scene = Scene::ranked(&["wrong", "well"]).await;
        scene.set("wrong", Reply::Answer(status, "", "no such path"));
        let orchestrator = scene.orchestrator();
        let mut done = 0;
        for _ in 0..20 {
            done += usize::from(send(orchestrator.delegate("work").at_most_once()).await.is_ok());
        }
        assert!(done >= 10, "{status}: {done} of 20 done, {:?}", counts(&scene, ["wrong", "well"]));
    }
}

/// The agent sends a head and never a body. It is noticed with `post_json`, and with a custom client that has a timeout.
#[tokio::test(start_paused = true)]
async fn agent_that_stops_after_its_head_does_not_lose_every_custom_task() {
    let scene = Scene::ranked(&["stops", "well"]).await;
    scene.set("stops", Reply::Stall("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"));
    let orchestrator = scene.orchestrator();
    let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build().unwrap();
    let mut done = 0;
    for _ in 0..20 {
        let task = |agent: registry_sdk::CapabilityMatch| {
            let request = http.post(format!("{}/execute", agent.base_url));
            async move { Ok(request.send().await?.error_for_status()?.text().await?) }
        };
        done += usize::from(orchestrator.delegate("work").run(task).await.is_ok());
    }
    assert!(done >= 10, "{done} of 20 done");
}

/// The error of another crate. Its cause says what happened to the task.
#[derive(Debug)]
enum Mine {
    Http(reqwest::Error),
    Json(serde_json::Error),
}

impl std::fmt::Display for Mine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("my agent failed")
    }
}

impl std::error::Error for Mine {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Http(error) => Some(error),
            Self::Json(error) => Some(error),
        }
    }
}

async fn delegate_mine(scene: &Scene) -> Result<Value, DelegateError> {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let orchestrator = scene.orchestrator();
    let done = orchestrator
        .delegate("work")
        .run(|agent| {
            let request = http.post(format!("{}/execute", agent.base_url));
            async move {
                let response = request.send().await.and_then(reqwest::Response::error_for_status);
                let body = response.map_err(Mine::Http)?.bytes().await.map_err(Mine::Http)?;
                Ok(serde_json::from_slice::<Value>(&body).map_err(Mine::Json)?)
            }
        })
        .await?;
    Ok(done.value)
}

/// "The task is never run again", even if the caller's own error wraps that of the library.
#[tokio::test(start_paused = true)]
async fn undecodable_response_is_recognized_within_a_custom_error() {
    let scene = Scene::ranked(&["first", "second", "third"]).await;
    scene.set("first", Reply::Answer(200, "", "done, all is well"));
    let outcome = delegate_mine(&scene).await;
    assert_eq!(counts(&scene, ["first", "second", "third"]), [1, 0, 0], "{outcome:?}");
}

#[tokio::test(start_paused = true)]
async fn invalid_task_is_recognized_within_a_custom_error() {
    let scene = Scene::ranked(&["first", "second", "third"]).await;
    scene.set("first", Reply::Answer(422, "", "the field n is too small"));
    let outcome = delegate_mine(&scene).await;
    assert_eq!(counts(&scene, ["first", "second", "third"]), [1, 0, 0], "{outcome:?}");
}

/// A payload that cannot be serialized is not an unreadable response.
#[tokio::test(start_paused = true)]
async fn custom_task_whose_payload_cannot_be_serialized_was_not_done() {
    let scene = Scene::ranked(&["first", "second"]).await;
    let orchestrator = scene.orchestrator();
    let error = orchestrator
        .delegate("work")
        .run(|_| async {
            let odd = std::collections::HashMap::from([(vec![1], 2)]);
            Ok(serde_json::to_string(&odd)?)
        })
        .await
        .unwrap_err();
    assert!(!with_causes(&error).contains("the task was done"), "{error}");
}

/// In the table, redirects are wrong deployments, whoever follows them.
#[tokio::test(start_paused = true)]
async fn redirect_loop_of_a_custom_client_is_a_wrong_deployment() {
    let scene = Scene::ranked(&["one", "two"]).await;
    for id in ["one", "two"] {
        let location = format!("/{id}/execute");
        scene.set(id, Reply::with(307, &[("location", &location)], ""));
    }
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let orchestrator = scene.orchestrator_builder().http_client(http).build();
    let error = send(orchestrator.delegate("work")).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("path") || text.contains("credentials"), "{text}");
}

/// Common closures need no annotations, and are `Send`.
#[tokio::test(start_paused = true)]
async fn common_closures_compile_and_can_be_spawned() {
    let scene = Scene::ranked(&["one", "two"]).await;
    let orchestrator = scene.orchestrator();
    let own = orchestrator.clone();
    let spawned = tokio::spawn(async move {
        let task = json!({"n": 1});
        own.delegate("work").post_json::<Value>("/execute", &task).await.map(|done| done.value)
    });
    spawned.await.unwrap().unwrap();
    let (own, http) = (orchestrator.clone(), reqwest::Client::builder().no_proxy().build().unwrap());
    let spawned = tokio::spawn(async move {
        let query = TaskQuery::new("work").tag("work");
        own.delegate(query)
            .attempts(2)
            .hedge_after(Duration::from_secs(1))
            .run(|agent| {
                let request = http.get(format!("{}/health", agent.base_url));
                async move {
                    if agent.agent_id.is_empty() {
                        return Err(TaskError::permanent("no name"));
                    }
                    let text = request.send().await?.error_for_status()?.text().await?;
                    let number: usize = text.len().to_string().parse()?;
                    Ok(serde_json::from_str::<Value>(&text)?["by"].as_str().map_or(number, str::len))
                }
            })
            .await
            .map(|done| done.value)
    });
    let _ = spawned.await.unwrap();
    let own = orchestrator.clone();
    let spawned = tokio::spawn(async move {
        let mut done = own.delegate("work").send(reqwest::Method::POST, "/execute", "{}").await?;
        let mut bytes = Vec::new();
        while let Some(chunk) = done.value.chunk().await? {
            bytes.extend(chunk);
        }
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(bytes)
    });
    assert!(!spawned.await.unwrap().unwrap().is_empty());
}
