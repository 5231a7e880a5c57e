//! Serde forms of types and operations: their own text.

/// Types that print and parse.
pub mod display {
    use std::{fmt::Display, str::FromStr};

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<T: Display, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    pub fn deserialize<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// Operations with their attributes.
pub mod op {
    use lite3r_ir::{
        Op,
        text::{parse_op, print_op},
    };
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(op: &Op, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&print_op(op))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Op, D::Error> {
        parse_op(&String::deserialize(from)?).map_err(D::Error::custom)
    }
}
