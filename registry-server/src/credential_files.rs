//! The files with tokens and certificates, which are reloaded when they change.
//!
//! They are read every few seconds and compared by content. File system notifications (inotify) would be
//! faster, but unreliable: they miss changes made by another host on a network file system, and watching the
//! file behind a Kubernetes symbolic link ends when the link is replaced. Modification times miss a second
//! change within their resolution. The files are small, and no request waits for them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;
use tracing::field::display;

use crate::config::Config;
use crate::file_contents::{Digest, FileContents};
use crate::metrics::CredentialMetrics;
use crate::routes::Authenticator;
use crate::start_error::StartError;
use crate::tls::{Tls, TlsFiles};
use crate::tokens::Tokens;

/// Interval at which the files are read. Changes apply one or two intervals later: see
/// [`CredentialFiles::watch`].
const WATCH_INTERVAL: Duration = Duration::from_secs(5);

/// Maximum number of token names in a log line.
const LISTED_NAMES: usize = 50;

/// The configured files, and the credentials loaded from them.
///
/// The credentials are replaced together: if one file cannot be used, all of them stay unchanged.
#[derive(Debug)]
pub(crate) struct CredentialFiles {
    tokens_file: Option<PathBuf>,
    tls_files: Option<TlsFiles>,
    authenticator: Arc<Authenticator>,
    tls: Option<Tls>,
    metrics: CredentialMetrics,
    /// Locked while the files are read and applied, so that old content never replaces newer content.
    state: Mutex<State>,
}

/// The state of the files.
#[derive(Debug)]
struct State {
    /// Their content when [`CredentialFiles::watch`] last read them.
    last_seen: Option<Digest>,
    /// Their content when they were last loaded, successfully or not.
    last_attempted: Digest,
    /// Whether the last attempt to load them failed.
    has_failed: bool,
}

impl CredentialFiles {
    /// Loads the files named in a configuration.
    pub(crate) fn open(config: &Config, metrics: CredentialMetrics) -> Result<Self, StartError> {
        let (tokens_file, tls_files) = (config.tokens_file.clone(), TlsFiles::from_config(config)?);
        let contents = FileContents::read(paths(tokens_file.as_ref(), tls_files.as_ref()));
        let (tokens, acceptor) = parse(&contents, tokens_file.as_ref(), tls_files.as_ref())?;
        let state = State { last_seen: None, last_attempted: contents.digest(), has_failed: false };
        let (authenticator, tls) = (Arc::new(Authenticator::new(tokens)), acceptor.map(Tls::new));
        let files = Self { tokens_file, tls_files, authenticator, tls, metrics, state: Mutex::new(state) };
        if let (Some(file), Some(tokens)) = (&files.tokens_file, files.authenticator.tokens()) {
            log_tokens(file, None, &tokens);
        }
        files.report_certificate(&contents);
        if !files.is_empty() {
            files.metrics.set_last_reload(true);
        }
        Ok(files)
    }

    pub(crate) fn authenticator(&self) -> &Arc<Authenticator> {
        &self.authenticator
    }

    pub(crate) fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    /// Whether no file is configured.
    pub(crate) fn is_empty(&self) -> bool {
        self.paths().next().is_none()
    }

    /// Reloads the files now.
    pub(crate) fn reload(&self) -> Result<(), StartError> {
        let mut state = self.state.lock();
        self.apply(&FileContents::read(self.paths()), &mut state)
    }

    /// Reloads the files whenever they have changed.
    ///
    /// A change applies once two successive reads give the same content, since the files may be in the middle
    /// of an update: for example, the certificate may have been replaced, but not its key yet. Files that
    /// cannot be used are only logged once.
    ///
    /// Only ends if the thread that reads the files panics.
    pub(crate) async fn watch(self: Arc<Self>) {
        // Each end of a channel notices when the other one is dropped.
        let (_stop, stopped) = mpsc::channel::<()>();
        let (running, panicked) = oneshot::channel::<()>();
        // A separate thread, since reading from a network file system may hang. Unlike Tokio's threads, it
        // does not delay the end of the process.
        std::thread::spawn(move || {
            let _running = running;
            while stopped.recv_timeout(WATCH_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                if let Err(error) = self.load_if_changed() {
                    tracing::error!(
                        %error,
                        "the tokens file or the TLS files have changed and cannot be used, keeping the previous tokens and \
                         certificate"
                    );
                }
            }
        });
        let _ = panicked.await;
    }

