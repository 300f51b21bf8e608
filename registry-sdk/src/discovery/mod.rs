//! Discovery: finding agents for tasks, and delegating tasks to them.
//!
//! An [`Orchestrator`] selects the best healthy agent for a task. It can also delegate the task, failing over to the next agent
//! if one does not do it. A [`Directory`] keeps a copy of the registry, so that selections need no request. A
//! `DiscoveryCache` (feature `cache`) caches the responses of a [`RegistryClient`](crate::RegistryClient) instead.
//!
//! ```no_run
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use registry_sdk::discovery::{Directory, Orchestrator, TaskQuery};
//! use registry_sdk::RegistryClient;
//! use serde_json::{Value, json};
//!
//! let client = RegistryClient::new("http://127.0.0.1:8009")?;
//! let directory = Directory::follow(&client);
//! directory.ready().await?;
//! let orchestrator = Orchestrator::builder(client).directory(directory).build();
//!
//! let query = TaskQuery::describe("Look for security holes in this repository");
//! let task = json!({"repository": "https://example.org/code.git"});
//! let done = orchestrator.delegate(query).post_json::<Value>("/execute", &task).await?;
//! println!("{} responded: {}", done.selection.agent.agent_id, done.value);
//! # Ok(())
//! # }
//! ```

#[cfg(feature = "a2a")]
mod a2a_task;
mod agent_states;
mod attempt;
mod attempt_span;
mod budget;
#[cfg(feature = "cache")]
mod cache;
mod candidate;
mod checks;
mod delegate;
mod delegate_error;
mod directory;
mod directory_state;
mod ejection;
mod failover;
mod failure_kind;
mod found;
mod freshness;
mod http_task;
mod http_task_error;
mod load;
mod orchestrator;
mod order;
mod query;
#[cfg(feature = "cache")]
mod response_cache;
mod search;
mod search_fallback;
mod select;
mod selection;
mod snapshot;
mod task_error;
mod task_response;

pub use attempt::{AttemptTimeout, FailedAttempt};
pub use budget::RetryBudget;
#[cfg(feature = "cache")]
pub use cache::{DiscoveryCache, DiscoveryCacheBuilder, FallbackReason, SafeSearch};
pub use delegate::Delegation;
pub use delegate_error::{DelegateError, EndReason};
pub use directory::Directory;
pub use directory_state::DirectoryState;
pub use ejection::{EjectionSettings, EjectionState};
pub use failover::Delegated;
pub use failure_kind::FailureKind;
pub use freshness::Freshness;
pub use http_task_error::HttpTaskError;
pub use orchestrator::{Orchestrator, OrchestratorBuilder};
pub use query::{CapabilityQuery, HealthSource, Policy, TaskQuery};
#[cfg(feature = "cache")]
pub use response_cache::Cached;
pub use selection::{SelectError, Selection, SkipReason, Skipped};
pub use task_error::TaskError;
pub use task_response::TaskResponse;
