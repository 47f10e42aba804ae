//! Synthetic messages, the same each time: a row follows from its number. The dialog of two people, of which what is
//! there already is recognised and never written twice; and messages to everybody.

use std::{fmt::Write as _, pin::pin};

use anyhow::{Context as _, bail};
use futures::SinkExt as _;
use tokio_postgres::{Client, Transaction};

use super::{access::Access, ledger::Key};

/// The two who talk.
pub const PEOPLE: [i64; 2] = [1, 1_001_110];

/// Users that messages are written to, so that all shards get some.
pub const USERS: i64 = 1_000_000;

/// Rows of one transaction, all from the same one of the two.
const CHUNK: u64 = 50_000;
/// Rows of one message to the server.
const BATCH: u64 = 1_000;
/// When the dialog began: 2025-01-01 00:00 UTC, in seconds since 1970. A message follows each second.
const BEGAN: u64 = 1_735_689_600;

/// The key of a row: even ones are from the first person to the second, odd ones back.
#[must_use]
pub fn key(sequence: u64) -> Key {
    let [first, second] = PEOPLE;
    Key { to_user: if sequence.is_multiple_of(2) { second } else { first }, id: u128::from(sequence) }
}

/// Loads the first `rows` rows of the dialog, in both directions at once. Returns how many were not there yet.
///
/// # Errors
/// When the database refuses, or holds a part of what is written in one transaction: then it is not this function's.
pub async fn load(access: &Access, rows: u64) -> anyhow::Result<u64> {
    let (there, back) = tokio::try_join!(one_way(access, rows, 0), one_way(access, rows, 1))?;
    Ok(there + back)
}

async fn one_way(access: &Access, rows: u64, parity: u64) -> anyhow::Result<u64> {
    let mut client = access.connect().await?;
    let mut added = 0;
    let mut first = parity;
    while first < rows {
        let end = rows.min(first + 2 * CHUNK);
        let sequence: Vec<u64> = (first..end).step_by(2).collect();
        added +=
            chunk(&mut client, &sequence).await.with_context(|| format!("cannot load rows from {first}"))?;
        first += 2 * CHUNK;
    }
    Ok(added)
}

/// Loads that many messages to everybody into an empty table: each shard gets about as many.
///
/// # Errors
/// When the database refuses.
pub async fn load_everybody(access: &Access, rows: u64) -> anyhow::Result<()> {
    let half = |from: u64, to: u64| async move {
        let mut client = access.connect().await?;
        for first in (from..to).step_by(usize::try_from(CHUNK)?) {
            let sequence: Vec<u64> = (first..to.min(first + CHUNK)).collect();
            let transaction = client.transaction().await?;
            copy(&transaction, &sequence, |number| Key {
                to_user: (number % USERS.unsigned_abs()).cast_signed() + 1,
                id: u128::from(number),
            })
            .await
            .with_context(|| format!("cannot load rows from {first}"))?;
            transaction.commit().await?;
        }
        anyhow::Ok(())
    };
    tokio::try_join!(half(0, rows / 2), half(rows / 2, rows))?;
    Ok(())
}

/// All rows of a chunk, or none of them if they are there.
async fn chunk(client: &mut Client, sequence: &[u64]) -> anyhow::Result<u64> {
    let (Some(first), Some(last)) = (sequence.first(), sequence.last()) else { return Ok(0) };
    let (first, last) = (key(*first), key(*last));
    let there: i64 = client
        .query_one(
            "SELECT count(*) FROM public.dialogs
              WHERE to_user = $1 AND message_id BETWEEN $2::text::uuid AND $3::text::uuid",
            &[&first.to_user, &first.uuid(), &last.uuid()],
        )
        .await?
        .try_get(0)?;
    let expected = u64::try_from(sequence.len())?;
    match u64::try_from(there)? {
        0 => {}
        all if all == expected => return Ok(0),
        part => bail!("{part} of {expected} rows of one transaction are there already"),
    }
    let transaction = client.transaction().await?;
    let added = copy(&transaction, sequence, key).await?;
    transaction.commit().await?;
    Ok(added)
}

/// Copies rows, whose keys follow from their numbers. Returns how many.
async fn copy(
    transaction: &Transaction<'_>,
    sequence: &[u64],
    key: impl Fn(u64) -> Key,
) -> anyhow::Result<u64> {
    let copy = "COPY public.dialogs (from_user, to_user, message, created_at, message_id) FROM STDIN";
    let mut sink = pin!(transaction.copy_in(copy).await?);
    for batch in sequence.chunks(usize::try_from(BATCH)?) {
        sink.send(std::io::Cursor::new(lines(batch, &key)?)).await?;
    }
    Ok(sink.finish().await?)
}

/// Rows in COPY's text form.
fn lines(sequence: &[u64], key: impl Fn(u64) -> Key) -> anyhow::Result<Vec<u8>> {
    let mut text = String::new();
    for number in sequence {
        let key = key(*number);
        let from: i64 = PEOPLE.iter().sum::<i64>() - key.to_user;
        let at = jiff::Timestamp::from_second(i64::try_from(BEGAN + number)?)?;
        writeln!(
            text,
            "{from}\t{}\tmessage {number} of a long conversation\t{at}\t{}",
            key.to_user,
            key.uuid()
        )?;
    }
    Ok(text.into_bytes())
}
