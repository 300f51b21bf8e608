//! Agents behind a wrong path, wrong credentials or a redirect: one bad deployment among good ones.

use std::time::Duration;

use tokio::time::sleep;

use super::{TRIES, counts, delegate, delegate_many};
use crate::scene::Scene;
use crate::support::{Reply, Server};

/// The responses of a wrong deployment.
fn wrong_answers() -> Vec<(u16, Reply)> {
    let plain = [401, 403, 404, 405].map(|status| (status, Reply::Answer(status, "", "no such thing")));
    let redirects = [301, 302, 303]
        .map(|status| (status, Reply::with(status, &[("location", "http://127.0.0.1:1/login")], "")));
    plain.into_iter().chain(redirects).collect()
}

#[tokio::test(start_paused = true)]
async fn misdeployed_agent_loses_no_task() {
    for (status, reply) in wrong_answers() {
        let scene = Scene::ranked(&["wrong", "well"]).await;
        scene.set("wrong", reply);
        let (done, last) = delegate_many(&scene.orchestrator(), 20).await;
        assert_eq!(done, 20, "{status}: {last:?}");
        let [wrong, well] = counts(&scene, ["wrong", "well"]);
        assert!(wrong <= TRIES && well == 20, "{status}: wrong had {wrong} tasks, well {well}");
    }
}

#[tokio::test(start_paused = true)]
async fn caller_is_at_fault_and_no_agent_is_charged_if_all_respond_alike() {
    let ids = ["one", "two", "three"];
    for (status, reply) in wrong_answers() {
        let scene = Scene::ranked(&ids).await;
        for id in ids {
            scene.set(id, reply.clone());
        }
        let orchestrator = scene.orchestrator();
        for round in 1..=TRIES {
            let error = delegate(&orchestrator).await.unwrap_err();
            assert_eq!(counts(&scene, ids), [round; 3], "{status}: {error}");
            assert!(error.contains("path") || error.contains("credentials"), "{status}: {error}");
            sleep(Duration::from_secs(1)).await;
        }
        for id in ids {
            scene.set_well(id);
        }
        assert_eq!(delegate(&orchestrator).await.as_deref(), Ok("one"), "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn redirect_that_keeps_the_method_is_followed_within_the_agent() {
    for status in [307, 308] {
        let scene = Scene::ranked(&["moved", "well"]).await;
        for location in ["/moved/v2/execute".to_owned(), format!("{}/moved/v2/execute", scene.agents.url())] {
            scene.script("moved", move |what, _| match what {
                "POST /moved/execute" => Reply::with(status, &[("location", &location)], ""),
                _ => Reply::Answer(200, "", r#"{"by":"moved"}"#),
            });
            assert_eq!(delegate(&scene.orchestrator()).await.as_deref(), Ok("moved"), "{status}");
            let request = scene.tasks("moved").pop().unwrap();
            assert_eq!(
                (request.what.as_str(), request.body.as_str()),
                ("POST /moved/v2/execute", r#"{"n":1}"#)
            );
            assert_eq!(request.header("content-type"), Some("application/json"));
        }
        assert!(scene.tasks("well").is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn redirect_to_another_origin_is_not_followed_and_the_next_agent_does_the_task() {
    let elsewhere = Server::start(|_, _| Reply::Answer(200, "", r#"{"by":"elsewhere"}"#)).await;
    let url = format!("{}/execute", elsewhere.url());
    for status in [301, 302, 303, 307, 308] {
        let scene = Scene::ranked(&["moved", "well"]).await;
        scene.set("moved", Reply::with(status, &[("location", &url)], ""));
        assert_eq!(delegate(&scene.orchestrator()).await.as_deref(), Ok("well"), "{status}");
        assert_eq!(counts(&scene, ["moved", "well"]), [1, 1], "{status}");
    }
    assert!(elsewhere.arrived().is_empty(), "it may not learn of the task");
}

#[tokio::test(start_paused = true)]
async fn invalid_redirect_counts_as_a_wrong_deployment() {
    let cases = [
        Reply::Answer(307, "", ""),
        Reply::with(307, &[("location", "")], ""),
        Reply::with(308, &[("location", "http://")], ""),
        Reply::with(307, &[("location", "ftp://127.0.0.1/execute")], ""),
        // To itself, forever.
        Reply::with(307, &[("location", "/moved/execute")], ""),
        Reply::with(308, &[("location", "execute")], ""),
        Reply::Answer(300, "", ""),
        Reply::Answer(304, "", ""),
    ];
    for reply in cases {
        let scene = Scene::ranked(&["moved", "well"]).await;
        scene.set("moved", reply.clone());
        assert_eq!(delegate(&scene.orchestrator()).await.as_deref(), Ok("well"), "{reply:?}");
        let [moved, well] = counts(&scene, ["moved", "well"]);
        assert!(moved <= TRIES + 1 && well == 1, "{reply:?}: moved had {moved} requests, well {well}");
    }
}
