//! `registryctl export`: all agents, to a file or the standard output.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use registry_sdk::contract::Timestamp;
use registry_sdk::{Error, ListQuery, RegistryClient};
use serde::Serialize;

use super::format::{FORMAT, Footer, Header, line_of_record};
use crate::output::{Output, print_reason};
use crate::{Failure, Outcome};

/// Agents on a page. A record takes up to 256 KiB.
const PAGE: usize = 200;

pub(crate) async fn export(
    client: &RegistryClient,
    output: &Output,
    file: Option<&Path>,
) -> Result<Outcome, Failure> {
    let Some(file) = file.filter(|file| *file != Path::new("-")) else {
        write_agents(client, io::stdout().lock()).await.map_err(|failure| match failure {
            // Half an export is none, also where the reader did not want more.
            Failure::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                Failure::Input("the export is not complete: its reader has ended".to_owned())
            }
            failure => failure,
        })?;
        return Ok(Outcome::Positive);
    };
    let cannot_write = |error: io::Error| Failure::Input(format!("cannot write {}: {error}", file.display()));
    let mut draft = Draft::create(file).map_err(cannot_write)?;
    let count = write_agents(client, &mut draft.file).await.map_err(|failure| match failure {
        Failure::Output(error) => cannot_write(error),
        failure => failure,
    })?;
    draft.finish().map_err(cannot_write)?;
    output.done(&format!("{count} agents are exported to {}", file.display()))?;
    Ok(Outcome::Positive)
}

/// Writes the agents page by page. Returns their number.
async fn write_agents(client: &RegistryClient, out: impl Write) -> Result<usize, Failure> {
    let mut out = BufWriter::new(out);
    let exported_at = Some(Timestamp::from(SystemTime::now()));
    write_line(&mut out, &Header { agent_registry_export: FORMAT, exported_at })?;
    let (mut query, mut count, mut was_fresh) = (ListQuery::all().limit(PAGE), 0, true);
    loop {
        let page = client.list_raw(&query).await?;
        if !page.age.is_zero() && was_fresh {
            was_fresh = false;
            print_reason(
                "the registry cannot reach its database: the export has what this server knew then, and may lack changes",
            );
        }
        for record in &page.agents {
            let line = line_of_record(record).map_err(|error| invalid(format!("{error} in a record")))?;
            writeln!(out, "{line}")?;
        }
        count += page.agents.len();
        let Some(next) = page.next_cursor else { break };
        if page.agents.is_empty() || query.cursor.as_ref() == Some(&next) {
            return Err(invalid("the pages of the list lead nowhere".to_owned()).into());
        }
        query.cursor = Some(next);
    }
    write_line(&mut out, &Footer { agents_exported: count })?;
    out.flush()?;
    Ok(count)
}

fn write_line(out: &mut impl Write, line: &impl Serialize) -> Result<(), Failure> {
    serde_json::to_writer(&mut *out, line).map_err(io::Error::from)?;
    Ok(writeln!(out)?)
}

fn invalid(detail: String) -> Error {
    Error::InvalidResponse { status: 200, detail }
}

/// A file that takes its name only when it is complete.
struct Draft {
    file: File,
    /// Where it is until then, and its name. `None` for a device or a pipe, which is written to as it is.
    names: Option<(PathBuf, PathBuf)>,
}

impl Draft {
    fn create(name: &Path) -> io::Result<Self> {
        // A link stays one.
        let name = fs::canonicalize(name).unwrap_or_else(|_| name.to_owned());
        let present = fs::metadata(&name).ok();
        if present.as_ref().is_some_and(|present| !present.is_file()) {
            return Ok(Self { file: File::options().write(true).open(name)?, names: None });
        }
        let mut draft = name.clone().into_os_string();
        draft.push(format!(".{}.draft", std::process::id()));
        let file = File::options().write(true).create_new(true).open(&draft)?;
        let draft = Self { file, names: Some((draft.into(), name)) };
        if let Some(present) = present {
            // Whoever may not read the last export may not read this one.
            draft.file.set_permissions(present.permissions())?;
        }
        Ok(draft)
    }

    fn finish(mut self) -> io::Result<()> {
        let Some((draft, name)) = &self.names else { return Ok(()) };
        self.file.sync_all()?;
        fs::rename(draft, name)?;
        self.names = None;
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some((draft, _)) = &self.names {
            let _ = fs::remove_file(draft);
        }
    }
}
