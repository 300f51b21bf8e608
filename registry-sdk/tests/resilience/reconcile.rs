//! The registry's state becomes the agent's desired state, one request at a time, despite lost responses and restored
//! registries.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use registry_sdk::contract::{AgentStatus, Registration};
use registry_sdk::testing::MockRegistry;
use registry_sdk::{Agent, AgentState, Error, RegistryClient, RetryPolicy};
use tokio::time::{Instant, sleep, timeout};

use crate::logs::Logs;
use crate::support::{ACK, HEARTBEAT, PROBLEM, REGISTER, Reply, Server, agent_of, can, until};

const INTERVAL: Duration = Duration::from_secs(30);

fn agent(client: RegistryClient) -> Agent {
    agent_of(client, INTERVAL)
}

#[tokio::test(start_paused = true)]
async fn older_registration_that_arrives_after_a_newer_one_is_replaced() {
    let registry = MockRegistry::start().await;
    let agent = agent(registry.client().with_retry(RetryPolicy::registration()));
    agent.register().await.unwrap();
    agent.start_heartbeat(INTERVAL).unwrap();
    // The first one is held back in flight; its second attempt, and the next change, overtake it.
    registry.deliver_late(1, Duration::from_secs(20));
    agent.update_capabilities(can(&["older"])).await.unwrap();
    agent.update_capabilities(can(&["newer"])).await.unwrap();
    let late = Instant::now() + Duration::from_secs(21);
    tokio::time::sleep_until(late).await;
    registry.wait_until(|_| true).await;
    let arrived_late = registry.agent("a").unwrap().capabilities;
    timeout(2 * INTERVAL, async {
        while registry.agent("a").unwrap().capabilities != can(&["newer"]) {
            sleep(Duration::from_millis(100)).await;
        }
    })
    .await
    .unwrap();
    assert_eq!(arrived_late, can(&["older"]), "it did arrive late");
}

#[tokio::test(start_paused = true)]
async fn restored_registry_gets_the_latest_registration() {
    let registry = MockRegistry::start().await;
    let logs = Logs::record();
    let agent = agent(registry.client());
    agent.update_capabilities(can(&["old"])).await.unwrap();
    agent.start_heartbeat(INTERVAL).unwrap();
    let backup = registry.backup();
    agent.update_capabilities(can(&["old", "new"])).await.unwrap();
    sleep(2 * INTERVAL).await;
    registry.restore(&backup);
    let (beats, registrations) = (registry.heartbeats("a"), registry.request_log().registrations("a"));
    registry.wait_until(|seen| seen.heartbeats("a") > beats).await;
    let heard = Instant::now();
    registry.wait_until(|seen| seen.registrations("a") > registrations).await;
    assert!(heard.elapsed() <= INTERVAL / 10, "{:?}", heard.elapsed());
    assert_eq!(registry.agent("a").unwrap().capabilities, can(&["old", "new"]));
    assert_eq!(logs.with("the registry has another registration of this agent").len(), 1);
    // Once is enough.
    agent.watch().wait_for(AgentState::is_registered).await.unwrap();
    sleep(10 * INTERVAL).await;
    assert_eq!(registry.request_log().registrations("a"), registrations + 1);
}

#[tokio::test(start_paused = true)]
async fn agents_of_a_restored_registry_do_not_all_register_at_the_same_moment() {
    let registry = MockRegistry::start().await;
    let agents: Vec<_> = (0..60)
        .map(|number| {
            let id = format!("agent-{number}");
            Agent::new(registry.client(), Registration::new(&id, &id, "http://agent:8000"))
        })
        .collect();
    for agent in &agents {
        agent.register().await.unwrap();
    }
    let backup = registry.backup();
    for agent in &agents {
        agent.update_capabilities(can(&["new"])).await.unwrap();
        agent.start_heartbeat(INTERVAL).unwrap();
    }
    sleep(2 * INTERVAL).await;
    registry.restore(&backup);
    let arrival = |one: &registry_sdk::testing::ReceivedRequest, path: String, after: Instant| {
        (one.path == path && one.at >= after).then_some(one.at)
    };
    let restored = Instant::now();
    sleep(2 * INTERVAL).await;
    let seen = registry.request_log();
    let pauses: Vec<Duration> = agents
        .iter()
        .map(|agent| {
            let path = format!("/agents/{}/heartbeat", agent.agent_id());
            let beat = seen.0.iter().find_map(|one| arrival(one, path.clone(), restored)).unwrap();
            let own = |one: &&registry_sdk::testing::ReceivedRequest| {
                one.body.contains(&format!("\"{}\"", agent.agent_id()))
            };
            let again = seen.0.iter().filter(own).find_map(|one| arrival(one, "/register".to_owned(), beat));
            again.unwrap() - beat
        })
        .collect();
    assert!(pauses.iter().all(|pause| *pause <= INTERVAL / 10 + Duration::from_millis(50)), "{pauses:?}");
    assert!(pauses.iter().filter(|pause| **pause < INTERVAL / 20).count() >= 10, "{pauses:?}");
    assert!(pauses.iter().filter(|pause| **pause > INTERVAL / 20).count() >= 10, "{pauses:?}");
}

