//! A PostgreSQL cluster for one scenario, which can be stopped, killed, suspended and filled.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use super::server::free_port;
use super::{LONG, eventually};

/// A cluster in a folder, killed on drop.
pub(crate) struct Cluster {
    binaries: PathBuf,
    data: PathBuf,
    port: u16,
    environment: Vec<(String, String)>,
    /// The cluster's own folder, removed with it.
    folder: Option<tempfile::TempDir>,
}

impl Cluster {
    /// Creates and starts a cluster. Prints a message and returns `None` if PostgreSQL's binaries are not
    /// known.
    pub(crate) async fn start(environment: &[(&str, &str)]) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mut cluster = Self::start_in(folder.path(), environment).await?;
        cluster.folder = Some(folder);
        Some(cluster)
    }

    /// Creates and starts a cluster in the given folder.
    pub(crate) async fn start_in(folder: &Path, environment: &[(&str, &str)]) -> Option<Self> {
        let Ok(binaries) = std::env::var("POSTGRES_BIN") else {
            println!("not run: POSTGRES_BIN does not say where PostgreSQL's binaries are");
            return None;
        };
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let environment = environment.iter().map(owned).collect();
        let cluster = Self::empty(binaries.into(), folder, environment);
        run(cluster.program("initdb").args([
            "-U",
            "registry",
            "-A",
            "trust",
            "--no-sync",
            "--wal-segsize=1",
            "-E",
            "UTF8",
            "--locale=C",
        ]));
        cluster.begin().await;
        Some(cluster)
    }

    /// Creates a cluster with an empty data directory.
    fn empty(binaries: PathBuf, folder: &Path, environment: Vec<(String, String)>) -> Self {
        let data = folder.join("postgres");
        std::fs::create_dir(&data).unwrap();
        run(Command::new("chmod").arg("700").arg(&data));
        if is_root() {
            // PostgreSQL refuses to run as root, and its user must be able to traverse the folder.
            run(Command::new("chmod").arg("711").arg(folder));
            run(Command::new("chown").arg("postgres").arg(&data));
        }
        Self { binaries, data, port: free_port(), environment, folder: None }
    }

    /// Creates and starts a standby that streams from this cluster.
    pub(crate) async fn standby(&self) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut standby = Self::empty(self.binaries.clone(), folder.path(), self.environment.clone());
        let mut backup = standby.program("pg_basebackup");
        backup.args(["--write-recovery-conf", "--checkpoint=fast", "--no-sync", "-d", &self.url()]);
        tokio::task::spawn_blocking(move || run(&mut backup)).await.unwrap();
        standby.folder = Some(folder);
        standby.begin().await;
        standby
    }

    /// Cuts a standby off from its primary for good. If replay were only paused, the promotion would catch
    /// up.
    pub(crate) async fn stop_receiving(&self) {
        self.set("primary_conninfo", Some("")).await;
        eventually("the standby receives nothing more", async || {
            let receivers = "SELECT count(*) FROM pg_stat_wal_receiver";
            let mut connection = self.connect().await.unwrap();
            sqlx::query_scalar::<_, i64>(receivers).fetch_one(&mut connection).await.unwrap() == 0
        })
        .await;
    }

    /// Promotes a standby.
    pub(crate) async fn promote(&self) {
        let mut connection = self.connect().await.unwrap();
        let promote = "SELECT pg_promote(true, 300)";
        assert!(sqlx::query_scalar::<_, bool>(promote).fetch_one(&mut connection).await.unwrap());
    }

    /// Changes a setting that needs no restart. `None` restores its default.
    pub(crate) async fn set(&self, name: &str, value: Option<&str>) {
        let mut connection = self.connect().await.unwrap();
        let change = match value {
            Some(value) => format!("ALTER SYSTEM SET {name} = '{value}'"),
            None => format!("ALTER SYSTEM RESET {name}"),
        };
        connection.execute(AssertSqlSafe(change)).await.unwrap();
        connection.execute("SELECT pg_reload_conf()").await.unwrap();
    }

    /// Writes a file into the data directory that only the database may read.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.data.join(name);
        std::fs::write(&path, text).unwrap();
        run(Command::new("chmod").arg("600").arg(&path));
        if is_root() {
            run(Command::new("chown").arg("postgres").arg(&path));
        }
    }

    /// Copies the data directory of a stopped cluster.
    pub(crate) fn back_up(&self) {
        run(Command::new("cp").arg("-a").arg(&self.data).arg(self.backup()));
    }

    /// Replaces the data directory of a stopped cluster with the copy.
    pub(crate) fn restore(&self) {
        std::fs::remove_dir_all(&self.data).unwrap();
        std::fs::rename(self.backup(), &self.data).unwrap();
    }

    fn backup(&self) -> PathBuf {
        self.data.with_extension("backup")
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn url(&self) -> String {
        database_url(self.port)
    }

    pub(crate) async fn connect(&self) -> Result<PgConnection, sqlx::Error> {
        PgConnection::connect(&self.url()).await
    }

    /// Starts or restarts the cluster, and waits until it accepts connections.
    pub(crate) async fn begin(&self) {
        // Shared memory in the data folder is removed with it, even if the cluster was killed.
        let options = format!(
            "-p {} -c unix_socket_directories= -c listen_addresses=127.0.0.1 -c dynamic_shared_memory_type=mmap \
             -c max_wal_size=16MB -c min_wal_size=2MB -c wal_keep_size=8MB",
            self.port
        );
        let log = self.data.join("log");
        let began = Instant::now();
        // Starting fails while killed processes still hold the shared memory.
        loop {
            let mut start = self.program("pg_ctl");
            start.args(["-w", "-t", "300", "start", "-o", &options, "-l"]).arg(&log);
            let started = tokio::task::spawn_blocking(move || start.status().unwrap()).await.unwrap();
            if started.success() {
                return;
            }
            assert!(began.elapsed() < LONG, "{}", std::fs::read_to_string(&log).unwrap_or_default());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Stops the cluster as an operator would.
    pub(crate) async fn stop(&self) {
        let mut stop = self.program("pg_ctl");
        stop.args(["-w", "-t", "300", "-m", "fast", "stop"]);
        tokio::task::spawn_blocking(move || run(&mut stop)).await.unwrap();
    }

    /// Ends all processes at once, like a power failure.
    pub(crate) fn kill(&self) {
        self.signal("KILL");
    }

    pub(crate) fn pause(&self) {
        self.signal("STOP");
    }

    pub(crate) fn go_on(&self) {
        self.signal("CONT");
    }

    /// Sends a signal to the postmaster, and then to its child processes.
    fn signal(&self, signal: &str) {
        let Ok(file) = std::fs::read_to_string(self.data.join("postmaster.pid")) else { return };
        let Some(postmaster) = file.lines().next() else { return };
        let children = Command::new("ps").args(["-o", "pid=", "--ppid", postmaster]).output().unwrap();
        let children = String::from_utf8(children.stdout).unwrap();
        let pids = std::iter::once(postmaster).chain(children.split_whitespace());
        // Some processes may already have ended.
        let _ = Command::new("kill").args(["-s", signal]).args(pids).stderr(Stdio::null()).status();
    }

    fn program(&self, name: &str) -> Command {
        let path = self.binaries.join(name);
        let mut command = if is_root() {
            let mut command = Command::new("runuser");
            command.args(["-u", "postgres", "--"]).arg(path);
            command
        } else {
            Command::new(path)
        };
        command.arg("-D").arg(&self.data).current_dir("/").stdin(Stdio::null()).stdout(Stdio::null());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Returns the URL of a cluster's database, at its own port or through a proxy.
pub(crate) fn database_url(port: u16) -> String {
    format!("postgres://registry@127.0.0.1:{port}/postgres")
}

pub(crate) fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n")
}

fn run(command: &mut Command) {
    let status = command.status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}
