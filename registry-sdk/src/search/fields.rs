//! The fields of a capability, and what a term counts in each.

use crate::contract::Capability;

/// Fields of a capability, as a set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Fields(u8);

impl Fields {
    pub(super) const NAME: Self = Self(1);
    pub(super) const TITLE: Self = Self(2);
    pub(super) const TAG: Self = Self(4);
    pub(super) const EXAMPLE: Self = Self(8);
    pub(super) const DESCRIPTION: Self = Self(16);
    /// The name as a whole is the term.
    pub(super) const WHOLE_NAME: Self = Self(32);

    /// Number of bits that a set takes.
    pub(super) const BITS: u32 = 6;

    pub(super) fn bits(self) -> u8 {
        self.0
    }

    pub(super) fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    pub(super) fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(super) fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Returns what a term in this field counts, in halves. One in an example counts half of one in the description: there
    /// may be sixteen of them.
    pub(super) fn weight(self) -> u16 {
        match self {
            Self::NAME | Self::TITLE | Self::TAG => 4,
            Self::DESCRIPTION => 2,
            _ => 1,
        }
    }
}

/// Returns all texts of a capability.
pub(super) fn texts(capability: &Capability) -> impl Iterator<Item = (Fields, &str)> {
    let name = [(Fields::NAME, capability.name.as_str())];
    let title = capability.title.iter().map(|title| (Fields::TITLE, title.as_str()));
    let tags = capability.tags.iter().map(|tag| (Fields::TAG, tag.as_str()));
    let examples = capability.examples.iter().map(|example| (Fields::EXAMPLE, example.as_str()));
    let description = [(Fields::DESCRIPTION, capability.description.as_str())];
    name.into_iter().chain(title).chain(tags).chain(examples).chain(description)
}
