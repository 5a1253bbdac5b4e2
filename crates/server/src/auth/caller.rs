//! The client of a connection.

use std::fmt;
use std::hash::Hash;
use std::num::NonZeroU64;
use std::sync::LazyLock;

use nodetracker::ClientId;
use tonic::Status;

use crate::client_key::ClientKey;

/// The most characters of a name in a message. Names come from certificates, and from requests.
const MOST_SHOWN: usize = 200;

/// The client of a connection, as far as the server knows the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller {
    /// How messages name the client.
    name: Box<str>,
    /// A hash of the whole name; 0 without a certificate.
    identity: u64,
    /// The client for the limits of the table. `None` until the connection is known.
    client: Option<ClientId>,
    pub(super) role: Role,
}

/// Returns a hash of what identifies a client. Different clients have different hashes, except by an accident that no
/// client can cause: the hash has a random key.
fn identity(of: impl Hash) -> u64 {
    static KEY: LazyLock<ahash::RandomState> = LazyLock::new(ahash::RandomState::new);
    KEY.hash_one(of)
}

/// What a client may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Role {
    /// Everything: the server asks no client for a certificate.
    Unrestricted,
    /// Only what everyone may do.
    None,
    /// Read everything, and write the routes of the proxy with this ID.
    Proxy(Box<str>),
    /// Everything.
    Admin,
}

impl Caller {
    /// Returns a client that has a certificate with this name.
    pub(super) fn new(name: &str, role: Role) -> Self {
        Self {
            name: format!("the client {}", shown(name)).into(),
            identity: identity(name),
            client: None,
            role,
        }
    }

    /// Returns a client whose certificate, in DER, has no name that the server can read.
    pub(super) fn unreadable(certificate: &[u8]) -> Self {
        Self {
            identity: identity(certificate),
            ..Self::new("with an unreadable certificate", Role::None)
        }
    }

    /// Returns any client of a server that asks for no certificates.
    pub(crate) fn unrestricted() -> Self {
        Self {
            name: "any client".into(),
            identity: 0,
            client: None,
            role: Role::Unrestricted,
        }
    }

    /// Returns a client without a certificate, for a server that asks for certificates.
    pub(crate) fn anonymous() -> Self {
        Self {
            name: "a client without a certificate".into(),
            identity: 0,
            client: None,
            role: Role::None,
        }
    }

    /// Returns a number for the client that its certificate names, however long the name is.
    pub(crate) fn identity(&self) -> u64 {
        self.identity
    }

    /// Returns the same client with the key by which its quotas count.
    pub(crate) fn with_key(&self, key: ClientKey) -> Self {
        Self {
            client: NonZeroU64::new(identity(key)).map(ClientId),
            ..self.clone()
        }
    }

    /// Returns the client for the limits of the table.
    pub(crate) fn client(&self) -> Option<ClientId> {
        self.client
    }

    /// Reports whether the server asks clients who they are.
    pub(crate) fn is_identified(&self) -> bool {
        self.role != Role::Unrestricted
    }

    /// Returns the same client after its certificate lost the server's trust.
    pub(crate) fn revoked(&self) -> Self {
        Self {
            name: format!("{self}, whose certificate is no longer trusted,").into(),
            role: Role::None,
            ..self.clone()
        }
    }

    /// Returns the ID of the only proxy whose routes the client may write. `None` if the client may write the routes of
    /// all proxies.
    ///
    /// Only for clients that [`Access::OwnProxy`](crate::auth::Access::OwnProxy) admits.
    pub(super) fn own_proxy(&self) -> Option<&str> {
        match &self.role {
            Role::Unrestricted | Role::Admin => None,
            // No ID of a proxy is empty.
            Role::None => Some(""),
            Role::Proxy(id) => Some(id),
        }
    }

    /// Checks that the client may write the routes of the proxy with an ID.
    ///
    /// # Errors
    ///
    /// PERMISSION_DENIED, with the caller and both proxies.
    #[inline]
    pub(crate) fn check_proxy(&self, id: &str) -> Result<(), Status> {
        match self.own_proxy() {
            None => Ok(()),
            Some(own) if own == id && !id.is_empty() => Ok(()),
            Some(own) => Err(self.not_own(own, id)),
        }
    }

    #[cold]
    fn not_own(&self, own: &str, id: &str) -> Status {
        let named = match id {
            "" => "no proxy".to_owned(),
            id => format!("proxy {}", shown(id)),
        };
        Status::permission_denied(format!(
            "{self} lacks the role Admin, so it may write only the routes of proxy {}, and the request names {named}",
            shown(own)
        ))
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// Returns the beginning of a name, with escapes for characters that a terminal does not show.
fn shown(name: &str) -> String {
    let end = name.char_indices().nth(MOST_SHOWN).map_or(name.len(), |(end, _)| end);
    format!("{:?}", &name[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_may_write_only_its_own_routes() {
        let proxy = Caller::new("CN=p, O=Proxy", Role::Proxy("p".into()));
        assert!(proxy.check_proxy("p").is_ok());
        let denied = |id: &str| proxy.check_proxy(id).unwrap_err();
        assert_eq!(
            denied("other").message(),
            "the client \"CN=p, O=Proxy\" lacks the role Admin, so it may write only the routes of proxy \"p\", and \
             the request names proxy \"other\""
        );
        assert!(denied("").message().ends_with("and the request names no proxy"));
        assert!(denied(&"x".repeat(70_000)).message().len() < 1000);
        assert_eq!(denied("P").code(), tonic::Code::PermissionDenied);
        assert!(proxy.revoked().check_proxy("p").is_err());
        let keyed = proxy.with_key(ClientKey::V6(1));
        assert!(keyed.client().is_some() && keyed.check_proxy("p").is_ok());
        assert_eq!(keyed.revoked().client(), keyed.client());
        assert_ne!(keyed.client(), proxy.with_key(ClientKey::Certified(1)).client());
    }

    #[test]
    fn who_is_not_a_proxy_may_write_all_routes_or_none() {
        for caller in [Caller::unrestricted(), Caller::new("a", Role::Admin)] {
            assert!(caller.check_proxy("p").is_ok());
            assert!(caller.check_proxy("").is_ok());
        }
        assert!(Caller::anonymous().check_proxy("p").is_err());
        assert!(Caller::anonymous().check_proxy("").is_err());
    }

    #[test]
    fn a_client_is_identified_by_its_whole_name() {
        let named = |end: &str| Caller::new(&format!("{}{end}", "a".repeat(MOST_SHOWN)), Role::None);
        assert_eq!(named("b").to_string(), named("c").to_string());
        assert_ne!(named("b").identity(), named("c").identity());
        assert_eq!(named("b").identity(), named("b").revoked().identity());
        let unreadable = |certificate: &[u8]| Caller::unreadable(certificate).identity();
        assert_ne!(unreadable(b"1"), unreadable(b"2"));
    }

    #[test]
    fn names_are_short_and_visible() {
        let caller = Caller::new(&format!("a\n\u{202e}{}", "é".repeat(70_000)), Role::None);
        assert!(caller.to_string().starts_with("the client \"a\\n\\u{202e}é"));
        assert!(caller.to_string().chars().count() < 300);
    }
}
