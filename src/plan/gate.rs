//! What the planner's questions answer with: a gate is open, or comes with what is waited for, what a person must solve
//! and what is done about it. A question writes nothing; who asks puts its findings into the plan.

use super::{Plan, PlannedStep, Problem, WaitingOn};

/// Open, or why not.
pub type Gate<T = ()> = Result<T, Findings>;

/// Steps, waits and problems that a question has come to. Without any, somebody else says what is in the way.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Findings {
    steps: Vec<PlannedStep>,
    waits: Vec<WaitingOn>,
    problems: Vec<Problem>,
}

impl Findings {
    /// These, and then others.
    pub fn add(&mut self, others: impl Into<Self>) {
        let others = others.into();
        self.steps.extend(others.steps);
        self.waits.extend(others.waits);
        self.problems.extend(others.problems);
    }
    /// The gate that these keep shut; it is open when there are none.
    ///
    /// # Errors
    /// These.
    pub fn gate(self) -> Gate {
        if self == Self::default() { Ok(()) } else { Err(self) }
    }
}

impl From<PlannedStep> for Findings {
    fn from(step: PlannedStep) -> Self {
        Self { steps: vec![step], ..Self::default() }
    }
}

impl From<WaitingOn> for Findings {
    fn from(wait: WaitingOn) -> Self {
        Self { waits: vec![wait], ..Self::default() }
    }
}

impl From<Problem> for Findings {
    fn from(problem: Problem) -> Self {
        Self { problems: vec![problem], ..Self::default() }
    }
}

impl<T: Into<Findings>> FromIterator<T> for Findings {
    fn from_iter<I: IntoIterator<Item = T>>(all: I) -> Self {
        let mut findings = Self::default();
        all.into_iter().for_each(|one| findings.add(one));
        findings
    }
}

impl Plan {
    /// Adds what a question has come to.
    pub fn add(&mut self, findings: impl Into<Findings>) {
        let findings = findings.into();
        self.steps.extend(findings.steps);
        findings.waits.into_iter().for_each(|wait| self.wait(wait));
        findings.problems.into_iter().for_each(|problem| self.problem(problem));
    }
    /// What an open gate lets through; of one that is shut, why goes into the plan.
    pub fn pass<T>(&mut self, gate: Gate<T>) -> Option<T> {
        gate.map_err(|findings| self.add(findings)).ok()
    }
}
