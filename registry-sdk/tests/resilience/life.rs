//! Random scripts of faults and calls: what an agent promises holds through all of them.

use std::time::Duration;

use proptest::prelude::{Just, Strategy, prop_oneof};
use proptest::test_runner::{Config, TestRunner};
use registry_sdk::contract::{AgentStatus, Capability, Registration};
use registry_sdk::testing::MockRegistry;
use registry_sdk::{Agent, AgentState};
use tokio::time::{Instant, sleep, timeout};

const INTERVAL: Duration = Duration::from_secs(30);

/// The larger of the registry's own time-out and twice the interval.
const DEADLINE: Duration = Duration::from_secs(60);

/// The longest pause, an attempt that hangs, and the pause before registering again.
const BACK_WITHIN: Duration = Duration::from_secs(30 + 8 + 3 + 1);

#[derive(Clone, Debug)]
enum Step {
    Wait(Duration),
    Fail(usize, u16),
    Drop(usize),
    Hang(usize),
    Garbage(usize),
    Truncated(usize),
    Delay(Duration),
    Outage(Duration),
    Forget,
    Heal,
    Say(AgentStatus),
    SetStatus(AgentStatus),
    Change(u8),
    Register,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let seconds = |most: u64| (0..most).prop_map(Duration::from_secs);
    let status = || prop_oneof![Just(AgentStatus::Active), Just(AgentStatus::Busy)];
    prop_oneof![
        6 => seconds(90).prop_map(Step::Wait),
        2 => (1..6_usize, prop_oneof![Just(500_u16), Just(503), Just(429), Just(404), Just(401)])
            .prop_map(|(count, status)| Step::Fail(count, status)),
        1 => (1..6_usize).prop_map(Step::Drop),
        1 => (1..6_usize).prop_map(Step::Hang),
        1 => (1..6_usize).prop_map(Step::Garbage),
        1 => (1..6_usize).prop_map(Step::Truncated),
        1 => seconds(20).prop_map(Step::Delay),
        1 => seconds(600).prop_map(Step::Outage),
        2 => Just(Step::Forget),
        2 => Just(Step::Heal),
        1 => status().prop_map(Step::Say),
        1 => status().prop_map(Step::SetStatus),
        1 => (0..9_u8).prop_map(Step::Change),
        1 => Just(Step::Register),
        1 => Just(Step::Restart),
    ]
}

#[test]
fn an_agent_keeps_its_promises_through_any_script() {
    let config = Config { cases: 200, failure_persistence: None, ..Config::default() };
    let script = proptest::collection::vec(step(), 1..40);
    TestRunner::new(config)
        .run(&script, |script| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .start_paused(true)
                .build()
                .unwrap();
            runtime.block_on(live(script));
            Ok(())
        })
        .unwrap();
}

async fn live(script: Vec<Step>) {
    let registry = MockRegistry::start().await;
    let registration = Registration::new("a", "Agent", "http://agent:8000").heartbeat_interval(INTERVAL);
    let agent = Agent::new(registry.client(), registration);
    agent.start_heartbeat(INTERVAL).unwrap();
    let mut latest = Vec::new();
    for step in script {
        take(step, &registry, &agent, &mut latest).await;
        check(&registry, &agent);
    }

    registry.heal();
    let healed = Instant::now();
    let back = async {
        // The agent believes it, and it is so.
        while !(agent.state().is_registered() && registry.agent("a").is_some()) {
            sleep(Duration::from_millis(100)).await;
            check(&registry, &agent);
        }
    };
    timeout(BACK_WITHIN, back)
        .await
        .unwrap_or_else(|_| panic!("after {:?}: {:?}", healed.elapsed(), agent.state()));
    // What could not be told when it changed is told after the next heartbeat.
    sleep(INTERVAL + Duration::from_secs(1)).await;
    assert_eq!(registry.agent("a").unwrap().capabilities, latest);

    agent.shutdown().await;
    let sent = registry.seen().0.len();
    sleep(100 * INTERVAL).await;
    assert_eq!(registry.seen().0.len(), sent, "something was sent after the shutdown");
    assert_eq!(registry.agent("a").unwrap().status, AgentStatus::Offline);
}

async fn take(step: Step, registry: &MockRegistry, agent: &Agent, latest: &mut Vec<Capability>) {
    match step {
        Step::Wait(time) => {
            // In pieces, so that what holds is looked at between.
            let end = Instant::now() + time;
            while Instant::now() < end {
                sleep(Duration::from_secs(1)).await;
                check(registry, agent);
            }
        }
        Step::Fail(count, status) => registry.fail_next(count, status),
        Step::Drop(count) => registry.drop_connections(count),
        Step::Hang(count) => registry.hang(count),
        Step::Garbage(count) => registry.garbage_body(count),
        Step::Truncated(count) => registry.truncated_body(count),
        Step::Delay(time) => registry.delay(time),
        Step::Outage(time) => registry.outage(time),
        Step::Forget => registry.forget_agents(),
        Step::Heal => registry.heal(),
        // Calls may fail: what they set is kept all the same.
        Step::Say(status) => drop(agent.update_status(status).await),
        Step::SetStatus(status) => agent.set_status(status),
        Step::Change(number) => {
            *latest = vec![Capability::new(format!("capability-{number}"))];
            drop(agent.update_capabilities(latest.clone()).await);
        }
        Step::Register => drop(agent.register().await),
        Step::Restart => agent.start_heartbeat(INTERVAL).unwrap(),
    }
}

/// Whoever calls itself registered has been heard within its deadline.
fn check(registry: &MockRegistry, agent: &Agent) {
    if let AgentState::Registered { .. } = agent.state() {
        let seen = registry.seen();
        let heard = |one: &&registry_sdk::testing::Received| {
            one.status == Some(200) && (one.path == "/register" || one.path.ends_with("/heartbeat"))
        };
        let last = seen.0.iter().rfind(heard).unwrap();
        assert!(last.at.elapsed() <= DEADLINE, "registered, and not heard for {:?}", last.at.elapsed());
    }
}
