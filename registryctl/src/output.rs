//! Output of results: tables for people, JSON for programs.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, SystemTime};

use comfy_table::presets::NOTHING;
use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table};
use registry_sdk::WatchEvent;
use registry_sdk::contract::{
    AgentCard, AgentHealth, AgentRecord, AgentStatus, Capability, CapabilityMatch, Maintenance,
    RegistryStats, ServerHealth, Timestamp,
};
use serde::Serialize;
use serde_json::json;

/// Prints results.
#[derive(Debug)]
pub(crate) struct Output {
    json: bool,
    /// On a terminal, unless `NO_COLOR` is set and not empty (<https://no-color.org>).
    colours: bool,
}

impl Output {
    pub(crate) fn new(json: bool, table: bool) -> Self {
        let is_terminal = io::stdout().is_terminal();
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { json: json || !(is_terminal || table), colours: is_terminal && !no_colour }
    }

    pub(crate) fn agents(&self, agents: &[AgentRecord]) -> io::Result<()> {
        if self.json {
            return print_json(agents);
        }
        let mut table = self.table(["ID", "NAME", "STATUS", "LAST HEARTBEAT", "CAPABILITIES", "URL"]);
        for agent in agents {
            let names: Vec<&str> = agent.capabilities.iter().map(|capability| &*capability.name).collect();
            table.add_row([
                Cell::new(sanitized(&agent.agent_id)),
                Cell::new(sanitized(&agent.agent_name)),
                self.agent_status(agent),
                Cell::new(ago(agent.last_heartbeat)),
                Cell::new(sanitized(&names.join(", "))),
                Cell::new(sanitized(&agent.base_url)),
            ]);
        }
        print(&table)
    }

    pub(crate) fn agent(&self, agent: &AgentRecord) -> io::Result<()> {
        if self.json {
            return print_json(agent);
        }
        let mut table = Self::rows();
        let mut row = |name: &str, cell: Cell| {
            table.add_row([Cell::new(name), cell]);
        };
        row("id", Cell::new(sanitized(&agent.agent_id)));
        row("name", Cell::new(sanitized(&agent.agent_name)));
        row("status", self.agent_status(agent));
        if let Some(maintenance) = &agent.maintenance {
            row("maintenance", Cell::new(describe(maintenance)));
        }
        if let Some(name) = &agent.changed_by {
            row("changed by", Cell::new(sanitized(name)));
        }
        row("url", Cell::new(sanitized(&agent.base_url)));
        if let Some(path) = &agent.health_path {
            row("health path", Cell::new(sanitized(path)));
        }
        if let Some(probe) = &agent.probe {
            row("probe", Cell::new(sanitized(probe.as_str())));
        }
        row("last heartbeat", Cell::new(ago(agent.last_heartbeat)));
        row("registered", Cell::new(agent.registered_at.map_or_else(String::new, |time| time.to_string())));
        row("heartbeat timeout", Cell::new(agent.heartbeat_timeout.map_or_else(String::new, whole_seconds)));
        row("load", Cell::new(load(agent.load, agent.active_tasks)));
        for (key, value) in &agent.metadata {
            row(&format!("metadata {}", sanitized(key)), Cell::new(sanitized(&value.to_string())));
        }
        for capability in &agent.capabilities {
            let mut text = sanitized(&capability.name);
            let Capability { title, description, tags, examples, .. } = capability;
            let more = [title.clone().unwrap_or_default(), description.clone(), tags.join(", ")];
            for line in more.iter().chain(examples).filter(|line| !line.is_empty()) {
                text.push('\n');
                text.push_str(&sanitized(line));
            }
            row("capability", Cell::new(text));
        }
        print(&table)
    }

    pub(crate) fn matches(&self, found: &[CapabilityMatch]) -> io::Result<()> {
        if self.json {
            return print_json(found);
        }
        let mut table = self.table(["SCORE", "ID", "CAPABILITY", "STATUS", "LOAD", "COST", "URL"]);
        for one in found {
            table.add_row([
                Cell::new(one.score.map_or_else(String::new, |score| format!("{score:.2}"))),
                Cell::new(sanitized(&one.agent_id)),
                Cell::new(sanitized(&one.capability)),
                self.status(one.status, one.healthy),
                Cell::new(load(one.load, one.active_tasks)),
                Cell::new(sanitized(one.cost_estimate.as_deref().unwrap_or_default())),
                Cell::new(sanitized(&one.base_url)),
            ]);
        }
        print(&table)
    }

