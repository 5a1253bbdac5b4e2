//! Profiles in dhat's format, reduced for the record. Addresses, process IDs and directories differ from run to run, so
//! they are removed. Equal backtraces are added up.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use serde_json::{Map, Value, json};

/// The sums of a program point: bytes and blocks in total, their lifetimes, and bytes and blocks at three moments. The
/// moments are the point's own maximum, the global maximum, and the end.
const COUNTS: [&str; 9] = ["tb", "tbk", "tl", "mb", "mbk", "gb", "gbk", "eb", "ebk"];
/// In [`COUNTS`]: bytes at the global maximum.
const AT_PEAK: usize = 5;

/// A backtrace, innermost frame first, and its allocations.
pub(crate) struct Point {
    frames: Vec<String>,
    counts: [u64; COUNTS.len()],
}

pub(crate) struct Profile {
    header: Map<String, Value>,
    points: Vec<Point>,
}

impl Profile {
    /// Reads dhat's output.
    pub(crate) fn parse(text: &str) -> Option<Profile> {
        let Value::Object(mut header) = serde_json::from_str(text).ok()? else {
            return None;
        };
        let (points, frames) = (header.remove("pps")?, header.remove("ftbl")?);
        let frames: Option<Vec<_>> = frames.as_array()?.iter().map(|f| Some(tidy(f.as_str()?))).collect();
        let frames = frames?;
        let mut merged: BTreeMap<Vec<String>, [u64; COUNTS.len()]> = BTreeMap::new();
        for point in points.as_array()? {
            let trace: Option<Vec<_>> = point["fs"]
                .as_array()?
                .iter()
                .map(|i| frames.get(usize::try_from(i.as_u64()?).ok()?).cloned())
                .collect();
            let mut trace = trace?;
            let inner = trace.iter().take_while(|frame| is_allocator(frame)).count();
            trace.drain(..inner);
            let sums = merged.entry(trace).or_default();
            for (sum, name) in sums.iter_mut().zip(COUNTS) {
                *sum += point[name].as_u64()?;
            }
        }
        let mut points: Vec<_> = merged
            .into_iter()
            .map(|(frames, counts)| Point { frames, counts })
            .collect();
        points.sort_by_key(|point| std::cmp::Reverse(point.counts[AT_PEAK]));
        Some(Profile { header, points })
    }

    /// Gives the profile the name of its program in the place of a command line.
    pub(crate) fn name(&mut self, program: &str) {
        self.header.insert("cmd".into(), program.into());
        self.header.insert("pid".into(), 0.into());
    }

    /// In dhat's format, a line per backtrace and per frame.
    pub(crate) fn to_json(&self) -> String {
        let mut numbers: BTreeMap<&str, usize> = BTreeMap::new();
        let mut frames = vec![json!("[root]")];
        let mut points = Vec::new();
        for point in &self.points {
            let mut trace = Vec::new();
            for frame in &point.frames {
                trace.push(*numbers.entry(frame).or_insert_with(|| {
                    frames.push(frame.as_str().into());
                    frames.len() - 1
                }));
            }
            let counts = COUNTS.into_iter().zip(point.counts);
            let mut object: Map<_, _> = counts.map(|(name, count)| (name.into(), count.into())).collect();
            object.insert("fs".into(), trace.into());
            points.push(Value::Object(object));
        }
        let mut text = String::from("{\n");
        for (name, value) in &self.header {
            _ = writeln!(text, "{}: {value},", json!(name));
        }
        let lines = |values: &[Value]| values.iter().map(Value::to_string).collect::<Vec<_>>().join(",\n");
        _ = writeln!(text, "\"pps\": [\n{}\n],", lines(&points));
        _ = writeln!(text, "\"ftbl\": [\n{}\n]\n}}", lines(&frames));
        text
    }

    /// What holds the bytes in use at the peak.
    pub(crate) fn at_peak(&self) -> Vec<(&'static str, u64)> {
        let mut sums = Vec::from(PARTS.map(|(part, _)| (part, 0)));
        sums.push(("the rest", 0));
        for point in &self.points {
            let part_of = |frame: &String| {
                PARTS
                    .iter()
                    .position(|(_, places)| places.iter().any(|p| frame.contains(p)))
            };
            let part = point.frames.iter().find_map(part_of).unwrap_or(PARTS.len());
            sums[part].1 += point.counts[AT_PEAK];
        }
        sums
    }
}

