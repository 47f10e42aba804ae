//! How a broken invariant is reported. No rule lives here.

/// A rule that a plan breaks; the number is that of the list in ARCHITECTURE.md.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invariant {number} ({rule}) would be broken: {how}")]
pub struct Violation {
    /// Number in the list of invariants in ARCHITECTURE.md.
    pub number: u8,
    /// The rule.
    pub rule: &'static str,
    /// How this plan breaks it.
    pub how: String,
}

pub(super) fn violation(number: u8, rule: &'static str, how: impl Into<String>) -> Violation {
    Violation { number, rule, how: how.into() }
}
