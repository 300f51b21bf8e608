//! Start-up: the connection URL, the first connection, and errors that say what to do.

use std::error::Error;
use std::fs::File;
use std::io;
use std::str::FromStr;
use std::time::Duration;

use rustls::CertificateError;
use sqlx::migrate::MigrateError;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection, Row};
use tokio::time::{Instant, sleep, timeout};

/// Timeout of a connection at the start. Its failure explains why the database cannot be used.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a start waits for a database that does not accept writes yet, such as during a failover.
///
/// Exiting instead would take longer, since supervisors restart a process with increasing delays. Must be
/// shorter than the liveness probe in `deploy/kubernetes` allows.
const WRITABLE_TIMEOUT: Duration = Duration::from_secs(20);
const WRITABLE_INTERVAL: Duration = Duration::from_millis(500);

/// PostgreSQL's code for "the database system is starting up" or "shutting down".
const CANNOT_CONNECT_NOW: &str = "57P03";

/// PostgreSQL's code for a missing privilege.
const INSUFFICIENT_PRIVILEGE: &str = "42501";

/// URL parameters that name files, including sqlx's aliases of PostgreSQL's names.
const FILE_PARAMETERS: &[&str] =
    &["sslrootcert", "ssl-root-cert", "ssl-ca", "sslcert", "ssl-cert", "sslkey", "ssl-key"];

pub(super) type BoxError = Box<dyn Error + Send + Sync>;

/// An error, preceded by advice: what it means and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{advice}")]
struct Explained {
    advice: String,
    #[source]
    source: BoxError,
}

/// Adds advice to a database error, if there is any.
pub(super) fn explain(error: sqlx::Error, options: &PgConnectOptions) -> BoxError {
    explained(advice(&error, options), error)
}

/// Adds advice to a migration error, if there is any.
pub(super) fn explain_migration(error: MigrateError, options: &PgConnectOptions) -> BoxError {
    explained(sqlx_error(&error).and_then(|error| advice(error, options)), error)
}

fn explained(advice: Option<String>, error: impl Into<BoxError>) -> BoxError {
    let source = error.into();
    match advice {
        Some(advice) => Explained { advice, source }.into(),
        None => source,
    }
}

/// Parses the connection URL, and checks that its files can be read.
pub(super) fn connect_options(url: &str) -> Result<PgConnectOptions, BoxError> {
    if has_several_hosts(url) {
        return Err("the URL has several hosts, which is not supported: give one address that leads to the primary, such \
             as a virtual IP address, a service of your cluster manager, HAProxy or PgBouncer"
            .into());
    }
    for (name, path) in url::Url::parse(url)?.query_pairs() {
        if FILE_PARAMETERS.contains(&&*name) {
            File::open(&*path)
                .map_err(|error| format!("cannot read {path}, the {name} of the URL: {error}"))?;
        }
    }
    let options = PgConnectOptions::from_str(url)?;
    // PgBouncer rejects extra_float_digits in the startup message. It is not needed, since floats are sent in
    // binary.
    Ok(options.application_name("registry-server").extra_float_digits(None))
}

/// Whether the URL lists several hosts, as PostgreSQL's own clients allow.
///
/// Without this check, the list would only cause an error about its commas.
fn has_several_hosts(url: &str) -> bool {
    let (_, rest) = url.split_once("://").unwrap_or_default();
    let (hosts, query) = rest.split_once('?').unwrap_or((rest, ""));
    let hosts = hosts.split('/').next().unwrap_or_default();
    let hosts = hosts.rsplit('@').next().unwrap_or_default();
    let parameters = url::form_urlencoded::parse(query.as_bytes());
    hosts.contains(',')
        || parameters.into_iter().any(|(name, value)| name.starts_with("host") && value.contains(','))
}

/// Waits until the database accepts writes, and returns a connection.
pub(super) async fn connect(options: &PgConnectOptions) -> Result<PgConnection, BoxError> {
    let deadline = Instant::now() + WRITABLE_TIMEOUT;
    let mut has_warned = false;
    loop {
        let obstacle = match timeout(CONNECT_TIMEOUT, connect_writable(options)).await {
            Ok(Ok(Ok(connection))) => return Ok(connection),
            Ok(Ok(Err(reason))) => BoxError::from(reason),
            Ok(Err(error)) if has_code(&error, CANNOT_CONNECT_NOW) => error.into(),
            Ok(Err(error)) => return Err(explain(error, options)),
            Err(_) => return Err(timed_out().into()),
        };
        if Instant::now() >= deadline {
            return Err(obstacle);
        }
        if !has_warned {
            let limit = WRITABLE_TIMEOUT;
            tracing::warn!(%obstacle, ?limit, "the database does not accept writes yet, waiting until it does");
            has_warned = true;
        }
        sleep(WRITABLE_INTERVAL).await;
    }
}

