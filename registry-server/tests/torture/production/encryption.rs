//! TLS between servers and PostgreSQL: the modes of `sslmode`, and client certificates.

use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use sqlx::{Connection, Executor, PgConnection};

use crate::support::{Cluster, Server, equal_the_database, eventually, follow_each_other, start_error};

#[tokio::test(flavor = "multi_thread")]
async fn every_session_is_encrypted() {
    let Some(cluster) = Cluster::start(&[]).await else { return };
    let authority = Authority::new("right");
    authority.encrypt(&cluster).await;
    access(&cluster, "hostssl all all 127.0.0.1/32 trust").await;
    let root = authority.root();
    for (host, parameters) in [
        ("localhost", format!("sslmode=verify-full&sslrootcert={root}")),
        // The certificate does not name this address.
        ("127.0.0.1", format!("sslmode=verify-ca&sslrootcert={root}")),
        ("127.0.0.1", "sslmode=require".to_owned()),
        ("127.0.0.1", "sslmode=prefer".to_owned()),
    ] {
        let url = url(&cluster, host, &parameters);
        let mut servers = [Server::running(&url, &[]).await, Server::running(&url, &[]).await];
        follow_each_other(&servers).await;
        for server in &servers {
            server.patient_client().heartbeat("followed-0").await.unwrap();
        }
        let mut observer = PgConnection::connect(&url).await.unwrap();
        let sessions =
            "SELECT count(*), count(*) FILTER (WHERE ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
                        WHERE application_name = 'registry-server'";
        let (all, encrypted): (i64, i64) = sqlx::query_as(sessions).fetch_one(&mut observer).await.unwrap();
        assert!(all >= 6 && encrypted == all, "{parameters}: {encrypted} of {all}");
        equal_the_database(&servers, &mut observer).await;
        for server in &mut servers {
            server.stop().await;
        }
    }
}

/// Each error says what is wrong, and what to do.
#[tokio::test(flavor = "multi_thread")]
async fn startup_error_explains_why_the_database_is_not_trusted() {
    let Some(cluster) = Cluster::start(&[]).await else { return };
    let (authority, other) = (Authority::new("right"), Authority::new("other"));
    let verify_full = |authority: &Authority| format!("sslmode=verify-full&sslrootcert={}", authority.root());

    for mode in ["require", "verify-ca", "verify-full"] {
        let error = start_error(&url(&cluster, "localhost", &format!("sslmode={mode}")), &[]).await;
        assert!(error.contains("offers no TLS") && error.contains("ssl = on"), "{mode}: {error}");
    }
    authority.encrypt(&cluster).await;
    let error = start_error(&url(&cluster, "127.0.0.1", &verify_full(&authority)), &[]).await;
    assert!(error.contains("not for the host 127.0.0.1") && error.contains("localhost"), "{error}");
    let error = start_error(&url(&cluster, "localhost", &verify_full(&other)), &[]).await;
    assert!(error.contains("authority") && error.contains("sslrootcert"), "{error}");
    let error = start_error(&url(&cluster, "localhost", "sslmode=verify-full"), &[]).await;
    assert!(error.contains("authority") && error.contains("sslrootcert"), "{error}");
    let missing = "sslmode=verify-full&sslrootcert=/no/such/root.pem";
    let error = start_error(&url(&cluster, "localhost", missing), &[]).await;
    assert!(error.contains("sslrootcert") && error.contains("/no/such/root.pem"), "{error}");
    let error = start_error(&url(&cluster, "localhost", "sslmode=verify"), &[]).await;
    assert!(error.contains("ssl_mode") && error.contains("verify"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn server_presents_its_client_certificate() {
    let Some(cluster) = Cluster::start(&[]).await else { return };
    let authority = Authority::new("right");
    authority.encrypt(&cluster).await;
    cluster.write("root.pem", &authority.issuer.pem());
    cluster.set("ssl_ca_file", Some("root.pem")).await;
    let (certificate, key) = authority.sign("registry");
    let root = authority.root();
    let verified = format!("sslmode=verify-full&sslrootcert={root}");
    let shown = format!("{verified}&sslcert={}&sslkey={}", certificate.display(), key.display());
    access(&cluster, "hostssl all all 127.0.0.1/32 cert").await;

    let url_of = |parameters: &str| url(&cluster, "localhost", parameters);
    let servers = [Server::running(&url_of(&shown), &[]).await, Server::running(&url_of(&shown), &[]).await];
    follow_each_other(&servers).await;
    let error = start_error(&url_of(&verified), &[]).await;
    assert!(error.contains("certificate"), "{error}");
    let error = start_error(&url_of(&format!("{verified}&sslcert={}", certificate.display())), &[]).await;
    assert!(error.contains("key"), "{error}");
}

fn url(cluster: &Cluster, host: &str, parameters: &str) -> String {
    cluster.url().replace("127.0.0.1", host) + "?" + parameters
}

/// Replaces the access rules, and waits until connections without TLS are rejected.
async fn access(cluster: &Cluster, rule: &str) {
    let mut administrator = cluster.connect().await.unwrap();
    cluster.write("pg_hba.conf", &format!("{rule}\n"));
    administrator.execute("SELECT pg_reload_conf()").await.unwrap();
    let url = url(cluster, "localhost", "sslmode=disable");
    eventually("the rules apply", async || PgConnection::connect(&url).await.is_err()).await;
}

/// A certificate authority, and the files that it has signed.
struct Authority {
    folder: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("root.pem"), issuer.pem()).unwrap();
        Self { folder, issuer }
    }

    /// Returns the path of the authority's own certificate.
    fn root(&self) -> String {
        self.folder.path().join("root.pem").display().to_string()
    }

    /// Signs a certificate for a name. Returns the paths of the certificate and its key.
    fn sign(&self, name: &str) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let (certificate, path) = (params.signed_by(&key, &self.issuer).unwrap(), self.folder.path());
        let (certificate_path, key_path) = (path.join("cert.pem"), path.join("key.pem"));
        std::fs::write(&certificate_path, certificate.pem()).unwrap();
        std::fs::write(&key_path, key.serialize_pem()).unwrap();
        (certificate_path, key_path)
    }

    /// Enables TLS, with a certificate for `localhost`.
    async fn encrypt(&self, cluster: &Cluster) {
        let (certificate, key) = self.sign("localhost");
        cluster.write("server.crt", &std::fs::read_to_string(certificate).unwrap());
        cluster.write("server.key", &std::fs::read_to_string(key).unwrap());
        cluster.set("ssl", Some("on")).await;
        let url = url(cluster, "localhost", "sslmode=require");
        eventually("PostgreSQL has turned TLS on", async || PgConnection::connect(&url).await.is_ok()).await;
    }
}
