//! Where lost shards are made again: evenly, and those that belong together in one place. Pure.

use std::collections::BTreeMap;

use serde::Deserialize;

/// A shard that has to go somewhere. Shards of one family and part are colocated.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(super) struct LostShard {
    /// The colocation group, or the table when it is in none.
    pub family: String,
    /// Where its range of hash values begins.
    pub part: String,
}

/// How many shards of a family a group has.
#[derive(Clone, Debug, Deserialize)]
#[allow(missing_docs)]
pub(super) struct ShardCount {
    pub group: i32,
    pub family: String,
    pub shards: u64,
}

/// A group for each lost shard: the one with the fewest shards of the family, then with the fewest in all. `None` when
/// there is no group and something is lost.
pub(super) fn distribute_evenly(
    lost: &[&LostShard],
    held: &[ShardCount],
    groups: &[i32],
) -> Option<Vec<i32>> {
    let mut of_family: BTreeMap<(i32, &str), u64> = BTreeMap::new();
    let mut of_all: BTreeMap<i32, u64> = BTreeMap::new();
    for held in held {
        *of_family.entry((held.group, &held.family)).or_default() += held.shards;
        *of_all.entry(held.group).or_default() += held.shards;
    }
    let mut units: BTreeMap<&LostShard, u64> = BTreeMap::new();
    for shard in lost {
        *units.entry(shard).or_default() += 1;
    }
    let mut places: BTreeMap<&LostShard, i32> = BTreeMap::new();
    for (unit, shards) in units {
        let load = |group: &&i32| {
            let family = of_family.get(&(**group, unit.family.as_str())).copied().unwrap_or(0);
            (family, of_all.get(*group).copied().unwrap_or(0))
        };
        let group = *groups.iter().min_by_key(load)?;
        *of_family.entry((group, &unit.family)).or_default() += shards;
        *of_all.entry(group).or_default() += shards;
        places.insert(unit, group);
    }
    lost.iter().map(|shard| places.get(*shard).copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost(family: &str, parts: std::ops::Range<u32>) -> Vec<LostShard> {
        parts.map(|part| LostShard { family: family.to_owned(), part: part.to_string() }).collect()
    }

    fn held(group: i32, family: &str, shards: u64) -> ShardCount {
        ShardCount { group, family: family.to_owned(), shards }
    }

    fn counts(places: &[i32]) -> BTreeMap<i32, usize> {
        places.iter().fold(BTreeMap::new(), |mut counts, group| {
            *counts.entry(*group).or_default() += 1;
            counts
        })
    }

    #[test]
    fn what_is_lost_evens_out_what_stays() {
        let (lost, had) = (lost("a", 0..10), [held(1, "a", 12), held(2, "a", 10), held(2, "b", 50)]);
        let places = distribute_evenly(&lost.iter().collect::<Vec<_>>(), &had, &[1, 2]).unwrap();
        assert_eq!(counts(&places), BTreeMap::from([(1, 4), (2, 6)]), "16 each, whatever is there of others");
    }

    #[test]
    fn what_is_colocated_stays_together() {
        let lost = [lost("a", 0..6), lost("a", 0..6), lost("b", 0..1)].concat();
        let places = distribute_evenly(&lost.iter().collect::<Vec<_>>(), &[], &[1, 2, 3]).unwrap();
        assert_eq!(places[..6], places[6..12]);
        assert_eq!(counts(&places[..6]), BTreeMap::from([(1, 2), (2, 2), (3, 2)]));
        assert_eq!(places[12], 1);
    }

    #[test]
    fn somebody_has_to_stay() {
        let lost = lost("a", 0..1);
        assert_eq!(distribute_evenly(&lost.iter().collect::<Vec<_>>(), &[], &[]), None);
        assert_eq!(distribute_evenly(&[], &[], &[]), Some(vec![]));
    }
}
