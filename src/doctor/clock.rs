//! This machine's clock against those of others. Signed requests and times in the future depend on it.

use std::time::{Duration, UNIX_EPOCH};

use comfyd_actors::domain::time::{Timestamp, millis};
use humantime::format_duration;

use super::report::Section;

/// `Date` has whole seconds, and the answer took some time.
const NOISE: Duration = Duration::from_secs(3);
/// Storage services refuse signatures that are older than this, or as far in the future (Amazon S3: 15 minutes).
const REFUSED: Duration = Duration::from_secs(15 * 60);

/// Compares our time with the `Date` another machine sent; `between` when the question was asked and answered.
pub(super) fn compare(section: &mut Section, date: Option<&str>, between: (Timestamp, Timestamp)) {
    let Some(theirs) = date.and_then(read) else { return };
    let (apart, how) = difference(theirs, between);
    if apart <= NOISE {
        return section.good("its clock and ours agree");
    }
    let apart_text = format_duration(Duration::from_secs(apart.as_secs()));
    let what = format!("our clock is {apart_text} {how} its clock");
    let cure = "find out which one is wrong and let NTP keep it: `run_at`, leases between machines and signed storage requests depend on it";
    if apart >= REFUSED { section.bad(what, cure) } else { section.odd(what, cure) }
}

/// How far our time is from another one's, at the least, and on which side.
pub(super) fn difference(theirs: Timestamp, (earliest, latest): (Timestamp, Timestamp)) -> (Duration, &'static str) {
    let (behind, ahead) = (theirs.since(latest), earliest.since(theirs));
    if behind > ahead { (behind, "behind") } else { (ahead, "ahead of") }
}

fn read(date: &str) -> Option<Timestamp> {
    let since = httpdate::parse_http_date(date).ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some(Timestamp(millis(since)))
}

#[cfg(test)]
mod tests {
    use super::{super::report::Health, *};

    #[test]
    fn a_clock_that_is_wrong_is_a_note_and_one_far_off_a_fault() {
        let (now, second) = (Timestamp(1_800_000_000_000), Duration::from_secs(1));
        let judged = |theirs: Timestamp| {
            let mut section = Section::new("");
            let date = httpdate::fmt_http_date(UNIX_EPOCH + theirs.since(Timestamp(0)));
            compare(&mut section, Some(&date), (now, now.after(second / 25)));
            (section.worst(), section.text())
        };
        assert_eq!(judged(now).0, Some(Health::Good));
        assert_eq!(judged(now.after(2 * second)).0, Some(Health::Good));
        let (worst, text) = judged(now.after(60 * second));
        assert!(worst == Some(Health::Odd) && text.contains("our clock is 59s behind"), "{text}");
        let (worst, text) = judged(now.before(3_600 * second));
        assert!(worst == Some(Health::Bad) && text.contains("our clock is 1h ahead of"), "{text}");
        let mut silent = Section::new("");
        compare(&mut silent, Some("yesterday"), (now, now));
        compare(&mut silent, None, (now, now));
        assert_eq!(silent.worst(), None);
    }
}
