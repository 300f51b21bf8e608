//! Reading the queries of requests, as a registry does.

use super::parameters::InvalidParameter;

/// A query that a registry reads from the URL of a request.
pub trait FromQueryString: Sized {
    /// Reads a query. Unknown parameters are ignored.
    ///
    /// # Errors
    /// If a parameter is invalid.
    fn from_query_string(query: &str) -> Result<Self, InvalidParameter>;
}
