//! The registry under torture: floods, lost databases, killed replicas, jumping clocks, and long runs.
//!
//! `./scripts/test` runs each scenario for a few seconds. `./scripts/torture` runs it at full length and
//! prints measurements.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(clippy::cast_precision_loss, reason = "rates and ratios are printed with a few digits")]
#![allow(clippy::print_stdout, reason = "prints measurements")]

mod black_holes;
mod change_log;
mod clocks;
mod database;
mod dawdlers;
mod differing_servers;
mod drain;
mod edited_rows;
mod failover;
mod forgotten_agents;
mod history;
mod killed_after_an_answer;
mod lost_commits;
mod odd_databases;
mod odd_deadlines;
mod odd_rows;
mod overload;
mod poolers;
mod production;
mod read_only;
mod replicas;
mod row_locks;
mod short_outages;
mod soak;
mod support;
mod suspended;
mod twins;
mod unreadable_rows;
mod watches;
