//! Matching an exact name.

use super::documents::Documents;
use super::fields::Fields;
use super::postings::Postings;
use super::score::Match;

/// Returns whether a search visits fewer documents than `max`.
pub(super) fn is_quick(documents: &Documents, key: &str, max: usize) -> bool {
    similar(documents, key).is_none_or(|postings| postings.len() < max)
}

/// Returns the postings of the documents that have the words of the name.
fn similar<'a>(documents: &'a Documents, key: &str) -> Option<&'a Postings> {
    let dictionary = &documents.dictionary;
    dictionary.get(key).and_then(|term| dictionary.postings(term))
}

/// Returns all matches, ordered by document.
pub(super) fn search(documents: &Documents, key: &str, name: &str) -> Vec<Match> {
    let similar = similar(documents, key).into_iter().flat_map(Postings::iter);
    let named = similar.filter(|posting| {
        let is_whole_name = posting.fields.intersects(Fields::WHOLE_NAME);
        is_whole_name && documents.get(posting.document).is_some_and(|document| *document.name == *name)
    });
    named.map(|posting| Match { id: posting.document, score: 1.0, description_only: false }).collect()
}
