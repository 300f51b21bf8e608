//! Errors of the database.

/// Error of the database.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// The database cannot be reached, or cannot write at the moment. A retry may succeed.
    #[error("the database is not available")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Another session holds a lock that the operation needs. A retry may succeed.
    #[error("another session has locked the rows in the database")]
    Locked(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The database rejected the data. A retry cannot succeed.
    #[error("the database rejected the data")]
    Rejected(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// An error of a commit.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommitError {
    /// Nothing was changed.
    #[error(transparent)]
    NotApplied(StoreError),
    /// The response to the commit was lost, so the changes may have been made.
    #[error("the database did not say whether it made the changes")]
    Unknown(#[source] StoreError),
}

impl From<StoreError> for CommitError {
    fn from(error: StoreError) -> Self {
        Self::NotApplied(error)
    }
}

/// For commits that no caller waits for, so that it does not matter whether the changes were made.
impl From<CommitError> for StoreError {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::NotApplied(error) | CommitError::Unknown(error) => error,
        }
    }
}

impl From<sqlx::Error> for CommitError {
    fn from(error: sqlx::Error) -> Self {
        Self::NotApplied(error.into())
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
        let is_rejected = match &error {
            sqlx::Error::Database(database) => {
                // PostgreSQL's error classes 22 (data exception) and 23 (integrity constraint violation).
                let is_data_error =
                    code.as_deref().is_some_and(|code| code.starts_with("22") || code.starts_with("23"));
                is_data_error || !matches!(database.kind(), sqlx::error::ErrorKind::Other)
            }
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) | sqlx::Error::Encode(_) => true,
            _ => false,
        };
        // PostgreSQL's codes for a lock timeout and a deadlock.
        if matches!(code.as_deref(), Some("55P03" | "40P01")) {
            Self::Locked(error.into())
        } else if is_rejected {
            Self::Rejected(error.into())
        } else {
            Self::Unavailable(error.into())
        }
    }
}

pub(crate) type Result<T> = std::result::Result<T, StoreError>;
