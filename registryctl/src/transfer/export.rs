//! `registryctl export`: writes all agents to a file or to standard output.

use std::collections::HashMap;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::SystemTime;

use registry_sdk::contract::{AgentCard, Timestamp};
use registry_sdk::{Error, ListQuery, RegistryClient};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use super::draft::Draft;
use super::format::{FORMAT, Footer, Header, RecordFields};
use crate::output::{Output, number_of_agents, print_reason};
use crate::{Failure, Outcome};

/// Number of agents on a page. A record has up to 256 KiB.
const PAGE: usize = 200;

/// Maximum number of concurrent requests for cards.
const MAX_CONCURRENT: usize = 16;

pub(crate) async fn export(
    client: &RegistryClient,
    output: &Output,
    file: Option<&Path>,
) -> Result<Outcome, Failure> {
    let Some(file) = file.filter(|file| *file != Path::new("-")) else {
        write_agents(client, io::stdout().lock()).await.map_err(|failure| match failure {
            // Here a closed pipe is an error: a part of an export cannot be imported.
            Failure::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                Failure::Input("the export is incomplete: its reader closed the pipe".to_owned())
            }
            failure => failure,
        })?;
        return Ok(Outcome::Positive);
    };
    let cannot_write = |error: io::Error| Failure::Input(format!("cannot write {}: {error}", file.display()));
    let draft = Draft::create(file).map_err(cannot_write)?;
    let written = if draft.has_name() {
        // Dropping the draft removes it.
        tokio::select! {
            written = write_agents(client, draft.file()) => written,
            interrupted = interrupted() => {
                interrupted.map_err(cannot_write)?;
                return Err(Failure::Input(format!("interrupted: {} is unchanged", file.display())));
            }
        }
    } else {
        write_agents(client, draft.file()).await
    };
    let count = written.map_err(|failure| match failure {
        Failure::Output(error) => cannot_write(error),
        failure => failure,
    })?;
    draft.finish().map_err(cannot_write)?;
    output.done(&format!("exported {} to {}", number_of_agents(count), file.display()))?;
    Ok(Outcome::Positive)
}

/// Waits for Ctrl-C or SIGTERM.
async fn interrupted() -> io::Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    }
}

/// Writes all agents, page by page. Returns their number.
async fn write_agents(client: &RegistryClient, out: impl Write) -> Result<usize, Failure> {
    let mut out = BufWriter::new(out);
    let exported_at = Timestamp::from(SystemTime::now());
    write_line(&mut out, &Header { agent_registry_export: FORMAT, exported_at })?;
    let (mut query, mut count, mut was_fresh) = (ListQuery::all().limit(PAGE), 0, true);
    loop {
        let page = client.list_raw(&query).await?;
        if !page.age.is_zero() && was_fresh {
            was_fresh = false;
            print_reason("the registry cannot reach its database: the export may lack recent changes");
        }
        let records = page.agents.iter().map(|record| RecordFields::read(record));
        let records = records.collect::<Result<Vec<_>, _>>().map_err(|reason| invalid_record(&reason))?;
        let cards = read_cards(client, &records).await?;
        for record in records {
            let card = cards.get(record.agent_id());
            writeln!(out, "{}", record.into_line(card).map_err(|reason| invalid_record(&reason))?)?;
        }
        count += page.agents.len();
        let Some(next) = page.next_cursor else { break };
        if page.agents.is_empty() || query.cursor.as_ref() == Some(&next) {
            return Err(invalid("the registry's list of agents repeats a page".to_owned()).into());
        }
        query.cursor = Some(next);
    }
    write_line(&mut out, &Footer { agents_exported: count })?;
    out.flush()?;
    Ok(count)
}

/// Returns the current cards of some agents, by agent id. Cards that were removed since the list was read are left out.
async fn read_cards(
    client: &RegistryClient,
    records: &[RecordFields],
) -> Result<HashMap<String, AgentCard>, Error> {
    let (mut cards, mut reading) = (HashMap::new(), JoinSet::new());
    let mut with_card = records.iter().filter(|record| record.has_card());
    loop {
        for record in with_card.by_ref().take(MAX_CONCURRENT - reading.len()) {
            let (client, agent_id) = (client.clone(), record.agent_id().to_owned());
            reading.spawn(async move { (client.get_card(&agent_id).await, agent_id) });
        }
        match reading.join_next().await {
            None => return Ok(cards),
            Some(Ok((Ok(card), agent_id))) => {
                cards.insert(agent_id, card);
            }
            Some(Ok((Err(Error::NotFound { .. }), _))) => {}
            Some(Ok((Err(error), _))) => return Err(error),
            Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

fn write_line(out: &mut impl Write, line: &impl Serialize) -> Result<(), Failure> {
    serde_json::to_writer(&mut *out, line).map_err(io::Error::from)?;
    Ok(writeln!(out)?)
}

fn invalid_record(reason: &str) -> Error {
    invalid(format!("the registry's list has an invalid record: {reason}"))
}

fn invalid(detail: String) -> Error {
    Error::InvalidResponse { status: 200, detail }
}