/// Connects, and returns either the connection or the reason why the database does not accept writes.
async fn connect_writable(options: &PgConnectOptions) -> sqlx::Result<Result<PgConnection, String>> {
    let mut connection = PgConnection::connect_with(options).await?;
    let query = "SELECT pg_is_in_recovery(), current_setting('transaction_read_only') = 'on'";
    let row = sqlx::raw_sql(query).fetch_one(&mut connection).await?;
    let (is_standby, is_read_only): (bool, bool) = (row.try_get(0)?, row.try_get(1)?);
    let alternative = "use the address of the primary, or one that follows it";
    Ok(if is_standby {
        Err(format!("the database is a standby, which does not accept writes: promote it, or {alternative}"))
    } else if is_read_only {
        Err(format!(
            "the database is read-only: reset default_transaction_read_only of the server, the database and the role {}, \
             or {alternative}",
            options.get_username()
        ))
    } else {
        Ok(connection)
    })
}

/// Fails if a pooler does not keep the session: settings, locks and `LISTEN` would apply to other sessions.
pub(super) async fn require_sessions(
    connection: &mut PgConnection,
    options: &PgConnectOptions,
) -> Result<(), BoxError> {
    let advice = "a pooler does not keep sessions: set pool_mode = session for this database in PgBouncer, or give the \
                  address of PostgreSQL itself";
    match timeout(CONNECT_TIMEOUT, keeps_session(connection, options)).await {
        Ok(Ok(true)) => Ok(()),
        Ok(Ok(false)) => Err(advice.into()),
        // PgBouncer's response to BEGIN in statement pooling mode, which has no code of its own.
        Ok(Err(error)) if error.to_string().contains("statement pooling") => {
            Err(explained(Some(advice.to_owned()), error))
        }
        Ok(Err(error)) => Err(explain(error, options)),
        Err(_) => Err(timed_out().into()),
    }
}

/// Whether the connection keeps its session while another connection is in a transaction.
///
/// A pooler that does not keep sessions has to switch this one's, since it hands out the most recently used
/// session first.
async fn keeps_session(connection: &mut PgConnection, options: &PgConnectOptions) -> sqlx::Result<bool> {
    let mut other = PgConnection::connect_with(options).await?;
    let before = session_id(connection).await?;
    // The role may limit the time that transactions are idle.
    let begin = "BEGIN; SET LOCAL idle_in_transaction_session_timeout = 0";
    sqlx::raw_sql(begin).execute(&mut other).await?;
    let after = session_id(connection).await?;
    sqlx::raw_sql("ROLLBACK").execute(&mut other).await?;
    Ok(before == after)
}

/// Uses a raw statement, since a pooler that does not keep sessions may not support prepared statements.
async fn session_id(connection: &mut PgConnection) -> sqlx::Result<i32> {
    sqlx::raw_sql("SELECT pg_backend_pid()").fetch_one(connection).await?.try_get(0)
}

/// Returns what an error means and what to do, if it is one that a setting causes.
fn advice(error: &sqlx::Error, options: &PgConnectOptions) -> Option<String> {
    match error {
        sqlx::Error::Tls(_) if error.to_string().contains("does not support TLS") => Some(
            "the database offers no TLS: set ssl = on there, or sslmode=disable in the URL if the network can be trusted"
                .to_owned(),
        ),
        sqlx::Error::Io(io) => match io.get_ref().and_then(|cause| cause.downcast_ref()) {
            Some(rustls::Error::InvalidCertificate(cause)) => advice_on_certificate(cause, options.get_host()),
            _ => None,
        },
        error if has_code(error, INSUFFICIENT_PRIVILEGE) => Some(format!(
            "the role {} lacks a privilege: run registry-server migrate as the owner of the tables, then grant what \
             docs/postgresql.md lists",
            options.get_username()
        )),
        _ => None,
    }
}

fn advice_on_certificate(cause: &CertificateError, host: &str) -> Option<String> {
    match cause {
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => Some(format!(
            "the database's certificate is not for the host {host}: give a host that it names, renew it with this one, or set \
             sslmode=verify-ca"
        )),
        CertificateError::UnknownIssuer | CertificateError::BadSignature => Some(
            "the database's certificate is from an authority that is not known: give the authority's own certificate as \
             sslrootcert"
                .to_owned(),
        ),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            Some("the database's certificate has expired: renew it".to_owned())
        }
        _ => None,
    }
}

pub(super) fn has_code(error: &sqlx::Error, code: &str) -> bool {
    error.as_database_error().and_then(sqlx::error::DatabaseError::code).is_some_and(|its| its == code)
}

/// Returns the underlying database error.
pub(super) fn sqlx_error(error: &MigrateError) -> Option<&sqlx::Error> {
    match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => Some(error),
        _ => None,
    }
}

pub(super) fn timed_out() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no response in time")
}
