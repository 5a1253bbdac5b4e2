//! One program's section of a YAML file that several programs share, such as a `teleport.yaml`.
//!
//! Other sections are left alone. A mistake in a program's own section must not leave a default in place silently. So
//! these are errors: an unknown key, a repeated key, a key without a value, and a key outside of the section.
//!
//! ```
//! use nodetracker_yaml::{Section, read};
//! use serde::{Deserialize, Deserializer};
//!
//! struct Text(String);
//!
//! impl Section for Text {
//!     const NAME: &str = "lamp";
//!     const PREFIX: &str = "";
//!
//!     fn keys() -> &'static [&'static str] {
//!         &["color", "size"]
//!     }
//!
//!     fn value<'de, D: Deserializer<'de>>(_: &str, value: D) -> Result<Option<Self>, D::Error> {
//!         Ok(Option::deserialize(value)?.map(Text))
//!     }
//! }
//!
//! let entries = read::<Text>("lamp:\n  size: 3\n")?.unwrap_or_default();
//! assert_eq!((entries[0].key, entries[0].line, &*entries[0].value.0), ("size", 2, "3"));
//!
//! let error = read::<Text>("lamp:\ncolor: red\n").err().unwrap();
//! assert_eq!(error.line, Some(2));
//! assert_eq!(error.reason, "color is a key of lamp: indent the key to stand below that section");
//! # Ok::<(), nodetracker_yaml::Error>(())
//! ```

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_saphyr::options::{DuplicateKeyPolicy, NonFiniteFloatPolicy};
use serde_saphyr::{Spanned, UserMessageFormatter};

/// A section, and the value of one of its keys.
pub trait Section: Sized {
    /// The name of the section.
    const NAME: &'static str;
    /// The prefix of the keys. A key of the section without this prefix belongs to another program.
    const PREFIX: &'static str;
    /// The keys inside of values, which must not stand at the margin either.
    const INNER_KEYS: &'static [&'static str] = &[];

    /// Returns the keys of the section.
    fn keys() -> &'static [&'static str];

    /// Reads the value of a key. Returns `None` if the key has no value.
    ///
    /// # Errors
    ///
    /// If the value has the wrong type.
    fn value<'de, D: Deserializer<'de>>(key: &'static str, value: D) -> Result<Option<Self>, D::Error>;
}

/// A key of the section, with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<V> {
    /// The key, one of [`Section::keys`].
    pub key: &'static str,
    /// The line of the key, counted from 1.
    pub line: u64,
    /// The value.
    pub value: V,
}

/// An error in a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Error {
    /// The line, counted from 1, if the error is in a line.
    pub line: Option<u64>,
    /// The key of the section, if its value is bad.
    pub key: Option<&'static str>,
    /// The mistake.
    pub reason: String,
}

/// Reads the section of a file, in the order of the file. Returns `None` if the file has no such section.
///
/// # Errors
///
/// If the text is not YAML, or if there is a mistake in the section.
pub fn read<V: Section>(text: &str) -> Result<Option<Vec<Entry<V>>>, Error> {
    let options = serde_saphyr::options! {
        with_snippet: false,
        // Aliases are judged by their expanded size, which has limits of its own.
        budget: serde_saphyr::budget! {
            enforce_alias_anchor_ratio: false,
            max_aliases: usize::MAX,
        },
        // For the parts of other programs: our keys must not be repeated.
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        non_finite_float_policy: NonFiniteFloatPolicy::PassThrough,
    };
    let file = serde_saphyr::from_str_with_options::<File<V>>(text, options);
    let File { section, mistake } = file.map_err(|error| yaml_error::<V>(text, &error))?;
    mistake.map_or(Ok(section), Err)
}

fn key_named<V: Section>(name: &str) -> Option<&'static str> {
    let mut keys = V::keys().iter().chain(V::INNER_KEYS);
    keys.find(|&&key| key == name).copied()
}

/// No-break spaces and the like look like an indentation, but are part of the key.
fn visible(name: &str) -> &str {
    name.trim_matches(|c: char| !c.is_ascii_graphic())
}

/// The part of a file that is ours. Errors of serde have no exact line, so the visitors collect the first mistake.
struct File<V> {
    section: Option<Vec<Entry<V>>>,
    mistake: Option<Error>,
}

impl<V> File<V> {
    fn mistake(&mut self, line: u64, key: Option<&'static str>, reason: String) {
        let line = Some(line);
        self.mistake.get_or_insert(Error { line, key, reason });
    }
}

impl<'de, V: Section> Deserialize<'de> for File<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let section = None;
        let mut file = File { section, mistake: None };
        deserializer.deserialize_map(TopLevel(&mut file))?;
        Ok(file)
    }
}

