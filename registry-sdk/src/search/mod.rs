//! The contract's search. The server, the mock registry and [`Directory`](crate::discovery::Directory) share it, so that all of
//! them give the same results.
//!
//! An analyzer splits texts into terms, and an inverted index maps each term to the capabilities that contain it. A [`Query`]
//! matches in one of three ways: by [all](Query::all) its words, as a sentence by the [best](Query::best) of them, or by an
//! [exact name](Query::exact).

mod analysis;
mod dictionary;
mod documents;
mod fields;
mod index;
mod match_all;
mod match_best;
mod match_name;
mod postings;
mod query;
mod rank;
mod score;

pub use index::SearchIndex;
pub use query::Query;
pub use rank::Rank;
pub use score::Hit;
