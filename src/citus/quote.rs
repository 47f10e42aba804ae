//! Names and values inside a statement, where PostgreSQL takes no parameters: libpq's rules, as postgres-protocol has
//! them. Nothing else builds SQL from text.

pub(super) use postgres_protocol::escape::{escape_identifier as ident, escape_literal as literal};

/// The name of a setting: `citus.shard_count` is two identifiers.
pub(super) fn setting(name: &str) -> String {
    name.split('.').map(ident).collect::<Vec<_>>().join(".")
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
