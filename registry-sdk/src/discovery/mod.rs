//! Finding agents, also while the registry is away.

mod cache;
mod shelf;

pub use cache::{DiscoveryCache, DiscoveryCacheBuilder, SafeSearch, WhyEveryone};
pub use shelf::{Cached, Freshness};
