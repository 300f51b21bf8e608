//! Random scripts of calls, faults, twin processes, kills and shutdowns, through which the agent's guarantees have to hold.
//!
//! Runs a thousand fixed scripts. `LIFE_CASES=20000 cargo test … life` runs that many random ones.

use std::time::Duration;

use proptest::prelude::{Just, Strategy, prop_oneof};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use registry_sdk::contract::{AgentStatus, Capability, Registration};
use registry_sdk::testing::{Backup, MockRegistry, ReceivedRequest, RequestLog};
use registry_sdk::{Agent, AgentState, RegistryClient, RetryPolicy};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

const INTERVAL: Duration = Duration::from_secs(30);

/// The larger of the registry's own timeout and twice the interval.
const DEADLINE: Duration = Duration::from_secs(60);

/// How long a request may be held back in flight.
const LATE: Duration = Duration::from_secs(40);

/// The longest delay and an attempt that hangs. Delayed requests may arrive, and even give the id to a dead process, which adds
/// its deadline, the next look and the delay before registering.
const SETTLED_AFTER: Duration = Duration::from_secs(30 + 10 + 40 + 60 + 30 + 10 + 5);

/// Fewer than a registry remembers.
const MOST_PROCESSES: usize = 6;

#[derive(Clone, Debug)]
enum Step {
    Wait(Duration),
    // Faults of the registry and of the network.
    Fail(usize, u16),
    Drop(usize),
    Hang(usize),
    Garbage(usize),
    Truncated(usize),
    Late(usize, Duration),
    Delay(Duration),
    Outage(Duration),
    Forget,
    Backup,
    Restore,
    Heal,
    /// Another process with the same id starts.
    Start,
    /// An act of a running process, by a number that is brought into range.
    Of(usize, Act),
}

#[derive(Clone, Debug)]
enum Act {
    Kill,
    ShutDown,
    /// Several at once, the first of them cancelled.
    ShutDownTwice,
    /// The caller waits as long as it takes.
    Call(Call),
    /// The caller gives up after a while.
    GiveUp(Call, Duration),
    /// No caller waits.
    Background(Call),
    SetStatus(AgentStatus),
    Restart(u64),
    Pause,
}

#[derive(Clone, Copy, Debug)]
enum Call {
    Register,
    RegisterWithRetry,
    Change(u8),
    Status(AgentStatus),
}

fn step() -> impl Strategy<Value = Step> {
    let seconds = |most: u64| (0..most).prop_map(Duration::from_secs);
    let status = || prop_oneof![Just(500_u16), Just(503), Just(429), Just(404), Just(401), Just(409)];
    prop_oneof![
        6 => seconds(90).prop_map(Step::Wait),
        2 => (1..6_usize, status()).prop_map(|(count, status)| Step::Fail(count, status)),
        1 => (1..6_usize).prop_map(Step::Drop),
        1 => (1..6_usize).prop_map(Step::Hang),
        1 => (1..6_usize).prop_map(Step::Garbage),
        1 => (1..6_usize).prop_map(Step::Truncated),
        1 => (1..4_usize, seconds(LATE.as_secs())).prop_map(|(count, late)| Step::Late(count, late)),
        1 => seconds(20).prop_map(Step::Delay),
        1 => seconds(600).prop_map(Step::Outage),
        1 => Just(Step::Forget),
        1 => Just(Step::Backup),
        1 => Just(Step::Restore),
        2 => Just(Step::Heal),
        2 => Just(Step::Start),
        10 => (0..MOST_PROCESSES, act()).prop_map(|(number, act)| Step::Of(number, act)),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    let status =
        || prop_oneof![Just(AgentStatus::Active), Just(AgentStatus::Busy), Just(AgentStatus::Offline)];
    let call = move || {
        prop_oneof![
            Just(Call::Register),
            Just(Call::RegisterWithRetry),
            (0..9_u8).prop_map(Call::Change),
            status().prop_map(Call::Status),
        ]
    };
    prop_oneof![
        1 => Just(Act::Kill),
        1 => Just(Act::ShutDown),
        1 => Just(Act::ShutDownTwice),
        2 => call().prop_map(Act::Call),
        2 => (call(), 0..5_000_u64).prop_map(|(call, most)| Act::GiveUp(call, Duration::from_millis(most))),
        4 => call().prop_map(Act::Background),
        1 => status().prop_map(Act::SetStatus),
        1 => (10..60_u64).prop_map(Act::Restart),
        1 => Just(Act::Pause),
    ]
}

/// A quarter of the scripts each, so that several cores take part.
mod an_agent_keeps_its_promises_through_any_script {
    #[test]
    fn first_quarter() {
        super::run_scripts(0);
    }

    #[test]
    fn second_quarter() {
        super::run_scripts(1);
    }

    #[test]
    fn third_quarter() {
        super::run_scripts(2);
    }

    #[test]
    fn last_quarter() {
        super::run_scripts(3);
    }
}

fn run_scripts(quarter: u8) {
    let more: Option<u32> = std::env::var("LIFE_CASES").ok().and_then(|cases| cases.parse().ok());
    let cases = more.unwrap_or(1_000).div_ceil(4);
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    // The scripts are fixed unless others are requested.
    let mut runner = if more.is_some() {
        TestRunner::new(config)
    } else {
        TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &[quarter; 32]))
    };
    let script = proptest::collection::vec(step(), 1..40);
    runner
        .run(&script, |script| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .start_paused(true)
                .build()
                .unwrap();
            runtime.block_on(World::live(script));
            Ok(())
        })
        .unwrap();
}

