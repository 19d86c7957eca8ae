//! Looks at everything that can happen: breadth first, so that the first way found into a state is a shortest one.
//!
//! Two questions are answered about a protocol. Safety: is there a way into a state that breaks a promise? Progress: is there a state from
//! which no end can be reached by sure steps alone, so that somebody would have to get lucky, or be unlucky, for the task to end?

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    fmt,
    hash::Hasher,
    mem::{Discriminant, discriminant},
};

/// A search that finds more states than this has lost its bounds. Each takes about a hundred bytes.
const MOST: usize = 20_000_000;

/// What is searched.
pub trait Protocol {
    /// Everything that matters at one moment.
    type State;
    /// One thing that happens.
    type Step: Copy + fmt::Debug;

    /// Where it begins.
    fn start(&self) -> Self::State;
    /// All that can happen next, and what it leads to.
    fn next(&self, state: &Self::State) -> Vec<(Self::Step, Self::State)>;
    /// Equal for states with the same future, different for others.
    fn key(&self, state: &Self::State) -> u64;
    /// The promise this state breaks.
    fn broken(&self, state: &Self::State) -> Option<&'static str>;
    /// Nothing is left to do.
    fn is_over(&self, state: &Self::State) -> bool;
    /// The step happens sooner or later if nothing else does: neither an accident nor somebody's wish.
    fn is_sure(&self, step: Self::Step) -> bool;
}

/// What was found.
#[derive(Debug)]
pub struct Findings<S> {
    /// Different states.
    pub states: usize,
    /// Ways from one to the next.
    pub steps: usize,
    /// The kinds of steps that were possible somewhere.
    pub kinds: HashSet<Discriminant<S>>,
    /// Promises that are broken, each with a shortest way there.
    pub broken: BTreeMap<&'static str, Vec<S>>,
    /// Ways into states without a sure way out: the number, and a shortest one.
    pub stuck: (usize, Vec<S>),
}

/// How a state was first reached: from which, by what. `None` for the first.
type Origin<S> = Option<(u32, S)>;

/// Makes keys, faster than the standard library does in tests. Two of a million states share a key once in forty million searches.
#[derive(Debug, Default)]
pub struct Keys(u64);

impl Hasher for Keys {
    fn finish(&self) -> u64 {
        // Every bit of the key depends on every bit that went in.
        let mut key = self.0;
        for shift in [32, 29, 32] {
            key = (key ^ (key >> shift)).wrapping_mul(0x9FB2_1C65_1E98_DF25);
        }
        key ^ (key >> 28)
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0.rotate_left(23) ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    fn write_u8(&mut self, number: u8) {
        self.write_u64(u64::from(number));
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }

    fn write_isize(&mut self, number: isize) {
        self.write_u64(number.cast_unsigned() as u64);
    }

    fn write_i64(&mut self, number: i64) {
        self.write_u64(number.cast_unsigned());
    }
}

/// Looks at all states; at no more once `enough` is found broken.
pub fn explore<P: Protocol>(protocol: &P, enough: Option<&str>) -> Findings<P::Step> {
    let start = protocol.start();
    let mut numbers = HashMap::from([(protocol.key(&start), 0_u32)]);
    let mut origins: Vec<Origin<P::Step>> = vec![None];
    let mut open = VecDeque::from([(0_u32, start)]);
    let (mut sure, mut goals, mut broken) = (Vec::new(), Vec::new(), BTreeMap::new());
    let (mut steps, mut kinds) = (0, HashSet::new());
    while let Some((number, state)) = open.pop_front() {
        // What follows a broken promise proves nothing.
        if let Some(promise) = protocol.broken(&state) {
            broken.entry(promise).or_insert_with(|| way_to(&origins, number));
            goals.push(number);
            if enough == Some(promise) {
                break;
            }
            continue;
        }
        if protocol.is_over(&state) {
            goals.push(number);
        }
        for (step, after) in protocol.next(&state) {
            steps += 1;
            kinds.insert(discriminant(&step));
            let fresh = u32::try_from(origins.len()).unwrap();
            let found = *numbers.entry(protocol.key(&after)).or_insert(fresh);
            if found == fresh {
                origins.push(Some((number, step)));
                open.push_back((fresh, after));
                assert!(origins.len() <= MOST, "the search has no end: {:#?}", way_to(&origins, fresh));
            }
            if protocol.is_sure(step) && found != number {
                sure.push((found, number));
            }
        }
    }
    let lost = if enough.is_some() { Vec::new() } else { without_end(origins.len(), sure, goals) };
    let stuck = (lost.len(), lost.first().map(|number| way_to(&origins, *number)).unwrap_or_default());
    Findings { states: origins.len(), steps, kinds, broken, stuck }
}

/// States from which no goal is reached over `sure` ways, given as (to, from).
fn without_end(states: usize, mut sure: Vec<(u32, u32)>, goals: Vec<u32>) -> Vec<u32> {
    sure.sort_unstable();
    let mut reaches = vec![false; states];
    let mut open = goals;
    while let Some(number) = open.pop() {
        if std::mem::replace(&mut reaches[number as usize], true) {
            continue;
        }
        let first = sure.partition_point(|(to, _)| *to < number);
        open.extend(sure[first..].iter().take_while(|(to, _)| *to == number).map(|(_, from)| *from));
    }
    (0_u32..).zip(reaches).filter(|(_, reaches)| !reaches).map(|(number, _)| number).collect()
}

fn way_to<S: Copy>(origins: &[Origin<S>], mut number: u32) -> Vec<S> {
    let mut way = Vec::new();
    while let Some((from, step)) = origins[number as usize] {
        way.push(step);
        number = from;
    }
    way.reverse();
    way
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts to six. Three is forbidden, an odd step is an accident, and from four there is no way on.
    struct Counting;

    impl Protocol for Counting {
        type State = u64;
        type Step = u64;

        fn start(&self) -> u64 {
            0
        }

        fn next(&self, state: &u64) -> Vec<(u64, u64)> {
            let by: &[u64] = if *state == 4 { &[0] } else { &[1, 2] };
            by.iter().map(|by| (*by, (state + by).min(6))).collect()
        }

        fn key(&self, state: &u64) -> u64 {
            *state
        }

        fn broken(&self, state: &u64) -> Option<&'static str> {
            (*state == 3).then_some("three")
        }

        fn is_over(&self, state: &u64) -> bool {
            *state == 6
        }

        fn is_sure(&self, step: u64) -> bool {
            step != 1
        }
    }

    #[test]
    fn finds_the_forbidden_by_a_shortest_way_and_what_leads_nowhere() {
        let findings = explore(&Counting, None);
        assert_eq!(findings.broken, BTreeMap::from([("three", vec![1, 2])]));
        assert_eq!(findings.states, 5, "0 to 4: nothing is looked at behind three");
        assert_eq!(findings.stuck, (3, vec![]), "0 and 2 lead to 4 only, and 4 nowhere");
    }

    #[test]
    fn stops_when_it_has_seen_enough() {
        assert!(explore(&Counting, Some("three")).states <= 5);
        assert!(explore(&Counting, Some("three")).broken.contains_key("three"));
    }
}
