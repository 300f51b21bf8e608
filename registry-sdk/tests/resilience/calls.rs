//! The calls of an agent: how long they take, how often they are tried, and what remains if they are cancelled.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use registry_sdk::contract::AgentStatus;
use registry_sdk::testing::MockRegistry;
use registry_sdk::{Agent, AgentState, Error, RegistryClient, RetryPolicy};
use tokio::time::{Instant, sleep, timeout};

use crate::logs::Logs;
use crate::support::{ACK, HEARTBEAT, REGISTER, Reply, Server, agent_of, can, until};

const INTERVAL: Duration = Duration::from_secs(30);

fn agent(client: RegistryClient) -> Agent {
    agent_of(client, INTERVAL)
}

#[tokio::test(start_paused = true)]
async fn call_that_hangs_does_not_make_the_agent_miss_its_deadline() {
    let registry = MockRegistry::builder().heartbeat_timeout(Duration::from_secs(3)).start().await;
    let agent = agent(registry.client().with_retry(RetryPolicy::registration().attempts(20)));
    agent.start_heartbeat(Duration::from_secs(1)).unwrap();
    registry.wait_until(|seen| seen.heartbeats("a") == 2).await;
    for _ in 0..20 {
        registry.hang(1);
        let call = tokio::spawn({
            let agent = agent.clone();
            async move { agent.update_status(AgentStatus::Busy).await }
        });
        while !call.is_finished() {
            sleep(Duration::from_millis(50)).await;
            assert_ne!(registry.agent("a").unwrap().status, AgentStatus::Offline);
        }
        call.await.unwrap().unwrap();
        sleep(Duration::from_millis(fastrand::u64(..1_000))).await;
    }
}

#[tokio::test(start_paused = true)]
async fn call_may_take_longer_than_a_heartbeat() {
    for body in ["{}", r#"{"heartbeat_timeout_seconds":60}"#] {
        let server = Server::start(move |what, number| match what {
            HEARTBEAT => Reply::Answer(200, "", body),
            _ if number == 0 => Reply::Answer(200, "", body),
            _ => Reply::Late(Duration::from_secs(9), body),
        })
        .await;
        let client = RegistryClient::builder(server.url()).timeout(Duration::from_secs(10));
        let agent = agent(client.retry(RetryPolicy::none()).build().unwrap());
        agent.start_heartbeat(INTERVAL).unwrap();
        until("it beats", || server.times(HEARTBEAT).len() == 2).await;
        agent.update_status(AgentStatus::Busy).await.unwrap();
        agent.update_capabilities(can(&["more"])).await.unwrap();
        let times = server.times(HEARTBEAT);
        assert!(times.windows(2).all(|two| two[1] - two[0] <= INTERVAL + Duration::from_secs(10)));
    }
}

#[tokio::test(start_paused = true)]
async fn call_fails_with_the_heartbeat_that_it_has_to_wait_for() {
    let server = Server::start(|what, _| match what {
        HEARTBEAT => Reply::Answer(503, "", ""),
        _ => ACK,
    })
    .await;
    let policy = RetryPolicy::registration().attempts(3);
    let agent = agent(RegistryClient::builder(server.url()).retry(policy).build().unwrap());
    agent.register().await.unwrap();
    let error = timeout(Duration::from_secs(60), agent.update_capabilities(can(&["more"]))).await.unwrap();
    assert!(matches!(error, Err(Error::Unavailable { status: 503, .. })), "{error:?}");
    assert_eq!((server.times(HEARTBEAT).len(), server.times(REGISTER).len()), (3, 1));
}

