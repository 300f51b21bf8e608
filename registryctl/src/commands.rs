//! Dispatch of the commands, and the short ones.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use registry_sdk::contract::{
    AgentStatus, CapabilityMatch, MaintenanceRequest, Registration, ValidationError, limits,
};
use registry_sdk::internal::RequestBody;
use registry_sdk::{Error, ListQuery, MatchMode, RegistryClient, RetryPolicy, SearchQuery, WatchEvent};
use tokio::time::{Instant, sleep, timeout_at};

use crate::card_import::import;
use crate::output::{Output, print_card, print_reason};
use crate::transfer::export;
use crate::{Command, Failure, Outcome};

/// Longest wait.
const A_YEAR: Duration = Duration::from_secs(365 * 86_400);

/// Time between two searches of `wait`.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

pub(crate) async fn run(
    command: Command,
    client: &RegistryClient,
    registry_url: &str,
    output: &Output,
) -> Result<Outcome, Failure> {
    match command {
        Command::Agents { filter } => {
            let query = ListQuery { filter: filter.into_filter(), ..ListQuery::all() };
            output.agents(&client.list_agents(query).await?.agents)?;
        }
        Command::Show { id } => output.agent(&client.get_agent(&id).await?)?,
        Command::Card { id } => print_card(&client.get_card(&id).await?)?,
        Command::Search { words, matching, filter, limit, all } => {
            let mut query = SearchQuery::new(words.join(" "))
                .min_score(matching.min_score)
                .description_only(!matching.no_description_only);
            (query.filter, query.limit) = (filter.into_filter(), limit);
            return search(client, output, query, matching.mode, all).await;
        }
        Command::Health { id } => {
            let health = client.check_health(&id).await?;
            output.health(&health)?;
            if !health.is_healthy() {
                let reason =
                    health.reason.map_or_else(|| "unhealthy".to_owned(), |reason| reason.to_string());
                print_reason(&format!("{id} is not healthy: {reason}"));
                return Ok(Outcome::Negative);
            }
        }
        Command::Ping => output.server(&client.get_server_health().await?)?,
        Command::Stats => output.stats(&client.get_stats().await?)?,
        Command::Watch => return watch(client, output).await,
        Command::Register { file } => output.agent(&client.register(&read(&file)?).await?)?,
        Command::Offline { id } => output.agent(&client.update_status(&id, AgentStatus::Offline).await?)?,
        Command::Drain { id, reason, duration } => {
            let mut request = MaintenanceRequest::new(reason);
            request.duration = duration;
            output.agent(&client.set_maintenance(&id, &request).await?)?;
        }
        Command::Resume { id } => output.agent(&client.end_maintenance(&id).await?)?,
        Command::Remove { id } => {
            let was_alive = client.get_agent(&id).await.is_ok_and(|agent| agent.status.takes_work());
            client.deregister(&id).await?;
            output.done(&format!("removed {id}"))?;
            if was_alive {
                output.note(
                    "the agent was alive, and registers again if it is running: use `registryctl drain` to keep it out",
                )?;
            }
        }
        Command::Export { file } => return export(client, output, file.as_deref()).await,
        Command::Import { file, id, replace } => return import(client, output, &file, id, replace).await,
        Command::Wait { capability, timeout } => {
            let url = registry_url.split('?').next().unwrap_or_default();
            let no_answer = Error::TimedOut { url: url.to_owned(), after: timeout };
            let Some(found) = wait(client, &capability.join(" "), timeout, no_answer).await? else {
                print_reason(&format!("no healthy agent with this capability within {timeout:?}"));
                return Ok(Outcome::Negative);
            };
            output.matches(&[found])?;
        }
        #[cfg(feature = "mcp")]
        Command::Mcp { allow_delegation } => return crate::mcp::serve(client, allow_delegation).await,
        #[cfg(not(feature = "mcp"))]
        Command::Mcp { .. } => {
            let reason = "this registryctl was built without MCP: rebuild it with cargo install --path registryctl --features mcp";
            return Err(Failure::Input(reason.to_owned()));
        }
        // Already handled in `main`, since it needs no registry.
        Command::Completions { .. } => {}
    }
    Ok(Outcome::Positive)
}

