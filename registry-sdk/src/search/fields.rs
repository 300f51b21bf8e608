//! The fields of a capability and their weights.

use crate::contract::Capability;

/// A set of fields of a capability.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Fields(u8);

impl Fields {
    pub(super) const NAME: Self = Self(1);
    pub(super) const TITLE: Self = Self(2);
    pub(super) const TAG: Self = Self(4);
    pub(super) const EXAMPLE: Self = Self(8);
    pub(super) const DESCRIPTION: Self = Self(16);
    /// The whole name, if it equals the term.
    pub(super) const WHOLE_NAME: Self = Self(32);

    /// Number of bits of a set.
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

    /// Returns the weight of a term in this field, in halves. A term in an example counts half as much as one in the
    /// description, because there may be sixteen examples.
    pub(super) fn weight(self) -> u16 {
        match self {
            Self::NAME | Self::TITLE | Self::TAG => 4,
            Self::DESCRIPTION => 2,
            _ => 1,
        }
    }
}

/// Returns all texts of a capability, with their fields.
pub(super) fn texts(capability: &Capability) -> impl Iterator<Item = (Fields, &str)> {
    let name = [(Fields::NAME, capability.name.as_str())];
    let title = capability.title.iter().map(|title| (Fields::TITLE, title.as_str()));
    let tags = capability.tags.iter().map(|tag| (Fields::TAG, tag.as_str()));
    let examples = capability.examples.iter().map(|example| (Fields::EXAMPLE, example.as_str()));
    let description = [(Fields::DESCRIPTION, capability.description.as_str())];
    name.into_iter().chain(title).chain(tags).chain(examples).chain(description)
}
