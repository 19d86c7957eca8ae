//! What matters of every server that keeps tasks, whichever it is: how fast it answers, and what time it has.

use std::time::Duration;

use comfyd_actors::domain::time::Timestamp;
use humantime::format_duration;

use super::{clock::difference, report::Section};

/// An answer that takes longer is felt: a new task needs four or five.
const SLOW: Duration = Duration::from_millis(20);
/// Clocks of machines that are kept by NTP differ by less.
const APART: Duration = Duration::from_secs(2);

/// How fast `name` answers.
pub(super) fn pace(section: &mut Section, name: &str, each: Duration) {
    let text = format!("{name} answers in {:.1} ms", each.as_secs_f64() * 1e3);
    if each > SLOW {
        section.odd(text, "each new task waits for some answers: put the server nearer");
    } else {
        section.good(text);
    }
}

/// Its time and ours, which may differ by as much as the asking took.
pub(super) fn time(section: &mut Section, theirs: Timestamp, ours: Timestamp, took: Duration) {
    let (apart, how) = difference(theirs, (ours, ours));
    if apart > APART + took {
        let apart = format_duration(Duration::from_secs(apart.as_secs()));
        section.odd(
            format!("our clock is {apart} {how} the server's, which decides on leases"),
            "find out which one is wrong and let NTP keep it",
        );
    }
}
