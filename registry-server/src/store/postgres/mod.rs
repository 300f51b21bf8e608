//! The PostgreSQL store, for production and for several servers that share a database.

mod heartbeats;
mod listener;
mod log;
mod migrations;
mod rows;
mod session;
mod settings;
mod start;
mod write;

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use async_trait::async_trait;
use sqlx::Connection;
use sqlx::postgres::{PgConnectOptions, PgConnection};

use crate::config::MigrateMode;
use crate::start_error::StartError;
use crate::store::error::Result;
use crate::store::session::{Database, Listener, Purpose, Session};
use listener::PostgresListener;
use session::PostgresSession;
use settings::{HEARTBEAT_SETTINGS, SETTINGS, apply_settings, set_up};

pub(crate) struct PostgresDatabase {
    options: PgConnectOptions,
    /// Identifies this process's own notifications, which it ignores.
    process_id: Arc<str>,
}

impl PostgresDatabase {
    /// Connects to the database and migrates it.
    pub(crate) async fn open(url: &str, mode: MigrateMode) -> std::result::Result<Self, StartError> {
        let options = start::connect_options(url).map_err(StartError::database(url))?;
        let mut connection = start::connect(&options).await.map_err(StartError::database(url))?;
        start::require_sessions(&mut connection, &options).await.map_err(StartError::database(url))?;
        let failed = |error| StartError::migrations(url)(start::explain_migration(error, &options));
        if !migrations::is_current(&mut connection).await.map_err(failed)? {
            match mode {
                MigrateMode::Auto => migrations::run(&options).await.map_err(failed)?,
                MigrateMode::Never => return Err(StartError::migration_required(url)),
            }
        }
        let process_id = format!("{:016x}", RandomState::new().hash_one(std::process::id()));
        Ok(Self { options, process_id: process_id.into() })
    }
}

#[async_trait]
impl Database for PostgresDatabase {
    fn name(&self) -> &'static str {
        "postgres"
    }

    fn is_shared(&self) -> bool {
        true
    }

    async fn connect(&self, purpose: Purpose) -> Result<Box<dyn Session>> {
        let mut connection = PgConnection::connect_with(&self.options).await?;
        set_up(&mut connection, SETTINGS).await?;
        if purpose == Purpose::Heartbeats {
            apply_settings(&mut connection, HEARTBEAT_SETTINGS).await?;
        }
        Ok(Box::new(PostgresSession::new(connection, self.process_id.clone())))
    }

    async fn listen(&self) -> Result<Box<dyn Listener>> {
        Ok(Box::new(PostgresListener::connect(&self.options, self.process_id.clone()).await?))
    }

    async fn close(&self) {}
}
