//! A thin agent registry over SQLite or PostgreSQL, as a library.
//!
//! The program, the examples and the tests all start it with [`Server::bind`].
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), registry_server::StartError> {
//! use registry_server::{Config, Server};
//!
//! let config = Config {
//!     listen: ([127, 0, 0, 1], 0).into(),
//!     database_url: "sqlite::memory:".to_owned(),
//!     ..Config::default()
//! };
//! let server = Server::bind(config).await?;
//! println!("the registry answers at {}", server.url());
//! server.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! Each layer only calls the next one: `routes` handles HTTP, `registry` applies the rules and keeps every
//! agent in memory, and `store` persists the agents.

mod admission;
mod certificate;
mod config;
mod connections;
mod credential_files;
mod drain;
mod file_contents;
mod line_limit;
mod listen_address;
mod metrics;
mod networks;
mod registry;
mod routes;
mod server;
#[cfg(test)]
#[path = "../tests/simulation/mod.rs"]
mod simulation;
mod start_error;
mod store;
mod tls;
mod tokens;

pub use config::{Config, MigrateMode};
pub use listen_address::{ListenAddress, ParseListenAddressError};
pub use server::{ServeError, Server, migrate};
pub use start_error::StartError;
pub use tls::TlsError;
pub use tokens::{NewToken, TokensError};

/// The examples in the project's documentation, tested like those of the API.
#[cfg(doctest)]
mod documents {
    #[doc = include_str!("../../README.md")]
    mod readme {}
    #[doc = include_str!("../../docs/a2a.md")]
    mod a2a {}
    #[doc = include_str!("../../docs/agents.md")]
    mod agents {}
    #[doc = include_str!("../../docs/architecture.md")]
    mod architecture {}
    #[doc = include_str!("../../docs/contract.md")]
    mod contract {}
    #[doc = include_str!("../../docs/migrating-from-python.md")]
    mod migrating_from_python {}
    #[doc = include_str!("../../docs/orchestrators.md")]
    mod orchestrators {}
    #[doc = include_str!("../../docs/testing.md")]
    mod testing {}
    #[doc = include_str!("../../docs/tracing.md")]
    mod tracing {}
}