/// Searches for agents that match every word, then for the best matches if there are none.
async fn search(
    client: &RegistryClient,
    output: &Output,
    query: SearchQuery,
    mode: Option<MatchMode>,
    all: bool,
) -> Result<Outcome, Failure> {
    let find = async |mode| {
        let query = query.clone().match_mode(mode);
        if all {
            client.search_all(query.limit(limits::PAGE)).await
        } else {
            client.search_capabilities(query).await
        }
    };
    let mut found = find(mode.unwrap_or_default()).await?;
    if mode.is_none() && !query.q.is_empty() {
        if found.is_empty() {
            output.note("no agent matches every word; best matches:")?;
            found = find(MatchMode::Best).await?;
        } else {
            output.note("agents that match every word:")?;
        }
    }
    output.matches(&found)?;
    if found.is_empty() {
        print_reason("no agent matches");
        return Ok(Outcome::Negative);
    }
    Ok(Outcome::Positive)
}

/// Prints events for as long as the process runs.
///
/// Only a refusal before the first list ends the watch: a mistake in the command shows at once, and a later refusal may be temporary.
async fn watch(client: &RegistryClient, output: &Output) -> Result<Outcome, Failure> {
    let mut watch = client.watch();
    let (mut last, mut has_listed, mut is_interrupted) = (None, false, false);
    while let Some(event) = watch.next().await {
        output.event(&event)?;
        match event {
            WatchEvent::Interrupted(error) if !has_listed && is_refused(&error) => return Err(error.into()),
            WatchEvent::Interrupted(error) => {
                print_reason(&format!("disconnected, reconnecting: {}", error.full_message()));
                (last, is_interrupted) = (Some(error), true);
                continue;
            }
            WatchEvent::Listed(_) => has_listed = true,
            _ => {}
        }
        if std::mem::take(&mut is_interrupted) {
            print_reason("reconnected");
        }
    }
    // The watch only ends after an error in the client's configuration, which it reports as an interruption first.
    Err(last.unwrap_or_else(|| Error::Config("the watch has ended".to_owned())).into())
}

fn is_refused(error: &Error) -> bool {
    error.is_refused() || matches!(error, Error::Unsupported { .. })
}

fn read(file: &Path) -> Result<Registration, Failure> {
    let name = file.display();
    let mut body = Vec::new();
    let read = if file == Path::new("-") {
        std::io::stdin().read_to_end(&mut body)
    } else {
        std::fs::File::open(file).and_then(|mut file| file.read_to_end(&mut body))
    };
    read.map_err(|error| Failure::Input(format!("cannot read {name}: {error}")))?;
    let parsed = Registration::from_json(&body)
        .map_err(|error| Failure::Input(format!("{name} is not a registration in JSON: {error}")))?;
    parsed.map_err(|ValidationError(errors)| {
        let errors: Vec<String> = errors.iter().map(|error| format!("\n  {error}")).collect();
        Failure::Input(format!("{name} cannot be registered:{}", errors.concat()))
    })
}

/// Waits for a healthy agent, and for the registry itself if it cannot be reached yet. Returns the best match.
///
/// If no agent appears in time, returns the outcome of the last search that completed, or `no_answer` if none did.
async fn wait(
    client: &RegistryClient,
    q: &str,
    limit: Duration,
    no_answer: Error,
) -> Result<Option<CapabilityMatch>, Error> {
    // A limit that overflows the clock is capped.
    let deadline = Instant::now().checked_add(limit).unwrap_or_else(|| Instant::now() + A_YEAR);
    let client = client.with_retry(RetryPolicy::none());
    let mut last = Err(no_answer);
    loop {
        match timeout_at(deadline, client.search_capabilities(SearchQuery::new(q).healthy(true))).await {
            Ok(Ok(found)) => {
                let is_healthy =
                    |one: &CapabilityMatch| one.healthy.unwrap_or(one.status != AgentStatus::Offline);
                if let Some(found) = found.into_iter().find(is_healthy) {
                    return Ok(Some(found));
                }
                last = Ok(None);
            }
            Ok(Err(error)) if !error.is_retryable() => return Err(error),
            Ok(Err(error)) => last = Err(error),
            Err(_) => return last,
        }
        if Instant::now() >= deadline {
            return last;
        }
        sleep(POLL_INTERVAL.min(deadline - Instant::now())).await;
    }
}