    /// Reloads the files if they differ from the last attempt and have not changed since the previous read.
    fn load_if_changed(&self) -> Result<(), StartError> {
        let mut state = self.state.lock();
        if self.paths().any(is_special) {
            return Ok(());
        }
        let contents = FileContents::read(self.paths());
        let digest = contents.digest();
        let is_stable = state.last_seen.replace(digest) == Some(digest);
        if is_stable && digest != state.last_attempted { self.apply(&contents, &mut state) } else { Ok(()) }
    }

    /// Applies all of the files, or none of them.
    fn apply(&self, contents: &FileContents, state: &mut State) -> Result<(), StartError> {
        let had_failed = std::mem::replace(&mut state.has_failed, true);
        state.last_attempted = contents.digest();
        self.metrics.set_last_reload(false);
        let (tokens, acceptor) = parse(contents, self.tokens_file.as_ref(), self.tls_files.as_ref())?;
        // No step below can fail.
        state.has_failed = false;
        self.metrics.set_last_reload(true);
        if had_failed {
            tracing::info!("the tokens file and the TLS files can be used again");
        }
        if let (Some(file), Some(tokens)) = (&self.tokens_file, tokens) {
            let tokens = Arc::new(tokens);
            log_tokens(file, self.authenticator.tokens().as_deref(), &tokens);
            self.authenticator.replace(tokens);
        }
        if let (Some(tls), Some(acceptor)) = (&self.tls, acceptor) {
            tls.replace(acceptor);
        }
        self.report_certificate(contents);
        Ok(())
    }

    /// Logs the loaded certificate, with a warning for each certificate in the chain that clients reject.
    fn report_certificate(&self, contents: &FileContents) {
        let Some(files) = &self.tls_files else { return };
        let (file, chain) = (files.certificate.display().to_string(), files.chain(contents));
        let own = chain.first();
        self.metrics.set_expiration(own.map(|own| own.valid_until));
        let (subject, valid_until) = (own.map(|own| &*own.subject), own.map(|own| display(own.valid_until)));
        tracing::info!(file, subject, valid_until, "loaded the TLS certificate");
        for certificate in &chain {
            certificate.warn_if_invalid(&file, SystemTime::now().into());
        }
    }

    fn paths(&self) -> impl Iterator<Item = &Path> {
        paths(self.tokens_file.as_ref(), self.tls_files.as_ref())
    }
}

/// Logs that tokens were loaded, with the names of added and removed tokens.
fn log_tokens(file: &Path, previous: Option<&Tokens>, tokens: &Tokens) {
    let file = file.display().to_string();
    let Some(previous) = previous else {
        tracing::info!(file, tokens = tokens.len(), "loaded the tokens");
        return;
    };
    let (came, went) = (tokens.names_missing_in(previous), previous.names_missing_in(tokens));
    let (added, removed) = (list(&came), list(&went));
    if went.len() * 2 > previous.len() {
        tracing::warn!(
            file,
            tokens = tokens.len(),
            added,
            removed,
            "loaded the tokens, more than half of the previous ones are gone: clients that use one of these get 401"
        );
    } else {
        tracing::info!(file, tokens = tokens.len(), added, removed, "loaded the tokens");
    }
}

/// Returns names in the format of the log. `None` if there are none.
fn list(names: &[&str]) -> Option<String> {
    let (shown, more) = names.split_at(names.len().min(LISTED_NAMES));
    let more = if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
    (!shown.is_empty()).then(|| shown.join(", ") + &more)
}

/// Parses the content of the files.
fn parse(
    contents: &FileContents,
    tokens_file: Option<&PathBuf>,
    tls_files: Option<&TlsFiles>,
) -> Result<(Option<Tokens>, Option<TlsAcceptor>), StartError> {
    let tokens = tokens_file.map(|file| Tokens::load(file, contents.get(file))).transpose()?;
    let acceptor = tls_files.map(|files| files.acceptor(contents)).transpose()?;
    Ok((tokens, acceptor))
}

