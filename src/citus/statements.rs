//! Splits SQL into its statements, as psql does, so that a failing one can be named and one that cannot be run
//! refused before anything is. Pure text.

/// So much of a statement is shown, in characters.
const SHOWN: usize = 200;

/// A statement of a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Statement<'a> {
    /// The text from its first word to before its semicolon.
    pub text: &'a str,
    /// The line of its first word, from 1.
    pub line: usize,
}

impl Statement<'_> {
    /// Its first line, for messages, as far as it is no row; nothing of a statement that holds a secret.
    pub(super) fn shown(&self) -> String {
        if self.holds_secret() {
            return "a statement that holds a password".to_owned();
        }
        let line = self.text.lines().next().unwrap_or_default().trim_end();
        let shown = if self.writes_rows() { without_rows(line) } else { line };
        let cut: String = shown.chars().take(SHOWN).collect();
        let dots = if cut.len() < line.len() { " ..." } else { "" };
        format!("`{}{dots}`", cut.trim_end())
    }
    /// What is in it may be the words of a row.
    fn writes_rows(&self) -> bool {
        let first = bare_words(self.text).next();
        matches!(
            first.as_deref(),
            Some("INSERT" | "UPDATE" | "DELETE" | "MERGE" | "WITH" | "VALUES" | "EXECUTE")
        )
    }
    /// It has a password or a connection string in it, or may have: those of servers, mappings and subscriptions.
    pub(super) fn holds_secret(&self) -> bool {
        let text = self.text.to_ascii_uppercase();
        let words: Vec<&str> = text.split_whitespace().take(5).collect();
        let about = |what: &[&str]| words.windows(what.len()).any(|part| part == what);
        ["PASSWORD", "PASSWD", "SECRET", "PASSPHRASE", "CONNECTION"].iter().any(|word| text.contains(word))
            || about(&["USER", "MAPPING"])
            || (about(&["SERVER"]) || about(&["SUBSCRIPTION"])) && !about(&["SELECT"])
    }
    /// `\restrict` and `\unrestrict`, which pg_dump writes around its script: they concern psql, and mean nothing here.
    pub(super) fn is_of_pg_dump(&self) -> bool {
        let first = self.text.split_whitespace().next();
        matches!(first, Some("\\restrict" | "\\unrestrict")) && !self.text.contains('\n')
    }
    /// The line of the script that a character of the statement is on, from 1.
    pub(super) fn line_of(&self, position: usize) -> usize {
        self.line + self.text.chars().take(position).filter(|letter| *letter == '\n').count()
    }
    /// Why it cannot be part of a script that runs as a whole in one transaction, if it cannot.
    pub(super) fn unusable(&self) -> Option<&'static str> {
        if self.is_of_pg_dump() {
            return None;
        }
        if self.text.starts_with('\\') {
            return Some("is a command of psql, not SQL");
        }
        let words: Vec<String> = bare_words(self.text).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let has = |pair: [&str; 2]| words.windows(2).any(|words| words == pair);
        match words.as_slice() {
            ["BEGIN" | "START" | "COMMIT" | "END" | "ROLLBACK" | "ABORT" | "SAVEPOINT" | "RELEASE", ..]
            | ["PREPARE", "TRANSACTION", ..] => {
                Some("would end the transaction in which the schema is applied")
            }
            ["COPY", ..] if has(["FROM", "STDIN"]) => Some("reads rows that are not there: use INSERT"),
            ["COPY", ..] if has(["TO", "STDOUT"]) => Some("writes rows that nobody reads"),
            _ => None,
        }
    }
}

/// The statements of a script, without comments before them; empty ones are left out.
pub(super) fn split(sql: &str) -> Vec<Statement<'_>> {
    let mut scanner =
        Scanner { sql, at: 0, start: None, parentheses: 0, words: 0, routine: false, blocks: 0 };
    let mut found = Vec::new();
    while let Some(statement) = scanner.next_statement() {
        found.push(statement);
    }
    found
}

