//! Tenants: whose tasks those are, and how many of theirs may wait and run.
//!
//! A tenant is a name that whoever stands before the API vouches for. Limits are for fairness: one that sends thousands leaves room for the
//! others. They keep nobody from seeing anything.

use std::{collections::BTreeMap, fmt, sync::Arc};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The space of the ids below. Any constant will do, but it must never change: tenants are stored.
const SPACE: Uuid = Uuid::from_u128(0x1f0b_7c52_93de_4a18_8e6f_2b7d_40c9_5a13);
/// Longest name, in bytes: an e-mail address, or a host name and a UUID.
const LONGEST: usize = 128;

/// The tenant of tasks that name none.
pub const NOBODY: i64 = 0;

/// A tenant's name: visible ASCII characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Arc<str>", into = "Arc<str>")]
pub struct Tenant(Arc<str>);

/// A text is no tenant's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a tenant's name has 1 to {LONGEST} visible ASCII characters")]
pub struct NoTenant;

impl Tenant {
    /// Reads a name.
    ///
    /// # Errors
    /// It has none, too many, or others than visible ASCII characters.
    pub fn parse(text: &str) -> Result<Self, NoTenant> {
        let is_name = (1..=LONGEST).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        if is_name { Ok(Self(text.into())) } else { Err(NoTenant) }
    }

    /// What it is called in stores: a hash of the name, above 0, the same for all times.
    #[must_use]
    pub fn id(&self) -> i64 {
        let (hash, _) = Uuid::new_v5(&SPACE, self.0.as_bytes()).as_u64_pair();
        // Odd, because 0 is taken; positive, because it stands in the names of outputs.
        ((hash >> 1) | 1).cast_signed()
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<Arc<str>> for Tenant {
    type Error = NoTenant;

    fn try_from(text: Arc<str>) -> Result<Self, NoTenant> {
        Self::parse(&text)
    }
}

impl From<Tenant> for Arc<str> {
    fn from(tenant: Tenant) -> Self {
        tenant.0
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How much a tenant may have; `None` = no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Tasks that wait, for their turn or their time.
    pub max_waiting: Option<u64>,
    /// Tasks that are worked on, from their being taken to their end.
    pub max_running: Option<u32>,
}

/// The limits of all tenants. Tasks of nobody have none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tenants {
    /// Of a tenant that is not named below.
    pub usual: Limits,
    /// Of single tenants.
    pub named: BTreeMap<Tenant, Limits>,
}

impl Tenants {
    /// Those of a tenant.
    #[must_use]
    pub fn limits(&self, tenant: &Tenant) -> Limits {
        self.named.get(tenant).copied().unwrap_or(self.usual)
    }

    /// Whether anybody has a limit of tasks that wait.
    #[must_use]
    pub fn limit_waiting(&self) -> bool {
        [&self.usual].into_iter().chain(self.named.values()).any(|limits| limits.max_waiting.is_some())
    }

    /// What a claim has to keep to.
    #[must_use]
    pub fn caps(&self) -> Caps {
        let named = self.named.iter().map(|(tenant, limits)| (tenant.id(), limits.max_running));
        Caps { usual: self.usual.max_running, named: Arc::new(named.collect()) }
    }
}

/// How many tasks of a tenant may run, by what tenants are called in stores. Cheap to clone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caps {
    usual: Option<u32>,
    named: Arc<BTreeMap<i64, Option<u32>>>,
}

impl Caps {
    /// Whether nobody has any.
    #[must_use]
    pub fn are_none(&self) -> bool {
        self.usual.is_none() && self.named.values().all(Option::is_none)
    }

    /// That of a tenant.
    #[must_use]
    pub fn of(&self, tenant: i64) -> Option<u32> {
        if tenant == NOBODY { None } else { self.named.get(&tenant).copied().unwrap_or(self.usual) }
    }

    /// What may still be taken of the tasks of these tenants, when so many of theirs run.
    #[must_use]
    pub fn room(&self, tenants: impl IntoIterator<Item = i64>, running: &BTreeMap<i64, u64>) -> Room {
        let left = |tenant| {
            let run = u32::try_from(running.get(&tenant).copied().unwrap_or(0)).unwrap_or(u32::MAX);
            Some((tenant, self.of(tenant)?.saturating_sub(run)))
        };
        Room(tenants.into_iter().filter_map(left).collect())
    }
}

/// How many more tasks of which tenant may be taken. Who is not among them has no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Room(BTreeMap<i64, u32>);

impl Room {
    /// Whether there is any for a task of this tenant.
    #[must_use]
    pub fn has(&self, tenant: i64) -> bool {
        self.0.get(&tenant).is_none_or(|left| *left > 0)
    }

    /// A task of this tenant is taken.
    pub fn take(&mut self, tenant: i64) {
        if let Some(left) = self.0.get_mut(&tenant) {
            *left = left.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(name: &str) -> Tenant {
        Tenant::parse(name).unwrap()
    }

    #[test]
    fn a_name_is_a_visible_word() {
        for (text, is_name) in [
            ("acme", true),
            ("a@b.example", true),
            ("x", true),
            ("", false),
            ("two words", false),
            ("tab\t", false),
            ("é", false),
            (&"x".repeat(128), true),
            (&"x".repeat(129), false),
        ] {
            assert_eq!(Tenant::parse(text).is_ok(), is_name, "{text}");
        }
    }

    #[test]
    fn an_id_is_above_0_and_stays() {
        assert_eq!(tenant("acme").id(), tenant("acme").id());
        assert_ne!(tenant("acme").id(), tenant("Acme").id());
        assert!(["a", "b", "c", "acme"].into_iter().all(|name| tenant(name).id() > 0));
        // Stored in databases: must never become another number.
        assert_eq!(tenant("acme").id(), 8_600_614_205_622_529_433);
    }

    #[test]
    fn a_limit_of_ones_own_comes_before_the_usual_one() {
        let limits = |max_running| Limits { max_waiting: None, max_running };
        let tenants = Tenants {
            usual: limits(Some(2)),
            named: [(tenant("big"), limits(Some(9))), (tenant("free"), limits(None))].into(),
        };
        let caps = tenants.caps();
        let of = |name| caps.of(tenant(name).id());
        assert_eq!([of("big"), of("free"), of("other"), caps.of(NOBODY)], [Some(9), None, Some(2), None]);
        assert!(!caps.are_none() && Caps::default().are_none());
        assert_eq!(tenants.limits(&tenant("other")).max_running, Some(2));
    }

    #[test]
    fn room_is_what_the_cap_leaves() {
        let tenants = Tenants { usual: Limits { max_waiting: None, max_running: Some(2) }, ..Tenants::default() };
        let [full, over, half] = ["full", "over", "half"].map(|name| tenant(name).id());
        let running = [(full, 2), (over, u64::MAX), (half, 1)].into();
        let mut room = tenants.caps().room([full, over, half, NOBODY], &running);
        assert_eq!([full, over, half, NOBODY].map(|tenant| room.has(tenant)), [false, false, true, true]);
        room.take(half);
        room.take(NOBODY);
        assert!(!room.has(half) && room.has(NOBODY));
    }
}
