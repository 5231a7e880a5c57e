//! Attributes: the part of an operation that is fixed at compile time.
//!
//! An operation is a struct whose fields are its attributes. [`attributes!`] declares it once and derives the text
//! form: fields in declared order, defaults omitted, so that printing and parsing can never drift apart from the
//! struct.

use std::fmt;

use crate::{dim::Dim, types::DType};

/// An attribute value as the text form knows it.
#[derive(Clone, Debug, PartialEq)]
pub enum Attr {
    /// An integer or a dimension: `64`, `261*S`.
    Dim(Dim),
    /// A real number: `0.125`, `1e-6`.
    Float(f64),
    /// An identifier: `true`, `f16`, `pooled`.
    Word(String),
    /// A quoted string.
    Text(String),
    /// `[1, 2, 3]`.
    List(Vec<Attr>),
}

impl fmt::Display for Attr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dim(d) => write!(f, "{d}"),
            Self::Float(x) => write!(f, "{x:?}"),
            Self::Word(w) => f.write_str(w),
            Self::Text(t) => write!(f, "{t:?}"),
            Self::List(items) => {
                f.write_str("[")?;
                for (i, item) in items.iter().enumerate() {
                    write!(f, "{}{item}", if i == 0 { "" } else { "," })?;
                }
                f.write_str("]")
            }
        }
    }
}

/// Named attributes in the order in which they are written.
pub type AttrMap = Vec<(String, Attr)>;

/// A Rust type that can be an attribute.
pub trait AttrField: Sized + Clone + PartialEq {
    /// What the text form expects, for errors: `an integer`.
    const EXPECTS: &'static str;
    /// Into the text form.
    fn put(&self) -> Attr;
    /// From the text form.
    fn take(attr: &Attr) -> Option<Self>;
}

macro_rules! integer_field {
    ($($t:ty),*) => {$(
        impl AttrField for $t {
            const EXPECTS: &'static str = "an integer";
            fn put(&self) -> Attr {
                Attr::Dim(Dim::from(*self as i64))
            }
            fn take(attr: &Attr) -> Option<Self> {
                match attr {
                    Attr::Dim(d) => d.constant()?.try_into().ok(),
                    _ => None,
                }
            }
        }
    )*};
}
integer_field!(i64, usize);

impl AttrField for f64 {
    const EXPECTS: &'static str = "a number";
    fn put(&self) -> Attr {
        Attr::Float(*self)
    }
    fn take(attr: &Attr) -> Option<Self> {
        match attr {
            Attr::Float(x) => Some(*x),
            Attr::Dim(d) => d.constant().map(|c| c as f64),
            _ => None,
        }
    }
}

impl AttrField for bool {
    const EXPECTS: &'static str = "true or false";
    fn put(&self) -> Attr {
        Attr::Word(self.to_string())
    }
    fn take(attr: &Attr) -> Option<Self> {
        match attr {
            Attr::Word(w) => w.parse().ok(),
            _ => None,
        }
    }
}

impl AttrField for String {
    const EXPECTS: &'static str = "a string";
    fn put(&self) -> Attr {
        Attr::Text(self.clone())
    }
    fn take(attr: &Attr) -> Option<Self> {
        match attr {
            Attr::Text(t) | Attr::Word(t) => Some(t.clone()),
            _ => None,
        }
    }
}

impl AttrField for Dim {
    const EXPECTS: &'static str = "a dimension";
    fn put(&self) -> Attr {
        Attr::Dim(self.clone())
    }
    fn take(attr: &Attr) -> Option<Self> {
        match attr {
            Attr::Dim(d) => Some(d.clone()),
            Attr::Word(w) => w.parse().ok(),
            _ => None,
        }
    }
}

impl AttrField for DType {
    const EXPECTS: &'static str = "an element type";
    fn put(&self) -> Attr {
        Attr::Word(self.name().into())
    }
    fn take(attr: &Attr) -> Option<Self> {
        match attr {
            Attr::Word(w) => w.parse().ok(),
            _ => None,
        }
    }
}

impl<T: AttrField> AttrField for Vec<T> {
    const EXPECTS: &'static str = "a list";
    fn put(&self) -> Attr {
        Attr::List(self.iter().map(AttrField::put).collect())
    }
    fn take(attr: &Attr) -> Option<Self> {
        match attr {
            Attr::List(items) => items.iter().map(T::take).collect(),
            _ => None,
        }
    }
}

