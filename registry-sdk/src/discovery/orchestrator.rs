//! The orchestrator: its settings, and what its clones share.

use std::sync::Arc;

use super::agent_states::AgentStates;
use super::budget::RetryBudget;
use super::directory::Directory;
use super::ejection::{EjectionSettings, EjectionState};
use super::failure_kind::FailureKind;
use super::fallback::Fallback;
use super::found::LastSearches;
use super::http_task::AgentAccess;
use super::http_task_error::HttpTaskError;
use super::query::TaskQuery;
use super::selection::{SelectError, Selection};
#[cfg(feature = "a2a")]
use crate::a2a::cards::Cards;
use crate::client::RegistryClient;
use crate::contract::CapabilityMatch;
use crate::http::HttpClients;

/// Finds living agents for tasks, and delegates tasks to them.
///
/// Cheap to clone; clones share what is known of the agents: which are ejected, busy or loaded.
///
/// While the registry is away, tasks go to the agents that the last search found, if they answer at their health path (`/health`
/// by default). Only a capability that was never searched for needs the registry; with a
/// [`directory`](OrchestratorBuilder::directory) none does.
///
/// ```no_run
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use registry_sdk::{Orchestrator, RegistryClient};
///
/// let orchestrator = Orchestrator::new(RegistryClient::new("http://127.0.0.1:8009")?);
/// let selection = orchestrator.find_best_agent("code_review").await?;
/// println!("{} at {}", selection.agent.agent_id, selection.agent.base_url);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Orchestrator {
    pub(super) client: RegistryClient,
    pub(super) access: AgentAccess,
    pub(super) states: AgentStates,
    pub(super) directory: Option<Directory>,
    /// Searches while the directory is out of date.
    pub(super) fallback: Fallback,
    pub(super) last_searches: LastSearches,
    #[cfg(feature = "a2a")]
    pub(super) cards: Cards,
}

/// Sets up an [`Orchestrator`].
#[derive(Clone, Debug)]
pub struct OrchestratorBuilder {
    client: RegistryClient,
    access: AgentAccess,
    ejection: EjectionSettings,
    budget: RetryBudget,
    directory: Option<Directory>,
    seed: Option<u64>,
}

impl OrchestratorBuilder {
    /// Sets when agents are ejected, and for how long. Default: [`EjectionSettings::default`].
    #[must_use]
    pub fn ejection(mut self, settings: EjectionSettings) -> Self {
        self.ejection = settings;
        self
    }

    /// Sets how many attempts are made for tasks that failed at an agent, and for hedging. Default: [`RetryBudget::default`].
    #[must_use]
    pub fn retry_budget(mut self, budget: RetryBudget) -> Self {
        self.budget = budget;
        self
    }

    /// Finds agents in a directory, which is kept up to date by a watch, instead of searching the registry. While the
    /// directory is out of date the registry is asked; if that fails, the directory is used all the same, and the registry is asked
    /// again only now and then. Default: none.
    #[must_use]
    pub fn directory(mut self, directory: Directory) -> Self {
        self.directory = Some(directory);
        self
    }

    /// Sends tasks with this HTTP client, which is taken as it is: its certificates, proxy, default headers and redirects apply.
    /// Default: one with the settings of the registry's client, which follows a 307 or 308 to the same origin.
    #[must_use]
    pub fn http_client(mut self, client: reqwest::Client) -> Self {
        self.access.http = HttpClients::fixed(client);
        self
    }

    /// Sends a token with each task: `Authorization: Bearer …`. It is asked for before each attempt, and must not block. Whoever can
    /// register an agent can receive tasks: give tokens only to agents that you know, by id or URL. Default: none.
    #[must_use]
    pub fn token_provider(
        mut self,
        token: impl Fn(&CapabilityMatch) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        self.access.token = Some(Arc::new(token));
        self
    }

    /// Replaces the table of outcomes for tasks that are sent over HTTP. Default: [`HttpTaskError::kind`].
    ///
    /// ```
    /// # let client = registry_sdk::RegistryClient::new("http://127.0.0.1:8009").unwrap();
    /// use registry_sdk::Orchestrator;
    /// use registry_sdk::discovery::{FailureKind, HttpTaskError};
    ///
    /// // These agents answer 422 if their model is of an older version, so another one may do better.
    /// let orchestrator = Orchestrator::builder(client).classifier(|error| match error {
    ///     HttpTaskError::Status { status: 422, .. } => FailureKind::Deployment,
    ///     error => error.kind(),
    /// });
    /// ```
    #[must_use]
    pub fn classifier(
        mut self,
        classifier: impl Fn(&HttpTaskError) -> FailureKind + Send + Sync + 'static,
    ) -> Self {
        self.access.classifier = Arc::new(classifier);
        self
    }

    /// Makes random choices repeatable, for tests. Default: a random seed.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Makes the orchestrator. Nothing is sent yet.
    #[must_use]
    pub fn build(self) -> Orchestrator {
        let Self { client, access, ejection, budget, directory, seed } = self;
        let random = seed.map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed);
        let states = AgentStates::new(ejection, budget, random);
        let (fallback, last_searches) = (Fallback::default(), LastSearches::default());
        Orchestrator {
            client,
            access,
            states,
            directory,
            fallback,
            last_searches,
            #[cfg(feature = "a2a")]
            cards: Cards::default(),
        }
    }
}

impl Orchestrator {
    /// An orchestrator with the default settings.
    #[must_use]
    pub fn new(client: RegistryClient) -> Self {
        Self::builder(client).build()
    }

    /// Sets up an orchestrator.
    #[must_use]
    pub fn builder(client: RegistryClient) -> OrchestratorBuilder {
        OrchestratorBuilder {
            access: AgentAccess::new(client.http().for_agents()),
            client,
            ejection: EjectionSettings::default(),
            budget: RetryBudget::default(),
            directory: None,
            seed: None,
        }
    }

    /// The client that the orchestrator searches with.
    #[must_use]
    pub fn client(&self) -> &RegistryClient {
        &self.client
    }

    /// Whether an agent gets tasks, as far as this orchestrator's own tasks decide.
    #[must_use]
    pub fn ejection(&self, agent_id: &str) -> EjectionState {
        self.states.ejection(agent_id)
    }

    /// Selects the best-ranked healthy agent with a capability.
    ///
    /// # Errors
    /// As [`Orchestrator::select`].
    pub async fn find_best_agent(&self, capability: impl Into<String>) -> Result<Selection, SelectError> {
        self.select(&TaskQuery::new(capability)).await
    }

    /// Selects the best healthy agent for a capability, or for another one if there is none.
    ///
    /// # Errors
    /// As [`Orchestrator::select`].
    pub async fn delegate_with_fallback(
        &self,
        primary: impl Into<String>,
        fallback: impl Into<String>,
    ) -> Result<Selection, SelectError> {
        self.select(&TaskQuery::new(primary).fallback(fallback)).await
    }
}
