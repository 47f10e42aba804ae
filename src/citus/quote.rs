//! Names and values inside a statement, where PostgreSQL takes no parameters. Nothing else builds SQL from text.

/// An identifier, quoted.
pub(super) fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The name of a setting: `citus.shard_count` is two identifiers.
pub(super) fn setting(name: &str) -> String {
    name.split('.').map(ident).collect::<Vec<_>>().join(".")
}

/// A string constant. The form with `E` only where a backslash needs it, as `quote_literal()` does.
pub(super) fn literal(value: &str) -> String {
    let quoted = value.replace('\'', "''");
    if quoted.contains('\\') {
        format!(" E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_gets_out_of_its_quotes() {
        assert_eq!(ident(r#"a"b; DROP"#), r#""a""b; DROP""#);
        assert_eq!(setting("citus.shard_count"), r#""citus"."shard_count""#);
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal(r"a\' OR 1"), r" E'a\\'' OR 1'");
    }
}
