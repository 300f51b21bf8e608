//! Postings: the documents that contain a term.

use super::fields::Fields;

/// The number of a document, which is one capability of one agent.
pub(super) type DocumentId = u32;

/// The occurrences of a term in a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Posting {
    pub(super) document: DocumentId,
    /// Number of occurrences, weighted by field.
    pub(super) frequency: u16,
    pub(super) fields: Fields,
}

/// Maximum number of postings in a block, which bounds the cost of a change.
const BLOCK: usize = 256;

/// The postings of a term, ordered by document and stored in blocks: a list of 100,000 changes as fast as a short one, and is
/// read nearly as fast as an array.
#[derive(Debug, Default)]
pub(super) struct Postings {
    /// The blocks, none of which is empty.
    blocks: Vec<Vec<Posting>>,
    len: usize,
}

impl Postings {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Posting> {
        self.blocks.iter().flatten()
    }

    /// Adds a posting of a document that does not have one yet.
    pub(super) fn insert(&mut self, posting: Posting) {
        self.len += 1;
        let number = self.block_of(posting.document).min(self.blocks.len().saturating_sub(1));
        let Some(block) = self.blocks.get_mut(number) else {
            self.blocks.reserve_exact(1);
            self.blocks.push(vec![posting]);
            return;
        };
        let index = block.partition_point(|other| other.document < posting.document);
        if block.len() == block.capacity() {
            // Blocks grow by half, because most lists stay short.
            block.reserve_exact(block.len().div_ceil(2));
        }
        block.insert(index, posting);
        if block.len() > BLOCK {
            // Most documents are added at the end, and then the previous block stays full.
            let after = block.split_off(if index == BLOCK { BLOCK } else { BLOCK / 2 });
            self.blocks.insert(number + 1, after);
        }
    }

    /// Removes the posting of a document.
    pub(super) fn remove(&mut self, document: DocumentId) {
        let number = self.block_of(document);
        let Some(block) = self.blocks.get_mut(number) else { return };
        let Ok(index) = block.binary_search_by_key(&document, |posting| posting.document) else { return };
        block.remove(index);
        self.len -= 1;
        if block.is_empty() {
            self.blocks.remove(number);
        } else {
            self.merge(number);
            self.merge(number.saturating_sub(1));
        }
    }

    /// Merges a block with the next one if both are small.
    fn merge(&mut self, number: usize) {
        let is_small = |block: &Vec<Posting>| block.len() <= BLOCK / 4;
        if self.blocks.get(number..=number + 1).is_some_and(|both| both.iter().all(is_small)) {
            let after = self.blocks.remove(number + 1);
            self.blocks[number].extend(after);
        }
    }

    /// Returns the index of the block that a document belongs to, or one past the last block if it lies beyond all of them.
    fn block_of(&self, document: DocumentId) -> usize {
        self.blocks.partition_point(|block| block.last().is_some_and(|last| last.document < document))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn posting(document: DocumentId) -> Posting {
        Posting { document, frequency: 1, fields: Fields::default() }
    }

    proptest! {
        #[test]
        fn postings_are_a_sorted_set(changes in prop::collection::vec((any::<bool>(), 0_u32..2_000), 0..3_000)) {
            let (mut postings, mut expected) = (Postings::default(), BTreeSet::new());
            for (is_insert, document) in changes {
                if is_insert && expected.insert(document) {
                    postings.insert(posting(document));
                } else if !is_insert {
                    expected.remove(&document);
                    postings.remove(document);
                }
            }
            prop_assert_eq!(postings.len(), expected.len());
            prop_assert!(postings.iter().map(|posting| &posting.document).eq(&expected));
        }
    }

    #[test]
    fn blocks_fill_up_in_order_and_merge_after_most_documents_are_removed() {
        let mut postings = Postings::default();
        (0..10_000).for_each(|document| postings.insert(posting(document)));
        assert_eq!(postings.blocks.len(), 10_000_usize.div_ceil(BLOCK));
        (0..10_000).filter(|document| document % 1_000 != 0).for_each(|document| postings.remove(document));
        assert!(postings.blocks.len() <= 2, "{} blocks of 10", postings.blocks.len());
    }
}
