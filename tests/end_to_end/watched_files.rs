//! Tokens and certificates that are replaced while the server is running: it notices by itself, and applies all or none of them.

use std::os::unix::fs::symlink;
use std::path::PathBuf;

use registry_sdk::{Error, RegistryClient, WatchEvent};
use registry_server::NewToken;

use crate::encryption::{Authority, REFUSAL_TIMEOUT};
use crate::support::{Database, Registry, agent, client_builder, eventually};

/// A folder with the layout of a secret that Kubernetes mounts: each file is a link into `..data`, which is a link to the folder with
/// the current version. A rename of that link replaces all files at once.
struct Volume {
    folder: tempfile::TempDir,
    version: u32,
}

impl Volume {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), version: 0 }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    /// Replaces all files.
    fn publish(&mut self, files: &[(&str, &str)]) {
        let previous = self.path(&format!("..{}", self.version));
        self.version += 1;
        let name = format!("..{}", self.version);
        std::fs::create_dir(self.path(&name)).unwrap();
        for (file, text) in files {
            std::fs::write(self.path(&name).join(file), text).unwrap();
            if !self.path(file).is_symlink() {
                symlink(format!("..data/{file}"), self.path(file)).unwrap();
            }
        }
        symlink(&name, self.path("..data_tmp")).unwrap();
        std::fs::rename(self.path("..data_tmp"), self.path("..data")).unwrap();
        if self.version > 1 {
            std::fs::remove_dir_all(previous).unwrap();
        }
    }
}

/// Returns an admin token, and a tokens file with only this token.
fn admin_token() -> (String, String) {
    let NewToken { token, sha256, .. } = NewToken::generate().unwrap();
    (token, format!("[[token]]\nname = \"admin\"\nsha256 = \"{sha256}\"\nscope = \"admin\"\n"))
}

fn is_unauthenticated<T>(outcome: &Result<T, Error>) -> bool {
    matches!(outcome, Err(Error::Denied { status: 401, .. }))
}

#[tokio::test(flavor = "multi_thread")]
async fn replaced_tokens_apply_and_a_removed_one_ends_requests_and_streams() {
    Database::sqlite().run(replace_tokens).await;
}

async fn replace_tokens(database: Database) {
    let ((old_token, old_file), (new_token, new_file)) = (admin_token(), admin_token());
    let mut volume = Volume::new();
    volume.publish(&[("tokens.toml", &old_file)]);
    let registry = database.start_with(|config| config.tokens_file = Some(volume.path("tokens.toml"))).await;
    let bearer = |token: &str| client_builder(registry.url()).token(token).build().unwrap();
    let (old, new) = (bearer(&old_token), bearer(&new_token));
    old.register(&agent("a", "work")).await.unwrap();
    let mut watch = old.watch();
    assert!(matches!(watch.next().await, Some(WatchEvent::Listed(_))));

    volume.publish(&[("tokens.toml", &new_file)]);
    let interrupted = watch.next().await;
    assert!(matches!(interrupted, Some(WatchEvent::Interrupted(Error::Denied { status: 401, .. }))));
    assert!(is_unauthenticated(&old.heartbeat("a").await));
    new.heartbeat("a").await.unwrap();
    registry.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn renewed_certificates_and_client_authorities_apply() {
    Database::sqlite().run(renew_certificates).await;
}

async fn renew_certificates(database: Database) {
    let (before, after) = (Authority::new(), Authority::new());
    let mut volume = Volume::new();
    let publish = |volume: &mut Volume, authority: &Authority| {
        let (certificate, key) = authority.sign("127.0.0.1");
        volume.publish(&[("cert.pem", &certificate), ("key.pem", &key), ("ca.pem", &authority.pem())]);
    };
    publish(&mut volume, &before);
    let registry = database
        .start_with(|config| {
            config.tls_cert = Some(volume.path("cert.pem"));
            config.tls_key = Some(volume.path("key.pem"));
            config.tls_client_ca = Some(volume.path("ca.pem"));
        })
        .await;
    // Each request uses a new connection.
    let builder_of = |authority: &Authority, issuer: &Authority| {
        let (certificate, key) = issuer.sign("agent");
        let builder = client_builder(registry.url()).root_certificate(authority.pem());
        builder.client_certificate(certificate + &key)
    };
    let client_of =
        |authority: &Authority, issuer: &Authority| builder_of(authority, issuer).build().unwrap();
    client_of(&before, &before).get_stats().await.unwrap();

    publish(&mut volume, &after);
    eventually("the new certificate is used", || async {
        client_of(&after, &after).get_stats().await.is_ok()
    })
    .await;
    assert!(client_of(&before, &after).get_stats().await.is_err(), "the old certificate");
    let refused = builder_of(&after, &before).timeout(REFUSAL_TIMEOUT).build().unwrap();
    assert!(refused.get_stats().await.is_err(), "a client of the old authority");
    registry.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_certificate_or_tokens_file_leaves_both_unchanged() {
    Database::sqlite().run(reload_bad_files).await;
}

async fn reload_bad_files(database: Database) {
    let ((old_token, old_file), (new_token, new_file)) = (admin_token(), admin_token());
    let (before, after) = (Authority::new(), Authority::new());
    let mut volume = Volume::new();
    let (certificate, key) = before.sign("127.0.0.1");
    volume.publish(&[("tokens.toml", &old_file), ("cert.pem", &certificate), ("key.pem", &key)]);
    let registry = database
        .start_with(|config| {
            config.tokens_file = Some(volume.path("tokens.toml"));
            config.tls_cert = Some(volume.path("cert.pem"));
            config.tls_key = Some(volume.path("key.pem"));
        })
        .await;
    let Registry::Server(server) = &registry else { unreachable!("a database has a server") };
    let client = |authority: &Authority, token: &str| -> RegistryClient {
        client_builder(registry.url()).root_certificate(authority.pem()).token(token).build().unwrap()
    };
    let mut watch = client(&before, &old_token).watch();
    assert!(matches!(watch.next().await, Some(WatchEvent::Listed(_))));

    let (certificate, key) = after.sign("127.0.0.1");
    for (tokens, certificate, key, reason) in [
        (new_file.as_str(), certificate.as_str(), "", "key.pem"),
        (&new_file, "nonsense", &key, "cert.pem"),
        ("[[token]]", &certificate, &key, "tokens.toml"),
    ] {
        volume.publish(&[("tokens.toml", tokens), ("cert.pem", certificate), ("key.pem", key)]);
        let error = server.reload().unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
        client(&before, &old_token).get_stats().await.unwrap();
        assert!(is_unauthenticated(&client(&before, &new_token).get_stats().await), "{reason}");
    }
    // The failed reloads have not ended the stream.
    client(&before, &old_token).register(&agent("a", "work")).await.unwrap();
    assert!(matches!(watch.next().await, Some(WatchEvent::Registered(_))), "the stream goes on");

    volume.publish(&[("tokens.toml", &new_file), ("cert.pem", &certificate), ("key.pem", &key)]);
    server.reload().unwrap();
    client(&after, &new_token).get_stats().await.unwrap();
    registry.shutdown().await;
}
