//! Configuration of a server. All flags and environment variables are read here.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use registry_sdk::contract::DEFAULT_PORT;
use url::{Host, Url};

use crate::listen_address::ListenAddress;

/// Configuration of a server.
///
/// [`Config::default`] is the configuration of `registry-server` without arguments.
///
/// ```
/// use registry_server::Config;
/// let config = Config { database_url: "sqlite::memory:".to_owned(), ..Config::default() };
/// assert_eq!(config.listen.to_string(), "127.0.0.1:8009");
/// ```
#[derive(Clone, Debug, clap::Args)]
#[expect(clippy::doc_markdown, reason = "`--help` shows these comments as they are")]
pub struct Config {
    /// Address to listen on, such as 0.0.0.0:8009 or localhost:8009; port 0 selects a free port.
    #[arg(
        long,
        value_name = "ADDR",
        env = "REGISTRY_LISTEN",
        default_value_t = Config::default().listen
    )]
    pub listen: ListenAddress,

    /// Database: sqlite://FILE, sqlite::memory: or postgres://USER:PASSWORD@HOST/NAME.
    #[arg(
        long,
        value_name = "URL",
        env = "REGISTRY_DATABASE_URL",
        hide_env_values = true,
        default_value_t = Config::default().database_url
    )]
    pub database_url: String,

    /// Whether to create or upgrade the database tables at startup.
    #[arg(long, value_name = "WHEN", env = "REGISTRY_MIGRATE", value_enum, default_value_t)]
    pub migrate: MigrateMode,

    /// Time without a heartbeat after which an agent is offline, but at least twice the agent's own interval.
    #[arg(
        long,
        value_name = "DUR",
        env = "REGISTRY_HEARTBEAT_TIMEOUT",
        value_parser = parse_duration,
        default_value = "60s"
    )]
    pub heartbeat_timeout: Duration,

    /// Interval at which missed deadlines are written to the database.
    #[arg(
        long,
        value_name = "DUR",
        env = "REGISTRY_SWEEP_INTERVAL",
        value_parser = parse_duration,
        default_value = "5s"
    )]
    pub sweep_interval: Duration,

    /// Remove agents that have been offline for this long [default: never].
    #[arg(long, value_name = "DUR", env = "REGISTRY_REMOVE_AFTER", value_parser = parse_duration)]
    pub remove_after: Option<Duration>,

    /// Require a token from this TOML file, which is reloaded when it changes [default: no authentication].
    #[arg(long, value_name = "FILE", env = "REGISTRY_TOKENS_FILE")]
    pub tokens_file: Option<PathBuf>,

    /// Serve HTTPS with this certificate chain, a PEM file that is reloaded when it changes [default: HTTP].
    #[arg(long, value_name = "FILE", env = "REGISTRY_TLS_CERT")]
    pub tls_cert: Option<PathBuf>,

    /// Private key of the certificate, a PEM file.
    #[arg(long, value_name = "FILE", env = "REGISTRY_TLS_KEY")]
    pub tls_key: Option<PathBuf>,

    /// Require client certificates from one of these authorities, a PEM file [default: any client].
    #[arg(long, value_name = "FILE", env = "REGISTRY_TLS_CLIENT_CA")]
    pub tls_client_ca: Option<PathBuf>,

    /// Time from SIGTERM until the server stops accepting connections; GET /readyz answers 503 meanwhile.
    ///
    /// Give load balancers enough time to notice, which takes a few health checks. Ctrl-C and a second SIGTERM skip the delay.
    #[arg(
        long,
        value_name = "DUR",
        env = "REGISTRY_DRAIN_DELAY",
        value_parser = parse_delay,
        default_value = "0s"
    )]
    pub drain_delay: Duration,

    /// Accept requests to this host name, and changes from its web pages; repeatable.
    ///
    /// For servers without --tokens-file. On a loopback address, such a server only accepts requests to
    /// addresses, localhost, *.localhost, names without a dot, *.internal and these names. On any address, it
    /// rejects changes from web pages of other names.
    #[arg(
        long = "allowed-host",
        value_name = "NAME",
        env = "REGISTRY_ALLOWED_HOST",
        value_parser = parse_host_name,
        value_delimiter = ','
    )]
    pub allowed_hosts: Vec<String>,

    /// Take a client's address from X-Forwarded-For or Forwarded if a proxy in this network sent it; repeatable.
    #[arg(
        long = "trusted-proxy",
        value_name = "CIDR",
        env = "REGISTRY_TRUSTED_PROXY",
        value_parser = parse_network,
        value_delimiter = ','
    )]
    pub trusted_proxies: Vec<IpNet>,

    /// Serve Agentic Resource Discovery (ARD) below /ard, with identifiers of this domain [default: off].
    #[arg(long, value_name = "DOMAIN", env = "REGISTRY_ARD_PUBLISHER", value_parser = parse_domain)]
    pub ard_publisher: Option<String>,

    /// URL at which clients reach this server, for responses with absolute URLs [default: the request's Host].
    ///
    /// Needed for --ard-publisher behind a proxy that terminates TLS, changes the host or strips a path.
    #[arg(long, value_name = "URL", env = "REGISTRY_PUBLIC_URL", value_parser = parse_public_url)]
    pub public_url: Option<String>,

    /// Log every request at level info. Changes are always logged.
    #[arg(long, env = "REGISTRY_ACCESS_LOG")]
    pub access_log: bool,

    /// Maximum number of connections; further ones get 503. The system's open-file limit also applies.
    #[arg(
        long,
        value_name = "COUNT",
        env = "REGISTRY_MAX_CONNECTIONS",
        default_value_t = Config::default().max_connections
    )]
    pub max_connections: NonZeroUsize,

    /// Maximum number of requests per second and client: a token, or an address [default: unlimited].
    ///
    /// Allows bursts of one second's worth. Further requests get 429; GET /health is exempt.
    #[arg(long, value_name = "COUNT", env = "REGISTRY_RATE_LIMIT")]
    pub rate_limit: Option<NonZeroU32>,

    /// Probe each agent at GET {base_url}/health, or its health_path, at this interval [default: no probing].
    ///
    /// Two failures in a row make an agent unhealthy, and one success makes it healthy again. If several
    /// servers share a database, only one of them probes at a time; set the flag on all of them.
    #[arg(long, value_name = "DUR", env = "REGISTRY_PROBE_INTERVAL", value_parser = parse_duration)]
    pub probe_interval: Option<Duration>,

    /// Timeout of a probe, including the whole response.
    #[arg(
        long,
        value_name = "DUR",
        env = "REGISTRY_PROBE_TIMEOUT",
        value_parser = parse_duration,
        default_value = "2s"
    )]
    pub probe_timeout: Duration,

    /// Maximum number of concurrent probes.
    #[arg(
        long,
        value_name = "COUNT",
        env = "REGISTRY_PROBE_CONCURRENCY",
        default_value_t = Config::default().probe_concurrency
    )]
    pub probe_concurrency: NonZeroUsize,

    /// Allow probes to these addresses, such as 127.0.0.0/8; repeatable.
    ///
    /// By default, probes to loopback, link-local and cloud metadata addresses are refused, even if a name
    /// resolves to one of them.
    #[arg(long, value_name = "CIDR", env = "REGISTRY_PROBE_ALLOW", value_parser = parse_network, value_delimiter = ',')]
    pub probe_allow: Vec<IpNet>,
}

