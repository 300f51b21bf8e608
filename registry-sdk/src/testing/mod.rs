//! Test doubles for agents and orchestrators: a mock registry and a faulty network (feature `testing`).
//!
//! [`MockRegistry`] follows the contract, keeps its agents in memory, and fails on request. [`FaultProxy`] sits in front of any
//! server and disturbs its connections. Both run in the test's own runtime, so they work with Tokio's paused clock
//! (`#[tokio::test(start_paused = true)]`): a test of an hour-long outage takes milliseconds.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), registry_sdk::Error> {
//! use std::time::Duration;
//! use registry_sdk::Agent;
//! use registry_sdk::contract::Registration;
//! use registry_sdk::testing::MockRegistry;
//!
//! let registry = MockRegistry::start().await;
//! let agent = Agent::new(registry.client(), Registration::new("a", "Agent", "http://agent:8000"));
//! agent.register().await?;
//!
//! registry.fail_next(1, 503);
//! agent.start_heartbeat(Duration::from_millis(20))?;
//! registry.wait_until(|seen| seen.heartbeats("a") >= 3).await;
//! # Ok(())
//! # }
//! ```

mod event_stream;
mod faults;
mod log;
mod mock;
mod proxy;
mod request_log;
mod routes;
mod state;

pub use mock::{MockRegistry, MockRegistryBuilder};
pub use proxy::{Fault, FaultProxy};
pub use request_log::{ReceivedRequest, RequestLog};
pub use state::Backup;
