//! The start: what the URL may say, the first connection, and errors that say what to do.

use std::error::Error;
use std::fs::File;
use std::str::FromStr;
use std::time::Duration;

use rustls::CertificateError;
use sqlx::migrate::MigrateError;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection, Row};
use tokio::time::{Instant, sleep, timeout};

use super::migrations::sqlx_error;
use super::timed_out;

/// Timeout for a connection at the start, whose failure says why the database cannot be used.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a start waits for a database that takes no writes yet: a failover may be under way, and whoever restarts a
/// server that has ended does so ever more slowly. Shorter than the liveness probe of `deploy/kubernetes` allows.
const WRITABLE_TIMEOUT: Duration = Duration::from_secs(20);
const WRITABLE_INTERVAL: Duration = Duration::from_millis(500);

/// PostgreSQL's code for "the database system is starting up", or "shutting down".
const CANNOT_CONNECT_NOW: &str = "57P03";

/// PostgreSQL's code for a missing privilege.
const INSUFFICIENT_PRIVILEGE: &str = "42501";

/// Parameters of the URL that name files, with the names that sqlx takes besides PostgreSQL's.
const FILE_PARAMETERS: &[&str] =
    &["sslrootcert", "ssl-root-cert", "ssl-ca", "sslcert", "ssl-cert", "sslkey", "ssl-key"];

pub(super) type BoxError = Box<dyn Error + Send + Sync>;

/// An error, after what it means and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{advice}")]
struct Explained {
    advice: String,
    #[source]
    source: BoxError,
}

/// Adds advice to an error of the database, if there is some.
pub(super) fn explain(error: sqlx::Error, options: &PgConnectOptions) -> BoxError {
    explained(advice(&error, options), error)
}

/// The same for an error of a migration.
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

/// Reads the URL.
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
    // PgBouncer refuses extra_float_digits at the start of a connection. Floats travel in binary form, so nothing needs it.
    Ok(options.application_name("registry-server").extra_float_digits(None))
}

/// Whether the URL lists hosts, as PostgreSQL's own clients allow. As a host name, or with ports as a URL, a list would only
/// lead to an error about its commas.
fn has_several_hosts(url: &str) -> bool {
    let (_, rest) = url.split_once("://").unwrap_or_default();
    let (hosts, query) = rest.split_once('?').unwrap_or((rest, ""));
    let hosts = hosts.split('/').next().unwrap_or_default();
    let hosts = hosts.rsplit('@').next().unwrap_or_default();
    let parameters = url::form_urlencoded::parse(query.as_bytes());
    hosts.contains(',')
        || parameters.into_iter().any(|(name, value)| name.starts_with("host") && value.contains(','))
}

/// Waits until the database takes writes, and returns a connection.
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
            tracing::warn!(%obstacle, ?limit, "the database takes no writes yet, waiting until it does");
            has_warned = true;
        }
        sleep(WRITABLE_INTERVAL).await;
    }
}

/// Connects, and returns the connection, or why the database takes no writes.
async fn connect_writable(options: &PgConnectOptions) -> sqlx::Result<Result<PgConnection, String>> {
    let mut connection = PgConnection::connect_with(options).await?;
    let query = "SELECT pg_is_in_recovery(), current_setting('transaction_read_only') = 'on'";
    let row = sqlx::raw_sql(query).fetch_one(&mut connection).await?;
    let (is_standby, is_read_only): (bool, bool) = (row.try_get(0)?, row.try_get(1)?);
    let what_to_do = "give the address of the primary, or one that follows it";
    Ok(if is_standby {
        Err(format!("the database is a standby, which takes no writes: promote it, or {what_to_do}"))
    } else if is_read_only {
        Err(format!(
            "the database is read-only: reset default_transaction_read_only of the server, the database and the role {}, \
             or {what_to_do}",
            options.get_username()
        ))
    } else {
        Ok(connection)
    })
}

/// Fails if a pooler does not keep this connection's session: then settings, locks and `LISTEN` would reach others.
pub(super) async fn require_sessions(
    connection: &mut PgConnection,
    options: &PgConnectOptions,
) -> Result<(), BoxError> {
    let advice = "a pooler does not keep sessions: set pool_mode = session for this database in PgBouncer, or give the \
                  address of PostgreSQL itself";
    match timeout(CONNECT_TIMEOUT, keeps_session(connection, options)).await {
        Ok(Ok(true)) => Ok(()),
        Ok(Ok(false)) => Err(advice.into()),
        // PgBouncer's answer to BEGIN in its third mode, for which it has no code of its own.
        Ok(Err(error)) if error.to_string().contains("statement pooling") => {
            Err(explained(Some(advice.to_owned()), error))
        }
        Ok(Err(error)) => Err(explain(error, options)),
        Err(_) => Err(timed_out().into()),
    }
}

/// While another connection is in a transaction, a pooler without sessions has to change this connection's, since it gives
/// the one that was used last to whoever comes next.
async fn keeps_session(connection: &mut PgConnection, options: &PgConnectOptions) -> sqlx::Result<bool> {
    let mut other = PgConnection::connect_with(options).await?;
    let before = session_id(connection).await?;
    // The role may have a limit for transactions that are idle.
    let begin = "BEGIN; SET LOCAL idle_in_transaction_session_timeout = 0";
    sqlx::raw_sql(begin).execute(&mut other).await?;
    let after = session_id(connection).await?;
    sqlx::raw_sql("ROLLBACK").execute(&mut other).await?;
    Ok(before == after)
}

/// Raw, since a pooler that keeps no sessions may not know prepared statements.
async fn session_id(connection: &mut PgConnection) -> sqlx::Result<i32> {
    sqlx::raw_sql("SELECT pg_backend_pid()").fetch_one(connection).await?.try_get(0)
}

/// Returns what an error means and what to do, if it is one of those that a setting causes.
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
