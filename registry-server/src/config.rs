//! How a server is to run. Flags and environment variables are read here and nowhere else.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use registry_sdk::contract::DEFAULT_PORT;

/// How a server is to run. [`Config::default`] is what `registry-server` does without an argument.
///
/// ```
/// use registry_server::Config;
/// let config = Config { database_url: "sqlite::memory:".to_owned(), ..Config::default() };
/// assert_eq!(config.listen.port(), 8009);
/// ```
#[derive(Clone, Debug, clap::Args)]
#[expect(clippy::doc_markdown, reason = "`--help` shows these comments as they are")]
pub struct Config {
    /// Where to listen; port 0 takes a free one.
    #[arg(long, value_name = "ADDR", env = "REGISTRY_LISTEN", default_value_t = Config::default().listen)]
    pub listen: SocketAddr,

    /// The database: sqlite://FILE, sqlite::memory: or postgres://USER:PASSWORD@HOST/NAME.
    #[arg(
        long,
        value_name = "URL",
        env = "REGISTRY_DATABASE_URL",
        hide_env_values = true,
        default_value_t = Config::default().database_url
    )]
    pub database_url: String,

    /// How long an agent may be silent; twice its own heartbeat interval where that is longer.
    #[arg(
        long,
        value_name = "DUR",
        env = "REGISTRY_HEARTBEAT_TIMEOUT",
        value_parser = duration,
        default_value = "60s"
    )]
    pub heartbeat_timeout: Duration,

    /// How often to write down who missed its deadline.
    #[arg(
        long,
        value_name = "DUR",
        env = "REGISTRY_SWEEP_INTERVAL",
        value_parser = duration,
        default_value = "5s"
    )]
    pub sweep_interval: Duration,

    /// Remove agents that stay offline so long [default: they are kept].
    #[arg(long, value_name = "DUR", env = "REGISTRY_REMOVE_AFTER", value_parser = duration)]
    pub remove_after: Option<Duration>,

    /// Ask every caller for a token, of those in this TOML file; SIGHUP reads it anew [default: nobody is asked].
    #[arg(long, value_name = "FILE", env = "REGISTRY_TOKENS_FILE")]
    pub tokens_file: Option<PathBuf>,

    /// Serve HTTPS with this certificate, a PEM file with the whole chain; SIGHUP reads it anew [default: HTTP].
    #[arg(long, value_name = "FILE", env = "REGISTRY_TLS_CERT")]
    pub tls_cert: Option<PathBuf>,

    /// The certificate's private key, a PEM file.
    #[arg(long, value_name = "FILE", env = "REGISTRY_TLS_KEY")]
    pub tls_key: Option<PathBuf>,

    /// Let in only clients with a certificate of one of these authorities, a PEM file [default: any client].
    #[arg(long, value_name = "FILE", env = "REGISTRY_TLS_CLIENT_CA")]
    pub tls_client_ca: Option<PathBuf>,

    /// How many connections there may be at once; further ones get 503. Bounded by what the system allows as well.
    #[arg(
        long,
        value_name = "COUNT",
        env = "REGISTRY_MAX_CONNECTIONS",
        default_value_t = Config::default().max_connections
    )]
    pub max_connections: NonZeroUsize,

    /// How many requests a second a client may send: the bearer of a token, or an address [default: any number].
    ///
    /// As many may come at once after a second of silence. Further ones get 429; GET /health is not counted.
    #[arg(long, value_name = "COUNT", env = "REGISTRY_RATE_LIMIT")]
    pub rate_limit: Option<NonZeroU32>,

    /// Ask each agent itself how it is, at GET {base_url}/health, every so often [default: no agent is asked].
    ///
    /// Two failures in a row make an agent unhealthy, one success heals it. Of several servers over one database
    /// one asks; give all of them the flag.
    #[arg(long, value_name = "DUR", env = "REGISTRY_PROBE_INTERVAL", value_parser = duration)]
    pub probe_interval: Option<Duration>,

    /// How long an agent's whole answer to a probe may take.
    #[arg(
        long,
        value_name = "DUR",
        env = "REGISTRY_PROBE_TIMEOUT",
        value_parser = duration,
        default_value = "2s"
    )]
    pub probe_timeout: Duration,

    /// How many agents may be asked at once.
    #[arg(
        long,
        value_name = "COUNT",
        env = "REGISTRY_PROBE_CONCURRENCY",
        default_value_t = Config::default().probe_concurrency
    )]
    pub probe_concurrency: NonZeroUsize,

    /// Let probes reach these addresses too, such as 127.0.0.0/8; repeatable.
    ///
    /// Unless allowed, loopback, link-local and cloud metadata addresses are refused, whatever name leads there.
    #[arg(long, value_name = "CIDR", env = "REGISTRY_PROBE_ALLOW", value_delimiter = ',')]
    pub probe_allow: Vec<IpNet>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, DEFAULT_PORT)),
            database_url: "sqlite://agent-registry.db".to_owned(),
            heartbeat_timeout: Duration::from_secs(60),
            sweep_interval: Duration::from_secs(5),
            remove_after: None,
            tokens_file: None,
            tls_cert: None,
            tls_key: None,
            tls_client_ca: None,
            max_connections: NonZeroUsize::MIN.saturating_add(16_383),
            rate_limit: None,
            probe_interval: None,
            probe_timeout: Duration::from_secs(2),
            probe_concurrency: NonZeroUsize::MIN.saturating_add(63),
            probe_allow: Vec::new(),
        }
    }
}

/// Reads a duration as people write it: `500ms`, `30s`, `2m`.
fn duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write a duration such as 500ms, 30s or 2m"))?;
    if duration.is_zero() { Err("must be longer than nothing".to_owned()) } else { Ok(duration) }
}
