//! A registry with agents that are healthy, unhealthy, slow and silent.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use registry_sdk::contract::{Capability, Registration};
use registry_sdk::discovery::{Orchestrator, OrchestratorBuilder};
use registry_sdk::testing::MockRegistry;
use tokio::task::JoinSet;

use crate::support::{Arrived, Reply, Server, let_the_kernel_deliver_for};

pub(crate) const WELL: Reply = Reply::Answer(200, "", r#"{"status":"healthy"}"#);
pub(crate) const ILL: Reply = Reply::Answer(503, "", r#"{"status":"unhealthy"}"#);

/// Agents of a scene send no heartbeats, and stay online for the longest test.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(86_400);

/// How long the paused clock is kept from running away: see `support`. A test that goes on for longer is over before that
/// matters.
const LONGEST_TEST: usize = 3_600;

/// A registry with agents that can all do `work`, and the single server on which they run, each below its id.
pub(crate) struct Scene {
    pub(crate) registry: MockRegistry,
    pub(crate) agents: Server,
    scripts: Arc<Mutex<HashMap<String, Script>>>,
    _clock: JoinSet<()>,
}

/// An agent's responses, by the request's method and path.
type Script = Box<dyn FnMut(&str) -> Reply + Send>;

impl Scene {
    /// Creates equal agents.
    pub(crate) async fn new(ids: &[&str]) -> Self {
        let scene = Self::empty().await;
        for id in ids {
            scene.register(id, Capability::new("work")).await;
        }
        scene
    }

    /// Creates up to four agents, each of which matches `work` better than the next.
    pub(crate) async fn ranked(ids: &[&str]) -> Self {
        let scene = Self::empty().await;
        let capabilities = [
            Capability::new("work"),
            Capability::new("work_in_part"),
            Capability::new("other").tag("work"),
            Capability::new("other").example("may work"),
        ];
        assert!(ids.len() <= capabilities.len(), "there are no more ranks than that");
        for (id, capability) in ids.iter().zip(capabilities) {
            scene.register(id, capability).await;
        }
        scene
    }

    async fn empty() -> Self {
        let scripts = Arc::<Mutex<HashMap<String, Script>>>::default();
        let shared = scripts.clone();
        let agents = Server::start(move |what, _| {
            let id = what.split('/').nth(1).unwrap();
            let mut scripts = shared.lock().unwrap();
            scripts.get_mut(id).map_or(WELL, |script| script(what))
        })
        .await;
        let mut clock = JoinSet::new();
        clock.spawn(let_the_kernel_deliver_for(LONGEST_TEST));
        Self { registry: MockRegistry::start().await, agents, scripts, _clock: clock }
    }

    /// Registers a healthy agent. Returns its id.
    pub(crate) async fn register(&self, id: &str, capability: Capability) {
        let registration = Registration::new(id, id, format!("{}/{id}", self.agents.url()))
            .capability(capability)
            .heartbeat_interval(HEARTBEAT_INTERVAL);
        self.registry.client().register(&registration).await.unwrap();
        self.set_well(id);
    }

    /// Makes an agent do all its tasks.
    pub(crate) fn set_well(&self, id: &str) {
        self.set(id, Reply::Answer(200, "", format!(r#"{{"status":"healthy","by":"{id}"}}"#).leak()));
    }

    /// Sets an agent's response to all requests.
    pub(crate) fn set(&self, id: &str, reply: Reply) {
        self.script(id, move |_, _| reply.clone());
    }

    /// Sets an agent's response by the request's method and path, and by the number of requests since now.
    pub(crate) fn script(&self, id: &str, reply: impl Fn(&str, usize) -> Reply + Send + 'static) {
        let mut before = 0;
        let script = move |what: &str| {
            before += 1;
            reply(what, before - 1)
        };
        self.scripts.lock().unwrap().insert(id.to_owned(), Box::new(script));
    }

    /// Returns the tasks that an agent received.
    pub(crate) fn tasks(&self, id: &str) -> Vec<Arrived> {
        let begin = format!("POST /{id}/");
        self.agents.arrived().into_iter().filter(|one| one.what.starts_with(&begin)).collect()
    }

    pub(crate) fn orchestrator(&self) -> Orchestrator {
        self.orchestrator_builder().build()
    }

    pub(crate) fn orchestrator_builder(&self) -> OrchestratorBuilder {
        Orchestrator::builder(self.registry.client())
    }
}
