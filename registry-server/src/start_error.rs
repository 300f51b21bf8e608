//! Errors that prevent a server from starting.

use std::io;
use std::path::PathBuf;

use crate::listen_address::ListenAddress;
use crate::tls::TlsError;
use crate::tokens::TokensError;

/// Error that prevents a server from starting.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The database URL has an unknown scheme.
    #[error("the database URL must begin with sqlite: or postgres:")]
    UnknownDatabase,
    /// The database cannot be reached or opened.
    #[error("cannot open the database {database}")]
    Database {
        /// The database URL, without the password.
        database: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The database schema cannot be migrated.
    #[error("cannot migrate the database {database}")]
    Migrations {
        /// The database URL, without the password.
        database: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The tables are missing or outdated, and the server must not change them ([`MigrateMode::Never`](crate::MigrateMode::Never)).
    #[error(
        "the tables of the database {database} are missing or older than this server: run registry-server migrate, as a role \
         that may change them"
    )]
    MigrationRequired {
        /// The database URL, without the password.
        database: String,
    },
    /// The SQLite file cannot be locked.
    #[error("cannot lock the database file {0}")]
    LockDatabase(PathBuf, #[source] io::Error),
    /// Another server uses the SQLite file.
    #[error(
        "another registry-server uses {0}: only one server can use an SQLite file; to run several, use PostgreSQL"
    )]
    DatabaseInUse(PathBuf),
    /// The tokens file cannot be used.
    #[error(transparent)]
    Tokens(#[from] TokensError),
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The metrics cannot be set up, which is a bug.
    #[error("cannot set up the metrics")]
    Metrics(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The server cannot listen on the address.
    #[error("cannot listen on {0}")]
    Listen(ListenAddress, #[source] io::Error),
}

impl StartError {
    pub(crate) fn database<E: Into<BoxError>>(url: &str) -> impl FnOnce(E) -> Self {
        let database = redact_password(url);
        |error| Self::Database { database, source: error.into() }
    }

    pub(crate) fn migrations<E: Into<BoxError>>(url: &str) -> impl FnOnce(E) -> Self {
        let database = redact_password(url);
        |error| Self::Migrations { database, source: error.into() }
    }

    pub(crate) fn migration_required(url: &str) -> Self {
        Self::MigrationRequired { database: redact_password(url) }
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Returns the URL in a form that may be displayed and logged.
fn redact_password(url: &str) -> String {
    let Ok(mut parsed) = url::Url::parse(url) else {
        return "at the configured URL".to_owned();
    };
    if parsed.password().is_some() && parsed.set_password(Some("***")).is_err() {
        return "at the configured URL".to_owned();
    }
    // The query may also contain a password.
    parsed.set_query(None);
    parsed.to_string()
}