/// What a server does at startup if tables are missing or outdated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum MigrateMode {
    /// Create or upgrade the tables.
    #[default]
    Auto,
    /// Fail. `registry-server migrate` must be run first, with a role that may create tables.
    Never,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, DEFAULT_PORT)).into(),
            database_url: "sqlite://agent-registry.db".to_owned(),
            migrate: MigrateMode::default(),
            heartbeat_timeout: Duration::from_secs(60),
            sweep_interval: Duration::from_secs(5),
            remove_after: None,
            tokens_file: None,
            tls_cert: None,
            tls_key: None,
            tls_client_ca: None,
            drain_delay: Duration::ZERO,
            allowed_hosts: Vec::new(),
            trusted_proxies: Vec::new(),
            ard_publisher: None,
            public_url: None,
            access_log: false,
            max_connections: NonZeroUsize::MIN.saturating_add(16_383),
            rate_limit: None,
            probe_interval: None,
            probe_timeout: Duration::from_secs(2),
            probe_concurrency: NonZeroUsize::MIN.saturating_add(63),
            probe_allow: Vec::new(),
        }
    }
}

/// Parses a duration such as `500ms`, `30s` or `2m`.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let duration = parse_delay(text)?;
    if duration.is_zero() { Err("must be greater than zero".to_owned()) } else { Ok(duration) }
}

/// Parses a duration that may be zero.
fn parse_delay(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write a duration such as 500ms, 30s or 2m"))
}

/// Parses a host name, without a scheme or port.
fn parse_host_name(text: &str) -> Result<String, String> {
    match Host::parse(text.strip_suffix('.').unwrap_or(text)) {
        Ok(Host::Domain(name)) if name.contains('*') || name.starts_with('.') => {
            Err("wildcards are not supported; write each name, such as registry.example.com".to_owned())
        }
        Ok(Host::Domain(name)) => Ok(name),
        Ok(_) => Err("addresses are always allowed; write a name".to_owned()),
        Err(_) => Err("write only the host name, such as registry.example.com".to_owned()),
    }
}

/// Parses a domain name of at least two labels.
fn parse_domain(text: &str) -> Result<String, String> {
    let is_label = |label: &str| {
        let is_plain = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        is_plain && (1..=63).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-')
    };
    match Host::parse(text.strip_suffix('.').unwrap_or(text)) {
        Ok(Host::Domain(name))
            if name.contains('.') && name.len() <= 253 && name.split('.').all(is_label) =>
        {
            Ok(name)
        }
        _ => Err("write a fully qualified domain name, such as agents.example.com".to_owned()),
    }
}

/// Parses the URL to which API paths are appended.
fn parse_public_url(text: &str) -> Result<String, String> {
    let is_base = |url: &Url| {
        let has_user = !url.username().is_empty() || url.password().is_some();
        let has_more = url.query().is_some() || url.fragment().is_some();
        matches!(url.scheme(), "http" | "https") && !has_user && !has_more
    };
    match Url::parse(text).ok().filter(is_base) {
        Some(url) => Ok(url.into()),
        None => Err("write an http or https URL without user, query and fragment, such as \
                     https://agents.example.com/registry"
            .to_owned()),
    }
}

/// Parses a network such as `10.0.0.0/8`, or a single address.
fn parse_network(text: &str) -> Result<IpNet, String> {
    let network = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    network.map_err(|_| "write a network or an address, such as 10.0.0.0/8 or 10.0.0.7".to_owned())
}
