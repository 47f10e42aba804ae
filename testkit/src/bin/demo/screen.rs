//! What a person sees while it happens: the commands that are typed, and one live line. Nothing is decided here.

use std::{
    io::{IsTerminal as _, Write as _},
    process::Stdio,
};

use anyhow::{Context as _, bail};
use dialog_operator::{api::status::RebalanceStatus, snapshot::JobState};
use tokio::{io::AsyncWriteExt as _, process::Command};

use crate::watch::View;

/// Characters of the progress bar, and of the line at most.
const BAR: i64 = 32;
const WIDTH: usize = 140;

/// Standard output: a terminal gets one line that changes, anything else a line for each change.
pub struct Screen {
    live: bool,
    last: String,
}

impl Screen {
    /// Of this process.
    pub fn new() -> Self {
        Self { live: std::io::stdout().is_terminal(), last: String::new() }
    }

    /// Shows how a cluster stands, if that has changed.
    pub fn show(&mut self, view: &View) {
        let line = line(view);
        if line == self.last {
            return;
        }
        let mut out = std::io::stdout().lock();
        // The same line again, cut where the terminal ends. One that is gone is no reason to end.
        let _ =
            if self.live { write!(out, "\r\x1b[2K\x1b[?7l{line}\x1b[?7h") } else { writeln!(out, "{line}") };
        let _ = out.flush();
        self.last = line;
    }

    /// Says something that stays.
    pub fn say(&mut self, text: &str) {
        if self.live && !self.last.is_empty() {
            println!();
        }
        self.last.clear();
        println!("{text}");
    }

    /// Runs kubectl, in sight. `input` is what it reads, if anything.
    ///
    /// # Errors
    /// When it cannot be run or fails, with its own words.
    pub async fn kubectl(&mut self, arguments: &[&str], input: Option<&str>) -> anyhow::Result<()> {
        let shown: Vec<String> = arguments.iter().map(|argument| quoted(argument)).collect();
        self.say(&format!("$ kubectl {}", shown.join(" ")));
        let mut child = Command::new("kubectl")
            .args(arguments)
            .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run kubectl")?;
        if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
            stdin.write_all(input.as_bytes()).await?;
        }
        let output = child.wait_with_output().await?;
        if !output.status.success() {
            bail!("kubectl {} failed: {}", shown.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            self.say(&format!("  {line}"));
        }
        Ok(())
    }
}

/// How a cluster stands, in one line.
#[must_use]
pub fn line(view: &View) -> String {
    let status = &view.status;
    let phase = status.phase.map(|phase| phase.to_string()).unwrap_or_default();
    let message = status.message.as_deref().unwrap_or_default();
    let bar = status.rebalance.as_ref().filter(|job| is_open(job)).map(bar).unwrap_or_default();
    format!("  {phase:<12} {bar}{message}").chars().take(WIDTH).collect()
}

/// As one would type it.
fn quoted(argument: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_./=:,".contains(letter);
    if argument.chars().all(plain) { argument.to_owned() } else { format!("'{argument}'") }
}

fn is_open(job: &RebalanceStatus) -> bool {
    !JobState::from(job.state.as_str()).has_ended()
}

fn bar(job: &RebalanceStatus) -> String {
    let cells = (BAR * job.moves.done).checked_div(job.moves.total).unwrap_or_default().clamp(0, BAR);
    let (full, empty) = (usize::try_from(cells).unwrap_or(0), usize::try_from(BAR - cells).unwrap_or(0));
    format!("[{}{}] {} ", "█".repeat(full), "░".repeat(empty), job.progress)
}

#[cfg(test)]
mod tests {
    use dialog_operator::api::status::MoveCounts;

    use super::*;

    #[test]
    fn a_bar_is_full_when_all_is_done() {
        let job = |done, total| RebalanceStatus {
            moves: MoveCounts { total, done, ..MoveCounts::default() },
            progress: format!("{done}/{total}"),
            ..RebalanceStatus::default()
        };
        assert_eq!(bar(&job(9, 16)), format!("[{}{}] 9/16 ", "█".repeat(18), "░".repeat(14)));
        assert_eq!(bar(&job(16, 16)), format!("[{}] 16/16 ", "█".repeat(32)));
        assert_eq!(bar(&job(0, 0)), format!("[{}] 0/0 ", "░".repeat(32)));
    }

    #[test]
    fn an_argument_is_shown_as_it_would_be_typed() {
        assert_eq!(quoted("--replicas=3"), "--replicas=3");
        assert_eq!(quoted(r#"{"spec":{}}"#), r#"'{"spec":{}}'"#);
    }
}
