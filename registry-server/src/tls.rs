//! TLS on the server's own port, and certificates that clients have to show (mutual TLS).

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::serve::Listener;
use parking_lot::RwLock;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ServerConfig, WebPkiClientVerifier};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::config::Config;

/// How long a client may take to agree on how to encrypt.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// How many clients may be at that at once. Further ones wait to be accepted.
const HANDSHAKES: usize = 1_024;

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A certificate without its key, the other way round, or certificates of clients without one of the server's.
    #[error("--tls-cert and --tls-key belong together, and --tls-client-ca needs them")]
    Incomplete,
    /// A file cannot be read, or is no PEM of what it should be.
    #[error("cannot use {0}: {1}")]
    File(PathBuf, String),
    /// The certificate and the key do not fit, or the like.
    #[error("the certificate cannot be used: {0}")]
    Unusable(String),
}

/// The files, and what was read from them last.
#[derive(Clone)]
pub(crate) struct Tls {
    files: Arc<Files>,
    present: Arc<RwLock<TlsAcceptor>>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("certificate", &self.files.certificate).finish_non_exhaustive()
    }
}

struct Files {
    certificate: PathBuf,
    key: PathBuf,
    client_ca: Option<PathBuf>,
}

impl Tls {
    /// Reads the files that are configured; `None` where none are.
    pub(crate) fn open(config: &Config) -> Result<Option<Self>, TlsError> {
        let files = match (&config.tls_cert, &config.tls_key, &config.tls_client_ca) {
            (None, None, None) => return Ok(None),
            (Some(certificate), Some(key), client_ca) => {
                let (certificate, key) = (certificate.clone(), key.clone());
                Files { certificate, key, client_ca: client_ca.clone() }
            }
            _ => return Err(TlsError::Incomplete),
        };
        let present = Arc::new(RwLock::new(files.read()?));
        Ok(Some(Self { files: Arc::new(files), present }))
    }

    /// Reads the files anew: a certificate that was renewed serves the connections from now on.
    pub(crate) fn reload(&self) -> Result<(), TlsError> {
        *self.present.write() = self.files.read()?;
        tracing::info!(certificate = %self.files.certificate.display(), "read the certificate");
        Ok(())
    }
}

impl Files {
    fn read(&self) -> Result<TlsAcceptor, TlsError> {
        let unusable = |error: &dyn std::fmt::Display| TlsError::Unusable(error.to_string());
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .map_err(|error| TlsError::File(self.key.clone(), error.to_string()))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(&error))?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(file) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(file)? {
                    roots
                        .add(certificate)
                        .map_err(|error| TlsError::File(file.clone(), error.to_string()))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                builder.with_client_cert_verifier(verifier.map_err(|error| unusable(&error))?)
            }
        };
        let mut config = builder
            .with_single_cert(certificates(&self.certificate)?, key)
            .map_err(|error| unusable(&error))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |error: &dyn std::fmt::Display| TlsError::File(file.to_owned(), error.to_string());
    let read = CertificateDer::pem_file_iter(file).map_err(|error| wrong(&error))?;
    let found = read.collect::<Result<Vec<_>, _>>().map_err(|error| wrong(&error))?;
    if found.is_empty() { Err(wrong(&"there is no certificate in it")) } else { Ok(found) }
}

/// Accepts connections, and gives those on which client and server have agreed. One that dawdles holds up nobody.
pub(crate) struct TlsListener {
    tcp: TcpListener,
    tls: Tls,
    agreeing: JoinSet<Option<(TlsStream<TcpStream>, SocketAddr)>>,
}

impl TlsListener {
    pub(crate) fn new(tcp: TcpListener, tls: Tls) -> Self {
        Self { tcp, tls, agreeing: JoinSet::new() }
    }
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            tokio::select! {
                (connection, address) = Listener::accept(&mut self.tcp), if self.agreeing.len() < HANDSHAKES => {
                    let acceptor = self.tls.present.read().clone();
                    self.agreeing.spawn(async move {
                        let _ = connection.set_nodelay(true);
                        match timeout(HANDSHAKE, acceptor.accept(connection)).await {
                            Ok(Ok(stream)) => Some((stream, address)),
                            Ok(Err(error)) => {
                                tracing::debug!(%address, %error, "no TLS with this client");
                                None
                            }
                            Err(_) => None,
                        }
                    });
                }
                Some(agreed) = self.agreeing.join_next() => {
                    if let Ok(Some(agreed)) = agreed {
                        return agreed;
                    }
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.tcp.local_addr()
    }
}
