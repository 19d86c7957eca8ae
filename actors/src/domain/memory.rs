//! The memory of servers' devices: whether there is room, and where there may be more.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::id::BackendId;

/// What a device has and what of it is free, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// All of it.
    pub total: u64,
    /// What nobody uses.
    pub free: u64,
}

/// Memory comes and goes a little all the time; less than this is no sign that any was freed.
const NOISE: u64 = 64 << 20;

/// What each device of a server says in its `/system_stats`; `None` for one that says nothing of its memory.
pub fn of_devices(stats: &Value) -> impl Iterator<Item = Option<Memory>> {
    let devices = stats.get("devices").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let number = |device: &Value, name: &str| device.get(name).and_then(Value::as_u64);
    devices
        .iter()
        .map(move |device| Some(Memory { total: number(device, "vram_total")?, free: number(device, "vram_free")? }))
}

impl Memory {
    /// Of a whole server: of the device that prompts run on, which is listed first.
    #[must_use]
    pub fn of(stats: &Value) -> Option<Self> {
        of_devices(stats).next().flatten()
    }

    /// Whether a wish to free some was fulfilled that was made when there was `before`: more is free, or next to nothing was taken anyway.
    #[must_use]
    pub fn is_freed_since(&self, before: Option<&Self>) -> bool {
        let has_risen = before.is_some_and(|before| self.free > before.free.saturating_add(NOISE));
        has_risen || self.free / 9 >= self.total / 10
    }
}

/// Where a task may run next that ran out of memory at `at`, `ooms` times before that; `sizes` are the servers that could run it, `None` =
/// it does not tell. Everywhere, when no choice is better.
///
/// First where there is at least as much memory: alone on a freed server it may fit. Then where there is more; when nobody has more, on
/// another that has as much; when there is none either, as the first time.
#[must_use]
pub fn roomier(at: &BackendId, ooms: i32, sizes: &BTreeMap<&BackendId, Option<u64>>) -> BTreeSet<BackendId> {
    let here = sizes.get(at).copied().flatten();
    // What is not known may be enough.
    let where_size = |fits: fn(u64, u64) -> bool| -> BTreeSet<BackendId> {
        let fits = |size: Option<u64>| size.zip(here).is_none_or(|(there, here)| fits(there, here));
        sizes.iter().filter(|(_, size)| fits(**size)).map(|(name, _)| (*name).clone()).collect()
    };
    let without_it = |mut chosen: BTreeSet<BackendId>| {
        chosen.remove(at);
        chosen
    };
    let as_large = where_size(|there, here| there >= here);
    if ooms == 0 {
        return as_large;
    }
    let larger = without_it(where_size(|there, here| there > here));
    let choices = [larger, without_it(as_large.clone()), as_large];
    choices.into_iter().find(|chosen| !chosen.is_empty()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn memory_is_read_from_what_servers_say() {
        let stats = json!({"devices": [{"vram_total": 16, "vram_free": 7}, {"name": "odd", "vram_total": -1}]});
        assert_eq!(Memory::of(&stats), Some(Memory { total: 16, free: 7 }));
        assert_eq!(of_devices(&stats).collect::<Vec<_>>(), [Some(Memory { total: 16, free: 7 }), None]);
        for odd in [json!(null), json!({}), json!({"devices": 7}), json!({"devices": []}), json!([1])] {
            assert_eq!(Memory::of(&odd), None, "{odd}");
        }
    }

    #[test]
    fn a_wish_is_fulfilled_when_more_is_free() {
        let of = |free| Memory { total: 16 * GIB, free };
        assert!(of(6 * GIB).is_freed_since(Some(&of(5 * GIB))));
        assert!(!of(5 * GIB + NOISE).is_freed_since(Some(&of(5 * GIB))));
        assert!(!of(5 * GIB).is_freed_since(None));
        assert!(of(15 * GIB).is_freed_since(Some(&of(15 * GIB))), "there was nothing to free");
        assert!(!Memory { total: u64::MAX, free: 0 }.is_freed_since(Some(&of(u64::MAX))));
    }

    #[test]
    fn a_task_goes_where_more_memory_is() {
        let [small, other, large, silent] = ["a-small", "b-small", "large", "silent"].map(BackendId::new);
        let chosen = |at: &BackendId, ooms, sizes: &[(&BackendId, Option<u64>)]| {
            let sizes = sizes.iter().map(|(name, size)| (*name, *size)).collect();
            roomier(at, ooms, &sizes).iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        let all = [(&small, Some(8)), (&other, Some(8)), (&large, Some(24))];
        assert_eq!(chosen(&small, 0, &all), "a-small b-small large");
        assert_eq!(chosen(&large, 0, &all), "large", "where there is less it fits even less");
        assert_eq!(chosen(&small, 1, &all), "large");
        assert_eq!(chosen(&large, 1, &all), "large", "there is nothing better");
        assert_eq!(chosen(&small, 1, &all[..2]), "b-small", "another of the same size may hold less of others");
        assert_eq!(chosen(&small, 1, &[(&small, Some(8)), (&silent, None)]), "silent", "it may have more");
        assert_eq!(chosen(&silent, 1, &[(&small, Some(8)), (&silent, None)]), "a-small");
        assert_eq!(chosen(&small, 0, &[]), "");
    }
}
