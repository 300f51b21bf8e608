//! The table of outcomes: which responses make a task fail over, and which count against the agent.

use super::{TRIES, counts, delegate, delegate_many};
use crate::scene::Scene;
use crate::support::Reply;

const IDS: [&str; 2] = ["first", "second"];

/// The expected behaviour after a response of the best-ranked agent, while another one is healthy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    /// The next agent does the task. The first one is charged, and after a while it is no longer the first choice.
    NextAndCharged,
    /// The task fails, no other agent gets it, and the first agent stays the first choice.
    End,
}

/// Runs twenty tasks against an agent that always gives one response. Returns the deviations.
async fn check(reply: Reply, expected: Expected) -> Option<String> {
    let scene = Scene::ranked(&IDS).await;
    scene.set("first", reply.clone());
    let orchestrator = scene.orchestrator();

    let outcome = delegate(&orchestrator).await;
    let once = counts(&scene, IDS);
    let (done, _) = delegate_many(&orchestrator, 19).await;
    let many = counts(&scene, IDS);
    let is_as_expected = match expected {
        Expected::NextAndCharged => {
            outcome.as_deref() == Ok("second") && once == [1, 1] && done == 19 && many[0] <= TRIES
        }
        Expected::End => outcome.is_err() && once == [1, 0] && done == 0 && many == [20, 0],
    };
    (!is_as_expected).then(|| {
        format!("{reply:?}: {outcome:?}, {done} of 19 later tasks done, tasks at each agent {once:?}, then {many:?}")
    })
}

async fn check_all(replies: impl IntoIterator<Item = Reply>, expected: Expected) {
    let mut wrong = Vec::new();
    for reply in replies {
        wrong.extend(check(reply, expected).await);
    }
    assert!(wrong.is_empty(), "expected {expected:?}: {wrong:#?}");
}

fn statuses(statuses: impl IntoIterator<Item = u16>) -> impl Iterator<Item = Reply> {
    statuses.into_iter().map(|status| Reply::Answer(status, "", "no"))
}

#[tokio::test(start_paused = true)]
async fn failed_connections_and_timeouts_fail_over_and_are_charged() {
    check_all([Reply::Close, Reply::Hang, Reply::Stall("HTTP/1.1 ")], Expected::NextAndCharged).await;
}

#[tokio::test(start_paused = true)]
async fn server_errors_fail_over_and_are_charged() {
    let failures = [408, 425, 500, 501, 502, 503, 504, 505, 507, 508, 511, 520, 529, 599];
    check_all(statuses(failures), Expected::NextAndCharged).await;
}

#[tokio::test(start_paused = true)]
async fn wrong_deployments_fail_over_and_are_charged_if_the_next_agent_does_the_task() {
    check_all(statuses([401, 403, 404, 405, 301, 302, 303, 307, 308]), Expected::NextAndCharged).await;
}

#[tokio::test(start_paused = true)]
async fn invalid_tasks_end_and_are_not_charged() {
    let faults = [400, 402, 406, 407, 409, 410, 411, 412, 413, 414, 415, 416, 417, 418, 421, 422, 423, 424]
        .into_iter()
        .chain([426, 428, 431, 451, 499]);
    check_all(statuses(faults), Expected::End).await;
}

#[tokio::test(start_paused = true)]
async fn successes_that_cannot_be_read_end_the_task_and_are_not_charged() {
    check_all(statuses([200, 201, 299]).chain([Reply::Truncated]), Expected::End).await;
}

/// Only the status decides, whatever happens to the text after it.
#[tokio::test(start_paused = true)]
async fn failure_with_a_truncated_text_is_classified_by_its_status() {
    let failures = [
        Reply::Raw("HTTP/1.1 500 x\r\ncontent-length: 100\r\n\r\nout of d"),
        Reply::Raw("HTTP/1.1 404 x\r\ncontent-length: 100\r\n\r\n"),
        Reply::Stall("HTTP/1.1 503 x\r\ncontent-length: 100\r\n\r\nout of d"),
    ];
    check_all(failures, Expected::NextAndCharged).await;
}

#[tokio::test(start_paused = true)]
async fn invalid_task_with_a_truncated_text_is_classified_by_its_status() {
    let faults = [
        Reply::Raw("HTTP/1.1 422 x\r\ncontent-length: 100\r\n\r\n{\"detail\":"),
        Reply::Raw("HTTP/1.1 400 x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nwrong"),
        Reply::Stall("HTTP/1.1 413 x\r\ncontent-length: 100\r\n\r\ntoo l"),
    ];
    check_all(faults, Expected::End).await;
}

/// A task that no agent can do costs each agent one request, however many attempts are allowed.
#[tokio::test(start_paused = true)]
async fn no_agent_gets_a_task_twice() {
    for reply in [Reply::Close, Reply::Answer(500, "", "no"), Reply::Answer(404, "", "no")] {
        let scene = Scene::ranked(&IDS).await;
        for id in IDS {
            scene.set(id, reply.clone());
        }
        let orchestrator = scene.orchestrator();
        let error = super::send(orchestrator.delegate("work").attempts(9)).await.unwrap_err();
        assert_eq!(counts(&scene, IDS), [1, 1], "{reply:?}: {error}");
    }
}