#[tokio::test(start_paused = true)]
async fn longest_durations_mean_for_ever() {
    let registry = MockRegistry::start().await;
    let client = RegistryClient::builder(registry.url()).timeout(Duration::MAX);
    let policy = RetryPolicy::registration().time_limit(Duration::MAX).max_delay(Duration::MAX);
    let agent = agent(client.retry(policy).build().unwrap());
    agent.start_heartbeat(INTERVAL).unwrap();
    agent.register_with_retry().await.unwrap();
    agent.register().await.unwrap();
    registry.wait_until(|seen| seen.heartbeats("a") == 3).await;
    agent.shutdown_within(Duration::MAX).await;
    assert_eq!(registry.agent("a").unwrap().status, AgentStatus::Offline);
    for interval in [Duration::ZERO, Duration::from_nanos(999_999), Duration::from_secs(86_401)] {
        let refused = self::agent(registry.client()).start_heartbeat(interval);
        assert!(matches!(refused, Err(Error::Config(_))), "{interval:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn status_is_set_by_registering_if_the_registry_forgot_the_agent() {
    let registry = MockRegistry::start().await;
    let agent = agent(registry.client());
    agent.register().await.unwrap();
    registry.forget_agents();
    agent.update_status(AgentStatus::Busy).await.unwrap();
    assert_eq!(registry.agent("a").unwrap().status, AgentStatus::Busy);
    // That does not register an agent that never registered.
    let unknown = self::agent(registry.client());
    registry.forget_agents();
    assert!(unknown.update_status(AgentStatus::Busy).await.unwrap_err().is_not_found());
    assert!(registry.agent("a").is_none());
}

#[tokio::test(start_paused = true)]
async fn change_of_a_caller_that_gave_up_is_kept() {
    let registry = MockRegistry::start().await;
    let agent = agent(registry.client().with_retry(RetryPolicy::registration().attempts(100)));
    agent.register().await.unwrap();
    registry.fail_next(1_000, 503);
    assert!(timeout(Duration::from_secs(3), agent.update_capabilities(can(&["new"]))).await.is_err());
    let sent = registry.request_log().0.len();
    sleep(100 * INTERVAL).await;
    assert!(registry.request_log().0.len() <= sent + 1, "nobody waits for it, and heartbeats are off");
    registry.heal();
    agent.start_heartbeat(INTERVAL).unwrap();
    registry.wait_until(|seen| seen.0.last().is_some_and(|one| one.body.contains("new"))).await;
}

#[tokio::test(start_paused = true)]
async fn call_is_tried_as_many_times_as_its_policy_says() {
    for attempts in [1, 2, 5] {
        let registry = MockRegistry::start().await;
        let policy = RetryPolicy::registration().attempts(attempts);
        let agent = agent(registry.client().with_retry(policy));
        registry.fail_next(1_000, 503);
        assert!(matches!(agent.register().await, Err(Error::Unavailable { status: 503, .. })));
        assert_eq!(registry.request_log().registrations("a"), attempts as usize);
        assert!(agent.update_status(AgentStatus::Busy).await.is_err());
        assert_eq!(registry.request_log().0.len(), 2 * attempts as usize);
    }
}

#[tokio::test(start_paused = true)]
async fn waiting_for_the_request_in_flight_does_not_use_up_a_calls_time() {
    let registry = MockRegistry::start().await;
    let agent = agent(registry.client().with_retry(RetryPolicy::none().time_limit(Duration::from_secs(2))));
    agent.register().await.unwrap();
    agent.start_heartbeat(INTERVAL).unwrap();
    registry.hang(1);
    registry.wait_until(|seen| seen.heartbeats("a") == 1).await;
    let began = Instant::now();
    agent.update_status(AgentStatus::Busy).await.unwrap();
    assert!(began.elapsed() >= Duration::from_secs(4), "the attempt under way: {:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn panic_does_not_stop_the_heartbeats() {
    let registry = MockRegistry::start().await;
    let logs = Logs::record();
    let asked = AtomicUsize::new(0);
    let client = RegistryClient::builder(registry.url())
        .token_provider(move || {
            assert_ne!(asked.fetch_add(1, Ordering::SeqCst), 3, "on purpose");
            "token".to_owned()
        })
        .build()
        .unwrap();
    let agent = agent(client);
    agent.start_heartbeat(INTERVAL).unwrap();
    registry.wait_until(|seen| seen.heartbeats("a") == 5).await;
    assert_eq!(logs.with("the token provider panicked").len(), 1);
    agent.shutdown().await;
    assert_eq!(registry.agent("a").unwrap().status, AgentStatus::Offline);
}

#[tokio::test(start_paused = true)]
async fn panic_is_a_failure_like_any_other() {
    let registry = MockRegistry::start().await;
    let client =
        RegistryClient::builder(registry.url()).token_provider(|| panic!("on purpose")).build().unwrap();
    let agent = agent(client);
    let outcome = timeout(Duration::from_secs(60), agent.register_with_retry()).await.unwrap();
    assert!(matches!(outcome, Err(Error::Config(_))), "{outcome:?}");
    assert!(agent.state().is_degraded());
    agent.start_heartbeat(INTERVAL).unwrap();
    let began = Instant::now();
    sleep(10 * INTERVAL).await;
    agent.shutdown().await;
    assert!(began.elapsed() < 11 * INTERVAL);
    assert!(matches!(agent.state(), AgentState::Stopped));
}
