//! Node IDs: nearly always a UUID, otherwise a name.

use std::fmt;
use std::str::FromStr;

use compact_str::CompactString;
use uuid::Uuid;

use crate::error::{NodeIdError, TextError};
use crate::layout::MAX_TEXT;

/// The ID of a node.
///
/// A UUID in any of its spellings (hyphenated, 32 digits, braced, URN, upper or lower case) names the same node. Any
/// other UTF-8 of 1 to 255 bytes without control characters is a name, compared byte by byte.
///
/// ```
/// use nodetracker::NodeId;
///
/// let a: NodeId = "550e8400-e29b-41d4-a716-446655440000".parse()?;
/// let b: NodeId = "{550E8400-E29B-41D4-A716-446655440000}".parse()?;
/// assert_eq!(a, b);
/// assert_eq!("node-1".parse::<NodeId>()?.to_string(), "node-1");
/// assert!("".parse::<NodeId>().is_err());
/// # Ok::<(), nodetracker::NodeIdError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(IdKind);

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum IdKind {
    Uuid(Uuid),
    Name(CompactString),
}

impl NodeId {
    pub(crate) fn kind(&self) -> &IdKind {
        &self.0
    }

    /// Returns the ID of a name that is known to be acceptable, and not to be a UUID.
    pub(crate) fn from_name(name: &str) -> Self {
        Self(IdKind::Name(name.into()))
    }

    pub(crate) fn is_name(&self) -> bool {
        matches!(self.0, IdKind::Name(_))
    }

    /// The UUID, if the ID is a UUID.
    #[must_use]
    pub fn as_uuid(&self) -> Option<Uuid> {
        match self.0 {
            IdKind::Uuid(uuid) => Some(uuid),
            IdKind::Name(_) => None,
        }
    }

    /// The name, if the ID is not a UUID.
    #[must_use]
    pub fn as_name(&self) -> Option<&str> {
        match &self.0 {
            IdKind::Uuid(_) => None,
            IdKind::Name(name) => Some(name),
        }
    }
}

/// Serializes the ID as text.
#[cfg(feature = "serde")]
impl serde::Serialize for NodeId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for NodeId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = CompactString::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl TryFrom<&str> for NodeId {
    type Error = NodeIdError;

    fn try_from(text: &str) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl FromStr for NodeId {
    type Err = NodeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match parse_uuid(text) {
            Some(uuid) => Ok(Self(IdKind::Uuid(uuid))),
            None => {
                check_text(text).map_err(NodeIdError)?;
                Ok(Self(IdKind::Name(text.into())))
            }
        }
    }
}

/// Reads the spellings that the uuid crate reads. Also reads 32 digits in braces, and a URN in capitals (RFC 9562,
/// section 4: the URN namespace is case-insensitive).
fn parse_uuid(text: &str) -> Option<Uuid> {
    if let Ok(uuid) = Uuid::try_parse(text) {
        return Some(uuid);
    }
    let bare = match text.get(..9) {
        Some(urn) if urn.eq_ignore_ascii_case("urn:uuid:") => &text[9..],
        _ => text.strip_prefix('{')?.strip_suffix('}')?,
    };
    // Only a bare UUID: no braces within braces.
    bare.starts_with(|c: char| c.is_ascii_hexdigit())
        .then(|| Uuid::try_parse(bare).ok())?
}

impl From<Uuid> for NodeId {
    fn from(uuid: Uuid) -> Self {
        Self(IdKind::Uuid(uuid))
    }
}

impl fmt::Display for NodeId {
    /// Writes a UUID as 36 lower-case characters, and a name unchanged.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            IdKind::Uuid(uuid) => fmt::Display::fmt(uuid, f),
            IdKind::Name(name) => f.pad(name),
        }
    }
}

/// Checks the rules for every ID and address: not empty, not too long, without control characters.
pub(crate) fn check_text(text: &str) -> Result<(), TextError> {
    if text.is_empty() {
        return Err(TextError::Empty);
    }
    if text.len() > MAX_TEXT {
        return Err(TextError::TooLong { len: text.len() });
    }
    // Nearly every text is printable ASCII. This loop vectorizes, because no byte depends on the byte before.
    let others = text.bytes().filter(|byte| !matches!(byte, b' '..=b'~')).count();
    if others == 0 {
        return Ok(());
    }
    match text.char_indices().find(|(_, c)| c.is_control()) {
        Some((at, character)) => Err(TextError::Control { character, at }),
        None => Ok(()),
    }
}
