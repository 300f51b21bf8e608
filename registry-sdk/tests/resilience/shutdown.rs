//! A shutdown is final: after it has returned, nothing is sent, whatever the agent was doing.

use std::time::Duration;

use registry_sdk::contract::{AgentStatus, Capability, Registration};
use registry_sdk::testing::MockRegistry;
use registry_sdk::{Agent, AgentState, Error, RetryPolicy};
use tokio::time::{Instant, sleep, timeout};

const INTERVAL: Duration = Duration::from_secs(10);

fn agent(registry: &MockRegistry) -> Agent {
    let registration = Registration::new("a", "Agent", "http://agent:8000").heartbeat_interval(INTERVAL);
    let patient = RetryPolicy::registration().attempts(50);
    Agent::new(registry.client().with_retry(patient), registration)
}

/// Fails if anything is sent within a long time.
async fn is_silent(registry: &MockRegistry) {
    let sent = registry.request_log().0.len();
    sleep(1_000 * INTERVAL).await;
    let seen = registry.request_log();
    assert_eq!(seen.0.len(), sent, "sent after the shutdown: {:?}", seen.0.last());
}

#[tokio::test(start_paused = true)]
async fn call_that_is_being_retried_ends_with_the_shutdown() {
    let registry = MockRegistry::start().await;
    for _ in 0..20 {
        let agent = agent(&registry);
        agent.register().await.unwrap();
        agent.start_heartbeat(INTERVAL).unwrap();
        registry.fail_next(1_000, 503);
        let calls = ["register", "capabilities", "status"].map(|call| {
            let agent = agent.clone();
            tokio::spawn(async move {
                match call {
                    "register" => agent.register().await.map(|_| ()),
                    "capabilities" => {
                        agent.update_capabilities(vec![Capability::new("more")]).await.map(|_| ())
                    }
                    _ => agent.update_status(AgentStatus::Busy).await,
                }
            })
        });
        sleep(Duration::from_millis(fastrand::u64(1..20_000))).await;
        registry.heal();
        agent.shutdown().await;
        let sent = registry.request_log().0.len();
        assert_eq!(registry.agent("a").unwrap().status, AgentStatus::Offline);
        for call in calls {
            // The request may have succeeded after the registry had recovered.
            let outcome = call.await.unwrap();
            assert!(matches!(outcome, Ok(()) | Err(Error::ShutDown)), "{outcome:?}");
        }
        assert_eq!(registry.request_log().0.len(), sent, "sent by a call after the shutdown");
        is_silent(&registry).await;
        assert_eq!(registry.agent("a").unwrap().status, AgentStatus::Offline);
    }
}

#[tokio::test(start_paused = true)]
async fn concurrent_shutdowns_return_only_once_the_agent_is_offline() {
    let registry = MockRegistry::start().await;
    let agent = agent(&registry);
    agent.register().await.unwrap();
    agent.start_heartbeat(INTERVAL).unwrap();
    registry.delay(Duration::from_secs(1));
    let first = tokio::spawn({
        let agent = agent.clone();
        async move { agent.shutdown().await }
    });
    // The first shutdown has begun, and waits for the registry.
    tokio::task::yield_now().await;
    let began = Instant::now();
    agent.shutdown().await;
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!(registry.agent("a").unwrap().status, AgentStatus::Offline);
    assert!(matches!(agent.state(), AgentState::Stopped));
    first.await.unwrap();
    is_silent(&registry).await;
}

