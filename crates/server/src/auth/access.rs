//! The rules of methods.

use tonic::Status;

use crate::auth::Caller;
use crate::auth::caller::Role;

/// Who may call a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Everyone who can connect.
    Everyone,
    /// A proxy or an admin: the method changes nothing.
    Read,
    /// A proxy, which may write only its own routes, or an admin. The handler learns from the request which proxy is
    /// meant.
    OwnProxy,
    /// An admin.
    Admin,
}

impl Access {
    /// Checks that a caller may call the method with this path.
    ///
    /// # Errors
    ///
    /// PERMISSION_DENIED, with the caller and the role that the caller lacks.
    #[inline]
    pub(crate) fn check(self, caller: &Caller, path: &str) -> Result<(), Status> {
        match (&caller.role, self) {
            (Role::Unrestricted | Role::Admin, _)
            | (_, Access::Everyone)
            | (Role::Proxy(_), Access::Read | Access::OwnProxy) => Ok(()),
            _ => Err(self.denied(caller, path)),
        }
    }

    #[cold]
    fn denied(self, caller: &Caller, path: &str) -> Status {
        let role = match self {
            Access::Admin => "the role Admin",
            Access::Everyone | Access::Read | Access::OwnProxy => "a role, Proxy or Admin",
        };
        let method = path.trim_start_matches('/');
        Status::permission_denied(format!("{caller} lacks {role}, which {method} needs"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_caller_the_method_and_the_missing_role() {
        let proxy = Caller::new("CN=p, O=Proxy", Role::Proxy("p".into()));
        let denied = |access: Access, caller: &Caller| access.check(caller, "/a.B/C").unwrap_err();
        assert_eq!(
            denied(Access::Admin, &proxy).message(),
            "the client \"CN=p, O=Proxy\" lacks the role Admin, which a.B/C needs"
        );
        assert_eq!(
            denied(Access::Read, &Caller::anonymous()).message(),
            "a client without a certificate lacks a role, Proxy or Admin, which a.B/C needs"
        );
        assert_eq!(
            denied(Access::Read, &proxy.revoked()).message(),
            "the client \"CN=p, O=Proxy\", whose certificate is no longer trusted, lacks a role, Proxy or Admin, which \
             a.B/C needs"
        );
        assert_eq!(
            denied(Access::OwnProxy, &Caller::anonymous()).code(),
            tonic::Code::PermissionDenied
        );
    }
}
