//! Command line of the agent registry.

mod card_import;
mod commands;
#[cfg(feature = "mcp")]
mod mcp;
mod output;
mod source;
mod transfer;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::builder::Resettable;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;
use registry_sdk::contract::{AgentStatus, limits};
use registry_sdk::{AgentFilter, Error, MatchMode, MetadataFilter, RegistryClient};

const EXIT_STATUS: &str = "\
Exit status:
  0  if the command succeeded
  1  if an error occurred
  2  if the command line is invalid
  3  if the answer is no: unknown agent, unhealthy agent, no match, or nothing found in time
  4  if the registry cannot be reached or cannot answer now, or something else answered in its place";

/// Inspect and manage an agent registry.
///
/// Prints tables to a terminal, and JSON to a pipe or a file.
#[derive(Debug, Parser)]
#[command(version, about, after_help = EXIT_STATUS)]
struct Arguments {
    /// URL of the registry, or several URLs of the same registry separated by commas.
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "REGISTRY_URL",
        default_value = "http://127.0.0.1:8009"
    )]
    registry_url: String,

    /// Token to authenticate with.
    #[arg(long, global = true, env = "REGISTRY_TOKEN", hide_env_values = true)]
    token: Option<String>,

    /// PEM file with a CA certificate to trust, in addition to those of the system.
    #[arg(long, global = true, value_name = "FILE", env = "REGISTRY_CA_CERT")]
    ca_cert: Option<PathBuf>,

    /// PEM file with a client certificate and its private key.
    #[arg(long, global = true, value_name = "FILE", env = "REGISTRY_CLIENT_CERT")]
    client_cert: Option<PathBuf>,

    /// Print JSON, even to a terminal.
    #[arg(long, global = true)]
    json: bool,

    /// Print tables, even if the output is not a terminal.
    #[arg(long, global = true, conflicts_with = "json")]
    table: bool,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List agents.
    Agents {
        #[command(flatten)]
        filter: FilterArguments,
    },
    /// Show the details of one agent.
    Show {
        /// Id of the agent.
        id: String,
    },
    /// Print the A2A agent card of an agent, byte for byte as it was registered.
    ///
    /// Exit status: 3 if there is no such agent or it has no card.
    Card {
        /// Id of the agent.
        id: String,
    },
    /// Search for agents by capability, best match first.
    ///
    /// Exit status: 3 if no agent matches.
    Search {
        /// Words to look for in capabilities, or a sentence that describes a task.
        #[arg(required_unless_present = "capability")]
        words: Vec<String>,
        #[command(flatten)]
        matching: MatchArguments,
        #[command(flatten)]
        filter: FilterArguments,
        /// Maximum number of matches, from 1 to 1000.
        #[arg(long, value_parser = parse_limit)]
        limit: Option<usize>,
        /// Fetch all matches, page by page.
        #[arg(long, conflicts_with = "limit")]
        all: bool,
    },
    /// Show whether an agent is healthy.
    ///
    /// Exit status: 0 if the agent is healthy; 3 if it is not, or if there is no such agent.
    Health {
        /// Id of the agent.
        id: String,
    },
    /// Check that the registry itself is healthy. Needs no token.
    ///
    /// Exit status: 0 if the registry is healthy; 4 if it is not, or if it cannot be reached.
    Ping,
    /// Count agents and capabilities.
    Stats,
    /// Print changes as they happen, until interrupted with Ctrl-C.
    ///
    /// Lost connections are reported on standard error, and re-established.
    Watch,
    /// Register an agent from a JSON file.
    ///
    /// If the agent sends no heartbeats, it goes offline after its heartbeat timeout.
    Register {
        /// JSON file with the registration, or - for standard input.
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
    },
    /// Put an agent into maintenance, so that it is given no work.
    ///
    /// Searches leave the agent out. Its heartbeats and registrations do not end the maintenance.
    Drain {
        /// Id of the agent.
        id: String,
        /// Reason to show to people.
        #[arg(long, value_name = "TEXT")]
        reason: String,
        /// Duration of the maintenance, such as 30m or 1h [default: until `resume`].
        #[arg(long = "for", value_name = "TIME", value_parser = parse_maintenance)]
        duration: Option<Duration>,
    },
    /// End the maintenance of an agent.
    Resume {
        /// Id of the agent.
        id: String,
    },
    /// Set an agent offline.
    ///
    /// A running agent becomes active again with its next heartbeat. To keep it out, use `drain`.
    Offline {
        /// Id of the agent.
        id: String,
    },
    /// Remove an agent from the registry.
    ///
    /// A running agent registers itself again. To keep it out, use `drain`.
    Remove {
        /// Id of the agent.
        id: String,
    },
    /// Export all agents as JSON lines, for `import`.
    Export {
        /// File to write; it gets this name only once it is complete. `-` is standard output [default: -].
        file: Option<PathBuf>,
    },
    /// Import the agents of an export, or one agent by its A2A agent card.
    ///
    /// Agents that are already registered are left unchanged. The whole file is checked before anything is sent. To continue an
    /// interrupted import, run the same command again.
    ///
    /// An agent imported by its card does not know the registry and sends no heartbeats: it goes offline after two days. To keep it
    /// active, import the card again with --replace, once a day for example.
    ///
    /// If the card was imported from a URL below the agent's own URL, a registry with health probes notices sooner that the agent is
    /// down.
    Import {
        /// File written by `export` or file with an A2A agent card, or - for standard input; or the URL of a card, or of an agent that
        /// serves its card at the well-known path.
        #[arg(value_name = "FILE_OR_URL")]
        file: PathBuf,
        /// Id of the card's agent [default: derived from the name in the card].
        #[arg(long)]
        id: Option<String>,
        /// Replace agents that are already registered.
        #[arg(long)]
        replace: bool,
    },
    /// Wait for a healthy agent with a capability, and print it.
    ///
    /// Exit status: 3 if no such agent appears in time; 4 if the registry cannot be reached in time.
    Wait {
        /// Words to look for in capabilities.
        #[arg(required = true)]
        capability: Vec<String>,
        /// Maximum time to wait, such as 30s or 2m.
        #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
        timeout: Duration,
    },
    /// Serve the registry as tools for language models, over the Model Context Protocol (MCP).
    ///
    /// The client starts this command, and talks to it over standard input and output.
    Mcp {
        /// Also offer the tool `delegate_task`, with which models send tasks to agents.
        #[arg(long)]
        allow_delegation: bool,
    },
    /// Print a completion script for a shell.
    Completions {
        /// Shell to generate the script for.
        shell: Shell,
    },
}