/// A running process, and what the registry should know of it.
struct Process {
    agent: Agent,
    capabilities: Vec<Capability>,
    status: AgentStatus,
    calls: JoinSet<()>,
    /// When heartbeats were started.
    beating_since: Option<Instant>,
}

/// The registry, and all processes that ever had the id.
struct World {
    registry: MockRegistry,
    client: RegistryClient,
    /// The youngest is last.
    alive: Vec<Process>,
    /// Processes that were shut down, and the number of their requests at that time.
    ended: Vec<(String, usize)>,
    started: usize,
    backup: Option<Backup>,
    /// Whether the age of a process may be wrong, because its first registration was delayed.
    ages_are_unsure: bool,
}

impl World {
    async fn live(script: Vec<Step>) {
        let registry = MockRegistry::start().await;
        let client = registry.client().with_retry(RetryPolicy::discovery());
        let (alive, ended) = (Vec::new(), Vec::new());
        let mut world =
            Self { registry, client, alive, ended, started: 0, backup: None, ages_are_unsure: false };
        world.start().await;
        for step in script {
            world.take(step).await;
            world.check();
        }
        world.settle().await;
        world.end().await;
    }

    async fn start(&mut self) {
        if self.started == MOST_PROCESSES {
            return;
        }
        self.started += 1;
        let registration = Registration::new("a", "Agent", "http://agent:8000").heartbeat_interval(INTERVAL);
        let agent = Agent::new(self.client.clone(), registration);
        agent.start_heartbeat(INTERVAL).unwrap();
        let (capabilities, status) = (Vec::new(), AgentStatus::Active);
        self.alive.push(Process {
            agent,
            capabilities,
            status,
            calls: JoinSet::new(),
            beating_since: Some(Instant::now()),
        });
        // No two have the same age.
        sleep(Duration::from_millis(10)).await;
    }

    async fn take(&mut self, step: Step) {
        let registry = &self.registry;
        match step {
            Step::Wait(time) => {
                // In steps, so that the guarantees are checked in between.
                let end = Instant::now() + time;
                while Instant::now() < end {
                    sleep(Duration::from_secs(5)).await;
                    self.check();
                }
            }
            Step::Fail(count, status) => registry.fail_next(count, status),
            Step::Drop(count) => registry.drop_connections(count),
            Step::Hang(count) => registry.hang(count),
            Step::Garbage(count) => registry.garbage_body(count),
            Step::Truncated(count) => registry.truncated_body(count),
            Step::Late(count, late) => {
                registry.deliver_late(count, late);
                self.ages_are_unsure = true;
            }
            Step::Delay(time) => registry.delay(time),
            Step::Outage(time) => registry.outage(time),
            Step::Forget => registry.forget_agents(),
            Step::Backup => self.backup = Some(registry.backup()),
            Step::Restore => self.backup.iter().for_each(|backup| registry.restore(backup)),
            Step::Heal => registry.heal(),
            Step::Start => self.start().await,
            Step::Of(number, act) => {
                if !self.alive.is_empty() {
                    let number = number % self.alive.len();
                    self.act(number, act).await;
                }
            }
        }
    }

    async fn act(&mut self, number: usize, act: Act) {
        let process = &mut self.alive[number];
        match act {
            Act::Kill => drop(self.alive.remove(number)),
            Act::ShutDown => {
                process.agent.shutdown().await;
                self.has_ended(number);
            }
            Act::ShutDownTwice => {
                let agent = process.agent.clone();
                let _ = timeout(Duration::from_millis(1), agent.shutdown()).await;
                tokio::join!(agent.shutdown(), agent.shutdown_within(Duration::from_secs(3)));
                self.has_ended(number);
            }
            Act::Call(call) => process.call(call).await,
            Act::GiveUp(call, most) => drop(timeout(most, process.call(call)).await),
            Act::Background(call) => process.in_background(call),
            Act::SetStatus(status) => {
                process.status = status;
                process.agent.set_status(status);
            }
            Act::Restart(seconds) => {
                process.agent.start_heartbeat(Duration::from_secs(seconds)).unwrap();
                process.beats();
            }
            Act::Pause => {
                process.agent.stop_heartbeat().await;
                process.beating_since = None;
            }
        }
    }