/// The parts of a table. A part has the backtraces whose innermost frame is in these modules. A part takes precedence
/// over the parts that follow.
const PARTS: [(&str, &[&str]); 9] = [
    ("records", &["allocate_segment"]),
    ("indexes", &["(src/shard/index.rs"]),
    ("lists of routes", &["(src/shard/list.rs"]),
    ("names", &["store (src/shard/key.rs"]),
    ("map of proxy IDs", &["(src/proxies/ids.rs"]),
    ("proxies", &["(src/mem/segmented_vec.rs"]),
    (
        "addresses and clusters",
        &["(src/proxies/intern.rs", "(src/proxies/registry.rs"],
    ),
    ("slabs", &["(src/shard/mod.rs", "(src/shard/slab.rs"]),
    ("garbage", &["(src/shard/rebuild.rs", "crossbeam-epoch"]),
];

/// Takes the address off a frame, and a checkout's own directory off its path.
fn tidy(frame: &str) -> String {
    let frame = frame.split_once(": ").map_or(frame, |(_address, rest)| rest);
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).parent().and_then(Path::file_name);
    let Some(checkout) = checkout.and_then(|name| name.to_str()) else {
        return frame.into();
    };
    frame.replace(&format!("({checkout}/"), "(")
}

/// Whether a frame is the allocator's.
fn is_allocator(frame: &str) -> bool {
    [
        "(dhat-",
        "(src/alloc/global.rs",
        "(alloc/src/alloc.rs",
        "(alloc/src/raw_vec",
    ]
    .iter()
    .any(|place| frame.contains(place))
        || frame.starts_with("__rust_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROFILE: &str = r#"{
        "dhatFileVersion": 2, "mode": "rust-heap", "cmd": "/home/me/target/program x", "pid": 4711, "te": 9,
        "pps": [
            {"tb":1,"tbk":1,"tl":1,"mb":1,"mbk":1,"gb":1,"gbk":1,"eb":1,"ebk":1,"fs":[3]},
            {"tb":8,"tbk":1,"tl":1,"mb":8,"mbk":1,"gb":8,"gbk":1,"eb":0,"ebk":0,"fs":[4,1,3]},
            {"tb":5,"tbk":2,"tl":1,"mb":5,"mbk":2,"gb":4,"gbk":2,"eb":0,"ebk":0,"fs":[2,3]}
        ],
        "ftbl": ["[root]", "0x1: allocate_segment (src/shard/slab.rs:1:2)", "0x2: allocate_segment (src/shard/slab.rs:1:2)",
                 "0x7: main (src/main.rs:1:1)", "0x9: __rust_alloc (src/main.rs:2:2)"]
    }"#;

    #[test]
    fn what_differs_from_run_to_run_is_left_out() {
        let mut profile = Profile::parse(PROFILE).unwrap();
        profile.name("a-program");
        let text = profile.to_json();
        assert!(
            !text.contains("0x") && !text.contains("/home") && !text.contains("4711"),
            "{text}"
        );
        assert_eq!(profile.points.len(), 2, "two backtraces were one");
        assert_eq!(profile.points[0].counts, [13, 3, 2, 13, 3, 12, 3, 0, 0]);
    }

    #[test]
    fn what_was_written_can_be_read_again() {
        let profile = Profile::parse(PROFILE).unwrap();
        let text = profile.to_json();
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            value["ftbl"][value["pps"][0]["fs"][0].as_u64().unwrap() as usize],
            "allocate_segment (src/shard/slab.rs:1:2)"
        );
    }

    #[test]
    fn every_byte_at_the_peak_has_a_part() {
        let parts = Profile::parse(PROFILE).unwrap().at_peak();
        assert_eq!(parts.first(), Some(&("records", 12)));
        assert_eq!(parts.last(), Some(&("the rest", 1)));
    }
}
