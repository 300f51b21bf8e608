//! The PostgreSQL store, for production and for several servers over one database.

mod listener;
mod log;
mod migrations;
mod rows;
mod session;
mod start;
mod write;

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection, PgExecutor};

use super::{Database, Listener, Purpose, Result, Session};
use crate::config::MigrateMode;
use crate::server::StartError;
use listener::PostgresListener;
use session::PostgresSession;

/// Notification channel for changes.
const CHANGE_CHANNEL: &str = "agent_registry";

/// Prefix of the notification channel for broadcasts, which are not stored.
///
/// The id of the state table follows, since another schema of the database may hold another registry.
const BROADCAST_CHANNEL: &str = "agent_registry_news_";

/// Settings of every session, by name.
///
/// Set with a statement, since `PgBouncer` rejects them in the startup message.
const SETTINGS: &[(&str, &str)] = &[
    // A server that was suspended or cut off inside a transaction must not block the others for long.
    ("idle_in_transaction_session_timeout", "1s"),
    ("lock_timeout", "100ms"),
    ("statement_timeout", "2s"),
    ("default_transaction_isolation", "read committed"),
    // Every statement finds its rows by key, whatever the size of the batch and the table. A custom plan per
    // batch, or one made while the table was still empty, costs many times more.
    ("plan_cache_mode", "force_generic_plan"),
    ("enable_seqscan", "off"),
    ("jit", "off"),
];

/// Settings that some versions or platforms lack.
///
/// They let the database notice that this server is gone, and keep idle sessions open.
const OPTIONAL_SETTINGS: &[(&str, &str)] = &[
    ("client_connection_check_interval", "500ms"),
    ("tcp_user_timeout", "3s"),
    ("idle_session_timeout", "0"),
];

/// Additional settings of heartbeat sessions: a batch need not wait for the disk.
const HEARTBEAT_SETTINGS: &[(&str, &str)] = &[("synchronous_commit", "off")];

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

fn timed_out() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no response in time")
}

async fn apply_settings(executor: impl PgExecutor<'_>, settings: &[(&str, &str)]) -> sqlx::Result<()> {
    let (names, values): (Vec<&str>, Vec<&str>) = settings.iter().copied().unzip();
    sqlx::query(
        "SELECT set_config(name, value, false) FROM unnest($1::text[], $2::text[]) AS setting (name, value)",
    )
    .bind(names)
    .bind(values)
    .execute(executor)
    .await?;
    Ok(())
}

/// Applies the settings of a session, then the optional settings.
///
/// Optional settings are applied one by one and may fail, since some databases do not support them.
async fn set_up<E>(executor: &mut E, settings: &[(&str, &str)]) -> sqlx::Result<()>
where
    for<'e> &'e mut E: PgExecutor<'e>,
{
    apply_settings(&mut *executor, settings).await?;
    for setting in OPTIONAL_SETTINGS {
        let _ = apply_settings(&mut *executor, std::slice::from_ref(setting)).await;
    }
    Ok(())
}
