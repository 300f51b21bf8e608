//! Several processes with one agent id: the youngest running process owns it.

use std::time::Duration;

use registry_sdk::contract::{AgentStatus, Capability, Heartbeat, Registration};
use registry_sdk::testing::{Fault, FaultProxy, MockRegistry};
use registry_sdk::{
    Agent, AgentState, Error, OnSuperseded, RegistrationOutcome, RegistryClient, RetryPolicy,
};
use tokio::time::{Instant, sleep, timeout};

use crate::logs::Logs;
use crate::support::{ACK, HEARTBEAT, PROBLEM, REGISTER, Reply, Server, until};

const INTERVAL: Duration = Duration::from_secs(10);
/// The registry's own timeout, which is longer than twice the interval.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Creates a process. The capability identifies it.
fn process(client: RegistryClient, name: &str) -> Agent {
    let registration = Registration::new("a", "Agent", format!("http://{name}:8000"))
        .capability(Capability::new(name))
        .heartbeat_interval(INTERVAL);
    Agent::new(client, registration)
}

/// A running process with heartbeats.
async fn started(registry: &MockRegistry, name: &str) -> Agent {
    started_to(OnSuperseded::StandBy, registry, name).await
}

async fn started_to(choice: OnSuperseded, registry: &MockRegistry, name: &str) -> Agent {
    let agent = process(registry.client(), name).on_superseded(choice);
    agent.register().await.unwrap();
    agent.start_heartbeat(INTERVAL).unwrap();
    // No two processes start in the same millisecond.
    sleep(Duration::from_millis(5)).await;
    agent
}

fn owner(registry: &MockRegistry) -> String {
    registry.agent("a").unwrap().capabilities[0].name.clone()
}

async fn superseded(agent: &Agent) {
    let mut state = agent.watch();
    timeout(2 * INTERVAL, state.wait_for(AgentState::is_superseded)).await.unwrap().unwrap();
}

/// An older process, which stands by, and the younger one, which owns the id.
async fn twins(registry: &MockRegistry) -> (Agent, Agent) {
    let (old, new) = (started(registry, "old").await, started(registry, "new").await);
    superseded(&old).await;
    (old, new)
}

