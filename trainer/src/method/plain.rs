//! Plain training: the activations stay as they are, or as the stage's `replace` puts them.

use super::Hooks;

/// Plain training has no keys.
pub(super) struct Plain;

impl Hooks for Plain {
    fn name(&self) -> &'static str {
        "plain"
    }
}