    fn has_ended(&mut self, number: usize) {
        let process = self.alive.remove(number);
        assert!(matches!(process.agent.state(), AgentState::Stopped));
        let instance_id = process.agent.instance_id().to_owned();
        let arrived = sent_by(&instance_id, &self.registry.request_log()).count();
        self.ended.push((instance_id, arrived));
    }

    /// A process that was shut down sends nothing, and a registered one was heard within its deadline.
    fn check(&self) {
        let seen = self.registry.request_log();
        for (instance_id, arrived) in &self.ended {
            let sent: Vec<_> = sent_by(instance_id, &seen).skip(*arrived).collect();
            assert!(sent.is_empty(), "sent after the shutdown: {sent:?}");
        }
        for process in &self.alive {
            let is_beating = process.beating_since.is_some_and(|since| since.elapsed() > INTERVAL);
            if !is_beating || !process.agent.state().is_registered() {
                continue;
            }
            let heard = |one: &&ReceivedRequest| {
                one.status == Some(200) && (one.path == "/register" || one.path.ends_with("/heartbeat"))
            };
            let last = sent_by(process.agent.instance_id(), &seen).filter(heard).last().unwrap();
            let silent = last.at.elapsed();
            assert!(silent <= DEADLINE, "registered, and not heard for {silent:?}");
        }
    }

    /// Without faults, the registry knows the state of the youngest process, and the others stand by.
    async fn settle(&mut self) {
        self.registry.heal();
        for process in &mut self.alive {
            process.beats();
        }
        sleep(SETTLED_AFTER).await;
        self.check();
        let registered: Vec<_> =
            self.alive.iter().filter(|process| process.agent.state().is_registered()).collect();
        let standing: Vec<_> = self.alive.iter().map(|process| process.agent.state()).collect();
        assert_eq!(registered.len(), usize::from(!self.alive.is_empty()), "{standing:?}");
        let others = self.alive.iter().filter(|process| process.agent.state().is_superseded()).count();
        assert_eq!(others + registered.len(), self.alive.len(), "{standing:?}");
        let (Some(owner), Some(youngest)) = (registered.first(), self.alive.last()) else { return };
        let record = self.registry.agent("a").unwrap();
        assert_eq!(record.instance_id.as_deref(), Some(owner.agent.instance_id()));
        assert_eq!((&record.capabilities, record.status), (&owner.capabilities, owner.status));
        if !self.ages_are_unsure {
            assert_eq!(owner.agent.instance_id(), youngest.agent.instance_id());
        }
    }

    /// In the end all are shut down, and the agent is offline for good.
    async fn end(&mut self) {
        let was_known = !self.alive.is_empty();
        while !self.alive.is_empty() {
            self.alive[0].agent.shutdown().await;
            self.has_ended(0);
        }
        let sent = self.registry.request_log().0.len();
        for _ in 0..20 {
            sleep(10 * INTERVAL).await;
            self.check();
        }
        assert_eq!(self.registry.request_log().0.len(), sent, "somebody is left who sends");
        let record = self.registry.agent("a");
        assert!(record.is_some() || !was_known);
        assert!(record.is_none_or(|record| record.status == AgentStatus::Offline));
    }
}

/// The requests of a process, without delayed ones.
fn sent_by<'a>(instance_id: &str, seen: &'a RequestLog) -> impl Iterator<Item = &'a ReceivedRequest> {
    let own = format!("\"{instance_id}\"");
    seen.0.iter().filter(move |one| !one.is_late && one.body.contains(&own))
}

impl Process {
    fn beats(&mut self) {
        self.agent.start_heartbeat(INTERVAL).unwrap();
        self.beating_since.get_or_insert_with(Instant::now);
    }

    /// Sets the desired state, whether or not the call succeeds.
    fn wants(&mut self, call: Call) {
        match call {
            Call::Register | Call::RegisterWithRetry => {}
            Call::Change(number) => {
                self.capabilities = vec![Capability::new(format!("capability-{number}"))];
            }
            Call::Status(status) => self.status = status,
        }
    }

    async fn call(&mut self, call: Call) {
        self.wants(call);
        perform(self.agent.clone(), call, self.capabilities.clone()).await;
    }

    fn in_background(&mut self, call: Call) {
        self.wants(call);
        let mut call = Box::pin(perform(self.agent.clone(), call, self.capabilities.clone()));
        // Polled once, so that changes are made in the order of the script.
        if futures_util::FutureExt::now_or_never(&mut call).is_none() {
            self.calls.spawn(call);
        }
    }
}

async fn perform(agent: Agent, call: Call, capabilities: Vec<Capability>) {
    match call {
        Call::Register => drop(agent.register().await),
        Call::RegisterWithRetry => drop(agent.register_with_retry().await),
        Call::Change(_) => drop(agent.update_capabilities(capabilities).await),
        Call::Status(status) => drop(agent.update_status(status).await),
    }
}
