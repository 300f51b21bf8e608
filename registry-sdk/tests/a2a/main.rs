//! A2A agent cards: as registrations, and as an agent serves its own; and messages to agents.
#![cfg(feature = "a2a")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[cfg(feature = "testing")]
mod fakes;
mod mapping;
#[cfg(all(feature = "axum", feature = "testing"))]
mod own_card;
#[cfg(feature = "testing")]
mod sending;
