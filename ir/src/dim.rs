//! Dimensions: a constant, or a polynomial with integer coefficients over named symbols (`S`, `261*S + 5`).
//!
//! Symbols stand for positive integers. Two dimensions are equal exactly when their canonical forms are.

use std::{
    collections::BTreeMap,
    fmt,
    ops::{Add, Mul, Sub},
    str::FromStr,
    sync::Arc,
};

use serde::{Deserialize, Serialize};

/// Values for symbols.
pub type Bindings = BTreeMap<String, usize>;

/// A polynomial over symbols. Canonical: monomials sorted and distinct, no zero coefficient; the constant is the
/// monomial without symbols.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Dim {
    constant: i64,
    terms: Vec<(Vec<Arc<str>>, i64)>,
}

impl Dim {
    /// The symbol of that name.
    pub fn symbol(name: &str) -> Self {
        Self { constant: 0, terms: vec![(vec![name.into()], 1)] }
    }

    /// The value, where there is no symbol in it.
    pub fn constant(&self) -> Option<i64> {
        self.terms.is_empty().then_some(self.constant)
    }

    /// The value as a size; `None` with symbols in it or below zero.
    pub fn size(&self) -> Option<usize> {
        self.constant().and_then(|c| usize::try_from(c).ok())
    }

    /// Whether this is the constant one.
    pub fn is_one(&self) -> bool {
        self.constant() == Some(1)
    }

    /// All symbols, each once, sorted.
    pub fn symbols(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.terms.iter().flat_map(|(m, _)| m.iter().map(|s| &**s)).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The least value for symbols from 1 on; `None` where a coefficient is negative.
    pub fn lower_bound(&self) -> Option<i64> {
        self.terms.iter().try_fold(self.constant, |sum, (_, k)| (*k > 0).then(|| sum.saturating_add(*k)))
    }

    /// Replaces the symbols that have a value.
    pub fn bind(&self, bindings: &Bindings) -> Self {
        self.terms.iter().fold(Self::from(self.constant), |sum, (monomial, coefficient)| {
            let factors =
                monomial.iter().map(|s| bindings.get(&**s).map_or_else(|| Self::symbol(s), |v| Self::from(*v)));
            sum + factors.fold(Self::from(*coefficient), |product, f| product * f)
        })
    }

    /// `self / by` where that is a polynomial with integer coefficients and `by` is a single monomial.
    pub fn divide(&self, by: &Self) -> Option<Self> {
        if let Some(c) = by.constant() {
            let exact = |v: i64| (c != 0 && v % c == 0).then(|| v / c);
            let terms = self.terms.iter().map(|(m, k)| Some((m.clone(), exact(*k)?))).collect::<Option<Vec<_>>>()?;
            return Some(Self { constant: exact(self.constant)?, terms });
        }
        let [(divisor, coefficient)] = by.terms.as_slice() else { return None };
        if by.constant != 0 || self.constant != 0 {
            return (self == by).then(|| Self::from(1));
        }
        self.terms.iter().try_fold(Self::from(0), |sum, (monomial, k)| {
            let mut rest = monomial.clone();
            for symbol in divisor {
                rest.remove(rest.iter().position(|s| s == symbol)?);
            }
            (k % coefficient == 0).then(|| sum + Self::term(rest, k / coefficient))
        })
    }

    fn term(mut monomial: Vec<Arc<str>>, coefficient: i64) -> Self {
        monomial.sort_unstable();
        match (coefficient, monomial.is_empty()) {
            (0, _) => Self::from(0),
            (c, true) => Self::from(c),
            (c, false) => Self { constant: 0, terms: vec![(monomial, c)] },
        }
    }
}

impl From<i64> for Dim {
    fn from(constant: i64) -> Self {
        Self { constant, terms: Vec::new() }
    }
}

impl From<i32> for Dim {
    fn from(constant: i32) -> Self {
        Self::from(i64::from(constant))
    }
}

impl From<usize> for Dim {
    fn from(size: usize) -> Self {
        Self::from(i64::try_from(size).expect("sizes fit in 63 bits"))
    }
}

impl Add for Dim {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        let mut all: BTreeMap<Vec<Arc<str>>, i64> = self.terms.into_iter().collect();
        for (monomial, k) in other.terms {
            *all.entry(monomial).or_default() += k;
        }
        let terms = all.into_iter().filter(|(_, k)| *k != 0).collect();
        Self { constant: self.constant.saturating_add(other.constant), terms }
    }
}

