//! Every fault against every operation. The expected outcome of each is written down here.

use std::time::Duration;

use registry_sdk::contract::{Capability, Registration};
use registry_sdk::testing::{Fault, FaultProxy, MockRegistry};
use registry_sdk::{Agent, AgentState, Error, RegistryClient, RetryPolicy};
use tokio::time::{Instant, timeout};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Harm {
    Refused,
    Hung,
    ResetInMidAnswer,
    Slow,
    Status500,
    Status503,
    Html,
    TruncatedJson,
    Forgotten,
    DnsGone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Register,
    Heartbeat,
    Search,
    Health,
    Shutdown,
}

/// The outcome of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Good,
    Unreachable,
    TimedOut,
    Unavailable,
    /// The same, with a `Retry-After`.
    UnavailableFor(Duration),
    InvalidResponse,
    Unknown,
    /// The shutdown completed in time.
    Over,
}

const HARMS: [Harm; 10] = [
    Harm::Refused,
    Harm::Hung,
    Harm::ResetInMidAnswer,
    Harm::Slow,
    Harm::Status500,
    Harm::Status503,
    Harm::Html,
    Harm::TruncatedJson,
    Harm::Forgotten,
    Harm::DnsGone,
];

const OPERATIONS: [Operation; 5] =
    [Operation::Register, Operation::Heartbeat, Operation::Search, Operation::Health, Operation::Shutdown];

fn expected(harm: Harm, operation: Operation) -> Outcome {
    match (harm, operation) {
        (_, Operation::Shutdown) => Outcome::Over,
        (Harm::Refused | Harm::ResetInMidAnswer | Harm::DnsGone, _) => Outcome::Unreachable,
        (Harm::Hung, _) => Outcome::TimedOut,
        (Harm::Status500, _) => Outcome::Unavailable,
        (Harm::Status503, _) => Outcome::UnavailableFor(Duration::from_secs(1)),
        (Harm::Html | Harm::TruncatedJson, _) => Outcome::InvalidResponse,
        (Harm::Forgotten, Operation::Heartbeat | Operation::Health) => Outcome::Unknown,
        (Harm::Slow | Harm::Forgotten, _) => Outcome::Good,
    }
}

fn outcome<T>(result: Result<T, Error>) -> Outcome {
    match result {
        Ok(_) => Outcome::Good,
        Err(Error::Unreachable { .. }) => Outcome::Unreachable,
        Err(Error::TimedOut { .. }) => Outcome::TimedOut,
        Err(Error::Unavailable { retry_after: Some(wait), .. }) => Outcome::UnavailableFor(wait),
        Err(Error::Unavailable { .. }) => Outcome::Unavailable,
        Err(Error::InvalidResponse { .. }) => Outcome::InvalidResponse,
        Err(Error::NotFound { .. }) => Outcome::Unknown,
        Err(error) => panic!("{error}"),
    }
}

/// A registry behind a proxy, and an agent that it knows.
struct Scene {
    registry: MockRegistry,
    proxy: FaultProxy,
    agent: Agent,
}

impl Scene {
    async fn new(harm: Harm) -> Self {
        let registry = MockRegistry::start().await;
        let proxy = FaultProxy::start(registry.url().trim_start_matches("http://")).await;
        let mut agent = agent(client(&format!("http://{}", proxy.address())));
        agent.register().await.unwrap();
        if harm == Harm::DnsGone {
            // The name no longer resolves, and never will: it is reserved for this purpose (RFC 6761).
            agent = self::agent(client("http://registry.invalid:8009"));
        }
        Self { registry, proxy, agent }
    }

    fn harm(&self, harm: Harm) {
        match harm {
            Harm::Refused => self.proxy.set(Fault::Refuse),
            Harm::Hung => self.proxy.set(Fault::Hang),
            Harm::ResetInMidAnswer => self.proxy.set(Fault::ResetAfter(0)),
            Harm::Slow => self.proxy.set(Fault::Slow(Duration::from_millis(50))),
            Harm::Status500 => self.registry.fail_next(1_000, 500),
            Harm::Status503 => self.registry.fail_next(1_000, 503),
            Harm::Html => self.registry.garbage_body(1_000),
            Harm::TruncatedJson => self.registry.truncated_body(1_000),
            Harm::Forgotten => self.registry.forget_agents(),
            Harm::DnsGone => {}
        }
    }

    async fn perform(&self, operation: Operation) -> Outcome {
        let client = self.agent.client();
        match operation {
            Operation::Register => outcome(self.agent.register().await),
            Operation::Heartbeat => outcome(client.heartbeat("a").await),
            Operation::Search => outcome(client.search_capabilities("work").await),
            Operation::Health => outcome(client.check_health("a").await),
            Operation::Shutdown => {
                self.agent.start_heartbeat(Duration::from_secs(1)).unwrap();
                // Some heartbeats meet the fault first.
                tokio::time::sleep(Duration::from_secs(10)).await;
                timeout(Duration::from_millis(5_050), self.agent.shutdown()).await.unwrap();
                let seen = self.registry.request_log().0.len();
                tokio::time::sleep(Duration::from_secs(3_600)).await;
                assert_eq!(
                    self.registry.request_log().0.len(),
                    seen,
                    "something was sent after the shutdown"
                );
                assert!(matches!(self.agent.state(), AgentState::Stopped));
                Outcome::Over
            }
        }
    }
}

fn client(url: &str) -> RegistryClient {
    RegistryClient::builder(url).retry(RetryPolicy::none()).build().unwrap()
}

fn agent(client: RegistryClient) -> Agent {
    let registration =
        Registration::new("a", "Agent", "http://agent:8000").capability(Capability::new("work"));
    Agent::new(client, registration)
}

#[tokio::test(start_paused = true)]
async fn every_fault_against_every_operation() {
    for harm in HARMS {
        for operation in OPERATIONS {
            let scene = Scene::new(harm).await;
            scene.harm(harm);
            let began = Instant::now();
            let came_to = scene.perform(operation).await;
            assert_eq!(came_to, expected(harm, operation), "{harm:?} against {operation:?}");
            if operation != Operation::Shutdown {
                assert!(began.elapsed() <= Duration::from_millis(10_050), "{harm:?}: {:?}", began.elapsed());
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn every_operation_works_again_when_the_fault_is_over() {
    for harm in HARMS.into_iter().filter(|harm| *harm != Harm::DnsGone) {
        let scene = Scene::new(harm).await;
        scene.harm(harm);
        for operation in OPERATIONS {
            if operation != Operation::Shutdown {
                scene.perform(operation).await;
            }
        }
        scene.proxy.set(Fault::None);
        scene.registry.heal();
        for operation in OPERATIONS {
            if operation != Operation::Shutdown {
                assert_eq!(scene.perform(operation).await, Outcome::Good, "{operation:?} after {harm:?}");
            }
        }
    }
}
