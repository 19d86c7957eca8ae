//! Memory for a flight whose task ran out of it before: freed on the server just before its prompt is sent.

use super::Act;

/// How far that is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// It needs no more than any other.
    Unneeded,
    /// To be made once its turn has come.
    Wanted,
    /// Being made.
    Making,
    /// Made, as far as it could be: its prompt comes next.
    Made,
}

impl Room {
    pub(super) fn of(ooms: i32) -> Self {
        if ooms > 0 { Self::Wanted } else { Self::Unneeded }
    }

    pub(super) fn made(&mut self) {
        if *self == Self::Making {
            *self = Self::Made;
        }
    }

    /// What is to be done for its prompt now that everything else is ready.
    pub(super) fn then_send(self) -> Option<Act> {
        match self {
            Self::Unneeded | Self::Made => Some(Act::Submit),
            Self::Wanted => Some(Act::MakeRoom),
            Self::Making => None,
        }
    }
}
