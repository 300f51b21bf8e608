//! Agents that say when to try again.

use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep};

use super::{TRIES, arrivals, counts, delegate, send};
use crate::scene::Scene;
use crate::support::Reply;

const IDS: [&str; 2] = ["busy", "well"];

/// Maximum time for which an agent is avoided at its own request.
const LONGEST: Duration = Duration::from_secs(300);

fn busy(status: u16, retry_after: &str) -> Reply {
    Reply::with(status, &[("retry-after", retry_after)], "too much to do")
}

/// After how many seconds an agent that gave this response once, and is healthy since, is given a task again. Tries twice a
/// second.
async fn asked_again_after(reply: Reply, at_most: Duration) -> Option<Duration> {
    let scene = Scene::ranked(&IDS).await;
    scene.set("busy", reply);
    let orchestrator = scene.orchestrator();
    assert_eq!(delegate(&orchestrator).await.as_deref(), Ok("well"));
    let refused = scene.tasks("busy")[0].at;
    scene.set_well("busy");
    while refused.elapsed() <= at_most {
        delegate(&orchestrator).await.unwrap();
        if let Some(again) = scene.tasks("busy").get(1) {
            return Some(again.at - refused);
        }
        sleep(Duration::from_millis(500)).await;
    }
    None
}

fn about(seconds: u64) -> impl Fn(Option<Duration>) -> bool {
    let asked = Duration::from_secs(seconds);
    move |after| after.is_some_and(|after| (asked..=asked + Duration::from_secs(2)).contains(&after))
}

#[tokio::test(start_paused = true)]
async fn busy_agent_is_avoided_for_as_long_as_it_asks() {
    for status in [429, 503, 409] {
        let after = asked_again_after(busy(status, "5"), Duration::from_secs(60)).await;
        assert!(about(5)(after), "{status}: asked again after {after:?}");
    }
}