    pub(crate) fn health(&self, health: &AgentHealth) -> io::Result<()> {
        if self.json {
            return print_json(health);
        }
        let mut table = Self::rows();
        let (verdict, colour) =
            if health.is_healthy() { ("healthy", Color::Green) } else { ("unhealthy", Color::Red) };
        table.add_row([self.coloured(verdict.to_owned(), colour), Cell::new(sanitized(&health.agent_id))]);
        let status = health.agent_status.unwrap_or(AgentStatus::Offline);
        table.add_row([Cell::new("status"), self.status(status, None)]);
        if let Some(reason) = health.reason.map(|reason| json!(reason)) {
            table.add_row(["reason", reason.as_str().unwrap_or_default()]);
        }
        table.add_row(["last heartbeat", &ago(health.last_heartbeat)]);
        if let Some(probe) = &health.probe {
            let detail = probe.detail.as_deref().unwrap_or("successful");
            table.add_row(["last probe", &format!("{}: {}", ago(Some(probe.checked_at)), sanitized(detail))]);
        }
        print(&table)
    }

    pub(crate) fn server(&self, health: &ServerHealth) -> io::Result<()> {
        if self.json {
            return print_json(health);
        }
        let mut table = Self::rows();
        table.add_row(["version", &sanitized(&health.version)]);
        table.add_row(["store", &sanitized(&health.store)]);
        table.add_row(["uptime", &health.uptime.map_or_else(String::new, whole_seconds)]);
        print(&table)
    }

    pub(crate) fn stats(&self, stats: &RegistryStats) -> io::Result<()> {
        if self.json {
            return print_json(stats);
        }
        let mut table = Self::rows();
        for (name, count) in [
            ("agents", stats.total_agents),
            ("active", stats.active_agents),
            ("busy", stats.busy_agents),
            ("offline", stats.offline_agents),
            ("stale", stats.stale_agents),
            ("in maintenance", stats.maintenance_agents),
            ("capabilities", stats.total_capabilities),
            ("distinct capabilities", stats.distinct_capabilities),
        ] {
            table.add_row([name.to_owned(), count.to_string()]);
        }
        print(&table)
    }

    /// Prints figures as JSON for programs, or a text for people.
    pub(crate) fn figures(&self, figures: &impl Serialize, text: &str) -> io::Result<()> {
        if self.json { print_json(figures) } else { print_text(&format!("{text}\n")) }
    }

    /// Prints an event on one line. In a table, interruptions are left out: the caller reports them on standard error.
    pub(crate) fn event(&self, event: &WatchEvent) -> io::Result<()> {
        let (kind, agent, text) = match event {
            WatchEvent::Listed(agents) => ("listed", None, number_of_agents(agents.len())),
            WatchEvent::Registered(agent) => ("registered", Some(agent), String::new()),
            WatchEvent::StatusChanged(agent) => ("status_changed", Some(agent), String::new()),
            WatchEvent::Deregistered(agent) => ("deregistered", Some(agent), String::new()),
            WatchEvent::Interrupted(error) if self.json => ("interrupted", None, error.full_message()),
            WatchEvent::Resumed if self.json => ("resumed", None, String::new()),
            _ => return Ok(()),
        };
        let mut out = io::stdout().lock();
        if self.json {
            let line = match (event, agent) {
                (WatchEvent::Listed(agents), _) => {
                    json!({"event": kind, "agents": agents.iter().map(|agent| &**agent).collect::<Vec<_>>()})
                }
                (_, Some(agent)) => json!({"event": kind, "agent": **agent}),
                _ => json!({"event": kind, "detail": text}),
            };
            writeln!(out, "{line}")?;
        } else {
            let now = Timestamp::from(SystemTime::now());
            let about = agent.map_or_else(
                || sanitized(&text),
                |agent| {
                    let suffix = match agent.healthy {
                        _ if agent.maintenance.is_some() => ", maintenance",
                        Some(false) => ", unhealthy",
                        _ => "",
                    };
                    format!("{} ({}{suffix})", sanitized(&agent.agent_id), agent.status)
                },
            );
            writeln!(out, "{now}  {kind:<14}  {about}")?;
        }
        out.flush()
    }

