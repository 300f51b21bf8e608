//! PostgreSQL as operators run it: encrypted, with restricted roles, with custom settings and locks, and
//! sometimes read-only.

mod backups;
mod encryption;
mod migrations;
mod roles;
mod settings;
mod starts;
