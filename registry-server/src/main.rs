//! The `registry-server` program.

mod log_text;

use std::error::Error;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::builder::Resettable;
use clap::{CommandFactory, FromArgMatches, Parser};
use registry_server::{Config, NewToken, ServeError, Server};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// A heartbeat takes a sixth less CPU time than with glibc's allocator (`benches/README.md`).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A registry of agents and their capabilities that tracks which agents are alive.
#[derive(Debug, Parser)]
#[command(version, about, args_conflicts_with_subcommands = true)]
#[expect(clippy::doc_markdown, reason = "`--help` shows these comments as they are")]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,

    #[command(flatten)]
    config: Config,

    /// Format of the log.
    #[arg(long, value_name = "FORMAT", env = "REGISTRY_LOG_FORMAT", value_enum, default_value_t)]
    log_format: LogFormat,

    /// Log filter: a level, or directives such as registry_server=debug.
    #[arg(long, value_name = "FILTER", env = "REGISTRY_LOG", default_value = "info")]
    log: String,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Manage tokens for --tokens-file.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Create or upgrade the database tables and exit, for servers with --migrate never.
    Migrate {
        /// Database URL as for the server, with a role that may create tables.
        #[arg(
            long,
            value_name = "URL",
            env = "REGISTRY_DATABASE_URL",
            hide_env_values = true,
            default_value_t = Config::default().database_url
        )]
        database_url: String,
    },
}

#[derive(Debug, clap::Subcommand)]
enum TokenCommand {
    /// Generate a token, print it on standard error, and print its entry for the tokens file on standard output.
    New {
        /// Name of the token in logs, errors and the records that it changes [default: a unique name].
        #[arg(long)]
        name: Option<String>,
        /// Operations that the token permits.
        #[arg(long, value_enum, default_value_t = ScopeName::Read)]
        scope: ScopeName,
        /// Agents that a token of scope agent may register and update, such as team-a-*; repeatable.
        #[arg(long = "agent", value_name = "PATTERN", required_if_eq("scope", "agent"))]
        agents: Vec<String>,
    },
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum ScopeName {
    Read,
    Agent,
    Admin,
}

#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum LogFormat {
    /// Readable text.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = parse_args();
    let outcome = match (&args.command, init_tracing(&args)) {
        (_, Err(error)) => Err(error),
        (Some(Command::Token(command)), Ok(())) => print_new_token(command),
        (Some(Command::Migrate { database_url }), Ok(())) => migrate(database_url).await,
        (None, Ok(())) => run(args.config).await,
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Print to standard error, on one line: the log may be disabled, or read by a program.
            let mut line = format!("registry-server: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                // Some errors already end with their cause.
                let said = error.to_string();
                if !line.ends_with(&said) {
                    line.push_str(": ");
                    line.push_str(&said);
                }
                cause = error.source();
            }
            let _ = writeln!(std::io::stderr(), "{line}");
            ExitCode::FAILURE
        }
    }
}

/// Parses the flags and variables.
///
/// An empty variable counts as unset, such as `REGISTRY_ALLOWED_HOST=` in an env file.
fn parse_args() -> Args {
    let command = without_empty_variables(Args::command());
    let mut command = command.mut_subcommands(without_empty_variables);
    Args::from_arg_matches(&command.get_matches_mut())
        .unwrap_or_else(|error| error.format(&mut command).exit())
}

fn without_empty_variables(command: clap::Command) -> clap::Command {
    command.mut_args(|arg| {
        let value = arg.get_env().and_then(std::env::var_os);
        if value.is_some_and(|value| value.is_empty()) { arg.env(Resettable::Reset) } else { arg }
    })
}

async fn run(config: Config) -> Result<(), Box<dyn Error>> {
    // Each connection is an open file. If the limit cannot be raised, `Server::bind` accepts fewer
    // connections.
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    // Before the server listens, since no signal may get lost from then on.
    let mut signals = Signals::catch()?;
    let server = tokio::select! {
        server = Server::bind(config) => server?,
        _ = signals.sigterm.recv() => return Ok(()),
        _ = signals.sigint.recv() => return Ok(()),
    };
    let outcome = serve(&server, &mut signals).await;
    server.shutdown().await;
    tracing::info!("shutdown complete");
    Ok(outcome?)
}

struct Signals {
    sigint: Signal,
    sigterm: Signal,
    sighup: Signal,
}

impl Signals {
    fn catch() -> std::io::Result<Self> {
        Ok(Self {
            sigint: signal(SignalKind::interrupt())?,
            sigterm: signal(SignalKind::terminate())?,
            sighup: signal(SignalKind::hangup())?,
        })
    }
}

/// Waits until the server must shut down: it failed, it was drained, or a signal requests an immediate
/// shutdown.
async fn serve(server: &Server, signals: &mut Signals) -> Result<(), ServeError> {
    // The drain begins when it is first polled.
    let (mut drained, mut is_draining) = (std::pin::pin!(server.drain()), false);
    loop {
        tokio::select! {
            error = server.failure() => return Err(error),
            () = &mut drained, if is_draining => return Ok(()),
            _ = signals.sigterm.recv() => {
                if is_draining {
                    tracing::info!("received SIGTERM again, shutting down without waiting");
                    return Ok(());
                }
                tracing::info!("received SIGTERM, draining and shutting down");
                is_draining = true;
            }
            _ = signals.sigint.recv() => {
                tracing::info!("received Ctrl-C, shutting down");
                return Ok(());
            }
            _ = signals.sighup.recv() => {
                if let Err(error) = server.reload() {
                    tracing::error!(%error, "reload failed, keeping the previous configuration");
                }
            }
        }
    }
}

async fn migrate(database_url: &str) -> Result<(), Box<dyn Error>> {
    registry_server::migrate(database_url).await?;
    tracing::info!("the database tables match this version of the server");
    Ok(())
}

fn print_new_token(TokenCommand::New { name, scope, agents }: &TokenCommand) -> Result<(), Box<dyn Error>> {
    let new = NewToken::generate()?;
    let scope = match scope {
        ScopeName::Read => "read",
        ScopeName::Agent => "agent",
        ScopeName::Admin => "admin",
    };
    let entry = new.entry(name.as_deref(), scope, agents)?;
    // On standard error, so that the token does not end up in the file to which the entry is appended.
    writeln!(std::io::stderr(), "The token, shown only once: {}", new.token)?;
    write!(std::io::stdout(), "{entry}")?;
    Ok(())
}

fn init_tracing(args: &Args) -> Result<(), Box<dyn Error>> {
    let filter = EnvFilter::try_new(&args.log)?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Text => {
            log.fmt_fields(log_text::fields()).with_ansi(std::io::stderr().is_terminal()).init();
        }
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}
