//! Discovery: finding agents for tasks, and delegating the tasks.

mod breaker;
#[cfg(feature = "cache")]
mod cache;
mod candidate;
mod delegate;
mod directory;
mod freshness;
mod order;
mod query;
#[cfg(feature = "cache")]
mod response_cache;
mod select;

pub use breaker::{BreakerSettings, CircuitState};
#[cfg(feature = "cache")]
pub use cache::{DiscoveryCache, DiscoveryCacheBuilder, FallbackReason, SafeSearch};
pub use delegate::{DelegateError, Delegated, Delegation, HttpTaskError, TaskError};
pub use directory::Directory;
pub use freshness::Freshness;
pub use query::{HealthSource, Policy, TaskQuery};
#[cfg(feature = "cache")]
pub use response_cache::Cached;
pub use select::{Orchestrator, OrchestratorBuilder, SelectError, Selection, SkipReason, Skipped};
