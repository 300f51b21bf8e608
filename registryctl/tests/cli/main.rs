//! The program as people, scripts and MCP clients run it, against real servers and the mock registry.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod card_import;
mod commands;
mod documents;
mod filters;
#[cfg(feature = "mcp")]
mod mcp;
mod support;
mod transfer;
#[cfg(not(feature = "mcp"))]
mod without_mcp;
