//! Starting and stopping a server.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use axum::serve::{Listener, ListenerExt};
use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::bulkhead::Bulkhead;
use crate::config::Config;
use crate::connections::ConnectionServer;
use crate::metrics::Metrics;
use crate::registry::Registry;
use crate::routes::{self, Gate};
use crate::store::{PostgresStore, SqliteStore, Store};
use crate::tls::{Tls, TlsError, TlsListener};
use crate::tokens::TokensError;

/// How many files the server has open beside its clients' connections, at most.
const OTHER_FILES: u64 = 64;

/// A running server.
///
/// It serves from [`Server::bind`] on, in tasks of its own. [`Server::shutdown`] stops it in good order;
/// dropping it stops it as well, without waiting.
#[derive(Debug)]
pub struct Server {
    local_addr: SocketAddr,
    /// Tells the tasks to end.
    stop: DropGuard,
    /// Knows when they have.
    tasks: TaskTracker,
    store: StoreHandle,
    gate: Arc<Gate>,
    tls: Option<Tls>,
}

/// What the server closes last.
struct StoreHandle(Arc<dyn Store>);

impl std::fmt::Debug for StoreHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.name())
    }
}

/// Why a server could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The database URL names no database that is known.
    #[error("the database URL has to begin with sqlite: or postgres:")]
    UnknownDatabase,
    /// The database cannot be reached or opened.
    #[error("cannot open the database {database}")]
    Database {
        /// The database's URL, without its password.
        database: String,
        /// What went wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The database's tables cannot be brought up to date.
    #[error("cannot bring the tables of {database} up to date")]
    Migrations {
        /// The database's URL, without its password.
        database: String,
        /// What went wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The database's file cannot be locked.
    #[error("cannot lock {0}")]
    DatabaseFile(PathBuf, #[source] io::Error),
    /// Another server uses the database's file.
    #[error(
        "another registry-server serves {0}: one SQLite file serves one server; several can share PostgreSQL"
    )]
    DatabaseInUse(PathBuf),
    /// The tokens file cannot be used.
    #[error(transparent)]
    Tokens(#[from] TokensError),
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The metrics cannot be set up: a defect.
    #[error("cannot set up the metrics")]
    Metrics(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The system gives no more threads.
    #[error("cannot start a thread")]
    Threads(#[source] io::Error),
    /// The address cannot be listened on.
    #[error("cannot listen on {0}")]
    Listen(SocketAddr, #[source] io::Error),
}

impl StartError {
    pub(crate) fn database(url: &str) -> impl FnOnce(sqlx::Error) -> Self {
        let database = without_password(url);
        |error| Self::Database { database, source: error.into() }
    }

    pub(crate) fn migrations(url: &str) -> impl FnOnce(sqlx::migrate::MigrateError) -> Self {
        let database = without_password(url);
        |error| Self::Migrations { database, source: error.into() }
    }
}

/// The URL as it may be shown and logged.
fn without_password(url: &str) -> String {
    let Ok(mut parsed) = url::Url::parse(url) else {
        return "at the URL that was given".to_owned();
    };
    if parsed.password().is_some() && parsed.set_password(Some("***")).is_err() {
        return "at the URL that was given".to_owned();
    }
    // A password may also stand among the parameters.
    parsed.set_query(None);
    parsed.to_string()
}

impl Server {
    /// Opens the database, brings its tables up to date, reads all agents, and begins to serve.
    ///
    /// # Errors
    /// Where the database or the address cannot be used; then nothing is left running.
    pub async fn bind(config: Config) -> Result<Self, StartError> {
        let stop = CancellationToken::new();
        let guard = stop.clone().drop_guard();
        let tasks = TaskTracker::new();
        let gate = Arc::new(Gate::open(config.tokens_file.clone())?);
        let tls = Tls::open(&config)?;
        let store = open(&config.database_url, &tasks, &stop).await?;
        let listen = config.listen;
        let listener = listen_on(listen).map_err(|error| StartError::Listen(listen, error))?;
        let local_addr = listener.local_addr().map_err(|error| StartError::Listen(listen, error))?;
        let database = without_password(&config.database_url);
        let max_connections = room_for_connections(&config);
        let metrics = Metrics::new().map_err(|error| StartError::Metrics(error.into()))?;
        let bulkhead = Bulkhead::start().map_err(StartError::Threads)?;
        let registry = Registry::start(store.clone(), config, metrics, bulkhead, &tasks, &stop)
            .await
            .map_err(|error| StartError::Database { database, source: error.into() })?;
        if gate.is_open() && !local_addr.ip().is_loopback() {
            tracing::warn!(
                %local_addr,
                "whoever reaches this address may register and remove agents: see --tokens-file"
            );
        }
        let router = routes::router(registry.clone(), gate.clone());
        // Only who limits rates asks for them.
        let insert_peer = registry.admission().has_rate_limit();
        let connections = ConnectionServer { router, insert_peer, max_connections, shutdown: stop };
        if let Some(tls) = tls.clone() {
            tasks.spawn(serve(connections, TlsListener::new(listener, tls), registry));
        } else {
            let listener = listener.tap_io(|connection| {
                // Without it small answers wait for the client's acknowledgement. One that cannot be set costs speed.
                let _ = connection.set_nodelay(true);
            });
            tasks.spawn(serve(connections, listener, registry));
        }
        tasks.close();
        tracing::info!(%local_addr, store = store.name(), "serving");
        Ok(Self { local_addr, stop: guard, tasks, store: StoreHandle(store), gate, tls })
    }

    /// Reads the tokens file and the certificate anew, where there are some. No request is dropped.
    ///
    /// # Errors
    /// Where one cannot be used: then it stays as it was.
    pub fn reload(&self) -> Result<(), StartError> {
        self.gate.reload()?;
        if let Some(tls) = &self.tls {
            tls.reload()?;
        }
        Ok(())
    }

    /// The address it listens on.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// The URL at which clients on this host reach it.
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
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{address}")
    }

    /// Stops accepting, lets the requests in flight finish for up to ten seconds, writes what they asked, and
    /// closes the database. Not to be cancelled: what is left then ends without order.
    pub async fn shutdown(self) {
        drop(self.stop);
        self.tasks.wait().await;
        self.store.0.close().await;
    }
}

async fn open(
    url: &str,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> Result<Arc<dyn Store>, StartError> {
    match url.split_once(':').map(|(scheme, _)| scheme) {
        Some("sqlite") => Ok(Arc::new(SqliteStore::open(url).await?)),
        Some("postgres" | "postgresql") => Ok(Arc::new(PostgresStore::open(url, tasks, stop).await?)),
        _ => Err(StartError::UnknownDatabase),
    }
}

/// Room for all the agents that come back at once after a restart: what does not fit has to be sent again by the client's
/// system, a second or more later.
const BACKLOG: u32 = 4_096;

fn listen_on(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A server that is started again takes its port back at once.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// As many connections as are wanted, or as many as the process may have open.
fn room_for_connections(config: &Config) -> usize {
    let wanted = config.max_connections.get();
    // Where it cannot be found out, accepting fails and is tried again.
    let files = rlimit::Resource::NOFILE.get_soft().unwrap_or(u64::MAX);
    let room = usize::try_from(files.saturating_sub(OTHER_FILES).max(1)).unwrap_or(usize::MAX);
    if room < wanted {
        tracing::warn!(
            wanted,
            room,
            "the system allows fewer open files than --max-connections wants: see ulimit -n"
        );
    }
    wanted.min(room)
}

/// Serves until the server is told to stop, and lets the registry's last writes end.
async fn serve<L: Listener<Addr = SocketAddr>>(
    connections: ConnectionServer,
    listener: L,
    registry: Arc<Registry>,
) {
    connections.serve(listener).await;
    registry.close();
}
