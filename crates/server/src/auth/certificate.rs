//! Who a client is, from the client's certificate. The server has verified the certificate before.

use nodetracker::MAX_TEXT;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::objects::{oid_registry, oid2abbrev};
use x509_parser::prelude::FromDer;
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

use crate::auth::Caller;
use crate::auth::caller::Role;
use crate::config::ClientIdentity;

/// The roles in a subject's O.
const PROXY: &str = "Proxy";
const ADMIN: &str = "Admin";

impl Caller {
    /// Returns the client with a certificate, in DER. A certificate that names no role gives the client no rights.
    pub(crate) fn from_certificate(certificate: &[u8], identity: ClientIdentity) -> Self {
        let Ok((_, certificate)) = X509Certificate::from_der(certificate) else {
            return Self::unreadable(certificate);
        };
        match identity {
            ClientIdentity::Teleport => {
                let subject = certificate.subject();
                Self::new(&described(subject), teleport(subject))
            }
            ClientIdentity::Spiffe => match spiffe_id(&certificate) {
                Some(id) => Self::new(id, spiffe(id)),
                None => {
                    let name = format!("without a SPIFFE ID, {}", described(certificate.subject()));
                    Self::new(&name, Role::None)
                }
            },
        }
    }
}

/// Returns the role of a subject. A subject with several roles has the greatest of them.
fn teleport(subject: &X509Name<'_>) -> Role {
    let has_role = |role| subject.iter_organization().any(|value| text(value) == Some(role));
    let mut names = subject.iter_common_name().map(text);
    match (names.next().flatten(), names.next()) {
        _ if has_role(ADMIN) => Role::Admin,
        (Some(name), None) if has_role(PROXY) => proxy(name.split('.').next().unwrap_or(name)),
        _ => Role::None,
    }
}

fn text<'a>(value: &AttributeTypeAndValue<'a>) -> Option<&'a str> {
    value.as_str().ok()
}

/// Returns the attributes of a subject as text. The name and the roles come first, because messages cut long texts, and
/// Teleport's certificates have many other attributes.
fn described(subject: &X509Name<'_>) -> String {
    let attributes = subject.iter_attributes().map(|attribute| {
        let kind = oid2abbrev(attribute.attr_type(), oid_registry());
        let kind = kind.map_or_else(|_| attribute.attr_type().to_id_string(), str::to_owned);
        let value = match text(attribute) {
            Some(value) => escaped(value),
            None => attribute
                .attr_value()
                .data
                .iter()
                .fold("#".to_owned(), |hex, byte| hex + &format!("{byte:02x}")),
        };
        (kind, value)
    });
    let mut attributes: Vec<_> = attributes.collect();
    attributes.sort_by_key(|(kind, _)| match kind.as_str() {
        "CN" => 0,
        "O" => 1,
        _ => 2,
    });
    let attributes = attributes.iter().map(|(kind, value)| format!("{kind}={value}"));
    attributes.collect::<Vec<_>>().join(", ")
}

/// Returns a value with a backslash before each character that could be taken for the end of the value.
fn escaped(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for character in value.chars() {
        if matches!(character, ',' | '\\') {
            text.push('\\');
        }
        text.push(character);
    }
    text
}

/// Returns the SPIFFE ID of a certificate: the only URI among its names.
fn spiffe_id<'a>(certificate: &'a X509Certificate<'_>) -> Option<&'a str> {
    // An error means that the extension is there twice.
    let names = certificate.subject_alternative_name().ok()??;
    let mut uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => uri.starts_with("spiffe://").then_some(uri),
        _ => None,
    }
}

/// Returns the role in a SPIFFE ID.
fn spiffe(id: &str) -> Role {
    let path = id.strip_prefix("spiffe://").and_then(|rest| rest.split_once('/'));
    match path {
        Some((domain, "admin")) if is_segment(domain) => Role::Admin,
        Some((domain, path)) if is_segment(domain) => match path.strip_prefix("proxy/") {
            Some(id) if is_segment(id) => proxy(id),
            _ => Role::None,
        },
        _ => Role::None,
    }
}

