//! The command text of a background task, read back: which shard goes from where to where. Pure text.

/// What the command of a task moves: one `citus_move_shard_placement` call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MoveCommand {
    pub shard: i64,
    pub from: Place,
    pub to: Place,
}

/// How a command names a node: by id (Citus 11.3 and later), or by host and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Id(i32),
    Address(String, i32),
}

/// The move that a task makes, or `None` when it does something else (`replicate_reference_tables`).
pub(super) fn parse(command: &str) -> Option<MoveCommand> {
    let rest = command.split_once("citus_move_shard_placement(")?.1;
    let arguments = arguments(rest)?;
    match arguments.as_slice() {
        [shard, from, to] | [shard, from, to, _] => Some(MoveCommand {
            shard: shard.parse().ok()?,
            from: Place::Id(from.parse().ok()?),
            to: Place::Id(to.parse().ok()?),
        }),
        [shard, from, from_port, to, to_port] | [shard, from, from_port, to, to_port, _] => {
            Some(MoveCommand {
                shard: shard.parse().ok()?,
                from: Place::Address(from.clone(), from_port.parse().ok()?),
                to: Place::Address(to.clone(), to_port.parse().ok()?),
            })
        }
        _ => None,
    }
}

/// Arguments up to the closing parenthesis: numbers as they are, string constants without their quotes.
fn arguments(text: &str) -> Option<Vec<String>> {
    let mut found = vec![String::new()];
    let mut quoted = false;
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '\'' if quoted && letters.peek() == Some(&'\'') => {
                letters.next();
                found.last_mut()?.push('\'');
            }
            '\'' => quoted = !quoted,
            _ if quoted => found.last_mut()?.push(letter),
            ')' => return Some(found),
            ',' => found.push(String::new()),
            ' ' => {}
            _ => found.last_mut()?.push(letter),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("SELECT pg_catalog.citus_move_shard_placement(102009,2,3,'auto')")]
    #[case("select citus_move_shard_placement(102009, 2, 3)")]
    #[case("SELECT pg_catalog.citus_move_shard_placement(102009,2,3,shard_transfer_mode:='block_writes')")]
    fn nodes_by_id(#[case] command: &str) {
        assert_eq!(
            parse(command),
            Some(MoveCommand { shard: 102_009, from: Place::Id(2), to: Place::Id(3) })
        );
    }

    #[test]
    fn nodes_by_address() {
        let command = "SELECT pg_catalog.citus_move_shard_placement(102009,'shop-worker-0.a.svc',5432,'o''dd, (host)',5433,'auto')";
        let expected = MoveCommand {
            shard: 102_009,
            from: Place::Address("shop-worker-0.a.svc".to_owned(), 5432),
            to: Place::Address("o'dd, (host)".to_owned(), 5433),
        };
        assert_eq!(parse(command), Some(expected));
    }

    #[rstest]
    #[case("SELECT pg_catalog.replicate_reference_tables('auto')")]
    #[case("SELECT pg_catalog.citus_copy_shard_placement(102009,2,3,'auto')")]
    #[case("SELECT pg_catalog.citus_move_shard_placement(102009,2")]
    #[case("SELECT pg_catalog.citus_move_shard_placement(x,2,3,'auto')")]
    #[case("")]
    fn other_commands_move_nothing(#[case] command: &str) {
        assert_eq!(parse(command), None);
    }
}
