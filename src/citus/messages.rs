//! What a server said, made fit for conditions, events and logs: in one line, and without the values of rows, which are
//! the application's. Pure text.

/// Words of a server in one line, without what a terminal would take for an order: they go into conditions, events and
/// log lines.
pub(super) fn one_line(words: &str) -> String {
    let plain = |letter: char| if is_order(letter) { ' ' } else { letter };
    let lines = words.lines().map(|line| line.chars().map(plain).collect::<String>());
    let lines: Vec<String> =
        lines.map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect();
    lines.join(" ")
}

/// Control characters, and those that turn the direction of text.
fn is_order(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// DETAIL that names the values of a row.
pub(super) fn tells_a_row(detail: &str) -> bool {
    let detail = detail.trim_start();
    ["Failing row", "Key (", "Partition key of the failing row", "The row", "Token ", "Array value"]
        .iter()
        .any(|beginning| detail.starts_with(beginning))
        || detail.contains("Failing row contains")
        || detail.contains("Key (")
}

/// A message up to where it quotes a value: `invalid input syntax for type bigint: "hello"`, `failed to send 9 bytes
/// hello`, `COPY t, line 7: "hello"`.
pub(super) fn without_values(message: &str) -> String {
    let ends = [": \"", ": '", ": »", ": «", ": „", ": “", " Failing row contains", " Key ("];
    let mut end = ends.iter().filter_map(|end| message.find(end)).min().unwrap_or(message.len());
    if let Some(at) = message.find("failed to send ") {
        let bytes = message[at..].find(" bytes").map_or(message.len(), |bytes| at + bytes + " bytes".len());
        end = end.min(bytes);
    }
    for beginning in ["COPY ", "while copying "] {
        let line = message.find(beginning).and_then(|at| message[at..].find(", line ").map(|line| at + line));
        end = line.map_or(end, |line| end.min(line));
    }
    let kept = &message[..end];
    // `value "99" is out of range`.
    match kept.find("value \"") {
        Some(at) => {
            let value = &kept[at + "value \"".len()..];
            let rest = value.rfind('"').map_or("", |quote| &value[quote + 1..]);
            format!("{}value \"...\"{rest}", &kept[..at])
        }
        None => kept.to_owned(),
    }
}

/// A message without what it quotes.
pub(super) fn unquoted(message: &str) -> String {
    let quote = |letter: char| "\"'»«„“”‚‘’".contains(letter);
    match (message.find(quote), message.rfind(quote)) {
        (Some(first), Some(last)) if first < last => {
            let opened = first + message[first..].chars().next().map_or(0, char::len_utf8);
            format!("{}...{}", &message[..opened], &message[last..])
        }
        (Some(first), _) => message[..first].trim_end().to_owned(),
        _ => message.to_owned(),
    }
}

/// What a background task says, as people may read it: its error, which comes first in whatever language, and its HINT.
/// DETAIL and CONTEXT hold rows, of any number of lines, so nothing that comes after such a line is believed.
pub(super) fn of_task(message: &str) -> String {
    let mut said: Vec<String> = Vec::new();
    let mut told = true;
    for line in message.lines() {
        match label(line) {
            // A second error is not the server's.
            Some("ERROR" | "FATAL" | "PANIC") if !said.is_empty() => break,
            Some(label) => told = said.is_empty() || label == "HINT",
            // The rest of a row.
            None if !told => break,
            None => {}
        }
        if told {
            said.push(without_values(&one_line(line)).trim_end().to_owned());
        }
    }
    said.retain(|line| !line.is_empty());
    said.join(" ")
}

/// What a line of a report begins with: `DETAIL:`, in the server's language.
fn label(line: &str) -> Option<&str> {
    let label = line.trim_start().split_once(':')?.0.trim_end();
    let upper = |letter: char| letter.is_alphabetic() && !letter.is_lowercase();
    (label.chars().count() > 2 && label.chars().all(upper)).then_some(label)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(
        "ERROR: it failed\nDETAIL: Failing row contains (1, my PIN\nERROR: my PIN, \nHINT: my PIN).\nCONTEXT: x",
        "ERROR: it failed"
    )]
    #[case(
        "ERROR: it failed\nDETAIL: Key (a)=(my PIN).\nHINT: Do it.\nCONTEXT: COPY t, line 1: \"my PIN\"",
        "ERROR: it failed HINT: Do it."
    )]
    #[case(
        "ERROR: invalid input syntax for type bigint: \"my PIN\"\nCONTEXT: x",
        "ERROR: invalid input syntax for type bigint"
    )]
    #[case("ERROR: failed to send 3 bytes my PIN\n", "ERROR: failed to send 3 bytes")]
    #[case("SELECT 1\n", "SELECT 1")]
    #[case(
        "FEHLER:  ungültige Eingabesyntax für Typ bigint: »meine PIN«\nDETAIL:  meine PIN\nTIPP: meine PIN",
        "FEHLER:  ungültige Eingabesyntax für Typ bigint"
    )]
    #[case("ERROR: a\nПОДРОБНОСТИ: my PIN\nmy PIN", "ERROR: a")]
    #[case("ERREUR: a\nDÉTAIL : my PIN", "ERREUR: a")]
    #[case(
        "ERROR: a\nin two lines\nHINT: b\nin two\nKONTEXT: my PIN",
        "ERROR: a in two lines HINT: b in two"
    )]
    fn of_a_task_its_error_and_hint_are_told(#[case] message: &str, #[case] told: &str) {
        assert_eq!(of_task(message), told);
    }

    #[test]
    fn quotes_of_any_language_are_emptied() {
        assert_eq!(unquoted("Wert »meine PIN« ist außerhalb"), "Wert »...« ist außerhalb");
        assert_eq!(unquoted("invalid \"my \"PIN\"\""), "invalid \"...\"");
    }

    #[test]
    fn words_give_no_orders_to_a_terminal() {
        assert_eq!(one_line("a\u{1b}[31m\u{202e}b\n\tc\u{9b}\u{2066}"), "a [31m b c");
    }
}