#[tokio::test(start_paused = true)]
async fn registration_is_not_repeated_after_an_outage_if_its_tag_is_unchanged() {
    let registry = MockRegistry::start().await;
    let agent = agent(registry.client());
    agent.register().await.unwrap();
    agent.start_heartbeat(INTERVAL).unwrap();
    registry.outage(3 * INTERVAL);
    let mut state = agent.watch();
    state.wait_for(AgentState::is_degraded).await.unwrap();
    state.wait_for(AgentState::is_registered).await.unwrap();
    sleep(5 * INTERVAL).await;
    assert_eq!(registry.request_log().registrations("a"), 1);
}

#[tokio::test(start_paused = true)]
async fn two_writes_are_never_in_flight_at_once() {
    let registry = MockRegistry::start().await;
    let (under_way, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (now, peak) = (under_way.clone(), most.clone());
    // Counts the requests in flight to the registry.
    let front = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", front.local_addr().unwrap());
    let behind = registry.url().trim_start_matches("http://").to_owned();
    tokio::spawn(async move {
        while let Ok((client, _)) = front.accept().await {
            let (behind, now, peak) = (behind.clone(), now.clone(), peak.clone());
            tokio::spawn(count(client, behind, now, peak));
        }
    });
    registry.delay(Duration::from_millis(300));
    let agent = agent(RegistryClient::new(url).unwrap());
    agent.start_heartbeat(Duration::from_secs(2)).unwrap();
    let calls = (0..30).map(|number| {
        let agent = agent.clone();
        tokio::spawn(async move {
            sleep(Duration::from_millis(fastrand::u64(..15_000))).await;
            match number % 3 {
                0 => drop(agent.register().await),
                1 => drop(agent.update_capabilities(can(&[&format!("c{number}")])).await),
                _ => drop(agent.update_status(AgentStatus::Busy).await),
            }
        })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap();
    }
    agent.shutdown().await;
    assert!(registry.request_log().0.len() >= 20);
    assert_eq!(most.load(Ordering::SeqCst), 1);
}

/// Forwards a connection and counts the unanswered requests, each of which is one small write.
async fn count(
    mut client: tokio::net::TcpStream,
    behind: String,
    under_way: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut server = tokio::net::TcpStream::connect(behind).await.unwrap();
    let (mut asked, mut answered) = ([0; 16_384], [0; 16_384]);
    let mut is_open = false;
    loop {
        tokio::select! {
            read = client.read(&mut asked) => {
                let Ok(count @ 1..) = read else { break };
                if !std::mem::replace(&mut is_open, true) {
                    most.fetch_max(under_way.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                }
                server.write_all(&asked[..count]).await.unwrap();
            }
            read = server.read(&mut answered) => {
                let Ok(count @ 1..) = read else { break };
                if std::mem::replace(&mut is_open, false) {
                    under_way.fetch_sub(1, Ordering::SeqCst);
                }
                client.write_all(&answered[..count]).await.unwrap();
            }
        }
    }
    under_way.fetch_sub(usize::from(is_open), Ordering::SeqCst);
}

#[tokio::test(start_paused = true)]
async fn change_that_the_registry_refuses_does_not_stop_the_heartbeats() {
    let registry = MockRegistry::start().await;
    let logs = Logs::record();
    let server = Server::start(|what: &str, number| match what {
        REGISTER if number > 0 => Reply::Answer(422, PROBLEM, r#"{"detail":"too many"}"#),
        _ => Reply::Answer(200, "", r#"{"agent_id":"a","status":"active","registration_tag":"1"}"#),
    })
    .await;
    drop(registry);
    let agent = agent(RegistryClient::new(server.url()).unwrap());
    agent.register().await.unwrap();
    agent.start_heartbeat(INTERVAL).unwrap();
    let error = agent.update_capabilities(can(&["more"])).await.unwrap_err();
    assert!(error.is_refused(), "{error}");
    let (began, refused) = (Instant::now(), server.times(REGISTER).len());
    sleep(20 * INTERVAL).await;
    assert!(server.times(HEARTBEAT).len() >= 19, "{}", server.times(HEARTBEAT).len());
    let tried: Vec<_> = server.times(REGISTER)[refused..].iter().map(|at| *at - began).collect();
    // Once they have grown, delays are half of the interval on average.
    assert!((20..=80).contains(&tried.len()), "with delays up to the interval: {tried:?}");
    assert!(agent.state().is_registered());
    assert_eq!(logs.with("did not take a changed registration").len(), 1);
}

/// Whatever prevents the agent from registering again: the registry knows it, and receives its heartbeats.
#[tokio::test(start_paused = true)]
async fn heartbeats_continue_while_registering_again_fails() {
    // The registry was restored, or it responds after a failure and has no tags.
    for (first, later) in [(r#"{"registration_tag":"1"}"#, r#"{"registration_tag":"2"}"#), ("{}", "{}")] {
        let server = Server::start(move |what: &str, number| match what {
            REGISTER if number > 0 => Reply::Answer(503, "", ""),
            HEARTBEAT if number == 2 => Reply::Answer(503, "", ""),
            HEARTBEAT if number > 2 => Reply::Answer(200, "", later),
            _ => Reply::Answer(200, "", first),
        })
        .await;
        let agent = agent(RegistryClient::new(server.url()).unwrap());
        agent.start_heartbeat(INTERVAL).unwrap();
        sleep(30 * INTERVAL).await;
        let times = server.times(HEARTBEAT);
        let longest = times.windows(2).map(|two| two[1] - two[0]).max().unwrap();
        assert!(longest <= INTERVAL + Duration::from_secs(1), "{longest:?}");
        let tried = server.times(REGISTER).len();
        assert!((15..=120).contains(&tried), "{tried} registrations in thirty intervals");
    }
}

/// The registry still expects the shorter interval, and would mark the agent offline.
#[tokio::test(start_paused = true)]
async fn longer_interval_applies_once_the_registry_has_acknowledged_it() {
    let registry = MockRegistry::builder().heartbeat_timeout(Duration::from_secs(1)).start().await;
    let agent = agent(registry.client());
    agent.start_heartbeat(Duration::from_secs(5)).unwrap();
    registry.wait_until(|seen| seen.heartbeats("a") == 2).await;
    registry.fail_next(3, 503);
    agent.start_heartbeat(Duration::from_secs(3_600)).unwrap();
    let until = Instant::now() + Duration::from_secs(600);
    while Instant::now() < until {
        sleep(Duration::from_millis(500)).await;
        assert_eq!(registry.agent("a").unwrap().status, AgentStatus::Active);
    }
    assert_eq!(registry.agent("a").unwrap().heartbeat_interval, Some(Duration::from_secs(3_600)));
    let beats = registry.heartbeats("a");
    sleep(Duration::from_secs(3_000)).await;
    assert!(registry.heartbeats("a") <= beats + 1, "an hour is an hour then");
}

/// As long as no heartbeat is missed. The registry may or may not say how long that is. A registry that knows no ages gets a
/// heartbeat first. If that fails, so does the call, within its own time.
#[tokio::test(start_paused = true)]
async fn change_is_sent_at_once_and_not_with_the_next_heartbeat() {
    let registry = MockRegistry::start().await;
    let agent = agent(registry.client());
    agent.register().await.unwrap();
    agent.start_heartbeat(INTERVAL).unwrap();
    sleep(2 * INTERVAL).await;
    // The call fails. The loop sends the change without waiting for the next heartbeat.
    registry.fail_next(1, 503);
    assert!(agent.update_capabilities(can(&["new"])).await.is_err());
    let failed = Instant::now();
    let sent = registry.request_log().registrations("a");
    registry.wait_until(|seen| seen.registrations("a") > sent).await;
    // The registry asked for a delay of a second.
    assert!(failed.elapsed() <= INTERVAL / 10 + Duration::from_millis(1_050), "{:?}", failed.elapsed());
    // A changed interval is an update, too.
    let (declared, sent) = (Instant::now(), registry.request_log().registrations("a"));
    agent.start_heartbeat(INTERVAL / 2).unwrap();
    registry.wait_until(|seen| seen.registrations("a") > sent).await;
    assert!(declared.elapsed() <= Duration::from_millis(50), "{:?}", declared.elapsed());
}

#[tokio::test(start_paused = true)]
async fn heartbeats_are_sent_as_often_as_the_registry_expects() {
    let ack = r#"{"heartbeat_timeout_seconds":10}"#;
    let server = Server::start(move |what, number| match what {
        REGISTER if number > 0 => Reply::Answer(503, "", ""),
        _ => Reply::Answer(200, "", ack),
    })
    .await;
    let agent = agent(RegistryClient::new(server.url()).unwrap());
    agent.start_heartbeat(Duration::from_secs(5)).unwrap();
    until("it beats", || server.times(HEARTBEAT).len() == 2).await;
    agent.start_heartbeat(Duration::from_secs(3_600)).unwrap();
    sleep(Duration::from_secs(600)).await;
    let times = server.times(HEARTBEAT);
    let longest = times.windows(2).map(|two| two[1] - two[0]).max().unwrap();
    assert!(times.len() > 100 && longest < Duration::from_millis(5_500), "{longest:?}");
}

#[tokio::test(start_paused = true)]
async fn changed_interval_does_not_trigger_a_heartbeat() {
    let registry = MockRegistry::start().await;
    let agent = agent(registry.client());
    agent.register().await.unwrap();
    for number in 0..20_u32 {
        agent.start_heartbeat(INTERVAL * (1 + number % 2)).unwrap();
        sleep(Duration::from_millis(10)).await;
    }
    assert!(registry.heartbeats("a") <= 2, "{}", registry.heartbeats("a"));
    // But no later than before.
    registry.wait_until(|seen| seen.heartbeats("a") >= 3).await;
}

#[tokio::test(start_paused = true)]
async fn change_during_an_outage_waits_for_a_successful_heartbeat() {
    let registry = MockRegistry::start().await;
    let agent = agent(registry.client());
    agent.register().await.unwrap();
    agent.start_heartbeat(INTERVAL).unwrap();
    registry.outage(10 * INTERVAL);
    agent.watch().wait_for(AgentState::is_degraded).await.unwrap();
    assert!(agent.update_capabilities(can(&["new"])).await.is_err());
    let sent = registry.request_log().registrations("a");
    agent.watch().wait_for(AgentState::is_registered).await.unwrap();
    let back = Instant::now();
    assert_eq!(registry.request_log().registrations("a"), sent, "heartbeats find out");
    registry.wait_until(|seen| seen.registrations("a") > sent).await;
    assert!(back.elapsed() <= Duration::from_millis(50), "{:?}", back.elapsed());
    assert_eq!(registry.agent("a").unwrap().capabilities, can(&["new"]));
}

#[tokio::test(start_paused = true)]
async fn blocked_runtime_is_logged_and_visible_in_the_state() {
    let registry = MockRegistry::builder().heartbeat_timeout(Duration::from_secs(3)).start().await;
    let logs = Logs::record();
    let second = Duration::from_secs(1);
    let agent = agent(registry.client());
    agent.start_heartbeat(second).unwrap();
    registry.wait_until(|seen| seen.heartbeats("a") == 5).await;
    let AgentState::Registered { since, .. } = agent.state() else { panic!("{:?}", agent.state()) };
    assert!(logs.with("a heartbeat is late").is_empty());
    let mut state = agent.watch();
    let degraded =
        tokio::spawn(async move { state.wait_for(AgentState::is_degraded).await.unwrap().clone() });
    tokio::task::yield_now().await;
    // The clock continues, but nothing runs.
    tokio::time::advance(Duration::from_secs(10)).await;
    let seen = degraded.await.unwrap();
    let AgentState::Degraded { last_error, .. } = seen else { panic!("{seen:?}") };
    assert!(matches!(*last_error, Error::Stalled { silent } if silent >= Duration::from_secs(10)));
    agent.watch().wait_for(AgentState::is_registered).await.unwrap();
    let AgentState::Registered { since: again, .. } = agent.state() else { panic!("{:?}", agent.state()) };
    assert!(again > since, "it was not so without a break");
    let lines = logs.with("a heartbeat is late: the runtime was blocked, or the process suspended");
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("WARN") && lines[0].contains("late=9"), "{lines:?}");
}

#[tokio::test(start_paused = true)]
async fn slightly_late_heartbeat_causes_no_warning() {
    let registry = MockRegistry::start().await;
    let logs = Logs::record();
    let agent = agent(registry.client());
    agent.start_heartbeat(INTERVAL).unwrap();
    for (late, warnings) in [(0.45, 0), (0.6, 1)] {
        let beats = registry.heartbeats("a");
        registry.wait_until(|seen| seen.heartbeats("a") > beats).await;
        sleep(INTERVAL.saturating_sub(Duration::from_millis(10))).await;
        tokio::time::advance(INTERVAL.mul_f64(late)).await;
        sleep(Duration::from_millis(100)).await;
        assert_eq!(logs.with("a heartbeat is late").len(), warnings, "{late} of an interval");
        assert!(agent.state().is_registered(), "its deadline has not passed");
    }
}

/// As after a panic of a token provider: no caller waits in vain, and the loop does not end.
#[tokio::test(start_paused = true)]
async fn agents_started_only_by_heartbeats_register_at_different_times() {
    let server = Server::start(|_, _| ACK).await;
    let began = Instant::now();
    let agents: Vec<_> = (0..60).map(|_| agent(RegistryClient::new(server.url()).unwrap())).collect();
    for agent in &agents {
        agent.start_heartbeat(INTERVAL).unwrap();
    }
    until("all have beaten", || server.times(HEARTBEAT).len() >= agents.len()).await;
    let early = server.times(HEARTBEAT).iter().filter(|at| **at - began < INTERVAL / 2).count();
    assert!((10..=50).contains(&early), "{early} of 60 in the first half");
}
