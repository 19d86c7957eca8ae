//! Who is connected, and who must make room. Pure.
//!
//! A connection costs little while a request of its own is worked on, and nothing is known of it while its request is not whole. So those
//! have the narrower limits, and when one is reached it is the longest-waiting that goes: somebody who sends a request as programs do is
//! done before a hundred others have come, and somebody who sends a byte now and then is not.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv6Addr},
};

use crate::config::Connections;

/// What a connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It has yet to send the whole head of a request.
    Unfinished,
    /// A request is worked on, or it was upgraded.
    Busy,
    /// Its requests are answered, and none has begun since.
    Idle,
}

/// Who is behind a connection, as far as limits go: an address, or a network of IPv6 addresses, as each customer is given one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Peer(IpAddr);

impl From<IpAddr> for Peer {
    fn from(address: IpAddr) -> Self {
        /// The first 64 bits.
        const NETWORK: u128 = !0 << 64;
        Self(match address.to_canonical() {
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & NETWORK)),
            v4 @ IpAddr::V4(_) => v4,
        })
    }
}

/// Names a connection.
pub type Id = u64;

/// No room for another connection: all there are work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// The connections that are open.
#[derive(Debug)]
pub struct Register {
    limits: Connections,
    /// Both a name and the order of coming.
    next: Id,
    open: HashMap<Id, Entry>,
    all: Crowd,
    peers: HashMap<Peer, Crowd>,
}

#[derive(Debug)]
struct Entry {
    peer: Peer,
    standing: Standing,
    /// Its place among those of the same standing.
    turn: u64,
}

/// Some connections by their standing, the longest-waiting first.
#[derive(Debug, Default)]
struct Crowd {
    busy: usize,
    unfinished: BTreeSet<(u64, Id)>,
    idle: BTreeSet<(u64, Id)>,
}

impl Crowd {
    fn len(&self) -> usize {
        self.busy + self.unfinished.len() + self.idle.len()
    }

    fn add(&mut self, id: Id, entry: &Entry) {
        match entry.standing {
            Standing::Busy => self.busy += 1,
            Standing::Unfinished => _ = self.unfinished.insert((entry.turn, id)),
            Standing::Idle => _ = self.idle.insert((entry.turn, id)),
        }
    }

    fn remove(&mut self, id: Id, entry: &Entry) {
        match entry.standing {
            Standing::Busy => self.busy -= 1,
            Standing::Unfinished => _ = self.unfinished.remove(&(entry.turn, id)),
            Standing::Idle => _ = self.idle.remove(&(entry.turn, id)),
        }
    }

    /// Who goes first when somebody must: of those with an unfinished request, then of the idle, the longest-waiting.
    fn first_to_go(&self) -> Option<Id> {
        self.unfinished.first().or(self.idle.first()).map(|(_, id)| *id)
    }
}

impl Register {
    /// Nobody yet.
    #[must_use]
    pub fn new(limits: Connections) -> Self {
        Self { limits, next: 0, open: HashMap::new(), all: Crowd::default(), peers: HashMap::new() }
    }

    /// Takes in a new connection; returns its name and who has to go for it.
    ///
    /// # Errors
    /// [`Full`].
    pub fn admit(&mut self, peer: Peer) -> Result<(Id, Vec<Id>), Full> {
        let mut gone = Vec::new();
        if self.of(peer, Crowd::len) >= self.limits.max_per_address {
            gone.push(self.peers.get(&peer).and_then(Crowd::first_to_go).ok_or(Full)?);
        } else if self.all.len() >= self.limits.max {
            gone.push(self.all.first_to_go().ok_or(Full)?);
        }
        gone.iter().for_each(|id| self.leave(*id));
        let id = self.turn();
        self.enter(id, Entry { peer, standing: Standing::Unfinished, turn: id });
        gone.extend(self.narrow(peer));
        Ok((id, gone))
    }

