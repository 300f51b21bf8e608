//! A2A: cards made into registrations, the card that an agent serves, and messages to agents.
#![cfg(feature = "a2a")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[cfg(feature = "testing")]
mod cards_kept;
#[cfg(feature = "testing")]
mod failing;
#[cfg(feature = "testing")]
mod fakes;
#[cfg(feature = "testing")]
mod given_up;
#[cfg(feature = "testing")]
mod long_tasks;
mod mapping;
#[cfg(feature = "testing")]
mod odd_agents;
#[cfg(feature = "testing")]
mod other_registries;
#[cfg(all(feature = "axum", feature = "testing"))]
mod own_card;
#[cfg(feature = "testing")]
mod polling;
#[cfg(feature = "testing")]
mod refusals;
#[cfg(feature = "testing")]
mod responses;
#[cfg(feature = "testing")]
mod sending;
