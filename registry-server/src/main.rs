//! The server as a program.

use std::error::Error;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::Parser;
use registry_server::{Config, Server};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// A registry of agents: they announce what they can do, and others find those that are alive.
#[derive(Debug, Parser)]
#[command(version, about)]
#[expect(clippy::doc_markdown, reason = "`--help` shows these comments as they are")]
struct Arguments {
    #[command(flatten)]
    config: Config,

    /// How to write the log.
    #[arg(long, value_name = "FORMAT", env = "REGISTRY_LOG_FORMAT", value_enum, default_value_t)]
    log_format: LogFormat,

    /// What to log: a level, or a filter such as registry_server=debug.
    #[arg(long, value_name = "FILTER", env = "REGISTRY_LOG", default_value = "info")]
    log: String,
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
    let outcome = match start_log(&arguments) {
        Ok(()) => run(arguments.config).await,
        Err(error) => Err(error),
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
    let mut terminate = signal(SignalKind::terminate())?;
    let server = Server::bind(config).await?;
    tokio::select! {
        _ = terminate.recv() => tracing::info!("told to stop (SIGTERM)"),
        interrupted = tokio::signal::ctrl_c() => {
            interrupted?;
            tracing::info!("told to stop (Ctrl-C)");
        }
    }
    server.shutdown().await;
    tracing::info!("stopped");
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
