//! The client and the agent against registries that fail, mostly on a paused clock.
#![cfg(feature = "client")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod agent;
#[cfg(feature = "testing")]
mod agents;
#[cfg(feature = "cache")]
mod cache;
#[cfg(all(feature = "cache", feature = "testing"))]
mod cache_outages;
#[cfg(feature = "testing")]
mod calls;
#[cfg(all(feature = "a2a", feature = "testing"))]
mod cards;
mod client;
#[cfg(all(feature = "metrics", feature = "testing"))]
mod counts;
#[cfg(feature = "testing")]
mod delegate;
#[cfg(all(feature = "axum", feature = "testing"))]
mod delegated_task;
#[cfg(feature = "testing")]
mod drain;
mod environment;
#[cfg(feature = "testing")]
mod filters;
#[cfg(all(feature = "axum", feature = "testing"))]
mod health;
#[cfg(feature = "testing")]
mod life;
#[cfg(feature = "testing")]
mod logs;
#[cfg(feature = "testing")]
mod matrix;
mod minimal;
#[cfg(feature = "testing")]
mod monitor;
mod network;
#[cfg(all(feature = "cache", feature = "testing"))]
mod odd_answers;
#[cfg(all(feature = "cache", feature = "testing"))]
mod odd_registries;
#[cfg(feature = "testing")]
mod orchestrate;
#[cfg(feature = "testing")]
mod own_health;
#[cfg(feature = "testing")]
mod ownership;
#[cfg(all(feature = "cache", feature = "testing"))]
mod partial_outages;
#[cfg(all(feature = "axum", feature = "testing"))]
mod promises;
#[cfg(feature = "testing")]
mod reconcile;
mod run;
#[cfg(feature = "testing")]
mod scene;
#[cfg(feature = "testing")]
mod shutdown;
#[cfg(feature = "testing")]
mod stricter;
mod support;
#[cfg(feature = "testing")]
mod tolerant;
#[cfg(feature = "testing")]
mod untraced;
#[cfg(feature = "testing")]
mod watch;
#[cfg(feature = "testing")]
mod watching;
mod wiremock_server;
