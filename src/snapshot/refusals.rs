//! What failed lately, as data: which act, for what cause, in whose words, how often and since when. It is remembered
//! between two looks, and found out again when it is forgotten. Nothing is tried or told here, and whoever asks says what
//! time it is.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::{Cause, Failure, FailureReason};
use crate::api::Node;

/// What was refused so often,
const MIN_FAILURES: u32 = 3;
/// and over so long, is not going to pass by itself.
const MIN_DURATION: SignedDuration = SignedDuration::from_mins(1);
/// An act that is not planned for a moment, because a server was silent for one look, keeps what is known of it.
const RETENTION: SignedDuration = SignedDuration::from_secs(30);
/// Two words for the same, in turns, are no news each time: the first stay while they are said so often.
const MESSAGE_RETENTION: SignedDuration = SignedDuration::from_secs(40);
/// The pause before an act is tried again, doubled each time: the first, the longest, and the longest of a wait.
const RETRY_PAUSES: [SignedDuration; 3] =
    [SignedDuration::from_millis(500), SignedDuration::from_secs(15), SignedDuration::from_secs(3)];

/// What was tried: a kind of step and what it is about, or a look.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Attempt {
    /// A step, as `plan::refusals` names it.
    Step(String),
    /// The look at a node's server.
    Observation(Node),
    /// The look at the coordinator's Citus catalog.
    Catalog,
    /// The question what Citus would move.
    Plan,
    /// The look at the ConfigMap of the schema.
    Schema,
}

impl Attempt {
    /// It is a step of a plan.
    #[must_use]
    pub fn is_step(&self) -> bool {
        match self {
            Self::Step(_) => true,
            Self::Observation(_) | Self::Catalog | Self::Plan | Self::Schema => false,
        }
    }
}

/// An act that failed for one cause, and has not succeeded since.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RepeatedRefusal {
    /// What was tried.
    pub act: Attempt,
    /// The node that it is about, if it is about one.
    pub node: Option<Node>,
    /// Why it failed; the message is in the words of whoever refused, and stays while these are said.
    pub failure: Failure,
    /// How often.
    pub count: u32,
    /// The first time.
    pub since: Timestamp,
    /// The last time.
    pub last: Timestamp,
    /// When these words were said last.
    message_at: Timestamp,
    /// When it was wanted last.
    wanted: Timestamp,
    /// For which generation of the spec it was tried last.
    generation: i64,
}

impl RepeatedRefusal {
    /// It is not going to pass by itself.
    #[must_use]
    pub fn lasts(&self) -> bool {
        self.failure.cause.is_refusal()
            && self.count >= MIN_FAILURES
            && self.last.duration_since(self.since) >= MIN_DURATION
    }
    fn again(&self) -> Timestamp {
        let [first, longest, wait] = RETRY_PAUSES;
        let longest = if self.failure.cause.is_refusal() { longest } else { wait };
        let doubled = first.saturating_mul(1 << self.count.saturating_sub(1).min(10)).min(longest);
        self.last.saturating_add(doubled).unwrap_or(self.last)
    }
}

/// All acts of a cluster that failed lately.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Refusals(Vec<RepeatedRefusal>);