/// Options for matching words.
#[derive(Debug, Args)]
struct MatchArguments {
    /// How to match words: `all` requires every word, `best` ranks agents by any of them [default: `all`, then `best` if `all`
    /// finds nothing].
    #[arg(long = "match", value_name = "MODE")]
    mode: Option<MatchMode>,
    /// Only matches with at least this score, from 0 to 1.
    #[arg(long, value_name = "SCORE", default_value_t = 0.0, value_parser = parse_score)]
    min_score: f64,
    /// Leave out agents that match by a description alone.
    #[arg(long)]
    no_description_only: bool,
}

/// Filters for agents.
#[derive(Debug, Args)]
struct FilterArguments {
    /// Only agents with this status: active, busy or offline.
    #[arg(long)]
    status: Option<AgentStatus>,
    /// Only healthy agents.
    #[arg(long)]
    healthy: bool,
    /// Only unhealthy agents.
    #[arg(long, conflicts_with = "healthy")]
    unhealthy: bool,
    /// Only agents with a capability of exactly this name.
    #[arg(long, value_name = "NAME")]
    capability: Option<String>,
    /// Only agents with a capability that has this tag. If given several times, one capability must have all tags.
    #[arg(long)]
    tag: Vec<String>,
    /// Only agents with this value in their metadata. KEY may be a path such as zone.region. If given several times, all must match.
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_metadata)]
    metadata: Vec<MetadataFilter>,
}