/// However often it is busy.
#[tokio::test(start_paused = true)]
async fn being_busy_is_not_charged() {
    for status in [429, 503, 409] {
        let scene = Scene::ranked(&IDS).await;
        scene.set("busy", busy(status, "5"));
        let orchestrator = scene.orchestrator();
        let began = Instant::now();
        for round in 1..=2 * TRIES {
            assert_eq!(delegate(&orchestrator).await.as_deref(), Ok("well"), "{status}");
            let arrivals = arrivals(&scene, "busy", began);
            assert_eq!(arrivals.len(), round, "{status}: {arrivals:?}");
            sleep(Duration::from_secs(6)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn retry_after_may_be_a_date() {
    let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(60));
    let after = asked_again_after(busy(429, &date), Duration::from_secs(120)).await;
    // A date has no fractions of a second, and real time passes as well.
    let expected = Duration::from_secs(50)..=Duration::from_secs(62);
    assert!(after.is_some_and(|after| expected.contains(&after)), "asked again after {after:?}");
    let past = httpdate::fmt_http_date(SystemTime::now() - Duration::from_secs(60));
    let after = asked_again_after(busy(429, &past), Duration::from_secs(10)).await;
    assert!(after.is_some(), "a date in the past is over");
}

#[tokio::test(start_paused = true)]
async fn no_agent_is_avoided_for_longer_than_five_minutes() {
    let far = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(365 * 86_400));
    for asked in ["100000", "18446744073709551615", &far] {
        let after = asked_again_after(busy(429, asked), 2 * LONGEST).await;
        assert!(about(LONGEST.as_secs())(after), "{asked}: asked again after {after:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn invalid_retry_after_is_ignored() {
    for unreadable in ["soon", "-5", "1.5", "", "5 s", "Sat, 99 Nov 2094 08:49:37 GMT"] {
        // The agent's own failure.
        let after = asked_again_after(busy(503, unreadable), Duration::from_secs(10)).await;
        assert!(about(0)(after), "503, {unreadable:?}: asked again after {after:?}");
        // An invalid task.
        let scene = Scene::ranked(&IDS).await;
        scene.set("busy", busy(409, unreadable));
        let error = delegate(&scene.orchestrator()).await.unwrap_err();
        assert_eq!(counts(&scene, IDS), [1, 0], "409, {unreadable:?}: {error}");
        // It is busy anyway.
        let scene = Scene::ranked(&IDS).await;
        scene.set("busy", busy(429, unreadable));
        assert_eq!(delegate(&scene.orchestrator()).await.as_deref(), Ok("well"), "429, {unreadable:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn too_many_requests_without_retry_after_fails_over_and_is_not_charged() {
    let scene = Scene::ranked(&IDS).await;
    scene.set("busy", Reply::Answer(429, "", "too much to do"));
    let orchestrator = scene.orchestrator();
    for round in 1..=TRIES {
        assert_eq!(delegate(&orchestrator).await.as_deref(), Ok("well"));
        assert_eq!(counts(&scene, IDS), [round, round]);
        // Longer than any agent is avoided without a request.
        sleep(LONGEST).await;
    }
}

#[tokio::test(start_paused = true)]
async fn delegation_waits_for_the_first_free_agent_if_all_are_busy() {
    let scene = Scene::ranked(&["later", "sooner"]).await;
    let once = |id: &'static str, retry_after: &'static str| {
        let done = if id == "later" { r#"{"by":"later"}"# } else { r#"{"by":"sooner"}"# };
        scene.script(id, move |_, before| match before {
            0 => busy(429, retry_after),
            _ => Reply::Answer(200, "", done),
        });
    };
    once("later", "20");
    once("sooner", "5");
    let orchestrator = scene.orchestrator();
    let began = Instant::now();
    let outcome = send(orchestrator.delegate("work").time_limit(Duration::from_secs(60))).await;
    assert_eq!(outcome.as_deref(), Ok("sooner"));
    assert_eq!(counts(&scene, ["later", "sooner"]), [1, 2]);
    assert!(about(5)(Some(began.elapsed())), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn delegation_waits_for_the_only_agent_if_time_allows() {
    let scene = Scene::ranked(&["only"]).await;
    scene.script("only", |_, before| match before {
        0 => busy(503, "5"),
        _ => Reply::Answer(200, "", r#"{"by":"only"}"#),
    });
    let orchestrator = scene.orchestrator();
    let began = Instant::now();
    let outcome = send(orchestrator.delegate("work").time_limit(Duration::from_secs(30))).await;
    assert_eq!(outcome.as_deref(), Ok("only"));
    let arrivals = arrivals(&scene, "only", began);
    assert!(arrivals.len() == 2 && about(5)(Some(arrivals[1])), "{arrivals:?}");
}

#[tokio::test(start_paused = true)]
async fn delegation_fails_at_once_if_no_agent_is_free_in_time() {
    let scene = Scene::ranked(&["one", "two"]).await;
    scene.set("one", busy(429, "50"));
    scene.set("two", busy(429, "20"));
    let orchestrator = scene.orchestrator();
    for _ in 0..2 {
        let began = Instant::now();
        let error =
            send(orchestrator.delegate("work").time_limit(Duration::from_secs(10))).await.unwrap_err();
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        // A little of the 20 s may have passed.
        assert!(error.contains("busy") && (error.contains("20") || error.contains("19.")), "{error}");
        // The second time, both are known to be busy.
        assert_eq!(counts(&scene, ["one", "two"]), [1, 1], "{error}");
    }
}

/// An agent that is always busy but asks for no delay is not called as fast as it responds.
#[tokio::test(start_paused = true)]
async fn busy_agent_with_a_zero_retry_after_is_not_flooded() {
    for status in [429, 503, 409] {
        let scene = Scene::ranked(&["only"]).await;
        scene.script("only", move |_, before| match before {
            ..1_000 => busy(status, "0"),
            _ => Reply::Answer(200, "", r#"{"by":"flooded"}"#),
        });
        let orchestrator = scene.orchestrator();
        let outcome = send(orchestrator.delegate("work").time_limit(Duration::from_secs(10))).await;
        let [requests] = counts(&scene, ["only"]);
        assert!(outcome.is_err() && requests <= 100, "{status}: {requests} requests, {outcome:?}");

        let after = asked_again_after(busy(status, "0"), Duration::from_secs(10)).await;
        assert!(about(0)(after), "{status}: asked again after {after:?}");
    }
}