impl Refusals {
    /// An act failed. The same cause counts on, whatever its words; another one is counted beside it.
    pub fn failed(
        &mut self,
        (act, node): (&Attempt, Option<Node>),
        failure: &Failure,
        generation: i64,
        now: Timestamp,
    ) {
        let same = self.0.iter_mut().find(|one| one.act == *act && one.failure.cause == failure.cause);
        let Some(one) = same else {
            self.0.push(RepeatedRefusal {
                act: act.clone(),
                node,
                failure: failure.clone(),
                count: 1,
                since: now,
                last: now,
                message_at: now,
                wanted: now,
                generation,
            });
            return;
        };
        (one.count, one.last, one.wanted) = (one.count.saturating_add(1), now, now);
        one.generation = generation;
        if one.failure.message == failure.message || now.duration_since(one.message_at) > MESSAGE_RETENTION {
            one.failure = failure.clone();
            one.message_at = now;
        }
    }
    /// An act succeeded: nothing of it is kept.
    pub fn succeeded(&mut self, act: &Attempt) {
        self.0.retain(|one| one.act != *act);
    }
    /// These acts are wanted now. What was not wanted for a while is forgotten.
    pub fn retain_attempts(&mut self, acts: &[Attempt], now: Timestamp) {
        for one in self.0.iter_mut().filter(|one| acts.contains(&one.act)) {
            one.wanted = now;
        }
        self.0.retain(|one| now.duration_since(one.wanted) < RETENTION);
    }
    /// The last failure of an act that has not succeeded since.
    #[must_use]
    pub fn of(&self, act: &Attempt) -> Option<&RepeatedRefusal> {
        self.0.iter().filter(|one| one.act == *act).max_by_key(|one| one.last)
    }
    /// The last refusal of a step about a node.
    #[must_use]
    pub fn about(&self, node: Node) -> Option<&RepeatedRefusal> {
        let refused = |one: &&RepeatedRefusal| one.node == Some(node) && one.failure.cause.is_refusal();
        self.0.iter().filter(refused).max_by_key(|one| one.last)
    }
    /// The act failed a moment ago, and it is too early to try it again. For a changed spec it never is.
    #[must_use]
    pub fn put_off(&self, act: &Attempt, generation: i64, now: Timestamp) -> Option<&RepeatedRefusal> {
        self.of(act).filter(|one| one.generation == generation && now < one.again() && now >= one.last)
    }
    /// How long until the first of these is to be tried again.
    #[must_use]
    pub fn pause(&self, acts: &[Attempt], now: Timestamp) -> Option<std::time::Duration> {
        let again = acts.iter().filter_map(|act| self.of(act)).map(RepeatedRefusal::again).min()?;
        Some(again.duration_since(now).try_into().unwrap_or_default())
    }
    /// Something waits for a lock; or for an answer that a lock may be in the way of, not for the first time.
    #[must_use]
    pub fn waits_for_locks(&self) -> bool {
        let waits = |one: &RepeatedRefusal| match one.failure.reason {
            FailureReason::LockTimeout => true,
            // A server may just be silent.
            FailureReason::DeadlineExceeded => one.count > 1 && !matches!(one.act, Attempt::Observation(_)),
            _ => false,
        };
        self.0.iter().any(|one| one.failure.cause == Cause::Wait && waits(one))
    }
    /// What is not going to pass by itself.
    pub fn lasting(&self) -> impl Iterator<Item = &RepeatedRefusal> {
        self.0.iter().filter(|one| one.lasts())
    }
    /// Something about this act is not going to pass by itself.
    #[must_use]
    pub fn lasts(&self, act: &Attempt) -> bool {
        self.lasting().any(|one| one.act == *act)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_767_225_600 + second).unwrap()
    }

    fn refused(state: &str, words: &str) -> Failure {
        let cause = Cause::of_sqlstate(state, words);
        Failure::new(FailureReason::Postgres, words).for_cause(cause)
    }

    /// An act that is refused at these seconds, with these SQLSTATEs.
    fn after(tries: &[(i64, &str)]) -> Refusals {
        let mut refusals = Refusals::default();
        for (second, state) in tries {
            refusals.failed((&Attempt::Catalog, None), &refused(state, state), 1, at(*second));
        }
        refusals
    }

    #[rstest]
    #[case(&[(0, "42501"), (30, "42501"), (60, "42501")], true)]
    #[case(&[(0, "42501"), (30, "42501"), (59, "42501")], false)] // not long enough
    #[case(&[(0, "42501"), (60, "42501")], false)] // not often enough
    #[case(&[(0, "42501"), (30, "42704"), (60, "42501")], false)] // two causes
    #[case(&[(0, "42501"), (10, "42704"), (30, "42501"), (60, "42501")], true)]
    #[case(&[(0, "42501"), (30, "55P03"), (31, "42501"), (61, "42501")], true)] // a wait does not make it another
    #[case(&[(0, "55P03"), (30, "55P03"), (60, "55P03"), (900, "55P03")], false)] // a lock is waited for
    #[case(&[(0, "08006"), (30, "08006"), (60, "08006"), (900, "08006")], false)]
    fn three_times_over_a_minute_for_one_cause_lasts(#[case] tries: &[(i64, &str)], #[case] lasts: bool) {
        assert_eq!(after(tries).lasts(&Attempt::Catalog), lasts);
    }

    #[test]
    fn refusals_end_with_a_success_or_when_unwanted_for_long() {
        let lasting = after(&[(0, "42501"), (30, "42501"), (60, "42501")]);
        let mut healed = lasting.clone();
        healed.succeeded(&Attempt::Catalog);
        assert_eq!(healed, Refusals::default());
        let mut unwanted = lasting;
        unwanted.retain_attempts(&[], at(89));
        assert!(unwanted.lasts(&Attempt::Catalog), "a server that is silent for one look changes nothing");
        unwanted.retain_attempts(&[], at(90));
        assert_eq!(unwanted, Refusals::default());
    }

    #[test]
    fn it_is_known_to_last_in_little_more_than_a_minute() {
        let (mut refusals, mut now) = (Refusals::default(), at(0));
        while !refusals.lasts(&Attempt::Catalog) {
            refusals.failed((&Attempt::Catalog, None), &refused("42501", "no"), 1, now);
            let pause = refusals.pause(&[Attempt::Catalog], now).unwrap();
            assert!(pause <= std::time::Duration::from_secs(15));
            assert_eq!(
                refusals.put_off(&Attempt::Catalog, 1, now).is_some(),
                pause > std::time::Duration::ZERO
            );
            assert_eq!(refusals.put_off(&Attempt::Catalog, 2, now), None, "a changed spec is tried at once");
            // Pauses are up to a tenth longer.
            now += pause.mul_f64(1.1);
        }
        assert!(now.duration_since(at(0)) < SignedDuration::from_secs(90), "{now}");
        let last = refusals.of(&Attempt::Catalog).unwrap().last;
        assert!(last.duration_since(at(0)) < SignedDuration::from_secs(72), "{last}");
    }

    #[test]
    fn alternating_messages_are_no_news_and_new_ones_are_told() {
        let mut refusals = Refusals::default();
        let mut said = Vec::new();
        for (second, words) in
            [(0, "a"), (15, "b"), (30, "a"), (45, "b"), (60, "a"), (75, "c"), (90, "c"), (105, "c")]
        {
            refusals.failed((&Attempt::Catalog, None), &refused("XX000", words), 1, at(second));
            said.push(refusals.of(&Attempt::Catalog).unwrap().failure.message.clone());
        }
        assert_eq!(said, ["a", "a", "a", "a", "a", "a", "a", "c"]);
    }
}