fn paths<'a>(
    tokens_file: Option<&'a PathBuf>,
    tls_files: Option<&'a TlsFiles>,
) -> impl Iterator<Item = &'a Path> {
    tokens_file.map(PathBuf::as_path).into_iter().chain(tls_files.into_iter().flat_map(TlsFiles::paths))
}

/// Whether a file is a pipe or a device. Such a file may only be readable once, and reading it may never end.
fn is_special(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    const ONE_TOKEN: &str = "[[token]]\nname = \"a\"\nscope = \"read\"\n\
         sha256 = \"0000000000000000000000000000000000000000000000000000000000000000\"\n";
    const ANOTHER_TOKEN: &str = "[[token]]\nname = \"b\"\nscope = \"read\"\n\
         sha256 = \"1111111111111111111111111111111111111111111111111111111111111111\"\n";

    /// A watched tokens file.
    struct Watched {
        folder: tempfile::TempDir,
        files: CredentialFiles,
    }

    impl Watched {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("tokens.toml");
            std::fs::write(&file, ONE_TOKEN).unwrap();
            let config = Config { tokens_file: Some(file), ..Config::default() };
            let metrics = crate::metrics::Metrics::new().unwrap().credentials;
            Self { folder, files: CredentialFiles::open(&config, metrics).unwrap() }
        }

        fn path(&self) -> PathBuf {
            self.folder.path().join("tokens.toml")
        }

        fn write(&self, text: &str) {
            std::fs::write(self.path(), text).unwrap();
        }

        /// Checks the file once per expected outcome: the number of tokens after it, or `None` for an error.
        fn assert_checks(&self, expected: &[Option<usize>]) {
            for (check, expected) in expected.iter().enumerate() {
                let outcome = self.files.load_if_changed();
                let tokens = outcome.is_ok().then(|| self.files.authenticator.tokens().unwrap().len());
                assert_eq!(tokens, *expected, "check {check}: {outcome:?}");
            }
        }
    }

    #[test]
    fn change_applies_at_the_second_check() {
        let watched = Watched::new();
        watched.assert_checks(&[Some(1), Some(1)]);
        watched.write(&[ONE_TOKEN, ANOTHER_TOKEN].concat());
        watched.assert_checks(&[Some(1), Some(2), Some(2)]);
    }

    #[test]
    fn partially_written_file_is_not_used() {
        let watched = Watched::new();
        let text = [ONE_TOKEN, ANOTHER_TOKEN].concat();
        for end in (20..text.len()).step_by(20) {
            watched.write(&text[..end]);
            watched.assert_checks(&[Some(1)]);
        }
        watched.write(&text);
        watched.assert_checks(&[Some(1), Some(2)]);
    }

    #[test]
    fn unusable_file_is_reported_once() {
        let watched = Watched::new();
        for unusable in ["nonsense", "", "# no token\n"] {
            watched.write(unusable);
            watched.assert_checks(&[Some(1), None, Some(1), Some(1)]);
        }
        std::fs::remove_file(watched.path()).unwrap();
        watched.assert_checks(&[Some(1), None, Some(1), Some(1)]);
        assert!(watched.files.state.lock().has_failed);
        watched.write(ONE_TOKEN);
        watched.assert_checks(&[Some(1), Some(1)]);
        assert!(!watched.files.state.lock().has_failed);
    }

    #[test]
    fn failure_of_an_explicit_reload_is_not_reported_again() {
        let watched = Watched::new();
        watched.write("nonsense");
        assert!(watched.files.reload().is_err());
        watched.assert_checks(&[Some(1), Some(1), Some(1)]);
    }

    #[test]
    fn pipe_is_not_read() {
        let watched = Watched::new();
        std::fs::remove_file(watched.path()).unwrap();
        let made = std::process::Command::new("mkfifo").arg(watched.path()).status().unwrap();
        assert!(made.success());
        watched.assert_checks(&[Some(1), Some(1), Some(1)]);
    }
}
