//! End-to-end tests: the server, driven by the SDK over a socket, on both databases.
//!
//! A test is an `async fn` that takes a [`Database`](support::Database) of its own. `on_both_databases!` makes a test of it
//! for each database. Run the tests with `./scripts/test`, which starts PostgreSQL.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod agent_life;
mod api_description;
mod ard;
mod behind_proxies;
mod below_a_path;
mod cards;
mod changed_by;
mod credentials;
mod database_metrics;
mod deadlines;
mod described_errors;
mod differing_replicas;
mod documents;
mod draining;
mod edited_rows;
mod encryption;
mod errors;
mod event_stream;
mod filters;
mod hostile;
mod instances;
mod lists;
mod maintenance;
mod metrics;
mod origins;
mod outages;
#[path = "../path_proxy/mod.rs"]
mod path_proxy;
mod probes;
mod registration;
mod replicas;
mod replicas_agree;
mod search;
mod status;
mod support;
mod taking_over;
mod tls_failures;
mod watched_files;
mod watching;
