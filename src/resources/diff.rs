//! Whether a live object is what we want: all we wrote must be there, and what others added does not matter.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::Manifest;
use crate::{api::names::keys, snapshot::Difference};

/// The first difference in words (`spec.template.spec.containers[0].image: a -> b`), or `None` when the live object
/// contains all that we want.
///
/// What the API server filled in and what other managers added is fine. Amounts are compared as amounts (`1000m` is
/// `1`); lists by the names of their elements when they have some, because admission may put a sidecar first, else by
/// position. A field that we wrote once and no longer want is noticed by the annotation `dialogcluster.dev/applied-hash`.
#[must_use]
pub fn first_difference(want: &Manifest, live: &Value) -> Option<String> {
    differences(want, live).first().map(ToString::to_string)
}

/// All differences.
#[must_use]
pub fn differences(want: &Manifest, live: &Value) -> Vec<Difference> {
    let hash = |object: &Value| {
        object.pointer("/metadata/annotations").and_then(|all| all.get(keys::APPLIED_HASH).cloned())
    };
    let mut found = Vec::new();
    compare(&want.json, live, "", &mut found);
    let (want, live) = (hash(&want.json), hash(live));
    if want != live {
        // What really differs says more than a hash.
        let path = format!("metadata.annotations.{}", keys::APPLIED_HASH);
        found.push(Difference::new(&path, live.as_ref(), want.as_ref()));
    }
    found
}

fn compare(want: &Value, live: &Value, path: &str, found: &mut Vec<Difference>) {
    match (want, live) {
        (Value::Object(want), Value::Object(live)) => compare_objects(want, live, path, found),
        (Value::Array(want), Value::Array(live)) => compare_lists(want, live, path, found),
        _ if want == live || same_amount(want, live, path) => {}
        _ => found.push(Difference::new(path, Some(live), Some(want))),
    }
}

fn compare_objects(
    want: &Map<String, Value>,
    live: &Map<String, Value>,
    path: &str,
    found: &mut Vec<Difference>,
) {
    for (key, want) in want.iter().filter(|(key, _)| *key != keys::APPLIED_HASH) {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        match live.get(key) {
            Some(live) => compare(want, live, &path, found),
            None if is_zero(want) => {}
            None => found.push(Difference::new(&path, None, Some(want))),
        }
    }
}

fn compare_lists(want: &[Value], live: &[Value], path: &str, found: &mut Vec<Difference>) {
    let by_name = names(want).is_some();
    for (index, want) in want.iter().enumerate() {
        let live = if by_name {
            live.iter().find(|live| live.get("name") == want.get("name"))
        } else {
            live.get(index)
        };
        let path = format!("{path}[{index}]");
        match live {
            Some(live) => compare(want, live, &path, found),
            None => found.push(Difference::new(&path, None, Some(want))),
        }
    }
}

/// The names of all elements, when each has one and no two are the same.
fn names(list: &[Value]) -> Option<BTreeSet<&str>> {
    let names: BTreeSet<&str> =
        list.iter().map(|element| element.get("name")?.as_str()).collect::<Option<_>>()?;
    (names.len() == list.len()).then_some(names)
}

/// Values that the API server leaves out when it stores an object.
fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.values().all(is_zero),
    }
}

/// Only where the API has amounts: elsewhere `1000m` and `1` are two texts.
fn same_amount(want: &Value, live: &Value, path: &str) -> bool {
    let is_amount =
        ["requests.", "limits."].iter().any(|map| path.contains(map)) || path.ends_with("sizeLimit");
    let (Some(want), Some(live)) = (want.as_str(), live.as_str()) else { return false };
    is_amount && canonical_quantity(want) == canonical_quantity(live)
}

/// A quantity in one spelling for each amount: a whole number of billionths, or the text itself when it is none.
/// (Suffixes: <https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/>.)
pub(super) fn canonical_quantity(text: &str) -> String {
    billionths(text).map_or_else(|| text.to_owned(), |amount| format!("{amount}n"))
}

/// Whether one quantity is more than another; a text that is none is not.
#[must_use]
pub fn is_larger(one: &str, other: &str) -> bool {
    matches!((billionths(one), billionths(other)), (Some(one), Some(other)) if one > other)
}

fn billionths(text: &str) -> Option<i128> {
    const UNIT: i128 = 1_000_000_000;
    let end =
        text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-'))).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let factor = match suffix {
        "n" => 1,
        "u" => 1_000,
        "m" => 1_000_000,
        "" => UNIT,
        "k" => UNIT * 1_000,
        "M" => UNIT * 1_000_000,
        "G" => UNIT * 1_000_000_000,
        "T" => UNIT * 1_000_000_000_000,
        "P" => UNIT * 1_000_000_000_000_000,
        "E" => UNIT * 1_000_000_000_000_000_000,
        "Ki" => UNIT << 10,
        "Mi" => UNIT << 20,
        "Gi" => UNIT << 30,
        "Ti" => UNIT << 40,
        "Pi" => UNIT << 50,
        "Ei" => UNIT << 60,
        exponent => power_of_ten(exponent)?.checked_mul(UNIT)?,
    };
    let (sign, digits) = match number.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let scale = 10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let value: i128 = format!("{whole}{fraction}").parse().ok()?;
    Some(sign * value.checked_mul(factor)? / scale)
}