/// Reports whether SPIFFE allows this between two slashes.
fn is_segment(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    !matches!(text, "" | "." | "..") && text.bytes().all(is_allowed)
}

/// Returns the role of the proxy with an ID, or no role if no proxy can have this ID.
fn proxy(id: &str) -> Role {
    match id.len() {
        1..=MAX_TEXT => Role::Proxy(id.into()),
        _ => Role::None,
    }
}

#[cfg(test)]
mod tests {
    use rcgen::string::Ia5String;
    use rcgen::{CertificateParams, DnType, DnValue, KeyPair, SanType};

    use super::*;

    fn client<V: Into<DnValue> + Clone>(attributes: &[(DnType, V)]) -> Caller {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, value) in attributes {
            params.distinguished_name.push(kind.clone(), value.clone());
        }
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        Caller::from_certificate(certificate.der(), ClientIdentity::Teleport)
    }

    fn uris(uris: &[&str]) -> Caller {
        let mut params = CertificateParams::new(["example.com".to_owned()]).unwrap();
        for &uri in uris {
            let uri = Ia5String::try_from(uri).unwrap();
            params.subject_alt_names.push(SanType::URI(uri));
        }
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        Caller::from_certificate(certificate.der(), ClientIdentity::Spiffe)
    }

    #[test]
    fn a_subject_has_teleports_roles() {
        use DnType::{CommonName as CN, OrganizationName as O};

        let proxy = |id: &str| Role::Proxy(id.into());
        for (attributes, role) in [
            (&[(O, "Proxy"), (CN, "proxy-1")][..], proxy("proxy-1")),
            (&[(CN, "proxy-1.main.example.com"), (O, "Proxy")], proxy("proxy-1")),
            (&[(O, "Admin"), (CN, "alice")], Role::Admin),
            (&[(O, "Admin")], Role::Admin),
            (&[(O, "Node"), (CN, "proxy-1")], Role::None),
            (&[(O, "proxy"), (CN, "proxy-1")], Role::None),
            (
                &[(DnType::OrganizationalUnitName, "Proxy"), (CN, "proxy-1")],
                Role::None,
            ),
            (&[(O, "Proxy")], Role::None),
            (&[(O, "Proxy"), (CN, "")], Role::None),
            (&[(O, "Proxy"), (CN, ".main")], Role::None),
            (&[(O, "Proxy"), (CN, &"x".repeat(256))], Role::None),
            (&[(CN, "proxy-1")], Role::None),
            (&[], Role::None),
        ] {
            assert_eq!(client(attributes).role, role, "{attributes:?}");
        }
    }

    #[test]
    fn a_subject_may_have_several_roles_and_one_name() {
        use DnType::{CommonName as CN, OrganizationName as O};

        // rcgen has one value of each kind. These are the same kinds by their numbers.
        let (other_cn, other_o) = (
            DnType::CustomDnType(vec![2, 5, 4, 3]),
            DnType::CustomDnType(vec![2, 5, 4, 10]),
        );
        let proxy = |id: &str| Role::Proxy(id.into());
        for (attributes, role) in [
            (vec![(O, "Proxy"), (other_o.clone(), "Admin"), (CN, "p")], Role::Admin),
            (vec![(O, "Admin"), (other_o.clone(), "Proxy"), (CN, "p")], Role::Admin),
            (vec![(O, "Node"), (other_o.clone(), "Proxy"), (CN, "p")], proxy("p")),
            (vec![(O, "Proxy"), (other_o, "Proxy"), (CN, "p")], proxy("p")),
            (vec![(O, "Proxy"), (CN, "p"), (other_cn.clone(), "q")], Role::None),
            (vec![(O, "Proxy"), (CN, "p"), (other_cn.clone(), "p")], Role::None),
            (vec![(O, "Proxy"), (other_cn.clone(), "p")], proxy("p")),
            (vec![(O, "Admin"), (CN, "p"), (other_cn, "q")], Role::Admin),
        ] {
            assert_eq!(client(&attributes).role, role, "{attributes:?}");
        }
    }

    #[test]
    fn names_in_other_encodings_give_no_right() {
        use DnType::{CommonName as CN, OrganizationName as O};

        let utf8 = |text: &str| DnValue::Utf8String(text.to_owned());
        let bmp = |text: &str| DnValue::BmpString(text.try_into().unwrap());
        let printable = |text: &str| DnValue::PrintableString(text.try_into().unwrap());
        for (role, name, expected) in [
            (printable("Proxy"), printable("p"), Role::Proxy("p".into())),
            (utf8("Proxy"), bmp("p"), Role::None),
            (bmp("Proxy"), utf8("p"), Role::None),
            (bmp("Admin"), utf8("p"), Role::None),
        ] {
            assert_eq!(client(&[(O, role), (CN, name)]).role, expected);
        }
        // No ID of a proxy has control characters, so this client may write nothing.
        let with_nul = client(&[(O, "Proxy"), (CN, "p\0q")]);
        for id in ["p", "q", "p q", "pq", ""] {
            assert!(with_nul.check_proxy(id).is_err(), "{id:?}");
        }
    }

    #[test]
    fn the_name_and_the_roles_come_first() {
        use DnType::{CommonName as CN, LocalityName as L, OrganizationName as O};

        let long = "x".repeat(300);
        let caller = client(&[(DnType::CountryName, "CH"), (L, &long), (O, "Proxy"), (CN, "proxy-1")]);
        assert!(
            caller
                .to_string()
                .starts_with("the client \"CN=proxy-1, O=Proxy, C=CH, L=x"),
            "{caller}"
        );
        // No client can have a certificate that looks like that of another name.
        let caller = client(&[(O, "Proxy, CN=alice\\"), (CN, "p")]);
        assert_eq!(caller.to_string(), r#"the client "CN=p, O=Proxy\\, CN=alice\\\\""#);
        let caller = client(&[(DnType::CustomDnType(vec![1, 3, 9999, 1, 7]), "a"), (CN, "p")]);
        assert_eq!(caller.to_string(), r#"the client "CN=p, 1.3.9999.1.7=a""#);
    }

    #[test]
    fn a_spiffe_id_has_a_role_in_its_path() {
        let proxy = |id: &str| Role::Proxy(id.into());
        for (uri, role) in [
            ("spiffe://example.com/proxy/proxy-1", proxy("proxy-1")),
            ("spiffe://example.com/proxy/proxy.1", proxy("proxy.1")),
            ("spiffe://example.com/admin", Role::Admin),
            ("spiffe://example.com/admin/alice", Role::None),
            ("spiffe://example.com/proxy/", Role::None),
            ("spiffe://example.com/proxy", Role::None),
            ("spiffe://example.com/proxy/a/b", Role::None),
            ("spiffe://example.com/proxy/..", Role::None),
            ("spiffe://example.com/proxy/a%2Fb", Role::None),
            ("spiffe:///admin", Role::None),
            ("spiffe://a:b@example.com/admin", Role::None),
            ("https://example.com/admin", Role::None),
        ] {
            assert_eq!(uris(&[uri]).role, role, "{uri}");
        }
        assert_eq!(uris(&[]).role, Role::None);
        assert_eq!(uris(&["spiffe://a/admin", "spiffe://b/admin"]).role, Role::None);
        assert_eq!(uris(&["https://a/admin", "spiffe://b/admin"]).role, Role::None);
        assert_eq!(
            uris(&["spiffe://a/admin"]).to_string(),
            "the client \"spiffe://a/admin\""
        );
    }

    /// The bytes come from a certificate that an authority has signed, but the parser must not rely on that.
    #[test]
    fn damaged_certificates_have_no_role() {
        let params = CertificateParams::new(["example.com".to_owned()]).unwrap();
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..2_000 {
            let mut bytes = certificate.der().to_vec();
            for _ in 0..random.usize(1..4) {
                let at = random.usize(..bytes.len());
                bytes[at] = random.u8(..);
            }
            bytes.truncate(random.usize(..=bytes.len()));
            for identity in [ClientIdentity::Teleport, ClientIdentity::Spiffe] {
                assert_eq!(Caller::from_certificate(&bytes, identity).role, Role::None);
            }
        }
    }
}
