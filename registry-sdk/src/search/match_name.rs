//! Matching an exact name.

use super::documents::Documents;
use super::fields::Fields;
use super::postings::Postings;
use super::score::Match;

/// Returns all matches, by document.
pub(super) fn search(documents: &Documents, key: &str, name: &str) -> Vec<Match> {
    let dictionary = &documents.dictionary;
    let postings = dictionary.get(key).and_then(|term| dictionary.postings(term));
    let similar = postings.into_iter().flat_map(Postings::iter);
    let named = similar.filter(|posting| {
        let is_whole_name = posting.fields.intersects(Fields::WHOLE_NAME);
        is_whole_name && documents.get(posting.document).is_some_and(|document| *document.name == *name)
    });
    named.map(|posting| Match { id: posting.document, score: 1.0, description_only: false }).collect()
}
