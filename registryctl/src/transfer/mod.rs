//! Copying agents out of a registry, and into one.
//!
//! `format` describes the file, `export` writes one, `check` reads one from its beginning to its end before anything is sent, and
//! `import` sends the agents, each as `send` says.

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
