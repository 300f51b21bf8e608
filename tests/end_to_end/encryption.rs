//! HTTPS on the server's own port, and client certificates.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use registry_sdk::{Error, RegistryClient, RegistryClientBuilder, WatchEvent};
use registry_server::Config;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Database, LONG, Registry, agent, client_builder, eventually, on_both_databases};

on_both_databases!(
    clients_that_trust_the_authority_can_connect,
    client_certificate_is_required_if_configured,
    renewed_certificate_is_reloaded,
    client_certificate_may_be_renewed_while_the_client_runs,
    slow_and_plain_text_clients_delay_no_others,
    unfinished_handshakes_make_way_for_others,
);

/// Timeout of requests that a server rejects during the handshake. The HTTP client sometimes loses such a rejection, and the request
/// waits for its timeout.
pub(crate) const REFUSAL_TIMEOUT: Duration = Duration::from_secs(10);

/// A certificate authority, and the files that it has signed.
pub(crate) struct Authority {
    folder: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { folder: tempfile::tempdir().unwrap(), issuer }
    }

    pub(crate) fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// Returns a certificate and its key.
    pub(crate) fn sign(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    fn write(&self, file: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(file);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Configures a server with a new certificate for the loopback address.
    pub(crate) fn configure(&self, config: &mut Config) {
        let (certificate, key) = self.sign("127.0.0.1");
        config.tls_cert = Some(self.write("cert.pem", &certificate));
        config.tls_key = Some(self.write("key.pem", &key));
    }
}

fn trusting(server: &Registry, authority: &Authority) -> RegistryClient {
    client_builder(server.url()).root_certificate(authority.pem()).build().unwrap()
}

async fn clients_that_trust_the_authority_can_connect(database: Database) {
    let authority = Authority::new();
    let server = database.start_with(|config| authority.configure(config)).await;
    assert!(server.url().starts_with("https://"));
    let client = trusting(&server, &authority);
    client.register(&agent("a", "work")).await.unwrap();
    client.heartbeat("a").await.unwrap();
    let mut watch = client.watch();
    assert!(matches!(watch.next().await, Some(WatchEvent::Listed(agents)) if agents.len() == 1));
    drop(watch);

    let stranger = client_builder(server.url());
    assert!(matches!(stranger.clone().build().unwrap().get_stats().await, Err(Error::Tls { .. })));
    let other = stranger.clone().root_certificate(Authority::new().pem()).build().unwrap();
    assert!(
        matches!(other.get_stats().await, Err(Error::Tls { .. })),
        "a client that trusts another authority"
    );
    for nonsense in ["", "-----BEGIN CERTIFICATE-----\nxx\n-----END CERTIFICATE-----"] {
        assert!(
            matches!(stranger.clone().root_certificate(nonsense).build(), Err(Error::Config(_))),
            "{nonsense}"
        );
    }
    server.shutdown().await;
}

async fn client_certificate_is_required_if_configured(database: Database) {
    let (authority, of_clients) = (Authority::new(), Authority::new());
    let mutual = |config: &mut Config| {
        authority.configure(config);
        config.tls_client_ca = Some(of_clients.write("ca.pem", &of_clients.pem()));
    };
    let server = database.start_with(mutual).await;
    let builder = client_builder(server.url()).root_certificate(authority.pem());
    let showing = |builder: &RegistryClientBuilder, (certificate, key): (String, String)| {
        builder.clone().client_certificate(certificate + &key).build().unwrap()
    };
    showing(&builder, of_clients.sign("agent")).register(&agent("a", "work")).await.unwrap();
    let builder = builder.timeout(REFUSAL_TIMEOUT);
    for client in [builder.clone().build().unwrap(), showing(&builder, authority.sign("agent"))] {
        let refused = client.get_stats().await;
        // If the server's alert arrives before the first request, the HTTP client loses the reason.
        let is_refused =
            matches!(refused, Err(Error::Tls { .. } | Error::Unreachable { .. } | Error::TimedOut { .. }));
        assert!(is_refused, "{refused:?}");
    }
    server.shutdown().await;
}

async fn renewed_certificate_is_reloaded(database: Database) {
    let (before, after) = (Authority::new(), Authority::new());
    let registry = database.start_with(|config| before.configure(config)).await;
    let Registry::Server(server) = &registry else { unreachable!("a database has a server") };
    trusting(&registry, &before).get_stats().await.unwrap();

    let (certificate, key) = after.sign("127.0.0.1");
    before.write("cert.pem", &certificate);
    // The key does not match the certificate yet, so the previous pair stays in use.
    assert!(server.reload().is_err());
    trusting(&registry, &before).get_stats().await.unwrap();
    before.write("key.pem", &key);
    server.reload().unwrap();
    trusting(&registry, &after).get_stats().await.unwrap();
    assert!(trusting(&registry, &before).get_stats().await.is_err());
    registry.shutdown().await;
}

async fn slow_and_plain_text_clients_delay_no_others(database: Database) {
    let authority = Authority::new();
    let server = database.start_with(|config| authority.configure(config)).await;
    let mut silent = Vec::new();
    // The server waits 10 s for each client: one after another would exceed the limit.
    for _ in 0..50 {
        silent.push(TcpStream::connect(server.local_addr()).await.unwrap());
    }
    let mut plain = TcpStream::connect(server.local_addr()).await.unwrap();
    plain.write_all(b"GET /stats HTTP/1.1\r\nhost: registry\r\n\r\n").await.unwrap();
    let client = trusting(&server, &authority);
    let answered = tokio::time::timeout(LONG, client.get_stats());
    answered.await.expect("the request is not delayed").unwrap();
    let mut rest = Vec::new();
    plain.read_to_end(&mut rest).await.unwrap();
    assert!(!rest.starts_with(b"HTTP"), "a response in plain text");
    drop(silent);
    server.shutdown().await;
}

/// More handshakes than are allowed at a time. None counts as a connection.
async fn unfinished_handshakes_make_way_for_others(database: Database) {
    let authority = Authority::new();
    let server = database
        .start_with(|config| {
            authority.configure(config);
            config.max_connections = NonZeroUsize::new(4).unwrap();
        })
        .await;
    let mut silent = Vec::new();
    let requests = async {
        // The server waits 10 s for each silent client, for two at a time: 490 s in all unless they make way.
        for _ in 0..100 {
            silent.push(TcpStream::connect(server.local_addr()).await.unwrap());
            // Each request uses a new connection, whose handshake comes after those.
            trusting(&server, &authority).get_stats().await.unwrap();
        }
    };
    tokio::time::timeout(LONG, requests).await.expect("the requests are not delayed");
    drop(silent);
    server.shutdown().await;
}

async fn client_certificate_may_be_renewed_while_the_client_runs(database: Database) {
    let (authority, of_clients) = (Authority::new(), Authority::new());
    let registry = database
        .start_with(|config| {
            authority.configure(config);
            config.tls_client_ca = Some(of_clients.write("ca.pem", &of_clients.pem()));
        })
        .await;
    let file = of_clients.write("client.pem", "");
    let (read, missed) = (file.clone(), Arc::new(AtomicBool::new(false)));
    let has_missed = missed.clone();
    let builder = client_builder(registry.url()).timeout(REFUSAL_TIMEOUT).root_certificate(authority.pem());
    let builder = builder.client_certificate_provider(move || {
        std::fs::read(&read).inspect_err(|_| missed.store(true, Ordering::SeqCst))
    });
    assert!(matches!(builder.clone().build(), Err(Error::Config(_))), "the file has no certificate");
    let present = |(certificate, key): (String, String)| {
        of_clients.write("client.pem", &(certificate + &key));
    };
    present(authority.sign("of another authority"));
    let client = builder.build().unwrap();
    assert!(client.get_stats().await.is_err());

    // Without a certificate, the client keeps the previous one and reads again.
    std::fs::remove_file(file).unwrap();
    eventually("the certificate is read again", || async {
        let outcome = client.get_stats().await;
        assert!(!matches!(outcome, Ok(_) | Err(Error::Config(_))), "{outcome:?}");
        has_missed.load(Ordering::SeqCst)
    })
    .await;
    present(of_clients.sign("agent"));
    eventually("the new certificate is presented", || async { client.get_stats().await.is_ok() }).await;
    registry.shutdown().await;
}