impl Mul for Dim {
    type Output = Self;
    fn mul(self, other: Self) -> Self {
        if let (Some(a), Some(b)) = (self.constant(), other.constant()) {
            return Self::from(a.saturating_mul(b));
        }
        let parts = |d: Self| {
            let constant = (Vec::new(), d.constant);
            std::iter::once(constant).chain(d.terms).collect::<Vec<_>>()
        };
        let right = parts(other);
        parts(self).into_iter().fold(Self::from(0), |sum, (m, k)| {
            right
                .iter()
                .fold(sum, |sum, (n, l)| sum + Self::term(m.iter().chain(n).cloned().collect(), k.saturating_mul(*l)))
        })
    }
}

impl Sub for Dim {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        self + other * Self::from(-1)
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut first = true;
        for (monomial, k) in &self.terms {
            let sign = if *k < 0 {
                "-"
            } else if first {
                ""
            } else {
                "+"
            };
            f.write_str(sign)?;
            if k.abs() != 1 {
                write!(f, "{}*", k.abs())?;
            }
            f.write_str(&monomial.join("*"))?;
            first = false;
        }
        match self.constant {
            0 if !first => Ok(()),
            c if first => write!(f, "{c}"),
            c => write!(f, "{c:+}"),
        }
    }
}

impl FromStr for Dim {
    type Err = String;

    /// Sums of products, no parentheses: `2*S*T - 5`.
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("`{text}` is not a dimension");
        let spaced = text.replace(' ', "").replace('-', "+-");
        let mut sum = Self::from(0);
        for term in spaced.strip_prefix('+').unwrap_or(&spaced).split('+') {
            let (sign, term) = term.strip_prefix('-').map_or((1, term), |t| (-1, t));
            let mut product = Self::from(sign);
            for factor in term.split('*') {
                let symbol = factor.starts_with(|c: char| c.is_alphabetic() || c == '_');
                product = product
                    * match symbol && factor.chars().all(|c| c.is_alphanumeric() || c == '_') {
                        true => Self::symbol(factor),
                        false => Self::from(factor.parse::<i64>().map_err(|_| bad())?),
                    };
            }
            sum = sum + product;
        }
        Ok(sum)
    }
}

impl From<Dim> for String {
    fn from(dim: Dim) -> Self {
        dim.to_string()
    }
}

impl TryFrom<String> for Dim {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dim(text: &str) -> Dim {
        text.parse().unwrap()
    }

    #[test]
    fn arithmetic_is_canonical() {
        assert_eq!(dim("S") * dim("261") + dim("5"), dim("5 + 261*S"));
        assert_eq!((dim("S+1") * dim("S-1")).to_string(), "S*S-1");
        assert_eq!(dim("S") - dim("S"), Dim::from(0usize));
        assert_eq!(dim("T*S"), dim("S*T"));
    }

    #[test]
    fn text_round_trips() {
        for text in ["0", "7", "-3", "S", "2*S", "S*T+4*T-1", "-S+1"] {
            assert_eq!(dim(text).to_string(), text);
            assert_eq!(dim(&dim(text).to_string()), dim(text));
        }
        assert!("2S".parse::<Dim>().is_err());
        assert!("".parse::<Dim>().is_err());
    }

    #[test]
    fn binds_and_divides() {
        let bound = dim("261*S").bind(&Bindings::from([("S".into(), 8)]));
        assert_eq!(bound.size(), Some(2088));
        assert_eq!(dim("261*S*T").divide(&dim("S")), Some(dim("261*T")));
        assert_eq!(dim("261*S").divide(&dim("261")), Some(dim("S")));
        assert_eq!(dim("261*S+1").divide(&dim("S")), None);
        assert_eq!(dim("7").divide(&dim("0")), None);
    }
}
