//! What an account of a client has used, and how it is counted: the same in every kind of store.

use super::StoreError;
use super::server::{AnswerLimits, Usage};
use serde::{Deserialize, Serialize};

/// The record of one account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Account {
    /// Answers in all.
    pub(super) answers: u64,
    /// The day of the next two figures, since 1970. It never goes back.
    pub(super) day: u64,
    /// Answers on that day.
    pub(super) answers_today: u64,
    /// Bytes exchanged on that day.
    pub(super) bytes_today: u64,
}

impl Account {
    /// Counts an answer. `earlier` answers count beside those of this account.
    pub(super) fn count_answer(
        &mut self,
        limits: &AnswerLimits,
        earlier: u64,
        today: u64,
    ) -> Result<(), StoreError> {
        self.turn_to(today);
        if let Some(limit) = limits.ever
            && self.answers.saturating_add(earlier) >= limit
        {
            return Err(StoreError::AnswersUsed(limit));
        }
        if let Some(limit) = limits.per_day
            && self.answers_today >= limit
        {
            return Err(StoreError::AnswersUsedToday(limit));
        }
        self.answers += 1;
        self.answers_today += 1;
        Ok(())
    }

    /// Counts bytes.
    pub(super) fn count_bytes(&mut self, today: u64, bytes: u64) {
        self.turn_to(today);
        self.bytes_today = self.bytes_today.saturating_add(bytes);
    }

    /// What was used until now, with `earlier` answers beside those of this account.
    pub(super) fn usage(mut self, earlier: u64, today: u64) -> Usage {
        self.turn_to(today);
        Usage {
            answers: self.answers.saturating_add(earlier),
            answers_today: self.answers_today,
            bytes_today: self.bytes_today,
        }
    }

    /// Begins a new day. A day before the one recorded is that of a clock that stepped back.
    fn turn_to(&mut self, today: u64) {
        if today > self.day {
            self.day = today;
            self.answers_today = 0;
            self.bytes_today = 0;
        }
    }
}
