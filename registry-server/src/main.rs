//! The server as a program.

use std::error::Error;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::Parser;
use registry_server::{Config, NewToken, Server};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// A registry of agents: they announce what they can do, and others find those that are alive.
#[derive(Debug, Parser)]
#[command(version, about, args_conflicts_with_subcommands = true)]
#[expect(clippy::doc_markdown, reason = "`--help` shows these comments as they are")]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,

    #[command(flatten)]
    config: Config,

    /// How to write the log.
    #[arg(long, value_name = "FORMAT", env = "REGISTRY_LOG_FORMAT", value_enum, default_value_t)]
    log_format: LogFormat,

    /// What to log: a level, or a filter such as registry_server=debug.
    #[arg(long, value_name = "FILTER", env = "REGISTRY_LOG", default_value = "info")]
    log: String,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Tokens for --tokens-file.
    #[command(subcommand)]
    Token(TokenCommand),
}

#[derive(Debug, clap::Subcommand)]
enum TokenCommand {
    /// Makes a token, and the entry for the file: the token itself is shown this once.
    New {
        /// Whose it is.
        #[arg(long, default_value = "a-name-of-its-own")]
        name: String,
        /// What it allows.
        #[arg(long, value_enum, default_value_t = ScopeName::Read)]
        scope: ScopeName,
        /// For the scope agent: which agents it may register and speak for, such as team-a-*; repeatable.
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
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match (&arguments.command, start_log(&arguments)) {
        (_, Err(error)) => Err(error),
        (Some(Command::Token(command)), Ok(())) => token(command),
        (None, Ok(())) => run(arguments.config).await,
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // On standard error and in one line: the log may be off, or be read by a program.
            let mut line = format!("registry-server: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                line.push_str(": ");
                line.push_str(&error.to_string());
                cause = error.source();
            }
            let _ = writeln!(std::io::stderr(), "{line}");
            ExitCode::FAILURE
        }
    }
}

async fn run(config: Config) -> Result<(), Box<dyn Error>> {
    // Each connection is an open file. Where more cannot be had, the server says so and serves fewer.
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let server = Server::bind(config).await?;
    loop {
        tokio::select! {
            _ = terminate.recv() => {
                tracing::info!("told to stop (SIGTERM)");
                break;
            }
            interrupted = tokio::signal::ctrl_c() => {
                interrupted?;
                tracing::info!("told to stop (Ctrl-C)");
                break;
            }
            _ = hang_up.recv() => {
                if let Err(error) = server.reload() {
                    tracing::error!(%error, "it stays as it was");
                }
            }
        }
    }
    server.shutdown().await;
    tracing::info!("stopped");
    Ok(())
}

fn token(TokenCommand::New { name, scope, agents }: &TokenCommand) -> Result<(), Box<dyn Error>> {
    let NewToken { token, sha256 } = NewToken::draw()?;
    let scope = match scope {
        ScopeName::Read => "scope = \"read\"".to_owned(),
        ScopeName::Admin => "scope = \"admin\"".to_owned(),
        // Debug quotes texts as TOML reads them.
        ScopeName::Agent => format!("scope = \"agent\"\nagents = {agents:?}"),
    };
    let mut out = std::io::stdout().lock();
    writeln!(out, "# The token, which is shown this once: {token}")?;
    writeln!(out, "[[token]]\nname = {name:?}\nsha256 = \"{sha256}\"\n{scope}")?;
    Ok(())
}

fn start_log(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let filter = EnvFilter::try_new(&arguments.log)?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match arguments.log_format {
        LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}
