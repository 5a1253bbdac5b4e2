//! The style of the packages `nodetracker.*`: the rules of buf's STANDARD and COMMENTS sets that can break by
//! oversight. `buf lint` in this crate's folder checks all of them; this needs nothing installed.

use std::collections::{HashMap, HashSet};

use nodetracker_proto::FILE_DESCRIPTOR_SET;
use prost::Message;
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet};

/// The numbers of a `FileDescriptorProto`'s fields, and of those below, that lead to an element.
mod path {
    pub(super) const MESSAGE: i32 = 4;
    pub(super) const ENUM: i32 = 5;
    pub(super) const SERVICE: i32 = 6;
    pub(super) const FIELD: i32 = 2;
    pub(super) const NESTED: i32 = 3;
    pub(super) const NESTED_ENUM: i32 = 4;
    pub(super) const ONEOF: i32 = 8;
    pub(super) const VALUE: i32 = 2;
    pub(super) const METHOD: i32 = 2;
}

/// A file of the package, and what is wrong with it.
struct File<'a> {
    file: &'a FileDescriptorProto,
    comments: HashMap<&'a [i32], &'a str>,
    faults: Vec<String>,
}

impl<'a> File<'a> {
    fn new(file: &'a FileDescriptorProto) -> Self {
        let locations = &file
            .source_code_info
            .as_ref()
            .expect("the source is described")
            .location;
        let comments = locations
            .iter()
            .filter_map(|location| Some((&location.path[..], location.leading_comments.as_deref()?)));
        Self {
            file,
            comments: comments.collect(),
            faults: Vec::new(),
        }
    }

    fn ensure(&mut self, holds: bool, fault: impl FnOnce() -> String) {
        if !holds {
            self.faults.push(format!("{}: {}", self.file.name(), fault()));
        }
    }

    fn has_comment(&mut self, path: &[i32], name: &str) {
        let comment = self.comments.get(path).copied().unwrap_or_default();
        self.ensure(!comment.trim().is_empty(), || format!("{name} has no comment"));
    }

    fn check(mut self, seen: &mut HashSet<String>) -> Vec<String> {
        let file = self.file;
        let folder = file.name().rsplit_once('/').map_or("", |(folder, _)| folder);
        let package = folder.replace('/', ".");
        self.ensure(file.package() == package, || {
            format!("is in package {}", file.package())
        });
        self.ensure(file.syntax() == "proto3", || "is not proto3".into());
        let stem = file
            .name()
            .rsplit('/')
            .next()
            .and_then(|name| name.strip_suffix(".proto"));
        self.ensure(stem.is_some_and(is_snake), || "is not named in lower_snake_case".into());
        for (at, message) in (0..).zip(&file.message_type) {
            self.message(&[path::MESSAGE, at], message);
        }
        for (at, of) in (0..).zip(&file.enum_type) {
            self.enumeration(&[path::ENUM, at], of);
        }
        for (at, service) in (0..).zip(&file.service) {
            let name = service.name();
            self.has_comment(&[path::SERVICE, at], name);
            self.ensure(is_pascal(name) && name.ends_with("Service"), || {
                format!("{name} is no name of a service")
            });
            for (nth, method) in (0..).zip(&service.method) {
                self.has_comment(&[path::SERVICE, at, path::METHOD, nth], method.name());
                self.ensure(is_pascal(method.name()), || {
                    format!("{} is no name of a method", method.name())
                });
                for (of, end) in [(method.input_type(), "Request"), (method.output_type(), "Response")] {
                    let expected = format!(".{package}.{}{end}", method.name());
                    self.ensure(of == expected, || {
                        format!("{} takes or returns {of}, not {expected}", method.name())
                    });
                    self.ensure(seen.insert(of.to_owned()), || format!("{of} belongs to two methods"));
                }
            }
        }
        self.faults
    }

    fn message(&mut self, at: &[i32], message: &DescriptorProto) {
        let below = |field, nth| [at, &[field, nth]].concat();
        let name = message.name();
        self.has_comment(at, name);
        self.ensure(is_pascal(name), || format!("{name} is no name of a message"));
        for (nth, field) in (0..).zip(&message.field) {
            let full = format!("{name}.{}", field.name());
            self.has_comment(&below(path::FIELD, nth), &full);
            self.ensure(is_snake(field.name()), || format!("{full} is no name of a field"));
        }
        for (nth, oneof) in (0..).zip(&message.oneof_decl) {
            // The compiler makes a oneof for each optional field.
            let is_optional = |field: &FieldDescriptorProto| field.oneof_index == Some(nth) && field.proto3_optional();
            if message.field.iter().any(is_optional) {
                continue;
            }
            let full = format!("{name}.{}", oneof.name());
            self.has_comment(&below(path::ONEOF, nth), &full);
            self.ensure(is_snake(oneof.name()), || format!("{full} is no name of a oneof"));
        }
        for (nth, nested) in (0..).zip(&message.nested_type) {
            self.message(&below(path::NESTED, nth), nested);
        }
        for (nth, nested) in (0..).zip(&message.enum_type) {
            self.enumeration(&below(path::NESTED_ENUM, nth), nested);
        }
    }

