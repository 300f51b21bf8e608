//! The registry under torture: floods, lost databases, killed replicas, clocks that jump, a long time.
//!
//! `./scripts/test` runs each scenario for some seconds; `./scripts/torture` at full length, and shows what it measured.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(clippy::cast_precision_loss, reason = "rates and ratios are shown to a few digits")]
#![allow(clippy::print_stdout, reason = "it shows what it measured")]

mod clocks;
mod database;
mod dawdlers;
mod history;
mod overload;
mod replicas;
mod soak;
mod support;
mod twins;
