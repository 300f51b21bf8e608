//! Checks whether a database has the tables of this version. Shared by both kinds of database.

use sqlx::migrate::{Migrate, MigrateError, Migrator};

/// The table in which sqlx records the applied migrations.
pub(super) const TABLE: &str = "_sqlx_migrations";

/// Whether all migrations have been applied. The [`TABLE`] must exist.
pub(super) async fn are_applied(
    migrations: &Migrator,
    connection: &mut impl Migrate,
) -> Result<bool, MigrateError> {
    let applied = connection.list_applied_migrations(TABLE).await?;
    for migration in migrations.iter() {
        match applied.iter().find(|applied| applied.version == migration.version) {
            None => return Ok(false),
            Some(applied) if applied.checksum != migration.checksum => {
                return Err(MigrateError::VersionMismatch(migration.version));
            }
            Some(_) => {}
        }
    }
    Ok(true)
}
