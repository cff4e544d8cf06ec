//! The codes with which a party resets a stream that it gives up; nothing else of its reasons is
//! sent.
//!
//! QUIC carries codes of 62 bits, WebTransport of 32: two forms differ in their widths.

/// A party's reason to give an operation up; nothing else is sent to the other party.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Something went wrong that does not concern the other party.
    #[error("an internal error")]
    Internal,
    /// The limit on clients or operations under way is reached.
    #[error("too many clients at once")]
    Busy,
    /// The bytes sent break the protocol.
    #[error("bytes that break the protocol")]
    Misbehaved,
    /// Versions, parameters or headers do not match.
    #[error("versions or parameters that do not match")]
    Incompatible,
    /// No keys of this client are known.
    #[error("unknown client keys")]
    NoSetup,
    /// Another model is served now.
    #[error("another model")]
    ModelChanged,
    /// No such bundle of this client.
    #[error("an unknown bundle")]
    UnknownBundle,
    /// The bundle was used before.
    #[error("a bundle that was used before")]
    SpentBundle,
    /// The disk is full or the store broken.
    #[error("a store that cannot be written")]
    Storage,
    /// The process ends.
    #[error("shutting down")]
    ShuttingDown,
    /// The other party waited too long.
    #[error("a peer that went silent")]
    Silent,
    /// The server keeps no more bundles for one client.
    #[error("more bundles than it keeps for one client")]
    TooManyBundles,
    /// The server serves a list of clients, and this is none of them.
    #[error("a client that is not on its list")]
    NotAllowed,
    /// The server gives no more answers to this client, for good.
    #[error("more answers than it gives to one client")]
    AnswersUsed,
    /// The server has no such model, or no such version.
    #[error("a model that it does not have")]
    UnknownModel,
    /// The server has several models, and the client named none.
    #[error("a choice among several models")]
    WhichModel,
    /// The client may not use the model.
    #[error("a model that this client may not use")]
    ModelNotAllowed,
    /// The server gives no more answers to this client for this many seconds.
    #[error("more answers than it gives to one client in a day; the next day begins in {0} s")]
    AnswersToday(u32),
    /// The server exchanges no more bytes with this client for this many seconds.
    #[error("more bytes than it exchanges with one client in a day; the next day begins in {0} s")]
    BytesToday(u32),
    /// There is no room for the operation now; in this many seconds there may be.
    #[error("no room for this now; try again in {0} s")]
    ComeBack(u16),
}

/// Codes of refusals on the wire; those with a number of seconds have one for each number.
const CODES: [(Refusal, u32); 17] = [
    (Refusal::Internal, 1),
    (Refusal::Busy, 2),
    (Refusal::Misbehaved, 3),
    (Refusal::Incompatible, 4),
    (Refusal::NoSetup, 5),
    (Refusal::ModelChanged, 6),
    (Refusal::UnknownBundle, 7),
    (Refusal::SpentBundle, 8),
    (Refusal::Storage, 9),
    (Refusal::ShuttingDown, 10),
    (Refusal::Silent, 11),
    (Refusal::TooManyBundles, 12),
    (Refusal::NotAllowed, 13),
    (Refusal::AnswersUsed, 14),
    (Refusal::UnknownModel, 15),
    (Refusal::WhichModel, 16),
    (Refusal::ModelNotAllowed, 17),
];
/// The code of `ComeBack(0)`.
const COME_BACK: u32 = 1 << 16;
/// The code of `AnswersToday(0)`.
const ANSWERS_TODAY: u64 = 1 << 32;
/// The code of `BytesToday(0)`.
const BYTES_TODAY: u64 = 2 << 32;

/// The code of `AnswersToday(0)` in WebTransport.
const WEB_ANSWERS_TODAY: u32 = 2 << 20;
/// The code of `BytesToday(0)` in WebTransport.
const WEB_BYTES_TODAY: u32 = 3 << 20;
/// The most seconds that a code of WebTransport carries: a day has fewer.
const WEB_MOST_SECONDS: u32 = (1 << 20) - 1;

impl Refusal {
    /// The code on QUIC, below `2^34`.
    pub fn code(self) -> u64 {
        match self {
            Refusal::AnswersToday(seconds) => ANSWERS_TODAY + u64::from(seconds),
            Refusal::BytesToday(seconds) => BYTES_TODAY + u64::from(seconds),
            _ => self.short_code().into(),
        }
    }

