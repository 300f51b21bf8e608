//! Settings of sessions.

use sqlx::PgExecutor;

/// Settings of every session, by name.
///
/// Set with a statement, since `PgBouncer` rejects them in the startup message.
pub(super) const SETTINGS: &[(&str, &str)] = &[
    // A server that was suspended or cut off inside a transaction must not block the others for long.
    ("idle_in_transaction_session_timeout", "1s"),
    ("lock_timeout", "100ms"),
    ("statement_timeout", "2s"),
    ("default_transaction_isolation", "read committed"),
    // Every statement finds its rows by key, whatever the size of the batch and the table. A custom plan per
    // batch, or one made while the table was still empty, costs many times more.
    ("plan_cache_mode", "force_generic_plan"),
    ("enable_seqscan", "off"),
    ("jit", "off"),
];

/// Settings that some versions or platforms lack.
///
/// They let the database notice that this server is gone, and keep idle sessions open.
const OPTIONAL_SETTINGS: &[(&str, &str)] = &[
    ("client_connection_check_interval", "500ms"),
    ("tcp_user_timeout", "3s"),
    ("idle_session_timeout", "0"),
];

/// Additional settings of heartbeat sessions: a batch need not wait for the disk.
pub(super) const HEARTBEAT_SETTINGS: &[(&str, &str)] = &[("synchronous_commit", "off")];

pub(super) async fn apply_settings(
    executor: impl PgExecutor<'_>,
    settings: &[(&str, &str)],
) -> sqlx::Result<()> {
    let (names, values): (Vec<&str>, Vec<&str>) = settings.iter().copied().unzip();
    sqlx::query(
        "SELECT set_config(name, value, false) FROM unnest($1::text[], $2::text[]) AS setting (name, value)",
    )
    .bind(names)
    .bind(values)
    .execute(executor)
    .await?;
    Ok(())
}

/// Applies the settings of a session, then the optional settings.
///
/// Optional settings are applied one by one and may fail, since some databases do not support them.
pub(super) async fn set_up<E>(executor: &mut E, settings: &[(&str, &str)]) -> sqlx::Result<()>
where
    for<'e> &'e mut E: PgExecutor<'e>,
{
    apply_settings(&mut *executor, settings).await?;
    for setting in OPTIONAL_SETTINGS {
        let _ = apply_settings(&mut *executor, std::slice::from_ref(setting)).await;
    }
    Ok(())
}