/// `e3` and `E3`; a negative exponent is a fraction that nobody writes, and stays text.
fn power_of_ten(exponent: &str) -> Option<i128> {
    10_i128.checked_pow(exponent.strip_prefix(['e', 'E'])?.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn wanted(json: Value) -> Manifest {
        Manifest { api_version: "v1".to_owned(), kind: "Thing".to_owned(), name: "thing".to_owned(), json }
    }

    #[rstest]
    #[case("50Gi", "10Gi", true)]
    #[case("10Gi", "100Gi", false)]
    #[case("10240Mi", "10Gi", false)]
    #[case("11G", "10Gi", true)]
    #[case("much", "10Gi", false)]
    fn a_size_is_compared_as_an_amount(#[case] one: &str, #[case] other: &str, #[case] larger: bool) {
        assert_eq!(is_larger(one, other), larger);
    }

    #[rstest]
    #[case::the_same(json!({"a": 1}), json!({"a": 1}), None)]
    #[case::defaults_and_additions(json!({"a": 1}), json!({"a": 1, "b": {"c": 2}}), None)]
    #[case::another_value(json!({"spec": {"a": "x"}}), json!({"spec": {"a": "y"}}), Some("spec.a: y -> x"))]
    #[case::missing(json!({"spec": {"a": "x"}}), json!({"spec": {}}), Some("spec.a: nothing -> x"))]
    #[case::another_type(json!({"a": 1}), json!({"a": "1"}), Some("a: 1 -> 1"))]
    #[case::left_out_by_the_api_server(json!({"a": {}, "b": [], "c": false, "d": "", "e": {"f": null}}), json!({}), None)]
    #[case::true_is_not_left_out(json!({"a": true}), json!({}), Some("a: nothing -> true"))]
    #[case::cpu(json!({"requests": {"cpu": "1000m"}}), json!({"requests": {"cpu": "1"}}), None)]
    #[case::memory(json!({"limits": {"memory": "1Gi"}}), json!({"limits": {"memory": "1024Mi"}}), None)]
    #[case::more(json!({"limits": {"memory": "1Gi"}}), json!({"limits": {"memory": "1G"}}), Some("limits.memory: 1G -> 1Gi"))]
    #[case::text_is_no_amount(json!({"a": "1000m"}), json!({"a": "1"}), Some("a: 1 -> 1000m"))]
    #[case::by_position(json!({"l": [1, 2]}), json!({"l": [1, 3]}), Some("l[1]: 3 -> 2"))]
    #[case::longer(json!({"l": [1, 2]}), json!({"l": [1]}), Some("l[1]: nothing -> 2"))]
    #[case::a_sidecar_put_first(
        json!({"containers": [{"name": "postgres", "image": "b"}]}),
        json!({"containers": [{"name": "sidecar"}, {"name": "postgres", "image": "a"}]}),
        Some("containers[0].image: a -> b")
    )]
    #[case::one_name_many_mounts(
        json!({"m": [{"name": "v", "path": "/a"}, {"name": "v", "path": "/b"}]}),
        json!({"m": [{"name": "v", "path": "/a"}, {"name": "v", "path": "/b"}]}),
        None
    )]
    fn differences(#[case] want: Value, #[case] live: Value, #[case] expected: Option<&str>) {
        assert_eq!(first_difference(&wanted(want), &live).as_deref(), expected);
    }

    #[test]
    fn a_field_that_is_no_longer_wanted_is_noticed() {
        let object = |hash: &str, spec: Value| json!({"metadata": {"annotations": {keys::APPLIED_HASH: hash}}, "spec": spec});
        let live = object("1", json!({"a": 1, "b": 2}));
        assert_eq!(first_difference(&wanted(object("1", json!({"a": 1, "b": 2}))), &live), None);
        assert_eq!(
            first_difference(&wanted(object("2", json!({"a": 1}))), &live).unwrap(),
            "metadata.annotations.dialogcluster.dev/applied-hash: 1 -> 2"
        );
        // What really differs says more than a hash.
        assert_eq!(first_difference(&wanted(object("2", json!({"a": 3}))), &live).unwrap(), "spec.a: 1 -> 3");
    }

    #[test]
    fn long_values_are_cut() {
        let difference =
            first_difference(&wanted(json!({"a": "ы".repeat(500)})), &json!({"a": "x"})).unwrap();
        assert!(difference.ends_with('…') && difference.chars().count() < 80, "{difference}");
    }

    #[rstest]
    #[case("1000m", "1")]
    #[case("1.5", "1500m")]
    #[case("1Gi", "1024Mi")]
    #[case("1e3", "1k")]
    #[case("+1", "1")]
    #[case("0.5Gi", "512Mi")]
    #[case("1E", "1000P")]
    fn amounts_that_are_the_same(#[case] one: &str, #[case] other: &str) {
        assert_eq!(canonical_quantity(one), canonical_quantity(other));
    }

    #[rstest]
    #[case("1G", "1Gi")]
    #[case("1", "-1")]
    #[case("1x", "1y")]
    #[case("", "0")]
    fn amounts_that_are_not(#[case] one: &str, #[case] other: &str) {
        assert_ne!(canonical_quantity(one), canonical_quantity(other));
    }
}
