//! The client and the agent against registries that misbehave, mostly on a paused clock.
#![cfg(feature = "client")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod agent;
#[cfg(feature = "cache")]
mod cache;
mod client;
#[cfg(all(feature = "metrics", feature = "testing"))]
mod counts;
#[cfg(feature = "testing")]
mod delegate;
#[cfg(all(feature = "axum", feature = "testing"))]
mod health;
#[cfg(feature = "testing")]
mod life;
#[cfg(feature = "testing")]
mod matrix;
#[cfg(feature = "testing")]
mod monitor;
#[cfg(feature = "testing")]
mod orchestrate;
#[cfg(feature = "testing")]
mod scene;
mod support;
#[cfg(feature = "testing")]
mod watch;
