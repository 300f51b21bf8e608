//! The content and length of errors.

use registry_sdk::discovery::{DelegateError, TaskQuery};
use registry_sdk::{Orchestrator, RegistryClient};
use serde_json::{Value, json};

use super::{send, with_causes};
use crate::scene::Scene;
use crate::support::{Reply, Server};

/// Maximum length of a log line, generously.
const LINE: usize = 8_000;

async fn decode_as_number(body: &'static str) -> DelegateError {
    let scene = Scene::ranked(&["one"]).await;
    scene.set("one", Reply::Answer(200, "", body));
    let orchestrator = scene.orchestrator();
    orchestrator.delegate("work").post_json::<u64>("/execute", &json!({"n": 1})).await.unwrap_err()
}

/// The decoder quotes what it found instead of a number, which may be long.
#[tokio::test(start_paused = true)]
async fn undecodable_response_does_not_fill_the_log() {
    let body: &'static str = format!("{:?}", "x".repeat(1024 * 1024)).leak();
    let error = decode_as_number(body).await;
    let text = with_causes(&error);
    assert!(text.len() < LINE, "{} bytes", text.len());
}

/// `main` prints an error with `Debug`, and so does `unwrap`.
#[tokio::test(start_paused = true)]
async fn undecodable_response_does_not_fill_the_terminal() {
    let body: &'static str = format!("[{}1]", "1,".repeat(512 * 1024)).leak();
    let error = decode_as_number(body).await;
    let text = format!("{error:?}");
    assert!(text.len() < 4 * LINE, "{} bytes", text.len());
    assert!(text.contains("the response cannot be decoded"), "{text}");
}

/// A redirect names its target, which may be as long as the agent likes.
#[tokio::test(start_paused = true)]
async fn target_of_a_redirect_does_not_fill_the_log() {
    let scene = Scene::ranked(&["one"]).await;
    let location = format!("http://elsewhere/{}", "x".repeat(100_000));
    scene.set("one", Reply::with(302, &[("location", &location)], ""));
    let error = send(scene.orchestrator().delegate("work")).await.unwrap_err();
    let text = with_causes(&error);
    assert!(text.len() < LINE, "{} bytes", text.len());
}

/// A login page's URL contains data that must not be logged.
#[tokio::test(start_paused = true)]
async fn target_of_a_redirect_reveals_no_secret() {
    let scene = Scene::ranked(&["one"]).await;
    let location = "http://user:s3cret@sso/login?state=t0ken";
    scene.set("one", Reply::with(302, &[("location", location)], ""));
    let text = with_causes(&send(scene.orchestrator().delegate("work")).await.unwrap_err());
    assert!(!text.contains("s3cret"), "{text}");
}

/// An agent's message is text, and must not control the terminal of the person who reads the log.
#[tokio::test(start_paused = true)]
async fn agents_text_cannot_control_a_terminal() {
    let scene = Scene::ranked(&["one"]).await;
    scene.set("one", Reply::Answer(500, "", "\u{1b}[2J\u{1b}]0;owned\u{7}out of disk\u{0}\u{202e}"));
    let text = with_causes(&send(scene.orchestrator().delegate("work")).await.unwrap_err());
    assert!(!text.chars().any(char::is_control), "{text:?}");
}

/// The causes do not repeat everything a second and a third time.
#[tokio::test(start_paused = true)]
async fn error_with_its_causes_repeats_little() {
    let scene = Scene::ranked(&["one", "two"]).await;
    scene.set("one", Reply::Answer(500, "", "out of disk"));
    scene.set("two", Reply::Close);
    let text = with_causes(&send(scene.orchestrator().delegate("work")).await.unwrap_err());
    let times = text.matches("connection closed before message completed").count();
    // Once in each agent's message, and once as the last agent's own error.
    assert!(times <= 2, "{times} times: {text}");
}

/// Fallbacks that are busy, and primaries that are excluded, lack a tag or are offline: all are reported.
#[tokio::test(start_paused = true)]
async fn all_skipped_agents_are_reported() {
    let scene = Scene::new(&["excluded", "untagged", "busy"]).await;
    scene.register("offline", registry_sdk::Capability::new("work").tag("rust")).await;
    scene.register("gone_busy", registry_sdk::Capability::new("work").tag("rust")).await;
    scene.set("gone_busy", Reply::Answer(429, "retry-after: 200\r\n", ""));
    let client = scene.registry.client();
    client.update_status("offline", registry_sdk::AgentStatus::Offline).await.unwrap();
    let orchestrator = scene.orchestrator();
    let query = TaskQuery::new("work").tag("rust").exclude("excluded");
    for _ in 0..2 {
        let error = send(orchestrator.delegate(query.clone())).await.unwrap_err();
        let text = with_causes(&error);
        for id in ["excluded", "untagged", "offline", "gone_busy", "busy"] {
            assert!(text.contains(id), "{id} is missing: {text}");
        }
        assert!(error.retry_after().is_some(), "{text}");
    }
}

/// A `204` of an agent without a result means that the task was done.
#[tokio::test(start_paused = true)]
async fn response_without_a_body_suffices_if_none_is_expected() {
    let scene = Scene::ranked(&["one"]).await;
    scene.set("one", Reply::Answer(204, "", ""));
    let orchestrator = scene.orchestrator();
    let nothing = orchestrator.delegate("work").post_json::<()>("/execute", &json!({"n": 1})).await;
    assert!(nothing.is_ok(), "{nothing:?}");
    let maybe = orchestrator.delegate("work").post_json::<Option<Value>>("/execute", &json!({"n": 1})).await;
    assert!(maybe.is_ok(), "{maybe:?}");
}

/// If it is unknown whether there are other agents, the error does not say that there are none.
#[tokio::test(start_paused = true)]
async fn error_does_not_claim_that_no_agent_is_registered_if_that_is_unknown() {
    let registry = Server::start(|what, _| {
        // The registry has a rate limit, which the first search exhausts.
        if what.contains("healthy=false") {
            return Reply::Answer(429, "retry-after: 60\r\n", "");
        }
        Reply::Answer(200, "", "[]")
    })
    .await;
    let orchestrator = Orchestrator::new(RegistryClient::new(registry.url()).unwrap());
    let selected = with_causes(&orchestrator.find_best_agent("work").await.unwrap_err());
    let delegated = with_causes(&send(orchestrator.delegate("work")).await.unwrap_err());
    for text in [selected, delegated] {
        assert!(!text.contains("none is registered"), "{text}");
    }
}

/// The SDK's own requests omit their URLs in errors and logs. Errors of the caller's own client come by `?`, as documented.
#[tokio::test(start_paused = true)]
async fn error_of_a_custom_request_hides_the_key_in_its_url() {
    let scene = Scene::ranked(&["one"]).await;
    scene.set("one", Reply::Answer(500, "", ""));
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let orchestrator = scene.orchestrator();
    let error = orchestrator
        .delegate("work")
        .run(|agent| {
            let request = http.post(format!("{}/execute?api_key=s3cret", agent.base_url));
            async move { Ok(request.send().await?.error_for_status()?.text().await?) }
        })
        .await
        .unwrap_err();
    let text = with_causes(&error);
    assert!(!text.contains("s3cret"), "{text}");
}
