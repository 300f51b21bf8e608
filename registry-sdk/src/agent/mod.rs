//! The life of an agent: registration, heartbeats, repeated registration, and shutdown.
//!
//! Handles change the state that the registry should have (`shared`). A single loop reconciles it with the state that the
//! registry has acknowledged (`reconcile`). Nothing else sends requests.

mod attempt;
mod drain;
mod handle;
mod outcome;
mod reconcile;
mod run;
mod shared;
mod state;
mod supervise;
mod tasks;
mod timer;

pub use handle::Agent;
pub use run::{WorkOutcome, shutdown_signal};
pub use state::{AgentState, OnSuperseded, RegistrationOutcome};
pub use tasks::{TaskCounter, TaskGuard};