    /// A connection does something else now; returns who has to go for it. One that had to go itself is not known any more.
    pub fn set(&mut self, id: Id, standing: Standing) -> Option<Id> {
        let peer = self.open.get(&id).filter(|entry| entry.standing != standing)?.peer;
        self.leave(id);
        let turn = self.turn();
        self.enter(id, Entry { peer, standing, turn });
        self.narrow(peer)
    }

    /// What a connection is doing; `None` once it is gone, or has to go.
    #[must_use]
    pub fn standing(&self, id: Id) -> Option<Standing> {
        self.open.get(&id).map(|entry| entry.standing)
    }

    /// A connection has ended.
    pub fn leave(&mut self, id: Id) {
        let Some(entry) = self.open.remove(&id) else { return };
        self.all.remove(id, &entry);
        if let Some(crowd) = self.peers.get_mut(&entry.peer) {
            crowd.remove(id, &entry);
            if crowd.len() == 0 {
                self.peers.remove(&entry.peer);
            }
        }
    }

    /// Makes whoever is the first to go leave: the system has no room for more.
    pub fn yield_one(&mut self) -> Option<Id> {
        let id = self.all.first_to_go()?;
        self.leave(id);
        Some(id)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.open.len()
    }

    fn enter(&mut self, id: Id, entry: Entry) {
        self.all.add(id, &entry);
        self.peers.entry(entry.peer).or_default().add(id, &entry);
        self.open.insert(id, entry);
    }

    /// Keeps the unfinished within their limits.
    fn narrow(&mut self, peer: Peer) -> Option<Id> {
        let id = if self.of(peer, |crowd| crowd.unfinished.len()) > self.limits.max_unfinished_per_address {
            self.peers.get(&peer)?.first_to_go()
        } else if self.all.unfinished.len() > self.limits.max_unfinished {
            self.all.first_to_go()
        } else {
            None
        }?;
        self.leave(id);
        Some(id)
    }

    fn of(&self, peer: Peer, count: impl Fn(&Crowd) -> usize) -> usize {
        self.peers.get(&peer).map_or(0, count)
    }

