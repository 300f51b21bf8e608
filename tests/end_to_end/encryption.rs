//! HTTPS on the server's own port, and clients that have to show a certificate.

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
    clients_that_trust_the_authority_speak_https,
    clients_have_to_show_a_certificate_where_that_is_wanted,
    a_renewed_certificate_is_read_anew,
    a_client_certificate_may_be_renewed_while_the_client_runs,
    who_dawdles_or_speaks_plainly_holds_up_nobody,
    handshakes_that_are_never_ended_make_way_for_others,
);

/// Timeout of requests that a server refuses in its handshake. Now and then such a refusal is lost in the HTTP client, and the
/// request waits for its timeout.
pub(crate) const REFUSAL_TIMEOUT: Duration = Duration::from_secs(10);

/// An authority, and the files that it has signed.
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

    /// A certificate and its key.
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

    /// Signs a certificate for the loopback address, and has the server use it.
    pub(crate) fn configure(&self, config: &mut Config) {
        let (certificate, key) = self.sign("127.0.0.1");
        config.tls_cert = Some(self.write("cert.pem", &certificate));
        config.tls_key = Some(self.write("key.pem", &key));
    }
}

fn trusting(server: &Registry, authority: &Authority) -> RegistryClient {
    client_builder(server.url()).root_certificate(authority.pem()).build().unwrap()
}

async fn clients_that_trust_the_authority_speak_https(database: Database) {
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
    assert!(matches!(other.get_stats().await, Err(Error::Tls { .. })), "another authority");
    for nonsense in ["", "-----BEGIN CERTIFICATE-----\nxx\n-----END CERTIFICATE-----"] {
        assert!(
            matches!(stranger.clone().root_certificate(nonsense).build(), Err(Error::Config(_))),
            "{nonsense}"
        );
    }
    server.shutdown().await;
}

async fn clients_have_to_show_a_certificate_where_that_is_wanted(database: Database) {
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
        // The HTTP client forgets why a connection failed if the server's alert comes before its first request.
        let is_refused =
            matches!(refused, Err(Error::Tls { .. } | Error::Unreachable { .. } | Error::TimedOut { .. }));
        assert!(is_refused, "{refused:?}");
    }
    server.shutdown().await;
}

async fn a_renewed_certificate_is_read_anew(database: Database) {
    let (before, after) = (Authority::new(), Authority::new());
    let registry = database.start_with(|config| before.configure(config)).await;
    let Registry::Server(server) = &registry else { unreachable!("a database has a server") };
    trusting(&registry, &before).get_stats().await.unwrap();

    let (certificate, key) = after.sign("127.0.0.1");
    before.write("cert.pem", &certificate);
    // The key does not fit yet: all stays as it was.
    assert!(server.reload().is_err());
    trusting(&registry, &before).get_stats().await.unwrap();
    before.write("key.pem", &key);
    server.reload().unwrap();
    trusting(&registry, &after).get_stats().await.unwrap();
    assert!(trusting(&registry, &before).get_stats().await.is_err());
    registry.shutdown().await;
}

async fn who_dawdles_or_speaks_plainly_holds_up_nobody(database: Database) {
    let authority = Authority::new();
    let server = database.start_with(|config| authority.configure(config)).await;
    let mut silent = Vec::new();
    // The server gives each 10 s: waiting for one after another would take longer than the limit.
    for _ in 0..50 {
        silent.push(TcpStream::connect(server.local_addr()).await.unwrap());
    }
    let mut plain = TcpStream::connect(server.local_addr()).await.unwrap();
    plain.write_all(b"GET /stats HTTP/1.1\r\nhost: registry\r\n\r\n").await.unwrap();
    let client = trusting(&server, &authority);
    let answered = tokio::time::timeout(LONG, client.get_stats());
    answered.await.expect("it is not held up").unwrap();
    let mut rest = Vec::new();
    plain.read_to_end(&mut rest).await.unwrap();
    assert!(!rest.starts_with(b"HTTP"), "no answer in the clear");
    drop(silent);
    server.shutdown().await;
}

/// More of them than there may be at a time, and none takes a place of the connections.
async fn handshakes_that_are_never_ended_make_way_for_others(database: Database) {
    let authority = Authority::new();
    let server = database
        .start_with(|config| {
            authority.configure(config);
            config.max_connections = NonZeroUsize::new(4).unwrap();
        })
        .await;
    let mut silent = Vec::new();
    let requests = async {
        // The server gives each silent client 10 s, and two at a time: without making way, 490 s in all.
        for _ in 0..100 {
            silent.push(TcpStream::connect(server.local_addr()).await.unwrap());
            // Each time on a new connection, whose handshake comes after those.
            trusting(&server, &authority).get_stats().await.unwrap();
        }
    };
    tokio::time::timeout(LONG, requests).await.expect("nobody is held up");
    drop(silent);
    server.shutdown().await;
}

async fn a_client_certificate_may_be_renewed_while_the_client_runs(database: Database) {
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
    assert!(matches!(builder.clone().build(), Err(Error::Config(_))), "there is none in the file");
    let present = |(certificate, key): (String, String)| {
        of_clients.write("client.pem", &(certificate + &key));
    };
    present(authority.sign("of another authority"));
    let client = builder.build().unwrap();
    assert!(client.get_stats().await.is_err());

    // Without one it goes on with the previous one, and asks again.
    std::fs::remove_file(file).unwrap();
    eventually("it is asked again", || async {
        let outcome = client.get_stats().await;
        assert!(!matches!(outcome, Ok(_) | Err(Error::Config(_))), "{outcome:?}");
        has_missed.load(Ordering::SeqCst)
    })
    .await;
    present(of_clients.sign("agent"));
    eventually("the new certificate is presented", || async { client.get_stats().await.is_ok() }).await;
    registry.shutdown().await;
}
