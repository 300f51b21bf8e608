//! Databases, servers, processes and clients for the tests of all packages.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::missing_panics_doc,
    clippy::must_use_candidate,
    reason = "only tests call it, and a test fails by panicking"
)]

mod client;
mod database;
mod process;
mod server;
mod wait;

pub use client::{agent, impatient_client, patient_client};
pub use database::Database;
pub use process::{Process, send_signal};
pub use server::{ServerProcess, lasting_address, start_server};
pub use wait::{LONG, NEVER, eventually, within};