    /// Prints a confirmation for people. Programs have the exit status.
    pub(crate) fn done(&self, text: &str) -> io::Result<()> {
        if self.json { Ok(()) } else { writeln!(io::stdout(), "{text}") }
    }

    /// Prints a note for people to standard error.
    pub(crate) fn note(&self, text: &str) -> io::Result<()> {
        if self.json { Ok(()) } else { writeln!(io::stderr(), "{text}") }
    }

    /// Returns the status of an agent, with `maintenance` in place of the less specific `unhealthy`.
    fn agent_status(&self, agent: &AgentRecord) -> Cell {
        if agent.maintenance.is_none() {
            return self.status(agent.status, agent.healthy);
        }
        let cell = Cell::new(format!("{}, maintenance", agent.status));
        if self.colours { cell.fg(Color::Yellow) } else { cell }
    }

    fn status(&self, status: AgentStatus, healthy: Option<bool>) -> Cell {
        let is_unhealthy = healthy == Some(false) && status != AgentStatus::Offline;
        let text = if is_unhealthy { format!("{status}, unhealthy") } else { status.to_string() };
        let colour = match (status, is_unhealthy) {
            (AgentStatus::Active, false) => Color::Green,
            (AgentStatus::Busy, false) => Color::Yellow,
            _ => Color::Red,
        };
        self.coloured(text, colour)
    }

    fn coloured(&self, text: String, colour: Color) -> Cell {
        if self.colours { Cell::new(text).fg(colour) } else { Cell::new(text) }
    }

    fn rows() -> Table {
        let mut table = Table::new();
        table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
        table
    }

    fn table<const N: usize>(&self, header: [&str; N]) -> Table {
        let mut table = Self::rows();
        let bold = |name: &str| {
            let cell = Cell::new(name);
            if self.colours { cell.add_attribute(Attribute::Bold) } else { cell }
        };
        table.set_header(header.map(bold));
        table
    }
}

fn print(table: &Table) -> io::Result<()> {
    print_text(&table.lines().map(|line| format!("{}\n", line.trim_end())).collect::<String>())
}

fn print_json<T: Serialize + ?Sized>(value: &T) -> io::Result<()> {
    print_text(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

/// Prints a text to standard output. A closed pipe is not an error: a reader such as `head` has read enough.
fn print_text(text: &str) -> io::Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        printed => printed,
    }
}

/// Prints a card byte for byte, since a signature may cover it. A terminal gets a line break after it, for the prompt.
pub(crate) fn print_card(card: &AgentCard) -> io::Result<()> {
    let end = if io::stdout().is_terminal() { "\n" } else { "" };
    print_text(&format!("{}{end}", card.as_str()))
}

/// Prints an error, or the reason for a negative answer, to standard error, for people and programs alike.
pub(crate) fn print_reason(text: &str) {
    let _ = writeln!(io::stderr(), "registryctl: {text}");
}

/// Returns a number of agents for people.
pub(crate) fn number_of_agents(count: usize) -> String {
    if count == 1 { "1 agent".to_owned() } else { format!("{count} agents") }
}

/// Replaces control characters in an agent's text: they could move the cursor, or do worse to a terminal.
fn sanitized(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { '\u{fffd}' } else { letter }).collect()
}

/// Returns the reason, the beginning and the end of a maintenance.
fn describe(maintenance: &Maintenance) -> String {
    let Maintenance { reason, since, until, instance_id, .. } = maintenance;
    let end = match (until, instance_id) {
        (Some(until), _) => format!("until {until}"),
        (None, Some(_)) => "until its process ends".to_owned(),
        (None, None) => "until it is resumed".to_owned(),
    };
    format!("{} (since {since}, {end})", sanitized(reason))
}

fn ago(time: Option<Timestamp>) -> String {
    let since = |time| Timestamp::from(SystemTime::now()).since(time);
    time.map_or_else(String::new, |time| format!("{} ago", whole_seconds(since(time))))
}

fn whole_seconds(time: Duration) -> String {
    humantime::format_duration(Duration::from_secs(time.as_secs())).to_string()
}

fn load(load: Option<f64>, tasks: Option<u32>) -> String {
    match (load, tasks) {
        (Some(load), Some(tasks)) => format!("{:.0} %, {tasks} tasks", load * 100.0),
        (Some(load), None) => format!("{:.0} %", load * 100.0),
        (None, Some(tasks)) => format!("{tasks} tasks"),
        (None, None) => String::new(),
    }
}