struct TopLevel<'a, V>(&'a mut File<V>);

impl<'de, V: Section> Visitor<'de> for TopLevel<'_, V> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mapping")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let file = self.0;
        while let Some(key) = map.next_key::<Spanned<Name>>()? {
            let (name, line) = (key.value.0, key.referenced.line());
            if name == V::NAME && file.section.is_none() {
                file.section = Some(Vec::new());
                map.next_value_seed(Keys(file))?;
                continue;
            }
            map.next_value::<IgnoredAny>()?;
            let visible = visible(&name);
            if name == V::NAME {
                file.mistake(line, None, format!("a second section {name}"));
            } else if key_named::<V>(visible).is_some() {
                let section = V::NAME;
                let reason = format!("{visible} is a key of {section}: indent the key to stand below that section");
                file.mistake(line, None, reason);
            } else if visible == V::NAME {
                let reason = format!("{visible} has a character around it that looks like a blank: {name:?}");
                file.mistake(line, None, reason);
            }
        }
        Ok(())
    }
}

/// The keys of the section. A section without keys may have no value.
struct Keys<'a, V>(&'a mut File<V>);

impl<'de, V: Section> DeserializeSeed<'de> for Keys<'_, V> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de, V: Section> Visitor<'de> for Keys<'_, V> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mapping")
    }

    fn visit_none<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Keys(file) = self;
        while let Some(key) = map.next_key::<Spanned<Name>>()? {
            let (name, line) = (key.value.0, key.referenced.line());
            let Some(key) = V::keys().iter().find(|&&key| key == name).copied() else {
                map.next_value::<IgnoredAny>()?;
                if visible(&name).starts_with(V::PREFIX) {
                    let keys = V::keys().join(", ");
                    file.mistake(line, None, format!("unknown key `{name}`, expected one of {keys}"));
                }
                continue;
            };
            let value = map.next_value_seed(ValueOf::<V>(key, PhantomData))?;
            let entries = file.section.get_or_insert_default();
            match value {
                _ if entries.iter().any(|earlier| earlier.key == key) => {
                    file.mistake(line, Some(key), "is set twice".to_owned());
                }
                Some(value) => entries.push(Entry { key, line, value }),
                None => {
                    let reason = "has no value: remove the key to use the default";
                    file.mistake(line, Some(key), reason.to_owned());
                }
            }
        }
        Ok(())
    }
}

struct ValueOf<V>(&'static str, PhantomData<V>);

impl<'de, V: Section> DeserializeSeed<'de> for ValueOf<V> {
    type Value = Option<V>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<V>, D::Error> {
        V::value(self.0, deserializer)
    }
}

/// A key, which is empty if the key is no string.
#[derive(Default)]
struct Name(String);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NameVisitor)
    }
}

struct NameVisitor;

impl<'de> Visitor<'de> for NameVisitor {
    type Value = Name;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, name: &str) -> Result<Name, E> {
        Ok(Name(name.to_owned()))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Name, E> {
        Ok(Name::default())
    }

    fn visit_i64<E>(self, _: i64) -> Result<Name, E> {
        Ok(Name::default())
    }

    fn visit_u64<E>(self, _: u64) -> Result<Name, E> {
        Ok(Name::default())
    }

    fn visit_f64<E>(self, _: f64) -> Result<Name, E> {
        Ok(Name::default())
    }

    fn visit_unit<E>(self) -> Result<Name, E> {
        Ok(Name::default())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Name, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Name::default())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Name, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Name::default())
    }
}

/// Turns an error of the YAML library into an error with the line and the key.
fn yaml_error<V: Section>(text: &str, error: &serde_saphyr::Error) -> Error {
    let reason = error.render_with_formatter(&UserMessageFormatter);
    let reason = [
        ("missing field", "missing key"),
        ("unknown field", "unknown key"),
        ("expected mapping start", "expected a mapping"),
        ("expected sequence start", "expected a list"),
        ("expected string scalar", "expected a string"),
    ]
    .into_iter()
    .fold(reason, |reason, (theirs, ours)| reason.replace(theirs, ours));
    let location = error.location();
    // The line precedes the message, as compilers write it. A message may have several lines.
    let end = location.map_or(String::new(), |at| {
        format!(" at line {}, column {}", at.line(), at.column())
    });
    let reason = reason.trim_end_matches(&end).split_whitespace();
    let line = location.map(|location| location.line());
    let source = line.and_then(|line| text.lines().nth(usize::try_from(line).ok()?.checked_sub(1)?));
    let written = source.and_then(|source| source.split_once(':'));
    Error {
        line,
        key: written.and_then(|(name, _)| key_named::<V>(name.trim_start_matches([' ', '-']))),
        reason: reason.collect::<Vec<_>>().join(" "),
    }
}
