//! TLS for the server's port, optionally with client certificates (mutual TLS).

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::serve::Listener;
use parking_lot::RwLock;
use rustls::RootCertStore;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ServerConfig, WebPkiClientVerifier};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::admission::share_of;
use crate::certificate::CertificateInfo;
use crate::config::Config;
use crate::file_contents::FileContents;

/// Timeout of a TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum number of concurrent handshakes, if the connection limit is at least twice as high.
pub(crate) const MAX_CONCURRENT_HANDSHAKES: usize = 1_024;

/// Error in the TLS configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// Only some of the options that must be set together are set.
    #[error("--tls-cert and --tls-key must be set together, and --tls-client-ca requires both")]
    Incomplete,
    /// A PEM file cannot be read or parsed.
    #[error("cannot load the PEM file {0}: {1}")]
    File(PathBuf, String),
    /// The certificate cannot be used with the key, for example because they do not match.
    #[error("cannot use the TLS certificate {certificate} with the key {key}: {reason}")]
    InvalidCertificate {
        /// File of the certificate chain.
        certificate: PathBuf,
        /// File of the key.
        key: PathBuf,
        /// The cause.
        reason: String,
    },
}

/// The TLS configuration for new connections.
#[derive(Clone)]
pub(crate) struct Tls {
    acceptor: Arc<RwLock<TlsAcceptor>>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

/// The configured PEM files.
#[derive(Debug)]
pub(crate) struct TlsFiles {
    pub(crate) certificate: PathBuf,
    key: PathBuf,
    client_ca: Option<PathBuf>,
}

impl Tls {
    pub(crate) fn new(acceptor: TlsAcceptor) -> Self {
        Self { acceptor: Arc::new(RwLock::new(acceptor)) }
    }

    /// Replaces the certificate for new connections. Open connections keep theirs.
    pub(crate) fn replace(&self, acceptor: TlsAcceptor) {
        *self.acceptor.write() = acceptor;
    }
}

impl TlsFiles {
    /// Returns the configured files, or `None` if TLS is not configured.
    pub(crate) fn from_config(config: &Config) -> Result<Option<Self>, TlsError> {
        match (&config.tls_cert, &config.tls_key, &config.tls_client_ca) {
            (None, None, None) => Ok(None),
            (Some(certificate), Some(key), client_ca) => {
                let (certificate, key) = (certificate.clone(), key.clone());
                Ok(Some(Self { certificate, key, client_ca: client_ca.clone() }))
            }
            _ => Err(TlsError::Incomplete),
        }
    }

    pub(crate) fn paths(&self) -> impl Iterator<Item = &Path> {
        [&self.certificate, &self.key].into_iter().chain(&self.client_ca).map(PathBuf::as_path)
    }

    /// Creates an acceptor from the content of the files.
    pub(crate) fn acceptor(&self, contents: &FileContents) -> Result<TlsAcceptor, TlsError> {
        let invalid = |error: rustls::Error| TlsError::InvalidCertificate {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            reason: error.to_string(),
        };
        let key = PrivateKeyDer::from_pem_slice(content(&self.key, contents)?).map_err(|error| {
            let reason = match error {
                pem::Error::NoItemsFound => "it contains no private key".to_owned(),
                error => error.to_string(),
            };
            TlsError::File(self.key.clone(), reason)
        })?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(invalid)?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(file) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(file, contents)? {
                    roots
                        .add(certificate)
                        .map_err(|error| TlsError::File(file.clone(), error.to_string()))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                let verifier = verifier.map_err(|error| TlsError::File(file.clone(), error.to_string()))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config =
            builder.with_single_cert(certificates(&self.certificate, contents)?, key).map_err(invalid)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    /// Returns information about the certificates in the chain, the server's own first.
    pub(crate) fn chain(&self, contents: &FileContents) -> Vec<CertificateInfo> {
        let chain = certificates(&self.certificate, contents).unwrap_or_default();
        chain.iter().filter_map(CertificateInfo::of).collect()
    }
}

/// Returns the content of a file, or the error from reading it.
fn content<'a>(file: &Path, contents: &'a FileContents) -> Result<&'a [u8], TlsError> {
    contents.get(file).map_err(|error| TlsError::File(file.to_owned(), error.to_string()))
}

fn certificates(file: &Path, contents: &FileContents) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let invalid = |error: &dyn std::fmt::Display| TlsError::File(file.to_owned(), error.to_string());
    let parsed = CertificateDer::pem_slice_iter(content(file, contents)?);
    let found = parsed.collect::<Result<Vec<_>, _>>().map_err(|error| invalid(&error))?;
    if found.is_empty() { Err(invalid(&"it contains no certificate")) } else { Ok(found) }
}

/// A listener that yields connections after their TLS handshake.
///
/// Handshakes run concurrently, so that a slow client does not delay others. If there are too many, the
/// oldest one is dropped: a normal client needs milliseconds, while a silent one would occupy its slot for
/// seconds.
pub(crate) struct TlsListener {
    tcp: TcpListener,
    tls: Tls,
    max_handshakes: usize,
    handshakes: JoinSet<Option<(TlsStream<TcpStream>, SocketAddr)>>,
    /// The same handshakes, oldest first, possibly including finished ones.
    by_age: VecDeque<AbortHandle>,
}

impl TlsListener {
    pub(crate) fn new(tcp: TcpListener, tls: Tls, max_connections: usize) -> Self {
        let max_handshakes = share_of(max_connections).min(MAX_CONCURRENT_HANDSHAKES);
        Self { tcp, tls, max_handshakes, handshakes: JoinSet::new(), by_age: VecDeque::new() }
    }

    fn begin_handshake(&mut self, connection: TcpStream, address: SocketAddr) {
        if self.by_age.len() == self.max_handshakes {
            self.by_age.retain(|handshake| !handshake.is_finished());
        }
        if self.by_age.len() == self.max_handshakes
            && let Some(oldest) = self.by_age.pop_front()
        {
            tracing::debug!("too many concurrent TLS handshakes, dropping the oldest one");
            oldest.abort();
        }
        let acceptor = self.tls.acceptor.read().clone();
        self.by_age.push_back(self.handshakes.spawn(async move {
            let _ = connection.set_nodelay(true);
            match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(connection)).await {
                Ok(Ok(stream)) => Some((stream, address)),
                Ok(Err(error)) => {
                    tracing::debug!(%address, %error, "TLS handshake failed, closing the connection");
                    None
                }
                Err(_) => None,
            }
        }));
    }
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            tokio::select! {
                (connection, address) = Listener::accept(&mut self.tcp) => {
                    self.begin_handshake(connection, address);
                }
                Some(finished) = self.handshakes.join_next() => {
                    if let Ok(Some(finished)) = finished {
                        return finished;
                    }
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.tcp.local_addr()
    }
}