    fn enumeration(&mut self, at: &[i32], of: &EnumDescriptorProto) {
        let name = of.name();
        self.has_comment(at, name);
        self.ensure(is_pascal(name), || format!("{name} is no name of an enum"));
        let prefix = upper_snake(name);
        let numbers: HashSet<i32> = of.value.iter().map(|value| value.number()).collect();
        self.ensure(numbers.len() == of.value.len(), || {
            format!("{name} has two values of one number")
        });
        for (nth, value) in (0..).zip(&of.value) {
            let full = format!("{name}.{}", value.name());
            self.has_comment(&[at, &[path::VALUE, nth]].concat(), &full);
            let rest = value
                .name()
                .strip_prefix(&*prefix)
                .and_then(|rest| rest.strip_prefix('_'));
            self.ensure(
                rest.is_some_and(|rest| rest == rest.to_uppercase() && is_snake(&rest.to_lowercase())),
                || format!("{full} does not begin with {prefix}_, or is not in UPPER_SNAKE_CASE"),
            );
            self.ensure((value.number() == 0) == (nth == 0), || {
                format!("the first of {name} is not 0")
            });
            self.ensure((rest == Some("UNSPECIFIED")) == (nth == 0), || {
                format!("{full}: 0 alone is UNSPECIFIED")
            });
        }
    }
}

fn is_snake(name: &str) -> bool {
    let parts = name.split('_');
    let mut all =
        parts.map(|part| !part.is_empty() && part.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit()));
    name.starts_with(|c: char| c.is_ascii_lowercase()) && all.all(|good| good)
}

fn is_pascal(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_uppercase()) && name.bytes().all(|c| c.is_ascii_alphanumeric())
}

/// `NodeChangeReason` as `NODE_CHANGE_REASON`.
fn upper_snake(name: &str) -> String {
    let mut upper = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !upper.is_empty() {
            upper.push('_');
        }
        upper.push(c.to_ascii_uppercase());
    }
    upper
}

fn files() -> Vec<FileDescriptorProto> {
    let all = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET)
        .expect("the compiler wrote it")
        .file;
    all.into_iter()
        .filter(|file| file.name().starts_with("nodetracker/"))
        .collect()
}

#[test]
fn everything_is_named_by_the_rules_and_has_a_comment() {
    let files = files();
    assert!(files.len() > 4, "the files of all packages are found");
    let mut seen = HashSet::new();
    let faults: Vec<_> = files.iter().flat_map(|file| File::new(file).check(&mut seen)).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// What the check is worth: each rule finds a file that breaks it.
#[test]
fn what_breaks_a_rule_is_found() {
    type Break = fn(&mut FileDescriptorProto);
    let breaks: [(Break, &str); 10] = [
        (|file| file.package = Some("other".into()), "is in package other"),
        (
            |file| file.source_code_info = Some(Default::default()),
            "has no comment",
        ),
        (
            |file| file.service[0].name = Some("Watches".into()),
            "no name of a service",
        ),
        (
            |file| file.service[0].method[0].name = Some("watch".into()),
            "no name of a method",
        ),
        (
            |file| file.service[0].method[0].input_type = Some(".nodetracker.v1.NodeId".into()),
            "takes or returns",
        ),
        (
            |file| file.message_type[0].name = Some("request".into()),
            "no name of a message",
        ),
        (
            |file| file.message_type[0].field[0].name = Some("nodeIds".into()),
            "no name of a field",
        ),
        (
            |file| file.enum_type[0].value[0].name = Some("NODE_CHANGE_REASON_NONE".into()),
            "0 alone is UNSPECIFIED",
        ),
        (
            |file| file.enum_type[0].value[1].name = Some("ADDED".into()),
            "does not begin with",
        ),
        (
            |file| file.enum_type[0].value[1].number = Some(0),
            "two values of one number",
        ),
    ];
    let watch = files()
        .into_iter()
        .find(|file| file.name().ends_with("/watch.proto"))
        .expect("it is there");
    for (break_it, fault) in breaks {
        let mut broken = watch.clone();
        break_it(&mut broken);
        let faults = File::new(&broken).check(&mut HashSet::new()).join("\n");
        assert!(faults.contains(fault), "{fault:?} is not in {faults:?}");
    }
}