#[tokio::test(start_paused = true)]
async fn cancelled_shutdown_continues_and_can_be_awaited_again() {
    let registry = MockRegistry::start().await;
    for is_waited_for_again in [true, false] {
        let agent = agent(&registry);
        agent.register().await.unwrap();
        agent.start_heartbeat(INTERVAL).unwrap();
        // The shutdown waits for this heartbeat before it sets offline.
        let beats = registry.heartbeats("a");
        registry.hang(1);
        registry.wait_until(|seen| seen.heartbeats("a") > beats).await;
        assert!(timeout(Duration::from_millis(500), agent.shutdown()).await.is_err());
        assert_eq!(registry.agent("a").unwrap().status, AgentStatus::Active);
        if is_waited_for_again {
            agent.shutdown().await;
        } else {
            agent.watch().wait_for(|state| matches!(state, AgentState::Stopped)).await.unwrap();
        }
        assert_eq!(registry.agent("a").unwrap().status, AgentStatus::Offline);
        is_silent(&registry).await;
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_restarts_during_or_after_a_shutdown() {
    let registry = MockRegistry::start().await;
    for _ in 0..50 {
        let agent = agent(&registry);
        agent.register().await.unwrap();
        let racing = tokio::spawn({
            let agent = agent.clone();
            async move {
                for _ in 0..10 {
                    let _ = agent.start_heartbeat(Duration::from_millis(1));
                    sleep(Duration::from_millis(fastrand::u64(..3))).await;
                }
            }
        });
        sleep(Duration::from_millis(fastrand::u64(..10))).await;
        agent.shutdown().await;
        is_silent(&registry).await;
        racing.await.unwrap();
        assert!(matches!(agent.start_heartbeat(INTERVAL), Err(Error::ShutDown)));
        assert!(matches!(agent.register().await, Err(Error::ShutDown)));
        assert!(matches!(agent.register_with_retry().await, Err(Error::ShutDown)));
        assert!(matches!(agent.update_status(AgentStatus::Busy).await, Err(Error::ShutDown)));
        assert!(matches!(agent.update_capabilities(Vec::new()).await, Err(Error::ShutDown)));
        agent.stop_heartbeat().await;
        is_silent(&registry).await;
        assert_eq!(registry.agent("a").unwrap().status, AgentStatus::Offline);
    }
}

#[tokio::test(start_paused = true)]
async fn requests_that_arrive_after_the_shutdown_change_nothing() {
    let registry = MockRegistry::start().await;
    let late = Duration::from_secs(30);
    for number in 0..3 {
        let agent = agent(&registry);
        agent.register().await.unwrap();
        // A request that is delayed for longer than its process lived looks like one of a later process with the same name.
        sleep(2 * late).await;
        // Held back in flight, and delivered when the agent is gone.
        registry.deliver_late(1, late);
        let _ = timeout(Duration::from_millis(500), async {
            match number {
                0 => drop(agent.register().await),
                1 => drop(agent.update_status(AgentStatus::Busy).await),
                _ => {
                    agent.start_heartbeat(Duration::from_millis(100)).unwrap();
                    std::future::pending::<()>().await;
                }
            }
        })
        .await;
        agent.shutdown().await;
        let arrived = registry.request_log().0.len();
        registry.wait_until(|seen| seen.0.len() > arrived).await;
        assert_eq!(registry.request_log().0.last().unwrap().status, Some(409));
        assert_eq!(registry.agent("a").unwrap().status, AgentStatus::Offline);
    }
}

#[tokio::test(start_paused = true)]
async fn shutdown_keeps_its_limit_although_another_has_a_longer_one() {
    let registry = MockRegistry::start().await;
    let agent = agent(&registry);
    agent.register().await.unwrap();
    agent.start_heartbeat(INTERVAL).unwrap();
    registry.hang(1_000);
    registry.wait_until(|seen| seen.heartbeats("a") >= 1).await;
    let began = Instant::now();
    let long = tokio::spawn({
        let agent = agent.clone();
        async move { agent.shutdown_within(Duration::from_secs(60)).await }
    });
    sleep(Duration::from_millis(100)).await;
    agent.shutdown_within(Duration::from_secs(1)).await;
    assert!(began.elapsed() <= Duration::from_millis(1_200), "{:?}", began.elapsed());
    long.await.unwrap();
    assert!(began.elapsed() <= Duration::from_millis(1_200), "{:?}", began.elapsed());
    is_silent(&registry).await;
}

#[tokio::test(start_paused = true)]
async fn request_in_flight_gets_half_of_the_time_and_offline_the_other_half() {
    let registry = MockRegistry::start().await;
    let agent = agent(&registry);
    agent.register().await.unwrap();
    agent.start_heartbeat(INTERVAL).unwrap();
    registry.hang(1);
    registry.wait_until(|seen| seen.heartbeats("a") >= 1).await;
    let began = Instant::now();
    agent.shutdown_within(Duration::from_secs(2)).await;
    assert_eq!(began.elapsed().as_secs(), 1, "{:?}", began.elapsed());
    assert_eq!(registry.agent("a").unwrap().status, AgentStatus::Offline);
}

#[tokio::test(start_paused = true)]
async fn unregistered_agent_sends_nothing_at_shutdown() {
    let registry = MockRegistry::start().await;
    let unused = agent(&registry);
    unused.shutdown().await;
    assert!(matches!(unused.state(), AgentState::Stopped));
    assert!(registry.request_log().0.is_empty());
    // An agent whose registration may have arrived sends it, whatever the response was.
    let unsure = agent(&registry);
    registry.truncated_body(1);
    let _ = timeout(Duration::from_millis(1), unsure.register()).await;
    unsure.shutdown().await;
    assert_eq!(registry.agent("a").unwrap().status, AgentStatus::Offline);
}

#[tokio::test(start_paused = true)]
async fn superseded_process_shuts_down_without_touching_its_successor() {
    let registry = MockRegistry::start().await;
    let old = agent(&registry);
    old.register().await.unwrap();
    old.start_heartbeat(INTERVAL).unwrap();
    sleep(Duration::from_millis(5)).await;
    let new = agent(&registry);
    new.register().await.unwrap();
    old.watch().wait_for(AgentState::is_superseded).await.unwrap();
    let before = registry.agent("a").unwrap();
    old.shutdown().await;
    let after = registry.agent("a").unwrap();
    assert_eq!((after.status, after.last_heartbeat), (AgentStatus::Active, before.last_heartbeat));
}

/// Both are gone, and a registration of the process that did not own the id arrives.
#[tokio::test(start_paused = true)]
async fn late_request_of_a_superseded_process_does_not_bring_the_agent_back() {
    let registry = MockRegistry::start().await;
    let old = agent(&registry);
    old.register().await.unwrap();
    old.start_heartbeat(INTERVAL).unwrap();
    sleep(Duration::from_secs(100)).await;
    let new = agent(&registry);
    new.register().await.unwrap();
    old.watch().wait_for(AgentState::is_superseded).await.unwrap();
    registry.deliver_late(1, Duration::from_secs(30));
    let _ = timeout(Duration::from_millis(500), old.register()).await;
    old.shutdown().await;
    new.shutdown().await;
    let arrived = registry.request_log().0.len();
    registry.wait_until(|seen| seen.0.len() > arrived).await;
    assert_eq!(registry.request_log().0.last().unwrap().status, Some(409));
    assert_eq!(registry.agent("a").unwrap().status, AgentStatus::Offline);
}

/// As in a test or service that creates a runtime for each of its parts.
#[test]
fn shutdown_in_another_runtime_sets_offline() {
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (of_registry, first) = (runtime(), runtime());
    let registry = of_registry.block_on(MockRegistry::start());
    let agent = agent(&registry);
    first.block_on(async {
        agent.register().await.unwrap();
        agent.start_heartbeat(INTERVAL).unwrap();
    });
    let second = runtime();
    registry.hang(1);
    // A caller in another runtime waits when the runtime of the loop ends.
    let waiting = second.spawn({
        let agent = agent.clone();
        async move { agent.register().await }
    });
    second.block_on(registry.wait_until(|seen| seen.registrations("a") == 2));
    first.shutdown_background();
    assert!(second.block_on(waiting).unwrap().is_err(), "it is not left waiting");
    assert!(agent.state().is_degraded(), "{:?}", agent.state());
    // The clock is not paused here, but nothing depends on its pace.
    second.block_on(agent.shutdown_within(Duration::from_secs(300)));
    assert_eq!(registry.agent("a").unwrap().status, AgentStatus::Offline);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_after_stop_heartbeat_without_a_call() {
    let registry = MockRegistry::start().await;
    for _ in 0..20 {
        let agent = agent(&registry);
        agent.start_heartbeat(Duration::from_millis(200)).unwrap();
        registry.delay(Duration::from_millis(50));
        sleep(Duration::from_millis(fastrand::u64(..2_000))).await;
        agent.stop_heartbeat().await;
        is_silent(&registry).await;
        agent.shutdown().await;
    }
}
