//! What a server's refusal means to whoever looks at the page, and what to do.

use pi_wire::refusal::Refusal;
use serde::Serialize;

/// A refusal in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Advice {
    /// Name of the refusal.
    pub name: String,
    /// What has happened.
    pub what: String,
    /// What to do.
    pub remedy: String,
    /// Seconds after which the same may succeed by itself, if it may.
    pub again_in: Option<u32>,
}

/// The refusal behind a code of WebTransport, in words.
pub fn advice(code: u32) -> Advice {
    let refusal = Refusal::from_web_code(code);
    let debug = format!("{refusal:?}");
    let name = debug.split('(').next().unwrap_or_default().to_owned();
    let (what, remedy) = words(refusal);
    let again_in = match refusal {
        Refusal::ComeBack(seconds) => Some(u32::from(seconds).clamp(1, 60)),
        Refusal::Busy | Refusal::ShuttingDown | Refusal::Silent => Some(3),
        _ => None,
    };
    Advice {
        name,
        what: what.into(),
        remedy: remedy.into(),
        again_in,
    }
}

fn words(refusal: Refusal) -> (&'static str, &'static str) {
    match refusal {
        Refusal::Internal => (
            "Something went wrong at the server.",
            "Try again; whoever runs the server finds the cause in its log.",
        ),
        Refusal::Busy => (
            "The server already serves as many visitors as it can.",
            "This page tries again by itself.",
        ),
        Refusal::Misbehaved => (
            "The server found a fault in what this page sent.",
            "Reload the page, so that both are of the same release.",
        ),
        Refusal::Incompatible => (
            "This page and the server are of different releases.",
            "Reload the page.",
        ),
        Refusal::NoSetup => (
            "The server no longer has the keys that it shared with this browser.",
            "Prepare again: new keys are made by themselves.",
        ),
        Refusal::ModelChanged => (
            "The server has just changed its model.",
            "Prepare again for the new one.",
        ),
        Refusal::UnknownBundle | Refusal::SpentBundle => (
            "The server does not hold the other half of this preparation, or it was used before.",
            "Prepare again. A preparation is never used twice.",
        ),
        Refusal::Storage => (
            "The server cannot write to its disk.",
            "Try later, or tell whoever runs the server.",
        ),
        Refusal::ShuttingDown => (
            "The server is being restarted.",
            "This page tries again by itself.",
        ),
        Refusal::Silent => (
            "The server gave up waiting, or another tab of this browser took over.",
            "This page tries again by itself.",
        ),
        Refusal::TooManyBundles => (
            "The server keeps no more preparations for one visitor.",
            "Use some of them first.",
        ),
        Refusal::NotAllowed => (
            "The server does not know this browser.",
            "Give the name of this browser, shown below, to whoever runs the server.",
        ),
        Refusal::AnswersUsed => (
            "This browser has had all the answers that the server gives to one visitor.",
            "Whoever runs the server can allow more.",
        ),
        Refusal::UnknownModel => (
            "The server does not have this model.",
            "Choose another one.",
        ),
        Refusal::WhichModel => ("The server has several models.", "Choose one of them."),
        Refusal::ModelNotAllowed => (
            "This browser may not use this model.",
            "Choose another one, or ask whoever runs the server.",
        ),
        Refusal::AnswersToday(_) => (
            "This browser has had all the answers that the server gives to one visitor in a day.",
            "Come back tomorrow: the day ends at midnight UTC.",
        ),
        Refusal::BytesToday(_) => (
            "This browser has exchanged as much with the server as one visitor may in a day.",
            "Come back tomorrow: the day ends at midnight UTC.",
        ),
        Refusal::ComeBack(_) => (
            "The server has no room for this now.",
            "This page tries again by itself.",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_with_a_number_keeps_its_name() {
        let advice = advice(Refusal::ComeBack(7).web_code());
        assert_eq!(advice.name, "ComeBack");
        assert_eq!(advice.again_in, Some(7));
    }

    #[test]
    fn a_server_without_room_at_once_is_not_asked_at_once() {
        assert_eq!(advice(Refusal::ComeBack(0).web_code()).again_in, Some(1));
    }
}
