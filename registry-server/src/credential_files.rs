//! The files with tokens and certificates, which are loaded again when they change.
//!
//! They are read every few seconds and compared by content. Notifications of the file system (inotify) would be quicker, but
//! miss what matters: they do not tell of changes on another host of a network file system, and a watch on the file that a
//! symbolic link of Kubernetes leads to ends with that file. Times of change miss two changes within their resolution.
//! The files are small, and nobody waits for them.

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
use crate::server::StartError;
use crate::tls::{Tls, TlsFiles};
use crate::tokens::Tokens;

/// Interval at which the files are read. A change applies one or two of them later, see [`CredentialFiles::watch`].
const WATCH_INTERVAL: Duration = Duration::from_secs(5);

/// Maximum number of names of tokens in a line of the log.
const LISTED_NAMES: usize = 50;

/// The configured files, and what the server uses of them.
///
/// What it uses is replaced as a whole: if one of the files cannot be used, everything stays as it was.
#[derive(Debug)]
pub(crate) struct CredentialFiles {
    tokens_file: Option<PathBuf>,
    tls_files: Option<TlsFiles>,
    authenticator: Arc<Authenticator>,
    tls: Option<Tls>,
    metrics: CredentialMetrics,
    /// Locked while the files are read and applied, so that older content never replaces newer content.
    state: Mutex<State>,
}

/// What the files contained.
#[derive(Debug)]
struct State {
    /// Their content when [`CredentialFiles::watch`] last read them.
    last_seen: Option<Digest>,
    /// Their content when they were last loaded, successfully or not.
    last_attempted: Digest,
    /// Whether that attempt failed.
    has_failed: bool,
}

impl CredentialFiles {
    /// Loads the files of a configuration.
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

    /// Whether there is a file at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.paths().next().is_none()
    }

    /// Loads the files now.
    pub(crate) fn reload(&self) -> Result<(), StartError> {
        let mut state = self.state.lock();
        self.apply(&FileContents::read(self.paths()), &mut state)
    }

    /// Loads the files whenever they have changed.
    ///
    /// A change applies when the files are found the same twice in a row, since they may be in the middle of being
    /// written: a certificate may have been replaced, and its key not yet. Files that cannot be used are logged once.
    ///
    /// Ends only if the thread that reads the files panics.
    pub(crate) async fn watch(self: Arc<Self>) {
        // Both ends notice when the other one is gone.
        let (_stop, stopped) = mpsc::channel::<()>();
        let (running, panicked) = oneshot::channel::<()>();
        // A thread of its own, since a read from a network file system may hang. The end of the program does not wait for it,
        // as it would for one of Tokio's threads.
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

    /// Loads the files if they differ from those of the last attempt, and are the same as the previous time.
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

    /// Uses the files, or none of them.
    fn apply(&self, contents: &FileContents, state: &mut State) -> Result<(), StartError> {
        let had_failed = std::mem::replace(&mut state.has_failed, true);
        state.last_attempted = contents.digest();
        self.metrics.set_last_reload(false);
        let (tokens, acceptor) = parse(contents, self.tokens_file.as_ref(), self.tls_files.as_ref())?;
        // From here on nothing can fail.
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

    /// Logs which certificate was loaded, and warns of those that clients reject.
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

/// Logs that tokens were loaded, and the names of those that came and went.
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
            "loaded the tokens, of which more than half are gone: clients with one of these get 401"
        );
    } else {
        tracing::info!(file, tokens = tokens.len(), added, removed, "loaded the tokens");
    }
}

/// Returns names as they are logged; `None` if there are none.
fn list(names: &[&str]) -> Option<String> {
    let (shown, more) = names.split_at(names.len().min(LISTED_NAMES));
    let more = if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
    (!shown.is_empty()).then(|| shown.join(", ") + &more)
}

/// Parses what the files contain.
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

/// Whether a file is a pipe or a device. It may give its content only once, and reading it may never end.
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

    /// A tokens file that is watched.
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

        /// Looks at the file as often as outcomes are expected: the number of tokens afterwards, or `None` for an error.
        fn assert_looks(&self, expected: &[Option<usize>]) {
            for (look, expected) in expected.iter().enumerate() {
                let outcome = self.files.load_if_changed();
                let tokens = outcome.is_ok().then(|| self.files.authenticator.tokens().unwrap().len());
                assert_eq!(tokens, *expected, "look {look}: {outcome:?}");
            }
        }
    }

    #[test]
    fn change_applies_at_the_second_look_that_finds_it() {
        let watched = Watched::new();
        watched.assert_looks(&[Some(1), Some(1)]);
        watched.write(&[ONE_TOKEN, ANOTHER_TOKEN].concat());
        watched.assert_looks(&[Some(1), Some(2), Some(2)]);
    }

    #[test]
    fn file_that_is_being_written_is_not_used() {
        let watched = Watched::new();
        let text = [ONE_TOKEN, ANOTHER_TOKEN].concat();
        for end in (20..text.len()).step_by(20) {
            watched.write(&text[..end]);
            watched.assert_looks(&[Some(1)]);
        }
        watched.write(&text);
        watched.assert_looks(&[Some(1), Some(2)]);
    }

    #[test]
    fn file_that_cannot_be_used_is_reported_once() {
        let watched = Watched::new();
        for unusable in ["nonsense", "", "# no token\n"] {
            watched.write(unusable);
            watched.assert_looks(&[Some(1), None, Some(1), Some(1)]);
        }
        std::fs::remove_file(watched.path()).unwrap();
        watched.assert_looks(&[Some(1), None, Some(1), Some(1)]);
        assert!(watched.files.state.lock().has_failed);
        watched.write(ONE_TOKEN);
        watched.assert_looks(&[Some(1), Some(1)]);
        assert!(!watched.files.state.lock().has_failed);
    }

    #[test]
    fn what_a_reload_has_reported_is_not_reported_again() {
        let watched = Watched::new();
        watched.write("nonsense");
        assert!(watched.files.reload().is_err());
        watched.assert_looks(&[Some(1), Some(1), Some(1)]);
    }

    #[test]
    fn pipe_is_not_read() {
        let watched = Watched::new();
        std::fs::remove_file(watched.path()).unwrap();
        let made = std::process::Command::new("mkfifo").arg(watched.path()).status().unwrap();
        assert!(made.success());
        watched.assert_looks(&[Some(1), Some(1), Some(1)]);
    }
}
