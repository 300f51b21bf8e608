//! A2A agent cards: as registrations, and as an agent serves its own.
#![cfg(feature = "a2a")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod mapping;
#[cfg(all(feature = "axum", feature = "testing"))]
mod own_card;
