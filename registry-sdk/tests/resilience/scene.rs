//! A registry with agents that are well, ill, slow and silent.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use registry_sdk::contract::{Capability, Registration};
use registry_sdk::discovery::{Orchestrator, OrchestratorBuilder};
use registry_sdk::testing::MockRegistry;

use crate::support::{Reply, Server};

pub(crate) const WELL: Reply = Reply::Answer(200, "", r#"{"status":"healthy"}"#);
pub(crate) const ILL: Reply = Reply::Answer(503, "", r#"{"status":"unhealthy"}"#);

/// A registry with agents that all can do `work`, and the one server on which they live: each below its id.
pub(crate) struct Scene {
    pub(crate) registry: MockRegistry,
    pub(crate) agents: Server,
    /// What an agent answers, whatever it is asked.
    answers: Arc<Mutex<HashMap<String, Reply>>>,
}

impl Scene {
    pub(crate) async fn new(ids: &[&str]) -> Self {
        let answers = Arc::<Mutex<HashMap<String, Reply>>>::default();
        let shared = answers.clone();
        let agents = Server::start(move |what, _| {
            let id = what.split('/').nth(1).unwrap();
            shared.lock().unwrap().get(id).cloned().unwrap_or(WELL)
        })
        .await;
        let scene = Self { registry: MockRegistry::start().await, agents, answers };
        for id in ids {
            scene.register(id, Capability::new("work")).await;
        }
        scene
    }

    pub(crate) async fn register(&self, id: &str, capability: Capability) {
        let registration =
            Registration::new(id, id, format!("{}/{id}", self.agents.url())).capability(capability);
        self.registry.client().register(&registration).await.unwrap();
    }

    pub(crate) fn set(&self, id: &str, reply: Reply) {
        self.answers.lock().unwrap().insert(id.to_owned(), reply);
    }

    pub(crate) fn orchestrator(&self) -> Orchestrator {
        self.orchestrator_builder().build()
    }

    pub(crate) fn orchestrator_builder(&self) -> OrchestratorBuilder {
        Orchestrator::builder(self.registry.client())
    }
}