/// Words in upper case that are neither quoted nor in a comment.
fn bare_words(text: &str) -> impl Iterator<Item = String> {
    let mut at = 0;
    std::iter::from_fn(move || {
        loop {
            let rest = &text[at..];
            let letter = rest.chars().next()?;
            at += match letter {
                '-' if rest.starts_with("--") => rest.find('\n').unwrap_or(rest.len()),
                '/' if rest.starts_with("/*") => comment(rest),
                '\'' | '"' => quoted(rest, letter, false),
                '$' => dollar_quoted(rest),
                _ if starts_word(letter) => {
                    let word = word(rest);
                    at += word.len();
                    if word.eq_ignore_ascii_case("e") && text[at..].starts_with('\'') {
                        at += quoted(&text[at..], '\'', true);
                    }
                    return Some(word.to_uppercase());
                }
                _ => letter.len_utf8(),
            };
        }
    })
}

/// A line of a statement that writes rows, up to where they may begin.
fn without_rows(line: &str) -> &str {
    let upper = line.to_ascii_uppercase();
    let begins = ["VALUES", "SELECT", " SET ", " WHERE", " USING", " AS", "'", "$"];
    let end = begins.iter().filter_map(|begins| upper.find(begins)).min();
    // `EXECUTE p(1)`.
    let end = if upper.starts_with("EXECUTE") { line.find('(') } else { end };
    &line[..end.unwrap_or(line.len())]
}

fn starts_word(letter: char) -> bool {
    letter.is_alphabetic() || letter == '_'
}

/// The word that a text begins with.
fn word(text: &str) -> &str {
    &text[..text.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '$')).unwrap_or(text.len())]
}

struct Scanner<'a> {
    sql: &'a str,
    at: usize,
    /// Where the statement's first word begins.
    start: Option<usize>,
    parentheses: usize,
    /// Words of the statement so far.
    words: usize,
    /// It is CREATE FUNCTION or PROCEDURE: the only statements whose body may have semicolons of its own.
    routine: bool,
    /// Open BEGIN and CASE of such a body.
    blocks: usize,
}

impl<'a> Scanner<'a> {
    fn rest(&self) -> &'a str {
        &self.sql[self.at..]
    }

    fn next_statement(&mut self) -> Option<Statement<'a>> {
        (self.start, self.parentheses, self.words, self.routine, self.blocks) = (None, 0, 0, false, 0);
        loop {
            let rest = self.rest();
            let Some(letter) = rest.chars().next() else { return self.statement_up_to(self.at) };
            if rest.starts_with("--") {
                self.at += rest.find('\n').unwrap_or(rest.len());
                continue;
            }
            if rest.starts_with("/*") {
                self.at += comment(rest);
                continue;
            }
            if letter == ';' && self.parentheses == 0 && self.blocks == 0 {
                let end = self.at;
                self.at += 1;
                if let Some(statement) = self.statement_up_to(end) {
                    return Some(statement);
                }
                continue;
            }
            // A command of psql ends with its line.
            if letter == '\\' && self.start.is_none() {
                self.start = Some(self.at);
                self.at += rest.find('\n').unwrap_or(rest.len());
                return self.statement_up_to(self.at);
            }
            if !letter.is_whitespace() {
                self.start.get_or_insert(self.at);
            }
            self.step(letter, rest);
        }
    }

    /// Passes over one token that is neither a comment nor the end of a statement.
    fn step(&mut self, letter: char, rest: &'a str) {
        match letter {
            '\'' => self.at += quoted(rest, '\'', false),
            '"' => self.at += quoted(rest, '"', false),
            '$' => self.at += dollar_quoted(rest),
            '(' => {
                self.parentheses += 1;
                self.at += 1;
            }
            ')' => {
                self.parentheses = self.parentheses.saturating_sub(1);
                self.at += 1;
            }
            _ if starts_word(letter) => {
                let word = word(rest);
                self.at += word.len();
                // E'...' has backslash escapes; no other string has.
                if word.eq_ignore_ascii_case("e") && self.rest().starts_with('\'') {
                    self.at += quoted(self.rest(), '\'', true);
                } else {
                    self.word(word);
                }
            }
            _ => self.at += letter.len_utf8(),
        }
    }

    /// Follows the body of a routine (`BEGIN ATOMIC ... END`), whose statements end in semicolons, too.
    fn word(&mut self, word: &str) {
        let is = |other: &str| word.eq_ignore_ascii_case(other);
        self.words += 1;
        match self.words {
            1 => self.routine = is("create"),
            2..=4 if is("function") || is("procedure") => self.words = 5,
            2..=3 => self.routine &= is("or") || is("replace"),
            4 => self.routine = false,
            _ if !self.routine || self.parentheses > 0 => {}
            _ if is("begin") => self.blocks += 1,
            _ if is("case") && self.blocks > 0 => self.blocks += 1,
            _ if is("end") => self.blocks = self.blocks.saturating_sub(1),
            _ => {}
        }
    }

    fn statement_up_to(&mut self, end: usize) -> Option<Statement<'a>> {
        let start = self.start.take()?;
        let line = 1 + self.sql[..start].matches('\n').count();
        Some(Statement { text: self.sql[start..end].trim_end(), line })
    }
}

