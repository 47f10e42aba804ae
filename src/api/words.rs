//! Words that sentences for people share. No sentence lives here.

use std::fmt::Display;

/// A number with its noun, whose plural is regular: `1 move`, `2 moves`.
pub fn several<N: Copy + Display + PartialEq + From<u8>>(count: N, noun: &str) -> String {
    let plural = if count == N::from(1) { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

/// Bytes as people read them.
pub fn size(bytes: i64) -> String {
    let units = [("GiB", 1_i64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    let unit = units.iter().find(|(_, unit)| bytes >= *unit);
    unit.map_or_else(
        || format!("{bytes} bytes"),
        // Tenths without floating point.
        |(name, unit)| format!("{}.{} {name}", bytes / unit, bytes % unit * 10 / unit),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_has_no_plural() {
        assert_eq!(
            [several(0, "move"), several(1_i64, "move"), several(2_usize, "move")].join(", "),
            "0 moves, 1 move, 2 moves"
        );
    }
}
