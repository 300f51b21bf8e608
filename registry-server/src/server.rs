//! Starts and stops the server.

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use axum::serve::{Listener, ListenerExt};
#[cfg(target_os = "linux")]
use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::config::{Config, MigrateMode};
use crate::connections::{ConnectionServer, MAX_CONCURRENT_REJECTIONS};
use crate::credential_files::CredentialFiles;
use crate::listen_address::ListenAddress;
use crate::metrics::Metrics;
use crate::registry::{Registry, Supervisor};
use crate::routes::{self, Origins};
use crate::start_error::StartError;
use crate::store::{Database, PostgresDatabase, SqliteDatabase};
use crate::tls::{MAX_CONCURRENT_HANDSHAKES, TlsListener};

/// Maximum duration of a shutdown, and then of closing the database. Remaining work is dropped.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(9_500);
const CLOSE_TIMEOUT: Duration = Duration::from_millis(400);

/// Maximum number of open files besides client connections: the server's own, and rejected connections.
const RESERVED_FILES: u64 = 64 + MAX_CONCURRENT_REJECTIONS as u64;

/// A running server.
///
/// Serves in background tasks from [`Server::bind`] on. [`Server::shutdown`] stops it gracefully. Dropping it
/// also stops it, but does not wait.
#[derive(Debug)]
pub struct Server {
    local_addr: SocketAddr,
    drain_delay: Duration,
    /// Requests the shutdown when dropped.
    shutdown: DropGuard,
    supervisor: Supervisor,
    /// Closed after all tasks have ended.
    database: Arc<dyn Database>,
    credentials: Arc<CredentialFiles>,
}

impl Server {
    /// Opens and migrates the database, loads all agents, and starts to serve.
    ///
    /// # Errors
    /// Fails if the configuration, the database or the address cannot be used. In this case, nothing is left
    /// running.
    pub async fn bind(mut config: Config) -> Result<Self, StartError> {
        let shutdown = CancellationToken::new();
        let guard = shutdown.clone().drop_guard();
        let supervisor = Supervisor::new(shutdown.clone());
        let metrics = Metrics::new().map_err(|error| StartError::Metrics(error.into()))?;
        let credentials = Arc::new(CredentialFiles::open(&config, metrics.credentials.clone())?);
        let authenticator = credentials.authenticator().clone();
        let database = open_database(&config.database_url, config.migrate).await?;
        let listener = bind(&config.listen).await;
        let listener = listener.map_err(|error| StartError::Listen(config.listen.clone(), error))?;
        let local_addr = listener.local_addr();
        let local_addr = local_addr.map_err(|error| StartError::Listen(config.listen.clone(), error))?;
        let database_url = config.database_url.clone();
        config.max_connections = connection_limit(&config);
        let (max_connections, drain_delay) = (config.max_connections.get(), config.drain_delay);
        let allowed_hosts = config.allowed_hosts.clone();
        let registry = Registry::start(database.clone(), config, metrics, &supervisor)
            .await
            .map_err(StartError::database(&database_url))?;
        let is_loopback = local_addr.ip().to_canonical().is_loopback();
        if authenticator.is_disabled() && !is_loopback {
            tracing::warn!(
                %local_addr,
                "serving without authentication, so any client can register and remove agents: see --tokens-file"
            );
        }
        let origins = authenticator.is_disabled().then(|| Origins::new(allowed_hosts, is_loopback));
        let router = routes::router(registry.clone(), authenticator, origins);
        let rejecting_router = routes::rejecting_router();
        let drain = supervisor.drain().clone();
        let slots = registry.admission().connections().clone();
        let connections = ConnectionServer { router, rejecting_router, slots, drain, shutdown };
        if let Some(tls) = credentials.tls().cloned() {
            let served = serve(connections, TlsListener::new(listener, tls, max_connections), registry);
            supervisor.spawn_until("connections", supervisor.shutdown().clone(), served);
        } else {
            let listener = listener.tap_io(|connection| {
                // Otherwise, small responses wait for the client's acknowledgement. A failure only costs
                // latency.
                let _ = connection.set_nodelay(true);
            });
            let served = serve(connections, listener, registry);
            supervisor.spawn_until("connections", supervisor.shutdown().clone(), served);
        }
        if !credentials.is_empty() {
            supervisor.spawn("credential files", credentials.clone().watch());
        }
        supervisor.close();
        tracing::info!(%local_addr, store = database.name(), "accepting connections");
        Ok(Self { local_addr, drain_delay, shutdown: guard, supervisor, database, credentials })
    }

    /// Reloads the configured tokens file and TLS files at once, without dropping a request.
    ///
    /// The server also reloads them by itself, a few seconds after a change.
    ///
    /// # Errors
    /// Fails at the first file that cannot be used. In this case, tokens and certificate all stay unchanged.
    pub fn reload(&self) -> Result<(), StartError> {
        self.credentials.reload()
    }

    /// Returns the address that the server listens on.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Returns the URL at which clients on this host reach the server.
    #[must_use]
    pub fn url(&self) -> String {
        let mut address = self.local_addr;
        if address.ip().is_unspecified() {
            let loopback: std::net::IpAddr = match address {
                SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
            };
            address.set_ip(loopback);
        }
        let scheme = if self.credentials.tls().is_some() { "https" } else { "http" };
        format!("{scheme}://{address}")
    }

