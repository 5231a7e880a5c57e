//! What some shaders use beyond what every adapter offers. A plan is portable: each of its steps names a row that needs
//! nothing, and carries the shaders of the rows that may stand in for it where an adapter offers what they need.

use std::{fmt, str::FromStr};

/// Bytes of memory that every adapter gives a workgroup.
pub const WORKGROUP_BYTES: u32 = 16 * 1024;

/// What a row needs, or an adapter offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Numbers of 16 bits: `enable f16;`.
    pub f16: bool,
    /// What invocations of a subgroup do together. Subgroups have any size.
    pub subgroups: bool,
    /// Products of 16 x 16 x 16, f16 summed in f32, by subgroups of 32: `enable wgpu_cooperative_matrix;`.
    pub matrices: bool,
    /// Memory of a workgroup in bytes.
    pub workgroup_bytes: u32,
}

impl Features {
    /// What every adapter offers.
    pub const NONE: Self = Self { f16: false, subgroups: false, matrices: false, workgroup_bytes: WORKGROUP_BYTES };
    /// Cooperative matrices, and the numbers that they multiply.
    pub const MATRICES: Self = Self { f16: true, matrices: true, ..Self::NONE };

    /// Whether an adapter that offers `offered` has all of it.
    pub const fn are_in(&self, offered: &Self) -> bool {
        (!self.f16 || offered.f16)
            && (!self.subgroups || offered.subgroups)
            && (!self.matrices || offered.matrices)
            && self.workgroup_bytes <= offered.workgroup_bytes
    }

    /// What of it is among those that are let through.
    pub const fn held_to(&self, let_through: &Self) -> Self {
        Self {
            f16: self.f16 && let_through.f16,
            subgroups: self.subgroups && let_through.subgroups,
            matrices: self.matrices && let_through.matrices,
            workgroup_bytes: self.workgroup_bytes,
        }
    }

    /// Those that are there with their names.
    fn named(&self) -> impl Iterator<Item = &'static str> {
        [(self.f16, "f16"), (self.subgroups, "subgroups"), (self.matrices, "matrices")]
            .into_iter()
            .filter_map(|(is, name)| is.then_some(name))
    }
}

impl fmt::Display for Features {
    /// `f16+matrices`, as device names write it; `plain` for none.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.named().collect();
        f.write_str(if names.is_empty() { "plain".into() } else { names.join("+") }.as_str())
    }
}

impl FromStr for Features {
    type Err = String;

    /// `plain`, or names joined by `+`.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut features = Self::NONE;
        if text == "plain" {
            return Ok(features);
        }
        for name in text.split('+') {
            match name {
                "f16" => features.f16 = true,
                "subgroups" => features.subgroups = true,
                "matrices" => features.matrices = true,
                _ => return Err(format!("`{name}` is not one of plain, f16, subgroups and matrices")),
            }
        }
        Ok(features)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for text in ["plain", "f16", "subgroups", "f16+matrices", "f16+subgroups+matrices"] {
            assert_eq!(text.parse::<Features>().unwrap().to_string(), text);
        }
        assert!("f64".parse::<Features>().unwrap_err().contains("subgroups"));
    }

    #[test]
    fn what_is_held_back_is_not_offered() {
        let offered = Features { subgroups: true, ..Features::MATRICES };
        assert!(Features::MATRICES.are_in(&offered) && Features::NONE.are_in(&Features::NONE));
        assert!(!Features::MATRICES.are_in(&offered.held_to(&"f16+subgroups".parse().unwrap())));
        let large = Features { workgroup_bytes: 2 * WORKGROUP_BYTES, ..Features::NONE };
        assert!(!large.are_in(&offered));
    }
}
