//! The orchestrator: its settings, and the state that its clones share.

use std::sync::Arc;

use super::agent_states::AgentStates;
use super::budget::RetryBudget;
use super::directory::Directory;
use super::ejection::{EjectionSettings, EjectionState};
use super::failure_kind::FailureKind;
use super::found::LastSearches;
use super::http_task::AgentAccess;
use super::http_task_error::HttpTaskError;
use super::query::TaskQuery;
use super::search_fallback::SearchFallback;
use super::selection::{SelectError, Selection};
#[cfg(feature = "a2a")]
use crate::a2a::cards::Cards;
use crate::client::RegistryClient;
use crate::contract::CapabilityMatch;
use crate::http::HttpClients;

/// Selects healthy agents for tasks, and delegates tasks to them.
///
/// An orchestrator is cheap to clone. All clones share the states of the agents: which are ejected, busy or loaded.
///
/// While the registry is unavailable, tasks go to the agents that the last search found, if they respond at their health path
/// (`/health` by default). Only a search that is not remembered needs the registry: up to 256 distinct ones are remembered, and
/// one more makes the orchestrator forget them all. With a [`directory`](OrchestratorBuilder::directory), no search needs the
/// registry.
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
    /// Whether to search the registry while the directory is out of date.
    pub(super) search_fallback: SearchFallback,
    pub(super) last_searches: LastSearches,
    #[cfg(feature = "a2a")]
    pub(super) cards: Cards,
}

/// A builder of an [`Orchestrator`].
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

    /// Sets the budget of attempts after failures, and for hedging. Default: [`RetryBudget::default`].
    #[must_use]
    pub fn retry_budget(mut self, budget: RetryBudget) -> Self {
        self.budget = budget;
        self
    }

    /// Finds agents in a directory, which a watch keeps up to date, instead of searching the registry.
    ///
    /// While the directory is out of date, the registry is searched. If that fails, the directory is used anyway, and the
    /// registry is tried only now and then. Default: none.
    #[must_use]
    pub fn directory(mut self, directory: Directory) -> Self {
        self.directory = Some(directory);
        self
    }

    /// Sends tasks and health checks to agents with this HTTP client, unchanged: its certificates, proxy, default headers and
    /// redirects apply.
    ///
    /// Default: a client with the settings of the registry's client, which follows a 307 or 308 to the same origin.
    #[must_use]
    pub fn http_client(mut self, client: reqwest::Client) -> Self {
        self.access.http = HttpClients::fixed(client);
        self
    }

    /// Sets a provider of tokens that are sent with each task, as `Authorization: Bearer …`.
    ///
    /// It is called before each attempt and must not block. Anyone who can register an agent can receive tasks, so return
    /// tokens only for agents that you know, by id or URL. Default: none.
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

    /// Sets a seed that makes random choices repeatable, for tests. Default: a random seed.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Creates the orchestrator. Sends nothing.
    #[must_use]
    pub fn build(self) -> Orchestrator {
        let Self { client, access, ejection, budget, directory, seed } = self;
        let random = seed.map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed);
        let states = AgentStates::new(ejection, budget, random);
        let (search_fallback, last_searches) = (SearchFallback::default(), LastSearches::default());
        Orchestrator {
            client,
            access,
            states,
            directory,
            search_fallback,
            last_searches,
            #[cfg(feature = "a2a")]
            cards: Cards::default(),
        }
    }
}

impl Orchestrator {
    /// Creates an orchestrator with default settings.
    #[must_use]
    pub fn new(client: RegistryClient) -> Self {
        Self::builder(client).build()
    }

    /// Returns a builder.
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

    /// Returns the client with which the orchestrator searches.
    #[must_use]
    pub fn client(&self) -> &RegistryClient {
        &self.client
    }

    /// Returns whether an agent gets tasks, judged by this orchestrator's own tasks.
    #[must_use]
    pub fn ejection(&self, agent_id: &str) -> EjectionState {
        self.states.ejection(agent_id)
    }

    /// Selects a healthy agent with a capability that has all of these words: one of the best matches, by the default
    /// [`Policy`](super::Policy).
    ///
    /// # Errors
    /// The same as those of [`Orchestrator::select`].
    pub async fn find_best_agent(&self, capability: impl Into<String>) -> Result<Selection, SelectError> {
        self.select(&TaskQuery::new(capability)).await
    }

    /// Selects a healthy agent for a capability, or for a fallback if there is none.
    ///
    /// Sends no task, despite its name: call [`Orchestrator::delegate`] for that.
    ///
    /// # Errors
    /// The same as those of [`Orchestrator::select`].
    pub async fn delegate_with_fallback(
        &self,
        primary: impl Into<String>,
        fallback: impl Into<String>,
    ) -> Result<Selection, SelectError> {
        self.select(&TaskQuery::new(primary).fallback(fallback)).await
    }
}