    /// Waits until the server has failed. Never returns if it does not fail.
    ///
    /// A failure means that one of its tasks ended unexpectedly, which is a bug. The server has to be shut
    /// down and restarted.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn failure(&self) -> ServeError {
        ServeError { task: self.supervisor.failure().await }
    }

    /// Begins to drain the server, and returns after [`Config::drain_delay`].
    ///
    /// From now on, `GET /readyz` answers 503, each connection is closed after its next response, and event
    /// streams end, so that clients switch to another server. All requests are still answered. Draining
    /// cannot be undone: call [`Server::shutdown`] next.
    ///
    /// # Cancel safety
    /// Cancel safe: the server stays drained, and may be shut down at once.
    pub async fn drain(&self) {
        self.supervisor.drain().begin();
        tokio::time::sleep(self.drain_delay).await;
    }

    /// Shuts the server down gracefully, within ten seconds, without the delay of [`Server::drain`].
    ///
    /// Stops accepting connections, waits for requests in flight, completes their writes, and closes the
    /// database. Work that has not finished after 9.5 seconds is dropped.
    ///
    /// # Cancel safety
    /// Not cancel safe: after a cancelled shutdown, the tasks end on their own, and the database is not
    /// closed.
    pub async fn shutdown(self) {
        drop(self.shutdown);
        if timeout(SHUTDOWN_TIMEOUT, self.supervisor.wait()).await.is_err() {
            tracing::warn!("some work did not finish within the shutdown timeout, dropping it");
            self.supervisor.abort();
            self.supervisor.wait().await;
        }
        // Closing the database may hang as well.
        let _ = timeout(CLOSE_TIMEOUT, self.database.close()).await;
    }
}

/// Error of a server that failed while it was running.
#[derive(Debug, thiserror::Error)]
#[error("the server's task {task:?} ended unexpectedly, which is a bug: see the log")]
pub struct ServeError {
    task: &'static str,
}

async fn open_database(url: &str, mode: MigrateMode) -> Result<Arc<dyn Database>, StartError> {
    match url.split_once(':').map(|(scheme, _)| scheme) {
        Some("sqlite") => Ok(Arc::new(SqliteDatabase::open(url, mode).await?)),
        Some("postgres" | "postgresql") => Ok(Arc::new(PostgresDatabase::open(url, mode).await?)),
        _ => Err(StartError::UnknownDatabase),
    }
}

/// Creates or upgrades the tables of a database, as a server does at startup with [`MigrateMode::Auto`].
///
/// # Errors
/// Fails if the database cannot be used.
pub async fn migrate(database_url: &str) -> Result<(), StartError> {
    open_database(database_url, MigrateMode::Auto).await?.close().await;
    Ok(())
}

/// Length of the listen queue. Large enough for all agents that reconnect after a restart.
///
/// A client that finds the queue full has to retry its handshake, a second or more later.
const LISTEN_BACKLOG: u32 = 4_096;

/// Maximum number of unsent bytes that the operating system buffers per connection.
///
/// Without a limit, it buffers up to 4 MiB of a response that the client does not read. Bytes on their way to
/// the client do not count, so fast readers are not slowed down.
#[cfg(target_os = "linux")]
const MAX_UNSENT_BYTES: u32 = 32 * 1_024;

async fn bind(address: &ListenAddress) -> io::Result<TcpListener> {
    let address = address.resolve().await?;
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Accepted connections inherit this option.
    #[cfg(target_os = "linux")]
    SockRef::from(&socket).set_tcp_notsent_lowat(MAX_UNSENT_BYTES)?;
    // Allows a restarted server to bind its port again at once.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(LISTEN_BACKLOG)
}

/// Returns the configured connection limit, lowered to what the open-file limit allows.
fn connection_limit(config: &Config) -> NonZeroUsize {
    let configured = config.max_connections;
    // If the open-file limit is unknown, accepting fails at the limit, and is retried.
    let files = rlimit::Resource::NOFILE.get_soft().unwrap_or(u64::MAX);
    let available = usize::try_from(files.saturating_sub(RESERVED_FILES)).unwrap_or(usize::MAX);
    // Handshakes need additional files, up to half as many as connections.
    let handshakes =
        if config.tls_cert.is_some() { (available / 3).min(MAX_CONCURRENT_HANDSHAKES) } else { 0 };
    let available = available - handshakes;
    let available = NonZeroUsize::new(available).unwrap_or(NonZeroUsize::MIN);
    if available < configured {
        tracing::warn!(
            configured,
            available,
            "open-file limit is below --max-connections, accepting fewer connections: see ulimit -n"
        );
    }
    configured.min(available)
}

/// Serves until the shutdown is requested, and then closes the registry to new writes.
async fn serve<L: Listener<Addr = SocketAddr>>(
    connections: ConnectionServer,
    listener: L,
    registry: Arc<Registry>,
) {
    connections.serve(listener).await;
    registry.close();
}
