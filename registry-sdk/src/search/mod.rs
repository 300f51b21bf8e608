//! The contract's search: how texts are cut into terms, an inverted index over agents, and the order of matches. The server,
//! the mock registry and [`Directory`](crate::discovery::Directory) share it, so all of them give the same answers.

mod index;
mod rank;
mod terms;

pub use index::{Hit, SearchIndex};
pub use rank::{Field, Rank};
pub use terms::{score, terms};
