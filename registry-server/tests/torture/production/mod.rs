//! PostgreSQL as operators run it: encrypted, with roles that may do little, with settings and locks of their own, read-only for
//! a while.

mod backups;
mod encryption;
mod migrations;
mod roles;
mod settings;
mod starts;
