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
//! Each layer calls only the next one: `routes` handles HTTP, `registry` has the rules and every agent in
//! memory, and `store` persists them.

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
mod store;
mod tls;
mod tokens;

pub use config::{Config, MigrateMode};
pub use listen_address::{ListenAddress, ParseListenAddressError};
pub use server::{ServeError, Server, StartError, migrate};
pub use tls::TlsError;
pub use tokens::{NewToken, TokensError};

/// The examples of the project's README, which are tested like those of the documentation.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
mod readme {}
