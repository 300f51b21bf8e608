//! An agent registry's command line.

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

use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use registry_sdk::contract::{AgentStatus, limits};
use registry_sdk::{AgentFilter, Error, MatchMode, MetadataFilter, RegistryClient};

/// Look around in an agent registry, and change it.
///
/// Prints tables on a terminal and JSON elsewhere. Ends with 0 where all is well, 1 where something failed, 2 where it
/// was called wrongly, 3 where the answer is no (unknown, unhealthy, nothing found, not in time), and 4 where the
/// registry cannot be reached.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    /// The registry; several URLs of one with commas between.
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "REGISTRY_URL",
        default_value = "http://127.0.0.1:8009"
    )]
    registry_url: String,

    /// The token to show.
    #[arg(long, global = true, env = "REGISTRY_TOKEN", hide_env_values = true)]
    token: Option<String>,

    /// A PEM file of an authority to trust beside those of the system.
    #[arg(long, global = true, value_name = "FILE", env = "REGISTRY_CA_CERT")]
    ca_cert: Option<PathBuf>,

    /// A PEM file of a certificate to show, with its key.
    #[arg(long, global = true, value_name = "FILE", env = "REGISTRY_CLIENT_CERT")]
    client_cert: Option<PathBuf>,

    /// Print JSON, also on a terminal.
    #[arg(long, global = true)]
    json: bool,

    /// Print tables, also where it is no terminal.
    #[arg(long, global = true, conflicts_with = "json")]
    table: bool,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List all agents.
    Agents {
        #[command(flatten)]
        filter: FilterArguments,
    },
    /// Show one agent: what it is, what it can do, and when it was last heard of.
    Show {
        /// Its id.
        id: String,
    },
    /// Print the A2A agent card of an agent, byte for byte as it was registered. Ends with 3 where it has none.
    Card {
        /// Its id.
        id: String,
    },
    /// Find agents by what they can do, the best match first. Ends with 3 where there are none.
    Search {
        /// Words that their capabilities have to have, or a sentence.
        #[arg(required_unless_present = "capability")]
        words: Vec<String>,
        #[command(flatten)]
        matching: MatchArguments,
        #[command(flatten)]
        filter: FilterArguments,
        /// How many at most, up to 1000.
        #[arg(long, value_parser = parse_limit)]
        limit: Option<usize>,
        /// Without a limit, page by page.
        #[arg(long, conflicts_with = "limit")]
        all: bool,
    },
    /// Say whether an agent is healthy. Ends with 3 where it is not.
    Health {
        /// Its id.
        id: String,
    },
    /// Say whether the registry itself is well. Needs no token. Ends with 4 where it is not.
    Ping,
    /// Count agents and capabilities.
    Stats,
    /// Print every change as it happens, until Ctrl-C. Says on standard error while it is not connected.
    Watch,
    /// Register an agent. Without heartbeats it goes offline after the registry's time-out.
    Register {
        /// A file with the registration as JSON; - is the standard input.
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
    },
    /// Take an agent out for a while: searches leave it out, and nothing that it sends brings it back.
    Drain {
        /// Its id.
        id: String,
        /// Why, for people.
        #[arg(long, value_name = "TEXT")]
        reason: String,
        /// How long, such as 30m or 1h. Without it, until `resume`.
        #[arg(long = "for", value_name = "TIME", value_parser = parse_maintenance)]
        duration: Option<Duration>,
    },
    /// Bring back an agent that was drained.
    Resume {
        /// Its id.
        id: String,
    },
    /// Set an agent offline. One that runs comes back with its next heartbeat: `drain` keeps it out.
    Offline {
        /// Its id.
        id: String,
    },
    /// Remove an agent from the registry. One that runs registers again: `drain` keeps it out.
    Remove {
        /// Its id.
        id: String,
    },
    /// Write all agents to a file, or to standard output, as lines of JSON that `import` reads.
    Export {
        /// The file. It takes this name when it is complete. - is the standard output.
        file: Option<PathBuf>,
    },
    /// Register the agents of an export, or the agent of an A2A agent card. Those that the registry has already are left as they are.
    ///
    /// Checks the whole file before anything is sent. If it is interrupted, the same command goes on from there.
    ///
    /// An agent that is imported by its card knows nothing of the registry and sends no heartbeats. It goes offline after two days, unless
    /// the card is imported again with --replace, once a day for example. A registry that probes its agents finds it unhealthy before, if
    /// the card is served below the agent's own URL.
    Import {
        /// A file that `export` wrote, or an A2A agent card; - is the standard input. Or the URL of a card, or of an agent that serves its
        /// card at the well-known path.
        #[arg(value_name = "FILE_OR_URL")]
        file: PathBuf,
        /// The id of the card's agent, in place of the one that is made of its name.
        #[arg(long)]
        id: Option<String>,
        /// Register agents that the registry has already as the file says, too.
        #[arg(long)]
        replace: bool,
    },
    /// Wait until a healthy agent can do something, and print it. Ends with 3 where none can in time, and with 4 where the
    /// registry cannot be reached either.
    Wait {
        /// What it has to be able to do, in words.
        #[arg(required = true)]
        capability: Vec<String>,
        /// How long to wait, such as 30s or 2m.
        #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
        timeout: Duration,
    },
    /// Serve the registry as tools for language models: the Model Context Protocol (MCP) on standard input and output.
    Mcp {
        /// Let models give tasks to agents, too, with the tool `delegate_task`.
        #[arg(long)]
        allow_delegation: bool,
    },
    /// Print a completion script for a shell.
    Completions {
        /// Which.
        shell: Shell,
    },
}