impl FilterArguments {
    fn into_filter(self) -> AgentFilter {
        let mut filter = AgentFilter::default();
        filter.status = self.status;
        filter.healthy = (self.healthy || self.unhealthy).then_some(self.healthy);
        filter.capability = self.capability;
        filter.tags = self.tag;
        filter.metadata = self.metadata;
        filter
    }
}

fn parse_limit(text: &str) -> Result<usize, &'static str> {
    text.parse().ok().filter(|limit| (1..=limits::PAGE).contains(limit)).ok_or("use a number from 1 to 1000")
}

fn parse_score(text: &str) -> Result<f64, &'static str> {
    text.parse().ok().filter(|score| (0.0..=1.0).contains(score)).ok_or("use a number from 0 to 1")
}

fn parse_maintenance(text: &str) -> Result<Duration, &'static str> {
    let duration = humantime::parse_duration(text).ok().filter(|duration| !duration.is_zero());
    duration
        .filter(|duration| *duration <= limits::MAINTENANCE)
        .ok_or("use a duration such as 30m, up to 365d")
}

fn parse_metadata(text: &str) -> Result<MetadataFilter, &'static str> {
    let (path, value) = text.split_once('=').filter(|(path, _)| !path.is_empty()).ok_or("use KEY=VALUE")?;
    Ok(MetadataFilter { path: path.to_owned(), value: value.to_owned() })
}

/// Result of a command that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Positive,
    /// Not found, not healthy, or not in time.
    Negative,
}

/// Why a command failed.
#[derive(Debug)]
pub(crate) enum Failure {
    Registry(Error),
    /// A file cannot be read or written, or is invalid.
    Input(String),
    Output(io::Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Registry(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = parse_arguments();
    match run(arguments).await {
        Ok(Outcome::Positive) => ExitCode::SUCCESS,
        Ok(Outcome::Negative) => ExitCode::from(3),
        Err(failure) => explain(&failure),
    }
}

/// Parses the arguments and variables. An empty variable counts as unset, as it does for the server.
fn parse_arguments() -> Arguments {
    let mut command = Arguments::command().mut_args(|arg| {
        let value = arg.get_env().and_then(std::env::var_os);
        if value.is_some_and(|value| value.is_empty()) { arg.env(Resettable::Reset) } else { arg }
    });
    Arguments::from_arg_matches(&command.get_matches_mut())
        .unwrap_or_else(|error| error.format(&mut command).exit())
}

async fn run(arguments: Arguments) -> Result<Outcome, Failure> {
    if let Command::Completions { shell } = arguments.command {
        // Into memory: `generate` panics if it cannot write.
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Arguments::command(), "registryctl", &mut script);
        io::stdout().write_all(&script)?;
        return Ok(Outcome::Positive);
    }
    let mut builder = RegistryClient::builder(&arguments.registry_url);
    if let Some(token) = arguments.token.as_deref() {
        builder = builder.token(token);
    }
    let read = |file: &PathBuf| {
        std::fs::read(file)
            .map_err(|error| Failure::Input(format!("cannot read {}: {error}", file.display())))
    };
    if let Some(file) = &arguments.ca_cert {
        builder = builder.root_certificate(read(file)?);
    }
    if let Some(file) = &arguments.client_cert {
        builder = builder.client_certificate(read(file)?);
    }
    let client = builder.build()?;
    let output = output::Output::new(arguments.json, arguments.table);
    commands::run(arguments.command, &client, &arguments.registry_url, &output).await
}

/// Prints a failure to standard error, and returns the exit code.
fn explain(failure: &Failure) -> ExitCode {
    let (text, code) = match failure {
        // A reader such as `head` closed the pipe because it has read enough.
        Failure::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => return ExitCode::SUCCESS,
        Failure::Output(error) => (format!("cannot print: {error}"), 1),
        Failure::Input(text) => (text.clone(), 1),
        Failure::Registry(error) => {
            let code = match error {
                Error::NotFound { .. } => 3,
                // Something other than a registry answered.
                Error::InvalidResponse { .. } => 4,
                error if error.is_retryable() => 4,
                Error::Config(_) => 2,
                _ => 1,
            };
            (error.full_message(), code)
        }
    };
    output::print_reason(&text);
    ExitCode::from(code)
}
