//! Enums whose variants have stable names.

/// Declares an enum whose variants have names, and the list of its variants. With `text`, each variant also returns its
/// documentation.
macro_rules! named {
    (text $(#[$doc:meta])* $kind:ident { $($(#[doc = $text:literal])+ $variant:ident = $name:literal,)+ }) => {
        $crate::named::named! { $(#[$doc])* $kind { $($(#[doc = $text])+ $variant = $name,)+ } }

        impl $kind {
            /// Returns the variant's documentation, for the log.
            fn text(self) -> &'static str {
                match self {
                    $(Self::$variant => concat!($($text),+).trim_ascii(),)+
                }
            }
        }
    };
    ($(#[$doc:meta])* $kind:ident { $($(#[$variant_doc:meta])* $variant:ident = $name:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum $kind {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $kind {
            /// Every variant, in the order of declaration.
            pub(crate) const ALL: &[Self] = &[$(Self::$variant,)+];

            /// Returns the stable name, which the metrics report.
            pub(crate) fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

pub(crate) use named;
