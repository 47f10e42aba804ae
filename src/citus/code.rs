//! Pieces of statements that tell, from the stored trees of expressions, what PostgreSQL would run of somebody. Nothing is
//! asked, and nothing decided, here.

/// Functions that an expression calls, of its `tree`.
macro_rules! called {
    () => {
        "(SELECT found[1]::oid AS funcid
    FROM regexp_matches(tree, ':(?:funcid|opfuncid|aggfnoid|winfnoid) (\\d+)', 'g') AS found
    UNION SELECT o.oprcode::oid FROM regexp_matches(tree, ':opno (\\d+)', 'g') AS found
      JOIN pg_catalog.pg_operator o ON o.oid = found[1]::oid)"
    };
}
/// Types that values are made of in an expression, of its `tree`; those of its columns are there already.
macro_rules! made {
    () => {
        "(SELECT found[1]::oid AS typid
    FROM regexp_matches(tree, ':(?!vartype )[a-zA-Z_]*type(?:id|Id)? (\\d+)', 'g') AS found)"
    };
}
/// The parts of the type `y`: what its values are made of, and what its own CHECKs make.
macro_rules! parts {
    () => {
        "(SELECT y.typbasetype AS typid UNION SELECT y.typelem
    UNION SELECT rngsubtype FROM pg_catalog.pg_range WHERE y.oid IN (rngtypid, rngmultitypid)
    UNION SELECT atttypid FROM pg_catalog.pg_attribute WHERE attrelid = y.typrelid AND attnum > 0 AND NOT attisdropped
    UNION SELECT found[1]::oid FROM pg_catalog.pg_constraint k, regexp_matches(k.conbin::text,
      ':(?!vartype )[a-zA-Z_]*type(?:id|Id)? (\\d+)', 'g') AS found WHERE k.contypid = y.oid)"
    };
}
/// The function `p` is one of PostgreSQL's own that is not volatile and reads whatever table it is told, as a view.
macro_rules! runs_others {
    () => {
        "(p.proname ~ '^(table|schema|database)_to_xml' OR p.proname IN ('satisfies_hash_partition', 'pg_get_partition_constraintdef'))"
    };
}
pub(super) use {called, made, parts, runs_others};
