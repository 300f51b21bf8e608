//! A session that listens for changes by other servers and for broadcasts.

use std::sync::Arc;

use async_trait::async_trait;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};

use super::log::read_log;
use super::settings::{SETTINGS, set_up};
use crate::store::error::Result;
use crate::store::log::LogPage;
use crate::store::session::{Listener, LogReader, Notification};

/// Notification channel for changes.
pub(super) const CHANGE_CHANNEL: &str = "agent_registry";

/// Prefix of the notification channel for broadcasts, which are not stored.
///
/// The id of the state table follows, since another schema of the database may hold another registry.
pub(super) const BROADCAST_CHANNEL: &str = "agent_registry_news_";

pub(super) struct PostgresListener {
    listener: PgListener,
    broadcast_channel: String,
    process_id: Arc<str>,
}

impl PostgresListener {
    pub(super) async fn connect(options: &PgConnectOptions, process_id: Arc<str>) -> Result<Self> {
        // `PgListener` only accepts connections from a pool, so this pool serves the listener alone. A
        // dropped listener ends its session in the background. If the connection hangs, that takes until the
        // operating system gives it up, but nothing waits for it.
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .max_lifetime(None)
            .idle_timeout(None)
            .test_before_acquire(false)
            .connect_lazy_with(options.clone());
        let mut listener = PgListener::connect_with(&pool).await?;
        listener.eager_reconnect(false);
        set_up(&mut listener, SETTINGS).await?;
        let broadcast_channel: String =
            sqlx::query_scalar("SELECT $1::text || 'agent_registry_state'::regclass::oid")
                .bind(BROADCAST_CHANNEL)
                .fetch_one(&mut listener)
                .await?;
        listener.listen_all([CHANGE_CHANNEL, &broadcast_channel]).await?;
        Ok(Self { listener, broadcast_channel, process_id })
    }
}

#[async_trait]
impl LogReader for PostgresListener {
    async fn read_log(&mut self, from: i64) -> Result<LogPage> {
        Ok(read_log(&mut self.listener, from).await?)
    }
}

#[async_trait]
impl Listener for PostgresListener {
    async fn notified(&mut self) -> Result<Notification> {
        loop {
            let notification = self.listener.try_recv().await?;
            // `None` means that the connection was lost, and notifications with it. The caller opens a new
            // listener.
            let notification = notification.ok_or(sqlx::Error::WorkerCrashed)?;
            if notification.channel() == self.broadcast_channel {
                return Ok(Notification::Broadcast(notification.payload().to_owned()));
            }
            if notification.payload() != &*self.process_id {
                return Ok(Notification::Changed);
            }
        }
    }
}
