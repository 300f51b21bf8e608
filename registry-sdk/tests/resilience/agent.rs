//! The agent against registries that fail, on a paused clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::{self, ACK, HEARTBEAT, PROBLEM, REGISTER, Reply, Server, until};
use registry_sdk::contract::{AgentStatus, Capability, Registration};
use registry_sdk::{Agent, AgentState, Error, RegistrationOutcome, RegistryClient};
use tokio::time::Instant;

const INTERVAL: Duration = Duration::from_secs(30);

fn agent(server: &Server) -> Agent {
    support::agent(server, INTERVAL)
}

#[tokio::test(start_paused = true)]
async fn heartbeats_are_sent_once_per_interval_and_do_not_drift() {
    let server = Server::start(|_, _| ACK).await;
    let agent = agent(&server);
    agent.register().await.unwrap();
    let began = Instant::now();
    agent.start_heartbeat(INTERVAL).unwrap();
    until("a hundred heartbeats", || server.times(HEARTBEAT).len() == 100).await;
    let times = server.times(HEARTBEAT);
    assert!(times[0] - began <= INTERVAL, "the first comes after a part of the interval");
    for pair in times.windows(2) {
        let apart = pair[1] - pair[0];
        assert!(apart.abs_diff(INTERVAL) <= Duration::from_millis(10), "{apart:?}");
    }
    assert_eq!(server.times(REGISTER).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn heartbeats_missed_during_suspension_are_not_made_up_for() {
    let server = Server::start(|_, _| ACK).await;
    let agent = agent(&server);
    agent.register().await.unwrap();
    agent.start_heartbeat(INTERVAL).unwrap();
    until("a heartbeat", || server.times(HEARTBEAT).len() == 1).await;
    // As if a laptop's lid was closed during lunch: the clock continues, but nothing runs.
    tokio::time::advance(100 * INTERVAL).await;
    let woken = Instant::now();
    until("it beats on", || server.times(HEARTBEAT).len() >= 4).await;
    let since: Vec<_> = server.times(HEARTBEAT)[1..].iter().map(|at| *at - woken).collect();
    assert!(since[0] <= Duration::from_millis(20), "at once: {since:?}");
    assert!(since[1] + Duration::from_millis(20) >= INTERVAL, "and then in its time: {since:?}");
}

#[tokio::test(start_paused = true)]
async fn agents_that_start_together_send_heartbeats_at_different_times() {
    let server = Server::start(|_, _| ACK).await;
    let began = Instant::now();
    let agents: Vec<_> = (0..60).map(|_| agent(&server)).collect();
    for agent in &agents {
        agent.register().await.unwrap();
        agent.start_heartbeat(INTERVAL).unwrap();
    }
    until("all have beaten", || server.times(HEARTBEAT).len() >= agents.len()).await;
    let early = server.times(HEARTBEAT).iter().filter(|at| **at - began < INTERVAL / 2).count();
    assert!((10..=50).contains(&early), "{early} of 60 in the first half");
}

#[tokio::test(start_paused = true)]
async fn failed_heartbeat_is_retried_at_least_twice_within_the_interval() {
    for failure in [Reply::Hang, Reply::Close, Reply::Truncated, Reply::Answer(500, "", "")] {
        for _ in 0..20 {
            let failure = failure.clone();
            let failing = Arc::new(AtomicBool::new(false));
            let fails = failing.clone();
            let script = move |_: &str, _| if fails.load(Ordering::SeqCst) { failure.clone() } else { ACK };
            let server = Server::start(script).await;
            let agent = agent(&server);
            agent.register().await.unwrap();
            agent.start_heartbeat(INTERVAL).unwrap();
            until("a heartbeat", || !server.times(HEARTBEAT).is_empty()).await;
            failing.store(true, Ordering::SeqCst);
            until("the next fails", || server.times(HEARTBEAT).len() >= 2).await;
            let failed = Instant::now();
            until("it is tried again", || server.times(HEARTBEAT).len() >= 4).await;
            assert!(failed.elapsed() < INTERVAL, "{:?}", failed.elapsed());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn forgotten_agent_registers_again_with_its_latest_capabilities() {
    for body in ["", "<html>nothing here</html>", "{\"det"] {
        let forgotten = Arc::new(AtomicBool::new(false));
        let is_forgotten = forgotten.clone();
        let script = move |what: &str, _| match what {
            HEARTBEAT if is_forgotten.load(Ordering::SeqCst) => Reply::Answer(404, "", body),
            REGISTER => {
                is_forgotten.store(false, Ordering::SeqCst);
                ACK
            }
            _ => ACK,
        };
        let server = Server::start(script).await;
        let agent = agent(&server);
        agent.register().await.unwrap();
        agent.start_heartbeat(INTERVAL).unwrap();
        agent.update_capabilities(vec![Capability::new("latest")]).await.unwrap();
        forgotten.store(true, Ordering::SeqCst);
        let (beats, registrations) = (server.times(HEARTBEAT).len(), server.times(REGISTER).len());
        until("it registers again", || server.times(REGISTER).len() > registrations).await;
        let (heartbeat, again) = (server.times(HEARTBEAT)[beats], server.times(REGISTER)[registrations]);
        assert!(again - heartbeat <= INTERVAL / 10, "after {:?}", again - heartbeat);
        let sent = server.arrived().into_iter().rfind(|one| one.what == REGISTER).unwrap();
        assert!(sent.body.contains("latest"), "{}", sent.body);
        until("it beats on", || server.times(HEARTBEAT).len() >= beats + 2).await;
        assert!(agent.state().is_registered());
    }
}

#[tokio::test(start_paused = true)]
async fn state_shows_what_the_registry_responds() {
    let away = Arc::new(AtomicBool::new(true));
    let is_away = away.clone();
    let script = move |_: &str, _| if is_away.load(Ordering::SeqCst) { Reply::Close } else { ACK };
    let server = Server::start(script).await;
    let agent = agent(&server);
    assert!(matches!(agent.state(), AgentState::Registering));
    let outcome = agent.register_with_retry().await.unwrap();
    assert!(matches!(outcome, RegistrationOutcome::Degraded(_)));
    assert_eq!(server.times(REGISTER).len(), 3);
    assert!(agent.state().is_degraded());

    agent.start_heartbeat(INTERVAL).unwrap();
    until("it goes on trying", || server.times(REGISTER).len() >= 10).await;
    assert!(matches!(agent.state(), AgentState::Degraded { attempts, .. } if attempts >= 7));
    away.store(false, Ordering::SeqCst);
    let back = Instant::now();
    let mut state = agent.watch();
    state.wait_for(AgentState::is_registered).await.unwrap();
    assert!(back.elapsed() <= INTERVAL + Duration::from_secs(1), "{:?}", back.elapsed());
    agent.shutdown().await;
    state.wait_for(|state| matches!(state, AgentState::Stopped)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn refusal_in_the_contracts_form_is_an_error_at_once() {
    for status in [400, 401, 403, 422] {
        let server = Server::start(move |_, _| Reply::Answer(status, PROBLEM, r#"{"detail":"no"}"#)).await;
        let error = agent(&server).register_with_retry().await.unwrap_err();
        assert!(error.is_refused() && error.to_string().contains("no"), "{error}");
        assert_eq!(server.arrived().len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn refusal_by_something_in_between_does_not_keep_the_agent_from_starting() {
    for status in [400, 401, 403, 413, 422] {
        for (kind, body) in [
            ("content-type: text/html\r\n", "<html>Request blocked</html>"),
            ("content-type: application/json\r\n", r#"{"message":"Forbidden"}"#),
            ("content-type: application/json\r\n", r#"{"detail":"Not authenticated"}"#),
            ("", ""),
            (PROBLEM, "<html>cut off"),
        ] {
            let mended = Arc::new(AtomicBool::new(false));
            let is_mended = mended.clone();
            let script = move |_: &str, _| {
                if is_mended.load(Ordering::SeqCst) { ACK } else { Reply::Answer(status, kind, body) }
            };
            let server = Server::start(script).await;
            let agent = agent(&server);
            let outcome = agent.register_with_retry().await.unwrap();
            assert!(matches!(outcome, RegistrationOutcome::Degraded(_)), "{status} {body}: {outcome:?}");
            agent.start_heartbeat(INTERVAL).unwrap();
            until("it goes on trying", || server.times(REGISTER).len() >= 3).await;
            mended.store(true, Ordering::SeqCst);
            agent.watch().wait_for(AgentState::is_registered).await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn invalid_responses_do_not_stop_the_agent() {
    for nonsense in [
        Reply::Answer(200, "", "<html>Sign in</html>"),
        Reply::Answer(302, "location: /login\r\n", ""),
        Reply::Answer(404, "", "<html>no such site</html>"),
        Reply::Answer(200, "", ""),
    ] {
        let mended = Arc::new(AtomicBool::new(false));
        let is_mended = mended.clone();
        let script = move |_: &str, _| if is_mended.load(Ordering::SeqCst) { ACK } else { nonsense.clone() };
        let server = Server::start(script).await;
        let agent = agent(&server);
        let outcome = agent.register_with_retry().await.unwrap();
        assert!(matches!(outcome, RegistrationOutcome::Degraded(_)), "{outcome:?}");
        agent.start_heartbeat(INTERVAL).unwrap();
        until("it goes on trying", || server.times(REGISTER).len() >= 5).await;
        mended.store(true, Ordering::SeqCst);
        agent.watch().wait_for(AgentState::is_registered).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn unknown_interval_is_declared_to_the_registry() {
    let server = Server::start(|_, _| ACK).await;
    let undeclared = Registration::new("a", "Agent", "http://agent:8000");
    let agent = Agent::new(RegistryClient::new(server.url()).unwrap(), undeclared);
    agent.register().await.unwrap();
    agent.start_heartbeat(Duration::from_secs(120)).unwrap();
    until("it is declared", || server.times(REGISTER).len() == 2).await;
    assert!(server.arrived().last().unwrap().body.contains(r#""heartbeat_interval_seconds":120"#));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_after_a_shutdown() {
    let server = Server::start(|_, _| ACK).await;
    let agent = agent(&server);
    agent.register().await.unwrap();
    agent.start_heartbeat(Duration::from_millis(50)).unwrap();
    until("it beats", || server.times(HEARTBEAT).len() >= 5).await;
    agent.shutdown().await;
    let before = server.arrived();
    let last = before.last().unwrap();
    assert_eq!(last.what, "PUT /agents/a/status");
    assert!(last.body.contains(r#""status":"offline""#), "{}", last.body);
    tokio::time::sleep(100 * INTERVAL).await;
    assert_eq!(server.arrived().len(), before.len());
}

#[tokio::test(start_paused = true)]
async fn shutdown_completes_in_time_whatever_the_registry_does() {
    let hangs = Arc::new(AtomicBool::new(false));
    let hanging = hangs.clone();
    let script = move |_: &str, _| if hanging.load(Ordering::SeqCst) { Reply::Hang } else { ACK };
    let server = Server::start(script).await;
    let agent = agent(&server);
    agent.register().await.unwrap();
    agent.start_heartbeat(INTERVAL).unwrap();
    hangs.store(true, Ordering::SeqCst);
    until("a heartbeat hangs", || !server.times(HEARTBEAT).is_empty()).await;
    let began = Instant::now();
    agent.shutdown().await;
    assert!(began.elapsed() <= Duration::from_millis(5_010), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn loop_ends_with_the_last_handle() {
    let server = Server::start(|_, _| ACK).await;
    let agent = agent(&server);
    agent.register().await.unwrap();
    agent.start_heartbeat(INTERVAL).unwrap();
    let mut state = agent.watch();
    drop(agent);
    // The loop owns the sender of the state.
    while state.changed().await.is_ok() {}
    let before = server.arrived().len();
    tokio::time::sleep(100 * INTERVAL).await;
    assert_eq!(server.arrived().len(), before);
}

#[tokio::test(start_paused = true)]
async fn restarted_heartbeats_replace_the_first_ones() {
    let server = Server::start(|_, _| ACK).await;
    let agent = agent(&server);
    agent.register().await.unwrap();
    for _ in 0..5 {
        agent.start_heartbeat(INTERVAL).unwrap();
    }
    tokio::time::sleep(10 * INTERVAL).await;
    let beats = server.times(HEARTBEAT).len();
    assert!((9..=11).contains(&beats), "{beats} heartbeats in ten intervals");
    agent.stop_heartbeat().await;
    tokio::time::sleep(10 * INTERVAL).await;
    assert_eq!(server.times(HEARTBEAT).len(), beats);
}

#[tokio::test(start_paused = true)]
async fn heartbeats_carry_the_status_that_the_agent_set() {
    let server = Server::start(|_, _| ACK).await;
    let agent = agent(&server);
    agent.register().await.unwrap();
    agent.start_heartbeat(INTERVAL).unwrap();
    until("a heartbeat", || server.times(HEARTBEAT).len() == 1).await;
    agent.update_status(AgentStatus::Busy).await.unwrap();
    until("another", || server.times(HEARTBEAT).len() == 2).await;
    let beats: Vec<_> = server.arrived().into_iter().filter(|one| one.what == HEARTBEAT).collect();
    assert!(!beats[0].body.contains("status"), "it has set none");
    assert!(beats[1].body.contains(r#""status":"busy""#), "{}", beats[1].body);
    agent.set_status(AgentStatus::Active);
    until("the next", || server.times(HEARTBEAT).len() == 3).await;
    let last = server.arrived().pop().unwrap();
    assert!(last.body.contains(r#""status":"active""#), "{}", last.body);
    assert_eq!(server.times("PUT").len(), 1, "the second status had no separate request");
}

#[tokio::test(start_paused = true)]
async fn every_request_of_an_agent_names_its_process() {
    let server = Server::start(|_, _| ACK).await;
    let (one, other) = (agent(&server), agent(&server));
    assert_ne!(one.instance_id(), other.instance_id());
    one.register().await.unwrap();
    one.start_heartbeat(INTERVAL).unwrap();
    until("a heartbeat", || server.times(HEARTBEAT).len() == 1).await;
    one.shutdown().await;
    let said = format!(r#""instance_id":"{}""#, one.instance_id());
    for request in server.arrived() {
        assert!(request.body.contains(&said), "{request:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn superseded_agent_sends_nothing_more_and_does_not_take_its_successor_offline() {
    let script = |what: &str, _| match what {
        HEARTBEAT => Reply::Answer(409, PROBLEM, r#"{"detail":"another instance has registered"}"#),
        _ => ACK,
    };
    let server = Server::start(script).await;
    let agent = agent(&server);
    agent.register().await.unwrap();
    agent.start_heartbeat(INTERVAL).unwrap();
    agent.watch().wait_for(AgentState::is_superseded).await.unwrap();
    tokio::time::sleep(100 * INTERVAL).await;
    agent.shutdown().await;
    assert_eq!((server.times(HEARTBEAT).len(), server.times("PUT").len()), (1, 0));
    assert!(matches!(agent.state(), AgentState::Stopped));
}

/// A service, for example in Python, with only the six basic operations.
#[tokio::test(start_paused = true)]
async fn agent_works_with_a_service_that_has_only_the_six_operations() {
    let script = |what: &str, _| match what {
        REGISTER | HEARTBEAT => ACK,
        _ => Reply::Answer(404, "", r#"{"detail":"Not Found"}"#),
    };
    let server = Server::start(script).await;
    let agent = agent(&server);
    agent.register_with_retry().await.unwrap();
    agent.start_heartbeat(INTERVAL).unwrap();
    until("it beats", || server.times(HEARTBEAT).len() == 2).await;
    // It has no operation for the status, but heartbeats carry it as well.
    agent.update_status(AgentStatus::Busy).await.unwrap();
    assert!(server.arrived().last().unwrap().body.contains(r#""status":"busy""#));
    let beats = server.times(HEARTBEAT).len();
    // There, a heartbeat with `offline` would make the agent active.
    let error = agent.update_status(AgentStatus::Offline).await.unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    agent.shutdown().await;
    tokio::time::sleep(100 * INTERVAL).await;
    assert_eq!(server.times(HEARTBEAT).len(), beats);
}

#[tokio::test(start_paused = true)]
async fn older_process_with_an_update_does_not_supersede_its_successor() {
    let superseded = Arc::new(AtomicBool::new(false));
    let is_superseded = superseded.clone();
    let script = move |what: &str, _| match what {
        HEARTBEAT if is_superseded.load(Ordering::SeqCst) => Reply::Answer(409, PROBLEM, "{}"),
        _ => ACK,
    };
    let server = Server::start(script).await;
    for (was_heard, change_itself) in [(false, true), (false, false), (true, true)] {
        superseded.store(false, Ordering::SeqCst);
        let agent = agent(&server);
        agent.register().await.unwrap();
        if was_heard {
            let beats = server.times(HEARTBEAT).len();
            agent.start_heartbeat(INTERVAL).unwrap();
            until("a heartbeat", || server.times(HEARTBEAT).len() > beats).await;
            tokio::time::sleep(INTERVAL / 10).await;
        }
        superseded.store(true, Ordering::SeqCst);
        let registrations = server.times(REGISTER).len();
        if change_itself {
            let changed = agent.update_capabilities(vec![Capability::new("more")]).await;
            assert!(changed.unwrap_err().is_superseded());
        } else {
            // A changed interval is an update as well, which the loop sends.
            agent.start_heartbeat(INTERVAL / 2).unwrap();
            agent.watch().wait_for(AgentState::is_superseded).await.unwrap();
        }
        assert!(agent.state().is_superseded());
        assert_eq!(server.times(REGISTER).len(), registrations);
    }
}

#[tokio::test(start_paused = true)]
async fn heartbeats_go_to_another_registry_while_the_first_fails() {
    let away = Arc::new(AtomicBool::new(false));
    let is_away = away.clone();
    let script = move |_: &str, _| if is_away.load(Ordering::SeqCst) { Reply::Hang } else { ACK };
    let (first, second) = (Server::start(script).await, Server::start(|_, _| ACK).await);
    let client = RegistryClient::new(format!("{}, {}", first.url(), second.url())).unwrap();
    let registration = Registration::new("a", "Agent", "http://agent:8000").heartbeat_interval(INTERVAL);
    let agent = Agent::new(client, registration);
    agent.register().await.unwrap();
    agent.start_heartbeat(INTERVAL).unwrap();
    until("the first is used", || first.times(HEARTBEAT).len() == 3).await;
    assert!(second.arrived().is_empty());
    away.store(true, Ordering::SeqCst);
    until("the second is used", || !second.arrived().is_empty()).await;
    away.store(false, Ordering::SeqCst);
    let before = first.times(HEARTBEAT).len();
    until("the first is used again", || first.times(HEARTBEAT).len() > before).await;
    // Each heartbeat went to one of them: together they received one per interval, except for the one that failed.
    let mut all = [first.times(HEARTBEAT), second.times(HEARTBEAT)].concat();
    all.sort();
    let close = all.windows(2).filter(|pair| pair[1] - pair[0] < INTERVAL / 2).count();
    assert!(close <= 2, "{close} heartbeats too many");
}