/// Waits until the first stands by and the other is registered.
async fn settle(old: &Agent, new: &Agent) {
    let settled = async {
        while !(old.state().is_superseded() && new.state().is_registered()) {
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(3 * INTERVAL, settled).await.unwrap_or_else(|_| panic!("{:?} {:?}", old.state(), new.state()));
}

#[tokio::test(start_paused = true)]
async fn superseded_process_never_takes_the_id_back_from_a_running_owner() {
    let registry = MockRegistry::start().await;
    let (old, new) = twins(&registry).await;
    let AgentState::Superseded { owner: Some(by) } = old.state() else { panic!("{:?}", old.state()) };
    assert_eq!((by.instance_id.as_deref(), &*by.base_url), (Some(new.instance_id()), "http://new:8000"));
    for _ in 0..3 {
        for error in [
            old.register().await.map(|_| ()).unwrap_err(),
            old.update_capabilities(vec![Capability::new("old")]).await.map(|_| ()).unwrap_err(),
            old.update_status(AgentStatus::Busy).await.unwrap_err(),
        ] {
            let Error::Superseded { owner: Some(by), .. } = error else { panic!("{error}") };
            assert_eq!(by.instance_id.as_deref(), Some(new.instance_id()));
        }
        let outcome = old.register_with_retry().await.unwrap();
        assert!(matches!(outcome, RegistrationOutcome::Superseded(_)), "{outcome:?}");
        registry.fail_next(1, 503);
        assert!(matches!(old.register().await, Err(Error::Unavailable { .. })));
        assert!(old.state().is_superseded(), "{:?}", old.state());
        old.start_heartbeat(INTERVAL).unwrap();
        sleep(5 * INTERVAL).await;
        assert!(old.state().is_superseded() && new.state().is_registered());
        assert_eq!(
            (owner(&registry).as_str(), registry.agent("a").unwrap().status),
            ("new", AgentStatus::Active)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn process_that_does_not_know_yet_that_it_is_superseded_does_not_take_the_id_back() {
    let registry = MockRegistry::start().await;
    let proxy = FaultProxy::start(registry.url().trim_start_matches("http://")).await;
    let url = format!("http://{}", proxy.address());
    let old = process(RegistryClient::builder(url).retry(RetryPolicy::none()).build().unwrap(), "old");
    old.register().await.unwrap();
    old.start_heartbeat(INTERVAL).unwrap();
    sleep(Duration::from_millis(5)).await;
    proxy.set(Fault::Refuse);
    old.watch().wait_for(AgentState::is_degraded).await.unwrap();
    let _new = started(&registry, "new").await;
    proxy.set(Fault::None);
    assert!(old.state().is_degraded());
    let error = old.update_capabilities(vec![Capability::new("old")]).await.unwrap_err();
    assert!(error.is_superseded(), "{error}");
    assert!(old.state().is_superseded());
    assert_eq!(owner(&registry), "new");
}

#[tokio::test(start_paused = true)]
async fn standby_process_takes_over_within_two_intervals_after_the_owner_died() {
    let registry = MockRegistry::builder().heartbeat_timeout(TIMEOUT).start().await;
    let (old, new) = twins(&registry).await;
    // As after SIGKILL: the registry is not told.
    drop(new);
    while registry.agent("a").unwrap().status != AgentStatus::Offline {
        sleep(Duration::from_millis(100)).await;
    }
    let offline = Instant::now();
    old.watch().wait_for(AgentState::is_registered).await.unwrap();
    assert!(offline.elapsed() <= 2 * INTERVAL, "{:?}", offline.elapsed());
    sleep(5 * TIMEOUT).await;
    assert_eq!(
        (owner(&registry).as_str(), registry.agent("a").unwrap().status),
        ("old", AgentStatus::Active)
    );
}

#[tokio::test(start_paused = true)]
async fn standby_process_takes_over_when_the_owner_is_shut_down_or_removed() {
    for is_removed in [false, true] {
        let registry = MockRegistry::start().await;
        let (old, new) = twins(&registry).await;
        if is_removed {
            drop(new);
            registry.client().deregister("a").await.unwrap();
        } else {
            new.shutdown().await;
        }
        let gone = Instant::now();
        old.watch().wait_for(AgentState::is_registered).await.unwrap();
        assert!(gone.elapsed() <= 2 * INTERVAL, "{:?}", gone.elapsed());
        assert_eq!(owner(&registry), "old");
    }
}

#[tokio::test(start_paused = true)]
async fn owner_that_is_offline_but_running_keeps_the_id() {
    let registry = MockRegistry::start().await;
    let logs = Logs::record();
    let (old, new) = twins(&registry).await;
    new.update_status(AgentStatus::Offline).await.unwrap();
    sleep(10 * INTERVAL).await;
    assert_eq!(owner(&registry), "new");
    assert!(old.state().is_superseded() && new.state().is_registered());
    assert_eq!(logs.with("another process owns this agent's id").len(), 1, "it is news only once");
    new.update_status(AgentStatus::Active).await.unwrap();
    assert_eq!(registry.agent("a").unwrap().status, AgentStatus::Active);
}

#[tokio::test(start_paused = true)]
async fn younger_process_owns_the_id_in_whatever_order_their_requests_arrive() {
    for trial in 0..100 {
        let registry = MockRegistry::start().await;
        registry.outage(Duration::from_secs(3_600));
        let old = process(registry.client(), "old");
        sleep(Duration::from_millis(fastrand::u64(1..50))).await;
        let new = process(registry.client(), "new");
        // Each process tries independently, and the outage may end at any moment.
        for agent in if trial % 2 == 0 { [&old, &new] } else { [&new, &old] } {
            agent.start_heartbeat(INTERVAL).unwrap();
        }
        sleep(Duration::from_millis(fastrand::u64(..60_000))).await;
        registry.heal();
        settle(&old, &new).await;
        assert_eq!(owner(&registry), "new", "trial {trial}");
    }
}

#[tokio::test(start_paused = true)]
async fn process_that_ran_through_an_outage_gives_way_to_one_that_started_in_it() {
    for _ in 0..50 {
        let registry = MockRegistry::start().await;
        let old = started(&registry, "old").await;
        registry.outage(Duration::from_secs(3_600));
        sleep(Duration::from_millis(fastrand::u64(..60_000))).await;
        let new = process(registry.client(), "new");
        new.start_heartbeat(INTERVAL).unwrap();
        sleep(Duration::from_millis(fastrand::u64(..60_000))).await;
        registry.heal();
        settle(&old, &new).await;
        assert_eq!(owner(&registry), "new");
    }
}

/// A delayed first registration makes its process look younger, and the next one shows that.
#[tokio::test(start_paused = true)]
async fn delayed_registration_does_not_make_its_process_younger() {
    let registry = MockRegistry::start().await;
    let old = process(registry.client(), "old");
    registry.deliver_late(1, Duration::from_secs(20));
    assert!(old.register().await.is_err());
    sleep(Duration::from_secs(10)).await;
    let new = process(registry.client(), "new");
    sleep(Duration::from_secs(15)).await;
    assert_eq!(owner(&registry), "old", "it has arrived");
    old.start_heartbeat(INTERVAL).unwrap();
    old.watch().wait_for(AgentState::is_registered).await.unwrap();
    new.start_heartbeat(INTERVAL).unwrap();
    settle(&old, &new).await;
    assert_eq!(owner(&registry), "new");
}

/// Setting a status alone does not register a process, and the call does not wait forever.
#[tokio::test(start_paused = true)]
async fn process_that_never_registered_does_not_set_the_status_of_the_owner() {
    let registry = MockRegistry::start().await;
    let new = started(&registry, "new").await;
    let stranger = process(registry.client(), "stranger");
    let sent = registry.request_log().0.len();
    assert!(stranger.update_status(AgentStatus::Busy).await.unwrap_err().is_superseded());
    assert_eq!(registry.request_log().0.len(), sent + 1);
    assert_eq!(
        (owner(&registry).as_str(), registry.agent("a").unwrap().status),
        ("new", AgentStatus::Active)
    );
    assert!(new.state().is_registered());
}

#[tokio::test(start_paused = true)]
async fn process_with_the_choice_to_stop_may_be_set_to_stand_by_later() {
    let registry = MockRegistry::start().await;
    let old = started_to(OnSuperseded::Stop, &registry, "old").await;
    let new = started(&registry, "new").await;
    superseded(&old).await;
    sleep(10 * INTERVAL).await;
    let old = old.on_superseded(OnSuperseded::StandBy);
    new.shutdown().await;
    timeout(3 * INTERVAL, old.watch().wait_for(AgentState::is_registered)).await.unwrap().unwrap();
}

/// As if the registry's clock was set back in between.
#[tokio::test(start_paused = true)]
async fn process_that_seems_older_than_its_predecessors_end_tries_until_it_is_accepted() {
    let refused = r#"{"detail":"shut down","owner":{"instance_id":"pod-0","base_url":"http://pod:8000"}}"#;
    let server = Server::start(move |what, number| match what {
        REGISTER if number < 20 => Reply::Answer(409, PROBLEM, refused),
        _ => ACK,
    })
    .await;
    let registration = Registration::new("a", "Agent", "http://pod:8000").instance_id("pod-0");
    let agent = Agent::new(RegistryClient::new(server.url()).unwrap(), registration);
    sleep(Duration::from_secs(100)).await;
    agent.start_heartbeat(INTERVAL).unwrap();
    agent.watch().wait_for(AgentState::is_registered).await.unwrap();
    let age = |one: &crate::support::Arrived| {
        let body: serde_json::Value = serde_json::from_str(&one.body).unwrap();
        body["instance_age_seconds"].as_f64().unwrap()
    };
    let arrived = server.arrived();
    let ages: Vec<_> = arrived.iter().filter(|one| one.what == REGISTER).map(age).collect();
    assert!(
        ages[0] >= 100.0 && ages[1..].iter().all(|age| *age < 0.1),
        "it counts as started anew: {ages:?}"
    );
    let times = server.times(REGISTER);
    assert!(times[19] - times[1] >= 3 * INTERVAL, "and is in no hurry");
}

#[tokio::test(start_paused = true)]
async fn age_is_computed_when_it_is_sent() {
    let registry = MockRegistry::start().await;
    let agent = process(registry.client(), "a");
    let ages = || -> Vec<f64> {
        let sent = registry.request_log().0.into_iter().filter(|one| one.path == "/register");
        let body = |one: registry_sdk::testing::ReceivedRequest| serde_json::from_str(&one.body).unwrap();
        sent.map(body).map(|body: serde_json::Value| body["instance_age_seconds"].as_f64().unwrap()).collect()
    };
    sleep(Duration::from_secs(100)).await;
    registry.fail_next(1, 503);
    agent.register_with_retry().await.unwrap();
    sleep(Duration::from_secs(1_000)).await;
    agent.register().await.unwrap();
    let ages = ages();
    assert!((100.0..100.5).contains(&ages[0]), "{ages:?}");
    assert!(ages[1] > ages[0] && ages[1] < 103.0, "{ages:?}");
    assert!((1_100.0..1_104.0).contains(&ages[2]), "{ages:?}");
}

/// The first 409 may have been caused by delayed requests. The second is not.
#[tokio::test(start_paused = true)]
async fn superseded_process_registers_once_more_and_then_only_reads() {
    let registry = MockRegistry::start().await;
    let (old, new) = twins(&registry).await;
    let sent_by_old = || {
        let own = format!("\"{}\"", old.instance_id());
        registry
            .request_log()
            .0
            .iter()
            .filter(|one| one.path == "/register" && one.body.contains(&own))
            .count()
    };
    let refused = sent_by_old();
    sleep(2 * INTERVAL).await;
    assert_eq!(sent_by_old(), refused + 1);
    sleep(50 * INTERVAL).await;
    assert_eq!(sent_by_old(), refused + 1);
    // A third process starts over.
    drop(new);
    let third = started(&registry, "third").await;
    sleep(10 * INTERVAL).await;
    assert!(third.state().is_registered() && old.state().is_superseded());
    assert_eq!(sent_by_old(), refused + 3);
}

#[tokio::test(start_paused = true)]
async fn process_with_the_choice_to_stop_sends_nothing_once_superseded() {
    let registry = MockRegistry::start().await;
    let old = started_to(OnSuperseded::Stop, &registry, "old").await;
    let new = started(&registry, "new").await;
    superseded(&old).await;
    new.shutdown().await;
    let sent = registry.request_log().0.len();
    sleep(100 * INTERVAL).await;
    assert_eq!(registry.request_log().0.len(), sent);
    assert!(old.state().is_superseded());
    // A caller can still register the process, because no other owns the id now.
    old.register().await.unwrap();
    assert_eq!(owner(&registry), "old");
    registry.wait_until(|seen| seen.0.len() > sent + 3).await;
}

#[tokio::test(start_paused = true)]
async fn process_may_reuse_the_instance_id_of_one_that_ended() {
    let registry = MockRegistry::start().await;
    let pod = || {
        let registration = Registration::new("a", "Agent", "http://pod:8000").instance_id("pod-0");
        Agent::new(registry.client(), registration.heartbeat_interval(INTERVAL))
    };
    // At once, later, and within the same millisecond, before the registry heard of the first one's end.
    for pause in [Duration::from_millis(2), Duration::from_secs(60), Duration::ZERO] {
        let first = pod();
        first.register().await.unwrap();
        first.shutdown().await;
        sleep(pause).await;
        let second = pod();
        second.register().await.unwrap();
        second.start_heartbeat(INTERVAL).unwrap();
        sleep(5 * INTERVAL).await;
        assert!(second.state().is_registered());
        assert_eq!(registry.agent("a").unwrap().status, AgentStatus::Active);
        second.shutdown().await;
    }
}

#[tokio::test(start_paused = true)]
async fn process_that_started_before_its_namesake_ended_registers_anyway() {
    let registry = MockRegistry::start().await;
    let registration = Registration::new("a", "Agent", "http://pod:8000").instance_id("pod-0");
    let first = Agent::new(registry.client(), registration.clone());
    let second = Agent::new(registry.client(), registration.heartbeat_interval(INTERVAL));
    first.register().await.unwrap();
    sleep(Duration::from_secs(1)).await;
    first.shutdown().await;
    second.register().await.unwrap();
    assert_eq!(registry.agent("a").unwrap().status, AgentStatus::Active);
    second.start_heartbeat(INTERVAL).unwrap();
    sleep(5 * INTERVAL).await;
    assert!(second.state().is_registered());
}

/// A different kind of registry, or an earlier version: the newest registration wins, and a 409 names no owner.
#[tokio::test(start_paused = true)]
async fn superseded_process_never_takes_the_id_back_if_ages_are_unknown() {
    let script = |what: &str, _| match what {
        HEARTBEAT => Reply::Answer(409, PROBLEM, r#"{"detail":"another instance"}"#),
        // Even if no process seems to have the id.
        "GET /agents/a" => Reply::Answer(200, "", r#"{"agent_id":"a","status":"offline"}"#),
        _ => ACK,
    };
    for (status, body) in [(200, r#"{"agent_id":"a","status":"offline"}"#), (404, ""), (500, "")] {
        let server = Server::start(move |what: &str, number| match what {
            "GET /agents/a" => Reply::Answer(status, "", body),
            _ => script(what, number),
        })
        .await;
        let old = process(RegistryClient::new(server.url()).unwrap(), "old");
        old.register().await.unwrap();
        old.start_heartbeat(INTERVAL).unwrap();
        superseded(&old).await;
        assert!(matches!(old.state(), AgentState::Superseded { owner: None }));
        until("it looks", || server.times("GET /agents/a").len() >= 5).await;
        assert!(old.register().await.unwrap_err().is_superseded());
        assert!(old.update_capabilities(vec![Capability::new("more")]).await.unwrap_err().is_superseded());
        sleep(10 * INTERVAL).await;
        assert_eq!(server.times(REGISTER).len(), 1, "{status}");
        assert_eq!(server.times(HEARTBEAT).len(), 1);
    }
}

/// The 409 names no owner, and then the registry loses its agents. But it showed before that it knows ages.
#[tokio::test(start_paused = true)]
async fn standby_process_registers_if_the_id_is_gone() {
    let registry = MockRegistry::start().await;
    let agent = started(&registry, "a").await;
    registry.fail_next(1, 409);
    superseded(&agent).await;
    registry.forget_agents();
    timeout(3 * INTERVAL, agent.watch().wait_for(AgentState::is_registered)).await.unwrap().unwrap();
}

/// The registry is upgraded to a version that knows ages, while a process stands by.
#[tokio::test(start_paused = true)]
async fn standby_process_learns_that_the_registry_now_knows_ages() {
    let script = |what: &str, number: usize| match what {
        HEARTBEAT if number < 10 => Reply::Answer(409, PROBLEM, "{}"),
        "GET /agents/a" => Reply::Answer(
            200,
            "",
            r#"{"agent_id":"a","status":"offline","registration_tag":"1","instance_id":"other"}"#,
        ),
        _ => ACK,
    };
    let server = Server::start(script).await;
    let old = process(RegistryClient::new(server.url()).unwrap(), "old");
    old.register().await.unwrap();
    old.start_heartbeat(INTERVAL).unwrap();
    superseded(&old).await;
    old.watch().wait_for(AgentState::is_registered).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn one_registration_with_the_age_follows_a_409_to_a_heartbeat_and_decides() {
    let registry = MockRegistry::start().await;
    let old = started_to(OnSuperseded::Stop, &registry, "old").await;
    let young = started(&registry, "young").await;
    superseded(&old).await;
    // A registration without an age, as the older process, takes the id from the youngest.
    let plain = Registration::new("a", "Agent", "http://plain:8000")
        .capability(Capability::new("plain"))
        .instance_id(old.instance_id());
    let sent = registry.request_log().registrations("a");
    registry.client().register(&plain).await.unwrap();
    assert_eq!(owner(&registry), "plain");
    registry.wait_until(|seen| seen.registrations("a") == sent + 2).await;
    young.watch().wait_for(AgentState::is_registered).await.unwrap();
    assert_eq!(owner(&registry), "young");
    sleep(5 * INTERVAL).await;
    assert_eq!((owner(&registry).as_str(), registry.request_log().registrations("a")), ("young", sent + 2));
    let beat =
        registry.client().heartbeat_with("a", &Heartbeat::default().instance_id(old.instance_id())).await;
    assert!(beat.unwrap_err().is_superseded());
}

#[tokio::test(start_paused = true)]
async fn age_decides_also_after_a_409_to_a_status() {
    let registry = MockRegistry::start().await;
    let old = started_to(OnSuperseded::Stop, &registry, "old").await;
    let young = started(&registry, "young").await;
    superseded(&old).await;
    let plain = Registration::new("a", "Agent", "http://plain:8000")
        .capability(Capability::new("plain"))
        .instance_id(old.instance_id());
    registry.client().register(&plain).await.unwrap();
    young.update_status(AgentStatus::Busy).await.unwrap();
    assert_eq!(
        (owner(&registry).as_str(), registry.agent("a").unwrap().status),
        ("young", AgentStatus::Busy)
    );
}

#[tokio::test(start_paused = true)]
async fn log_names_the_owner_of_the_id_and_the_remedy() {
    let registry = MockRegistry::start().await;
    let logs = Logs::record();
    let (_old, new) = twins(&registry).await;
    let lines = logs.with("another process owns this agent's id");
    assert_eq!(lines.len(), 1, "{lines:?}");
    for part in
        ["WARN", "if this is a different agent, give it its own id", new.instance_id(), "http://new:8000"]
    {
        assert!(lines[0].contains(part), "{part} is not in {}", lines[0]);
    }
}
