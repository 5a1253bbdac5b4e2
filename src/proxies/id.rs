//! Proxy IDs: 16 bytes for a UUID in its canonical spelling.

use compact_str::CompactString;
use uuid::Uuid;

use crate::mem::thin_str::ThinStr;

/// A proxy's ID, parsed. IDs are compared byte by byte, so only the canonical spelling of a UUID is stored as a UUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum ProxyId<'a> {
    Uuid(Uuid),
    Name(&'a str),
}

impl<'a> ProxyId<'a> {
    pub(crate) fn of(id: &'a str) -> Self {
        let canonical = |uuid: &Uuid| uuid.hyphenated().encode_lower(&mut Uuid::encode_buffer()) == id;
        match (id.len() == 36)
            .then(|| Uuid::try_parse_ascii(id.as_bytes()).ok())
            .flatten()
            .filter(canonical)
        {
            Some(uuid) => ProxyId::Uuid(uuid),
            None => ProxyId::Name(id),
        }
    }

    pub(crate) fn is_name(&self) -> bool {
        matches!(self, ProxyId::Name(_))
    }

    /// The 128 bits of the ID in an entry. Those of a name have the address of a [`ThinStr`].
    pub(crate) fn to_bits(self) -> [u64; 2] {
        match self {
            ProxyId::Uuid(uuid) => {
                let (high, low) = uuid.as_u64_pair();
                [low, high]
            }
            ProxyId::Name(name) => [0, ThinStr::new_or_abort(name).to_bits()],
        }
    }

    /// # Safety
    ///
    /// `bits` came from [`to_bits`](ProxyId::to_bits) of an ID of the same kind, and are not freed while the result is
    /// in use.
    pub(crate) unsafe fn from_bits(bits: [u64; 2], is_name: bool) -> Self {
        if !is_name {
            return ProxyId::Uuid(Uuid::from_u64_pair(bits[1], bits[0]));
        }
        // SAFETY: the caller promises that the bits are a name's, and that the text is not freed while the result is in
        // use.
        ProxyId::Name(unsafe { ThinStr::from_bits(bits[1]).as_str() })
    }

    pub(crate) fn to_compact_string(self) -> CompactString {
        match self {
            ProxyId::Uuid(uuid) => (&*uuid.hyphenated().encode_lower(&mut Uuid::encode_buffer())).into(),
            ProxyId::Name(name) => name.into(),
        }
    }
}

/// An ID that owns its text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum OwnedId {
    Uuid(Uuid),
    Name(CompactString),
}

impl OwnedId {
    pub(crate) fn to_compact_string(&self) -> CompactString {
        match self {
            OwnedId::Uuid(uuid) => ProxyId::Uuid(*uuid).to_compact_string(),
            OwnedId::Name(name) => name.clone(),
        }
    }
}

impl From<ProxyId<'_>> for OwnedId {
    fn from(id: ProxyId<'_>) -> Self {
        match id {
            ProxyId::Uuid(uuid) => OwnedId::Uuid(uuid),
            ProxyId::Name(name) => OwnedId::Name(name.into()),
        }
    }
}
