//! An agent's life: registration, heartbeats, registering again, and an orderly end.
//!
//! Handles change the state that the registry is to have (`shared`). One loop reconciles it with the state that the registry
//! has acknowledged (`reconcile`); nothing else sends anything.

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
