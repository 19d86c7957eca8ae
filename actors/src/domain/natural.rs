//! The order of node ids, which are text and mean numbers.

use std::cmp::Ordering;

/// Orders ids as people do: `2` before `10`, `3:2` before `3:10`.
#[must_use]
pub fn natural(a: &str, b: &str) -> Ordering {
    let (mut left, mut right) = (a, b);
    loop {
        match (chunk(left), chunk(right)) {
            (None, None) => return a.cmp(b),
            (None, _) => return Ordering::Less,
            (_, None) => return Ordering::Greater,
            (Some((x, rest_x)), Some((y, rest_y))) => {
                let order = compare_chunks(x, y);
                if order != Ordering::Equal {
                    return order;
                }
                (left, right) = (rest_x, rest_y);
            }
        }
    }
}

/// Splits off the leading run of digits or of anything else.
fn chunk(text: &str) -> Option<(&str, &str)> {
    let digits = text.starts_with(|c: char| c.is_ascii_digit());
    let end = text.find(|c: char| c.is_ascii_digit() != digits).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

fn compare_chunks(x: &str, y: &str) -> Ordering {
    let numeric = |text: &str| text.starts_with(|c: char| c.is_ascii_digit());
    if !(numeric(x) && numeric(y)) {
        return x.cmp(y);
    }
    // By value without parsing: numbers may be longer than any integer type.
    let (x, y) = (x.trim_start_matches('0'), y.trim_start_matches('0'));
    x.len().cmp(&y.len()).then_with(|| x.cmp(y))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ids_sort_by_their_numbers() {
        let mut ids = ["10", "2", "1.0.0.10", "1.0.0.9", "1", "3:10", "3:2", "a", "007", "99999999999999999999999", ""];
        ids.sort_by(|a, b| natural(a, b));
        let sorted = ["", "1", "1.0.0.9", "1.0.0.10", "2", "3:2", "3:10", "007", "10", "99999999999999999999999", "a"];
        assert_eq!(ids, sorted);
    }

    proptest! {
        #[test]
        fn natural_is_an_order(a in "[0-9a.:]{0,6}", b in "[0-9a.:]{0,6}", c in "[0-9a.:]{0,6}") {
            prop_assert_eq!(natural(&a, &b), natural(&b, &a).reverse());
            prop_assert_eq!(natural(&a, &b) == Ordering::Equal, a == b);
            if natural(&a, &b).is_le() && natural(&b, &c).is_le() {
                prop_assert!(natural(&a, &c).is_le());
            }
        }
    }
}