impl<T: AttrField> AttrField for Option<T> {
    const EXPECTS: &'static str = T::EXPECTS;
    fn put(&self) -> Attr {
        self.as_ref().map_or_else(|| Attr::Word("none".into()), AttrField::put)
    }
    fn take(attr: &Attr) -> Option<Self> {
        match attr {
            Attr::Word(w) if w == "none" => Some(None),
            _ => T::take(attr).map(Some),
        }
    }
}

/// The struct side of [`attributes!`].
pub trait Attributes: Sized {
    /// The attributes that differ from their defaults, in declared order.
    fn attrs(&self) -> AttrMap;
    /// From the text form; every unknown, missing and ill-typed attribute is reported.
    fn from_attrs(attrs: &[(String, Attr)]) -> Result<Self, Vec<String>>;
}

/// Declares a struct of attributes: `pub struct Softmax { pub axis: i64 = -1 }`. A field without a default is required.
#[macro_export]
macro_rules! attributes {
    ($(#[$meta:meta])* pub struct $name:ident {
        $($(#[$field_meta:meta])* pub $field:ident : $type:ty $(= $default:expr)?),* $(,)?
    }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $name { $($(#[$field_meta])* pub $field: $type),* }

        impl $crate::attr::Attributes for $name {
            fn attrs(&self) -> $crate::attr::AttrMap {
                #[allow(unused_mut)]
                let mut out = $crate::attr::AttrMap::new();
                $(if !$crate::attributes!(@is_default self.$field, $type $(, $default)?) {
                    out.push((stringify!($field).into(), $crate::attr::AttrField::put(&self.$field)));
                })*
                out
            }

            fn from_attrs(attrs: &[(String, $crate::attr::Attr)]) -> Result<Self, Vec<String>> {
                #[allow(unused_mut)]
                let mut problems: Vec<String> = attrs
                    .iter()
                    .filter(|(name, _)| ![$(stringify!($field)),*].contains(&name.as_str() as &&str))
                    .map(|(name, _)| format!("there is no attribute `{name}`"))
                    .collect();
                $(let $field: Option<$type> = match attrs.iter().find(|(name, _)| name == stringify!($field)) {
                    Some((name, attr)) => {
                        let value = <$type as $crate::attr::AttrField>::take(attr);
                        if value.is_none() {
                            problems.push(format!(
                                "`{name}` must be {}, not `{attr}`", <$type as $crate::attr::AttrField>::EXPECTS
                            ));
                        }
                        value
                    }
                    None => $crate::attributes!(@default problems, $field, $type $(, $default)?),
                };)*
                match ($($field,)* problems.is_empty(),) {
                    ($(Some($field),)* true,) => Ok(Self { $($field),* }),
                    _ => Err(problems),
                }
            }
        }
    };
    (@is_default $value:expr, $type:ty, $default:expr) => {{
        let default: $type = <$type>::from($default);
        $value == default
    }};
    (@is_default $value:expr, $type:ty) => { false };
    (@default $problems:ident, $field:ident, $type:ty, $default:expr) => { Some(<$type>::from($default)) };
    (@default $problems:ident, $field:ident, $type:ty) => {{
        $problems.push(concat!("attribute `", stringify!($field), "` is required").into());
        None
    }};
}

/// Declares an enumeration whose variants are written as words: `word_enum! { pub enum Map { Elu1 = "elu1" } }`.
#[macro_export]
macro_rules! word_enum {
    ($(#[$meta:meta])* pub enum $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $word:literal),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$variant_meta])* $variant),* }

        impl $name {
            /// Every variant with its word, in declared order.
            pub const WORDS: &[(&'static str, Self)] = &[$(($word, Self::$variant)),*];

            /// As the text form writes it.
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }
        }

        impl $crate::attr::AttrField for $name {
            const EXPECTS: &'static str = concat!("one of" $(, " ", $word)*);
            fn put(&self) -> $crate::attr::Attr {
                $crate::attr::Attr::Word(self.word().into())
            }
            fn take(attr: &$crate::attr::Attr) -> Option<Self> {
                match attr {
                    $crate::attr::Attr::Word(w) => Self::WORDS.iter().find(|(word, _)| word == w).map(|(_, v)| *v),
                    _ => None,
                }
            }
        }
    };
}

impl AttrField for crate::types::ValueType {
    const EXPECTS: &'static str = "a quoted type";
    fn put(&self) -> Attr {
        Attr::Text(self.to_string())
    }
    fn take(attr: &Attr) -> Option<Self> {
        match attr {
            Attr::Text(t) => t.parse().ok(),
            _ => None,
        }
    }
}