/// Length of a comment, which may hold others.
fn comment(text: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    loop {
        let rest = &text[at..];
        if rest.starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest.starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else if let Some(letter) = rest.chars().next() {
            at += letter.len_utf8();
        } else {
            return at;
        }
    }
}

/// Length of a quoted text; a doubled quote is part of it.
fn quoted(text: &str, quote: char, escapes: bool) -> usize {
    let mut letters = text.char_indices().skip(1).peekable();
    while let Some((at, letter)) = letters.next() {
        if letter == '\\' && escapes {
            letters.next();
        } else if letter == quote {
            if letters.peek().is_some_and(|(_, next)| *next == quote) {
                letters.next();
            } else {
                return at + quote.len_utf8();
            }
        }
    }
    text.len()
}

/// Length of `$tag$...$tag$`, or of the dollar alone when none begins here (`$1`).
fn dollar_quoted(text: &str) -> usize {
    let tag = text[1..].find('$').map(|end| &text[..end + 2]).filter(|tag| {
        let name = &tag[1..tag.len() - 1];
        name.chars().all(|c| c.is_alphanumeric() || c == '_')
            && !name.starts_with(|c: char| c.is_ascii_digit())
    });
    match tag {
        Some(tag) => text[tag.len()..].find(tag).map_or(text.len(), |end| end + 2 * tag.len()),
        None => 1,
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn statements_of(sql: &str) -> Vec<&str> {
        split(sql).into_iter().map(|statement| statement.text).collect()
    }

    #[rstest]
    #[case("", &[])]
    #[case(" -- nothing; here\n /* nor; /* here; */ ; */ ;; ", &[])]
    #[case("SELECT 1; SELECT 2", &["SELECT 1", "SELECT 2"])]
    #[case("SELECT ';'; SELECT 'it''s;'; SELECT E'\\';'", &["SELECT ';'", "SELECT 'it''s;'", "SELECT E'\\';'"])]
    #[case("SELECT 'a\\'; SELECT 2", &["SELECT 'a\\'", "SELECT 2"])]
    #[case("SELECT \"a;\"\"b\"; SELECT 2", &["SELECT \"a;\"\"b\"", "SELECT 2"])]
    #[case("DO $$ BEGIN; END $$; SELECT $1", &["DO $$ BEGIN; END $$", "SELECT $1"])]
    #[case("DO $a$ $b$; $$; $a$; SELECT a$b$c; SELECT 3", &["DO $a$ $b$; $$; $a$", "SELECT a$b$c", "SELECT 3"])]
    #[case("CREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT 2); SELECT 3",
        &["CREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT 2)", "SELECT 3"])]
    #[case("CREATE OR REPLACE FUNCTION f(a int) RETURNS int BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; SELECT 2; END; SELECT 3",
        &["CREATE OR REPLACE FUNCTION f(a int) RETURNS int BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; SELECT 2; END", "SELECT 3"])]
    #[case("CREATE TABLE function_begin (begin int); SELECT 1", &["CREATE TABLE function_begin (begin int)", "SELECT 1"])]
    #[case("SELECT 'öpen", &["SELECT 'öpen"])]
    fn statements_end_where_psql_ends_them(#[case] sql: &str, #[case] expected: &[&str]) {
        assert_eq!(statements_of(sql), expected);
    }

    #[test]
    fn a_statement_knows_its_line() {
        let found = split("-- first\nSELECT 1;\n\n/* a\nb */ SELECT\n  oops;");
        assert_eq!(found.iter().map(|statement| statement.line).collect::<Vec<_>>(), [2, 5]);
        assert_eq!(found[1].shown(), "`SELECT`");
        assert_eq!(found[1].line_of("SELECT\n  ".len()), 6);
    }

    #[rstest]
    #[case("begin", Some("transaction"))]
    #[case("COMMIT AND CHAIN", Some("transaction"))]
    #[case("end;", Some("transaction"))]
    #[case("prepare transaction 'x'", Some("transaction"))]
    #[case("PREPARE p AS SELECT 1", None)]
    #[case("SELECT 'COMMIT'", None)]
    #[case("CREATE TABLE commits (a int)", None)]
    #[case("COPY t (a) FROM stdin", Some("INSERT"))]
    #[case("COPY t FROM '/stdin'", None)]
    #[case("COPY t FROM/* here */stdin", Some("INSERT"))]
    #[case("COPY (SELECT 1) TO STDOUT", Some("nobody reads"))]
    #[case("COMMIT/**/", Some("transaction"))]
    #[case("commit--", Some("transaction"))]
    #[case("PREPARE/* */TRANSACTION 'x'", Some("transaction"))]
    #[case("\\set ON_ERROR_STOP on", Some("psql"))]
    #[case("\\restrict abc", None)]
    #[case("\\unrestrict abc\nSELECT 1", None)]
    #[case("\\restrictive", Some("psql"))]
    fn what_cannot_be_in_a_script_is_known(#[case] sql: &str, #[case] expected: Option<&str>) {
        let why = split(sql)[0].unusable();
        assert_eq!(why.is_some(), expected.is_some(), "{why:?}");
        assert!(expected.is_none_or(|words| why.unwrap().contains(words)), "{why:?}");
    }

    #[rstest]
    #[case("CREATE ROLE x PassWord 'a'", true)]
    #[case("ALTER USER x ENCRYPTED PASSWORD 'a'", true)]
    #[case("CREATE USER MAPPING FOR x SERVER y OPTIONS (user 'a')", true)]
    #[case("CREATE SUBSCRIPTION s CONNECTION 'host=a' PUBLICATION p", true)]
    #[case("ALTER SERVER y OPTIONS (SET token 'a')", true)]
    #[case("CREATE TABLE users (id int)", false)]
    fn statements_that_hold_a_secret_are_not_shown(#[case] sql: &str, #[case] secret: bool) {
        let statement = split(sql)[0];
        assert_eq!((statement.holds_secret(), statement.shown().contains(sql)), (secret, !secret));
    }

    #[rstest]
    #[case("INSERT INTO t (a) VALUES (1, 'my PIN')", "`INSERT INTO t (a) ...`")]
    #[case("insert into t select 4711", "`insert into t ...`")]
    #[case("/* x */ UPDATE t SET pin = 4711", "`UPDATE t ...`")]
    #[case("DELETE FROM t WHERE pin = 4711", "`DELETE FROM t ...`")]
    #[case("WITH a AS (SELECT 4711) SELECT * FROM a", "`WITH a ...`")]
    #[case("EXECUTE p(4711)", "`EXECUTE p ...`")]
    #[case("SELECT create_distributed_table('t', 'id')", "`SELECT create_distributed_table('t', 'id')`")]
    fn rows_are_not_shown(#[case] sql: &str, #[case] shown: &str) {
        assert_eq!(split(sql)[0].shown(), shown);
    }

    #[test]
    fn a_long_statement_is_not_shown_whole() {
        let sql = format!("SELECT {}1", "1,".repeat(500_000));
        let shown = split(&sql)[0].shown();
        assert!(shown.len() < 210 && shown.ends_with(" ...`"), "{shown}");
    }

    #[test]
    fn a_command_of_psql_ends_with_its_line() {
        let found = split("\\restrict x'y\nSELECT 1;\n\\unrestrict x'y\n");
        let texts: Vec<&str> = found.iter().map(|statement| statement.text).collect();
        assert_eq!(texts, ["\\restrict x'y", "SELECT 1", "\\unrestrict x'y"]);
        assert!(found.iter().all(|statement| statement.unusable().is_none()));
    }

    #[test]
    fn the_built_in_schema_is_a_few_statements() {
        let statements = split(super::super::BUILT_IN_SCHEMA);
        assert!(statements.len() >= 4, "{statements:?}");
        assert!(statements.iter().all(|statement| statement.unusable().is_none()));
    }
}