    /// The reason behind a code of QUIC; unknown codes are internal errors of a newer peer.
    pub fn from_code(code: u64) -> Refusal {
        let seconds = code as u32;
        match code - u64::from(seconds) {
            ANSWERS_TODAY => Refusal::AnswersToday(seconds),
            BYTES_TODAY => Refusal::BytesToday(seconds),
            0 => Refusal::from_short_code(seconds),
            _ => Refusal::Internal,
        }
    }

    /// The code on WebTransport; more seconds than fit it become the most that do.
    pub fn web_code(self) -> u32 {
        match self {
            Refusal::AnswersToday(seconds) => WEB_ANSWERS_TODAY + seconds.min(WEB_MOST_SECONDS),
            Refusal::BytesToday(seconds) => WEB_BYTES_TODAY + seconds.min(WEB_MOST_SECONDS),
            _ => self.short_code(),
        }
    }

    /// The reason behind a code of WebTransport; unknown codes are internal errors of a newer peer.
    pub fn from_web_code(code: u32) -> Refusal {
        let seconds = code & WEB_MOST_SECONDS;
        match code - seconds {
            WEB_ANSWERS_TODAY => Refusal::AnswersToday(seconds),
            WEB_BYTES_TODAY => Refusal::BytesToday(seconds),
            0 => Refusal::from_short_code(code),
            _ => Refusal::Internal,
        }
    }

    /// The code of every refusal but those of a day, below `2^17`.
    fn short_code(self) -> u32 {
        if let Refusal::ComeBack(seconds) = self {
            return COME_BACK + u32::from(seconds);
        }
        let code = CODES.iter().find(|(refusal, _)| *refusal == self);
        code.map_or(1, |(_, code)| *code)
    }

    fn from_short_code(code: u32) -> Refusal {
        if let Some(seconds) = code.checked_sub(COME_BACK)
            && let Ok(seconds) = u16::try_from(seconds)
        {
            return Refusal::ComeBack(seconds);
        }
        let refusal = CODES.iter().find(|(_, known)| *known == code);
        refusal.map_or(Refusal::Internal, |(refusal, _)| *refusal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> impl Iterator<Item = Refusal> {
        let plain = CODES.iter().map(|(refusal, _)| *refusal);
        plain.chain([0, 1, 3599, 86_399].into_iter().flat_map(|seconds| {
            [
                Refusal::AnswersToday(seconds),
                Refusal::BytesToday(seconds),
                Refusal::ComeBack(seconds.min(65_535) as u16),
            ]
        }))
    }

    #[test]
    fn every_refusal_comes_back_from_either_code() {
        for refusal in all() {
            assert_eq!(Refusal::from_code(refusal.code()), refusal);
            assert_eq!(Refusal::from_web_code(refusal.web_code()), refusal);
        }
    }

    #[test]
    fn codes_are_those_of_earlier_releases() {
        assert_eq!(Refusal::ModelNotAllowed.code(), 17);
        assert_eq!(Refusal::ComeBack(9).code(), 65_545);
        assert_eq!(Refusal::AnswersToday(5).code(), (1 << 32) + 5);
        assert_eq!(Refusal::BytesToday(5).code(), (2 << 32) + 5);
        assert_eq!(Refusal::ComeBack(9).web_code(), 65_545);
        assert_eq!(Refusal::AnswersToday(5).web_code(), 2_097_157);
        assert_eq!(Refusal::BytesToday(5).web_code(), 3_145_733);
    }

    #[test]
    fn unknown_codes_and_too_many_seconds_are_no_other_refusal() {
        for code in [0, 18, 1 << 17, 3 << 32, u64::MAX] {
            assert_eq!(Refusal::from_code(code), Refusal::Internal);
        }
        for code in [0, 18, 1 << 17, 1 << 20, 4 << 20, u32::MAX] {
            assert_eq!(Refusal::from_web_code(code), Refusal::Internal);
        }
        let longest = Refusal::from_web_code(Refusal::AnswersToday(u32::MAX).web_code());
        assert_eq!(longest, Refusal::AnswersToday(WEB_MOST_SECONDS));
    }
}