    fn turn(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config;

    fn peer(text: &str) -> Peer {
        text.parse::<IpAddr>().unwrap().into()
    }

    fn limits() -> Connections {
        let defaults = config::read(config::Sources::default()).config.connections;
        Connections { max: 6, max_per_address: 4, max_unfinished: 3, max_unfinished_per_address: 2, ..defaults }
    }

    /// A connection that works.
    fn busy(register: &mut Register, of: Peer) -> Id {
        let (id, gone) = register.admit(of).unwrap();
        assert_eq!((gone, register.set(id, Standing::Busy)), (Vec::new(), None));
        id
    }

    #[test]
    fn the_longest_waiting_of_an_address_makes_room_for_its_newest() {
        let (mut register, slow, other) = (Register::new(limits()), peer("10.0.0.1"), peer("10.0.0.2"));
        let first = register.admit(slow).unwrap().0;
        let second = register.admit(slow).unwrap().0;
        let honest = register.admit(other).unwrap();
        assert!(honest.1.is_empty(), "another address is not its business");
        let (third, gone) = register.admit(slow).unwrap();
        assert_eq!(gone, [first]);
        assert_eq!(register.standing(first), None);
        // The limit of all: whoever waits longest, whatever the address.
        let (_, gone) = register.admit(peer("10.0.0.3")).unwrap();
        assert_eq!(gone, [second]);
        assert_eq!((register.len(), register.standing(third)), (3, Some(Standing::Unfinished)));
    }

    #[test]
    fn who_sends_again_after_an_answer_is_unfinished_again() {
        let (mut register, slow) = (Register::new(limits()), peer("::1"));
        let kept: Vec<Id> = (0..3).map(|_| busy(&mut register, slow)).collect();
        assert!(kept.iter().all(|id| register.set(*id, Standing::Idle).is_none()), "idle ones are many");
        assert_eq!(register.set(kept[0], Standing::Unfinished), None);
        assert_eq!(register.set(kept[1], Standing::Unfinished), None);
        assert_eq!(register.set(kept[2], Standing::Unfinished), Some(kept[0]));
        assert_eq!(register.set(kept[0], Standing::Busy), None, "one that had to go stays gone");
    }

    #[test]
    fn those_that_work_are_never_sent_away() {
        let (mut register, one) = (Register::new(limits()), peer("10.0.0.1"));
        let working: Vec<Id> = (0..4).map(|_| busy(&mut register, one)).collect();
        assert_eq!(register.admit(one), Err(Full));
        let others: Vec<Id> = (0..2).map(|_| busy(&mut register, peer("10.0.0.2"))).collect();
        assert_eq!(register.admit(peer("10.0.0.3")), Err(Full));
        assert_eq!(register.yield_one(), None);
        // An idle one makes room, though not for an address that has too many.
        register.set(others[0], Standing::Idle);
        assert_eq!(register.admit(one), Err(Full));
        assert_eq!(register.admit(peer("10.0.0.3")).unwrap().1, [others[0]]);
        working.into_iter().for_each(|id| register.leave(id));
        assert!(register.admit(one).unwrap().1.is_empty());
    }

    #[test]
    fn a_network_counts_as_one() {
        assert_eq!(peer("2001:db8:1:2::3"), peer("2001:db8:1:2:ffff::4"));
        assert_ne!(peer("2001:db8:1:2::3"), peer("2001:db8:1:3::3"));
        assert_eq!(peer("::ffff:10.0.0.1"), peer("10.0.0.1"));
        assert_ne!(peer("10.0.0.1"), peer("10.0.0.2"));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Admit(u8),
        Set(usize, Standing),
        Leave(usize),
        Yield,
    }

    fn step() -> impl Strategy<Value = Step> {
        let standing = prop_oneof![Just(Standing::Unfinished), Just(Standing::Busy), Just(Standing::Idle)];
        prop_oneof![
            3 => (0_u8..4).prop_map(Step::Admit),
            4 => (0_usize..40, standing).prop_map(|(which, standing)| Step::Set(which, standing)),
            1 => (0_usize..40).prop_map(Step::Leave),
            1 => Just(Step::Yield),
        ]
    }

    proptest! {
        #[test]
        fn no_limit_is_ever_passed_and_nobody_is_forgotten(steps in prop::collection::vec(step(), 0..200)) {
            let (mut register, limits, mut known) = (Register::new(limits()), limits(), Vec::new());
            for step in steps {
                let mut gone = Vec::new();
                match step {
                    Step::Admit(last) => {
                        if let Ok((id, others)) = register.admit(peer(&format!("10.0.0.{last}"))) {
                            known.push(id);
                            gone = others;
                        }
                    }
                    Step::Set(which, standing) if which < known.len() => gone.extend(register.set(known[which], standing)),
                    Step::Leave(which) if which < known.len() => {
                        register.leave(known[which]);
                        gone.push(known[which]);
                    }
                    Step::Yield => gone.extend(register.yield_one()),
                    Step::Set(..) | Step::Leave(_) => {}
                }
                known.retain(|id| !gone.contains(id));
                prop_assert_eq!(register.len(), known.len());
                prop_assert!(known.iter().all(|id| register.standing(*id).is_some()));
                prop_assert!(register.all.len() <= limits.max && register.all.unfinished.len() <= limits.max_unfinished);
                for crowd in register.peers.values() {
                    prop_assert!(crowd.len() <= limits.max_per_address && crowd.len() > 0);
                    prop_assert!(crowd.unfinished.len() <= limits.max_unfinished_per_address);
                }
                let by_peer: usize = register.peers.values().map(Crowd::len).sum();
                prop_assert_eq!((by_peer, register.all.len()), (known.len(), known.len()));
            }
        }
    }
}