/// How words are matched.
#[derive(Debug, Args)]
struct MatchArguments {
    /// `all`: only agents that have every word. `best`: any word counts, as in a sentence. By default `best` where `all` finds
    /// nobody.
    #[arg(long = "match", value_name = "MODE")]
    mode: Option<MatchMode>,
    /// Only matches with this score, up to 1, or a greater one.
    #[arg(long, value_name = "SCORE", default_value_t = 0.0, value_parser = parse_score)]
    min_score: f64,
    /// Only agents that have one of the words elsewhere than in a description.
    #[arg(long)]
    no_description_only: bool,
}

/// Which agents to list or to find.
#[derive(Debug, Args)]
struct FilterArguments {
    /// Only those that are active, busy or offline.
    #[arg(long)]
    status: Option<AgentStatus>,
    /// Only those that are healthy.
    #[arg(long)]
    healthy: bool,
    /// Only those that are not healthy.
    #[arg(long, conflicts_with = "healthy")]
    unhealthy: bool,
    /// Only those with a capability of exactly this name.
    #[arg(long, value_name = "NAME")]
    capability: Option<String>,
    /// Only those with a capability that has this tag, and all others that are given.
    #[arg(long)]
    tag: Vec<String>,
    /// Only those whose metadata has this value, and all others that are given. KEY may be a path such as zone.region.
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
    duration.filter(|duration| *duration <= limits::MAINTENANCE).ok_or("use a time such as 30m, up to 365d")
}

fn parse_metadata(text: &str) -> Result<MetadataFilter, &'static str> {
    let (path, value) = text.split_once('=').filter(|(path, _)| !path.is_empty()).ok_or("use KEY=VALUE")?;
    Ok(MetadataFilter { path: path.to_owned(), value: value.to_owned() })
}

/// How a command ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Positive,
    /// Not found, not healthy, or not in time.
    Negative,
}

/// What went wrong.
#[derive(Debug)]
pub(crate) enum Failure {
    Registry(Error),
    /// A file that cannot be read or is invalid.
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
    let arguments = Arguments::parse();
    match run(arguments).await {
        Ok(Outcome::Positive) => ExitCode::SUCCESS,
        Ok(Outcome::Negative) => ExitCode::from(3),
        Err(failure) => explain(&failure),
    }
}

async fn run(arguments: Arguments) -> Result<Outcome, Failure> {
    if let Command::Completions { shell } = arguments.command {
        // It panics where it cannot write.
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

/// Prints what went wrong to standard error. Returns the exit code.
fn explain(failure: &Failure) -> ExitCode {
    let (text, code) = match failure {
        // The reader, such as `head`, has read enough.
        Failure::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => return ExitCode::SUCCESS,
        Failure::Output(error) => (format!("cannot print: {error}"), 1),
        Failure::Input(text) => (text.clone(), 1),
        Failure::Registry(error) => {
            let code = match error {
                Error::NotFound { .. } => 3,
                // Something else answers in place of the registry.
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
