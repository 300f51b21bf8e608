//! A wall clock that can be set, for single processes.

use std::process::Command;

use super::server::Server;

/// A wall clock for processes started with its environment. Their monotonic clock is unaffected.
pub(crate) struct FakeClock {
    file: tempfile::NamedTempFile,
    library: String,
}

impl FakeClock {
    /// Creates a clock. Prints a message and returns `None` if libfaketime is not installed.
    pub(crate) fn new() -> Option<Self> {
        let found =
            Command::new("sh").args(["-c", "ls /usr/lib/*/faketime/libfaketimeMT.so.1"]).output().unwrap();
        let library = String::from_utf8(found.stdout).unwrap().lines().next().map(str::to_owned);
        if library.is_none() {
            println!("not run: libfaketime is not installed (Debian: apt-get install faketime)");
        }
        let clock = Self { file: tempfile::NamedTempFile::new().unwrap(), library: library? };
        // The database's user must be able to read the file.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        std::fs::set_permissions(clock.file.path(), mode).unwrap();
        clock.set("+0");
        Some(clock)
    }

    pub(crate) fn set(&self, off: &str) {
        std::fs::write(self.file.path(), format!("{off}\n")).unwrap();
    }

    pub(crate) fn environment(&self) -> [(&str, &str); 4] {
        [
            ("LD_PRELOAD", &self.library),
            ("FAKETIME_TIMESTAMP_FILE", self.file.path().to_str().unwrap()),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ]
    }

    /// Creates a server with this clock, without starting it.
    pub(crate) fn server(&self, database_url: &str, flags: &[&str]) -> Server {
        let mut server = Server::new(database_url, flags);
        for (name, value) in self.environment() {
            server.set(name, value);
        }
        server
    }
}
