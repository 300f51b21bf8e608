//! PostgreSQL as operators run it: encrypted, with settings of their own, read-only for a while.

mod encryption;
mod settings;
mod starts;
