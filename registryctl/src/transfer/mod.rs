//! Export and import of agents.
//!
//! `format` describes the file, `export` writes it, `check` validates the whole file before anything is sent, and `import` sends the
//! agents, each with the requests in `send`.

mod check;
mod draft;
mod export;
mod fields;
mod format;
mod import;
mod lines;
mod maintenance;
mod report;
mod send;

pub(crate) use export::export;
pub(crate) use import::import;
