//! Finding agents for tasks, and handing the tasks over.

mod breaker;
#[cfg(feature = "cache")]
mod cache;
mod candidate;
mod delegate;
mod directory;
mod freshness;
mod order;
mod query;
mod select;
#[cfg(feature = "cache")]
mod shelf;

pub use breaker::{BreakerSettings, CircuitState};
#[cfg(feature = "cache")]
pub use cache::{DiscoveryCache, DiscoveryCacheBuilder, SafeSearch, WhyEveryone};
pub use delegate::{DelegateError, Delegated, Delegation, HttpTaskError, TaskError};
pub use directory::Directory;
pub use freshness::Freshness;
pub use query::{HealthFrom, Policy, TaskQuery};
pub use select::{Orchestrator, PassedOver, SelectError, Selection, Why};
#[cfg(feature = "cache")]
pub use shelf::Cached;
